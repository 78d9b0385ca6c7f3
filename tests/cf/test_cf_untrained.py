"""Untrained models: a known answer for all, the formula of each, settings from validation, bad input."""

import dataclasses
import json
import os
import subprocess
import sys
import weakref

import numpy as np
import pytest
import scipy.sparse as sp
from small_splits import number, split_of

from reclm_lite.cf import store
from reclm_lite.cf.models import UNTRAINED, ease, gfcf, itemknn, popularity, random
from reclm_lite.cf.untrained import fit_untrained, walk
from reclm_lite.errors import InputError, ModelError
from reclm_lite.workspace import Workspace


def csr(rows, n_items=None):
    dense = np.asarray(rows, np.float32) if n_items is None else np.zeros((len(rows), n_items), np.float32)
    if n_items is not None:
        for user, items in enumerate(rows):
            dense[user, items] = 1.0
    return sp.csr_matrix(dense)


def checkerboard(n: int = 10) -> sp.csr_matrix:
    """User u has the items of u's parity except item u, so item u is the one to recommend."""
    grid = (np.add.outer(np.arange(n), np.arange(n)) % 2 == 0).astype(np.float32)
    np.fill_diagonal(grid, 0.0)
    return sp.csr_matrix(grid)


def sampled(n_users=60, n_items=40, seed=0, density=0.15) -> sp.csr_matrix:
    rng = np.random.default_rng(seed)
    return sp.csr_matrix((rng.random((n_users, n_items)) < density).astype(np.float32))


class RanksFromHistory:
    """What every model that ranks from a history has to do; a subclass names the module and closed settings."""

    module = None
    settings = None

    def fit(self, interactions, **kwargs):
        return self.module.fit(interactions, self.settings, **kwargs)

    def test_the_missing_square_of_the_checkerboard_is_recommended(self):
        known = checkerboard()
        ids, scores = self.fit(known).topk(np.arange(10), 1, seen=known)
        assert ids[:, 0].tolist() == list(range(10))
        assert (scores[:, 0] > 0).all()

    def test_topk_scores_and_the_matrix_agree(self):
        known = sampled()
        fitted = self.fit(known)
        everything = fitted.scores(np.arange(60), np.arange(40))
        weights = fitted.scorer.weights.score_rows(sp.identity(40, np.float32, format="csr"))
        np.testing.assert_allclose(everything, known @ weights, atol=1e-5)
        candidates = np.arange(1, 40, 2, dtype=np.int32)
        ids, scores = fitted.topk(np.arange(60), 5, candidates=candidates, seen=known)
        masked = np.where(known.toarray() > 0, -np.inf, everything)[:, candidates]
        order = np.argsort(-masked, axis=1, kind="stable")[:, :5]
        np.testing.assert_array_equal(ids, candidates[order])
        np.testing.assert_array_equal(scores, np.take_along_axis(masked, order, axis=1))

    def test_the_same_bits_at_any_number_of_threads_and_from_the_same_seed(self):
        known = sampled()
        one, three = (self.fit(known, n_threads=n, seed=4) for n in (1, 3))
        for n_threads, fitted in ((1, one), (3, three)):
            assert (
                fitted.topk(np.arange(60), 7, n_threads=n_threads)[1].tobytes()
                == one.topk(np.arange(60), 7)[1].tobytes()
            )

    def test_what_is_stored_ranks_alike(self, tmp_path):
        known = sampled()
        fitted = dataclasses.replace(self.fit(known), params={"a": 1}, metrics={"ndcg@20": 0.5})
        with Workspace.create(tmp_path / "ws") as ws:
            number(ws, *known.shape)
            store.save(fitted, ws, inputs={})
            loaded = store.load(ws, fitted.name)
        assert loaded.params == {"a": 1} and loaded.metrics == {"ndcg@20": 0.5} and loaded.user_ready.all()
        for kept, before in zip(loaded.topk(np.arange(60), 9), fitted.topk(np.arange(60), 9), strict=True):
            np.testing.assert_array_equal(kept, before)

    def test_isolated_items_and_users_without_history_have_defined_answers(self):
        known = csr([[0, 1], [0, 1], []], n_items=4)
        fitted = self.fit(known)
        assert fitted.user_ready.tolist() == [True, True, False]
        scores = fitted.scores(np.arange(3), np.arange(4))
        assert np.isfinite(scores).all()
        assert not scores[:, 2:].any(), "an item that nobody touched scores 0"
        assert not scores[2].any(), "who has no history scores everything 0"
        assert fitted.topk(np.array([2]), 2)[0].tolist() == [[0, 1]]

    @pytest.mark.parametrize("shape", [(0, 0), (0, 5), (5, 0), (5, 7)])
    def test_an_empty_matrix_is_fitted(self, shape):
        fitted = self.fit(sp.csr_matrix(shape, dtype=np.float32))
        ids, scores = fitted.topk(np.arange(shape[0]), 3)
        assert ids.shape == scores.shape == (shape[0], 3)
        if shape == (5, 7):
            assert ids.tolist() == [[0, 1, 2]] * 5 and not scores.any()
        if shape[1] == 0:
            assert (ids == -1).all()

    def test_interactions_that_are_not_finite_are_refused(self):
        known = sampled()
        known.data[3] = np.nan
        with pytest.raises(InputError, match=f"{self.module.__name__.split('.')[-1]}: expected finite interactions"):
            self.fit(known)

    def test_the_estimate_of_memory_grows_with_the_catalogue(self):
        small, large = (self.module.estimate_bytes(1000, n, 10_000, self.settings) for n in (5_000, 50_000))
        assert 0 < small < large


class TestEase(RanksFromHistory):
    module, settings = ease, ease.Settings(l2=2.0)

    def test_weights_are_the_papers(self):
        known = sampled()
        gram = (known.T @ known).toarray().astype(np.float64)
        inverse = np.linalg.inv(gram + 2.0 * np.eye(40))
        expected = np.eye(40) - inverse / np.diagonal(inverse)
        np.fill_diagonal(expected, 0.0)
        np.testing.assert_allclose(self.fit(known).scorer.weights.weights, expected, atol=1e-5)

    @pytest.mark.parametrize("tile", [1, 7, 16, 64])
    def test_the_sweep_inverts_over_any_tiles(self, tile, monkeypatch):
        monkeypatch.setattr(ease, "_TILE", tile)
        root = np.random.default_rng(1).standard_normal((50, 33)).astype(np.float32)
        matrix = root.T @ root + 5 * np.eye(33, dtype=np.float32)
        swept = matrix.copy()
        ease.sweep(swept, n_threads=2)
        np.testing.assert_allclose(-swept @ matrix, np.eye(33), atol=1e-4)
        np.testing.assert_array_equal(swept, swept.T)

    def test_float32_holds_where_the_matrix_is_badly_conditioned(self):
        """Largest to smallest eigenvalue here: 40,000. The error stays below one in a thousand of a usual weight."""
        rng = np.random.default_rng(3)
        popularity = 0.9 / np.arange(1, 301) ** 0.5
        known = sp.csr_matrix((rng.random((3000, 300)) < popularity).astype(np.float32))
        gram = (known.T @ known).toarray().astype(np.float64)
        inverse = np.linalg.inv(gram + 10.0 * np.eye(300))
        expected = -inverse / np.diagonal(inverse)
        np.fill_diagonal(expected, 0.0)
        got = ease.fit(known, ease.Settings(l2=10.0)).scorer.weights.weights
        assert np.abs(got - expected).max() < 1e-3 * np.abs(expected).mean()

    def test_a_matrix_that_is_not_positive_definite_is_refused(self):
        with pytest.raises(ModelError, match="larger l2"):
            ease.sweep(-np.eye(3, dtype=np.float32))

    def test_41_000_items_are_said_to_need_8_gigabytes(self):
        assert 7e9 < ease.estimate_bytes(30_000, 41_000, 810_000, ease.Settings()) < 9e9

    def test_there_is_one_matrix_at_a_time(self, monkeypatch):
        """The choice of l2, the figures and the refit each let go of the model before."""
        made, fit = [], ease.fit

        def watched(*args, **more):
            assert not any(scorer() for scorer in made), "an earlier model is still held"
            fitted = fit(*args, **more)
            made.append(weakref.ref(fitted.scorer.weights))
            return fitted

        monkeypatch.setattr(ease, "fit", watched)
        fit_untrained(split_of(sampled(200, 40)), "ease")
        assert len(made) >= 4

    @pytest.mark.parametrize("l2", [0.0, -1.0, float("nan")])
    def test_l2_must_be_above_zero(self, l2):
        with pytest.raises(InputError, match="l2: expected"):
            ease.Settings(l2=l2)


class TestItemKNN(RanksFromHistory):
    module, settings = itemknn, itemknn.Settings(k=30, shrink=0.5)

    def test_similarities_solved_by_hand(self):
        # Items 0 and 1 share both their users, 0 and 2 one of two and three.
        known = csr([[0, 1, 2], [0, 1], [2], [2]], n_items=3)
        weights = itemknn.nearest_items(known, 5, 1.0).toarray()
        assert weights[0, 1] == pytest.approx(2 / (2 + 1))
        assert weights[0, 2] == pytest.approx(1 / (np.sqrt(6) + 1))
        assert not np.diagonal(weights).any()
        np.testing.assert_allclose(weights, weights.T)

    def test_only_the_k_nearest_are_kept_ties_to_the_lower_id(self):
        known = csr([[0, 1, 2, 3], [0, 1, 2, 3], [0, 3]], n_items=4)
        weights = itemknn.nearest_items(known, 1, 0.0)
        # Item 0 is most like 3; items 1 and 2 are each other's; 3 is most like 0.
        assert weights.indices.tolist() == [3, 2, 1, 0]

    def test_blocks_do_not_show(self, monkeypatch):
        known = sampled()
        whole = itemknn.nearest_items(known, 7, 1.0)
        monkeypatch.setattr(itemknn, "_BLOCK_VALUES", 100)
        parts = itemknn.nearest_items(known, 7, 1.0)
        assert (whole != parts).nnz == 0 and whole.has_sorted_indices


class TestGFCF(RanksFromHistory):
    module, settings = gfcf, gfcf.Settings(alpha=0.3, rank=4)

    @staticmethod
    def filter_of(known, alpha, rank):
        dense = known.toarray().astype(np.float64)
        root_u = np.sqrt(np.maximum(dense.sum(axis=1), 1))
        root_i = np.sqrt(np.maximum(dense.sum(axis=0), 1))
        graph = dense / root_u[:, None] / root_i
        right = np.linalg.svd(graph)[2][:rank].T
        return graph.T @ graph + alpha * (right / root_i[:, None]) @ (right * root_i[:, None]).T

    @pytest.mark.parametrize("written_out", [True, False])
    def test_scores_are_the_papers(self, written_out, monkeypatch):
        from reclm_lite.cf import item_weights

        monkeypatch.setattr(item_weights, "WRITTEN_OUT_ITEMS", 100 if written_out else 0)
        known = sampled()
        got = self.fit(known).scores(np.arange(60), np.arange(40))
        np.testing.assert_allclose(got, known @ self.filter_of(known, 0.3, 4), atol=2e-5)

    def test_singular_vectors_agree_with_scipy(self):
        from scipy.sparse.linalg import svds

        graph = gfcf.normalized(sampled(900, 700, seed=2, density=0.02))[0]
        vectors, values = gfcf.singular_vectors(graph, 48)
        _, expected, right = svds(graph.astype(np.float64), 48, random_state=0)
        order = np.argsort(-expected)
        np.testing.assert_allclose(values, expected[order], atol=2e-4)
        # The first ones are each the same; the block as a whole spans nearly the same space.
        np.testing.assert_allclose(np.abs(np.sum(vectors[:, :8] * right[order[:8]].T, axis=0)), 1.0, atol=1e-3)
        assert np.linalg.svd(right @ vectors)[1].mean() > 0.99
        np.testing.assert_allclose(vectors.T @ vectors, np.eye(48), atol=1e-5)

    def test_the_rank_is_clipped_to_what_the_data_has(self):
        # Three groups without a user in common: rank 3.
        known = csr([[0, 1], [0, 1], [2, 3], [2, 3], [4, 5], [4, 5]], n_items=6)
        fitted = gfcf.fit(known, gfcf.Settings(alpha=0.3, rank=256))
        assert fitted.scorer.weights.factors.shape == (6, 3) and fitted.params["rank"] == 3


@pytest.mark.parametrize("model", UNTRAINED)
def test_open_settings_are_chosen_on_validation_and_recorded(model):
    split = split_of(sampled(200, 40))
    fitted = fit_untrained(split, model)
    assert set(fitted.metrics) == {"recall@20", "ndcg@20"} and fitted.params["refit"]
    assert all(value is not None for value in fitted.params.values())
    again = fit_untrained(dataclasses.replace(split, test=split.train), model)
    assert again.params == fitted.params and again.metrics == fitted.metrics, "the test set is not read"


def test_a_given_value_is_used_as_it_is_and_the_rest_is_chosen():
    split = split_of(sampled(200, 40))
    assert fit_untrained(split, "ease", ease.Settings(l2=7.0)).params["l2"] == 7.0
    params = fit_untrained(split, "itemknn", itemknn.Settings(k=3)).params
    assert params["k"] == 3 and params["shrink"] in itemknn.SHRINK_VALUES


def test_the_choice_is_the_best_on_validation():
    from reclm_lite.cf.validation import validator

    split = split_of(sampled(300, 40, seed=5))
    judge = validator(split)
    chosen = fit_untrained(split, "gfcf").params["alpha"]
    place = gfcf.ALPHA_VALUES.index(chosen)
    ndcg = [judge.of(gfcf.fit(split.train, gfcf.Settings(alpha=alpha)))[1] for alpha in gfcf.ALPHA_VALUES]
    assert ndcg[place] >= max(ndcg[max(place - 1, 0) : place + 2])


@pytest.mark.parametrize("model", ["ease", "itemknn", "gfcf"])
def test_without_validation_fixed_values_are_used(model):
    split = split_of(sampled())
    split = dataclasses.replace(split, valid=split.valid * 0)
    split.valid.eliminate_zeros()
    fitted = fit_untrained(split, model)
    assert fitted.metrics == {} and fitted.scorer.histories.nnz == split.train.nnz
    assert all(value is not None for value in fitted.params.values())


def test_refit_is_on_training_and_validation_together_or_not_at_all():
    split = split_of(sampled())
    both, one = (
        fit_untrained(split, "itemknn", itemknn.Settings(k=5, shrink=1.0), refit=refit) for refit in (True, False)
    )
    assert both.scorer.histories.nnz == split.known().nnz and one.scorer.histories.nnz == split.train.nnz
    assert both.metrics == one.metrics


def test_unknown_models_and_settings_of_another_are_refused():
    split = split_of(sampled())
    with pytest.raises(InputError, match="model: expected one of"):
        fit_untrained(split, "slim")
    with pytest.raises(InputError, match="settings: expected ease's"):
        fit_untrained(split, "ease", gfcf.Settings())


def test_walk_climbs_to_the_nearest_summit_and_keeps_the_first_of_equals():
    values = (0, 1, 2, 3, 4)
    assert walk(values, 2, {0: 1, 1: 5, 2: 3, 3: 2, 4: 9}.get) == 1
    assert walk(values, 2, {0: 0, 1: 0, 2: 1, 3: 2, 4: 3}.get) == 4
    assert walk(values, 2, lambda value: 0) == 2


def test_random_ranks_evenly_and_differently_for_each_user_and_seed():
    known = sp.csr_matrix((3000, 50), dtype=np.float32)
    fitted = random.fit(known, random.Settings(), seed=1)
    first = fitted.topk(np.arange(3000), 1)[0][:, 0]
    # 60 expected for each item, standard deviation under 8.
    assert np.abs(np.bincount(first, minlength=50) - 60).max() < 40
    other = random.fit(known, random.Settings(), seed=2).topk(np.arange(3000), 1)[0][:, 0]
    assert 20 < (first == other).sum() < 120
    pairs = fitted.topk(np.arange(3000), 2)[0]
    together = np.bincount(pairs[:, 0] * 50 + pairs[:, 1], minlength=2500)
    assert together.max() < 12, "which item is second does not follow from the first"


def test_popularity_counts_users():
    fitted = popularity.fit(csr([[0, 1], [1]], n_items=3), popularity.Settings())
    assert fitted.scores(np.array([0]), np.arange(3)).tolist() == [[1, 2, 0]]


MEASURE = """
import json, sys
import numpy as np, scipy.sparse as sp
from reclm_lite.cf.untrained import fit_untrained
from reclm_lite.cf.models import module_of
from reclm_lite.data.dataset import Split

def split(n_users, n_items, per_user):
    rng = np.random.default_rng(0)
    rows, cols = np.repeat(np.arange(n_users), per_user), rng.integers(0, n_items, n_users * per_user)
    both = sp.csr_matrix((np.ones(len(rows), np.float32), (rows, cols)), shape=(n_users, n_items)).tocoo()
    held = rng.random(both.nnz) < 0.1
    def of(mask):
        return sp.csr_matrix((np.ones(int(mask.sum()), np.float32), (both.row[mask], both.col[mask])), shape=both.shape)
    candidates = np.arange(n_items, dtype=np.int32)
    return Split(of(~held), of(held), of(held & False), of(held & False), candidates, candidates[:0], {})

def status(name):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(name))

model, n = sys.argv[1], int(sys.argv[2])
settings = module_of(model).Settings()
fit_untrained(split(60, 40, 5), model, settings, n_threads=1)   # what is compiled and loaded does not count
large = split(n, n, 6)
open("/proc/self/clear_refs", "w").write("5")   # the peak so far is forgotten
before = status("VmRSS")
fit_untrained(large, model, settings, n_threads=1)
nnz = large.train.nnz + large.valid.nnz
print(json.dumps([module_of(model).estimate_bytes(n, n, nnz, settings), status("VmHWM") - before]))
"""


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the peak cannot be reset here")
@pytest.mark.parametrize(("model", "n"), [("ease", 3_000), ("itemknn", 6_000), ("gfcf", 6_000)])
def test_estimates_are_near_the_measured_peak_of_a_search(model, n):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    measured = 0
    for _ in range(3):  # a machine short of memory takes pages back, and the peak is then too low
        run = subprocess.run(
            [sys.executable, "-c", MEASURE, model, str(n)], capture_output=True, text=True, env=environment
        )
        assert run.returncode == 0, run.stderr
        estimate, peak = json.loads(run.stdout)
        measured = max(measured, peak)
        if estimate < 1.6 * measured:
            break
    assert measured / 1.6 < estimate < 1.6 * measured, (
        f"estimated {estimate / 1e6:.0f} MB, measured {measured / 1e6:.0f} MB"
    )
