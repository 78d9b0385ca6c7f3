"""A small workspace with a split and neighbors, and stand-ins for what is slow: for profile tests."""

import hashlib
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from reclm_lite.data.dataset import Imported, Split, save_imported, save_split
from reclm_lite.profiles.generate import Summary, run_profiles
from reclm_lite.profiles.run_progress import Observer
from reclm_lite.profiles.run_settings import RunSettings
from reclm_lite.profiles.sampling import Sampling
from reclm_lite.profiles.scheduler import GenerationResult
from reclm_lite.profiles.sources import SourceSettings
from reclm_lite.types import ItemText
from reclm_lite.workspace import Workspace

NOUNS = "river planet orchard violin harbour comet bakery forest stadium lantern glacier market".split()
VERBS = "opens closes grows sings returns burns".split()


def matrix(n_users: int, n_items: int, rows: dict[int, list[int]]) -> sp.csr_matrix:
    pairs = [(user, item) for user, items in rows.items() for item in items]
    users, items = zip(*pairs) if pairs else ((), ())
    made = sp.csr_matrix((np.ones(len(pairs), np.float32), (users, items)), shape=(n_users, n_items))
    made.sort_indices()
    return made


def text_of(item: int) -> ItemText:
    """Every title holds a word that no other item has."""
    noun, verb = NOUNS[item % len(NOUNS)], VERBS[item % len(VERBS)]
    return ItemText(
        f"The {noun} {verb} uniqueword{item}", ("news", "sports", "film")[item % 3], noun, f"About item{item}."
    )


def make_workspace(
    root: Path,
    train: dict[int, list[int]],
    *,
    n_users: int | None = None,
    n_items: int = 24,
    valid: dict[int, list[int]] | None = None,
    test: dict[int, list[int]] | None = None,
    neighbors: list[list[int]] | None = None,
    texts: list[ItemText] | None = None,
    item_ids: dict[int, str] | None = None,
) -> Workspace:
    """A workspace whose split is exactly what is given; users are `u0`, `u1`, …, items `i0`, `i1`, … but for
    `item_ids`."""
    n_users = n_users or max(train, default=0) + 1
    parts = [matrix(n_users, n_items, rows or {}) for rows in (train, valid, test, None)]
    everything = sum(parts[1:], parts[0]).tocoo()
    ws = Workspace.create(root)
    data = Imported(
        "small",
        [f"u{user}" for user in range(n_users)],
        [(item_ids or {}).get(item, f"i{item}") for item in range(n_items)],
        texts or [text_of(item) for item in range(n_items)],
        everything.row.astype(np.int32),
        everything.col.astype(np.int32),
    )
    save_imported(ws, data)
    fingerprint = store_split(ws, parts)
    if neighbors is not None:
        save_neighbors(ws, neighbors, fingerprint)
    return ws


def store_split(ws: Workspace, parts: list[sp.csr_matrix], seed: int = 0) -> str:
    items = np.arange(parts[0].shape[1], dtype=np.int32)
    split = Split(
        *parts, full_candidates=items, unseen_candidates=items[:0], params={"method": "by hand", "seed": seed}
    )
    return save_split(ws, split, inputs={"matrices/interactions": ws.fingerprint("matrices/interactions")})


def save_neighbors(ws: Workspace, neighbors: list[list[int]], split_fingerprint: str) -> None:
    ws.save(
        "matrices/neighbors",
        {"indices": np.array(neighbors, np.int32)},
        inputs={"matrices/split": split_fingerprint},
        params={},
    )


def profile(
    ws: Workspace, side: str = "users", *, users=None, observer: Observer | None = None, guided: bool = True, **options
) -> Summary:
    """`run_profiles` with the fields of its settings as keywords; one thread unless said otherwise."""
    source = {name: options.pop(name) for name in list(options) if name in SourceSettings.__dataclass_fields__}
    if source.get("model") is not None:
        source["model"] = str(source["model"])
    source = SourceSettings(**{"n_threads": 1, **source})
    settings = RunSettings(**{"sampling": Sampling(guided=guided), **options})
    return run_profiles(ws, side, source=source, settings=settings, users=users, observer=observer)


class FakeEngine:
    """Answers like a well-trained model, in reverse order within a window; counts what it was asked."""

    n_ctx = 4096
    announced_bytes = 0
    asked: list[str] = []
    bad_words: tuple[str, ...] = ()

    def __init__(self, *args, **options):
        type(self).made = getattr(type(self), "made", 0) + 1

    def close(self) -> None:
        pass

    def answer(self, prompt: str, sampling) -> str:
        if any(word in prompt for word in self.bad_words):
            return f"nonsense drawn with {sampling.identity()}"
        tag = hashlib.sha256(prompt.encode()).hexdigest()[:6]
        return f"User identity: reader {tag}, watcher, walker; User interests: {tag} rivers, comets, {tag} bread"

    def generate(self, prompts, *, max_new_tokens, sampling, stop_signal=None, window=None):
        window = []
        for index, prompt in enumerate(prompts):
            type(self).asked.append(prompt)
            window.append((index, prompt))
            if len(window) == 4:
                yield from self._flush(window, sampling)
        yield from self._flush(window, sampling)

    def _flush(self, window, sampling):
        while window:
            index, prompt = window.pop()
            yield GenerationResult(index, self.answer(prompt, sampling), len(prompt) // 4, 12, "stop")


class HashEncoder:
    """A text encoder without a model: a text's vector is drawn from its hash."""

    identity = {"name": "hash", "sha256": "0"}
    dim = 8

    def __init__(self):
        self.seen: list[str] = []

    def encode(self, texts):
        self.seen += list(texts)
        seeds = [int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little") for text in texts]
        return np.stack([np.random.default_rng(seed).normal(size=self.dim) for seed in seeds]).astype(np.float32)
