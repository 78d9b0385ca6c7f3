"""The full and unseen settings, known results of the baselines, and the evaluation of a workspace."""

import dataclasses

import numpy as np
import pytest
import scipy.sparse as sp

from reclm_lite.cf import store
from reclm_lite.cf.fitted import FittedModel
from reclm_lite.cf.untrained import baselines
from reclm_lite.data.dataset import Imported, Split, load_split, save_imported, save_split
from reclm_lite.errors import InputError
from reclm_lite.evaluate.protocol import evaluate, evaluate_validation, evaluate_workspace
from reclm_lite.types import ItemText
from reclm_lite.workspace import Workspace

N_USERS, N_ITEMS = 4, 6


def matrix(pairs):
    users, items = zip(*pairs, strict=True) if pairs else ((), ())
    return sp.csr_matrix((np.ones(len(pairs), np.float32), (users, items)), shape=(N_USERS, N_ITEMS))


# Items 0 to 3 were touched in training, 4 and 5 never. Item 3 is no candidate of the full setting.
SPLIT = Split(
    train=matrix([(0, 0), (1, 0), (1, 1), (2, 3)]),
    valid=matrix([(0, 1), (2, 0)]),
    test=matrix([(0, 2), (1, 2), (3, 0)]),
    unseen=matrix([(0, 5), (2, 4)]),
    full_candidates=np.array([0, 1, 2], np.int32),
    unseen_candidates=np.array([4, 5], np.int32),
    params={"method": "given"},
)


def scorer(item_scores, **kwargs):
    """Every user scores item i by item_scores[i]."""
    bias = np.array(item_scores, np.float32)
    empty = np.zeros((N_USERS, 0), np.float32), np.zeros((N_ITEMS, 0), np.float32)
    return FittedModel.of_vectors(kwargs.pop("name", "lightgcn"), *empty, bias, np.ones(N_USERS, bool), **kwargs)


def test_full_masks_training_and_validation_and_ranks_candidates_only():
    fitted = scorer([9, 8, 1, 10, 20, 20])
    result = evaluate(SPLIT, fitted, "full", (1, 2))
    assert result.users.tolist() == [0, 1, 3]
    # Users 0 and 1 have item 2 alone left; user 3 has everything, item 0 first.
    assert result.per_user["recall@1"].tolist() == [1, 1, 1]
    assert result.means["ndcg@2"] == 1


def test_unseen_masks_nothing_and_ranks_unseen_items():
    result = evaluate(SPLIT, scorer([9, 9, 9, 9, 1, 2]), "unseen", (1, 2))
    assert result.users.tolist() == [0, 2]
    assert result.per_user["recall@1"].tolist() == [1, 0]
    assert result.per_user["ndcg@2"].tolist() == [1, pytest.approx(1 / np.log2(3))]


def test_validation_masks_training_alone_and_ranks_its_items():
    result = evaluate_validation(SPLIT, scorer([5, 4, 99, 3, 99, 99]), (1,))
    assert result.users.tolist() == [0, 2]
    assert result.means["recall@1"] == 1


def test_a_constant_scorer_gains_nothing_from_ties():
    """Ties go to the lower id, never to the relevant item."""
    result = evaluate(SPLIT, scorer([0] * N_ITEMS), "unseen", (1,))
    assert result.per_user["recall@1"].tolist() == [0, 1]


def test_a_model_of_another_size_is_refused():
    small = dataclasses.replace(SPLIT, **{p: getattr(SPLIT, p)[:3] for p in ("train", "valid", "test", "unseen")})
    with pytest.raises(InputError, match="expected vectors of 3 users"):
        evaluate(small, scorer([0] * N_ITEMS), "full")
    with pytest.raises(InputError, match="setting: expected one of full, unseen"):
        evaluate(SPLIT, scorer([0] * N_ITEMS), "warm")


@pytest.fixture
def ws(tmp_path):
    known = SPLIT.known().tocoo()
    data = Imported(
        "tiny",
        list("abcd"),
        [str(i) for i in range(N_ITEMS)],
        [ItemText("")] * N_ITEMS,
        known.row.astype(np.int32),
        known.col.astype(np.int32),
    )
    with Workspace.create(tmp_path / "ws") as ws:
        save_imported(ws, data)
        save_split(ws, SPLIT, inputs={"matrices/interactions": ws.fingerprint("matrices/interactions")})
        yield ws


def test_a_workspace_without_models_still_shows_the_baselines(ws):
    result = evaluate_workspace(ws)
    assert result["dataset"] == "tiny" and result["split"]["method"] == "given" and result["stale"] == []
    assert [(r["model"], r["setting"]) for r in result["rows"]] == [
        ("random", "full"),
        ("popularity", "full"),
        ("random", "unseen"),
        ("popularity", "unseen"),
    ]
    row = result["rows"][1]
    assert list(row) == [
        "model",
        "profiles",
        "setting",
        "selection",
        "recall@20",
        "recall@40",
        "ndcg@20",
        "ndcg@40",
        "n_users",
    ]
    assert row["selection"] == "valid" and row["n_users"] == 3 and row["recall@20"] == 1


def test_fitted_models_are_listed_and_stale_ones_left_out(ws):
    inputs = {"matrices/split": ws.fingerprint("matrices/split")}
    store.save(scorer([1] * N_ITEMS), ws, inputs=inputs)
    store.save(scorer([1] * N_ITEMS, profiles="users"), ws, inputs={"vectors/user_profiles": "gone"})
    calls = []
    result = evaluate_workspace(ws, ci95=True, progress=lambda *call: calls.append(call))
    assert {(r["model"], r["profiles"]) for r in result["rows"]} == {
        ("random", "none"),
        ("popularity", "none"),
        ("lightgcn", "none"),
    }
    (stale,) = result["stale"]
    assert stale["model"] == "lightgcn+users" and "reclm fit lightgcn --profiles users -w" in stale["reason"]
    assert calls[-1][:2] == (6, 6)
    low, high = result["rows"][0]["ci95"]["recall@20"]
    assert low <= result["rows"][0]["recall@20"] <= high


def test_a_metric_over_no_users_is_none(ws):
    blank = dataclasses.replace(SPLIT, unseen=matrix([]))
    save_split(ws, blank, inputs={"matrices/interactions": ws.fingerprint("matrices/interactions")})
    row = evaluate_workspace(ws)["rows"][-1]
    assert row["setting"] == "unseen" and row["n_users"] == 0 and row["recall@20"] is None


def test_popularity_on_mind_comes_out_as_computed_independently(shared_data, tmp_path):
    """Checks split, mask and metrics against figures that other code computed."""
    from reclm_lite.data.importers import import_dataset
    from reclm_lite.data.split import run_split

    with Workspace.create(tmp_path / "ws") as ws:
        save_imported(ws, import_dataset("reclm", shared_data / "reclm-mind"))
        run_split(ws)
        popularity = baselines(load_split(ws).known())[1]
        result = evaluate(ws, popularity, "full")
        assert result.n_users == 56_972
        for metric, expected in {
            "recall@20": 0.0644,
            "recall@40": 0.1100,
            "ndcg@20": 0.0316,
            "ndcg@40": 0.0424,
        }.items():
            assert result.means[metric] == pytest.approx(expected, abs=2e-4)
        assert evaluate(ws, popularity, "unseen").n_users == 20_394


def test_a_damaged_model_is_named_and_the_others_are_ranked(ws):
    from reclm_lite.status import workspace_status

    inputs = {"matrices/split": ws.fingerprint("matrices/split")}
    store.save(scorer([1] * N_ITEMS), ws, inputs=inputs)
    store.save(scorer([2] * N_ITEMS, name="biasmf"), ws, inputs=inputs)
    path = ws.path("models/lightgcn")
    path.write_bytes(path.read_bytes()[:-3])
    result = evaluate_workspace(ws)
    assert {row["model"] for row in result["rows"]} == {"random", "popularity", "biasmf"}
    (left_out,) = result["stale"]
    assert (
        left_out["model"] == "lightgcn"
        and "damaged" in left_out["reason"]
        and "reclm fit lightgcn" in left_out["reason"]
    )
    states = {stage.name: stage.state for stage in workspace_status(ws).stages}
    assert states["model lightgcn"] == "damaged" and states["model biasmf"] == "ready"


def test_models_that_rank_from_histories_are_evaluated_like_any_other(ws):
    from reclm_lite.cf.untrained import fit_untrained

    inputs = {"matrices/split": ws.fingerprint("matrices/split")}
    for model in ("ease", "itemknn", "gfcf"):
        store.save(fit_untrained(SPLIT, model), ws, inputs=inputs)
    rows = {row["model"]: row for row in evaluate_workspace(ws)["rows"] if row["setting"] == "full"}
    assert {"ease", "itemknn", "gfcf"} <= set(rows)
    assert all(rows[model]["n_users"] == 3 and 0 <= rows[model]["recall@20"] <= 1 for model in rows)
