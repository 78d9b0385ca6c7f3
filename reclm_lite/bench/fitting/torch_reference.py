"""LightGCN's training epoch beside the same epoch in plain torch, whose file is given (benchmarks/torch_lightgcn.py).

The same on both sides: 3 layers of 64 columns and their mean, propagated anew for every batch of 4,096, a dense Adam
step, negatives drawn for every batch. With text, item vectors begin as a two-layer MLP of text vectors added to their
own.
"""

import importlib.util
from pathlib import Path
from types import ModuleType

from ...cf.inputs import Inputs
from ...cf.models import lightgcn
from ...cf.phases import fit_arrays
from ...errors import InputError
from .. import machine
from ..comparison import Group
from ..harness import Stopwatch, Timing, quiet

OURS, LAYOUTS = "reclm", ("coo", "csr")
# (name, loss, n_negatives), the same on both sides.
LOSSES = (("BPR", "bpr", 1), ("sampled softmax of 32", "ssm", 32))
DIM, N_LAYERS, BATCH, RATE = 64, 3, 4096, 1e-3


def beside_torch(inputs: Inputs, path: Path | None, n_rounds: int, n_threads: int, seed: int) -> list[Group]:
    """One group for each loss: our epoch and torch's, in turns. inputs: without validation interactions."""
    train = inputs.split.train
    reference = None if path is None or not machine.installed("torch") else load(path)
    missing = "not found: run in the repository, or give --reference" if path is None else "torch is not installed"
    groups = []
    for name, loss, n_negatives in LOSSES:
        # The published pair has no text; the sampled softmax is what this project trains with, text and all.
        text = inputs.text if loss == "ssm" else None
        what = f"one epoch, {name}, {N_LAYERS} layers of {DIM}{'' if text is None else ', items with text'}"
        group = Group(f"lightgcn against torch, {loss}", what, "interactions", train.nnz)
        settings = lightgcn.Settings(
            dim=DIM,
            n_layers=N_LAYERS,
            lr=RATE,
            batch_size=BATCH,
            loss=loss,
            n_negatives=n_negatives,
            l2=0.0,
            layers="mean",
            self_loops=False,
            items_propagated=True,
            encoder="published" if text is None else "residual",
            patience=None,
        )
        seconds: dict[str, list[float]] = {OURS: []}
        losses: dict[str, float] = {}
        peers = {}
        if reference is not None:
            _use_threads(n_threads)
            for layout in LAYOUTS:
                model = reference.TorchLightGCN(
                    train.indptr,
                    train.indices,
                    *train.shape,
                    dim=DIM,
                    n_layers=N_LAYERS,
                    rate=RATE,
                    layout=layout,
                    text=text,
                    seed=seed,
                )
                model.epoch(batch_size=BATCH, loss=loss, n_negatives=n_negatives, seed=seed, max_steps=2)
                peers[f"torch {layout.upper()}"] = model
                seconds[f"torch {layout.upper()}"] = []
        for number in range(n_rounds):
            seconds[OURS].append(_our_epoch(Inputs(inputs.split, text), settings, n_threads, seed))
            for peer, model in peers.items():
                spent, losses[peer] = model.epoch(
                    batch_size=BATCH, loss=loss, n_negatives=n_negatives, seed=seed + number
                )
                seconds[peer].append(spent)
        for contender, spent in seconds.items():
            note = f"loss {losses[contender]:.4f}" if contender in losses else ""
            group.add(contender, Timing.of(spent), note)
        if not peers:
            for layout in LAYOUTS:
                group.add_missing(f"torch {layout.upper()}", missing)
        group.expect(OURS, 5.0, "torch COO")
        groups.append(group)
    return groups


def load(path: Path) -> ModuleType:
    """The reference's module. Raises InputError if the file has no `TorchLightGCN`."""
    spec = importlib.util.spec_from_file_location("torch_lightgcn_reference", path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path}: expected a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "TorchLightGCN"):
        raise InputError(f"{path}: expected a class TorchLightGCN, as in benchmarks/torch_lightgcn.py, found none")
    return module


def _our_epoch(inputs: Inputs, settings: lightgcn.Settings, n_threads: int, seed: int) -> float:
    """Seconds of the second epoch: the first compiles and warms up."""
    watch = Stopwatch()
    with quiet(fit_arrays):
        fit_arrays(
            inputs,
            "lightgcn",
            settings=settings,
            epochs=2,
            refit=False,
            n_threads=n_threads,
            seed=seed,
            progress=lambda *_, **__: watch.lap(),
        )
    return watch.laps[1]


def _use_threads(n_threads: int) -> None:
    import torch

    torch.set_num_threads(n_threads)
