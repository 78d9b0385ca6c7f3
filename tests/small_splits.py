"""Splits of small matrices for tests."""

import numpy as np
import scipy.sparse as sp

from reclm_lite.data.dataset import Split


def split_of(known: sp.csr_matrix, seed: int = 0, *, first_train: float = 0.2) -> Split:
    """A tenth of the interactions for validation, those from there to `first_train` for test, the rest for training."""
    coo, part = known.tocoo(), np.random.default_rng(seed).random(known.nnz)

    def of(mask):
        ones = np.ones(int(mask.sum()), np.float32)
        return sp.csr_matrix((ones, (coo.row[mask], coo.col[mask])), shape=known.shape)

    candidates = np.arange(known.shape[1], dtype=np.int32)
    test = (part >= 0.1) & (part <= first_train)
    return Split(of(part > first_train), of(part < 0.1), of(test), of(part < 0), candidates, candidates[:0])
