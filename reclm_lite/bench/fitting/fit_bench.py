"""`reclm bench fit`: seconds per epoch of every trained model, fits of the others, and evaluation.

By default on a generated graph of the size of the MIND split; with `large` also on one of 30,000 users, 41,000 items
and 810,000 training interactions. Epochs are timed without validation, whose cost is the evaluation's row. Left out:
which model is best; the Recall beside a row only shows that the model has learnt.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from ...cf.fitted import FittedModel
from ...cf.inputs import Inputs, load_inputs
from ...cf.models import MODELS, TRAINED
from ...cf.phases import fit_arrays
from ...cf.untrained import fit_untrained
from ...data.dataset import Split, load_split
from ...errors import InputError
from ...evaluate.protocol import Evaluation, evaluate
from ...workspace import Workspace
from .. import machine
from ..comparison import Group, Target, lines_of, to_json
from ..harness import PeakMemory, Stopwatch, Timing, quiet, take_turns
from ..random_graphs import NEWS, PLACES, Shape, hold_out, power_law
from .torch_reference import beside_torch

ALL_MODELS = (*TRAINED, *(model for model in MODELS if model not in TRAINED))
# Also measured on the large graph; the others take too long or too much memory there (EASE 13 GB).
LARGE_MODELS = ("popularity", "lightgcn", "gfcf")
TEXT_DIM = 384
VALIDATION = 0.1
Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Sizes:
    """n_interactions: training and test together. held_out: the share of each user's that is the test. text: whether
    items have text vectors."""

    n_users: int
    n_items: int
    n_interactions: int
    held_out: float
    shape: Shape
    text: bool


# Two interactions at least, so that each user is trained on and tested on.
MIND = Sizes(57_128, 2_386, 177_708, 0.5, dataclasses.replace(NEWS, user_least=0.65), True)
LARGE = Sizes(29_858, 40_981, 1_012_660, 0.2, PLACES, False)
QUICK = Sizes(600, 300, 6_000, 0.3, PLACES, True)


@dataclasses.dataclass(frozen=True)
class Settings:
    """epochs: that are timed; one before them compiles. models: names in the registry.

    workspace: use its split instead of the generated graph. reference: benchmarks/torch_lightgcn.py, None if absent.
    """

    n_threads: int
    epochs: int = 3
    models: tuple[str, ...] = ALL_MODELS
    presets: tuple[str, ...] = ("default", "paper")
    sizes: Sizes = MIND
    large: bool = False
    workspace: Path | None = None
    reference: Path | None = None
    seed: int = 0


def run(settings: Settings, say: Say = lambda _: None) -> tuple[list[str], str]:
    """Measure; returns the lines of the table and the JSON line."""
    unknown = [model for model in settings.models if model not in MODELS]
    if unknown or settings.epochs < 1:
        raise InputError(
            f"expected models among {', '.join(MODELS)} and at least one epoch, found {unknown}, {settings.epochs}"
        )
    about = machine.facts(settings.n_threads)
    say("reading the data" if settings.workspace else "making the graph")
    inputs, source = _inputs(settings)
    groups = _on(inputs, settings.models, "", settings, say)
    if "lightgcn" in settings.models:
        say("lightgcn beside torch")
        groups += beside_torch(blind(inputs), settings.reference, settings.epochs, settings.n_threads, settings.seed)
        if settings.workspace is None and settings.sizes != MIND:
            for group in groups:  # targets are those of the full sizes
                group.targets.clear()
    graphs = [_facts(inputs, source)]
    if settings.large:
        say("making the large graph")
        large = generated(LARGE, settings.seed)
        graphs.append(_facts(large, "generated, large"))
        models = tuple(model for model in settings.models if model in LARGE_MODELS)
        groups += _on(large, models, ", large graph", dataclasses.replace(settings, presets=("default",)), say)
    described = [
        f"data ({graph['source']}): {graph['n_users']:,} users, {graph['n_items']:,} items, {graph['n_train']:,} "
        "training and "
        f"{graph['n_test']:,} test interactions"
        for graph in graphs
    ]
    lines = [machine.sentence(about), *described, *lines_of(groups)]
    shown = {
        "epochs": settings.epochs,
        "models": list(settings.models),
        "presets": list(settings.presets),
        "seed": settings.seed,
    }
    return lines, to_json("fit", about, shown, groups, data=graphs)


def generated(sizes: Sizes, seed: int = 0) -> Inputs:
    """A split of a generated graph: test held out of each user, then a tenth of the rest for validation."""
    matrix = power_law(sizes.n_users, sizes.n_items, sizes.n_interactions, seed, sizes.shape)
    known, test = hold_out(matrix, sizes.held_out, seed)
    train, valid = hold_out(known, VALIDATION, seed + 1)
    empty = sp.csr_matrix(matrix.shape, dtype=np.float32)
    text = None
    if sizes.text:
        text = np.random.default_rng([seed, 0xB6]).standard_normal((sizes.n_items, TEXT_DIM), dtype=np.float32)
        text /= np.linalg.norm(text, axis=1, keepdims=True)
    candidates = np.unique(known.indices).astype(np.int32)
    return Inputs(Split(train, valid, test, empty, candidates, np.zeros(0, np.int32)), text)


def _inputs(settings: Settings) -> tuple[Inputs, str]:
    if settings.workspace is None:
        return generated(settings.sizes, settings.seed), "generated"
    with Workspace.open(settings.workspace) as ws:
        split = load_split(ws)
        return load_inputs(ws, split, "none", {}), str(settings.workspace)


def _facts(inputs: Inputs, source: str) -> dict:
    split = inputs.split
    return {
        "source": source,
        "n_users": split.n_users,
        "n_items": split.n_items,
        "n_train": int(split.train.nnz + split.valid.nnz),
        "n_test": int(split.test.nnz),
        "text": inputs.text is not None,
    }


def _on(inputs: Inputs, models: tuple[str, ...], suffix: str, settings: Settings, say: Say) -> list[Group]:
    """Epochs, fits without training, and evaluation on one data set."""
    split = inputs.split
    n_ranked = int(np.count_nonzero(np.diff(split.test.indptr)))
    epochs = Group(
        f"epochs{suffix}",
        "one epoch of training, validation not counted",
        "interactions",
        split.train.nnz + split.valid.nnz,
    )
    untrained = Group(
        f"closed form{suffix}",
        "fit and evaluation of all users, settings as they are chosen by default",
        "users",
        n_ranked,
    )
    ranking = Group(
        f"evaluation{suffix}", f"Recall and NDCG of {n_ranked:,} users, all items ranked", "users", n_ranked
    )
    for model in models:
        for preset in settings.presets if model in TRAINED else ():
            name = f"{model}, {preset}"
            say(f"{name}{suffix}")
            with PeakMemory() as memory:
                fitted, timing = _epochs(inputs, model, preset, settings)
            recall = _ranked(split, fitted, settings).means["recall@20"]
            epochs.add(
                name,
                timing,
                f"peak {memory.peak_bytes >> 20} MiB, R@20 {recall:.4f} after {settings.epochs + 1}",
                peak_bytes=memory.peak_bytes,
                recall_20=recall,
            )
            if not any(row.name == model for row in ranking.rows):
                rank = take_turns({model: lambda fitted=fitted: _ranked(split, fitted, settings)}, 3)
                ranking.add(model, rank[model])
        if model not in TRAINED:
            say(f"{model}{suffix}")
            watch = Stopwatch()
            with PeakMemory() as memory:
                fitted = fit_untrained(split, model, seed=settings.seed, n_threads=settings.n_threads)
                fit_seconds = watch.lap()
                recall = _ranked(split, fitted, settings).means["recall@20"]
                evaluate_seconds = watch.lap()
            total = fit_seconds + evaluate_seconds
            untrained.add(
                model,
                Timing.once(total),
                f"fit {fit_seconds:.2f} s, evaluation {evaluate_seconds:.2f} s, peak {memory.peak_bytes >> 20} MiB, "
                f"R@20 {recall:.4f}",
                fit_seconds=fit_seconds,
                evaluate_seconds=evaluate_seconds,
                peak_bytes=memory.peak_bytes,
                recall_20=recall,
            )
            ranking.add(model, Timing.once(evaluate_seconds))
    if n_ranked == MIND.n_users:
        for row in ranking.rows:
            if row.name in TRAINED:
                ranking.targets.append(
                    Target(f"{row.name}: seconds", 3.0, row.median_ms / 1e3, at_least=False, unit=" s")
                )
    if suffix:
        seconds = untrained.median("gfcf")
        if seconds is not None:
            untrained.targets.append(Target("gfcf: fit and evaluation", 60.0, seconds / 1e3, at_least=False, unit=" s"))
    return [group for group in (epochs, untrained, ranking) if group.rows]


def _ranked(split: Split, fitted: FittedModel, settings: Settings) -> Evaluation:
    return evaluate(split, fitted, "full", n_threads=settings.n_threads)


def _epochs(inputs: Inputs, model: str, preset: str, settings: Settings) -> tuple[FittedModel, Timing]:
    """Train one epoch that compiles, then `settings.epochs` that are timed."""
    watch = Stopwatch()
    with quiet(fit_arrays):
        fitted = fit_arrays(
            blind(inputs),
            model,
            preset=preset,
            epochs=settings.epochs + 1,
            seed=settings.seed,
            refit=False,
            n_threads=settings.n_threads,
            progress=lambda *_, **__: watch.lap(),
        )
    return fitted, watch.timing(skip=1)


def blind(inputs: Inputs) -> Inputs:
    """Training and validation as one training set, so that nothing is ranked between epochs."""
    split = inputs.split
    empty = sp.csr_matrix(split.train.shape, dtype=np.float32)
    return dataclasses.replace(inputs, split=dataclasses.replace(split, train=split.known(), valid=empty))
