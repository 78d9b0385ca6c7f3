"""The data set of an importer, the split, and their storage in a workspace.

matrices/interactions   users, items (int32), timestamps (int64), ratings (float32), given (uint8)
matrices/split          CSR parts over all users × all items, and the two candidate lists
"""

import logging
import os
from dataclasses import dataclass, field

import numpy as np
import scipy.sparse as sp

from ..artefacts import COMMITTED, INTERACTIONS, row_bounds, whole_numbers
from ..errors import MissingArtefactError, WorkspaceError
from ..types import ItemText
from ..workspace import REPLACEMENTS, Workspace
from .carry import Carried, carry_over, count_gone, remember_ids

log = logging.getLogger(__name__)

# Values of `given`: the split that comes with a published data set.
GIVEN_TRAIN, GIVEN_VALID, GIVEN_TEST, GIVEN_UNSEEN = 0, 1, 2, 3


@dataclass
class Imported:
    """A data set in memory, before it is stored.

    users, items: int32 (n,), indices into user_ids and item_ids; pairs may repeat.
    timestamps: int64 (n,) seconds since 1970, or None. ratings: float32 (n,), or None.
    given: uint8 (n,) of GIVEN_*, or None if the format has no split.
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
    """A split of the interactions. Every matrix is CSR (n_users, n_items) of ones, float32.

    train: to fit on. valid: to select on. test: held-out interactions with the candidates of the full setting.
    unseen: held-out interactions with items that have no interaction in training.
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
        """Training and validation together: the final model is fitted on these, and ranking masks them."""
        known = (self.train + self.valid).tocsr()
        known.data[:] = 1.0
        known.sort_indices()
        return known


_PARTS = ("train", "valid", "test", "unseen")
_CANDIDATES = ("full_candidates", "unseen_candidates")


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
        candidates = {name: _candidates(name, artefact.arrays[name], shape[1]) for name in _CANDIDATES}
    except (KeyError, ValueError, TypeError) as error:
        raise WorkspaceError(f"matrices/split is damaged ({error}): make it again with `{made_by}`") from error
    return Split(**parts, **candidates, fingerprint=artefact.fingerprint, params=artefact.params)


def csr_of(
    indptr: np.ndarray, indices: np.ndarray, shape: tuple[int, int], data: np.ndarray | None = None
) -> sp.csr_matrix:
    """CSR of `data`, or of ones (float32), from arrays of a file. Raises ValueError unless they are one of `shape`."""
    indices = whole_numbers("indices", indices, shape[1])
    indptr = row_bounds(indptr, shape[0], len(indices))
    return sp.csr_matrix((np.ones(len(indices), np.float32) if data is None else data, indices, indptr), shape=shape)


def _candidates(name: str, array: np.ndarray, n_items: int) -> np.ndarray:
    """`whole_numbers`, each once and ascending: ranking looks items up among them by bisection."""
    array = whole_numbers(name, array, n_items)
    if (array[1:] <= array[:-1]).any():
        raise ValueError(f"{name}: expected numbers that ascend")
    return array


_NAME, _NEXT = INTERACTIONS, f"{INTERACTIONS}-next"
# The row of `meta` that counts people who were removed by an import while files may still reveal them.
LEFT_BEHIND = "left_behind"


def save_imported(ws: Workspace, data: Imported, *, update: bool = False) -> Carried | None:
    """Replace the workspace's users, items and interactions with `data`, atomically.

    update: `data` is a newer state of the same data set, so profiles follow their ids and `carry.Carried` is returned;
    otherwise all profiles are removed and None is returned.

    The arrays are written under a temporary name, then the database commits with their fingerprint, then they are
    renamed and workspace.toml gets the manifest. If the process is killed before the commit, the old data stays valid;
    if after it, the next `load_interactions` finishes the import.
    """
    arrays = {"users": data.users.astype(np.int32), "items": data.items.astype(np.int32)}
    for key in ("timestamps", "ratings", "given", "full_candidates", "unseen_candidates"):
        value = getattr(data, key)
        if value is not None:
            arrays[key] = value
    with ws.writing():
        ws.config  # noqa: B018  (raises if unreadable, before anything is replaced)
        db = ws.db
        try:
            db.execute("BEGIN IMMEDIATE")
            remember_ids(db)
            # Profiles and `uses` have the old indices of users, which now belong to other people.
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
    """A count stored in `meta`; 0 if there is none."""
    return int(text) if isinstance(text, str) and len(text) < 10 and text.isascii() and text.isdigit() else 0


def _finish_import(ws: Workspace) -> None:
    """The steps after the commit of an import; after a kill, the next reader of the data runs them.

    If the workspace is read-only, or another process is working in it, workspace.toml stays as it is, because nothing
    reads the manifest there.
    """
    committed = ws.get_meta(COMMITTED)
    if committed is None:
        return
    if ws.fingerprint(_NAME) != committed and ws.fingerprint(_NEXT) == committed:
        try:
            os.replace(ws.path(_NEXT), ws.path(_NAME))
        except FileNotFoundError:  # another process has just done it
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
        users = whole_numbers("users", artefact.arrays["users"], n_users)
        items = whole_numbers("items", artefact.arrays["items"], n_items)
        kinds = {"timestamps": np.int64, "ratings": np.float32, "given": np.uint8}
        columns = {name: get(name) for name in kinds}
        for name, values in {"items": items, **columns}.items():
            if values is not None and values.shape != users.shape:
                raise ValueError(f"{name}: expected an entry for each interaction")
        for name, dtype in kinds.items():
            if columns[name] is not None and columns[name].dtype != dtype:
                raise ValueError(f"{name}: expected {np.dtype(dtype)}, found {columns[name].dtype}")
        for name in _CANDIDATES:
            columns[name] = None if get(name) is None else whole_numbers(name, get(name), n_items)
    except (KeyError, ValueError) as error:
        raise WorkspaceError(f"{_NAME} is damaged ({error}): run `{made_by}` again") from error
    manifest = {key: value for key, value in artefact.params.items() if key != "name"}
    return Interactions(
        n_users,
        n_items,
        users,
        items,
        **columns,
        name=str(artefact.params.get("name", "")),
        fingerprint=artefact.fingerprint,
        manifest=manifest,
    )


def count_ids(ws: Workspace) -> tuple[int, int]:
    """(n_users, n_items) of the workspace. Raises WorkspaceError where they are not numbered from 0 on."""
    return count_side(ws, "user"), count_side(ws, "item")


def count_side(ws: Workspace, side: str) -> int:
    """The number of users ("user") or items ("item"), as `count_ids`."""
    n, least, most = ws.db.execute(
        f"SELECT (SELECT COUNT(*) FROM {side}s), (SELECT MIN({side}_idx) FROM {side}s), "
        f"(SELECT MAX({side}_idx) FROM {side}s)"
    ).fetchone()
    if n and (least, most) != (0, n - 1):
        raise WorkspaceError(
            f"{ws.db_path} is damaged: expected {side}s numbered from 0 to {n - 1}, found {least} to {most}; take a "
            "copy back, or import the data again"
        )
    return n


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
    """Rows of text. Raises WorkspaceError for a value of another type, which SQLite does not prevent."""
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
    """The index of a user or item, or None. Raises WorkspaceError if SQLite's index returns a row of another id."""
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
