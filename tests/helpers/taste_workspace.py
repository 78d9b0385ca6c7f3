"""A workspace of users with two tastes: even users take even items, odd users odd ones, as do their text vectors."""

import numpy as np
import pytest
import scipy.sparse as sp

from reclm_lite.data.dataset import Imported, Split, save_imported, save_split
from reclm_lite.types import ItemText
from reclm_lite.workspace import Workspace

N_USERS, N_ITEMS, N_TEXT = 120, 40, 8


def two_tastes(seed=0) -> Split:
    """Even users take even items, odd users odd ones; users 118 and 119 have no history, items 38 and 39 no users."""
    rng = np.random.default_rng(seed)
    parts = {name: np.zeros((N_USERS, N_ITEMS), np.float32) for name in ("train", "valid", "test", "unseen")}
    for user in range(N_USERS - 2):
        mine = np.arange(user % 2, N_ITEMS - 2, 2)
        chosen = rng.permutation(mine)[:9]
        parts["train"][user, chosen[:6]] = 1
        parts["valid"][user, chosen[6]] = 1
        parts["test"][user, chosen[7:]] = 1
        parts["unseen"][user, N_ITEMS - 2 + user % 2] = 1
    return Split(
        **{name: sp.csr_matrix(part) for name, part in parts.items()},
        full_candidates=np.arange(N_ITEMS - 2, dtype=np.int32),
        unseen_candidates=np.arange(N_ITEMS - 2, N_ITEMS, dtype=np.int32),
        params={"method": "given"},
    )


def taste_vectors(n, seed=0):
    """Unit text vectors of two clusters, by parity."""
    rng = np.random.default_rng(seed)
    vectors = 0.1 * rng.standard_normal((n, N_TEXT), dtype=np.float32)
    vectors[np.arange(n), np.arange(n) % 2] += 1
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture
def ws(tmp_path):
    split = two_tastes()
    known = split.known().tocoo()
    data = Imported(
        "tastes",
        [f"u{u}" for u in range(N_USERS)],
        [f"i{i}" for i in range(N_ITEMS)],
        [ItemText(f"item {i}") for i in range(N_ITEMS)],
        known.row.astype(np.int32),
        known.col.astype(np.int32),
    )
    with Workspace.create(tmp_path / "ws") as ws:
        save_imported(ws, data)
        save_split(ws, split, inputs={"matrices/interactions": ws.fingerprint("matrices/interactions")})
        yield ws


def add_vectors(ws, name, n):
    ws.save(name, {"vectors": taste_vectors(n)}, inputs={}, params={})
