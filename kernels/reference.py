"""NumPy versions of the kernels in float64: the oracle of the tests, not a fallback.

Written to be simple: they hold the whole users × items matrix.
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
    relu_dim: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """As `native.topk`: ids int32 and scores float64, both (n_users, k), best first, ties to the lower id."""
    users, items, dim = users.astype(np.float64), items.astype(np.float64), users.shape[1] - relu_dim
    scores = users[:, :dim] @ items[:, :dim].T
    for column in range(dim, dim + relu_dim):
        scores += np.maximum(users[:, column, None] + items[:, column], 0)
    if item_bias is not None:
        scores += item_bias
    return select(scores, k, candidates=candidates, seen_indptr=seen_indptr, seen_indices=seen_indices)


def select(
    scores: np.ndarray,
    k: int,
    *,
    candidates: np.ndarray | None = None,
    seen_indptr: np.ndarray | None = None,
    seen_indices: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """As `native.select`: ids int32 and scores, both (n_rows, k), best first, ties to the lower id."""
    allowed = np.zeros(scores.shape, bool)
    allowed[:, slice(None) if candidates is None else candidates] = True
    if seen_indptr is not None and seen_indices is not None:
        for row in range(len(scores)):
            allowed[row, seen_indices[seen_indptr[row] : seen_indptr[row + 1]]] = False
    allowed &= scores > -np.inf
    ids = np.full((len(scores), k), -1, np.int32)
    best = np.full((len(scores), k), -np.inf)
    for row in range(len(scores)):
        rankable = np.flatnonzero(allowed[row])
        order = rankable[np.argsort(-scores[row, rankable], kind="stable")][:k]
        ids[row, : len(order)] = order
        best[row, : len(order)] = scores[row, order]
    return ids, best


def knn(
    queries: np.ndarray, vectors: np.ndarray, k: int, *, own: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """As `native.knn`: rows int32 and cosines float64, both (n_queries, k)."""
    cosines = np.full((len(queries), len(vectors)), -np.inf)
    for query in range(len(queries)):
        for row in range(len(vectors)):
            lengths = np.linalg.norm(queries[query].astype(float)) * np.linalg.norm(vectors[row].astype(float))
            if lengths > 0 and (own is None or own[query] != row):
                cosines[query, row] = queries[query].astype(float) @ vectors[row] / lengths
    return select(cosines, k)
