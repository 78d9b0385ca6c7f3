"""Fitting in a workspace: its inputs and outputs, what it changes, and what it must not lose."""

import dataclasses
import json

import numpy as np
import pytest
import scipy.sparse as sp
from published_models import PUBLISHED
from taste_workspace import N_ITEMS, N_TEXT, N_USERS, add_vectors, taste_vectors, two_tastes, ws  # noqa: F401

from reclm_lite.cf import names, scorers, store, untrained
from reclm_lite.cf.encoders import ENCODERS, PublishedEncoder
from reclm_lite.cf.fit import Inputs, fit, fit_arrays, settings_of
from reclm_lite.cf.models import MODELS, TRAINED
from reclm_lite.cf.models.biasmf import BiasMF
from reclm_lite.cf.training import TrainConfig, train
from reclm_lite.cf.validation import validator
from reclm_lite.cf.vectors import Vectors
from reclm_lite.data.dataset import load_split
from reclm_lite.errors import InputError, MissingArtefactError, ModelError
from reclm_lite.evaluate.protocol import evaluate, evaluate_validation
from reclm_lite.kernels.sampling import sample_negatives


def quick(model="lightgcn", **inputs):
    return fit_arrays(Inputs(two_tastes(), **inputs), model, epochs=6)


# -- what is learned ------------------------------------------------------------


@pytest.mark.parametrize("model", TRAINED)
@pytest.mark.parametrize("text", [None, taste_vectors(N_ITEMS)], ids=["ids", "text"])
def test_default_models_learn_two_tastes(model, text):
    fitted = fit_arrays(Inputs(two_tastes(), text=text), model, epochs=15)
    recall = evaluate(two_tastes(), fitted, "full").means["recall@20"]
    assert recall > 0.95
    assert fitted.metrics["ndcg@20"] > 0.3
    assert fitted.user_ready.sum() == N_USERS - 2


def test_text_carries_taste_to_unseen_items():
    fitted = fit_arrays(Inputs(two_tastes(), text=taste_vectors(N_ITEMS)), "lightgcn", epochs=15)
    assert evaluate(two_tastes(), fitted, "unseen", (1,)).means["recall@1"] > 0.9


@pytest.mark.parametrize("model", PUBLISHED)
def test_paper_preset_is_the_published_one(model):
    settings = settings_of(model, "paper")
    l2 = 1e-5 if model in ("sgl", "simgcl") else 1e-7
    assert (settings.lr, settings.batch_size, settings.epochs, settings.l2) == (1e-3, 4096, 50, l2)
    assert (settings.dim, settings.loss, settings.n_negatives) == (32, "bpr", 1)
    if model in ("lightgcn", "sgl", "simgcl"):
        assert (settings.layer_weights, settings.self_loops, settings.items_propagated) == (
            (1.0, 1.0, 1.0),
            True,
            False,
        )
    if model in ("sgl", "simgcl"):
        assert (settings.contrast_weight, settings.temperature, settings.contrast_with) == (1e-2, 0.1, "all")
    fitted = fit_arrays(Inputs(two_tastes(), text=taste_vectors(N_ITEMS)), model, preset="paper", epochs=2)
    assert fitted.vectors.relu_dim == (32 if model == "ncf" else 0)
    assert fitted.user_vectors.shape == (N_USERS, 32 + fitted.vectors.relu_dim) and len(fitted.vectors.bias) == 0
    np.testing.assert_allclose(np.linalg.norm(fitted.item_vectors[:, :32], axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("preset", ["default", "paper"])
@pytest.mark.parametrize("model", TRAINED)
def test_equal_seeds_give_equal_bits_at_any_number_of_threads(model, preset):
    inputs = Inputs(two_tastes(), text=taste_vectors(N_ITEMS), user_profiles=taste_vectors(N_USERS))

    def bits(**arguments):
        fitted = fit_arrays(inputs, model, preset=preset, epochs=2, **arguments)
        bias = b"" if len(fitted.vectors.bias) == 0 else fitted.vectors.bias.tobytes()
        return fitted.user_vectors.tobytes() + fitted.item_vectors.tobytes() + bias

    one = bits(n_threads=1)
    assert one == bits(n_threads=1) == bits(n_threads=2)
    assert one != bits(n_threads=1, seed=1)


# -- profiles -------------------------------------------------------------------


WITH_TOWER = [model for model in TRAINED if ENCODERS[settings_of(model).encoder].profiles_beside]


@pytest.mark.parametrize("model", WITH_TOWER)
def test_profiles_never_cost_validation_ndcg(model):
    """Gates are chosen by validation, and closed ones are among the choices: also where profiles are noise."""
    noise = np.random.default_rng(0).standard_normal((N_USERS, N_TEXT), dtype=np.float32)
    text = taste_vectors(N_ITEMS)
    base = quick(model, text=text)
    fused = quick(model, text=text, user_profiles=noise)
    assert fused.metrics["ndcg@20"] >= base.metrics["ndcg@20"]
    assert {"gate_users", "gate_items"} <= set(fused.params)


def test_closed_gates_leave_exactly_the_base():
    text = taste_vectors(N_ITEMS)
    nothing = np.zeros((N_USERS, N_TEXT), np.float32)
    base, fused = quick(text=text), quick(text=text, user_profiles=nothing)
    assert fused.params["gate_users"] == 0
    assert np.array_equal(base.user_vectors, fused.user_vectors) and np.array_equal(
        base.item_vectors, fused.item_vectors
    )
    assert np.array_equal(base.user_ready, fused.user_ready)


def test_a_profile_that_helps_is_used_and_speaks_for_a_user_without_history():
    """Histories of one item hardly show the taste; profiles tell it."""
    split = two_tastes()
    train_matrix = np.zeros((N_USERS, N_ITEMS), np.float32)
    for user, items in enumerate(np.split(split.train.indices, split.train.indptr[1:-1])):
        train_matrix[user, items[:1]] = 1
    split = dataclasses.replace(split, train=sp.csr_matrix(train_matrix))
    inputs = Inputs(split, text=taste_vectors(N_ITEMS))
    base = fit_arrays(inputs, "lightgcn", epochs=2)
    fused = fit_arrays(dataclasses.replace(inputs, user_profiles=taste_vectors(N_USERS)), "lightgcn", epochs=2)
    assert fused.params["gate_users"] > 0
    assert fused.metrics["ndcg@20"] > base.metrics["ndcg@20"]
    assert fused.user_ready.all() and not base.user_ready[-1]
    best = fused.topk(np.array([118, 119]), 5)[0]
    assert (best[0] % 2 == 0).mean() > 0.5 and (best[1] % 2 == 1).mean() > 0.5


@pytest.mark.parametrize("model", ["lightgcn", "ncf"])
def test_a_profile_speaks_for_a_new_user_as_for_a_fitted_one(model):
    """The tower's columns lie between the dot product's and the ReLU part's; a new user's profile must land there."""
    split = two_tastes()
    profiles = taste_vectors(N_USERS)
    settings = dataclasses.replace(settings_of(model), epochs=1)
    fitted = fit_arrays(Inputs(split, text=taste_vectors(N_ITEMS), user_profiles=profiles), model, settings=settings)
    assert fitted.params["gate_users"] > 0
    tower = slice(settings.dim, 2 * settings.dim)
    histories = split.known()
    placed = fitted.folded(histories, profiles)
    assert placed.user_vectors.shape == fitted.user_vectors.shape
    np.testing.assert_allclose(placed.user_vectors[:, tower], fitted.user_vectors[:, tower], rtol=1e-4, atol=1e-5)
    mine = placed.topk(np.arange(N_USERS - 2), 5)[0] % 2 == np.arange(N_USERS - 2)[:, None] % 2
    assert mine.mean() > 0.9


def test_only_fused_parameters_belong_to_profiles():
    encoder = PublishedEncoder(N_USERS, N_ITEMS, 4, text=taste_vectors(N_ITEMS), user_profiles=taste_vectors(N_USERS))
    names = set(encoder.init(np.random.default_rng(0)))
    plain = set(PublishedEncoder(N_USERS, N_ITEMS, 4, text=taste_vectors(N_ITEMS)).init(np.random.default_rng(0)))
    assert names - plain == {"profile.w1", "profile.b1", "profile.w2", "profile.b2", "fuse.w", "fuse.b"}


# -- training -------------------------------------------------------------------


def test_negatives_are_never_known_positives_and_change_every_epoch():
    train_matrix = two_tastes().train
    indptr, indices = train_matrix.indptr.astype(np.int64), train_matrix.indices.astype(np.int32)
    users = np.repeat(np.arange(N_USERS, dtype=np.int32), np.diff(indptr))
    pool = np.unique(indices)
    one, two = (sample_negatives(users, indptr, indices, pool, 5, seed) for seed in (1, 2))
    assert not (train_matrix.toarray()[users[:, None], one] > 0).any()
    assert set(np.unique(one)) <= set(pool.tolist())
    assert (one != two).mean() > 0.8


def test_negatives_are_uniform_over_what_is_left():
    indptr, indices = np.array([0, 2], np.int64), np.array([1, 3], np.int32)
    drawn = sample_negatives(np.zeros(60_000, np.int32), indptr, indices, np.arange(6, dtype=np.int32), 1, 7)
    share = np.bincount(drawn.ravel(), minlength=6) / drawn.size
    np.testing.assert_allclose(share, [0.25, 0, 0.25, 0, 0.25, 0.25], atol=0.01)


def test_early_stopping_keeps_the_best_epoch():
    seen = []

    def validate(vectors):
        seen.append(vectors.users.copy())
        return 0.0, [0.1, 0.3, 0.2, 0.1, 0.4][len(seen) - 1]

    model = BiasMF(PublishedEncoder(N_USERS, N_ITEMS, 4))
    trained = train(model, two_tastes().train, TrainConfig(epochs=5, patience=2), validate=validate)
    assert trained.best_epoch == 2 and len(seen) == 4
    assert np.array_equal(trained.params["user_id"], seen[1])


def test_a_diverged_fit_says_so(ws):
    add_vectors(ws, "vectors/items", N_ITEMS)
    fit(ws, "lightgcn", epochs=1)
    before = ws.fingerprint("models/lightgcn")
    with np.errstate(all="ignore"), pytest.raises((ModelError, InputError), match="diverged|finite"):
        fit(ws, "lightgcn", epochs=5, assignments=["lr=1e38"])
    assert ws.fingerprint("models/lightgcn") == before


def test_validation_agrees_with_the_evaluators():
    split, fitted = two_tastes(), quick()
    means = evaluate_validation(split, fitted).means
    assert validator(split).of(fitted) == pytest.approx((means["recall@20"], means["ndcg@20"]))
    bias = fitted.vectors.bias
    assert validator(split)(Vectors(fitted.user_vectors, fitted.item_vectors, bias)) == pytest.approx(
        validator(split).of(fitted)
    )


def test_selection_never_reads_the_test_set():
    split = two_tastes()
    blind = dataclasses.replace(split, test=sp.csr_matrix(split.test.shape), unseen=sp.csr_matrix(split.test.shape))
    one, two = (fit_arrays(Inputs(s), "lightgcn", epochs=3) for s in (split, blind))
    assert np.array_equal(one.user_vectors, two.user_vectors)


# -- the workspace ----------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
def test_a_stored_model_reads_back_as_it_was(ws, model):
    add_vectors(ws, "vectors/items", N_ITEMS)
    fitted = fit(ws, model, epochs=2 if model in TRAINED else None)
    read = store.load(ws, model)
    users, items = np.arange(N_USERS), np.arange(N_ITEMS)
    assert np.array_equal(fitted.scores(users, items), read.scores(users, items))
    assert read.fingerprint == fitted.fingerprint == ws.fingerprint(f"models/{model}")
    assert read.metrics == pytest.approx(fitted.metrics) and "ndcg@20" in read.metrics
    row = ws.db.execute("SELECT model, profiles, metrics FROM runs").fetchone()
    assert row[:2] == (model, "none") and json.loads(row[2]) == pytest.approx(fitted.metrics)
    assert names.fitted_models(ws) == [(model, "none")]


def test_profiles_are_stored_beside_the_plain_model(ws):
    for name, n in (("vectors/items", N_ITEMS), ("vectors/user_profiles", N_USERS), ("vectors/item_profiles", N_ITEMS)):
        add_vectors(ws, name, n)
    for profiles in ("none", "users", "items", "both"):
        fit(ws, "lightgcn", profiles=profiles, epochs=1)
    assert names.fitted_models(ws) == [("lightgcn", p) for p in ("both", "items", "none", "users")]
    assert set(ws.provenance("models/lightgcn+users", made_by="")["inputs"]) == {
        "matrices/split",
        "vectors/items",
        "vectors/user_profiles",
    }


def test_missing_vectors_name_the_command(ws):
    with pytest.raises(MissingArtefactError, match="reclm embed items -w"):
        fit(ws, "lightgcn")
    add_vectors(ws, "vectors/items", N_ITEMS)
    with pytest.raises(MissingArtefactError, match="reclm profile users -w .* and then `reclm embed profiles -w"):
        fit(ws, "lightgcn", profiles="users")


def test_a_model_is_stale_when_its_vectors_change(ws):
    add_vectors(ws, "vectors/items", N_ITEMS)
    fit(ws, "lightgcn", epochs=1)
    ws.save("vectors/items", {"vectors": taste_vectors(N_ITEMS, seed=9)}, inputs={}, params={})
    with pytest.raises(MissingArtefactError, match="stale.*reclm fit lightgcn"):
        store.load(ws, "lightgcn")


def test_items_without_any_text_need_no_vectors(ws):
    with ws.db:
        ws.db.execute("UPDATE items SET title=''")
    assert not fit(ws, "lightgcn", epochs=1).params["text"]


def test_bad_requests_are_refused(ws):
    for arguments, message in (
        (dict(model="bert"), "model: expected one of"),
        (dict(model="lightgcn", preset="best"), "preset: expected"),
        (dict(model="lightgcn", profiles="all"), "profiles: expected"),
        (dict(model="popularity", profiles="users"), "takes no profiles"),
        (dict(model="lightgcn", epochs=0), "epochs: expected"),
        (dict(model="popularity", epochs=2), "not trained in epochs"),
    ):
        with pytest.raises(InputError, match=message):
            fit(ws, **arguments)


def test_non_finite_vectors_are_refused(ws):
    vectors = taste_vectors(N_ITEMS)
    vectors[3, 1] = np.nan
    ws.save("vectors/items", {"vectors": vectors}, inputs={}, params={})
    with pytest.raises(InputError, match="vectors/items: expected finite"):
        fit(ws, "lightgcn")


def test_an_interrupted_fit_leaves_the_old_model(ws, monkeypatch):
    add_vectors(ws, "vectors/items", N_ITEMS)
    fit(ws, "lightgcn", epochs=1)
    before = ws.fingerprint("models/lightgcn")

    def interrupt(done, total, note):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(ws, "lightgcn", epochs=5, progress=interrupt)
    assert ws.fingerprint("models/lightgcn") == before
    assert ws.db.execute("SELECT COUNT(*) FROM runs").fetchone()[0] == 1


def test_progress_reaches_its_total(ws):
    add_vectors(ws, "vectors/items", N_ITEMS)
    add_vectors(ws, "vectors/user_profiles", N_USERS)
    calls = []
    fit(
        ws, "lightgcn", profiles="users", epochs=3, progress=lambda done, total, note: calls.append((done, total, note))
    )
    assert [done for done, _, _ in calls] == list(range(1, len(calls) + 1))
    assert calls[-1][0] == calls[-1][1]
    assert "N@20" in calls[0][2] and "interactions/s" in calls[0][2]


# -- the interface ----------------------------------------------------------------


def test_random_scores_depend_on_seed_user_and_item_alone():
    all_scores = scorers.hash_scores(3, np.arange(50), np.arange(30))
    some = scorers.hash_scores(3, np.array([7, 2]), np.array([29, 0]))
    assert np.array_equal(some, all_scores[[7, 2]][:, [29, 0]])
    assert ((all_scores >= 0) & (all_scores < 1)).all() and abs(all_scores.mean() - 0.5) < 0.02
    assert not np.array_equal(all_scores, scorers.hash_scores(4, np.arange(50), np.arange(30)))


@pytest.mark.parametrize("k", [3, 15, 60])
def test_random_topk_masks_and_orders(k):
    split = two_tastes()
    fitted = untrained.baselines(split.train)[0]
    users, candidates = np.array([4, 119, 0]), np.arange(1, N_ITEMS, dtype=np.int32)
    ids, scores = fitted.topk(users, k, candidates=candidates, seen=split.train)
    for row, user in enumerate(users):
        allowed = np.setdiff1d(candidates, split.train[user].indices)
        values = fitted.scores([user], allowed)[0]
        expected = allowed[np.argsort(-values, kind="stable")][:k]
        assert ids[row][ids[row] >= 0].tolist() == expected.tolist()
        assert np.isneginf(scores[row][ids[row] < 0]).all()


def test_topk_of_a_model_agrees_with_its_scores():
    fitted, split = quick(), two_tastes()
    users = np.array([5, 0, 118])
    ids, scores = fitted.topk(users, 4, seen=split.known())
    for row, user in enumerate(users):
        values = fitted.scores([user], np.arange(N_ITEMS))[0]
        values[split.known()[user].indices] = -np.inf
        np.testing.assert_allclose(scores[row], np.sort(values)[::-1][:4], rtol=1e-5)
        assert not set(ids[row]) & set(split.known()[user].indices)


def test_split_is_loaded_fresh_only(ws):
    add_vectors(ws, "vectors/items", N_ITEMS)
    fit(ws, "popularity")
    ws.save(
        "matrices/interactions", {"users": np.zeros(1, np.int32), "items": np.zeros(1, np.int32)}, inputs={}, params={}
    )
    with pytest.raises(MissingArtefactError, match="reclm split"):
        load_split(ws)


def test_text_vectors_too_large_for_the_regression_are_refused():
    from reclm_lite.cf.encoders import text_regression

    with pytest.raises(ModelError, match=r"found values up to 1e\+18.*reclm embed items"):
        text_regression(np.full((40, 8), 1e18, np.float32), np.ones(40, np.float32), np.ones(40, bool))
