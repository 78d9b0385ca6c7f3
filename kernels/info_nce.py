"""InfoNCE with its gradients. numba; import this module lazily.

The order of sums does not depend on the number of threads: a block of rows at a time, with columns in fixed parts.

Left out: normalizing the rows (layers.py), and the ranking losses (losses.py).
"""

import functools

import numba
import numpy as np
import scipy.linalg.cython_blas  # noqa: F401  numba's np.dot calls this BLAS, which `_blas` must find loaded
from threadpoolctl import ThreadpoolController

from reclm_lite.errors import InputError
from reclm_lite.kernels._jit import REASSOCIATE, compiled, exp_at_most_zero, limited

_BLOCK_VALUES = 4_000_000
_BLOCK_COLUMNS = 4096


def info_nce(
    z1: np.ndarray, z2: np.ndarray, positives: np.ndarray, temperature: float, *, n_threads: int | None = None
) -> tuple[float, np.ndarray, np.ndarray]:
    """InfoNCE of z1's rows against all of z2's: (loss, dz1, dz2), the gradients float32 of the inputs' shapes.

        loss = mean over rows i of  log(sum_j exp(z1_i . z2_j / t)) - z1_i . z2_positives[i] / t

    (arXiv 2010.10783, eq. 10). z1: float32 (n, dim). z2: float32 (m, dim), rows of the other view: of the batch, or of
    all nodes. For cosine similarity, normalize the rows first (`layers.normalize`) and pass the gradients back through
    `layers.normalize_backward`. positives: int32 or int64 (n,), the row of z2 that matches each row of z1.
    Memory holds a block of at most 4 million scores, never n x m. Without rows the loss is 0.
    Raises InputError if shapes do not fit or the temperature is not positive.
    """
    z1, z2 = (np.ascontiguousarray(z, dtype=np.float32) for z in (z1, z2))
    if z1.ndim != 2 or z2.ndim != 2 or z1.shape[1] != z2.shape[1]:
        raise InputError(f"z2: expected as many columns as z1 has, found {z1.shape} and {z2.shape}")
    if not temperature > 0:
        raise InputError(f"temperature: expected more than 0, found {temperature}")
    n, m = len(z1), len(z2)
    positives = np.asarray(positives)
    if (
        positives.shape != (n,)
        or positives.dtype.kind not in "iu"
        or (n and not (positives.min() >= 0 and positives.max() < m))
    ):
        raise InputError(f"positives: expected {n} rows of z2 within [0, {m}), found {positives!r:.80}")
    if n == 0:
        return 0.0, np.zeros_like(z1), np.zeros_like(z2)
    block = int(max(1, min(n, 1024, _BLOCK_VALUES // m)))
    # One BLAS thread per product, since the loop around them is parallel.
    with limited(n_threads, n * m), _blas().limit(limits=1, user_api="blas"):
        loss, dz1, dz2 = _info_nce(z1 * np.float32(1 / temperature), z2, block)
    # Gradient of the positives, summed in float64 in a fixed order: rows of z2 may repeat.
    own = np.einsum("ij,ij->i", z1, z2[positives], dtype=np.float64) / temperature
    scale = np.float32(1 / (n * temperature))
    dz1 *= scale
    dz1 -= scale * z2[positives]
    dz2 *= np.float32(1 / n)
    np.subtract.at(dz2, positives, scale * z1)
    return float((loss - own.sum()) / n), dz1, dz2


@functools.cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController()


@compiled()
def _exp_rows(scores: np.ndarray, highest: np.ndarray, norms: np.ndarray, bits: np.ndarray) -> None:
    """Replace each row of scores by exp(row - max(row)); writes the maximum and the sum of each row."""
    rows, width = scores.shape
    for i in range(rows):
        mine = scores[i]
        top = _highest(mine)
        for j in range(width):
            mine[j] -= top
        exp_at_most_zero(mine, bits)
        highest[i] = top
        norms[i] = _sum(mine)


@compiled(fastmath=REASSOCIATE)
def _sum(values: np.ndarray) -> np.float32:
    total = np.float32(0)
    for j in range(len(values)):
        total += values[j]
    return total


@compiled(fastmath=REASSOCIATE | {"nnan"})
def _highest(values: np.ndarray) -> np.float32:
    top = values[0]
    for j in range(len(values)):
        top = max(top, values[j])
    return top


@compiled(parallel=True)
def _info_nce(z1: np.ndarray, z2: np.ndarray, block: int) -> tuple[float, np.ndarray, np.ndarray]:
    """Sum of log(sum_j exp(z1_i . z2_j)) and its gradients, by blocks of z1's rows, z2's rows split over threads."""
    n, dim = z1.shape
    m = len(z2)
    n_parts = (m + _BLOCK_COLUMNS - 1) // _BLOCK_COLUMNS
    dz1, dz2 = np.empty((n, dim), np.float32), np.zeros((m, dim), np.float32)
    scores = np.empty(block * m, np.float32)
    highest = np.empty((n_parts, block), np.float32)
    norms = np.empty((n_parts, block), np.float32)
    pulls = np.empty((n_parts, block, dim), np.float32)
    factors = np.empty((n_parts, block), np.float32)
    total = 0.0
    for start in range(0, n, block):
        rows = min(block, n - start)
        mine = z1[start : start + rows]
        for part in numba.prange(n_parts):
            first, last = part * _BLOCK_COLUMNS, min((part + 1) * _BLOCK_COLUMNS, m)
            piece = scores[first * rows : last * rows].reshape((rows, last - first))
            np.dot(mine, z2[first:last].T, piece)
            bits = np.empty(last - first, np.int32)
            _exp_rows(piece, highest[part], norms[part], bits)
            np.dot(piece, z2[first:last], pulls[part, :rows])
        for i in range(rows):
            top = highest[0, i]
            for part in range(n_parts):
                top = max(top, highest[part, i])
            norm = 0.0
            for part in range(n_parts):
                norm += np.exp(np.float64(highest[part, i] - top)) * norms[part, i]
            total += top + np.log(norm)
            for d in range(dim):
                dz1[start + i, d] = 0
            for part in range(n_parts):
                factor = np.float32(np.exp(np.float64(highest[part, i] - top)) / norm)
                factors[part, i] = factor
                for d in range(dim):
                    dz1[start + i, d] += factor * pulls[part, i, d]
        for part in numba.prange(n_parts):
            first, last = part * _BLOCK_COLUMNS, min((part + 1) * _BLOCK_COLUMNS, m)
            piece = scores[first * rows : last * rows].reshape((rows, last - first))
            scaled = np.empty((rows, dim), np.float32)
            for i in range(rows):
                for d in range(dim):
                    scaled[i, d] = factors[part, i] * mine[i, d]
            pushed = np.dot(piece.T, scaled)
            for j in range(last - first):
                for d in range(dim):
                    dz2[first + j, d] += pushed[j, d]
    return total, dz1, dz2
