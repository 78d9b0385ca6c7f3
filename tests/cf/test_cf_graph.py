"""Propagation over the graph against dense matrices, and its reused buffers."""

import numpy as np
import pytest
import scipy.sparse as sp

from reclm_lite.cf.graph import Graph
from reclm_lite.kernels import rows

N_USERS, N_ITEMS, DIM = 70, 31, 5


@pytest.fixture(scope="module")
def interactions():
    dense = np.random.default_rng(0).random((N_USERS, N_ITEMS)) < 0.2
    dense[:, 7] = False  # an item and a user on their own
    dense[3] = False
    return sp.csr_matrix(dense.astype(np.float32))


def plain(interactions, users, items, weights, self_loops):
    """sum_l weights[l] * (D^-1/2 A D^-1/2)^l by dense products in float64."""
    n = N_USERS + N_ITEMS
    adjacency = np.zeros((n, n))
    adjacency[:N_USERS, N_USERS:] = interactions.toarray()
    adjacency = adjacency + adjacency.T + (np.eye(n) if self_loops else 0)
    scale = 1 / np.sqrt(np.maximum(adjacency.sum(1), 1))
    adjacency = adjacency * scale[:, None] * scale[None, :]
    layer, total = np.vstack([users, items]).astype(np.float64), 0
    for weight in weights:
        total = total + weight * layer
        layer = adjacency @ layer
    return total[:N_USERS], total[N_USERS:]


def first_vectors(seed=0, dim=DIM):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((N_USERS, dim), dtype=np.float32), rng.standard_normal((N_ITEMS, dim), dtype=np.float32)


@pytest.mark.parametrize("self_loops", [False, True])
@pytest.mark.parametrize("weights", [(1.0,), (0.0, 1.0), (0.25, 0.25, 0.25, 0.25), (1.0, 0.5, 0.3, 0.2, 0.1)])
def test_propagation_is_the_weighted_sum_of_powers(interactions, weights, self_loops):
    users, items = first_vectors()
    before = users.copy(), items.copy()
    found = Graph(interactions, self_loops=self_loops).propagate(users, items, weights)
    for one, two in zip(found, plain(interactions, users, items, weights, self_loops), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-5)
    assert np.array_equal(users, before[0]) and np.array_equal(items, before[1])


def test_a_later_call_does_not_change_an_earlier_result(interactions):
    graph, weights = Graph(interactions), (0.4, 0.3, 0.2, 0.1)
    one = graph.propagate(*first_vectors(1), weights)
    kept = one[0].copy(), one[1].copy()
    graph.propagate(*first_vectors(2), weights)
    graph.without(np.arange(5)).propagate(*first_vectors(3, dim=DIM + 2), weights)
    assert np.array_equal(one[0], kept[0]) and np.array_equal(one[1], kept[1])
    again = graph.propagate(*first_vectors(1), weights)
    assert np.array_equal(again[0], kept[0]) and np.array_equal(again[1], kept[1])


@pytest.mark.parametrize("self_loops", [False, True])
def test_threads_do_not_change_a_bit_of_propagation(interactions, self_loops):
    one, two = (
        Graph(interactions, self_loops=self_loops, n_threads=n).propagate(*first_vectors(), (1.0, 1.0, 1.0))
        for n in (1, 2)
    )
    assert np.array_equal(one[0], two[0]) and np.array_equal(one[1], two[1])


def test_items_without_an_edge_are_known_with_and_without_self_loops(interactions):
    lonely = np.flatnonzero(np.bincount(interactions.indices, minlength=N_ITEMS) == 0).tolist()
    assert 7 in lonely
    assert (
        Graph(interactions).unknown_items.tolist()
        == Graph(interactions, self_loops=True).unknown_items.tolist()
        == lonely
    )


@pytest.mark.parametrize("n", [0, 1, 3, 97, 4096])
def test_scaled_rows_are_added_and_counted_into_the_total(n):
    rng = np.random.default_rng(0)
    out, vectors, total = (rng.standard_normal((n, 32), dtype=np.float32) for _ in range(3))
    scale = rng.random((n, 1), dtype=np.float32)
    wanted = out + scale * vectors
    wanted_total = total + np.float32(0.3) * wanted
    results = []
    for n_threads in (1, 2):
        results.append((out.copy(), total.copy()))
        rows.add_scaled_rows(results[-1][0], scale, vectors, results[-1][1], 0.3, n_threads=n_threads)
        np.testing.assert_allclose(results[-1][0], wanted, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(results[-1][1], wanted_total, rtol=1e-5, atol=1e-6)
    assert np.array_equal(results[0][0], results[1][0]) and np.array_equal(results[0][1], results[1][1])
