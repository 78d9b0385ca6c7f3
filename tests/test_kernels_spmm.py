"""Sparse × dense against the NumPy oracle."""

import numpy as np
import pytest
import scipy.sparse as sp

from reclm_lite.errors import InputError
from reclm_lite.kernels import native, reference


def random_csr(n_rows, n_cols, density, seed=0):
    matrix = sp.random(n_rows, n_cols, density, format="csr", dtype=np.float32, random_state=np.random.default_rng(seed))
    return native.make_csr(matrix.indptr, matrix.indices, matrix.data, matrix.shape)


@pytest.mark.parametrize("n_rows,n_cols", [(1, 1), (7, 3), (255, 64), (257, 1000), (1500, 9)])
@pytest.mark.parametrize("dim", [1, 2, 7, 8, 31, 32, 33, 64, 100, 173])
def test_spmm_agrees_with_the_reference(n_rows, n_cols, dim):
    matrix = random_csr(n_rows, n_cols, 0.1)
    dense = np.random.default_rng(1).standard_normal((n_cols, dim), dtype=np.float32)
    expected = reference.spmm(matrix.indptr, matrix.indices, matrix.data, dense)
    np.testing.assert_allclose(native.spmm(matrix, dense), expected, rtol=1e-5, atol=1e-5)


def test_spmm_gives_the_same_bits_at_any_number_of_threads():
    matrix = random_csr(3001, 700, 0.05)  # large enough to be shared out
    dense = np.random.default_rng(2).standard_normal((700, 37), dtype=np.float32)
    one = native.spmm(matrix, dense, n_threads=1)
    for n_threads in (2, 3, 8):
        assert np.array_equal(one, native.spmm(matrix, dense, n_threads=n_threads))


def test_spmm_of_an_empty_graph_is_zero():
    empty = native.make_csr(np.zeros(6, np.int64), np.zeros(0, np.int32), None, (5, 4))
    assert np.array_equal(native.spmm(empty, np.ones((4, 3), np.float32)), np.zeros((5, 3)))
    nothing = native.make_csr(np.zeros(1, np.int64), np.zeros(0, np.int32), None, (0, 4))
    assert native.spmm(nothing, np.ones((4, 3), np.float32)).shape == (0, 3)
    assert native.spmm(empty, np.ones((4, 0), np.float32)).shape == (5, 0)


def test_spmm_writes_into_out():
    matrix = random_csr(20, 20, 0.3)
    dense = np.ones((20, 5), np.float32)
    out = np.full((20, 5), 7, np.float32)
    assert native.spmm(matrix, dense, out=out) is out
    assert np.array_equal(out, native.spmm(matrix, dense))
    with pytest.raises(InputError, match="shared with dense"):
        native.spmm(matrix, dense, out=dense)
    with pytest.raises(InputError, match="out: expected"):
        native.spmm(matrix, dense, out=np.zeros((20, 6), np.float32))


def test_spmm_refuses_what_does_not_fit():
    matrix = random_csr(4, 3, 0.5)
    with pytest.raises(InputError, match="dense: expected 3 rows, found 4"):
        native.spmm(matrix, np.ones((4, 2), np.float32))
    with pytest.raises(InputError, match="dense: expected a 2-dimensional array of float32, found float64"):
        native.spmm(matrix, np.ones((3, 2)))
    with pytest.raises(InputError, match=r"dense: expected finite numbers, found nan at \(1, 0\)"):
        native.spmm(matrix, np.array([[1, 1], [np.nan, 1], [1, 1]], np.float32))
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


def test_every_status_of_the_header_maps_to_an_exception():
    for status, (exception, _) in native.STATUS_ERRORS.items():
        with pytest.raises(exception, match="spmm: "):
            native.raise_for_status(status, "spmm")
    native.raise_for_status(0, "spmm")
    with pytest.raises(native.KernelError, match="unknown status 99"):
        native.raise_for_status(99, "spmm")


def test_a_missing_library_says_how_to_build_it(monkeypatch, tmp_path):
    import reclm_lite.kernels

    monkeypatch.setattr(reclm_lite.kernels, "__path__", [str(tmp_path)])
    with pytest.raises(native.KernelError, match="cmake --build build"):
        native.find_library()
