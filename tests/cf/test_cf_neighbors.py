"""Similar users: which vectors are used, who can be a neighbor, and text as the fallback."""

import numpy as np
import pytest
import scipy.sparse as sp
from small_splits import number

from reclm_lite.cf import store
from reclm_lite.cf.fitted import FittedModel
from reclm_lite.cf.neighbors import (
    BASIS_COLLABORATIVE,
    BASIS_NONE,
    BASIS_TEXT,
    find_neighbors,
    history_groups,
    neighbors,
)
from reclm_lite.data.dataset import Split, save_split
from reclm_lite.errors import InputError, MissingArtefactError
from reclm_lite.workspace import Workspace


def split_of(histories, n_items=6) -> Split:
    train = np.zeros((len(histories), n_items), np.float32)
    for user, items in enumerate(histories):
        train[user, items] = 1
    empty = sp.csr_matrix(train.shape, dtype=np.float32)
    return Split(sp.csr_matrix(train), empty, empty, empty, np.arange(n_items), np.zeros(0, np.int32))


# Users 0 to 3 have vectors; 4 and 5 one item; 6 nothing; 7 is user 0's twin.
HISTORIES = [[0, 1], [0, 2], [3, 4], [3, 5], [1], [4], [], [0, 1]]
VECTORS = np.array([[1, 0], [0.9, 0.1], [0, 1], [0.1, 0.9], [0, 1], [1, 0], [1, 1], [1, 0]], np.float32)
TEXT = np.array([[1, 0], [1, 0.1], [1, 0.2], [0, 1], [0.1, 1], [0.2, 1]], np.float32)
TEXT /= np.linalg.norm(TEXT, axis=1, keepdims=True)


def test_collaborative_neighbors_are_the_nearest_by_cosine():
    indices, similarity, basis = find_neighbors(split_of(HISTORIES), VECTORS, 2, item_text=TEXT)
    assert indices[0].tolist() == [1, 3] and indices[2].tolist() == [3, 1]
    assert similarity[0, 0] == pytest.approx(0.9 / np.hypot(0.9, 0.1), abs=1e-6)
    assert basis[:4].tolist() == [BASIS_COLLABORATIVE] * 4


def test_a_short_history_finds_neighbors_by_text():
    indices, _, basis = find_neighbors(split_of(HISTORIES), VECTORS, 2, item_text=TEXT)
    assert basis[4] == basis[5] == BASIS_TEXT
    # Item 1 is like items 0 and 2, whatever the fitted vector of user 4 says.
    assert set(indices[4]) == {0, 1}
    assert indices[5, 0] in (2, 3)


def test_nobody_is_their_own_neighbor_and_a_twin_is_not_one():
    indices, _, _ = find_neighbors(split_of(HISTORIES), VECTORS, 5, item_text=TEXT)
    groups = history_groups(split_of(HISTORIES).train)
    for user, row in enumerate(indices):
        found = row[row >= 0]
        assert groups[user] not in groups[found]
        assert len(set(groups[found])) == len(found)


def test_a_user_without_history_has_no_neighbors_and_is_nobodys():
    indices, similarity, basis = find_neighbors(split_of(HISTORIES), VECTORS, 5, item_text=TEXT)
    assert basis[6] == BASIS_NONE and (indices[6] == -1).all() and (similarity[6] == 0).all()
    assert 6 not in indices


def test_without_text_fitted_vectors_serve_short_histories():
    indices, _, basis = find_neighbors(split_of(HISTORIES), VECTORS, 1)
    assert basis[4] == BASIS_COLLABORATIVE and indices[4, 0] == 2


def test_lists_that_run_out_are_padded():
    indices, similarity, _ = find_neighbors(split_of([[0, 1], [2, 3]]), np.eye(2, dtype=np.float32), 4)
    assert indices.tolist() == [[1, -1, -1, -1], [0, -1, -1, -1]]
    assert np.isfinite(similarity).all()


def test_groups_are_those_of_equal_sets():
    matrix = sp.csr_matrix(([1, 1, 1, 1, 1], [2, 0, 0, 2, 1], [0, 2, 4, 4, 5]), shape=(4, 3))
    assert history_groups(matrix).tolist() == [0, 0, 1, 2]


def test_neighbors_are_stored_with_what_they_were_made_of(tmp_path):
    split = split_of(HISTORIES)
    with Workspace.create(tmp_path / "ws") as ws:
        with pytest.raises(MissingArtefactError, match="reclm split"):
            neighbors(ws)
        number(ws, len(HISTORIES), 6)
        save_split(ws, split, inputs={})
        with pytest.raises(MissingArtefactError, match="reclm fit lightgcn"):
            neighbors(ws)
        fitted = FittedModel.of_vectors("lightgcn", VECTORS, np.zeros((6, 2), np.float32), None, np.ones(8, bool))
        store.save(fitted, ws, inputs={"matrices/split": ws.fingerprint("matrices/split")})
        ws.save("vectors/items", {"vectors": TEXT}, inputs={}, params={})
        found = neighbors(ws, k=2)
        stored = ws.load("matrices/neighbors", made_by="reclm neighbors")
        assert set(stored.inputs) == {"matrices/split", "models/lightgcn", "vectors/items"}
        assert stored.arrays["indices"].dtype == np.int32 and stored.arrays["basis"].dtype == np.uint8
        assert stored.arrays["similarity"].dtype == np.float32
        assert np.array_equal(stored.arrays["indices"], found.indices)
        with pytest.raises(InputError, match="k: expected"):
            neighbors(ws, k=0)


def test_each_of_ten_thousand_users_gets_neighbors():
    rng = np.random.default_rng(0)
    histories = [rng.choice(500, 4, replace=False) for _ in range(10_000)]
    indices, _, _ = find_neighbors(split_of(histories, 500), rng.standard_normal((10_000, 32), dtype=np.float32), 5)
    assert (indices >= 0).all()


def test_neighbors_use_the_vectors_that_know_nothing_of_validation(tmp_path):
    split = split_of(HISTORIES)
    leaky = np.roll(VECTORS, 1, axis=0).astype(np.float32)
    with Workspace.create(tmp_path / "ws") as ws:
        number(ws, len(HISTORIES), 6)
        save_split(ws, split, inputs={})
        ready = np.ones(8, bool)
        fitted = FittedModel.of_vectors(
            "lightgcn", leaky, np.zeros((6, 2), np.float32), None, ready, train_user_vectors=VECTORS
        )
        store.save(fitted, ws, inputs={"matrices/split": ws.fingerprint("matrices/split")})
        expected, _, _ = find_neighbors(split, VECTORS, 2)
        assert np.array_equal(neighbors(ws, k=2).indices, expected)
        assert not np.array_equal(find_neighbors(split, leaky, 2)[0], expected)


def test_a_model_without_vectors_of_users_is_refused(tmp_path):
    from reclm_lite.cf.untrained import fit_untrained

    train = sp.csr_matrix(np.ones((3, 3), np.float32))
    none, items = sp.csr_matrix((3, 3), dtype=np.float32), np.arange(3, dtype=np.int32)
    split = Split(train, none, none, none, items, items[:0])
    with Workspace.create(tmp_path / "ws") as ws:
        number(ws, 3, 3)
        save_split(ws, split, inputs={})
        store.save(fit_untrained(split, "ease"), ws, inputs={})
        with pytest.raises(InputError, match="ease has no vectors of users.*reclm fit lightgcn"):
            neighbors(ws, 2, "ease")
