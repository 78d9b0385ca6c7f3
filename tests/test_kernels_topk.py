"""Fused masked top-k against the NumPy oracle."""

import numpy as np
import pytest
import scipy.sparse as sp

from reclm_lite.errors import InputError
from reclm_lite.kernels import native, reference


def small_integers(rng, shape):
    """Vectors whose products are exact in float32, and often tie."""
    return rng.integers(-3, 4, size=shape).astype(np.float32)


@pytest.mark.parametrize("n_users", [0, 1, 7, 8, 9, 65])
@pytest.mark.parametrize("n_items,dim", [(1, 1), (15, 3), (16, 8), (17, 33), (200, 5)])
@pytest.mark.parametrize("k", [1, 4, 20, 300])
def test_topk_agrees_with_the_reference_including_ties(n_users, n_items, dim, k):
    rng = np.random.default_rng(n_users * 1000 + n_items)
    users, items = small_integers(rng, (n_users, dim)), small_integers(rng, (n_items, dim))
    bias = small_integers(rng, n_items)
    candidates = np.flatnonzero(rng.random(n_items) < 0.7).astype(np.int32)
    seen = sp.random(n_users, n_items, 0.2, format="csr", random_state=rng) if n_users else sp.csr_matrix((0, n_items))
    seen.sort_indices()
    mask = native.make_csr(seen.indptr, seen.indices, None, seen.shape)
    ids, scores = native.topk(users, items, k, item_bias=bias, candidates=candidates, seen=mask)
    expected_ids, expected_scores = reference.topk(
        users, items, k, item_bias=bias, candidates=candidates, seen_indptr=seen.indptr, seen_indices=seen.indices
    )
    assert np.array_equal(ids, expected_ids)
    assert np.array_equal(scores, expected_scores.astype(np.float32))


def test_topk_scores_agree_on_real_numbers():
    rng = np.random.default_rng(3)
    users, items = (rng.standard_normal((n, 48), dtype=np.float32) for n in (50, 333))
    _, scores = native.topk(users, items, 10)
    np.testing.assert_allclose(scores, reference.topk(users, items, 10)[1], rtol=1e-5, atol=1e-5)


def test_topk_breaks_ties_by_lower_id():
    ids, _ = native.topk(np.ones((3, 4), np.float32), np.ones((50, 4), np.float32), 5)
    assert np.array_equal(ids, np.tile(np.arange(5), (3, 1)))


def test_equal_items_tie_wherever_they_fall_in_a_panel():
    rng = np.random.default_rng(4)
    item = rng.standard_normal((1, 33), dtype=np.float32)
    ids, scores = native.topk(rng.standard_normal((9, 33), dtype=np.float32), np.repeat(item, 40, axis=0), 40)
    assert np.array_equal(ids, np.tile(np.arange(40), (9, 1)))
    assert (scores == scores[:, :1]).all()


def test_topk_gives_the_same_bits_at_any_number_of_threads():
    rng = np.random.default_rng(5)
    users, items = (rng.standard_normal((n, 20), dtype=np.float32) for n in (501, 777))  # large enough to be shared out
    one = native.topk(users, items, 7, n_threads=1)
    for n_threads in (2, 5):
        other = native.topk(users, items, 7, n_threads=n_threads)
        assert np.array_equal(one[0], other[0]) and np.array_equal(one[1], other[1])


def test_a_user_who_has_seen_everything_gets_nothing():
    seen = native.make_csr(np.array([0, 3, 3]), np.array([0, 1, 2]), None, (2, 3))
    ids, scores = native.topk(np.ones((2, 2), np.float32), np.ones((3, 2), np.float32), 2, seen=seen)
    assert ids.tolist() == [[-1, -1], [0, 1]]
    assert np.isneginf(scores[0]).all()


def test_seen_items_are_masked_even_when_stored_out_of_order():
    seen = native.make_csr(np.array([0, 3]), np.array([4, 0, 2]), None, (1, 5))
    ids, _ = native.topk(np.ones((1, 1), np.float32), np.ones((5, 1), np.float32), 5, seen=seen)
    assert ids.tolist() == [[1, 3, -1, -1, -1]]


def test_k_beyond_the_catalogue_is_padded():
    ids, scores = native.topk(np.ones((1, 1), np.float32), np.ones((2, 1), np.float32), 4)
    assert ids.tolist() == [[0, 1, -1, -1]] and scores.tolist() == [[1, 1, -np.inf, -np.inf]]


def test_no_candidates_and_no_dimensions_are_answered():
    none = np.zeros(0, np.int32)
    ids, _ = native.topk(np.ones((2, 3), np.float32), np.ones((4, 3), np.float32), 2, candidates=none)
    assert (ids == -1).all()
    bias = np.array([0, 2, 1], np.float32)
    ids, _ = native.topk(np.ones((1, 0), np.float32), np.ones((3, 0), np.float32), 2, item_bias=bias)
    assert ids.tolist() == [[1, 2]]


def test_topk_refuses_what_it_cannot_rank():
    users, items = np.ones((2, 3), np.float32), np.ones((4, 3), np.float32)
    with pytest.raises(InputError, match="items: expected 3 columns"):
        native.topk(users, np.ones((4, 2), np.float32), 1)
    with pytest.raises(InputError, match="k: expected at least 1"):
        native.topk(users, items, 0)
    with pytest.raises(InputError, match="users: expected finite"):
        native.topk(users * np.nan, items, 1)
    with pytest.raises(InputError, match="item_bias: expected finite"):
        native.topk(users, items, 1, item_bias=np.full(4, -np.inf, np.float32))
    with pytest.raises(InputError, match="ascending"):
        native.topk(users, items, 1, candidates=np.array([1, 1], np.int32))
    with pytest.raises(InputError, match=r"within \[0, 4\)"):
        native.topk(users, items, 1, candidates=np.array([4], np.int32))
    with pytest.raises(InputError, match="seen: expected the shape"):
        native.topk(users, items, 1, seen=native.make_csr(np.array([0, 0]), np.zeros(0, np.int32), None, (1, 4)))
