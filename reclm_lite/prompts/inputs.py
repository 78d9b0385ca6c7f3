"""What prompts are made from: training histories, neighbors and item texts, nothing else.

Only `split.train` is read. What validation and test hold out never reaches a prompt, as the user's own items or
through a neighbor. Left out: what is shown of it (`view`) and the wording (`compact`, `instruct`).
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.sparse as sp

from ..cf.neighbors import load_indices
from ..data.dataset import Interactions, item_texts, load_interactions, load_split
from ..errors import InputError
from ..text.keyphrases import PhraseStats
from ..types import ItemText
from ..workspace import Workspace

log = logging.getLogger(__name__)

N_NEIGHBORS = 5
N_CO_ITEMS = 5
NEIGHBORS_MISSING = "no neighbors were used: run `reclm neighbors` before profiling to have them"


@dataclass(frozen=True)
class PromptInputs:
    """What prompts are made from.

    train: CSR (n_users, n_items). neighbors: int32 (n_users, k), -1-padded, or None. times: int64 (train.nnz,), seconds
    since 1970 of the latest interaction behind each entry of `train`, or None. data_key: fingerprint of the
    interactions.
    """

    train: sp.csr_matrix
    texts: list[ItemText]
    neighbors: np.ndarray | None
    split_fingerprint: str
    times: np.ndarray | None = None
    data_key: str = ""

    @cached_property
    def stats(self) -> PhraseStats:
        """How common topics and phrases are in the catalogue; the compact prompt shows first what is distinctive."""
        return PhraseStats.from_items(self.texts)

    @cached_property
    def train_by_item(self) -> sp.csr_matrix:
        return self.train.T.tocsr()

    def items_of(self, user: int) -> tuple[int, ...]:
        """The user's training items, ascending."""
        return tuple(self.train.indices[self.train.indptr[user] : self.train.indptr[user + 1]].tolist())

    def by_age(self, user: int) -> tuple[int, ...]:
        """The user's training items, the oldest first; without times the lower index counts as older."""
        items = self.items_of(user)
        if self.times is None:
            return items
        times = self.times[self.train.indptr[user] : self.train.indptr[user + 1]]
        return tuple(items[at] for at in np.argsort(times, kind="stable").tolist())

    def neighbor_ids(self, user: int) -> tuple[int, ...]:
        """The user's neighbors that have training items, the nearest first."""
        if self.neighbors is None:
            return ()
        near = self.neighbors[user, :N_NEIGHBORS].tolist()
        return tuple(
            other
            for other in near
            if other >= 0 and other != user and self.train.indptr[other] < self.train.indptr[other + 1]
        )

    def neighbors_of(self, user: int) -> tuple[tuple[int, ...], ...]:
        """The training items of each neighbor that has any, sorted, so that equal surroundings compare equal."""
        return tuple(sorted(map(self.items_of, self.neighbor_ids(user))))

    def users_of(self, item: int) -> tuple[int, ...]:
        """The users who have the item in training, ascending."""
        by_item = self.train_by_item
        return tuple(by_item.indices[by_item.indptr[item] : by_item.indptr[item + 1]].tolist())

    def co_items_of(self, item: int, users: Sequence[int] | None = None) -> tuple[int, ...]:
        """The items that most users of `item` have too, in training; ties go to the lower index. users: some of them
        alone."""
        users = self.users_of(item) if users is None else list(users)
        if not len(users):
            return ()
        counts = np.bincount(self.train[list(users)].indices, minlength=len(self.texts))
        counts[item] = 0
        found = np.flatnonzero(counts)
        best = found[np.argsort(-counts[found], kind="stable")][:N_CO_ITEMS]
        return tuple(best.tolist())

    def show(self, items: Sequence[int]) -> list[ItemText]:
        return [self.texts[item] for item in items]


def load_inputs(ws: Workspace) -> PromptInputs:
    """Read the split, the item texts and, where they have been made, the neighbors.

    Raises MissingArtefactError if the split is missing, or the split or the neighbors are stale.
    """
    split = load_split(ws)
    train = split.train.tocsr()
    train.sort_indices()
    neighbors = None
    if ws.has("matrices/neighbors"):
        made_by = f"reclm neighbors -w {ws.argument}"
        ws.require_fresh("matrices/neighbors", made_by=made_by)
        neighbors = load_indices(ws, split.n_users)
    else:
        log.info(NEIGHBORS_MISSING)
    texts = item_texts(ws)
    if len(texts) != split.n_items:
        raise InputError(
            f"expected {split.n_items} items as in the split, found {len(texts)}; run `reclm split -w {ws.argument}` "
            "again"
        )
    interactions = load_interactions(ws)
    return PromptInputs(
        train, texts, neighbors, split.fingerprint, _latest(train, interactions), interactions.fingerprint
    )


def _latest(train: sp.csr_matrix, interactions: Interactions) -> np.ndarray | None:
    """int64 (train.nnz,): when each pair was last seen, or None if the data have no times."""
    if interactions.timestamps is None:
        return None
    n_items = train.shape[1]
    keys = interactions.users.astype(np.int64) * n_items + interactions.items
    order = np.lexsort((interactions.timestamps, keys))
    keys, times = keys[order], interactions.timestamps[order]
    rows = np.repeat(np.arange(train.shape[0], dtype=np.int64), np.diff(train.indptr))
    found = np.searchsorted(keys, rows * n_items + train.indices, "right") - 1
    return times[np.maximum(found, 0)] if len(times) else None
