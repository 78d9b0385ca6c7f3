"""Imported data and splits, and how both are stored in a workspace.

matrices/interactions   users, items (int32), timestamps (int64), ratings (float32), given (uint8)
matrices/split          CSR parts over all users × all items, and the two candidate lists
"""

import logging
import os
from dataclasses import dataclass, field

import numpy as np
import scipy.sparse as sp

from ..artefacts import COMMITTED, INTERACTIONS
from ..errors import MissingArtefactError, WorkspaceError
from ..types import ItemText
from ..workspace import REPLACEMENTS, Workspace
from .carry import Carried, carry_over, count_gone, remember_ids

log = logging.getLogger(__name__)

# Values of `given`: the split that a published data set brings along.
GIVEN_TRAIN, GIVEN_VALID, GIVEN_TEST, GIVEN_UNSEEN = 0, 1, 2, 3


@dataclass
class Imported:
    """A data set in memory, before it is stored.

    users, items: int32 (n,), indices into user_ids and item_ids; pairs may repeat.
    timestamps: int64 (n,) seconds since 1970, or None. ratings: float32 (n,), or None.
    given: uint8 (n,) of GIVEN_*, or None where the format brings no split.
    full_candidates, unseen_candidates: int32 sorted item indices that a given split ranks, or None.
    manifest: JSON-able: source files with SHA-256, filters, counts of dropped rows by reason.
    """

    name: str
    user_ids: list[str]
    item_ids: list[str]
    item_texts: list[ItemText]
    users: np.ndarray
    items: np.ndarray
    timestamps: np.ndarray | None = None
    ratings: np.ndarray | None = None
    given: np.ndarray | None = None
    full_candidates: np.ndarray | None = None
    unseen_candidates: np.ndarray | None = None
    manifest: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Split:
    """Interactions split into training, validation and test sets. Every matrix is CSR (n_users, n_items) of ones,
    float32.

    train, valid: fitted on, and selected on. test: held-out interactions with the candidates of
    the full setting. unseen: held-out interactions with items that no user touched in training.
    full_candidates, unseen_candidates: int32, sorted item indices that each setting ranks.
    """

    train: sp.csr_matrix
    valid: sp.csr_matrix
    test: sp.csr_matrix
    unseen: sp.csr_matrix
    full_candidates: np.ndarray
    unseen_candidates: np.ndarray
    fingerprint: str = ""
    params: dict = field(default_factory=dict)

    @property
    def n_users(self) -> int:
        return self.train.shape[0]

    @property
    def n_items(self) -> int:
        return self.train.shape[1]

    def known(self) -> sp.csr_matrix:
        """Training and validation together: what a final model is fitted on and what ranking masks."""
        known = (self.train + self.valid).tocsr()
        known.data[:] = 1.0
        known.sort_indices()
        return known


_PARTS = ("train", "valid", "test", "unseen")


def save_split(ws: Workspace, split: Split, *, inputs: dict[str, str]) -> str:
    """Store a split as `matrices/split`; returns its fingerprint."""
    arrays: dict[str, np.ndarray] = {
        "shape": np.array([split.n_users, split.n_items], dtype=np.int64),
        "full_candidates": split.full_candidates.astype(np.int32),
        "unseen_candidates": split.unseen_candidates.astype(np.int32),
    }
    for part in _PARTS:
        matrix = getattr(split, part).tocsr()
        matrix.sort_indices()
        arrays[f"{part}_indptr"] = matrix.indptr.astype(np.int64)
        arrays[f"{part}_indices"] = matrix.indices.astype(np.int32)
    return ws.save("matrices/split", arrays, inputs=inputs, params=split.params)


def load_split(ws: Workspace, *, fresh: bool = True) -> Split:
    """Read the split. Raises MissingArtefactError if there is none, or (fresh) if it is stale."""
    made_by = f"reclm split -w {ws.argument}"
    if fresh:
        ws.require_fresh("matrices/split", made_by=made_by)
    artefact = ws.load("matrices/split", made_by=made_by)
    parts = {}
    try:
        shape = tuple(int(n) for n in artefact.arrays["shape"])
        if shape != count_ids(ws):
            raise ValueError(f"expected {count_ids(ws)} users and items, found {shape}")
        for part in _PARTS:
            parts[part] = csr_of(artefact.arrays[f"{part}_indptr"], artefact.arrays[f"{part}_indices"], shape)
        for candidates in ("full_candidates", "unseen_candidates"):
            _check_indices(candidates, artefact.arrays[candidates], shape[1])
    except (KeyError, ValueError, TypeError) as error:
        raise WorkspaceError(f"matrices/split is damaged ({error}): make it again with `{made_by}`") from error
    return Split(
        **parts,
        full_candidates=artefact.arrays["full_candidates"],
        unseen_candidates=artefact.arrays["unseen_candidates"],
        fingerprint=artefact.fingerprint,
        params=artefact.params,
    )


def csr_of(
    indptr: np.ndarray, indices: np.ndarray, shape: tuple[int, int], data: np.ndarray | None = None
) -> sp.csr_matrix:
    """CSR of `data`, or of ones (float32), from arrays of a file. Raises ValueError unless they form a matrix of
    `shape`."""
    _check_indices("indices", indices, shape[1])
    if indptr.dtype.kind not in "iu" or indptr.shape != (shape[0] + 1,) or indptr[0] != 0 or indptr[-1] != len(indices):
        raise ValueError(
            f"expected row bounds of {shape[0]} rows and {len(indices)} entries, found shape {indptr.shape}"
        )
    if (np.diff(indptr) < 0).any():
        raise ValueError("expected row bounds that ascend")
    return sp.csr_matrix((np.ones(len(indices), np.float32) if data is None else data, indices, indptr), shape=shape)


def _check_indices(name: str, indices: np.ndarray, n: int) -> None:
    if (
        indices.ndim != 1
        or indices.dtype.kind not in "iu"
        or (indices.size and not 0 <= indices.min() <= indices.max() < n)
    ):
        raise ValueError(f"{name}: expected whole numbers from 0 to {n - 1}")


_NAME, _NEXT = INTERACTIONS, f"{INTERACTIONS}-next"
# The row of `meta` that says how many people earlier imports had and later ones have not, while files may still tell of
# them.
LEFT_BEHIND = "left_behind"


def save_imported(ws: Workspace, data: Imported, *, update: bool = False) -> Carried | None:
    """Replace the workspace's users, items and interactions with `data`, all or nothing.

    update: `data` is a newer state of the same data set, so profiles stay with their ids (see `carry`, which also says
    what is returned then); else all profiles are removed.

    The arrays are written under a second name, then the database commits with their
    fingerprint, then they are renamed and workspace.toml gets the manifest. A kill before the commit
    leaves the old data in force; one after it is finished by the next `load_interactions`.
    """
    arrays = {"users": data.users.astype(np.int32), "items": data.items.astype(np.int32)}
    for key in ("timestamps", "ratings", "given", "full_candidates", "unseen_candidates"):
        value = getattr(data, key)
        if value is not None:
            arrays[key] = value
    with ws.writing():
        ws.config  # noqa: B018  (unreadable: refused before anything is replaced)
        db = ws.db
        try:
            db.execute("BEGIN IMMEDIATE")
            remember_ids(db)
            # Profiles and `uses` go by the old numbers of users: they would name other people now.
            for table in ("users", "items") if update else ("users", "items", "profiles", "uses"):
                db.execute(f"DELETE FROM {table}")
            db.executemany("INSERT INTO users VALUES (?, ?)", enumerate(data.user_ids))
            db.executemany(
                "INSERT INTO items VALUES (?, ?, ?, ?, ?, ?)",
                (
                    (idx, item_id, text.title, text.category, text.subcategory, text.description)
                    for idx, (item_id, text) in enumerate(zip(data.item_ids, data.item_texts, strict=True))
                ),
            )
            n_gone = count_gone(db)
            carried = carry_over(db, update=update)
            if n_gone:
                n_before = _count(ws.get_meta(LEFT_BEHIND))
                db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (LEFT_BEHIND, str(n_before + n_gone)))
            if not update and ws.get_meta(COMMITTED) is not None:
                n_replaced = _count(ws.get_meta(REPLACEMENTS)) + 1
                db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (REPLACEMENTS, str(n_replaced)))
            fingerprint = ws.save(_NEXT, arrays, inputs={}, params={"name": data.name, **data.manifest})
            db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (COMMITTED, fingerprint))
            db.commit()
        except BaseException:
            db.rollback()
            raise
        _finish_import(ws)
        ws.finish_forgetting()
    return carried


def _count(text: str | None) -> int:
    """A count of `meta`; 0 where there is none."""
    return int(text) if isinstance(text, str) and len(text) < 10 and text.isascii() and text.isdigit() else 0


def _finish_import(ws: Workspace) -> None:
    """Finish an import after its commit. If the process was killed there, the next reader of the data does it.

    Where the workspace cannot be written, or another process works in it, workspace.toml stays as it is: nothing reads
    the manifest there.
    """
    committed = ws.get_meta(COMMITTED)
    if committed is None:
        return
    if ws.fingerprint(_NAME) != committed and ws.fingerprint(_NEXT) == committed:
        try:
            os.replace(ws.path(_NEXT), ws.path(_NAME))
        except FileNotFoundError:  # another process did it at this moment
            pass
    try:
        if ws.config.get("data", {}).get("interactions") == committed:
            return
        params = dict(ws.provenance(_NAME, made_by=ws.command_for(_NAME))["params"])
        with ws.writing():
            ws.set_config("data", {"name": params.pop("name", ""), "interactions": committed, "manifest": params})
    except WorkspaceError as error:
        log.info("workspace.toml keeps the manifest of an earlier import: %s", error)


@dataclass(frozen=True)
class Interactions:
    """All stored interactions; see Imported for shapes and dtypes, and for the manifest."""

    n_users: int
    n_items: int
    users: np.ndarray
    items: np.ndarray
    timestamps: np.ndarray | None
    ratings: np.ndarray | None
    given: np.ndarray | None
    full_candidates: np.ndarray | None
    unseen_candidates: np.ndarray | None
    name: str
    fingerprint: str
    manifest: dict = field(default_factory=dict)

    def matrix(self) -> sp.csr_matrix:
        """All distinct interactions: CSR (n_users, n_items) of ones, float32."""
        ones = np.ones(len(self.users), np.float32)
        matrix = sp.csr_matrix((ones, (self.users, self.items)), shape=(self.n_users, self.n_items))
        matrix.sum_duplicates()
        matrix.data[:] = 1.0
        return matrix


def load_interactions(ws: Workspace) -> Interactions:
    """Read the imported interactions. Raises MissingArtefactError if no import has been completed."""
    made_by = f"reclm import FORMAT SOURCE -w {ws.argument}"
    _finish_import(ws)
    artefact = ws.load(_NAME, made_by=made_by)
    if ws.get_meta(COMMITTED) != artefact.fingerprint:
        raise MissingArtefactError(f"the interactions in {ws.root} do not match the last import: run `{made_by}` again")
    n_users, n_items = count_ids(ws)
    get = artefact.arrays.get
    try:
        _check_indices("users", artefact.arrays["users"], n_users)
        _check_indices("items", artefact.arrays["items"], n_items)
        for name in ("items", "timestamps", "ratings", "given"):
            if get(name) is not None and get(name).shape != artefact.arrays["users"].shape:
                raise ValueError(f"{name}: expected an entry for each interaction")
        for name in ("full_candidates", "unseen_candidates"):
            if get(name) is not None:
                _check_indices(name, get(name), n_items)
    except (KeyError, ValueError) as error:
        raise WorkspaceError(f"{_NAME} is damaged ({error}): run `{made_by}` again") from error
    manifest = {key: value for key, value in artefact.params.items() if key != "name"}
    return Interactions(
        n_users,
        n_items,
        get("users"),
        get("items"),
        get("timestamps"),
        get("ratings"),
        get("given"),
        get("full_candidates"),
        get("unseen_candidates"),
        str(artefact.params.get("name", "")),
        artefact.fingerprint,
        manifest,
    )


def count_ids(ws: Workspace) -> tuple[int, int]:
    """(n_users, n_items) of the workspace."""
    return tuple(ws.db.execute(f"SELECT COUNT(*) FROM {side}").fetchone()[0] for side in ("users", "items"))


def item_texts(ws: Workspace) -> list[ItemText]:
    """The texts of all items, in item_idx order."""
    return [
        ItemText(*row)
        for row in _texts(ws, "SELECT title, category, subcategory, description FROM items ORDER BY item_idx")
    ]


def user_ids(ws: Workspace) -> list[str]:
    return [row[0] for row in _texts(ws, "SELECT user_id FROM users ORDER BY user_idx")]


def item_ids(ws: Workspace) -> list[str]:
    return [row[0] for row in _texts(ws, "SELECT item_id FROM items ORDER BY item_idx")]


def _texts(ws: Workspace, query: str) -> list[tuple[str, ...]]:
    """Rows of text. Raises WorkspaceError for a value of another type, which SQLite would keep in such a column."""
    rows = ws.db.execute(query).fetchall()
    if not all(isinstance(value, str) for row in rows for value in row):
        raise WorkspaceError(
            f"{ws.db_path} contains ids or texts of a wrong type: it is damaged; import the data again"
        )
    return rows


def user_index(ws: Workspace, user_id: str) -> int | None:
    """The index of a user, or None if the user is unknown."""
    return index_of(ws, "user", user_id)


def index_of(ws: Workspace, side: str, ident: str) -> int | None:
    """The index of a user or item, or None. Raises WorkspaceError where SQLite's index of ids leads to the row of
    another id."""
    row = ws.db.execute(f"SELECT {side}_idx FROM {side}s WHERE {side}_id=?", (ident,)).fetchone()
    if row is None:
        return None
    found = ws.db.execute(f"SELECT {side}_id FROM {side}s NOT INDEXED WHERE {side}_idx=?", row).fetchone()
    if found is None or found[0] != ident:
        raise WorkspaceError(
            f"{ws.db_path} is damaged: its index of {side}s leads to another {side}; restore a backup, or import the "
            "data again"
        )
    return row[0]
