"""Top-k, every way to compute it × instruction set × sizes × threads, against the NumPy oracle."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import WAYS, isa, random_mask, same_bits, small_integers  # noqa: F401 (a fixture)

from reclm_lite.kernels import native, reference

SIZES = (0, 1, 3, 97, 4096)


def masked_problem(n_users, n_items, dim, seed=0):
    rng = np.random.default_rng(seed)
    candidates = np.flatnonzero(rng.random(n_items) < 0.8).astype(np.int32)
    seen, mask = random_mask(rng, n_users, n_items, 0.05)
    given = {"item_bias": small_integers(rng, n_items), "candidates": candidates}
    users, items = small_integers(rng, (n_users, dim)), small_integers(rng, (n_items, dim))
    return users, items, given | {"seen": mask}, given | {"seen_indptr": seen.indptr, "seen_indices": seen.indices}


@pytest.mark.parametrize("n_items", SIZES)
@pytest.mark.parametrize("n_users", [0, 1, 3, 97])
def test_topk_agrees_with_the_reference_every_way_at_any_number_of_threads(isa, n_users, n_items):
    users, items, given, for_reference = masked_problem(n_users, n_items, dim=9)
    ids, scores = reference.topk(users, items, 7, **for_reference)
    for way, options in WAYS.items():
        for n_threads in (1, 2, 5):
            found = native.topk(users, items, 7, n_threads=n_threads, **given, **options)
            assert same_bits(found, (ids, scores.astype(np.float32))), (way, n_threads)


@pytest.mark.parametrize("n_items", [1, 97])
def test_topk_of_many_users_agrees_with_the_reference(isa, n_items):
    users, items, given, for_reference = masked_problem(4096, n_items, dim=3)
    ids, scores = reference.topk(users, items, 3, **for_reference)
    for way, options in WAYS.items():
        found = native.topk(users, items, 3, n_threads=2, **given, **options)
        assert same_bits(found, (ids, scores.astype(np.float32))), way


@pytest.mark.parametrize("dim", SIZES)
def test_topk_agrees_with_the_reference_at_any_dim(isa, dim):
    users, items, given, for_reference = masked_problem(13, 97, dim)
    ids, scores = reference.topk(users, items, 5, **for_reference)
    for way, options in WAYS.items():
        assert same_bits(native.topk(users, items, 5, **given, **options), (ids, scores.astype(np.float32))), way


@pytest.mark.parametrize("dim,relu_dim", [(0, 1), (0, 33), (1, 4), (16, 3), (5, 97)])
@pytest.mark.parametrize("prune", [False, True])
def test_the_last_columns_may_add_a_relu_of_sums(isa, dim, relu_dim, prune):
    users, items, given, for_reference = masked_problem(25, 300, dim + relu_dim)
    ids, scores = reference.topk(users, items, 6, relu_dim=relu_dim, **for_reference)
    found = native.topk(users, items, 6, relu_dim=relu_dim, prune=prune, **given)
    assert same_bits(found, (ids, scores.astype(np.float32)))


@pytest.mark.parametrize("k", [1, 31, 250, 251, 1000])
def test_topk_agrees_with_the_reference_at_any_k(isa, k):
    users, items, given, for_reference = masked_problem(14, 250, dim=6)
    ids, scores = reference.topk(users, items, k, **for_reference)
    for way, options in WAYS.items():
        assert same_bits(native.topk(users, items, k, **given, **options), (ids, scores.astype(np.float32))), way


def test_every_way_gives_the_same_bits_on_real_numbers(isa):
    rng = np.random.default_rng(6)
    users = rng.standard_normal((70, 40), dtype=np.float32)
    # Long-tailed norms and biases, as training leaves them: what pruning feeds on.
    items = rng.standard_normal((3000, 40), dtype=np.float32) * rng.lognormal(0, 0.7, (3000, 1)).astype(np.float32)
    bias = rng.exponential(2, 3000).astype(np.float32)
    expected = native.topk(users, items, 20, item_bias=bias, n_threads=1)
    np.testing.assert_allclose(expected[1], reference.topk(users, items, 20, item_bias=bias)[1], rtol=1e-5, atol=1e-5)
    for options in WAYS.values():
        for n_threads in (1, 2, 5):
            assert same_bits(native.topk(users, items, 20, item_bias=bias, n_threads=n_threads, **options), expected)


@pytest.mark.parametrize("dim", [1, 2, 33, 64])
def test_a_score_has_the_same_bits_wherever_its_user_and_item_fall(isa, dim):
    rng = np.random.default_rng(7)
    users, items = (rng.standard_normal((n, dim), dtype=np.float32) for n in (29, 75))

    def table(first_user, first_item):
        ids, scores = native.topk(users[first_user:], items[first_item:], 75 - first_item)
        return np.take_along_axis(scores, np.argsort(ids, axis=1), axis=1)

    for first_user, first_item in ((1, 0), (5, 1), (11, 31), (17, 70)):
        assert np.array_equal(table(first_user, first_item), table(0, 0)[first_user:, first_item:])


@pytest.mark.parametrize("dim", [17, 64, 130])
def test_int8_finds_the_best_of_random_vectors_by_itself(isa, dim, caplog):
    rng = np.random.default_rng(8)
    users, items = (rng.standard_normal((n, dim), dtype=np.float32) for n in (40, 4000))
    with caplog.at_level("DEBUG", logger="reclm_lite.kernels.topk"):
        ids, _ = native.topk(users, items, 20, precision="int8")
    assert caplog.messages == ["topk: int8 left 0 of 40 users to float32"]
    assert np.array_equal(ids, reference.topk(users, items, 20)[0])


def test_int8_leaves_users_whose_best_lie_too_close_to_float32(isa, caplog):
    rng = np.random.default_rng(9)
    items = 1 + 1e-4 * rng.standard_normal((500, 30), dtype=np.float32)
    users = rng.standard_normal((8, 30), dtype=np.float32)
    with caplog.at_level("DEBUG", logger="reclm_lite.kernels.topk"):
        found = native.topk(users, items, 20, precision="int8")
    assert caplog.messages == ["topk: int8 left 8 of 8 users to float32"]
    assert same_bits(found, native.topk(users, items, 20))


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_ties_go_to_the_lower_id_whatever_the_problem(data):
    draw = data.draw
    n_users, n_items, dim = draw(st.integers(0, 14)), draw(st.integers(0, 80)), draw(st.integers(0, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    spread = draw(st.integers(0, 2))
    users, items = (rng.integers(-spread, spread + 1, (n, dim)).astype(np.float32) for n in (n_users, n_items))
    bias = rng.integers(-spread, spread + 1, n_items).astype(np.float32) if draw(st.booleans()) else None
    candidates = np.flatnonzero(rng.random(n_items) < 0.6).astype(np.int32) if draw(st.booleans()) else None
    seen, mask = random_mask(rng, n_users, n_items, draw(st.sampled_from([0, 0.3, 1])))
    k = draw(st.integers(1, 90))
    expected = reference.topk(
        users, items, k, item_bias=bias, candidates=candidates, seen_indptr=seen.indptr, seen_indices=seen.indices
    )
    for way, options in WAYS.items():
        found = native.topk(users, items, k, item_bias=bias, candidates=candidates, seen=mask, **options)
        assert same_bits(found, (expected[0], expected[1].astype(np.float32))), way
