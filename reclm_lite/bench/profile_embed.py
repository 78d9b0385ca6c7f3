"""Vectors of finished profiles: this project's encoder beside sentence-transformers, on the same texts."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import machine
from .profile_jobs import run_job
from .results import NOT_INSTALLED, Group, Target
from .timing import Timing

if TYPE_CHECKING:
    from .profile import Settings

OURS, PEER = "reclm embed", "sentence-transformers"
_N_TURNS = 3


def groups(
    settings: "Settings", profiles: Sequence[str], scratch: Path | None, folder: Path, say: Callable[[str], None]
) -> list[Group]:
    """The groups of the encoder. profiles: texts of the sample; scratch: the workspace in which all users were
    profiled."""
    from ..profiles.profile_vectors import profile_words

    everyone = _of_workspace(scratch)
    texts = list(dict.fromkeys(map(profile_words, everyone or profiles)))
    if not texts:
        return []
    texts = [texts[i] for i in np.random.default_rng(settings.seed).permutation(len(texts))[: settings.n_texts]]
    found = [_beside(settings, texts, folder, say)]
    if everyone:
        found.append(_everyone(settings, [profile_words(text) for text in everyone], found[0], say))
    return found


def _of_workspace(scratch: Path | None) -> list[str]:
    if scratch is None:
        return []
    from ..profiles import store
    from ..workspace import Workspace

    with Workspace.open(scratch) as ws:
        return [text for _, text in store.usable_profiles(ws, "user")]


def _beside(settings: "Settings", texts: Sequence[str], folder: Path, say: Callable[[str], None]) -> Group:
    n_words = np.mean([len(text.split()) for text in texts])
    group = Group(
        "embedding of profiles", f"{len(texts)} distinct profiles of {n_words:.0f} words", "texts", len(texts)
    )
    why = _why_no_peer(settings)
    runs: dict[str, list[dict[str, Any]]] = {OURS: [], **({} if why else {PEER: []})}
    with tempfile.TemporaryDirectory(dir=folder) as made:
        out = {name: f"{made}/{i}.npy" for i, name in enumerate(runs)}
        for turn in range(settings.repeats or _N_TURNS):
            say(f"embedding {len(texts)} profiles, turn {turn + 1}")
            for name in runs if turn % 2 else list(runs)[::-1]:
                common = {"texts": texts, "n_threads": settings.n_threads, "out": out[name]}
                kind = {"kind": "embed"} if name == OURS else {"kind": "embed_peer", "checkpoint": settings.checkpoint}
                runs[name].append(run_job(**kind, **common))
        vectors = [np.load(path) for path in out.values()]
    for name, each in runs.items():
        group.add(
            name,
            Timing.of([one["seconds"] for one in each]),
            f"{max(one['peak_bytes'] for one in each) / 1e6:,.0f} MB",
            seconds=[one["seconds"] for one in each],
        )
    if why:
        group.add_missing(PEER, why)
    else:
        least = float((vectors[0] * vectors[1]).sum(axis=1).min())
        group.rows[0].facts["least_cosine"] = least
        group.targets.append(Target("least cosine between the two", 0.999, least, unit=""))
    group.expect(OURS, 2.0, PEER)
    return group


def _why_no_peer(settings: "Settings") -> str:
    if not machine.installed("sentence_transformers"):
        return NOT_INSTALLED
    return "" if settings.checkpoint else "no checkpoint: give --encoder-checkpoint"


def _everyone(settings: "Settings", texts: Sequence[str], beside: Group, say: Callable[[str], None]) -> Group:
    n_distinct = len(set(texts))
    say(f"embedding the profiles of {len(texts):,} users")
    group = Group(
        "embedding, users as they are", f"{len(texts):,} profiles, {n_distinct:,} distinct", "users", len(texts)
    )
    made = run_job("embed", texts=texts, n_threads=settings.n_threads, out="")
    group.add(OURS, Timing(made["seconds"], made["seconds"], 1), f"{made['peak_bytes'] / 1e6:,.0f} MB")
    peer = beside.median(PEER)
    if peer is None:
        group.add_missing(PEER, _why_no_peer(settings))
    else:
        seconds = len(texts) * peer / 1e3 / beside.count
        group.add(PEER, Timing(seconds, seconds, 1), "every profile, extrapolated", extrapolated=True)
    group.expect(OURS, 2.0, PEER)
    return group
