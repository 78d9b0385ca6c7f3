"""What importers produce, what a split is, and how both lie in a workspace.

    matrices/interactions   users, items (int32), timestamps (int64), ratings (float32), given (uint8)
    matrices/split          CSR parts over all users × all items, and the two candidate lists
"""

import os
from dataclasses import dataclass, field

import numpy as np
import scipy.sparse as sp

from ..errors import MissingArtefactError
from ..types import ItemText
from ..workspace import Workspace
from .carry import Carried, carry_over, remember_ids

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
    """Interactions divided for honest evaluation. Every matrix is CSR (n_users, n_items) of ones, float32.

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
    """Read the split. Raises MissingArtefactError where there is none, or (fresh) where it is stale."""
    made_by = f"reclm split -w {ws.argument}"
    if fresh:
        ws.require_fresh("matrices/split", made_by=made_by)
    artefact = ws.load("matrices/split", made_by=made_by)
    shape = tuple(int(n) for n in artefact.arrays["shape"])
    parts = {}
    for part in _PARTS:
        indices = artefact.arrays[f"{part}_indices"]
        indptr = artefact.arrays[f"{part}_indptr"]
        parts[part] = sp.csr_matrix((np.ones(len(indices), np.float32), indices, indptr), shape=shape)
    return Split(
        **parts,
        full_candidates=artefact.arrays["full_candidates"],
        unseen_candidates=artefact.arrays["unseen_candidates"],
        fingerprint=artefact.fingerprint,
        params=artefact.params,
    )


_NAME, _NEXT = "matrices/interactions", "matrices/interactions-next"


def save_imported(ws: Workspace, data: Imported, *, update: bool = False) -> Carried | None:
    """Replace the workspace's users, items and interactions with `data`, all or nothing.

    update: `data` is a newer state of the same data set, so profiles stay with their ids (see `carry`, which also says what
    is returned then); else all profiles are removed.

    The arrays are written under a second name, then the database commits with their
    fingerprint, then they are renamed. A kill before the commit leaves the old data in
    force; one after it is finished by the next `load_interactions`.
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
            if update:
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
            carried = carry_over(db) if update else None
            fingerprint = ws.save(_NEXT, arrays, inputs={}, params={"name": data.name, **data.manifest})
            db.execute("INSERT OR REPLACE INTO meta VALUES ('interactions', ?)", (fingerprint,))
            db.commit()
        except BaseException:
            db.rollback()
            raise
        os.replace(ws.path(_NEXT), ws.path(_NAME))
        ws.set_config("data", {"name": data.name, "manifest": data.manifest})
        if update:
            ws.finish_forgetting()
    return carried


@dataclass(frozen=True)
class Interactions:
    """All stored interactions; see Imported for shapes and dtypes."""

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

    def matrix(self) -> sp.csr_matrix:
        """All distinct interactions: CSR (n_users, n_items) of ones, float32."""
        ones = np.ones(len(self.users), np.float32)
        matrix = sp.csr_matrix((ones, (self.users, self.items)), shape=(self.n_users, self.n_items))
        matrix.sum_duplicates()
        matrix.data[:] = 1.0
        return matrix


def load_interactions(ws: Workspace) -> Interactions:
    """Read the imported interactions. Raises MissingArtefactError where no import has been completed."""
    made_by = f"reclm import FORMAT SOURCE -w {ws.argument}"
    committed = ws.get_meta("interactions")
    if committed is not None and ws.fingerprint(_NAME) != committed and ws.fingerprint(_NEXT) == committed:
        os.replace(ws.path(_NEXT), ws.path(_NAME))
    artefact = ws.load(_NAME, made_by=made_by)
    if committed != artefact.fingerprint:
        raise MissingArtefactError(f"the interactions in {ws.root} are not those that were imported: run `{made_by}` again")
    n_users = ws.db.execute("SELECT COUNT(*) FROM users").fetchone()[0]
    n_items = ws.db.execute("SELECT COUNT(*) FROM items").fetchone()[0]
    get = artefact.arrays.get
    return Interactions(
        n_users, n_items, get("users"), get("items"), get("timestamps"), get("ratings"), get("given"),
        get("full_candidates"), get("unseen_candidates"), artefact.params.get("name", ""), artefact.fingerprint,
    )  # fmt: skip


def item_texts(ws: Workspace) -> list[ItemText]:
    """The texts of all items, in item_idx order."""
    rows = ws.db.execute("SELECT title, category, subcategory, description FROM items ORDER BY item_idx")
    return [ItemText(*row) for row in rows]


def user_ids(ws: Workspace) -> list[str]:
    return [row[0] for row in ws.db.execute("SELECT user_id FROM users ORDER BY user_idx")]


def item_ids(ws: Workspace) -> list[str]:
    return [row[0] for row in ws.db.execute("SELECT item_id FROM items ORDER BY item_idx")]


def user_index(ws: Workspace, user_id: str) -> int | None:
    """The index of a user, or None where the user is unknown."""
    row = ws.db.execute("SELECT user_idx FROM users WHERE user_id=?", (user_id,)).fetchone()
    return row[0] if row else None
