"""What quantization costs in recommendations: a backbone fitted with the profiles of each file, ranked for the same users.

For each file and seed the backbone is fitted with that file's profile vectors, in a copy of the workspace, and every user with
something held out is ranked. Figures are kept by the vectors' hash: files that write the same profiles share their fits. What
is compared is the same users under the same seeds, those alone who were given profiles:

    full     all candidates
    unseen   items that nobody touched in training
    cold     all candidates, users with at most COLD_ITEMS interactions in training

Beside the files stands the backbone without profiles: a loss is worth little notice where profiles give no gain.
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..cf.fit import fit
from ..data.dataset import Split, load_split
from ..evaluate.settings import SETTINGS, evaluate
from ..workspace import Workspace
from . import quant_int8
from .profile_prompts import scratch_copy
from .quant_intervals import Paired, paired
from .quant_profiles import VECTORS
from .quant_state import State

K = 20
METRICS = (f"recall@{K}", f"ndcg@{K}")
GROUPS = ("full", "unseen", "cold")
COLD_ITEMS = 3


def vectors_key(vectors: np.ndarray | None) -> str:
    """What profile vectors hash to; "none" for a fit without profiles."""
    return "none" if vectors is None else hashlib.sha256(np.ascontiguousarray(vectors).tobytes()).hexdigest()[:16]


class Fits:
    """Fits of one backbone in a scratch copy of a workspace, remembered in `state`. Close it."""

    def __init__(self, root: Path, scratch: Path, state: State, backbone: str, epochs: int | None, n_threads: int):
        self.root, self.scratch, self.state = root, scratch, state
        self.backbone, self.epochs, self.n_threads = backbone, epochs, n_threads
        self._ws: Workspace | None = None
        with Workspace.open(root) as ws:
            self.split: Split = load_split(ws)
            self._items = ws.fingerprint("vectors/items")

    def made_of(self, vectors: str, seed: int) -> dict[str, Any]:
        return {"backbone": self.backbone, "epochs": self.epochs, "split": self.split.fingerprint, "items": self._items,
                "vectors": vectors, "seed": seed}  # fmt: skip

    def has(self, vectors: str, seed: int) -> bool:
        return self.state.has("fit", self.made_of(vectors, seed))

    def figures(self, vectors: np.ndarray | None, key: str, seed: int) -> dict[str, Any]:
        """{setting: {"users": […], "recall@20": […], "ndcg@20": […]}} over all users who are ranked; "int8": see `quant_int8`."""
        return self.state.once("fit", self.made_of(key, seed), lambda: self._fit(vectors, seed))

    def _fit(self, vectors: np.ndarray | None, seed: int) -> dict[str, Any]:
        ws = self._open()
        if vectors is not None:
            with ws.writing():
                ws.save(VECTORS, {"vectors": vectors}, inputs={"matrices/split": self.split.fingerprint}, params={"made_by": "bench quant"})
        fitted = fit(
            ws, self.backbone, profiles="none" if vectors is None else "users", seed=seed, epochs=self.epochs, restart=True,
            n_threads=self.n_threads, notice=lambda _: None,
        )  # fmt: skip
        found = {}
        for setting in SETTINGS:
            result = evaluate(self.split, fitted, setting, (K,), n_threads=self.n_threads)
            found[setting] = {"users": result.users.tolist()} | {metric: result.per_user[metric].round(8).tolist() for metric in METRICS}
        return found | {"int8": quant_int8.measure(fitted, self.split, K, self.n_threads)}

    def _open(self) -> Workspace:
        if self._ws is None:
            self._ws = Workspace.open(scratch_copy(self.root, self.scratch))
        return self._ws

    def close(self) -> None:
        """Safe to call twice."""
        if self._ws is not None:
            self._ws.close()
            self._ws = None


def compare(
    found: Sequence[dict[str, Any]], reference: Sequence[dict[str, Any]], split: Split, users: Sequence[int]
) -> dict[str, dict[str, Any] | None]:
    """{"full recall@20": a `Paired` as a dict, …}; None for a group without users. found, reference: figures by seed, in order."""
    chosen = np.zeros(split.n_users, bool)
    chosen[list(users)] = True
    few = np.diff(split.train.indptr) <= COLD_ITEMS
    out: dict[str, dict[str, Any] | None] = {}
    for group in GROUPS:
        setting = "full" if group == "cold" else group
        ranked = np.array(reference[0][setting]["users"], np.int64)
        keep = chosen[ranked] & (few[ranked] if group == "cold" else True) if len(ranked) else np.zeros(0, bool)
        for metric in METRICS:
            ours, theirs = (np.array([seed[setting][metric] for seed in side], np.float64)[:, keep] for side in (found, reference))
            result: Paired | None = paired(ours, theirs) if keep.any() else None
            out[f"{group} {metric}"] = None if result is None else dataclasses.asdict(result)
    return out
