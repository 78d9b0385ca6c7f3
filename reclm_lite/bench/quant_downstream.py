"""What quantization costs in recommendations: a backbone fitted with the profiles of each file, ranked for the same
users.

For each file and seed the backbone is fitted with that file's profile vectors, and every user with something held out
is ranked. Figures are kept by the vectors' hash: files that write the same profiles share their fits. What is compared
is the same users under the same seeds, those alone who were given profiles:

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

from .. import __version__
from ..cf.fit import settings_of
from ..cf.inputs import load_inputs
from ..cf.phases import PROFILE_PHASES, checkpoint_path, fit_arrays
from ..cf.settings import override
from ..data.dataset import Split, load_split
from ..evaluate.protocol import SETTINGS, evaluate
from ..workspace import Workspace
from . import machine, quant_int8
from .quant_intervals import Paired, paired, pooled
from .quant_state import State

K = 20
METRICS = (f"recall@{K}", f"ndcg@{K}")
GROUPS = ("full", "unseen", "cold")
COLD_ITEMS = 3


def vectors_key(vectors: np.ndarray | None) -> str:
    """What profile vectors hash to; "none" for a fit without profiles."""
    return "none" if vectors is None else hashlib.sha256(np.ascontiguousarray(vectors).tobytes()).hexdigest()[:16]


class Fits:
    """Fits of one backbone on a workspace's split, remembered in `state`; the workspace is left as it is.

    scratch: a folder for the part of a fit that knows nothing of profiles: where they stand beside the model (the
    residual encoder), files that differ in profiles alone share it, seed by seed, to the last bit.
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
        """assignments: `name=value`, settings in the place of the backbone's own."""
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

        vectors: of the profiles, or None; key: what `vectors_key` says of them. int8: also "int8", see `quant_int8`.
        text: items' text vectors in the place of the workspace's.
        """
        made_of = self.made_of(key, seed, int8=int8, text=None if text is None else vectors_key(text))
        return self.state.once("fit", made_of, lambda: self._fit(vectors, seed, int8, text))

    def _fit(self, vectors: np.ndarray | None, seed: int, int8: bool, text: np.ndarray | None) -> dict[str, Any]:
        inputs = dataclasses.replace(self._inputs, user_profiles=vectors)
        folder = None
        if text is not None:
            inputs = dataclasses.replace(inputs, text=text)
        elif self._settings.encoder == "residual":
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
        return found | ({"int8": quant_int8.measure(fitted, self.split, K, self.n_threads)} if int8 else {})


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


def told(compared: Sequence[dict[str, Paired | None]]) -> list[dict[str, dict[str, Any] | None]]:
    """Comparisons of several files with one reference as dicts, what seeds differ by taken together."""
    out: list[dict[str, dict[str, Any] | None]] = [{} for _ in compared]
    for name in compared[0] if compared else ():
        pairs = [each[name] for each in compared]
        together = pooled(pairs) if all(pair is not None for pair in pairs) else pairs
        for row, pair in zip(out, together, strict=True):
            row[name] = None if pair is None else pair.as_dict()
    return out
