"""Fused masked top-k: its guarantees one by one, and its errors. The crossed suite is in another file."""

import numpy as np
import pytest
import scipy.sparse as sp
from kernel_cases import WAYS, isa, same_bits, small_integers  # noqa: F401 (a fixture)

from reclm_lite.errors import InputError
from reclm_lite.kernels import native, reference


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


@pytest.mark.parametrize("way", WAYS)
def test_arrays_that_are_not_contiguous_are_copied(isa, way):
    rng = np.random.default_rng(6)
    users, items = rng.standard_normal((10, 22), dtype=np.float32), rng.standard_normal((8, 90), dtype=np.float32)
    bias = rng.standard_normal(180, dtype=np.float32)
    strided = users[::2, 6::2], items.T, bias[::2]
    plain = [np.ascontiguousarray(array) for array in strided]
    assert same_bits(
        native.topk(strided[0], strided[1], 4, item_bias=strided[2], **WAYS[way]),
        native.topk(plain[0], plain[1], 4, item_bias=plain[2], **WAYS[way]),
    )


@pytest.mark.parametrize("way", WAYS)
def test_scores_that_overflow_are_ranked_first_or_never_and_nothing_crashes(isa, way):
    huge = np.float32(3e38)
    users = np.array([[huge, huge], [1, 0]], np.float32)
    items = np.array([[huge, 0], [-huge, 0], [huge, -huge], [0, 0]], np.float32)
    ids, scores = native.topk(users, items, 4, **WAYS[way])
    # Item 0 is +inf and item 1 -inf; item 2 is +inf where products are fused with sums, else inf - inf, a NaN.
    assert ids[0].tolist() in ([0, 3, -1, -1], [0, 2, 3, -1]) and scores[0, 0] == np.inf
    assert ids[1].tolist() == [0, 2, 3, 1]


@pytest.mark.parametrize("n_items", [30, 500])
@pytest.mark.parametrize("way", WAYS)
def test_integers_that_overflow_with_one_scale_alone_lose_nothing(isa, way, n_items):
    rng = np.random.default_rng(9)
    users = -np.float32(1e-27) * rng.random((9, 24), dtype=np.float32)
    items = np.float32(1e37) * rng.random((n_items, 24), dtype=np.float32)
    assert same_bits(native.topk(users, items, 20, **WAYS[way]), native.topk(users, items, 20))


@pytest.mark.parametrize("way", WAYS)
def test_denormal_vectors_are_ranked(isa, way):
    items = np.array([[1e-40], [3e-40], [2e-40], [0]], np.float32)
    ids, _ = native.topk(np.ones((1, 1), np.float32), items, 4, **WAYS[way])
    assert ids.tolist() == [[1, 2, 0, 3]]


@pytest.mark.parametrize("way", WAYS)
def test_a_negative_zero_ties_with_zero(isa, way):
    items = np.array([[-0.0], [0.0], [-0.0]], np.float32)
    ids, scores = native.topk(np.ones((1, 1), np.float32), items, 3, **WAYS[way])
    assert ids.tolist() == [[0, 1, 2]] and (scores == 0).all()


def test_the_gil_is_free_while_topk_runs():
    import threading

    rng = np.random.default_rng(7)
    users, items = (rng.standard_normal((n, 64), dtype=np.float32) for n in (600, 20000))
    done, ticks = threading.Event(), 0

    def rank():
        native.topk(users, items, 10, n_threads=1)
        done.set()

    thread = threading.Thread(target=rank)
    thread.start()
    while not done.wait(0.002):
        ticks += 1
    thread.join()
    assert ticks > 0


def test_topk_refuses_what_it_cannot_rank():
    users, items = np.ones((2, 3), np.float32), np.ones((4, 3), np.float32)
    with pytest.raises(InputError, match="items: expected 3 columns"):
        native.topk(users, np.ones((4, 2), np.float32), 1)
    with pytest.raises(InputError, match="k: expected an integer of at least 1, found 0"):
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
    with pytest.raises(InputError, match="k: expected an integer of at least 1, found 1.5"):
        native.topk(users, items, 1.5)
    with pytest.raises(InputError, match="users: expected a 2-dimensional array of float32, found float64"):
        native.topk(users.astype(float), items, 1)
    with pytest.raises(InputError, match="items: expected finite"):
        native.topk(users, np.full((4, 3), np.inf, np.float32), 1)
    with pytest.raises(InputError, match="item_bias: expected 4 values"):
        native.topk(users, items, 1, item_bias=np.zeros(3, np.float32))
    with pytest.raises(InputError, match="candidates: expected a 1-dimensional array of int32"):
        native.topk(users, items, 1, candidates=np.array([1]))
    with pytest.raises(InputError, match="threads"):
        native.topk(users, items, 1, n_threads=0)
    with pytest.raises(InputError, match="relu_dim: expected an integer of 0 to 3"):
        native.topk(users, items, 1, relu_dim=4)
    with pytest.raises(InputError, match="precision: expected one of float32, int8, found 'int4'"):
        native.topk(users, items, 1, precision="int4")
    with pytest.raises(InputError, match="found int8 with 3 columns, 1 of them ReLU"):
        native.topk(users, items, 1, relu_dim=1, precision="int8")
    with pytest.raises(InputError, match="found int8 with 65537 columns"):
        native.topk(np.ones((1, 65537), np.float32), np.ones((1, 65537), np.float32), 1, precision="int8")
