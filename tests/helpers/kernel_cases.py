"""What the top-k kernels' tests share: problems whose scores are exact in float32, and every way to solve them."""

import numpy as np
import pytest
import scipy.sparse as sp

from reclm_lite.kernels import native

# Each way must give the bits of the first.
WAYS = {
    "float32": {},
    "int8": {"precision": "int8"},
    "pruned": {"prune": True},
    "int8 pruned": {"precision": "int8", "prune": True},
}


@pytest.fixture(params=native.isas())
def isa(request):
    """Each instruction set of this processor in turn."""
    before = native.isa()
    native.use_isa(request.param)
    yield request.param
    native.use_isa(before)


def small_integers(rng, shape):
    """Vectors whose products are exact in float32, and often tie."""
    return rng.integers(-3, 4, size=shape).astype(np.float32)


def random_mask(rng, n_rows, n_cols, density):
    """A CSR of masked places, as scipy and as the kernels take it."""
    matrix = sp.csr_matrix((rng.random((n_rows, n_cols)) < density).astype(np.float32)) if n_rows and n_cols else None
    matrix = sp.csr_matrix((n_rows, n_cols), dtype=np.float32) if matrix is None else matrix
    matrix.sort_indices()
    return matrix, native.make_csr(matrix.indptr, matrix.indices, None, matrix.shape)


def same_bits(left, right):
    return np.array_equal(left[0], right[0]) and np.array_equal(left[1], right[1])
