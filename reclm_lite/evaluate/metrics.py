"""Recall and NDCG at k, for each user; binary relevance.

recall@k = hits in the first k / n_relevant
ndcg@k   = sum over hits at rank r (from 0) of 1 / log2(r + 2), over the same for a perfect ranking,
           whose first min(k, n_relevant) places are hits
"""

from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp

from ..kernels.hits import hit_places


def ranking_metrics(ids: np.ndarray, relevant: sp.csr_matrix, ks: Sequence[int]) -> dict[str, np.ndarray]:
    """`{"recall@k": float64 (n,), "ndcg@k": float64 (n,)}` for each k.

    ids: int32 (n, >= max(ks)), best first, -1 where a list has run out. relevant: CSR (n, n_items), row i
    for row i of ids; every row must have an entry.
    """
    n, n_relevant = len(ids), np.diff(relevant.indptr)
    if n != relevant.shape[0] or ids.shape[1] < max(ks) or (n_relevant < 1).any():
        raise ValueError(
            f"expected a list of {max(ks)} ids and at least one relevant item for each of {relevant.shape[0]} users"
        )
    width = ids.shape[1]
    places = hit_places(ids, relevant.indptr, relevant.indices)
    rows = np.repeat(np.arange(n), n_relevant)
    discounts = 1.0 / np.log2(np.arange(width) + 2.0)
    ideal = np.concatenate([[0.0], np.cumsum(discounts)])
    out = {}
    for k in ks:
        hit = places < k
        out[f"recall@{k}"] = np.bincount(rows[hit], minlength=n) / n_relevant
        gain = np.bincount(rows[hit], weights=discounts[places[hit]], minlength=n)
        out[f"ndcg@{k}"] = gain / ideal[np.minimum(n_relevant, k)]
    return out
