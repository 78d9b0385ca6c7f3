"""Vectors of finished profiles: this project's encoder beside sentence-transformers, on the same texts."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import machine
from ..comparison import NOT_INSTALLED, Group, Target
from ..harness import Timing, run_in_child
from . import engine_jobs

OURS, PEER = "reclm embed", "sentence-transformers"
_N_TURNS = 3


@dataclass(frozen=True)
class EncoderBench:
    """n_texts: distinct texts at most. repeats: turns, None for the default. checkpoint: the peer's, None for no
    peer."""

    n_threads: int
    n_texts: int
    repeats: int | None
    checkpoint: Path | None
    seed: int
    say: Callable[[str], None]

    def groups(self, profiles: Sequence[str], scratch: Path | None, folder: Path) -> list[Group]:
        """profiles: texts of the sample. scratch: the workspace in which all users were profiled, None if none was."""
        from ...profiles.profile_vectors import profile_words

        everyone = _of_workspace(scratch)
        texts = list(dict.fromkeys(map(profile_words, everyone or profiles)))
        if not texts:
            return []
        texts = [texts[i] for i in np.random.default_rng(self.seed).permutation(len(texts))[: self.n_texts]]
        found = [self._beside(texts, folder)]
        if everyone:
            found.append(self._everyone([profile_words(text) for text in everyone], found[0]))
        return found

    def _beside(self, texts: Sequence[str], folder: Path) -> Group:
        n_words = np.mean([len(text.split()) for text in texts])
        group = Group(
            "embedding of profiles", f"{len(texts)} distinct profiles of {n_words:.0f} words", "texts", len(texts)
        )
        why = self._why_no_peer()
        runs: dict[str, list[dict[str, Any]]] = {OURS: [], **({} if why else {PEER: []})}
        with tempfile.TemporaryDirectory(dir=folder) as made:
            out = {name: f"{made}/{i}.npy" for i, name in enumerate(runs)}
            for turn in range(self.repeats or _N_TURNS):
                self.say(f"embedding {len(texts)} profiles, turn {turn + 1}")
                for name in runs if turn % 2 else list(runs)[::-1]:
                    job = {"texts": texts, "n_threads": self.n_threads, "out": out[name]}
                    if name == OURS:
                        done = run_in_child(engine_jobs.embed, job)
                    else:
                        done = run_in_child(engine_jobs.embed_peer, {**job, "checkpoint": self.checkpoint})
                    runs[name].append(done.with_peak)
            vectors = [np.load(path) for path in out.values()]
        for name, each in runs.items():
            seconds = [one["seconds"] for one in each]
            peak = max(one["peak_bytes"] for one in each)
            group.add(name, Timing.of(seconds), f"{peak / 1e6:,.0f} MB", seconds=seconds)
        if why:
            group.add_missing(PEER, why)
        else:
            least = float((vectors[0] * vectors[1]).sum(axis=1).min())
            group.rows[0].facts["least_cosine"] = least
            group.targets.append(Target("least cosine between the two", 0.999, least, unit=""))
        group.expect(OURS, 2.0, PEER)
        return group

    def _everyone(self, texts: Sequence[str], beside: Group) -> Group:
        n_distinct = len(set(texts))
        self.say(f"embedding the profiles of {len(texts):,} users")
        group = Group(
            "embedding, users as they are", f"{len(texts):,} profiles, {n_distinct:,} distinct", "users", len(texts)
        )
        made = run_in_child(engine_jobs.embed, {"texts": texts, "n_threads": self.n_threads, "out": ""})
        group.add(OURS, Timing.once(made.result["seconds"]), f"{made.peak_bytes / 1e6:,.0f} MB")
        peer = beside.median(PEER)
        if peer is None:
            group.add_missing(PEER, self._why_no_peer())
        else:
            seconds = len(texts) * peer / 1e3 / beside.count
            group.add(PEER, Timing.once(seconds), "every profile, extrapolated", extrapolated=True)
        group.expect(OURS, 2.0, PEER)
        return group

    def _why_no_peer(self) -> str:
        if not machine.installed("sentence_transformers"):
            return NOT_INSTALLED
        return "" if self.checkpoint else "no checkpoint: give --encoder-checkpoint"


def _of_workspace(scratch: Path | None) -> list[str]:
    if scratch is None:
        return []
    from ...profiles import store
    from ...workspace import Workspace

    with Workspace.open(scratch) as ws:
        return [text for _, text in store.usable_profiles(ws, "user")]
