"""Fold-in: equal to what a fit gives where that can be, close to it where the model learns, and defined for
everybody."""

import dataclasses

import numpy as np
import pytest
import scipy.sparse as sp
from small_splits import number, split_of

from reclm_lite.cf import id_fold, store
from reclm_lite.cf.fit import fit_arrays, settings_of
from reclm_lite.cf.inputs import Inputs
from reclm_lite.cf.models import TRAINED, UNTRAINED, module_of
from reclm_lite.cf.models.lightgcn import _PropagatedRow
from reclm_lite.cf.untrained import fit_untrained
from reclm_lite.data.dataset import Split
from reclm_lite.errors import InputError, ModelError
from reclm_lite.workspace import Workspace

N_GROUPS, N_USERS, N_ITEMS, N_PROFILE = 4, 160, 48, 5


def grouped(seed: int = 0) -> sp.csr_matrix:
    """Users and items of four tastes: three of four interactions are within the taste."""
    rng = np.random.default_rng(seed)
    same = np.equal.outer(np.arange(N_USERS) % N_GROUPS, np.arange(N_ITEMS) % N_GROUPS)
    return sp.csr_matrix((rng.random(same.shape) < np.where(same, 0.6, 0.06)).astype(np.float32))


SPLIT = split_of(grouped(), first_train=0.3)
TASTE = np.eye(N_PROFILE, dtype=np.float32)[np.arange(N_USERS) % N_GROUPS]


def without(split: Split, users: np.ndarray) -> Split:
    keep = np.ones(split.n_users, np.float32)
    keep[users] = 0.0

    def less(matrix):
        out = (sp.diags(keep) @ matrix).tocsr().astype(np.float32)
        out.eliminate_zeros()
        return out

    return dataclasses.replace(split, train=less(split.train), valid=less(split.valid))


def fitted_on(split: Split, model: str, preset: str = "default", epochs: int = 12, profiles=None, seed: int = 0):
    if model in UNTRAINED:
        return fit_untrained(split, model, seed=seed)
    settings = dataclasses.replace(settings_of(model, preset), epochs=epochs, dim=8)
    if preset == "paper":
        # So few interactions would take hundreds of the published epochs.
        settings = dataclasses.replace(settings, batch_size=128, lr=1e-2)
    return fit_arrays(Inputs(split, user_profiles=profiles), model, settings=settings, seed=seed, n_threads=1)


CACHE: dict = {}


def fitted(model: str, preset: str = "default", profiles: bool = False):
    key = model, preset, profiles
    if key not in CACHE:
        CACHE[key] = fitted_on(SPLIT, model, preset, profiles=TASTE if profiles else None)
    return CACHE[key]


def some(n: int) -> np.ndarray:
    return np.arange(n)


def recall(ids: np.ndarray, test: sp.csr_matrix) -> float:
    hits = [len(np.intersect1d(row, items.indices)) / max(items.nnz, 1) for row, items in zip(ids, test, strict=True)]
    return float(np.mean(hits))


@pytest.mark.parametrize("model", ["ease", "itemknn", "gfcf", "popularity"])
def test_a_fitted_history_ranks_as_the_user_does(model):
    base = fitted(model)
    known = SPLIT.known()
    folded = base.folded(known)
    everything = np.arange(N_USERS), np.arange(N_ITEMS)
    np.testing.assert_allclose(folded.scores(*everything), base.scores(*everything), atol=1e-5)


@pytest.mark.parametrize("model", ["lightgcn", "sgl", "simgcl"])
def test_a_graph_places_users_without_an_id_vector_where_the_fit_did(model):
    """Short histories: no ID vector, so that the user is what the graph brings, folded in or fitted."""
    known = grouped(3)
    rows = [known[user].indices[:3] if user % 2 else known[user].indices for user in range(N_USERS)]
    short = sp.csr_matrix(
        (np.ones(sum(map(len, rows)), np.float32), np.concatenate(rows), np.cumsum([0, *map(len, rows)])),
        shape=known.shape,
    )
    base = fitted_on(split_of(short, first_train=0.3), model, epochs=2)
    history = split_of(short, first_train=0.3).known()
    few = np.flatnonzero((np.diff(history.indptr) > 0) & (np.diff(history.indptr) < base.fold.min_id_interactions))
    assert len(few) > 20
    np.testing.assert_allclose(base.folded(history[few]).user_vectors, base.user_vectors[few], atol=1e-5)


def overlap(these: np.ndarray, those: np.ndarray) -> float:
    return float(np.mean([len(np.intersect1d(a, b)) / these.shape[1] for a, b in zip(these, those, strict=True)]))


# Held-out recall of folded users may fall short of a refit's by so much, and their lists be so much less like a refit's
# than those of a refit from another seed are. Of 32 users, one item is worth about 0.02 of recall.
RECALL_TOLERANCE, OVERLAP_TOLERANCE = 0.12, 0.15


@pytest.mark.parametrize(
    ("model", "preset"),
    [*((m, p) for m in TRAINED for p in ("default", "paper")), ("ease", ""), ("itemknn", ""), ("gfcf", "")],
)
def test_users_left_out_of_the_fit_rank_nearly_as_those_refitted(model, preset):
    out = np.arange(0, N_USERS, 5)
    known, test = SPLIT.known(), SPLIT.test[out]
    refit, before = fitted(model, preset), fitted_on(without(SPLIT, out), model, preset)
    lists = refit.topk(out, 10, seen=known)[0]
    folded = before.topk_for(known[out], 10)[0]
    other_seed = fitted_on(SPLIT, model, preset, seed=1).topk(out, 10, seen=known)[0]
    figures = recall(folded, test), recall(lists, test), overlap(folded, lists), overlap(other_seed, lists)
    said = "recall {:.3f}, refit {:.3f}; overlap {:.2f}, of another seed {:.2f}".format(*figures)
    assert figures[0] > figures[1] - RECALL_TOLERANCE, said
    assert figures[2] > min(figures[3], 0.9) - OVERLAP_TOLERANCE, said


@pytest.mark.parametrize(("model", "preset"), [(m, p) for m in TRAINED for p in ("default", "paper")])
def test_a_user_is_placed_the_same_in_any_company(model, preset):
    base, known = fitted(model, preset), SPLIT.known()
    together = base.folded(known[:9], n_threads=2).user_vectors
    alone = np.vstack([base.folded(known[user], n_threads=1).user_vectors for user in range(9)])
    assert together.dtype == np.float32 and together.tobytes() == alone.tobytes()


@pytest.mark.parametrize(
    ("model", "preset"), [("biasmf", "default"), ("ncf", "default"), ("biasmf", "paper"), ("lightgcn", "paper")]
)
def test_the_vector_found_is_a_minimum_of_the_loss(model, preset):
    base = fitted(model, preset)
    problem = id_fold._Problem(base.vectors, base.fold)
    steps = [step.prepare(SPLIT.known()[:4], None, None) for step in base.fold.steps]
    for user in range(4):
        items = SPLIT.known()[user].indices
        place = id_fold._User([of_user[user] for of_user in steps])
        others = np.setdiff1d(problem.pool, items)
        sides = problem._of(items), problem._of(others)
        e = problem.solve(place, items)
        lowest = problem._value(place, e, *sides)
        for step in np.random.default_rng(user).standard_normal((50, len(e))) * 0.05:
            assert problem._value(place, e + step, *sides) > lowest - 1e-3


@pytest.mark.parametrize(("model", "preset"), [("biasmf", "default"), ("biasmf", "paper"), ("lightgcn", "default")])
def test_the_gradient_is_that_of_the_value(model, preset):
    base = fitted(model, preset)
    problem = id_fold._Problem(base.vectors, base.fold)
    items = SPLIT.known()[1].indices
    sides = problem._of(items), problem._of(np.setdiff1d(problem.pool, items))
    place = id_fold._User([_PropagatedRow(0.5, np.full(8, 0.1))])
    e = np.random.default_rng(0).standard_normal(8) * 0.3
    gradient, curvature = problem._derivatives(place, e, *sides)
    numeric = [
        (problem._value(place, e + h, *sides) - problem._value(place, e - h, *sides)) / 2e-5 for h in np.eye(8) * 1e-5
    ]
    np.testing.assert_allclose(gradient, numeric, rtol=1e-4, atol=1e-4)
    second = [
        (problem._derivatives(place, e + h, *sides)[0] - problem._derivatives(place, e - h, *sides)[0]) / 2e-5
        for h in np.eye(8) * 1e-5
    ]
    np.testing.assert_allclose(curvature, second, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("model", "preset"), [("biasmf", "default"), ("lightgcn", "paper")])
def test_a_profile_places_somebody_without_history(model, preset):
    base = fitted(model, preset, profiles=True)
    if not base.fold.dim_profile:
        pytest.fail("users' profiles say everything of taste here, and were not used")
    nobody = sp.csr_matrix((N_GROUPS, N_ITEMS), dtype=np.float32)
    folded = base.folded(nobody, TASTE[:N_GROUPS])
    assert folded.user_ready.all()
    of_taste = [folded.topk(some(N_GROUPS), 6)[0][g] % N_GROUPS == g for g in range(N_GROUPS)]
    assert np.mean(of_taste) > 0.4, "by chance a quarter would be of the taste"
    blank = base.folded(nobody, np.zeros((N_GROUPS, N_PROFILE), np.float32))
    assert not blank.user_ready.any()


def test_a_fitted_user_with_a_profile_is_folded_near_the_fitted_vector():
    base = fitted("lightgcn", "paper", profiles=True)
    folded = base.folded(SPLIT.known(), TASTE)
    cosine = (folded.user_vectors * base.user_vectors).sum(axis=1)
    cosine /= np.linalg.norm(folded.user_vectors, axis=1) * np.linalg.norm(base.user_vectors, axis=1)
    assert np.median(cosine) > 0.9


@pytest.mark.parametrize("model", [*TRAINED, *UNTRAINED])
def test_nobody_and_no_history_have_defined_answers(model):
    base = fitted(model)
    none = base.folded(sp.csr_matrix((0, N_ITEMS), dtype=np.float32))
    assert none.n_users == 0 and none.topk(some(0), 5)[0].shape == (0, 5)
    blank = base.folded(sp.csr_matrix((2, N_ITEMS), dtype=np.float32))
    assert not blank.user_ready.any() and np.isfinite(blank.scores(some(2), some(N_ITEMS))).all()
    whole = sp.csr_matrix(np.ones((1, N_ITEMS), np.float32))
    ids, scores = base.topk_for(whole, 4)
    assert (ids == -1).all() and np.isneginf(scores).all(), "who has everything is recommended nothing"


@pytest.mark.parametrize("model", ["biasmf", "lightgcn", "ease", "popularity"])
def test_bad_histories_and_profiles_are_refused(model):
    base = fitted(model)
    with pytest.raises(InputError, match="histories: expected a sparse matrix of 48 columns"):
        base.folded(sp.csr_matrix((1, 3), dtype=np.float32))
    with pytest.raises(InputError, match="histories: expected a sparse matrix"):
        base.folded(np.ones((1, N_ITEMS)))
    with pytest.raises(InputError, match="histories: expected finite"):
        base.folded(sp.csr_matrix(np.full((1, N_ITEMS), np.nan)))
    with pytest.raises(InputError, match="leave them out"):
        base.folded(SPLIT.known()[:1], TASTE[:1])


def test_profiles_of_another_width_or_not_finite_are_refused():
    base = fitted("biasmf", profiles=True)
    for bad in (TASTE[:1, :3], np.full((1, N_PROFILE), np.inf), TASTE[:2]):
        with pytest.raises(InputError, match="profiles: expected finite float32"):
            base.folded(SPLIT.known()[:1], bad)


def test_repeated_and_weighted_entries_count_once():
    base = fitted("lightgcn")
    history = SPLIT.known()[:1]
    doubled = sp.csr_matrix(
        (np.full(2 * history.nnz, 3.0), np.tile(history.indices, 2), [0, 2 * history.nnz]), shape=history.shape
    )
    assert base.folded(doubled).user_vectors.tobytes() == base.folded(history).user_vectors.tobytes()


def test_a_model_stored_without_a_fold_state_says_so():
    for profiles, command in (("none", r"`reclm fit biasmf`"), ("users", r"`reclm fit biasmf --profiles users`")):
        with pytest.raises(ModelError, match=f"fit it again with {command}"):
            dataclasses.replace(fitted("biasmf"), fold=None, profiles=profiles).folded(SPLIT.known()[:1])


@pytest.mark.parametrize(
    ("model", "preset", "profiles"),
    [("ncf", "default", False), ("lightgcn", "paper", True), ("biasmf", "default", True)],
)
def test_what_is_stored_folds_alike(model, preset, profiles, tmp_path):
    base = fitted(model, preset, profiles)
    with Workspace.create(tmp_path / "ws") as ws:
        number(ws, SPLIT.n_users, SPLIT.n_items)
        store.save(base, ws, inputs={})
        loaded = store.load(ws, model)
    given = TASTE[:5] if profiles else None
    kept, before = (one.folded(SPLIT.known()[:5], given).user_vectors for one in (loaded, base))
    assert kept.tobytes() == before.tobytes()
    assert loaded.vectors.relu_dim == base.vectors.relu_dim


def test_fold_data_with_unknown_or_wrong_arrays_are_refused():
    fold = fitted("lightgcn").fold
    unpack, numbers = module_of("lightgcn").unpack_fold, fold.numbers()
    assert unpack(fold.arrays(), numbers, N_ITEMS).arrays().keys() == fold.arrays().keys()
    for name, array in {"surprise": np.zeros(1), "item_layers": fold.arrays()["item_layers"][:, :, :3]}.items():
        with pytest.raises(ValueError, match=name):
            unpack({**fold.arrays(), name: array}, numbers, N_ITEMS)


def test_the_prior_of_few_users_is_proper():
    for n in (0, 1, 2, 50):
        _, precision = id_fold.population(np.random.default_rng(n).standard_normal((n, 6)).astype(np.float32))
        assert np.linalg.eigvalsh(precision.astype(np.float64)).min() > 0
