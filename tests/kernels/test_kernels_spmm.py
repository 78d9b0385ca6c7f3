"""Sparse × dense against the NumPy oracle."""

import numpy as np
import pytest
import scipy.sparse as sp

from reclm_lite.errors import InputError
from reclm_lite.kernels import native, reference

# None, one, few, an odd number and many of either.
SHAPES = [(0, 0), (0, 97), (97, 0), (1, 1), (3, 1), (1, 4096), (97, 3), (97, 97), (4096, 1), (4096, 97), (4096, 4096)]


@pytest.fixture(params=native.isas())
def isa(request):
    before = native.isa()
    native.use_isa(request.param)
    yield request.param
    native.use_isa(before)


def random_csr(n_rows, n_cols, n_entries, seed=0):
    """About n_entries at random places, so some rows and columns have none."""
    rng = np.random.default_rng(seed)
    shape = (n_rows, n_cols)
    n_entries = n_entries if n_rows and n_cols else 0
    rows, cols = (rng.integers(0, max(n, 1), n_entries) for n in shape)
    matrix = sp.csr_matrix((rng.standard_normal(n_entries).astype(np.float32), (rows, cols)), shape=shape)
    return native.make_csr(matrix.indptr, matrix.indices, matrix.data, matrix.shape)


def oracle(matrix, dense):
    """scipy's product in float64, itself held against the plain reference below."""
    return sp.csr_matrix((matrix.data.astype(float), matrix.indices, matrix.indptr), matrix.shape) @ dense.astype(float)


def test_the_oracle_agrees_with_the_plain_reference():
    matrix = random_csr(50, 40, 300)
    dense = np.random.default_rng(1).standard_normal((40, 7), dtype=np.float32)
    np.testing.assert_allclose(oracle(matrix, dense), reference.spmm(matrix.indptr, matrix.indices, matrix.data, dense))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("n_rows", "n_cols"), SHAPES)
def test_spmm_agrees_with_the_reference_at_any_number_of_threads(isa, n_rows, n_cols, dtype):
    matrix = random_csr(n_rows, n_cols, 3 * n_rows)
    dense = np.random.default_rng(1).standard_normal((n_cols, 64), dtype=np.float32)
    if dtype == "bfloat16":
        dense = native.from_bf16(native.to_bf16(dense))
    given = native.to_bf16(dense) if dtype == "bfloat16" else dense
    found = native.spmm(matrix, given, n_threads=1)
    np.testing.assert_allclose(found, oracle(matrix, dense), rtol=1e-5, atol=1e-5)
    for n_threads in (2, 5):
        assert np.array_equal(native.spmm(matrix, given, n_threads=n_threads), found)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("dim", [0, 1, 2, 3, 7, 8, 15, 16, 31, 32, 33, 64, 97, 100, 129, 173, 4096])
def test_any_number_of_columns_will_do(isa, dim, dtype):
    matrix = random_csr(37, 29, 150)
    dense = np.random.default_rng(1).standard_normal((29, dim), dtype=np.float32)
    half = native.to_bf16(dense)
    given, exact = (half, native.from_bf16(half)) if dtype == "bfloat16" else (dense, dense)
    np.testing.assert_allclose(native.spmm(matrix, given), oracle(matrix, exact), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_spmm_gives_the_same_bits_at_any_number_of_threads(isa, dtype):
    matrix = random_csr(3001, 700, 100_000)  # large enough to be shared out
    dense = np.random.default_rng(2).standard_normal((700, 48), dtype=np.float32)
    given = native.to_bf16(dense) if dtype == "bfloat16" else dense
    one = native.spmm(matrix, given, n_threads=1)
    for n_threads in (2, 3, 8):
        assert np.array_equal(one, native.spmm(matrix, given, n_threads=n_threads))


def test_a_result_too_large_for_the_caches_is_the_same(isa):
    matrix = random_csr(40_000, 100, 40_000)
    dense = np.random.default_rng(3).standard_normal((100, 32), dtype=np.float32)
    aligned = native.spmm(matrix, dense)
    unaligned = np.empty(40_000 * 32 + 1, np.float32)[1:].reshape(40_000, 32)
    native.spmm(matrix, dense, out=unaligned)
    assert aligned.ctypes.data % 64 == 0 and unaligned.ctypes.data % 64
    assert np.array_equal(aligned, unaligned)


@pytest.mark.parametrize("dim", [5, 16, 64, 100])
def test_layers_are_added_in_the_same_pass(isa, dim):
    matrix = random_csr(300, 200, 2000)
    dense = np.random.default_rng(4).standard_normal((200, dim), dtype=np.float32)
    product = native.spmm(matrix, dense)
    for out in (None, np.zeros((300, dim), np.float32), np.zeros((300, dim), np.uint16)):
        total = np.ones((300, dim), np.float32)
        assert native.spmm(matrix, dense, out=out, add_to=total, weight=0.25) is out
        np.testing.assert_allclose(total, 1 + 0.25 * product, rtol=1e-6, atol=1e-6)
        if out is not None:
            assert np.array_equal(out, product if out.dtype == np.float32 else native.to_bf16(product))


def test_the_transpose_is_the_backward_pass():
    """<A x, y> = <x, A^T y>, with A^T as a CSR of its own."""
    matrix = random_csr(60, 40, 500)
    transposed = sp.csr_matrix((matrix.data, matrix.indices, matrix.indptr), matrix.shape).T.tocsr()
    backward = native.make_csr(transposed.indptr, transposed.indices, transposed.data, transposed.shape)
    rng = np.random.default_rng(5)
    x, y = rng.standard_normal((40, 8), dtype=np.float32), rng.standard_normal((60, 8), dtype=np.float32)
    assert np.isclose((native.spmm(matrix, x) * y).sum(), (x * native.spmm(backward, y)).sum(), rtol=1e-4)


def test_bfloat16_rounds_to_nearest_even():
    values = np.array([1.0, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -2.5, 0.0, 1e-40], np.float32)
    expected = [1.0, 1.0, 1 + 2**-6, 1 + 2**-7, -2.5, 0.0]
    assert native.from_bf16(native.to_bf16(values))[:-1].tolist() == expected
    torch = pytest.importorskip("torch")
    many = np.random.default_rng(6).standard_normal(1000, dtype=np.float32)
    assert np.array_equal(native.from_bf16(native.to_bf16(many)), torch.from_numpy(many).bfloat16().float().numpy())


def test_bfloat16_refuses_what_it_cannot_hold():
    with pytest.raises(InputError, match="values: expected finite"):
        native.to_bf16(np.array([np.nan], np.float32))
    with pytest.raises(InputError, match="values: expected an array of float32"):
        native.to_bf16(np.ones(3))


def test_spmm_of_an_empty_graph_is_zero():
    empty = native.make_csr(np.zeros(6, np.int64), np.zeros(0, np.int32), None, (5, 4))
    assert np.array_equal(native.spmm(empty, np.ones((4, 3), np.float32)), np.zeros((5, 3)))
    nothing = native.make_csr(np.zeros(1, np.int64), np.zeros(0, np.int32), None, (0, 4))
    assert native.spmm(nothing, np.ones((4, 3), np.float32)).shape == (0, 3)
    assert native.spmm(empty, np.ones((4, 0), np.float32)).shape == (5, 0)


def test_spmm_writes_into_out():
    matrix = random_csr(20, 20, 120)
    dense = np.ones((20, 5), np.float32)
    out = np.full((20, 5), 7, np.float32)
    assert native.spmm(matrix, dense, out=out) is out
    assert np.array_equal(out, native.spmm(matrix, dense))
    with pytest.raises(InputError, match="shared with dense"):
        native.spmm(matrix, dense, out=dense)
    with pytest.raises(InputError, match="out: expected"):
        native.spmm(matrix, dense, out=np.zeros((20, 6), np.float32))


def test_a_dense_matrix_that_is_not_contiguous_is_copied():
    matrix = random_csr(20, 10, 80)
    wide = np.random.default_rng(7).standard_normal((10, 12), dtype=np.float32)
    assert np.array_equal(native.spmm(matrix, wide[:, ::2]), native.spmm(matrix, wide[:, ::2].copy()))
    with pytest.raises(InputError, match="out: expected writable, C-contiguous"):
        native.spmm(matrix, wide[:, ::2], out=np.zeros((20, 12), np.float32)[:, ::2])


def test_isolated_nodes_get_zero():
    matrix = native.make_csr(np.array([0, 0, 2, 2]), np.array([0, 2]), None, (3, 4))
    assert native.spmm(matrix, np.ones((4, 2), np.float32)).tolist() == [[0, 0], [2, 2], [0, 0]]


def test_spmm_refuses_what_does_not_fit():
    matrix = random_csr(4, 3, 6)
    with pytest.raises(InputError, match="dense: expected 3 rows, found 4"):
        native.spmm(matrix, np.ones((4, 2), np.float32))
    with pytest.raises(InputError, match="dense: expected a 2-dimensional array of float32, found float64"):
        native.spmm(matrix, np.ones((3, 2)))
    with pytest.raises(InputError, match=r"dense: expected finite numbers, found nan at \(1, 0\)"):
        native.spmm(matrix, np.array([[1, 1], [np.nan, 1], [1, 1]], np.float32))
    with pytest.raises(InputError, match="dense: expected finite"):
        native.spmm(matrix, np.full((3, 2), 0x7F80, np.uint16))
    shared = np.zeros((4, 3), np.float32)
    with pytest.raises(InputError, match="shared with add_to"):
        native.spmm(matrix, np.ones((3, 3), np.float32), out=shared, add_to=shared)
    with pytest.raises(InputError, match="threads"):
        native.spmm(matrix, np.ones((3, 2), np.float32), n_threads=0)


@pytest.mark.parametrize(
    "indptr,indices,message",
    [
        ([0, 1], [0], "expected 3 entries"),
        ([1, 1, 1], [0], "start at 0"),
        ([0, 2, 1], [0], "never decrease"),
        ([0, 1, 2], [0], "end at the number"),
        ([0, 1, 1], [3], "column index"),
        ([0, 1, 1], [-1], "column index"),
    ],
)
def test_a_malformed_matrix_is_refused(indptr, indices, message):
    with pytest.raises(InputError, match=message):
        native.make_csr(np.array(indptr), np.array(indices, np.int32), None, (2, 3))


def test_a_column_index_beyond_32_bits_is_refused():
    with pytest.raises(InputError, match="column index"):
        native.make_csr(np.array([0, 1]), np.array([2**32]), None, (1, 3))


def test_non_finite_weights_are_refused():
    with pytest.raises(InputError, match="data: expected finite"):
        native.make_csr(np.array([0, 1]), np.array([0]), np.array([np.inf], np.float32), (1, 1))
