"""What quantization costs in recommendations: a backbone fitted with the profiles of each file, ranked for the same
users.

For each file and seed the backbone is fitted with that file's profile vectors, and every user with something held out
is ranked. Figures are kept by the vectors' hash: files that write the same profiles share their fits. Compared are the
same users under the same seeds, only those whose profiles were written:

    full     all candidates
    unseen   items that nobody touched in training
    cold     all candidates, users with at most COLD_ITEMS interactions in training

Beside the files stands the backbone without profiles: if profiles give no gain, a small loss says nothing.

Also here: the backbone's item vectors in int8 beside float32 in `topk`, which finds candidates with int8 and ranks them
again in float32: whether the lists are equal, and what int8 saves for a catalog of this size.
"""

import dataclasses
import hashlib
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ... import __version__
from ...cf.encoders import ENCODERS
from ...cf.fit import settings_of
from ...cf.fitted import FittedModel
from ...cf.inputs import load_inputs
from ...cf.phases import PROFILE_PHASES, checkpoint_path, fit_arrays
from ...cf.ranking import take_rows
from ...cf.scorers import VectorScorer
from ...cf.settings import override
from ...data.dataset import Split, load_split
from ...evaluate.protocol import SETTINGS, evaluate, keep_columns
from ...kernels import native
from ...kernels.topk import PRECISIONS
from ...metrics import ranking_metrics
from ...workspace import Workspace
from .. import machine
from .paired_intervals import Paired, paired, pooled
from .resumable import State

K = 20
METRICS = (f"recall@{K}", f"ndcg@{K}")
GROUPS = ("full", "unseen", "cold")
COLD_ITEMS = 3
_INT8_TURNS = 3


def vectors_key(vectors: np.ndarray | None) -> str:
    """The hash of profile vectors; "none" for a fit without profiles."""
    return "none" if vectors is None else hashlib.sha256(np.ascontiguousarray(vectors).tobytes()).hexdigest()[:16]


class Fits:
    """Fits of one backbone on a workspace's split, kept in `state`; the workspace is not written to.

    scratch: a folder for the part of a fit that does not depend on profiles: with the residual encoder, files that
    differ only in profiles share it, seed by seed, to the last bit.
    """

    def __init__(
        self,
        root: Path,
        scratch: Path,
        state: State,
        backbone: str,
        epochs: int | None,
        n_threads: int | None,
        assignments: Sequence[str] = (),
    ):
        """assignments: `name=value`, in place of the backbone's own settings."""
        self.scratch, self.state = scratch, state
        self.backbone, self.epochs, self.n_threads = backbone, epochs, n_threads
        used: dict[str, str] = {}
        with Workspace.open(root) as ws:
            self.split: Split = load_split(ws)
            self._inputs = load_inputs(ws, self.split, "none", used)
        self._items = used.get("vectors/items")
        self._settings = override(settings_of(backbone), list(assignments))

    def made_of(self, vectors: str, seed: int, *, int8: bool = False, text: str | None = None) -> dict[str, Any]:
        return {
            "backbone": self.backbone,
            "epochs": self.epochs,
            "split": self.split.fingerprint,
            "items": text or self._items,
            "vectors": vectors,
            "seed": seed,
            "settings": dataclasses.asdict(self._settings),
            "version": __version__,
            "int8": {"cpu": machine.cpu_name(), "n_threads": self.n_threads} if int8 else None,
        }

    def has(self, vectors: str, seed: int, *, int8: bool = False, text: str | None = None) -> bool:
        return self.state.has("fit", self.made_of(vectors, seed, int8=int8, text=text))

    def figures(
        self, vectors: np.ndarray | None, key: str, seed: int, *, int8: bool = False, text: np.ndarray | None = None
    ) -> dict[str, Any]:
        """{setting: {"users": […], "recall@20": […], "ndcg@20": […]}} over all users who are ranked.

        vectors: of the profiles, or None; key: their `vectors_key`. int8: also "int8", see `int8_figures`.
        text: items' text vectors in place of the workspace's.
        """
        made_of = self.made_of(key, seed, int8=int8, text=None if text is None else vectors_key(text))
        return self.state.once("fit", made_of, lambda: self._fit(vectors, seed, int8, text))

    def _fit(self, vectors: np.ndarray | None, seed: int, int8: bool, text: np.ndarray | None) -> dict[str, Any]:
        inputs = dataclasses.replace(self._inputs, user_profiles=vectors)
        folder = None
        if text is not None:
            inputs = dataclasses.replace(inputs, text=text)
        elif ENCODERS[self._settings.encoder].profiles_beside:
            folder = self.scratch / f"seed-{seed}"
            folder.mkdir(parents=True, exist_ok=True)
        fitted = fit_arrays(
            inputs,
            self.backbone,
            settings=self._settings,
            seed=seed,
            epochs=self.epochs,
            n_threads=self.n_threads,
            checkpoint=folder,
        )
        for phase in PROFILE_PHASES if folder is not None else ():
            checkpoint_path(folder, phase).unlink(missing_ok=True)
        found: dict[str, Any] = {}
        for setting in SETTINGS:
            result = evaluate(self.split, fitted, setting, (K,), n_threads=self.n_threads)
            found[setting] = {"users": result.users.tolist()} | {
                metric: result.per_user[metric].round(8).tolist() for metric in METRICS
            }
        return found | ({"int8": int8_figures(fitted, self.split, K, self.n_threads)} if int8 else {})


def compare(
    found: Sequence[dict[str, Any]], reference: Sequence[dict[str, Any]], split: Split, users: Sequence[int]
) -> dict[str, Paired | None]:
    """{"full recall@20": …}; None for a group without users. found, reference: figures by seed, in order."""
    chosen = np.zeros(split.n_users, bool)
    chosen[list(users)] = True
    few = np.diff(split.train.indptr) <= COLD_ITEMS
    out: dict[str, Paired | None] = {}
    for group in GROUPS:
        setting = "full" if group == "cold" else group
        ranked = np.array(reference[0][setting]["users"], np.int64)
        keep = chosen[ranked] & (few[ranked] if group == "cold" else True) if len(ranked) else np.zeros(0, bool)
        for metric in METRICS:
            ours, theirs = (
                np.array([seed[setting][metric] for seed in side], np.float64)[:, keep] for side in (found, reference)
            )
            out[f"{group} {metric}"] = paired(ours, theirs) if keep.any() else None
    return out


def as_dicts(compared: Sequence[dict[str, Paired | None]]) -> list[dict[str, dict[str, Any] | None]]:
    """Comparisons of several files with one reference as dicts, with the seeds' variance pooled over files."""
    out: list[dict[str, dict[str, Any] | None]] = [{} for _ in compared]
    for name in compared[0] if compared else ():
        pairs = [each[name] for each in compared]
        together = pooled(pairs) if all(pair is not None for pair in pairs) else pairs
        for row, pair in zip(out, together, strict=True):
            row[name] = None if pair is None else pair.as_dict()
    return out


def int8_figures(fitted: FittedModel, split: Split, k: int, n_threads: int) -> dict[str, Any] | None:
    """int8 beside float32 for all users with something held out; None if there are none, or `topk` cannot rank this
    model in int8.

    {"n_users", "n_items", "dim", "equal_places", "bytes": {…}, "seconds": {…}, "recall": {precision: […]}}; `bytes` are
    of the item vectors: in int8, one byte per column and a float32 scale per row.
    """
    vectors, candidates = fitted.vectors, np.ascontiguousarray(split.full_candidates, np.int32)
    relevant = keep_columns(split.test, candidates)
    users = np.flatnonzero(np.diff(relevant.indptr)).astype(np.int32)
    if vectors.relu_dim or not fitted.is_personal or not isinstance(fitted.scorer, VectorScorer) or not len(users):
        return None
    rows, seen = take_rows(relevant, users), take_rows(split.known(), users)
    mask = native.make_csr(seen.indptr, seen.indices, None, seen.shape)
    of_users, bias = np.ascontiguousarray(vectors.users[users]), vectors.bias if len(vectors.bias) else None
    ids: dict[str, np.ndarray] = {}
    seconds: dict[str, list[float]] = {precision: [] for precision in PRECISIONS}
    for _ in range(_INT8_TURNS):
        for precision in PRECISIONS:
            started = time.perf_counter()
            ids[precision], _ = native.topk(
                of_users,
                vectors.items,
                k,
                item_bias=bias,
                candidates=candidates,
                seen=mask,
                n_threads=n_threads,
                precision=precision,
            )
            seconds[precision].append(time.perf_counter() - started)
    n_items, dim = vectors.items.shape
    return {
        "n_users": len(users),
        "n_items": len(candidates),
        "dim": dim,
        "equal_places": float((ids["int8"] == ids["float32"]).mean()),
        "bytes": {"float32": 4 * n_items * dim, "int8": n_items * (dim + 4)},
        "seconds": {precision: statistics.median(spent) for precision, spent in seconds.items()},
        "recall": {
            precision: ranking_metrics(found, rows, (k,))[f"recall@{k}"].round(8).tolist()
            for precision, found in ids.items()
        },
    }


def int8_summary(by_seed: Sequence[dict[str, Any] | None], k: int) -> dict[str, Any] | None:
    """All seeds together, with the paired difference of recall; None if `topk` cannot rank the model in int8."""
    found = [one for one in by_seed if one is not None]
    if not found:
        return None
    ours, theirs = (
        np.array([one["recall"][precision] for one in found], np.float64) for precision in ("int8", "float32")
    )
    pair = paired(ours, theirs)
    first = found[0]
    return {
        **{name: first[name] for name in ("n_users", "n_items", "dim", "bytes")},
        "equal_places": statistics.fmean(one["equal_places"] for one in found),
        "seconds": {
            precision: statistics.median(one["seconds"][precision] for one in found) for precision in PRECISIONS
        },
        f"recall@{k}": {
            "float32": pair.reference,
            "int8": pair.value,
            "difference": pair.difference,
            "interval": pair.as_dict()["interval"],
        },
    }
