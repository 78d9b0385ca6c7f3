"""EASE^R (Steck, arXiv 1905.03375): a linear item-item model with zero diagonal, in closed form.

    P = (X^T X + l2 I)^-1      B = I - P diag(1 / diag P)      score = x B

The inverse is taken in place by sweeping tiles (Gauss-Jordan on a symmetric positive definite matrix), float32 with
the diagonal tiles inverted in float64: memory holds a single n_items x n_items matrix. Tiles are distributed over
threads with one BLAS thread each, so the bits do not depend on the number of threads.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp
from threadpoolctl import threadpool_limits

from ...errors import ModelError
from ...kernels import native
from ..fitted import FittedModel
from ..item_weights import DenseWeights
from ..scorers import HistoryScorer
from ..settings import Checked, setting
from ..untrained import check_interactions, walk

L2_VALUES = (5.0, 20.0, 100.0, 300.0, 1000.0, 3000.0)
L2_WITHOUT_VALIDATION = 300.0
_TILE = 1024


@dataclass(frozen=True)
class Settings(Checked):
    """What can be set."""

    l2: float | None = setting(None, "weight of L2 regularization of B; none: chosen on validation", above=0)


def without_validation(settings: Settings) -> Settings:
    """Settings with fixed values in place of those that validation would choose."""
    return replace(settings, l2=L2_WITHOUT_VALIDATION) if settings.l2 is None else settings


def choose(
    train: sp.csr_matrix,
    settings: Settings,
    score: Callable[[FittedModel], float],
    *,
    seed: int = 0,
    n_threads: int | None = None,
) -> tuple[Settings, None]:
    """Hill climbing over `L2_VALUES` from the middle; every value tried costs a fit."""
    best = walk(L2_VALUES, 2, lambda l2: score(fit(train, replace(settings, l2=l2), n_threads=n_threads)))
    return replace(settings, l2=best), None


def fit(
    interactions: sp.csr_matrix,
    settings: Settings,
    *,
    seed: int = 0,
    n_threads: int | None = None,
    progress: Callable[..., None] | None = None,
) -> FittedModel:
    """interactions: CSR (n_users, n_items) of ones. An item without interactions scores 0 for everyone."""
    check_interactions(interactions, "ease")
    l2 = without_validation(settings).l2
    n_items = interactions.shape[1]
    weights = gram(interactions)
    weights.flat[:: n_items + 1] += np.float32(l2)
    report = (lambda done, total: progress(done, total, f"l2 {l2:g}")) if progress is not None else None
    sweep(weights, n_threads=n_threads, progress=report)
    # The sweep leaves -P; its sign cancels in -P_ij / P_jj.
    weights /= -np.diagonal(weights).copy()
    weights.flat[:: n_items + 1] = 0.0
    return FittedModel("ease", HistoryScorer(DenseWeights(weights), interactions), np.diff(interactions.indptr) > 0)


def estimate_bytes(n_users: int, n_items: int, nnz: int, settings: Settings) -> int:
    """Peak bytes of `fit`: the matrix, and the rows of tiles in work. Choosing l2 holds one matrix at a time."""
    return 4 * n_items**2 + 24 * _TILE * n_items + 16 * nnz


def gram(interactions: sp.csr_matrix) -> np.ndarray:
    """X^T X, dense float32 (n_items, n_items), by rows of tiles. Exact: float32 holds counts below 2^24."""
    n_items = interactions.shape[1]
    transposed = interactions.T.tocsr()
    out = np.empty((n_items, n_items), np.float32)
    for start in range(0, n_items, _TILE):
        out[start : start + _TILE] = (transposed[start : start + _TILE] @ interactions).toarray()
    return out


def sweep(
    matrix: np.ndarray, *, n_threads: int | None = None, progress: Callable[[int, int], None] | None = None
) -> None:
    """Replace a symmetric positive definite matrix, float32 (n, n), by minus its inverse, in place.

    Sweeping tile k (K: its rows, D = A_KK^-1):  A_ij -= A_iK D A_Kj,  A_iK = A_iK D,  A_KK = -D.
    Only the lower triangle is computed, then mirrored. Raises ModelError if the matrix is not positive definite.
    """
    n = len(matrix)
    tiles = [slice(start, min(start + _TILE, n)) for start in range(0, n, _TILE)]
    n_threads = native.default_threads() if n_threads is None else n_threads
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(max(1, n_threads)) as pool:
        for number, k in enumerate(tiles):
            inverse = _inverse(matrix[k, k])
            panel = np.empty((n, k.stop - k.start), np.float32)
            panel[: k.start], panel[k.start :] = matrix[k, : k.start].T, matrix[k.start :, k]
            scaled = panel @ inverse

            def update(i: slice, k: slice = k, panel: np.ndarray = panel, scaled: np.ndarray = scaled) -> None:
                if i == k:
                    return
                for j in tiles:
                    if j.start <= i.start and j != k:
                        matrix[i, j] -= scaled[i] @ panel[j].T

            for _ in pool.map(update, reversed(tiles)):
                pass
            matrix[k, : k.start], matrix[k.start :, k] = scaled[: k.start].T, scaled[k.start :]
            matrix[k, k] = -inverse
            if progress is not None:
                progress(number + 1, len(tiles))
    for i in tiles:
        for j in tiles:
            if j.start < i.start:
                matrix[j, i] = matrix[i, j].T
        lower = np.tril(matrix[i, i])
        matrix[i, i] = lower + np.tril(lower, -1).T


def _inverse(tile: np.ndarray) -> np.ndarray:
    """The inverse of a positive definite tile, symmetric float32; through float64 and Cholesky."""
    from scipy.linalg import LinAlgError, cho_factor, cho_solve

    lower = np.tril(tile.astype(np.float64))
    try:
        factor = cho_factor(lower, lower=True, overwrite_a=True, check_finite=False)
        inverse = cho_solve(factor, np.eye(len(tile)), check_finite=False)
    except LinAlgError as error:
        raise ModelError(
            f"ease: the matrix to invert is not positive definite in float32 ({error}): set a larger l2"
        ) from error
    return ((inverse + inverse.T) / 2).astype(np.float32)
