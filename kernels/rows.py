"""Fused row-wise operations on dense arrays, in one pass over memory instead of NumPy's several. numba; import lazily.

Rows are independent, so the bits are the same with any number of threads. Arrays must be float32 and C-contiguous; only
their shapes are checked.
"""

import numba
import numpy as np

from reclm_lite.errors import InputError
from reclm_lite.kernels._jit import compiled, limited


def add_scaled_rows(
    out: np.ndarray,
    scale: np.ndarray,
    rows: np.ndarray,
    total: np.ndarray,
    weight: float,
    *,
    n_threads: int | None = None,
) -> None:
    """out += scale * rows; total += weight * out: self-loops after a sparse product, and the sum over layers.

    out, rows, total: float32 (n, dim). scale: float32 (n, 1).
    """
    if not out.shape == rows.shape == total.shape or scale.shape != (len(out), 1):
        found = f"{out.shape}, {rows.shape}, {total.shape}, {scale.shape}"
        raise InputError(f"rows: expected out, rows and total of one shape and a scale for each row, found {found}")
    with limited(n_threads, out.size):
        _add_scaled_rows(out, scale.reshape(-1), rows, total, np.float32(weight))


@compiled(parallel=True)
def _add_scaled_rows(
    out: np.ndarray, scale: np.ndarray, rows: np.ndarray, total: np.ndarray, weight: np.float32
) -> None:
    for row in numba.prange(len(out)):
        for d in range(out.shape[1]):
            value = out[row, d] + scale[row] * rows[row, d]
            out[row, d] = value
            total[row, d] += weight * value
