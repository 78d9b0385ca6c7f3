"""Cosine neighbors, against the NumPy oracle."""

import numpy as np
import pytest
from kernel_cases import isa, same_bits  # noqa: F401 (a fixture)

from reclm_lite.errors import InputError
from reclm_lite.kernels import native, reference


@pytest.mark.parametrize("n_vectors", [0, 1, 3, 97])
@pytest.mark.parametrize("n_queries", [0, 1, 3, 97])
def test_knn_agrees_with_the_reference(isa, n_queries, n_vectors):
    rng = np.random.default_rng(n_queries + n_vectors)
    queries, vectors = (rng.standard_normal((n, 8), dtype=np.float32) for n in (n_queries, n_vectors))
    own = rng.integers(-1, n_vectors, n_queries) if n_vectors else np.full(n_queries, -1)
    for n_threads in (1, 2, 5):
        rows, cosines = native.knn(queries, vectors, 6, own=own, n_threads=n_threads)
        expected_rows, expected = reference.knn(queries, vectors, 6, own=own)
        assert np.array_equal(rows, expected_rows)
        np.testing.assert_allclose(cosines, expected, rtol=1e-5, atol=1e-6)


def test_knn_gives_the_same_bits_at_any_number_of_threads():
    vectors = np.random.default_rng(1).standard_normal((4096, 12), dtype=np.float32)
    own = np.arange(4096, dtype=np.int32)
    one = native.knn(vectors, vectors, 5, own=own, n_threads=1)
    assert not (one[0] == own[:, None]).any()
    for n_threads in (2, 5):
        assert same_bits(native.knn(vectors, vectors, 5, own=own, n_threads=n_threads), one)


def test_the_length_of_a_vector_does_not_matter(isa):
    directions = np.array([[1, 0], [0, 1], [-1, 0]], np.float32)
    lengths = np.array([[1e-30], [1], [1e30]], np.float32)
    rows, cosines = native.knn(np.array([[1e-20, 0]], np.float32), directions * lengths, 3)
    assert rows.tolist() == [[0, 1, 2]] and cosines.tolist() == [[1, 0, -1]]


def test_equal_directions_go_to_the_lower_row(isa):
    lengths = 2 ** np.arange(-20, 20, dtype=np.float32)[:, None]
    vectors = lengths * np.array([[2, 1, 2]], np.float32)
    assert np.array_equal(native.knn(vectors[:7], vectors, 40)[0], np.tile(np.arange(40), (7, 1)))


def test_a_row_of_zeros_neither_finds_nor_is_found():
    vectors = np.array([[0, 0], [1, 0], [-1, 0], [0, 0]], np.float32)
    rows, cosines = native.knn(vectors, vectors, 4, own=np.arange(4))
    assert rows.tolist() == [[-1] * 4, [2, -1, -1, -1], [1, -1, -1, -1], [-1] * 4]
    assert np.isneginf(cosines[rows < 0]).all()


def test_knn_refuses_what_does_not_fit():
    vectors = np.ones((3, 2), np.float32)
    with pytest.raises(InputError, match="vectors: expected 2 columns"):
        native.knn(vectors, np.ones((3, 1), np.float32), 1)
    with pytest.raises(InputError, match="queries: expected finite"):
        native.knn(vectors * np.nan, vectors, 1)
    with pytest.raises(InputError, match="vectors: expected a 2-dimensional array of float32"):
        native.knn(vectors, vectors.astype(float), 1)
    with pytest.raises(InputError, match="k: expected an integer of at least 1"):
        native.knn(vectors, vectors, 0)
    with pytest.raises(InputError, match=r"own: expected rows within \[0, 3\) or -1, found 0 to 3"):
        native.knn(vectors, vectors, 1, own=np.array([0, 1, 3]))
    with pytest.raises(InputError, match=r"own: expected int32 or int64 \(3,\)"):
        native.knn(vectors, vectors, 1, own=np.array([0, 1]))
    with pytest.raises(InputError, match="own: expected int32 or int64"):
        native.knn(vectors, vectors, 1, own=np.zeros(3))
