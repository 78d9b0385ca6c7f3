"""What remains of an artefact's arrays when users leave the workspace: the one place that knows where users stand in
them.

ARTEFACTS has a function for each kind of artefact. It takes every array out of `Taken` by name and says what becomes of
it; an array that no function takes (of a newer version, say) raises `UnknownLayout`, and so does an artefact that is
not in the table: the caller must then assume that the artefact may hold data of anybody. To teach this module a new
artefact, add a row to ARTEFACTS; a test fits every model there is and demands that none is unknown.

Users keep their order; users above a removed one move down. Left out: files, fingerprints and the database (forget.py).
"""

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np

from .artefacts import row_bounds, whole_numbers

Arrays = dict[str, np.ndarray]

# The one part of an import's manifest that names users (the demo's): dropped from it.
NAMES_USERS = "users_to_show"


class UnknownLayout(Exception):
    """An artefact that this version cannot take users out of; the text says why."""


@dataclass(frozen=True)
class Remaining:
    """Who stays. mask: bool (n_users,). new_index: int32 (n_users,), -1 for who is gone."""

    mask: np.ndarray
    new_index: np.ndarray

    @classmethod
    def without(cls, gone: list[int], n_users: int) -> "Remaining":
        mask = np.ones(n_users, bool)
        mask[gone] = False
        return cls(mask, np.where(mask, np.cumsum(mask) - 1, -1).astype(np.int32))

    @property
    def n_users(self) -> int:
        """How many there were."""
        return len(self.mask)

    def rows(self, name: str, array: np.ndarray) -> np.ndarray:
        """The remaining rows of an array (n_users, …)."""
        if array.ndim < 1 or len(array) != self.n_users:
            raise UnknownLayout(f"{name} has the shape {array.shape}, not a row for each of {self.n_users} users")
        return array[self.mask]


class Taken:
    """An artefact's arrays on their way out: each `take_…` moves some from `left` to `out`, less the users that are
    gone."""

    def __init__(self, arrays: Arrays, params: dict, remaining: Remaining):
        self.left, self.out, self.params, self.remaining = dict(arrays), {}, dict(params), remaining

    def same(self, *names: str) -> None:
        """Arrays that hold nothing by user."""
        for name in names:
            if name in self.left:
                self.out[name] = self.left.pop(name)

    def rows(self, *names: str) -> None:
        """Arrays (n_users, …)."""
        for name in names:
            if name in self.left:
                self.out[name] = self.remaining.rows(name, self.left.pop(name))

    def csr(self, indptr: str, *entries: str) -> None:
        """A CSR matrix with a row for each user. indptr: int64 (n_users + 1,). entries: arrays (nnz,), such as indices
        and data."""
        if indptr not in self.left:
            return
        # Checked before rows are counted: bounds of a file may name any number of entries.
        bounds = row_bounds(self.left.pop(indptr), self.remaining.n_users, len(self.left[entries[0]]))
        lengths = np.diff(bounds)
        kept = np.repeat(self.remaining.mask, lengths)
        self.out[indptr] = np.concatenate([[0], np.cumsum(lengths[self.remaining.mask])]).astype(bounds.dtype)
        for name in entries:
            self.out[name] = self._entries(name, self.left.pop(name), kept)

    def pairs(self, users: str, *entries: str) -> None:
        """Interactions one by one. users: int32 (n,), indices of users. entries: arrays (n,) beside it."""
        index = whole_numbers(users, self.left.pop(users), self.remaining.n_users)
        kept = self.remaining.mask[index]
        self.out[users] = self.remaining.new_index[index[kept]].astype(index.dtype)
        for name in entries:
            if name in self.left:
                self.out[name] = self._entries(name, self.left.pop(name), kept)

    @staticmethod
    def _entries(name: str, array: np.ndarray, kept: np.ndarray) -> np.ndarray:
        if array.shape[:1] != kept.shape:
            raise UnknownLayout(
                f"{name} has the shape {array.shape}, not an entry for each of {len(kept)} interactions"
            )
        return array[kept]


def remove_users(name: str, arrays: Arrays, params: dict, remaining: Remaining) -> tuple[Arrays, dict]:
    """(arrays, params) of artefact `name` without the users that are gone. Raises UnknownLayout where that is not
    known."""
    take = _function(name)
    if take is None:
        raise UnknownLayout("this version does not know this artefact")
    taken = Taken(arrays, params, remaining)
    try:
        take(taken)
    except (KeyError, IndexError, ValueError, TypeError, OverflowError) as error:
        raise UnknownLayout(f"its arrays are not those that are expected ({error!r})") from error
    if taken.left:
        raise UnknownLayout(f"this version does not know its arrays {', '.join(sorted(taken.left))}")
    return taken.out, taken.params


def has_rows_of_users(name: str) -> bool:
    """Whether an artefact may hold anything by user: everything but what is known to hold items alone."""
    return _function(name) is not _items_alone


def _function(name: str) -> Callable[[Taken], None] | None:
    return next((take for pattern, take in ARTEFACTS.items() if fnmatchcase(name, pattern)), None)


def _interactions(taken: Taken) -> None:
    taken.pairs("users", "items", "timestamps", "ratings", "given")
    taken.same("full_candidates", "unseen_candidates")
    taken.params.pop(NAMES_USERS, None)


def _split(taken: Taken) -> None:
    n_users, n_items = (int(n) for n in taken.left["shape"])
    if n_users != taken.remaining.n_users:
        raise UnknownLayout(f"it divides {n_users} users, not {taken.remaining.n_users}")
    del taken.left["shape"]
    taken.out["shape"] = np.array([int(taken.remaining.mask.sum()), n_items], np.int64)
    taken.same("full_candidates", "unseen_candidates")
    n_pairs = {}
    for part in ("train", "valid", "test", "unseen"):
        taken.csr(f"{part}_indptr", f"{part}_indices")
        n_pairs[part] = len(taken.out[f"{part}_indices"])
    if "n_pairs" in taken.params:  # the difference would tell how many the person had
        taken.params["n_pairs"] = n_pairs


def _neighbors(taken: Taken) -> None:
    """A gone neighbor leaves a list one shorter: what follows moves up, -1 (similarity 0) fills the end."""
    remaining = taken.remaining
    taken.rows("indices", "similarity", "basis")
    indices = taken.out["indices"]
    if indices.dtype.kind != "i" or (indices.size and not -1 <= indices.min() <= indices.max() < remaining.n_users):
        raise UnknownLayout(f"indices holds indices outside the {remaining.n_users} users")
    moved = np.where(indices >= 0, remaining.new_index[indices], -1).astype(indices.dtype)
    order = np.argsort(moved < 0, axis=1, kind="stable")
    moved = np.take_along_axis(moved, order, axis=1)
    taken.out["indices"] = moved
    if "similarity" in taken.out:
        similarity = np.take_along_axis(taken.out["similarity"], order, axis=1)
        taken.out["similarity"] = np.where(moved >= 0, similarity, 0).astype(similarity.dtype)
    if "basis" in taken.out and moved.shape[1]:
        taken.out["basis"] = np.where(moved[:, 0] >= 0, taken.out["basis"], 0).astype(taken.out["basis"].dtype)


def _items_alone(taken: Taken) -> None:
    taken.same("vectors", "text_hash")


def _profile_vectors(taken: Taken) -> None:
    taken.rows("vectors", "text_hash")


def _model(taken: Taken) -> None:
    taken.rows("user_vectors", "user_ready", "train_user_vectors")
    # `interface.UserFold.arrays`: no row belongs to a user.
    taken.same("item_vectors", "item_bias", *[name for name in taken.left if name.startswith("fold.")])
    taken.csr("histories.indptr", "histories.indices")
    kind = taken.params.get("scorer")
    if kind == "dense":
        taken.same("scorer.weights")
    elif kind == "sparse":
        taken.same("scorer.indptr", "scorer.indices", "scorer.data")
    elif kind == "filter":  # the graph of users and items
        taken.csr("scorer.indptr", "scorer.indices", "scorer.data")
        taken.same("scorer.factors", "scorer.root_degree", "scorer.alpha")


# artefact (as fnmatch) -> what takes its users out.
ARTEFACTS: dict[str, Callable[[Taken], None]] = {
    "matrices/interactions": _interactions,
    "matrices/split": _split,
    "matrices/neighbors": _neighbors,
    "vectors/items": _items_alone,
    "vectors/item_profiles": _items_alone,
    "vectors/user_profiles": _profile_vectors,
    "models/*": _model,
}
