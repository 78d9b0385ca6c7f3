"""A peer of spmm: the plain loop that anyone would write first, compiled by numba. Import lazily: numba loads
slowly."""

import numba

from ...kernels._jit import compiled


@compiled(parallel=True)
def spmm_rows(indptr, indices, data, dense, out):
    """out = CSR @ dense, a row at a time, rows divided among threads. dense, out: float32 (n, dim)."""
    for row in numba.prange(len(indptr) - 1):
        for column in range(dense.shape[1]):
            out[row, column] = 0.0
        for entry in range(indptr[row], indptr[row + 1]):
            weight, source = data[entry], indices[entry]
            for column in range(dense.shape[1]):
                out[row, column] += weight * dense[source, column]
