"""Splits: disjoint, complete, without leakage, reproducible for a seed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reclm_lite.data.dataset import (
    GIVEN_TEST,
    GIVEN_TRAIN,
    GIVEN_UNSEEN,
    GIVEN_VALID,
    Interactions,
    load_split,
    save_imported,
)
from reclm_lite.data.demo import generate_demo
from reclm_lite.data.split import METHODS, default_method, make_split, run_split
from reclm_lite.errors import InputError, MissingArtefactError
from reclm_lite.workspace import Workspace

DIVIDING = [method for method in METHODS if method != "given"]


def interactions(pairs, *, times=None, labels=None, n_users=None, n_items=None, full=None, unseen=None):
    users = np.array([user for user, _ in pairs], np.int32)
    items = np.array([item for _, item in pairs], np.int32)
    return Interactions(
        n_users or int(users.max(initial=-1)) + 1,
        n_items or int(items.max(initial=-1)) + 1,
        users,
        items,
        None if times is None else np.array(times, np.int64),
        None,
        None if labels is None else np.array(labels, np.uint8),
        None if full is None else np.array(full, np.int32),
        None if unseen is None else np.array(unseen, np.int32),
        "test",
        "f",
    )


def pairs_of(matrix):
    return set(zip(*(part.tolist() for part in matrix.nonzero()), strict=True))


@st.composite
def any_interactions(draw):
    rows = draw(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 7), st.integers(0, 50)), min_size=2, max_size=60))
    return interactions([row[:2] for row in rows], times=[row[2] for row in rows], n_users=6, n_items=8)


def split_or_none(data, method, **params):
    try:
        return make_split(data, method, **params)
    except InputError:
        return None


@settings(max_examples=60, deadline=None)
@given(any_interactions(), st.sampled_from(DIVIDING), st.integers(0, 5), st.floats(0.05, 0.6))
def test_parts_are_disjoint_and_together_are_the_input(data, method, seed, fraction):
    split = split_or_none(data, method, seed=seed, test_fraction=fraction)
    if split is None:
        return
    parts = [pairs_of(part) for part in (split.train, split.valid, split.test, split.unseen)]
    assert sum(map(len, parts)) == len(set.union(*parts))
    assert set.union(*parts) == set(zip(data.users.tolist(), data.items.tolist(), strict=True))
    assert split.params["n_pairs"] == dict(zip(("train", "valid", "test", "unseen"), map(len, parts), strict=True))


@settings(max_examples=60, deadline=None)
@given(any_interactions(), st.sampled_from(DIVIDING), st.integers(0, 5))
def test_candidates_hold_what_each_setting_asks_for(data, method, seed):
    split = split_or_none(data, method, seed=seed)
    if split is None:
        return
    known = set(split.known().indices.tolist())
    assert set(split.full_candidates.tolist()) == known
    assert set(split.unseen_candidates.tolist()) == set(range(data.n_items)) - known
    assert set(split.test.indices.tolist()) <= known
    assert not set(split.unseen.indices.tolist()) & known


@settings(max_examples=60, deadline=None)
@given(any_interactions(), st.sampled_from(DIVIDING), st.floats(0.05, 0.9))
def test_validation_is_never_empty_and_leaves_no_user_without_training(data, method, valid_fraction):
    split = split_or_none(data, method, valid_fraction=valid_fraction)
    if split is None:
        return
    # `none` serves data in which nobody has two interactions; every other method refuses them.
    assert split.valid.nnz >= 1 or (method == "none" and np.diff(split.train.indptr).max() <= 1)
    n_valid, n_train = np.diff(split.valid.indptr), np.diff(split.train.indptr)
    assert (n_train[n_valid > 0] >= 1).all()


@settings(max_examples=60, deadline=None)
@given(any_interactions(), st.floats(0.05, 0.9))
def test_temporal_lets_nothing_after_the_cut_into_training(data, fraction):
    split = split_or_none(data, "temporal", test_fraction=fraction)
    if split is None:
        return
    earliest = {}
    for user, item, time in zip(data.users.tolist(), data.items.tolist(), data.timestamps.tolist(), strict=True):
        earliest[user, item] = min(time, earliest.get((user, item), time))
    known = [earliest[pair] for pair in pairs_of(split.known())]
    held_out = [earliest[pair] for pair in pairs_of(split.test) | pairs_of(split.unseen)]
    assert max(known) <= split.params["train_until_seconds"] < min(held_out)
    for user, item in pairs_of(split.valid):
        assert all(earliest[user, other] <= earliest[user, item] for one, other in pairs_of(split.train) if one == user)


@settings(max_examples=30, deadline=None)
@given(any_interactions(), st.sampled_from(DIVIDING), st.integers(0, 3))
def test_the_same_seed_gives_the_same_split(data, method, seed):
    one, two = split_or_none(data, method, seed=seed), split_or_none(data, method, seed=seed)
    if one is None:
        return
    for part in ("train", "valid", "test", "unseen"):
        assert pairs_of(getattr(one, part)) == pairs_of(getattr(two, part))


def test_leave_last_holds_out_each_users_last_and_keeps_single_interactions():
    data = interactions([(0, 0), (0, 1), (0, 2), (1, 0), (1, 2), (2, 1)], times=[5, 9, 1, 1, 2, 3])
    split = make_split(data, "leave-last", valid_fraction=0.5)
    assert pairs_of(split.test) | pairs_of(split.unseen) == {(0, 1), (1, 2)}
    assert (2, 1) in pairs_of(split.train)


def test_leave_last_breaks_ties_in_time_by_higher_item():
    data = interactions([(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)], times=[7] * 6)
    assert pairs_of(make_split(data, "leave-last").unseen) == {(0, 2), (1, 2)}


def test_cold_items_holds_out_items_wholly():
    rng = np.random.default_rng(0)
    data = interactions([(user, item) for user in range(20) for item in rng.permutation(30)[:10].tolist()])
    split = make_split(data, "cold-items", item_fraction=0.2)
    assert split.params["n_cold_items"] == 6 == len(split.unseen_candidates)
    assert split.unseen.nnz > 0 and split.test.nnz > 0


def test_none_keeps_all_but_validation_for_training():
    data = interactions([(0, 0), (0, 1), (1, 1)])
    split = make_split(data, "none")
    assert split.known().nnz == 3 and split.test.nnz == split.unseen.nnz == 0


def test_shares_come_out_as_asked_on_many_light_users():
    data = interactions([(user, item) for user in range(4000) for item in range(3)])
    split = make_split(data, "ratio", test_fraction=0.2, valid_fraction=0.1)
    assert abs(split.test.nnz / 12000 - 0.2) < 0.01
    assert abs(split.valid.nnz / (12000 - split.test.nnz) - 0.1) < 0.01


def test_given_keeps_labels_and_carves_validation_from_training_only():
    data = interactions(
        [(0, 0), (0, 1), (0, 2), (1, 1), (1, 3)],
        labels=[GIVEN_TRAIN, GIVEN_TRAIN, GIVEN_TEST, GIVEN_TRAIN, GIVEN_UNSEEN],
    )
    split = make_split(data, "given")
    assert pairs_of(split.known()) == {(0, 0), (0, 1), (1, 1)}
    # Item 2 is nowhere in training, so its test pair belongs to the unseen setting.
    assert split.test.nnz == 0 and pairs_of(split.unseen) == {(0, 2), (1, 3)}
    assert split.params["n_test_pairs_moved_to_unseen"] == 1


def test_given_uses_validation_that_the_data_set_brings():
    data = interactions([(0, 0), (0, 1), (1, 0)], labels=[GIVEN_TRAIN, GIVEN_VALID, GIVEN_TEST])
    split = make_split(data, "given")
    assert pairs_of(split.valid) == {(0, 1)} and pairs_of(split.train) == {(0, 0)}


def test_given_drops_and_counts_test_pairs_that_are_in_training():
    data = interactions([(0, 0), (0, 1), (0, 0), (1, 0)], labels=[GIVEN_TRAIN, GIVEN_TRAIN, GIVEN_TEST, GIVEN_TEST])
    split = make_split(data, "given")
    assert split.params["n_test_pairs_in_training_dropped"] == 1
    assert pairs_of(split.test) == {(1, 0)} and not pairs_of(split.test) & pairs_of(split.known())


def test_given_candidate_lists_of_the_data_set_rule():
    data = interactions(
        [(0, 0), (0, 1), (1, 2), (1, 2), (0, 3)],
        labels=[GIVEN_TRAIN, GIVEN_TRAIN, GIVEN_TEST, GIVEN_UNSEEN, GIVEN_TEST],
        full=[1, 2],
        unseen=[2, 3],
        n_items=6,
    )
    split = make_split(data, "given")
    assert split.full_candidates.tolist() == [1, 2] and split.unseen_candidates.tolist() == [2, 3]
    assert pairs_of(split.test) == {(1, 2)} and pairs_of(split.unseen) == {(1, 2), (0, 3)}


def test_given_counts_held_out_pairs_that_no_setting_ranks():
    data = interactions([(0, 0), (0, 1), (1, 1)], labels=[GIVEN_TRAIN, GIVEN_TRAIN, GIVEN_TEST], full=[0])
    split = make_split(data, "given")
    assert split.test.nnz == split.unseen.nnz == 0
    assert split.params["n_test_pairs_outside_candidates_dropped"] == 1


def test_repeated_pairs_count_once():
    data = interactions([(0, 0), (0, 0), (0, 1), (0, 1)])
    assert make_split(data, "none").known().nnz == 2


@pytest.mark.parametrize(
    ("method", "data", "said"),
    [
        ("nonsense", interactions([(0, 0), (0, 1)]), "expected a method among"),
        ("given", interactions([(0, 0), (0, 1)]), "has no given split"),
        ("temporal", interactions([(0, 0), (0, 1)]), "requires times"),
        ("leave-last", interactions([(0, 0), (0, 1)]), "requires times"),
        ("temporal", interactions([(0, 0), (0, 1)], times=[4, 4]), "none is later"),
        ("ratio", interactions([(0, 0), (1, 1)]), "no user has two training interactions"),
        ("cold-items", interactions([(0, 0), (1, 0)]), "at least two items"),
        ("ratio", interactions([]), "no interaction"),
        ("given", interactions([(0, 0)], labels=[GIVEN_TEST]), "no training interaction"),
    ],
)
def test_what_cannot_be_split_is_said_in_a_sentence(method, data, said):
    with pytest.raises(InputError, match=said):
        make_split(data, method)


def test_a_fraction_outside_zero_and_one_is_refused():
    with pytest.raises(InputError, match="test_fraction between 0 and 1, found 1.5"):
        make_split(interactions([(0, 0), (0, 1)]), "ratio", test_fraction=1.5)


def test_default_method_follows_what_the_data_bring():
    pairs = [(user, item) for user in range(4) for item in range(5)]
    assert default_method(interactions(pairs))[0] == "ratio"
    assert default_method(interactions(pairs, labels=[GIVEN_TRAIN] * 20))[0] == "given"
    assert default_method(interactions(pairs, times=[item for _, item in pairs]))[0] == "temporal"
    assert default_method(interactions(pairs, times=[user for user, _ in pairs]))[0] == "leave-last"
    assert default_method(interactions(pairs, times=[3] * 20))[0] == "ratio"


def test_run_split_stores_it_with_its_input_and_goes_stale_on_a_new_import(tmp_path):
    with Workspace.create(tmp_path / "w") as ws:
        save_imported(ws, generate_demo(1, 100, 60))
        split = run_split(ws)
        assert split.params["method"] == "given" and split.params["chosen_because"]
        assert load_split(ws).fingerprint == split.fingerprint
        save_imported(ws, generate_demo(2, 100, 60))
        with pytest.raises(MissingArtefactError, match="stale"):
            load_split(ws)


def test_none_serves_even_where_every_user_has_one_interaction(tmp_path):
    from reclm_lite.data.importers import import_dataset

    source = tmp_path / "once.csv"
    source.write_text("user,item\n" + "".join(f"u{n},i{n % 3}\n" for n in range(9)), encoding="utf-8")
    with Workspace.create(tmp_path / "ws") as ws:
        save_imported(ws, import_dataset("table", source, user_column="user", item_column="item"))
        with pytest.raises(InputError, match="method none"):
            run_split(ws, "ratio")
        split = run_split(ws, "none")
        assert (split.train.nnz, split.valid.nnz) == (9, 0)
