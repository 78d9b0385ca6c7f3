"""A run never loses existing profiles, sends unapproved requests, replaces better profiles, or miscounts."""

import time

import pytest
from profile_workspace import FakeEngine, make_workspace, profile, text_of
from tiny_llama import write_tiny_llama

from reclm_lite.errors import ModelError
from reclm_lite.profiles import store
from reclm_lite.profiles.generate import Interrupted, run_profiles
from reclm_lite.profiles.run_progress import Observer
from reclm_lite.profiles.run_settings import settings_of_last
from reclm_lite.profiles.scheduler import GenerationResult
from reclm_lite.profiles.sources import gguf as gguf_source
from reclm_lite.types import ItemText

TRAIN = {user: [user % 24, (user * 5 + 1) % 24] for user in range(20)}


@pytest.fixture(scope="module")
def gguf(tmp_path_factory):
    return write_tiny_llama(tmp_path_factory.mktemp("model") / "tiny.gguf", n_ctx=1024)


@pytest.fixture
def ws(tmp_path):
    with make_workspace(tmp_path / "ws", TRAIN) as ws:
        yield ws


class Engine(FakeEngine):
    """Answers one by one; can be broken off, slow, or full of nonsense."""

    breaks_after: int | None = None
    seconds_each = 0.0
    nonsense_at = -1.0  # the highest temperature at which it makes no sense

    def generate(self, prompts, *, max_new_tokens, sampling, stop_signal=None, window=None):
        for index, prompt in enumerate(prompts):
            if index == self.breaks_after:
                raise KeyboardInterrupt
            if stop_signal.drain.is_set():
                return
            time.sleep(self.seconds_each)
            type(self).asked.append(prompt)
            text = self.answer(prompt, sampling) if sampling.temperature > self.nonsense_at else "nonsense"
            yield GenerationResult(index, text, 40, 12, "stop")


@pytest.fixture
def engine(monkeypatch):
    class Mine(Engine):
        asked, made = [], 0

    monkeypatch.setattr(gguf_source, "Engine", Mine)
    return Mine


def generations(ws) -> dict[str, int]:
    return dict(ws.db.execute("SELECT prompt_key, rowid FROM generations"))


def test_fresh_run_that_is_broken_off_keeps_the_old_answers_and_goes_on_with_the_rest(ws, gguf, engine):
    profile(ws, model=gguf)
    before, engine.breaks_after = generations(ws), 5
    with pytest.raises(Interrupted):
        profile(ws, model=gguf, fresh=True)
    between = generations(ws)
    assert between.keys() == before.keys()
    assert sum(between[key] != before[key] for key in before) == 5
    engine.breaks_after, engine.asked = None, []
    source, settings = settings_of_last(ws, "users")
    summary = run_profiles(ws, "users", source=source, settings=settings)
    after = generations(ws)
    assert summary.n_generated == len(engine.asked) == len(before) - 5
    assert after.keys() == before.keys() and all(after[key] > before[key] for key in before)


def test_nothing_is_asked_without_leave_not_even_a_second_try(ws, gguf, engine):
    class Asked(Observer):
        n = 0

        def agree(self, source, groups, users):
            self.n += 1

    engine.nonsense_at = 0.0
    first, second = Asked(), Asked()
    profile(ws, model=gguf, n_retries=0, observer=first)
    profile(ws, model=gguf, n_retries=1, observer=second)
    assert (first.n, second.n) == (1, 1)
    third = Asked()
    assert profile(ws, model=gguf, n_retries=1, observer=third).n_generated == 0 and third.n == 0


def test_run_that_is_called_off_changes_nothing(ws, gguf, engine, tmp_path):
    profile(ws, model=gguf)
    rows = ws.db.execute("SELECT * FROM profiles").fetchall()
    other = write_tiny_llama(tmp_path / "other.gguf", seed=1, n_ctx=1024)

    class No(Observer):
        def agree(self, source, groups, users):
            raise ModelError("no")

    for options in ({}, {"fresh": True}, {"reuse": "prompt"}):
        with pytest.raises(ModelError, match="no"):
            profile(ws, model=other, observer=No(), **options)
    assert ws.db.execute("SELECT * FROM profiles").fetchall() == rows
    assert settings_of_last(ws, "users") is None


def test_profile_is_not_replaced_by_a_failure_of_another_model(ws, gguf, engine, tmp_path):
    profile(ws, model=gguf)
    rows = dict(ws.db.execute("SELECT idx, text FROM profiles"))
    engine.nonsense_at = 9.0
    other = write_tiny_llama(tmp_path / "other.gguf", seed=1, n_ctx=1024)
    summary = profile(ws, model=other)
    assert summary.n_invalid == 20 and dict(ws.db.execute("SELECT idx, text FROM profiles")) == rows
    assert ws.db.execute("SELECT COUNT(*) FROM generations WHERE status='invalid'").fetchone()[0] == summary.n_generated


def test_second_tries_that_the_deadline_cuts_off_are_on_the_books(ws, gguf, engine):
    engine.nonsense_at, engine.seconds_each = 0.0, 0.05
    n = profile(ws, model="rules").n_distinct_prompts
    store.drop_profiles(ws, "user", range(20))
    summary = profile(ws, model=gguf, deadline_seconds=0.05 * n * 1.5 + 0.3)
    assert summary.ended_by == "deadline" and summary.n_generated < 2 * n
    assert summary.n_ok + summary.n_invalid == 20 and summary.n_not_reached == 0
    assert sum(store.profile_counts(ws, "user").values()) == 20
    engine.seconds_each = 0.0
    assert profile(ws, model=gguf).n_ok == 20


def test_users_without_words_are_skipped_and_not_waited_for(tmp_path, gguf, engine):
    texts = [ItemText("") if item < 3 else text_of(item) for item in range(24)]
    with make_workspace(tmp_path / "mute", {0: [0], 1: [1, 2], 2: [5], 3: [6]}, texts=texts) as ws:
        summary = profile(ws, model=gguf)
        assert (summary.n_requested, summary.n_ok, summary.n_skipped, summary.n_not_reached) == (2, 2, 2, 0)
        assert summary.ended_by == "done" and "not answered" not in summary.sentence()


def test_model_that_is_replaced_while_the_run_plans_is_noticed(ws, gguf, tmp_path, monkeypatch):
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf.read_bytes())

    class Swapped(Engine):
        asked = []

        def __init__(self, *args, **options):
            path.write_bytes(write_tiny_llama(tmp_path / "b.gguf", seed=7, n_ctx=1024).read_bytes())

    monkeypatch.setattr(gguf_source, "Engine", Swapped)
    with pytest.raises(ModelError, match="has changed since the run began"):
        profile(ws, model=path)
    assert not generations(ws)


def test_own_items_beyond_those_shown_do_not_come_back_as_similar_peoples(tmp_path):
    from reclm_lite.prompts.build import user_prompt_of
    from reclm_lite.prompts.inputs import load_inputs

    with make_workspace(tmp_path / "ws", {0: list(range(23)), 1: [0, 1, 23]}, neighbors=[[1], [0]]) as ws:
        prompt = user_prompt_of(load_inputs(ws), 0, form="instruct")
    assert prompt.n_left_out == 3
    near = prompt.text.split("Items that similar people have:")[1].split("The person's own items:")[0]
    assert "uniqueword23" in near and "uniqueword0" not in near and "uniqueword1" not in near
