"""What the draws of dialogues share: seeded randomness, parts, and items told apart by their words."""

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import scipy.sparse as sp

from ..prompts.entries import title_key
from ..prompts.inputs import PromptInputs
from ..prompts.interface import USER
from .first_round import Shown
from .records import PARTS

MAX_HIDDEN = 10  # items of a user, or users of an item, that a first round leaves out; a fifth where that is fewer
N_FAR = 64  # items (or users) drawn to find one of a kind among


@dataclass(frozen=True)
class Draw:
    """One first round, and what it hides. hidden: items of a user, or users of an item; the one to ask about first."""

    shown: Shown
    hidden: tuple[int, ...]
    variant: int


@dataclass(frozen=True)
class Question:
    """A second round. answer: Yes or No. about: an item, or a user. pairs: the (user, item) interactions behind it.

    is_shown: whether words of it stand in the first round. found: "near", "second" or "far", see `user_rounds`.
    """

    answer: bool
    about: int
    pairs: tuple[tuple[int, int], ...]
    is_shown: bool
    found: str


@dataclass(frozen=True)
class Lists:
    """Items for a reward to rank: those that were hidden, and those that nobody concerned has. pairs: as in
    `Question`."""

    positives: tuple[int, ...]
    negatives: tuple[int, ...]
    pairs: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Known:
    """The inputs, who they are about, and what draws ask of them again and again.

    held_out: share of that part. finder: who is like users of whose history a part is known, see `cf.neighbors.Finder`;
    None if there are no neighbors.
    """

    inputs: PromptInputs
    user_ids: list[str]
    item_ids: list[str]
    seed: int = 0
    held_out: float = 0.05
    finder: Callable[[np.ndarray, sp.csr_matrix, int], np.ndarray] | None = None
    _parts: dict = field(default_factory=dict, compare=False)

    @cached_property
    def keys(self) -> list[int]:
        """Of each item a number that items with the same words share; -1 for those without words."""
        numbers: dict[str, int] = {"": -1}
        return [numbers.setdefault(title_key(text), len(numbers) - 1) for text in self.inputs.texts]

    @cached_property
    def popularity(self) -> np.ndarray:
        """float64 (n_items,): log2 of how many have an item in training, and one."""
        return np.log2(1.0 + np.bincount(self.inputs.train.indices, minlength=len(self.inputs.texts)))

    @cached_property
    def touched(self) -> list[int]:
        """Items with words that somebody has in training."""
        return [item for item in np.flatnonzero(self.popularity > 0).tolist() if self.keys[item] >= 0]

    def ident(self, side: str, idx: int) -> str:
        return (self.user_ids if side == USER else self.item_ids)[idx]

    def lots(self, purpose: str, side: str, idx: int, variant: int) -> random.Random:
        """A generator of its own for each purpose, by ids, so that no draw depends on who else there is."""
        text = f"{self.seed}\n{purpose}\n{side}\n{self.ident(side, idx)}\n{variant}"
        return random.Random(hashlib.sha256(text.encode("utf-8", "replace")).digest())

    def part(self, side: str, idx: int) -> str:
        """ "train" or "held_out", the same in every file. Users with the same training history are in the same part."""
        found = self._parts.get((side, idx))
        if found is None:
            items = self.inputs.items_of(idx) if side == USER else ()
            ident = "\n".join(self.item_ids[item] for item in items) or self.ident(side, idx)
            digest = hashlib.sha256(f"{'history' if items else side}\n{ident}".encode("utf-8", "replace")).digest()
            found = self._parts[side, idx] = PARTS[int.from_bytes(digest[:8], "big") / 2**64 < self.held_out]
        return found

    def distinct(self, items: Sequence[int], without: set[int] | frozenset[int] = frozenset()) -> dict[int, int]:
        """key -> the first of the items with it, in their order; none without words, and none of the keys `without`."""
        found: dict[int, int] = {}
        for item in items:
            key = self.keys[item]
            if key >= 0 and key not in without:
                found.setdefault(key, item)
        return found

    def far(self, rng: random.Random, without: set[int], n: int = N_FAR) -> dict[int, int]:
        """key -> item of items that somebody has in training, n drawn evenly and n as often as they are taken."""
        taken, n_taken = self.inputs.train.indices, self.inputs.train.nnz
        drawn = rng.sample(self.touched, min(n, len(self.touched))) + [
            int(taken[rng.randrange(n_taken)]) for _ in range(n)
        ]
        # Who has nearly everything gets what little is left.
        return self.distinct(drawn, without) or self.distinct(self.touched, without)

    def like(self, parts: dict[int, tuple[int, Sequence[int]]], n_rows: int, k: int) -> np.ndarray:
        """int32 (n_rows, k), -1 padded: by row the users who are like one as far as some items tell. parts: row ->
        (user, items)."""
        found = np.full((n_rows, k), -1, np.int32)
        if self.finder is not None and parts:
            users = np.array([user for user, _ in parts.values()], np.int64)
            indptr = np.cumsum([0, *(len(items) for _, items in parts.values())])
            indices = np.array([item for _, items in parts.values() for item in items], np.int32)
            matrix = sp.csr_matrix(
                (np.ones(len(indices), np.float32), indices, indptr), shape=(len(parts), len(self.item_ids))
            )
            found[list(parts)] = self.finder(users, matrix, k)
        return found


def best_of(candidates: Sequence[int], rng: random.Random, unlike: Callable[[int], tuple]) -> int:
    """The candidate that is least unlike what is wanted; ties by lot."""
    shuffled = rng.sample(list(candidates), len(candidates))
    return min(shuffled, key=unlike)
