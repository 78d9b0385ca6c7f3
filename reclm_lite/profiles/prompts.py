"""From a workspace to prompts: training histories, neighbours and item texts, nothing else.

Only `split.train` is read. What validation and test hold out never reaches a prompt, as the user's own items or
through a neighbour. Equal histories and neighbours give equal prompts (the templates are canonical), so that one
generation serves all users who share them.

Left out: the wording (`dialogue.templates`) and the profiles themselves.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.sparse as sp

from ..data.dataset import item_texts, load_split
from ..dialogue.templates import instruct_prompt, item_prompt, user_prompt
from ..errors import InputError
from ..text.keyphrases import PhraseStats
from ..types import ItemText
from ..workspace import Workspace

log = logging.getLogger(__name__)

N_NEIGHBORS = 5
N_CO_ITEMS = 5
NO_HISTORY = "no history and no neighbours"
NO_TEXT = "no text in the items"
NEIGHBORS_MISSING = "no neighbours were used: run `reclm neighbors` before profiling to have them"


@dataclass(frozen=True)
class ProfileInputs:
    """What prompts are made from. `train`: CSR (n_users, n_items); `neighbors`: int32 (n_users, k), -1-padded, or None."""

    train: sp.csr_matrix
    texts: list[ItemText]
    neighbors: np.ndarray | None
    split_fingerprint: str

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
    return ProfileInputs(train, texts, neighbors, split.fingerprint)


def build_user_prompts(
    ws: Workspace,
    users: Sequence[int] | None = None,
    *,
    instruct: bool = False,
    skipped: Counter | None = None,
    inputs: ProfileInputs | None = None,
) -> Iterator[tuple[int, str]]:
    """Yield (user_idx, prompt) in the order of `users` (all, ascending, where None), from training interactions only.

    instruct: the plain-words prompt for chat models. skipped: counts, by reason, the users that get no prompt.
    """
    inputs = inputs or load_inputs(ws)
    skipped = Counter() if skipped is None else skipped
    made: dict[tuple, str] = {}
    for user in range(inputs.train.shape[0]) if users is None else users:
        items, near = inputs.items_of(user), inputs.neighbors_of(user)
        if not items and not near:
            skipped[NO_HISTORY] += 1
            continue
        if (items, near) not in made:
            history, others = inputs.show(items), [inputs.show(other) for other in near]
            try:
                prompt = instruct_prompt(history, others) if instruct else user_prompt(history, others, stats=inputs.stats)
            except InputError:
                prompt = ""
            made[items, near] = prompt
        prompt = made[items, near]
        if prompt:
            yield int(user), prompt
        else:
            skipped[NO_TEXT] += 1


def build_item_prompts(
    ws: Workspace,
    items: Sequence[int] | None = None,
    *,
    instruct: bool = False,
    skipped: Counter | None = None,
    inputs: ProfileInputs | None = None,
) -> Iterator[tuple[int, str]]:
    """Yield (item_idx, prompt): the item's text, and the items its training users have too. See `build_user_prompts`."""
    inputs = inputs or load_inputs(ws)
    skipped = Counter() if skipped is None else skipped
    for item in range(len(inputs.texts)) if items is None else items:
        text = inputs.texts[item]
        if text.is_empty():
            skipped[NO_TEXT] += 1
            continue
        co_items = inputs.show(inputs.co_items_of(item))
        try:
            if instruct:
                prompt = instruct_prompt([text], [[other] for other in co_items])
            else:
                prompt = item_prompt(text, co_items, stats=inputs.stats)
        except InputError:
            skipped[NO_TEXT] += 1
            continue
        yield int(item), prompt
