"""Recall and NDCG at k, for each user; binary relevance.

    recall@k = hits in the first k / n_relevant
    ndcg@k   = sum over hits at rank r (from 0) of 1 / log2(r + 2), over the same for a perfect ranking,
               whose first min(k, n_relevant) places are hits
"""

from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp


def ranking_metrics(ids: np.ndarray, relevant: sp.csr_matrix, ks: Sequence[int]) -> dict[str, np.ndarray]:
    """`{"recall@k": float64 (n,), "ndcg@k": float64 (n,)}` for each k.

    ids: int32 (n, >= max(ks)), best first, -1 where a list has run out. relevant: CSR (n, n_items), row i
    for row i of ids; every row must have an entry.
    """
    n_relevant = np.diff(relevant.indptr)
    if len(ids) != relevant.shape[0] or ids.shape[1] < max(ks) or (n_relevant < 1).any():
        raise ValueError(f"expected a list of {max(ks)} ids and at least one relevant item for each of {relevant.shape[0]} users")
    hits = _hits(ids, relevant)
    discounts = 1.0 / np.log2(np.arange(ids.shape[1]) + 2.0)
    ideal = np.concatenate([[0.0], np.cumsum(discounts)])
    out = {}
    for k in ks:
        out[f"recall@{k}"] = hits[:, :k].sum(axis=1) / n_relevant
        out[f"ndcg@{k}"] = (hits[:, :k] * discounts[:k]).sum(axis=1) / ideal[np.minimum(n_relevant, k)]
    return out


def _hits(ids: np.ndarray, relevant: sp.csr_matrix) -> np.ndarray:
    """bool (n, width): whether ids[i, r] is among the relevant of row i."""
    n, n_items = relevant.shape
    rows = np.arange(n, dtype=np.int64)[:, None]
    keys = np.where(ids >= 0, rows * n_items + ids, -1)
    relevant_keys = np.repeat(rows[:, 0], np.diff(relevant.indptr)) * n_items + relevant.indices
    return np.isin(keys, relevant_keys)
