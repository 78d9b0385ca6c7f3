"""Exact nearest users: by fitted vectors for users with enough history, by text for the others.

    matrices/neighbors   indices int32 (n_users, k), -1 padded; similarity float32 (n_users, k), cosine;
                         basis uint8 (n_users,): 0 none, 1 collaborative, 2 text

Only users with history are neighbors, and each *history* appears once in a list: of users with equal histories the
one with the lowest index represents all. Users with the same history as the user are left out, because they add no
information.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from ..artefacts import checked
from ..data.dataset import Split, load_split
from ..errors import InputError, WorkspaceError
from ..kernels import native
from ..workspace import Workspace
from . import store
from .fitted import FittedModel
from .layers import normalize
from .models import MODELS

NAME = "matrices/neighbors"
BASIS_NONE, BASIS_COLLABORATIVE, BASIS_TEXT = 0, 1, 2
# With fewer interactions, a fitted vector stays close to the items' vectors or to its random start.
MIN_INTERACTIONS = 2
_N_TOGETHER = 4096  # histories that `Finder` looks up at once
BASES = {BASIS_COLLABORATIVE: "collaborative", BASIS_TEXT: "text", BASIS_NONE: "none"}


@dataclass(frozen=True)
class Neighbors:
    """indices: int32 (n_users, k), -1 padded. similarity: float32 (n_users, k). basis: uint8 (n_users,)."""

    indices: np.ndarray
    similarity: np.ndarray
    basis: np.ndarray


def neighbors(
    ws: Workspace, k: int = 5, model: str = "lightgcn", *, min_interactions: int = MIN_INTERACTIONS
) -> Neighbors:
    """Find the k most similar users of every user and store `matrices/neighbors`.

    Reads the fitted `model` (vectors fitted on training alone, so that no validation data leaks into profiles made from
    neighbors) and `vectors/items` if it exists. Profiles are not read: they are made from neighbors, so neighbors must
    not depend on them.
    """
    if not 1 <= k <= 1000:
        raise InputError(f"k: expected 1 to 1000 neighbors, found {k}")
    split = load_split(ws)
    fitted = store.load(ws, model)
    if not fitted.user_vectors.shape[1]:
        raise InputError(
            f"{model} has no vectors of users to compare: fit a model that has, such as `reclm fit lightgcn -w "
            f"{ws.argument}`"
        )
    inputs = {"matrices/split": split.fingerprint, fitted.artefact: fitted.fingerprint}
    item_text = None
    if ws.has("vectors/items"):
        made_by = f"reclm embed items -w {ws.argument}"
        ws.require_fresh("vectors/items", made_by=made_by)
        artefact = ws.load("vectors/items", made_by=made_by)
        item_text, inputs["vectors/items"] = _item_text(ws, artefact.arrays, split.n_items), artefact.fingerprint
    found = Neighbors(
        *find_neighbors(split, _of_training(fitted), k, item_text=item_text, min_interactions=min_interactions)
    )
    with ws.writing():
        ws.save(
            NAME,
            {"indices": found.indices, "similarity": found.similarity, "basis": found.basis},
            inputs=inputs,
            params={"k": k, "model": model, "min_interactions": min_interactions},
        )
    return found


def _item_text(ws: Workspace, arrays: dict[str, np.ndarray], n_items: int) -> np.ndarray:
    """The vectors of `vectors/items`: float32 (n_items, n_in). Raises WorkspaceError if they are damaged."""
    try:
        return checked(arrays, "vectors", np.float32, n_items, None)
    except ValueError as error:
        raise WorkspaceError(
            f"vectors/items is damaged ({error}): run `{ws.command_for('vectors/items')}` again"
        ) from error


def load_indices(ws: Workspace, n_users: int) -> np.ndarray:
    """int32 (n_users, k), -1 padded: the stored neighbors.

    Raises MissingArtefactError if the present users have none, WorkspaceError if the file is damaged.
    """
    made_by = ws.command_for(NAME)
    indices = ws.load(NAME, made_by=made_by).arrays.get("indices")
    if (
        indices is None
        or indices.ndim != 2
        or len(indices) != n_users
        or indices.dtype.kind != "i"
        or (indices.size and not -1 <= indices.min() <= indices.max() < n_users)
    ):
        raise WorkspaceError(
            f"{NAME} is damaged (expected rows of neighbors of {n_users} users): make it again with `{made_by}`"
        )
    return indices


def _of_training(fitted: FittedModel) -> np.ndarray:
    """float32 (n_users, dim): the user vectors that were fitted on training alone."""
    return fitted.user_vectors if fitted.train_user_vectors is None else fitted.train_user_vectors


def _who_stands_for_whom(train: sp.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    """(group number of each user by equal histories, int32 first user of each group with a non-empty history)."""
    group = history_groups(train)
    first = np.unique(group, return_index=True)[1]
    return group, first[np.diff(train.indptr)[first] > 0].astype(np.int32)


def find_neighbors(
    split: Split,
    user_vectors: np.ndarray,
    k: int,
    *,
    item_text: np.ndarray | None = None,
    min_interactions: int = MIN_INTERACTIONS,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(indices, similarity, basis), see the module docstring. Uses training histories only.

    user_vectors: float32 (n_users, dim). item_text: float32 (n_items, n_in) or None.
    """
    train = split.train
    n_users = train.shape[0]
    degree = np.diff(train.indptr)
    group, representatives = _who_stands_for_whom(train)
    indices = np.full((n_users, k), -1, np.int32)
    similarity = np.zeros((n_users, k), np.float32)
    basis = np.zeros(n_users, np.uint8)
    usable = degree >= min_interactions
    passes = [(BASIS_COLLABORATIVE, user_vectors, usable)]
    text = None if item_text is None else text_of_users(train, item_text)
    if text is not None:
        passes.append((BASIS_TEXT, text, ~usable))
    else:
        # Without text, the fitted vector is the best basis even for a short history.
        passes[0] = (BASIS_COLLABORATIVE, user_vectors, degree > 0)
    for kind, vectors, wanted in passes:
        vectors = normalize(vectors.astype(np.float32, copy=False))[0]
        has_vector = (vectors * vectors).sum(axis=1) > 0.5
        candidates = representatives[has_vector[representatives]]
        if kind == BASIS_COLLABORATIVE and text is not None:
            candidates = candidates[usable[candidates]]
        users = np.flatnonzero(wanted & has_vector)
        if len(candidates) == 0 or len(users) == 0:
            continue
        if kind == BASIS_TEXT:
            # Equal histories have equal texts, and so equal neighbors.
            _, first, back = np.unique(group[users], return_index=True, return_inverse=True)
            ids, best = (found[back] for found in _nearest(vectors, users[first], candidates, group, k))
        else:
            ids, best = _nearest(vectors, users, candidates, group, k)
        indices[users], similarity[users] = ids, best
        basis[users] = np.where(ids[:, 0] >= 0, kind, BASIS_NONE)
    return indices, similarity, basis


class Finder:
    """Finds neighbors by a part of a user's history.

    `matrices/neighbors` depends on whole histories, so it would leak the rest of a partial one. Here a user's vector is
    the mean over the items of the part, where an item's vector is the mean of the fitted vectors of its other users.
    With fewer than `min_interactions` items it is the mean of their text vectors. Candidates are represented by their
    whole histories.
    """

    def __init__(
        self,
        split: Split,
        user_vectors: np.ndarray,
        item_text: np.ndarray | None,
        min_interactions: int = MIN_INTERACTIONS,
    ):
        """user_vectors: float32 (n_users, dim), of training alone. item_text: float32 (n_items, n_in) or None."""
        train = split.train.tocsr()
        degree = np.diff(train.indptr)
        self.group, representatives = _who_stands_for_whom(train)
        self.users = normalize(user_vectors.astype(np.float32, copy=False))[0]
        self.share = (1.0 / np.maximum(1, np.bincount(train.indices, minlength=train.shape[1]))).astype(
            np.float32
        )  # of an item's user
        self.items = (sp.diags(self.share) @ (train.T.tocsr() @ self.users)).astype(np.float32)
        self.min_interactions, self.item_text = (
            min_interactions,
            None if item_text is None else normalize(item_text.astype(np.float32))[0],
        )
        usable = representatives if item_text is None else representatives[degree[representatives] >= min_interactions]
        self.fitted = self._known(normalize((train @ self.items).astype(np.float32))[0], usable)
        self.text = None if item_text is None else self._known(text_of_users(train, item_text), representatives)

    @classmethod
    def of(cls, ws: Workspace) -> "Finder":
        """A finder with the model of the stored neighbors. Raises MissingArtefactError if these are missing."""
        params = ws.provenance(NAME, made_by=ws.command_for(NAME))["params"]
        if params.get("model") not in MODELS or type(params.get("min_interactions")) is not int:
            raise WorkspaceError(f"{NAME} does not tell its model: make it again with `{ws.command_for(NAME)}`")
        fitted = store.load(ws, params["model"])
        item_text = None
        if ws.has("vectors/items"):
            item_text = _item_text(
                ws, ws.load("vectors/items", made_by=ws.command_for("vectors/items")).arrays, fitted.n_items
            )
        return cls(load_split(ws), _of_training(fitted), item_text, params["min_interactions"])

    def _known(self, vectors: np.ndarray, users: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(ids of candidates, their vectors, position of each history group among them or -1)"""
        users = users[(vectors[users] ** 2).sum(axis=1) > 0.5]
        place = np.full(self.group.max(initial=0) + 1, -1, np.int64)
        place[self.group[users]] = np.arange(len(users))
        return users, np.ascontiguousarray(vectors[users]), place

    def __call__(self, users: np.ndarray, parts: sp.csr_matrix, k: int) -> np.ndarray:
        """int32 (n, k), -1 padded: the nearest users of each of `users`, best first, judged by `parts` alone.

        users: int (n,). parts: CSR (n, n_items) of ones, a part of each user's history.
        """
        found = np.full((len(users), k), -1, np.int32)
        for start in range(0, len(users), _N_TOGETHER):
            block = slice(start, start + _N_TOGETHER)
            found[block] = self._of(users[block], parts[block], k)
        return found

    def _of(self, users: np.ndarray, parts: sp.csr_matrix, k: int) -> np.ndarray:
        n_items = np.diff(parts.indptr)
        is_short = (n_items < self.min_interactions) if self.text is not None else np.zeros(len(users), bool)
        # Without the user's own vector, which depends on the whole history.
        by_items = parts @ self.items - (parts @ self.share)[:, None] * self.users[users]
        ways = [(self.fitted, by_items, ~is_short)]
        if self.text is not None:
            ways.append((self.text, parts @ self.item_text, is_short))
        found = np.full((len(users), k), -1, np.int32)
        for (ids, known, place), vectors, wanted in ways:
            vectors = normalize(np.ascontiguousarray(vectors, np.float32))[0]
            rows = np.flatnonzero(wanted & (n_items > 0) & ((vectors**2).sum(axis=1) > 0.5))
            if len(rows) and len(ids):
                best, _ = native.knn(vectors[rows], known, k, own=place[self.group[users[rows]]])
                found[rows] = np.where(best >= 0, ids[np.maximum(best, 0)], -1)
        return found


def _nearest(
    vectors: np.ndarray, users: np.ndarray, candidates: np.ndarray, group: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The k candidates of highest cosine, without the representative of the user's own history."""
    place = np.full(group.max() + 1, -1, np.int64)
    place[group[candidates]] = np.arange(len(candidates))
    found, cosines = native.knn(vectors[users], vectors[candidates], k, own=place[group[users]])
    return np.where(found >= 0, candidates[np.maximum(found, 0)], -1), np.where(found >= 0, cosines, 0.0)


def history_groups(matrix: sp.csr_matrix) -> np.ndarray:
    """int64 (n_rows,): equal numbers for rows with the same items. Numbered by first appearance."""
    numbers: dict[bytes, int] = {}
    out = np.empty(matrix.shape[0], np.int64)
    indices = np.ascontiguousarray(matrix.indices, dtype=np.int32)
    for row in range(matrix.shape[0]):
        items = np.sort(indices[matrix.indptr[row] : matrix.indptr[row + 1]])
        key = hashlib.blake2b(items.tobytes(), digest_size=16).digest()
        out[row] = numbers.setdefault(key, len(numbers))
    return out


def text_of_users(train: sp.csr_matrix, item_text: np.ndarray) -> np.ndarray:
    """float32 (n_users, n_in): the normalized mean text vector of each history; zero for an empty history."""
    matrix = native.make_csr(train.indptr, train.indices, None, train.shape)
    return normalize(native.spmm(matrix, np.ascontiguousarray(item_text, dtype=np.float32)))[0]
