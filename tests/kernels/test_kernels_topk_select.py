"""Top-k of given scores, against the NumPy oracle."""

import numpy as np
import pytest
from kernel_cases import isa, random_mask, same_bits  # noqa: F401 (a fixture)

from reclm_lite.errors import InputError
from reclm_lite.kernels import native, reference


@pytest.mark.parametrize("n_items", [0, 1, 3, 64, 97, 4096])
@pytest.mark.parametrize("n_rows", [0, 1, 3, 97, 4096])
def test_select_agrees_with_the_reference_including_ties(isa, n_rows, n_items):
    if n_rows * n_items > 400_000:
        n_rows = 150
    rng = np.random.default_rng(n_rows + n_items)
    scores = rng.integers(-9, 10, (n_rows, n_items)).astype(np.float32)
    scores[rng.random(scores.shape) < 0.05] = -np.inf
    scores[rng.random(scores.shape) < 0.01] = np.inf
    seen, mask = random_mask(rng, n_rows, n_items, 0.1)
    candidates = np.flatnonzero(rng.random(n_items) < 0.7).astype(np.int32)
    for subset in (None, candidates):
        expected = reference.select(scores, 8, candidates=subset, seen_indptr=seen.indptr, seen_indices=seen.indices)
        for n_threads in (1, 2, 5):
            assert same_bits(native.select(scores, 8, candidates=subset, seen=mask, n_threads=n_threads), expected)


@pytest.mark.parametrize("k", [1, 5, 99, 100, 101, 400])
def test_select_agrees_with_the_reference_at_any_k(isa, k):
    scores = np.random.default_rng(k).standard_normal((9, 100), dtype=np.float32)
    assert same_bits(native.select(scores, k), reference.select(scores, k))


def test_select_finds_what_topk_finds(isa):
    users, items = (np.random.default_rng(n).integers(-3, 4, (n, 5)).astype(np.float32) for n in (40, 300))
    assert same_bits(native.select(users @ items.T, 11), native.topk(users, items, 11))


def test_a_row_of_minus_infinity_has_nothing_to_select():
    ids, scores = native.select(np.full((2, 5), -np.inf, np.float32), 3)
    assert (ids == -1).all() and np.isneginf(scores).all()


def test_rows_that_are_not_contiguous_are_copied():
    scores = np.random.default_rng(0).standard_normal((6, 40), dtype=np.float32)
    assert same_bits(native.select(scores[::2, ::-1], 4), native.select(scores[::2, ::-1].copy(), 4))


def test_nan_is_refused_where_it_would_be_ranked(isa):
    for place in (0, 63, 64, 98):
        scores = np.zeros((3, 99), np.float32)
        scores[1, place] = np.nan
        with pytest.raises(InputError, match="without NaN"):
            native.select(scores, 2)
        others = np.delete(np.arange(99, dtype=np.int32), place)
        assert native.select(scores, 2, candidates=others)[0].tolist() == [others[:2].tolist()] * 3


def test_select_refuses_what_does_not_fit():
    scores = np.zeros((2, 4), np.float32)
    with pytest.raises(InputError, match="scores: expected a 2-dimensional array of float32"):
        native.select(scores.astype(float), 1)
    with pytest.raises(InputError, match="k: expected an integer of at least 1"):
        native.select(scores, 0)
    with pytest.raises(InputError, match=r"candidates: expected ids within \[0, 4\)"):
        native.select(scores, 1, candidates=np.array([-1, 2], np.int32))
    with pytest.raises(InputError, match="seen: expected the shape"):
        native.select(scores, 1, seen=native.make_csr(np.array([0, 0]), np.zeros(0, np.int32), None, (1, 4)))
    with pytest.raises(InputError, match="threads"):
        native.select(scores, 1, n_threads=0)
