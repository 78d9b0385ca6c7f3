"""Item-based k nearest neighbors by shrunk cosine (Sarwar et al. 2001; shrinkage as in Bell and Koren 2007).

    s(i, j) = c_ij / (sqrt(n_i n_j) + shrink)      c_ij: users of both, n_i: users of i
    score(u, i) = sum over items j of u's history of s(i, j), if i is among the k nearest of j

Similarities are computed over blocks of items: memory holds one block of them, and k neighbors for each item.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from ...kernels import native
from ..fitted import FittedModel
from ..item_weights import SparseWeights
from ..scorers import HistoryScorer
from ..settings import Checked, setting
from ..untrained import check_interactions, walk

SHRINK_VALUES = (0.0, 3.0, 10.0, 30.0, 100.0)
K_VALUES = (20, 50, 100, 200, 400, 800)
SHRINK_WITHOUT_VALIDATION, K_WITHOUT_VALIDATION = 10.0, 100
_BLOCK_VALUES = 8_000_000


@dataclass(frozen=True)
class Settings(Checked):
    """What can be set."""

    k: int | None = setting(None, "neighbors kept for each item; none: chosen on validation", at_least=1)
    shrink: float | None = setting(None, "added to the cosine's denominator; none: chosen on validation", at_least=0)


def without_validation(settings: Settings) -> Settings:
    """Settings with fixed values for what validation would choose."""
    return Settings(*_values(settings))


def _values(settings: Settings) -> tuple[int, float]:
    """(k, shrink), with fixed values for what validation would choose."""
    k = K_WITHOUT_VALIDATION if settings.k is None else settings.k
    return k, SHRINK_WITHOUT_VALIDATION if settings.shrink is None else settings.shrink


def choose(
    train: sp.csr_matrix,
    settings: Settings,
    score: Callable[[FittedModel], float],
    *,
    seed: int = 0,
    n_threads: int | None = None,
) -> tuple[Settings, None]:
    """Hill climbing over the shrinkage at a middle k, then over k."""

    def judged(k: int, shrink: float) -> float:
        return score(fit(train, Settings(k, shrink), n_threads=n_threads))

    k, shrink = settings.k, settings.shrink
    if shrink is None:
        middle = K_WITHOUT_VALIDATION if k is None else k
        shrink = walk(SHRINK_VALUES, 2, lambda value: judged(middle, value))
    if k is None:
        k = walk(K_VALUES, 2, lambda value: judged(value, shrink))
    return Settings(k, shrink), None


def fit(
    interactions: sp.csr_matrix,
    settings: Settings,
    *,
    seed: int = 0,
    n_threads: int | None = None,
    progress: Callable[..., None] | None = None,
) -> FittedModel:
    """interactions: CSR (n_users, n_items) of ones. An item that shares no user with another has no neighbors."""
    check_interactions(interactions, "itemknn")
    k, shrink = _values(settings)
    n_users, n_items = interactions.shape
    report = (lambda done: progress(done, n_items, "neighbors")) if progress is not None else None
    similarity = nearest_items(interactions, k, shrink, n_threads=n_threads, progress=report)
    scorer = HistoryScorer(SparseWeights(similarity), interactions)
    return FittedModel("itemknn", scorer, np.diff(interactions.indptr) > 0)


def estimate_bytes(n_users: int, n_items: int, nnz: int, settings: Settings) -> int:
    """Peak bytes of `fit`: the neighbors twice, a block of similarities in work, and X in both directions."""
    k, _ = _values(settings)
    return 16 * n_items * min(k, n_items) + 24 * max(_BLOCK_VALUES, n_items) + 24 * nnz


def nearest_items(
    interactions: sp.csr_matrix,
    k: int,
    shrink: float,
    *,
    n_threads: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> sp.csr_matrix:
    """CSR float32 (n_items, n_items): row j holds the k largest s(i, j), i ascending; ties go to the lower id."""
    n_items = interactions.shape[1]
    transposed = interactions.T.tocsr()
    root = np.sqrt(np.diff(transposed.indptr)).astype(np.float32)
    block = max(1, _BLOCK_VALUES // max(n_items, 1))
    indptr, parts = [np.zeros(1, np.int64)], [(np.zeros(0, np.int32), np.zeros(0, np.float32))]
    for start in range(0, n_items, block):
        stop = min(start + block, n_items)
        values = (transposed[start:stop] @ interactions).toarray()
        values /= np.maximum(root[start:stop, None] * root, 1) + np.float32(shrink)
        values[np.arange(stop - start), np.arange(start, stop)] = 0.0
        ids, best = native.select(values, k, n_threads=n_threads)
        keep = best > 0
        ids = np.where(keep, ids, n_items)
        order = np.argsort(ids, axis=1)
        ids, best = np.take_along_axis(ids, order, axis=1), np.take_along_axis(best, order, axis=1)
        keep = ids < n_items
        indptr.append(np.cumsum(keep.sum(axis=1)) + indptr[-1][-1])
        parts.append((ids[keep], best[keep]))
        if progress is not None:
            progress(stop)
    indices, data = (np.concatenate(part) for part in zip(*parts, strict=True))
    return sp.csr_matrix((data, indices.astype(np.int32), np.concatenate(indptr)), shape=(n_items, n_items))
