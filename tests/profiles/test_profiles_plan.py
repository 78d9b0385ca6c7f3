"""The plan of a profile run: users, order and prompts, and how far the run will get."""

import numpy as np
import pytest
from profile_workspace import make_workspace, text_of

from reclm_lite.data.dataset import load_interactions
from reclm_lite.errors import InputError
from reclm_lite.profiles.eta import Throughput, format_duration, parse_duration
from reclm_lite.profiles.plan import history_key, make_plan
from reclm_lite.prompts.inputs import PromptInputs, load_inputs
from reclm_lite.types import ItemText

TRAIN = {0: [0, 1], 1: [0, 1], 2: [2], 3: [3, 4, 5], 4: [6], 5: [6], 6: [6], 7: [8, 9, 10, 11]}


@pytest.fixture
def inputs(tmp_path):
    with make_workspace(tmp_path / "ws", TRAIN, n_users=9) as ws:
        yield load_inputs(ws)


def plan(inputs, side="user", **options):
    options = {"form": "instruct", "has_room": lambda prompt: True, **options}
    n = inputs.train.shape[0 if side == "user" else 1]
    return make_plan(inputs, side, range(n), **options)


def with_times(inputs: PromptInputs, times: np.ndarray) -> PromptInputs:
    return PromptInputs(inputs.train, inputs.texts, inputs.neighbors, "split", times)


def test_most_shared_prompts_come_first_then_those_of_the_most_active(inputs):
    made = plan(inputs)
    assert [group.idxs for group in made.groups] == [(4, 5, 6), (0, 1), (7,), (3,), (2,)]
    assert made.n_requested == 8 and made.skipped == {"no history and no neighbors": 1}


def test_limit_cuts_the_number_of_users(inputs):
    assert [group.idxs for group in plan(inputs, limit=4).groups] == [(4, 5, 6), (0,)]


def test_items_with_equal_prompts_are_one_group(tmp_path):
    texts = [text_of(item % 3) for item in range(24)]
    with make_workspace(tmp_path / "twins", {0: []}, n_users=1, texts=texts) as ws:
        groups = plan(load_inputs(ws), "item").groups
        assert [len(group.idxs) for group in groups] == [8, 8, 8]
        assert {group.basis for group in groups} == {"text"}


def test_basis_tells_what_a_profile_is_made_from(tmp_path):
    with make_workspace(tmp_path / "ws", {0: [0], 1: [1]}, n_users=3, neighbors=[[-1], [-1], [0]]) as ws:
        inputs = load_inputs(ws)
        assert {group.idxs: group.basis for group in plan(inputs).groups} == {
            (0,): "history",
            (1,): "history",
            (2,): "neighbors",
        }
        assert {group.basis for group in plan(inputs, "item").groups} == {"text"}


def test_prompt_without_room_leaves_out_the_oldest_items_first_and_says_how_many(inputs):
    times = np.arange(inputs.train.nnz)[::-1].copy()  # within each user, the lower index is the newer
    inputs = with_times(inputs, times)
    whole = {group.idxs: group for group in plan(inputs).groups}
    room = len(whole[7,].prompt) - 1
    cut = {group.idxs: group for group in plan(inputs, has_room=lambda prompt: len(prompt) <= room).groups}
    assert whole[7,].n_left_out == 0 and cut[7,].n_left_out == 1
    assert "uniqueword11" in whole[7,].prompt and "uniqueword11" not in cut[7,].prompt
    assert all(f"uniqueword{item}" in cut[7,].prompt for item in (8, 9, 10))
    assert cut[3,] == whole[3,]


def test_without_times_a_lower_index_counts_as_older(inputs):
    assert inputs.times is None
    room = max(len(group.prompt) for group in plan(inputs).groups) - 1
    cut = {group.idxs: group.prompt for group in plan(inputs, has_room=lambda prompt: len(prompt) <= room).groups}
    assert "uniqueword8" not in cut[7,] and "uniqueword11" in cut[7,]


def test_neighbors_go_after_all_own_items_but_one(tmp_path):
    with make_workspace(tmp_path / "ws", {0: [0, 1, 2], 1: [3]}, neighbors=[[1], [-1]]) as ws:
        inputs = load_inputs(ws)
        [alone] = [g for g in plan(inputs, has_room=lambda p: "uniqueword3" not in p).groups if g.idxs == (0,)]
        assert all(f"uniqueword{item}" in alone.prompt for item in range(3)) and alone.n_left_out == 0
        [one] = [g for g in plan(inputs, has_room=lambda p: p.count("uniqueword") <= 2).groups if g.idxs == (0,)]
        assert "uniqueword3" in one.prompt and "uniqueword2" in one.prompt and one.n_left_out == 2


def test_prompt_that_never_fits_is_kept_at_its_shortest(inputs):
    groups = {group.idxs: group for group in plan(inputs, has_room=lambda prompt: False).groups}
    assert groups[7,].n_left_out == 3 and groups[7,].prompt.count("uniqueword") == 1


def test_users_of_equal_items_and_unequal_ages_part_where_items_are_left_out(inputs):
    times = np.zeros(inputs.train.nnz, np.int64)
    times[0], times[3] = 5, 5  # item 0 is user 0's newer one, item 1 user 1's
    inputs = with_times(inputs, times)
    assert (0, 1) in [group.idxs for group in plan(inputs).groups]
    parted = {group.idxs: group.prompt for group in plan(inputs, has_room=lambda p: p.count("uniqueword") <= 1).groups}
    assert "uniqueword0" in parted[0,] and "uniqueword1" in parted[1,]


def test_twenty_newest_items_are_shown_to_a_chat_model(tmp_path):
    with make_workspace(tmp_path / "ws", {0: list(range(24))}) as ws:
        [group] = plan(load_inputs(ws)).groups
        assert group.n_left_out == 4 and group.prompt.count("uniqueword") == 20
        [group] = plan(load_inputs(ws), form="compact").groups
        assert group.n_left_out == 0


def test_times_of_the_split_are_those_of_the_interactions(tmp_path):
    from reclm_lite.data.dataset import Imported, save_imported, save_split
    from reclm_lite.data.split import make_split
    from reclm_lite.workspace import Workspace

    with Workspace.create(tmp_path / "ws") as ws:
        users, items = np.array([0, 0, 0, 0], np.int32), np.array([2, 0, 1, 2], np.int32)
        texts = [text_of(item) for item in range(3)]
        stamps = np.array([10, 30, 20, 40], np.int64)
        save_imported(ws, Imported("timed", ["u"], ["a", "b", "c"], texts, users, items, timestamps=stamps))
        interactions = load_interactions(ws)
        save_split(ws, make_split(interactions, "none"), inputs={"matrices/interactions": interactions.fingerprint})
        inputs = load_inputs(ws)
        known = set(inputs.items_of(0))
        assert inputs.by_age(0) == tuple(item for item in (1, 0, 2) if item in known)  # item 2 was seen again at 40


def test_history_key_knows_texts_and_not_their_order(tmp_path):
    with make_workspace(tmp_path / "a", {0: [0, 1], 1: [2]}) as ws:
        first = history_key(load_inputs(ws), "user", 0)
    texts = [text_of(1), text_of(0), *(text_of(item) for item in range(2, 24))]
    with make_workspace(tmp_path / "b", {0: [0, 1], 1: [2]}, texts=texts) as ws:
        assert history_key(load_inputs(ws), "user", 0) == first
    texts[0] = ItemText("another title")
    with make_workspace(tmp_path / "c", {0: [0, 1], 1: [2]}, texts=texts) as ws:
        assert history_key(load_inputs(ws), "user", 0) != first


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("6h", 21600), ("1h30m", 5400), ("90s", 90), ("0.5h", 1800), ("45", 45), ("1d", 86400), (" 2 H ", 7200)],
)
def test_durations_are_read(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "6 hours", "-1h", "0", "h6", "1h30"])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(InputError, match="duration"):
        parse_duration(text)


def test_durations_are_told_in_words():
    assert [format_duration(s) for s in (0, 89, 600, 6 * 3600 + 300)] == ["0 s", "89 s", "10 min", "6 h 05 min"]


def test_pace_counts_prompts_and_tells_whom_they_serve():
    pace = Throughput([50, 20, 10, 5, 5, 5, 5], now=-100.0)
    pace.begin(0.0)  # the model took 100 seconds to load
    assert pace.per_second(1.0) == 0.0 and pace.seconds_left(1.0) is None
    for second in (10, 20):
        pace.note(now=float(second))
    assert pace.per_second(20.0) == pytest.approx(0.1)
    assert pace.seconds_left(20.0) is None and not pace.is_known(20.0)  # two answers in twenty seconds are no pace yet
    assert pace.seconds_left(40.0) == pytest.approx(100.0)
    assert pace.reach(20.0, 20.0) == (4, 85)
    assert pace.reach(1e6, 20.0) == (7, 100)


def test_pace_forgets_what_was_more_than_a_minute_ago():
    pace = Throughput([1] * 1000, now=0.0)
    for second in range(1, 100):
        pace.note(10, now=float(second))
    slow = [pace.note(1, now=100.0 + 10 * n) for n in range(1, 8)]
    assert len(slow) == 7 and pace.per_second(170.0) < 1.0
