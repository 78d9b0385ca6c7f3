"""From a workspace to prompts: training histories, neighbours and item texts, nothing else.

Only `split.train` is read. What validation and test hold out never reaches a prompt, as the user's own items or
through a neighbour. Equal histories and neighbours give equal prompts (the templates are canonical), so that one
generation serves all users who share them.

Shortening rule: the plain-words prompt shows the newest INSTRUCT_MAX_ITEMS own items; where a prompt has no room in the
model's context, the oldest own items are left out one by one until it has, then, with one item left, the neighbours. How
many own items were left out is recorded with the generation. Where the data have no times, a lower index counts as older.

Left out: the wording (`dialogue.templates`) and the profiles themselves.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.sparse as sp

from ..data.dataset import item_texts, load_interactions, load_split
from ..dialogue.templates import INSTRUCT_MAX_ITEMS, instruct_prompt, item_prompt, user_prompt
from ..errors import InputError
from ..text.keyphrases import PhraseStats
from ..types import ItemText
from ..workspace import Workspace

log = logging.getLogger(__name__)

N_NEIGHBORS = 5
N_CO_ITEMS = 5
NO_HISTORY = "no history and no neighbours"
NO_TEXT = "no text in the items"
HISTORY, NEIGHBORS, TEXT = "history", "neighbors", "text"  # what a profile was made from, see `Prompt.basis`
NEIGHBORS_MISSING = "no neighbours were used: run `reclm neighbors` before profiling to have them"


@dataclass(frozen=True)
class Prompt:
    """A prompt; how many own items it had no room for; what it was made from.

    basis: "history" (own items; of an item, also items that its users have), "neighbors" (a user without a history) or
    "text" (an item that nobody has touched).
    """

    text: str
    n_left_out: int
    basis: str


@dataclass(frozen=True)
class ProfileInputs:
    """What prompts are made from.

    train: CSR (n_users, n_items). neighbors: int32 (n_users, k), -1-padded, or None. times: int64 (train.nnz,), seconds
    since 1970 of the latest interaction behind each entry of `train`, or None. data_key: fingerprint of the interactions.
    """

    train: sp.csr_matrix
    texts: list[ItemText]
    neighbors: np.ndarray | None
    split_fingerprint: str
    times: np.ndarray | None = None
    data_key: str = ""

    @cached_property
    def stats(self) -> PhraseStats:
        """How common topics and phrases are in the catalogue: the compact prompt shows first what sets a history apart."""
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

    def neighbors_of(self, user: int) -> tuple[tuple[int, ...], ...]:
        """The training items of each neighbour that has any, sorted, so that equal surroundings compare equal."""
        if self.neighbors is None:
            return ()
        near = [self.items_of(other) for other in self.neighbors[user, :N_NEIGHBORS].tolist() if other >= 0 and other != user]
        return tuple(sorted(items for items in near if items))

    def co_items_of(self, item: int) -> tuple[int, ...]:
        """The items that most users of `item` have too, in training; ties go to the lower index."""
        by_item = self.train_by_item
        users = by_item.indices[by_item.indptr[item] : by_item.indptr[item + 1]]
        if not len(users):
            return ()
        counts = np.bincount(self.train[users].indices, minlength=len(self.texts))
        counts[item] = 0
        found = np.flatnonzero(counts)
        best = found[np.argsort(-counts[found], kind="stable")][:N_CO_ITEMS]
        return tuple(best.tolist())

    def show(self, items: Sequence[int]) -> list[ItemText]:
        return [self.texts[item] for item in items]


def load_inputs(ws: Workspace) -> ProfileInputs:
    """Read the split, the item texts and, where they have been made, the neighbours.

    Raises MissingArtefactError where the split is missing, or the split or the neighbours are stale.
    """
    split = load_split(ws)
    train = split.train.tocsr()
    train.sort_indices()
    neighbors = None
    if ws.has("matrices/neighbors"):
        made_by = f"reclm neighbors -w {ws.argument}"
        ws.require_fresh("matrices/neighbors", made_by=made_by)
        neighbors = ws.load("matrices/neighbors", made_by=made_by).arrays["indices"]
        if neighbors.ndim != 2 or len(neighbors) != split.n_users:
            raise InputError(
                f"expected neighbours of {split.n_users} users, found an array of shape {neighbors.shape}; run `{made_by}` again"
            )
    else:
        log.info(NEIGHBORS_MISSING)
    texts = item_texts(ws)
    if len(texts) != split.n_items:
        raise InputError(
            f"expected {split.n_items} items as in the split, found {len(texts)}; run `reclm split -w {ws.argument}` again"
        )
    interactions = load_interactions(ws)
    return ProfileInputs(train, texts, neighbors, split.fingerprint, _latest(train, interactions), interactions.fingerprint)


def _latest(train: sp.csr_matrix, interactions) -> np.ndarray | None:
    """int64 (train.nnz,): when each pair was last seen, or None where the data have no times."""
    if interactions.timestamps is None:
        return None
    n_items = train.shape[1]
    keys = interactions.users.astype(np.int64) * n_items + interactions.items
    order = np.lexsort((interactions.timestamps, keys))
    keys, times = keys[order], interactions.timestamps[order]
    rows = np.repeat(np.arange(train.shape[0], dtype=np.int64), np.diff(train.indptr))
    found = np.searchsorted(keys, rows * n_items + train.indices, "right") - 1
    return times[np.maximum(found, 0)] if len(times) else None


def user_prompt_of(inputs: ProfileInputs, user: int, *, instruct: bool, has_room: Callable[[str], bool] = lambda _: True) -> Prompt | None:
    """A user's prompt, from training interactions only; None where there are no words to show.

    instruct: the plain-words prompt for chat models. has_room: see the module's shortening rule.
    """
    own = inputs.by_age(user)
    has = set(own) if instruct else ()  # also of items that are not shown
    near = [inputs.show([item for item in items if item not in has]) for items in inputs.neighbors_of(user)]

    def write(n_own: int, others: list[list[ItemText]]) -> str:
        history = inputs.show(own[len(own) - n_own :])
        return instruct_prompt(history, others) if instruct else user_prompt(history, others, stats=inputs.stats)

    most = min(len(own), INSTRUCT_MAX_ITEMS) if instruct else len(own)
    return _shortened(write, len(own), most, near, has_room, HISTORY if own else NEIGHBORS)


def item_prompt_of(inputs: ProfileInputs, item: int, *, instruct: bool, has_room: Callable[[str], bool] = lambda _: True) -> Prompt | None:
    """An item's prompt: its text, and the items that its training users have too. See `user_prompt_of`."""
    text = inputs.texts[item]
    if text.is_empty():
        return None
    near = inputs.show(inputs.co_items_of(item))

    def write(n_own: int, others: list[ItemText]) -> str:
        if instruct:
            return instruct_prompt([text], [[other] for other in others], subject="item")
        return item_prompt(text, others, stats=inputs.stats)

    return _shortened(write, 1, 1, near, has_room, HISTORY if near else TEXT)


def _shortened(
    write: Callable[[int, list], str], n_own: int, most: int, near: list, has_room: Callable[[str], bool], basis: str
) -> Prompt | None:
    """The longest prompt that has room, by the module's rule; the shortest where none has; None where there is no text."""
    try:
        text = write(most, near)
        if has_room(text):
            return Prompt(text, n_own - most, basis)
        for others in (near, []):
            low, high = 1, most  # `low` items are known to be needed at least, `high` is the most that may fit
            best = None
            while low <= high:
                middle = (low + high) // 2
                text = write(middle, others)
                if has_room(text):
                    best, low = Prompt(text, n_own - middle, basis), middle + 1
                else:
                    high = middle - 1
            if best is not None:
                return best
        return Prompt(write(min(1, most), [] if n_own else near[:1]), n_own - min(1, most), basis)
    except InputError:
        return None


def build_prompts(
    inputs: ProfileInputs,
    side: str,
    idxs: Sequence[int] | None = None,
    *,
    instruct: bool = False,
    skipped: Counter | None = None,
) -> Iterator[tuple[int, str]]:
    """Yield (index, prompt) of users or items, in the order of `idxs` (all, ascending, where None).

    skipped: counts, by reason, those that get no prompt.
    """
    skipped = Counter() if skipped is None else skipped
    write = user_prompt_of if side == "user" else item_prompt_of
    n = inputs.train.shape[0 if side == "user" else 1]
    for idx in range(n) if idxs is None else idxs:
        if side == "user" and not inputs.items_of(idx) and not inputs.neighbors_of(idx):
            skipped[NO_HISTORY] += 1
        elif (prompt := write(inputs, idx, instruct=instruct)) is None:
            skipped[NO_TEXT] += 1
        else:
            yield int(idx), prompt.text
