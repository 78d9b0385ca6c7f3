"""NumPy versions of the kernels: the oracle the tests compare with, in float64, and not a fallback.

Written for plainness: they hold the whole users × items matrix.
"""

import numpy as np


def spmm(indptr: np.ndarray, indices: np.ndarray, data: np.ndarray, dense: np.ndarray) -> np.ndarray:
    """CSR × dense: float64 (n_rows, dim)."""
    out = np.zeros((len(indptr) - 1, dense.shape[1]))
    for row in range(len(indptr) - 1):
        for entry in range(indptr[row], indptr[row + 1]):
            out[row] += float(data[entry]) * dense[indices[entry]].astype(np.float64)
    return out


def topk(
    users: np.ndarray,
    items: np.ndarray,
    k: int,
    *,
    item_bias: np.ndarray | None = None,
    candidates: np.ndarray | None = None,
    seen_indptr: np.ndarray | None = None,
    seen_indices: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """As `native.topk`: ids int32 and scores float64, both (n_users, k), best first, ties to the lower id."""
    scores = users.astype(np.float64) @ items.astype(np.float64).T
    if item_bias is not None:
        scores += item_bias
    allowed = np.zeros(scores.shape, bool)
    allowed[:, slice(None) if candidates is None else candidates] = True
    if seen_indptr is not None:
        for user in range(len(users)):
            allowed[user, seen_indices[seen_indptr[user] : seen_indptr[user + 1]]] = False
    ids = np.full((len(users), k), -1, np.int32)
    best = np.full((len(users), k), -np.inf)
    for user in range(len(users)):
        rankable = np.flatnonzero(allowed[user])
        order = rankable[np.argsort(-scores[user, rankable], kind="stable")][:k]
        ids[user, : len(order)] = order
        best[user, : len(order)] = scores[user, order]
    return ids, best
