"""Splits of small matrices for tests, and the ids that number them."""

import numpy as np
import scipy.sparse as sp

from reclm_lite.data.dataset import Split
from reclm_lite.workspace import Workspace


def number(ws: Workspace, n_users: int, n_items: int) -> None:
    """Give a workspace users u0, u1, … and items i0, i1, … without texts, so that artefacts of so many rows can be
    stored in it."""
    with ws.db:
        ws.db.executemany("INSERT INTO users VALUES (?, ?)", ((n, f"u{n}") for n in range(n_users)))
        ws.db.executemany("INSERT INTO items VALUES (?, ?, '', '', '', '')", ((n, f"i{n}") for n in range(n_items)))


def split_of(known: sp.csr_matrix, seed: int = 0, *, first_train: float = 0.2) -> Split:
    """A tenth of the interactions for validation, those from there to `first_train` for test, the rest for training."""
    coo, part = known.tocoo(), np.random.default_rng(seed).random(known.nnz)

    def of(mask):
        ones = np.ones(int(mask.sum()), np.float32)
        return sp.csr_matrix((ones, (coo.row[mask], coo.col[mask])), shape=known.shape)

    candidates = np.arange(known.shape[1], dtype=np.int32)
    test = (part >= 0.1) & (part <= first_train)
    return Split(of(part > first_train), of(part < 0.1), of(test), of(part < 0), candidates, candidates[:0])
