"""GF-CF (Shen et al., arXiv 2108.07567): a linear filter of the user-item graph, no training.

    R~ = D_u^-1/2 X D_i^-1/2
    score = x (R~^T R~ + alpha D_i^-1/2 V V^T D_i^1/2)      V: the first `rank` right singular vectors of R~

V comes from seeded subspace iteration with Chebyshev filters on the sparse kernel (Zhou, Saad et al. 2006). No
n_items x n_items matrix is formed: two sparse products filter the histories of a block of users.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp
from threadpoolctl import threadpool_limits

from ...kernels import native
from ..fitted import FittedModel
from ..item_weights import WRITTEN_OUT_ITEMS, FilterWeights
from ..scorers import HistoryScorer
from ..settings import Checked, setting
from ..untrained import check_interactions, walk

ALPHA_VALUES = (0.0, 0.1, 0.3, 1.0, 3.0)
ALPHA_WITHOUT_VALIDATION = 0.3
_OVERSAMPLE = 32
_ROUNDS, _DEGREE = 4, 6
_BLAS_BYTES = 18_000_000


@dataclass(frozen=True)
class Settings(Checked):
    """What can be set."""

    alpha: float | None = setting(None, "weight of the ideal low-pass filter; none: chosen on validation", at_least=0)
    rank: int = setting(
        256, "singular vectors in the low-pass filter; at most the rank of the data", at_least=1, at_most=4096
    )


def without_validation(settings: Settings) -> Settings:
    """Settings with fixed values in place of those that validation would choose."""
    return replace(settings, alpha=ALPHA_WITHOUT_VALIDATION) if settings.alpha is None else settings


def choose(
    train: sp.csr_matrix,
    settings: Settings,
    score: Callable[[FittedModel], float],
    *,
    seed: int = 0,
    n_threads: int | None = None,
) -> tuple[Settings, FittedModel]:
    """Hill climbing over `ALPHA_VALUES` from the middle. V is computed once. Also returns the model of `train`."""
    fitted = fit(train, replace(settings, alpha=1.0), seed=seed, n_threads=n_threads)

    scorer = fitted.scorer
    assert isinstance(scorer, HistoryScorer) and isinstance(scorer.weights, FilterWeights)
    filtered, histories = scorer.weights, scorer.histories

    def weighted(alpha: float) -> FittedModel:
        return replace(fitted, scorer=HistoryScorer(replace(filtered, alpha=alpha), histories))

    best = walk(ALPHA_VALUES, 2, lambda alpha: score(weighted(alpha)))
    return replace(settings, alpha=best), weighted(best)


def fit(
    interactions: sp.csr_matrix,
    settings: Settings,
    *,
    seed: int = 0,
    n_threads: int | None = None,
    progress: Callable[..., None] | None = None,
) -> FittedModel:
    """interactions: CSR (n_users, n_items) of ones. An item without interactions scores 0 for everyone."""
    check_interactions(interactions, "gfcf")
    alpha = ALPHA_WITHOUT_VALIDATION if settings.alpha is None else settings.alpha
    n_items = interactions.shape[1]
    graph, root_degree = normalized(interactions)
    factors = np.zeros((n_items, 0), np.float32)
    if alpha and interactions.nnz:
        report = (lambda done: progress(done, _ROUNDS + 1, "singular vectors")) if progress is not None else None
        factors = singular_vectors(graph, settings.rank, seed=seed, n_threads=n_threads, progress=report)[0]
    return FittedModel(
        "gfcf",
        HistoryScorer(FilterWeights(graph, factors, root_degree, alpha), interactions),
        np.diff(interactions.indptr) > 0,
        params={"rank": factors.shape[1]},
    )


def estimate_bytes(n_users: int, n_items: int, nnz: int, settings: Settings) -> int:
    """Peak bytes of fitting and validation.

    Blocks of vectors over items and users in the iteration, or the scorers of this and the previous value of alpha;
    the graph in both directions, twice; BLAS's own buffers.
    """
    rank = min(settings.rank, n_users, n_items)
    width = min(rank + _OVERSAMPLE, n_users, n_items)
    iteration = 4 * width * (7 * n_items + 2 * n_users)
    scorer = 4 * rank * 6 * n_items + 4 * 64 * (3 * n_items + 2 * n_users)
    if n_items <= WRITTEN_OUT_ITEMS:
        scorer += 16 * n_items**2
    return max(iteration, scorer) + 60 * nnz + _BLAS_BYTES


def normalized(interactions: sp.csr_matrix) -> tuple[sp.csr_matrix, np.ndarray]:
    """(R~ CSR float32, sqrt of the items' degrees float32 (n_items,), at least 1)."""
    n_items = interactions.shape[1]
    root_users = np.sqrt(np.maximum(np.diff(interactions.indptr), 1)).astype(np.float32)
    root_items = np.sqrt(np.maximum(np.bincount(interactions.indices, minlength=n_items), 1)).astype(np.float32)
    weights = 1.0 / (np.repeat(root_users, np.diff(interactions.indptr)) * root_items[interactions.indices])
    return sp.csr_matrix((weights, interactions.indices, interactions.indptr), shape=interactions.shape), root_items


def singular_vectors(
    graph: sp.csr_matrix,
    rank: int,
    *,
    seed: int = 0,
    n_threads: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The first right singular vectors, float32 (n_items, r), and singular values (r,), largest first.

    r is `rank`, or less if the data has a lower rank. Each vector's largest entry is positive. Singular values of R~
    lie in [0, 1]; the polynomial damps those below the block's smallest Ritz value and amplifies those above.
    """
    n_users, n_items = graph.shape
    forward = native.make_csr(graph.indptr, graph.indices, graph.data, graph.shape)
    transposed = graph.T.tocsr()
    backward = native.make_csr(transposed.indptr, transposed.indices, transposed.data, transposed.shape)

    def normal(block: np.ndarray) -> np.ndarray:
        middle = native.spmm(forward, block, n_threads=n_threads, check=False)
        return native.spmm(backward, middle, n_threads=n_threads, check=False)

    width = min(rank + _OVERSAMPLE, n_users, n_items)
    rng = np.random.default_rng([seed, 2])
    with threadpool_limits(1, user_api="blas"):
        block = normal(rng.standard_normal((n_items, width), dtype=np.float32))
        block, values = _ritz(block, forward, n_threads)
        for number in range(_ROUNDS):
            if progress is not None:
                progress(number)
            block, values = _ritz(_filtered(block, normal, float(values[-1]), float(values[0])), forward, n_threads)
    keep = min(rank, int((values > 1e-9 * max(values[0], 1e-30)).sum()))
    block, values = block[:, :keep], np.sqrt(np.maximum(values[:keep], 0.0))
    signs = np.sign(block[np.abs(block).argmax(axis=0), np.arange(keep)])
    return np.ascontiguousarray(block * signs), values.astype(np.float32)


def _filtered(block: np.ndarray, normal: Callable[[np.ndarray], np.ndarray], cut: float, top: float) -> np.ndarray:
    """`block`, filtered by the Chebyshev polynomial of degree `_DEGREE` on [0, cut], scaled to 1 at `top`."""
    if cut <= 1e-7 * top:
        return normal(block)
    half = np.float32(cut / 2)
    scale = half / np.float32(top - half)
    first = scale
    previous, current = block, (normal(block) - half * block) * (scale / half)
    for _ in range(_DEGREE - 1):
        new_scale = np.float32(1) / (np.float32(2) / first - scale)
        following = (normal(current) - half * current) * (2 * new_scale / half) - (scale * new_scale) * previous
        previous, current, scale = current, following, new_scale
    return current


def _ritz(block: np.ndarray, forward: native.CSR, n_threads: int | None) -> tuple[np.ndarray, np.ndarray]:
    """(orthonormal Ritz vectors of R~^T R~ in the span of `block`, their values float64, largest first)."""
    basis = _orthonormal(block)
    image = native.spmm(forward, basis, n_threads=n_threads, check=False)
    values, rotation = np.linalg.eigh((image.T @ image).astype(np.float64))
    order = np.argsort(-values, kind="stable")
    return basis @ rotation[:, order].astype(np.float32), values[order]


def _orthonormal(block: np.ndarray) -> np.ndarray:
    """An orthonormal basis of the columns' span, float32.

    By Cholesky QR twice (a quarter of Householder's time), or by Householder if the columns are nearly dependent.
    """
    basis = block / np.maximum(np.linalg.norm(block, axis=0), np.float32(1e-30))
    for _ in range(2):
        gram = np.zeros((basis.shape[1], basis.shape[1]))
        for start in range(0, len(basis), 4096):
            part = basis[start : start + 4096].astype(np.float64)
            gram += part.T @ part
        # With a Gram matrix of worse condition, the second pass could not repair a float32 basis.
        if gram.shape[0] and np.linalg.eigvalsh(gram)[0] < 1e-6 * gram.shape[0]:
            return np.ascontiguousarray(np.linalg.qr(block)[0])
        basis = basis @ np.linalg.inv(np.linalg.cholesky(gram).T).astype(np.float32)
    return basis
