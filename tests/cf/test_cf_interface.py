"""What every stage asks of a fitted model: scores and top-k agree, whatever the scores are made of; storage loses
nothing."""

import numpy as np
import pytest
import scipy.sparse as sp
from small_splits import number

from reclm_lite.cf import names, store
from reclm_lite.cf.fitted import FittedModel
from reclm_lite.cf.models import popularity, random
from reclm_lite.cf.ranking import rank_rows, renumber_columns, take_rows
from reclm_lite.cf.scorers import hash_scores
from reclm_lite.errors import InputError, WorkspaceError
from reclm_lite.workspace import Workspace

N_USERS, N_ITEMS, DIM = 23, 31, 7
RNG = np.random.default_rng(0)
USERS, ITEMS = (RNG.standard_normal((n, DIM), dtype=np.float32) for n in (N_USERS, N_ITEMS))
BIAS = RNG.standard_normal(N_ITEMS, dtype=np.float32)
SEEN = sp.csr_matrix((RNG.random((N_USERS, N_ITEMS)) < 0.2).astype(np.float32))


def model(kind: str) -> FittedModel:
    if kind == "random":
        return random.fit(SEEN, random.Settings(), seed=3)
    if kind == "popularity":
        return popularity.fit(SEEN, popularity.Settings())
    ready = np.ones(N_USERS, bool)
    bias = None if kind == "dot" else BIAS
    return FittedModel.of_vectors("ncf", USERS, ITEMS, bias, ready, relu_dim=3 if kind == "relu" else 0)


KINDS = ("dot", "bias", "relu", "random", "popularity")


def expected_scores(kind: str) -> np.ndarray:
    dot = DIM - 3
    if kind == "relu":
        relu = np.maximum(USERS[:, None, dot:] + ITEMS[None, :, dot:], 0).sum(axis=2)
        return USERS[:, :dot] @ ITEMS[:, :dot].T + relu + BIAS
    return USERS @ ITEMS.T + (BIAS if kind == "bias" else 0)


@pytest.mark.parametrize("kind", ["dot", "bias", "relu"])
def test_scores_are_those_of_the_formula(kind):
    got = model(kind).scores(np.arange(N_USERS), np.arange(N_ITEMS))
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected_scores(kind), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("with_candidates", [False, True])
def test_topk_is_the_scores_sorted_masked_and_ties_to_the_lower_id(kind, with_candidates):
    fitted, users = model(kind), np.array([4, 0, 22, 9])
    candidates = np.arange(0, N_ITEMS, 3, dtype=np.int32) if with_candidates else np.arange(N_ITEMS, dtype=np.int32)
    scores = fitted.scores(users, candidates).astype(np.float64)
    scores[SEEN[users][:, candidates].toarray() > 0] = -np.inf
    order = np.argsort(-scores, axis=1, kind="stable")[:, :6]
    ids, best = fitted.topk(users, 6, candidates=candidates if with_candidates else None, seen=SEEN)
    np.testing.assert_array_equal(
        ids, np.where(np.isfinite(np.take_along_axis(scores, order, 1)), candidates[order], -1)
    )
    np.testing.assert_allclose(best, np.take_along_axis(scores, order, 1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_any_number_of_threads_gives_the_same_bits(kind):
    one, two = (model(kind).topk(np.arange(N_USERS), 5, seen=SEEN, n_threads=n) for n in (1, 2))
    assert one[0].tobytes() == two[0].tobytes() and one[1].tobytes() == two[1].tobytes()


@pytest.mark.parametrize("kind", KINDS)
def test_who_has_everything_gets_nothing_and_k_may_exceed_the_catalogue(kind):
    everything = sp.csr_matrix(np.ones((N_USERS, N_ITEMS), np.float32))
    ids, scores = model(kind).topk(np.array([1]), N_ITEMS + 5, seen=everything)
    assert ids.shape == (1, N_ITEMS + 5) and (ids == -1).all() and np.isneginf(scores).all()
    ids, _ = model(kind).topk(np.array([1]), N_ITEMS + 5)
    assert sorted(ids[0, :N_ITEMS]) == list(range(N_ITEMS)) and (ids[0, N_ITEMS:] == -1).all()


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_stored_is_what_is_read(kind, tmp_path):
    fitted = model(kind)
    with Workspace.create(tmp_path / "ws") as ws:
        number(ws, N_USERS, N_ITEMS)
        fingerprint = store.save(fitted, ws, inputs={})
        loaded = store.load(ws, fitted.name)
        assert names.fitted_models(ws) == [(fitted.name, "none")]
    assert loaded.fingerprint == fingerprint and loaded.vectors.relu_dim == fitted.vectors.relu_dim
    for got, before in zip(loaded.topk(np.arange(N_USERS), 4), fitted.topk(np.arange(N_USERS), 4), strict=True):
        np.testing.assert_array_equal(got, before)


def test_a_model_of_an_unknown_kind_of_scorer_is_refused(tmp_path):
    arrays = {"user_vectors": USERS[:, :0], "item_vectors": ITEMS[:, :0], "user_ready": np.ones(N_USERS, np.uint8)}
    with Workspace.create(tmp_path / "ws") as ws:
        number(ws, N_USERS, N_ITEMS)
        ws.save("models/ease", arrays, inputs={}, params={"scorer": "psychic"})
        with pytest.raises(InputError, match="scorer: expected one of dense, sparse, filter, found 'psychic'"):
            store.load(ws, "ease")
        ws.save("models/ease", arrays, inputs={}, params={"scorer": "dense"})
        with pytest.raises(WorkspaceError, match="damaged.*reclm fit ease"):
            store.load(ws, "ease")


def test_hashed_scores_depend_on_seed_user_and_item_alone():
    whole = hash_scores(5, np.arange(40), np.arange(90))
    np.testing.assert_array_equal(hash_scores(5, np.array([7]), np.array([3, 80])), whole[7:8, [3, 80]])
    assert whole.min() >= 0 and whole.max() < 1 and abs(whole.mean() - 0.5) < 0.02
    assert (hash_scores(6, np.arange(40), np.arange(90)) != whole).mean() > 0.99
    ranks = whole.argsort(axis=1).argsort(axis=1)
    between = np.corrcoef(ranks)[np.triu_indices(40, 1)]
    assert abs(between.mean()) < 0.02 and np.abs(between).max() < 0.5, "one user's order says nothing of another's"


def test_rows_and_columns_taken_are_scipys():
    rows, columns = np.array([5, 5, 0, 22]), np.arange(1, N_ITEMS, 4)
    assert (take_rows(SEEN, rows) != SEEN[rows]).nnz == 0
    assert (renumber_columns(SEEN, columns) != SEEN[:, columns]).nnz == 0
    assert take_rows(SEEN, rows[:0]).shape == (0, N_ITEMS)


def test_an_error_in_a_block_is_raised_not_swallowed():
    def score(start, stop):
        return np.full((stop - start, 4), np.nan if start else 1.0, np.float32)

    with pytest.raises(InputError):
        rank_rows(score, 10, 4, 2, block=3, n_threads=2)
