"""Recall, NDCG and their intervals, on lists that can be checked by hand."""

import numpy as np
import pytest
import scipy.sparse as sp

from reclm_lite.evaluate.intervals import bootstrap_mean
from reclm_lite.metrics import ranking_metrics


def relevant(*rows, n_items=10):
    matrix = np.zeros((len(rows), n_items))
    for row, items in enumerate(rows):
        matrix[row, items] = 1
    return sp.csr_matrix(matrix)


def test_recall_and_ndcg_by_hand():
    ids = np.array([[3, 1, 2], [0, 1, 2]], np.int32)
    got = ranking_metrics(ids, relevant([1, 2, 9], [5]), (1, 3))
    assert got["recall@1"].tolist() == [0, 0]
    assert got["recall@3"].tolist() == [pytest.approx(2 / 3), 0]
    dcg = 1 / np.log2(3) + 1 / np.log2(4)
    ideal = 1 + 1 / np.log2(3) + 1 / np.log2(4)
    assert got["ndcg@3"].tolist() == [pytest.approx(dcg / ideal), 0]


def test_a_perfect_list_shorter_than_the_relevant_items_has_ndcg_one():
    got = ranking_metrics(np.array([[4, 7]], np.int32), relevant([1, 4, 7]), (2,))
    assert got["ndcg@2"][0] == pytest.approx(1) and got["recall@2"][0] == pytest.approx(2 / 3)


def test_padding_is_never_a_hit():
    got = ranking_metrics(np.array([[0, -1, -1]], np.int32), relevant([9]), (3,))
    assert got["recall@3"][0] == 0 == got["ndcg@3"][0]


def test_a_user_without_relevant_items_is_refused():
    with pytest.raises(ValueError, match="at least one relevant item"):
        ranking_metrics(np.array([[0]], np.int32), relevant([]), (1,))


def test_the_interval_is_that_of_resampled_means():
    rng = np.random.default_rng(0)
    values = (rng.random(2000) < 0.3).astype(float)
    low, high = bootstrap_mean(values)
    error = 1.96 * np.sqrt(0.3 * 0.7 / 2000)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * error, rel=0.15)
    assert bootstrap_mean(values) == (low, high)


def test_the_interval_of_a_constant_is_a_point_and_of_nothing_is_nan():
    assert bootstrap_mean(np.full(5, 0.25)) == (0.25, 0.25)
    assert np.isnan(bootstrap_mean(np.zeros(0))).all()


def test_metrics_agree_with_those_counted_one_user_at_a_time():
    rng = np.random.default_rng(0)
    ids = np.array([rng.permutation(60)[:40] for _ in range(200)], np.int32)
    ids[5, 30:] = -1
    relevant = sp.csr_matrix((rng.random((200, 60)) < 0.2).astype(np.float32))
    got = ranking_metrics(ids, relevant, (20, 40))
    for user in range(200):
        wanted = set(relevant[user].indices.tolist())
        for k in (20, 40):
            ranks = [rank for rank, item in enumerate(ids[user, :k]) if item in wanted]
            ideal = sum(1 / np.log2(rank + 2) for rank in range(min(k, len(wanted))))
            assert got[f"recall@{k}"][user] == pytest.approx(len(ranks) / len(wanted))
            assert got[f"ndcg@{k}"][user] == pytest.approx(sum(1 / np.log2(rank + 2) for rank in ranks) / ideal)


def test_blocks_of_hits_do_not_show(monkeypatch):
    from reclm_lite.kernels import hits

    rng = np.random.default_rng(1)
    ids = np.array([rng.permutation(30)[:8] for _ in range(50)], np.int32)
    relevant = sp.csr_matrix((rng.random((50, 30)) < 0.3).astype(np.float32))
    whole = hits.hit_places(ids, relevant.indptr, relevant.indices)
    monkeypatch.setattr(hits, "_BLOCK_VALUES", 1)
    assert np.array_equal(hits.hit_places(ids, relevant.indptr, relevant.indices), whole)
    assert hits.hit_places(ids[:0], np.zeros(1, np.int64), relevant.indices[:0]).shape == (0,)
