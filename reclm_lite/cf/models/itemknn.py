"""Nearest items by cosine, shrunk where few users speak for it (Sarwar et al. 2001; shrinkage as in Bell and Koren 2007).

    s(i, j) = c_ij / (sqrt(n_i n_j) + shrink)      c_ij: users of both, n_i: users of i
    score(u, i) = sum over items j of u's history of s(i, j), if i is among the k nearest of j

Counted over blocks of items, so that memory stays at one block of sparse co-occurrences and k neighbours for each item.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp

from ..closed import check_interactions, walk
from ..history import SparseScorer
from ..interface import FittedModel
from ..settings import Checked, setting

SHRINK_VALUES = (0.0, 3.0, 10.0, 30.0, 100.0)
K_VALUES = (20, 50, 100, 200, 400)
SHRINK_WITHOUT_VALIDATION, K_WITHOUT_VALIDATION = 10.0, 100
_BLOCK_ENTRIES = 4_000_000


@dataclass(frozen=True)
class Settings(Checked):
    """What can be set."""

    k: int | None = setting(None, "neighbours kept for each item; none: chosen on validation", at_least=1)
    shrink: float | None = setting(None, "added to the cosine's denominator; none: chosen on validation", at_least=0)


def closed(settings: Settings) -> Settings:
    """Settings with nothing left open, where there is no validation to ask."""
    return Settings(
        K_WITHOUT_VALIDATION if settings.k is None else settings.k,
        SHRINK_WITHOUT_VALIDATION if settings.shrink is None else settings.shrink,
    )


def choose(
    train: sp.csr_matrix, settings: Settings, score: Callable[[FittedModel], float], *, seed: int = 0, n_threads: int | None = None
) -> Settings:
    """Climbs over the shrinkage at a middle k, then over k."""
    def judged(k: int, shrink: float) -> float:
        return score(fit(train, Settings(k, shrink), n_threads=n_threads))

    k, shrink = settings.k, settings.shrink
    if shrink is None:
        middle = K_WITHOUT_VALIDATION if k is None else k
        shrink = walk(SHRINK_VALUES, 2, lambda value: judged(middle, value))
    if k is None:
        k = walk(K_VALUES, 2, lambda value: judged(value, shrink))
    return Settings(k, shrink)


def fit(
    interactions: sp.csr_matrix, settings: Settings, *,
    seed: int = 0, n_threads: int | None = None, progress: Callable[..., None] | None = None,
) -> FittedModel:
    """interactions: CSR (n_users, n_items) of ones. An item that shares no user with another has no neighbours."""  # fmt: skip
    check_interactions(interactions, "itemknn")
    settings = closed(settings)
    n_users, n_items = interactions.shape
    report = (lambda done: progress(done, n_items, "neighbours")) if progress is not None else None
    return FittedModel(
        "itemknn", np.zeros((n_users, 0), np.float32), np.zeros((n_items, 0), np.float32), None,
        np.diff(interactions.indptr) > 0,
        scorer=SparseScorer(nearest_items(interactions, settings.k, settings.shrink, report)), histories=interactions,
    )  # fmt: skip


def estimate_bytes(n_users: int, n_items: int, nnz: int, settings: Settings) -> int:
    """Peak bytes of `fit`: the neighbours twice, one block of co-occurrences with its sort, interactions both ways."""
    k = closed(settings).k
    return 16 * n_items * min(k, n_items) + 40 * max(_BLOCK_ENTRIES, n_items) + 24 * nnz + 64 * n_items


def nearest_items(
    interactions: sp.csr_matrix, k: int, shrink: float, progress: Callable[[int], None] | None = None
) -> sp.csr_matrix:
    """CSR float32 (n_items, n_items): row j holds the k largest s(i, j), i ascending; ties to the lower id."""
    n_items = interactions.shape[1]
    transposed = interactions.T.tocsr()
    root = np.sqrt(np.diff(transposed.indptr)).astype(np.float32)
    # An upper bound of each row's co-occurrences: the lengths of the histories it occurs in.
    bound = np.minimum(transposed @ np.diff(interactions.indptr).astype(np.float64), n_items)
    indptr, parts = [np.zeros(1, np.int64)], []
    start = 0
    while start < n_items:
        stop = start + max(1, int(np.searchsorted(np.cumsum(bound[start:]), _BLOCK_ENTRIES, side="right")))
        stop = min(stop, n_items)
        counts = (transposed[start:stop] @ interactions).tocsr()
        rows = np.repeat(np.arange(start, stop), np.diff(counts.indptr))
        values = counts.data / (root[rows] * root[counts.indices] + np.float32(shrink))
        values[rows == counts.indices] = 0.0
        # By row, then the largest first, then the lower id.
        order = np.lexsort((counts.indices, -values, rows))
        place = np.arange(len(order)) - np.repeat(counts.indptr[:-1], np.diff(counts.indptr))
        order = order[(place < k) & (values[order] > 0)]
        order = order[np.lexsort((counts.indices[order], rows[order]))]
        indptr.append(np.cumsum(np.bincount(rows[order] - start, minlength=stop - start)) + indptr[-1][-1])
        parts.append((counts.indices[order], values[order].astype(np.float32)))
        start = stop
        if progress is not None:
            progress(start)
    indices = np.concatenate([part[0] for part in parts]) if parts else np.zeros(0, np.int32)
    data = np.concatenate([part[1] for part in parts]) if parts else np.zeros(0, np.float32)
    return sp.csr_matrix((data, indices, np.concatenate(indptr)), shape=(n_items, n_items))
