"""Nothing that validation or test hold out may reach a dialogue: every interaction behind one is looked up, or the
build ends.

The guard reads the split by itself, apart from what prompts are made from, and knows the people and items by their ids,
so that its message says whom to look for. Neighbors count as evidence too: they must come from vectors fitted on
training alone. Left out: texts, which say nothing of who touched what, except those of targets from elsewhere
(`Quotes`).
"""

import re
from collections.abc import Iterable

import numpy as np
import scipy.sparse as sp

from ..data.dataset import Split, item_ids, item_texts, load_split, user_ids
from ..errors import LeakError, MissingArtefactError
from ..prompts.entries import clean
from ..text.bounds import bounded_item
from ..types import ItemText
from ..workspace import Workspace

NEIGHBORS = "matrices/neighbors"
HELD_OUT = ("valid", "test", "unseen")
_NAMES = {"valid": "validation", "test": "the test part", "unseen": "the test part of unseen items"}
_N_TOGETHER = 10_000  # pairs that are looked up at once


class LeakGuard:
    """Looks up (user, item) pairs; `close` looks up those that are left."""

    def __init__(self, split: Split, users: list[str], items: list[str]):
        self.users, self.items, self.n_items = users, items, split.n_items
        self.train = _keys(split.train)
        self.held_out = {name: _keys(getattr(split, name)) for name in HELD_OUT}
        self.n_checked = 0
        self._waiting: list[tuple[int, int]] = []

    @classmethod
    def of(cls, ws: Workspace) -> "LeakGuard":
        """The guard of a workspace's split. Raises LeakError if the neighbors may know what is held out."""
        split = load_split(ws)
        check_neighbors(ws, split)
        return cls(split, user_ids(ws), item_ids(ws))

    def check(self, pairs: Iterable[tuple[int, int]]) -> None:
        """Take pairs in; every so many are looked up. Raises LeakError if one is held out, or is no training
        interaction."""
        self._waiting.extend(pairs)
        if len(self._waiting) >= _N_TOGETHER:
            self.close()

    def check_matrix(self, matrix: sp.csr_matrix) -> None:
        """All pairs of a matrix (n_users, n_items), at once."""
        self._look_up(_keys(matrix))

    def close(self) -> None:
        """Look up the pairs that wait."""
        if self._waiting:
            pairs = np.array(self._waiting, np.int64)
            self._waiting = []
            self._look_up(pairs[:, 0] * self.n_items + pairs[:, 1])

    def _look_up(self, keys: np.ndarray) -> None:
        self.n_checked += len(keys)
        for name, held_out in self.held_out.items():
            if (found := _among(keys, held_out)).any():
                raise LeakError(self._sentence(keys[found][0], f"which {_NAMES[name]} holds out"))
        if not (found := _among(keys, self.train)).all():
            raise LeakError(self._sentence(keys[~found][0], "which is not in the training part of the split"))

    def _sentence(self, key: int, what: str) -> str:
        user, item = divmod(int(key), self.n_items)
        return (
            f"expected dialogues of training interactions alone, found user {self.users[user]!r} with item "
            f"{self.items[item]!r}, {what}; "
            "nothing was written: make the split and the neighbors again (`reclm split`, `reclm fit lightgcn`, `reclm "
            "neighbors`)"
        )


def _keys(matrix: sp.csr_matrix) -> np.ndarray:
    """int64 (nnz,), ascending: user * n_items + item."""
    coo = matrix.tocoo()
    return np.sort(coo.row.astype(np.int64) * matrix.shape[1] + coo.col)


def _among(keys: np.ndarray, known: np.ndarray) -> np.ndarray:
    """bool (len(keys),)"""
    if not len(known):
        return np.zeros(len(keys), bool)
    return known[np.minimum(np.searchsorted(known, keys), len(known) - 1)] == keys


def check_neighbors(ws: Workspace, split: Split) -> None:
    """Raise LeakError unless the neighbors, where there are any, were found by vectors fitted on training alone.

    What a neighbors file was made from stands in its header: this split, and a model, which either was never fitted
    again on training and validation or keeps the vectors from before.
    """
    if not ws.has(NEIGHBORS):
        return
    again = f"run `reclm fit lightgcn -w {ws.argument}` and `reclm neighbors -w {ws.argument}`"
    made_by = ws.command_for(NEIGHBORS)
    ws.require_fresh(NEIGHBORS, made_by=made_by)
    inputs = ws.provenance(NEIGHBORS, made_by=made_by)["inputs"]
    models = [name for name in inputs if name.startswith("models/")]
    if inputs.get("matrices/split") != split.fingerprint or not models:
        raise LeakError(
            "expected neighbors of a model that was fitted on this split, found some of which nothing tells that; "
            f"{again}"
        )
    for name in models:
        if "+" in name:
            raise LeakError(
                f"expected neighbors of a model without profiles, found those of {name}, which may know of "
                f"validation; {again}"
            )
        try:
            model = ws.load(name, made_by=ws.command_for(name))
        except MissingArtefactError as error:
            raise LeakError(f"expected {name}, by which the neighbors were found, found none; {again}") from error
        if model.inputs.get("matrices/split") != split.fingerprint:
            raise LeakError(
                f"expected {name}, by which the neighbors were found, of this split, found it of another; {again}"
            )
        was_refitted = bool(model.params.get("refit", True)) and split.valid.nnz > 0
        if was_refitted and "train_user_vectors" not in model.arrays:
            raise LeakError(
                f"expected {name} to keep user vectors fitted on training alone, found those of training and "
                f"validation; {again}"
            )


_WORD = re.compile(r"[^\W_]+", re.UNICODE)


def _plain(text: str) -> str:
    """Words in small letters between single spaces, one in front and one behind."""
    return f" {' '.join(_WORD.findall(text.casefold()))} "


class Quotes:
    """Whether a profile from elsewhere quotes what its person has in validation or test alone.

    A quotation is a whole title of two words or more, or a phrase of three words or more that stands in a title; what
    stands in a text of the person's training items too is none.
    """

    def __init__(self, ws: Workspace):
        split = load_split(ws)
        self.texts: list[ItemText] = [bounded_item(text) for text in item_texts(ws)]  # as prompts read them
        self.train, self.held_out = split.train.tocsr(), (split.valid + split.test + split.unseen).tocsr()
        self._fields: dict[int, tuple[str, ...]] = {}
        self._titles: dict[int, str] = {}

    def of_held_out(self, side: str, idx: int, phrases: Iterable[str]) -> str:
        """The title that is quoted, or an empty text. Items have nothing held out that their profile could quote."""
        if side != "user":
            return ""
        own = self.train.indices[self.train.indptr[idx] : self.train.indptr[idx + 1]].tolist()
        plain, known = list(map(_plain, phrases)), {}

        def is_known(quoted: str) -> bool:
            if quoted not in known:
                known[quoted] = any(quoted in field for item in own for field in self._fields_of(item))
            return known[quoted]

        for item in self.held_out.indices[self.held_out.indptr[idx] : self.held_out.indptr[idx + 1]].tolist():
            title = self._title_of(item)
            for phrase in plain:
                is_quotation = (phrase.count(" ") >= 4 and phrase in title) or (
                    title.count(" ") >= 3 and title in phrase
                )
                if is_quotation and not is_known(phrase) and not is_known(title):
                    return self.texts[item].title
        return ""

    def _fields_of(self, item: int) -> tuple[str, ...]:
        if item not in self._fields:
            text = self.texts[item]
            fields = (text.title, text.category, text.subcategory, text.description)
            self._fields[item] = tuple(map(_plain, fields))
        return self._fields[item]

    def _title_of(self, item: int) -> str:
        if item not in self._titles:
            self._titles[item] = _plain(clean(self.texts[item].title))
        return self._titles[item]
