"""Generated graphs: exact sizes, degrees like those of real data, communities, held-out interactions."""

import numpy as np
import pytest
import scipy.sparse as sp

from reclm_lite.bench.random_graphs import NEWS, Shape, hold_out, normalized_adjacency, power_law
from reclm_lite.errors import InputError


def degrees(matrix: sp.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    return np.diff(matrix.indptr), np.bincount(matrix.indices, minlength=matrix.shape[1])


@pytest.mark.parametrize(
    "sizes", [(29_858, 40_981, 810_128), (300, 200, 2_000), (40, 40, 400), (5, 7, 8), (20, 30, 10), (1, 4, 1)]
)
def test_power_law_has_exactly_the_interactions_asked_for_and_none_twice(sizes):
    matrix = power_law(*sizes, seed=3)
    assert matrix.shape == sizes[:2] and matrix.nnz == sizes[2]
    assert matrix.dtype == np.float32 and set(matrix.data) == {1.0}
    keys = np.repeat(np.arange(sizes[0]), np.diff(matrix.indptr)) * sizes[1] + matrix.indices
    assert (np.diff(keys) > 0).all()
    for degree, n in zip(degrees(matrix), sizes[:2], strict=True):
        assert degree.min() >= (1 if sizes[2] >= n else 0)


def test_power_law_is_a_function_of_its_seed():
    one, same, other = (power_law(300, 200, 2_000, seed) for seed in (1, 1, 2))
    assert (one != same).nnz == 0 and (one != other).nnz > 0


def test_power_law_has_degrees_like_a_public_check_in_graph():
    """Gowalla as LightGCN splits it: users from 8 to 811, mean 27; items of mean 20, the most visited by about
    1,400."""
    users, items = degrees(power_law(29_858, 40_981, 810_128))
    assert users.min() >= 5 and 600 <= users.max() <= 1200 and 12 <= np.median(users) <= 20
    assert 1000 <= items.max() <= 2000 and 5 <= np.median(items) <= 15
    assert 0.1 <= np.sort(items)[-len(items) // 100 :].sum() / items.sum() <= 0.3


def test_news_shape_has_short_histories_and_a_few_items_that_everyone_read():
    """Beside the MIND split: users 1 at the median and 26 at most; its first 1 % of items hold 40 %."""
    users, items = degrees(power_law(57_128, 2_386, 89_734, shape=NEWS))
    assert np.median(users) == 1 and users.max() == 26
    assert 0.3 <= np.sort(items)[-len(items) // 100 :].sum() / items.sum() <= 0.5


def test_ids_say_nothing_of_degree():
    users, items = degrees(power_law(3_000, 2_000, 40_000))
    for degree in (users, items):
        assert abs(np.corrcoef(np.arange(len(degree)), degree)[0, 1]) < 0.1


def test_communities_can_be_found_and_are_absent_where_none_are_planted():
    """Eight communities lift eight singular values of the normalized graph above those of chance."""
    planted, plain = (
        np.linalg.svd(
            normalized_adjacency(power_law(600, 500, 12_000, shape=shape))[:600, 600:].toarray(), compute_uv=False
        )
        for shape in (Shape(n_communities=8), Shape(n_communities=1))
    )
    assert planted[7] > 1.05 * plain[1] and planted[7] > 1.1 * planted[8]


@pytest.mark.parametrize("sizes", [(0, 5, 1), (5, 5, 0), (4, 4, 5), (5, 5, 26)])
def test_power_law_refuses_what_does_not_fit(sizes):
    with pytest.raises(InputError, match="interactions"):
        power_law(*sizes)


def test_hold_out_takes_a_share_of_each_user_and_never_all():
    matrix = power_law(300, 200, 3_000)
    kept, out = hold_out(matrix, 0.25)
    assert (kept + out != matrix).nnz == 0 and kept.multiply(out).nnz == 0
    assert np.diff(kept.indptr).min() >= 1 and 0.2 < out.nnz / matrix.nnz < 0.3


def test_normalized_adjacency_is_symmetric_with_a_largest_eigenvalue_of_one():
    joined = normalized_adjacency(power_law(60, 50, 500)).toarray()
    np.testing.assert_array_equal(joined, joined.T)
    assert np.linalg.eigvalsh(joined.astype(np.float64)).max() == pytest.approx(1.0, abs=1e-5)
