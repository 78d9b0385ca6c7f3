"""Prompts use training data only, and equal inputs give equal prompts."""

import re
from collections import Counter

import numpy as np
import pytest
from profile_workspace import make_workspace, matrix, save_neighbors, store_split, text_of

from reclm_lite.errors import MissingArtefactError
from reclm_lite.prompts.build import NO_HISTORY, NO_TEXT, build_prompts
from reclm_lite.prompts.forms import FORMS
from reclm_lite.prompts.inputs import load_inputs
from reclm_lite.types import ItemText

TRAIN = {0: [0, 1], 1: [0, 1], 2: [2], 3: [3, 4, 5], 4: [6]}
NEAR = [[3, -1], [3, -1], [0, 4], [2, -1], [-1, -1], [0, -1], [-1, -1]]


@pytest.fixture
def ws(tmp_path):
    with make_workspace(tmp_path / "ws", TRAIN, n_users=7, neighbors=NEAR) as ws:
        yield ws


def test_equal_histories_and_neighbors_give_equal_prompts(ws):
    prompts = dict(build_prompts(load_inputs(ws), "user"))
    assert prompts[0] == prompts[1]
    assert len(set(prompts.values())) == len(prompts) - 1


def test_order_of_neighbors_does_not_change_the_prompt(ws):
    before = dict(build_prompts(load_inputs(ws), "user"))
    save_neighbors(ws, [row[::-1] for row in NEAR], ws.fingerprint("matrices/split"))
    assert dict(build_prompts(load_inputs(ws), "user")) == before


def test_user_without_history_is_profiled_by_neighbors_or_skipped_with_a_reason(ws):
    skipped = Counter()
    prompts = dict(build_prompts(load_inputs(ws), "user", skipped=skipped))
    assert set(prompts) == {0, 1, 2, 3, 4, 5}
    assert skipped == {NO_HISTORY: 1}
    assert "uniqueword0" in prompts[5]


def test_prompts_come_in_the_order_asked(ws):
    assert [user for user, _ in build_prompts(load_inputs(ws), "user", [4, 0, 2])] == [4, 0, 2]


def test_items_without_text_are_skipped_with_a_reason(tmp_path):
    texts = [ItemText(""), *[text_of(item) for item in range(1, 24)]]
    with make_workspace(tmp_path / "ws", {0: [0], 1: [0, 1]}, texts=texts) as ws:
        skipped = Counter()
        assert [user for user, _ in build_prompts(load_inputs(ws), "user", skipped=skipped)] == [1]
        assert skipped == {NO_TEXT: 1}
        skipped = Counter()
        assert len(list(build_prompts(load_inputs(ws), "item", skipped=skipped))) == 23
        assert skipped == {NO_TEXT: 1}


def test_without_neighbors_prompts_hold_the_own_history_only(tmp_path):
    with make_workspace(tmp_path / "ws", TRAIN) as ws:
        assert load_inputs(ws).neighbors is None
        assert "Similar" not in "".join(prompt for _, prompt in build_prompts(load_inputs(ws), "user"))


def test_co_items_are_the_most_shared_first_and_ties_go_to_the_lower_index(tmp_path):
    train = {0: [0, 3, 2], 1: [0, 3, 5], 2: [0, 2, 7], 3: [0, 9], 4: [8, 1]}
    with make_workspace(tmp_path / "ws", train) as ws:
        inputs = load_inputs(ws)
        assert inputs.co_items_of(0) == (2, 3, 5, 7, 9)
        assert inputs.co_items_of(8) == (1,)
        assert inputs.co_items_of(20) == ()
        prompts = dict(build_prompts(load_inputs(ws), "item"))
        words = {item: set(re.findall(r"uniqueword\d+", prompt)) for item, prompt in prompts.items()}
        assert words[0] - {"uniqueword0"} and words[0] <= {f"uniqueword{item}" for item in (0, 2, 3, 5, 7, 9)}
        assert words[8] == {"uniqueword8", "uniqueword1"} and words[20] == {"uniqueword20"}


@pytest.mark.parametrize("form", FORMS)
def test_no_held_out_title_reaches_a_prompt(tmp_path, form):
    rng = np.random.default_rng(0)
    train = {user: rng.choice(12, 3, replace=False).tolist() for user in range(40)}
    valid = {user: [int(rng.integers(12, 18))] for user in range(40)}
    test = {user: [int(rng.integers(18, 24))] for user in range(40)}
    near = [rng.choice(40, 5, replace=False).tolist() for _ in range(40)]
    with make_workspace(tmp_path / "ws", train, valid=valid, test=test, neighbors=near) as ws:
        for _, prompt in build_prompts(load_inputs(ws), "user", form=form):
            assert not [item for item in range(12, 24) if text_of(item).title in prompt]
        # An item's own prompt holds its title; nobody else's may.
        for item, prompt in build_prompts(load_inputs(ws), "item", form=form):
            assert not [other for other in range(12, 24) if other != item and text_of(other).title in prompt]


def test_no_held_out_item_of_a_user_reaches_that_users_prompt_by_the_own_history(tmp_path):
    # Item 1 is held out for user 0 and training for user 1, who is nobody's neighbor.
    with make_workspace(tmp_path / "ws", {0: [0], 1: [1]}, test={0: [1]}, neighbors=[[-1], [-1]]) as ws:
        assert "uniqueword1" not in dict(build_prompts(load_inputs(ws), "user"))[0]


def test_stale_neighbors_are_refused(ws):
    store_split(ws, [matrix(7, 24, rows) for rows in (TRAIN, {}, {0: [9]}, {})], seed=1)
    with pytest.raises(MissingArtefactError, match="matrices/neighbors is stale"):
        next(build_prompts(load_inputs(ws), "user"))


def test_without_a_split_the_command_that_makes_one_is_named(tmp_path):
    with make_workspace(tmp_path / "ws", TRAIN) as ws:
        ws.path("matrices/split").unlink()
        with pytest.raises(MissingArtefactError, match="reclm split"):
            next(build_prompts(load_inputs(ws), "user"))
