"""A run with a deadline ends in time, does the most valuable users first, and prints an estimate beforehand."""

import re
import time
from dataclasses import asdict

import numpy as np
import pytest
from profile_workspace import FakeEngine, make_workspace, profile
from tiny_llama import write_tiny_llama

from reclm_lite.errors import WorkspaceError
from reclm_lite.profiles import store
from reclm_lite.profiles.answers import StopSignal
from reclm_lite.profiles.generate import job_kind
from reclm_lite.profiles.run_progress import Observer
from reclm_lite.profiles.run_settings import RunSettings, settings_of_last
from reclm_lite.profiles.sampling import Sampling
from reclm_lite.profiles.scheduler import Engine, GenerationResult
from reclm_lite.profiles.sources import SourceSettings
from reclm_lite.profiles.sources import gguf as gguf_source

N_PROMPTS = 300
SECONDS_EACH = 0.02


class SlowEngine(FakeEngine):
    """Takes SECONDS_EACH for every answer and obeys the stop signal, as the real one does."""

    def generate(self, prompts, *, max_new_tokens, sampling, stop_signal=None, window=None):
        for index, prompt in enumerate(prompts):
            if stop_signal.drain.is_set() or stop_signal.stop.is_set():
                return
            time.sleep(SECONDS_EACH)
            stop_signal.seconds_each = SECONDS_EACH
            yield GenerationResult(index, self.answer(prompt, sampling), 40, 12, "stop", 10)


class Listener(Observer):
    def __init__(self):
        self.sentences, self.notes = [], []

    def say(self, sentence):
        self.sentences.append(sentence)

    def progress(self, done, total, note=""):
        self.notes.append(note)


@pytest.fixture
def ws(tmp_path, monkeypatch):
    """400 users: 100 share one history, 2 × 10 share another two, the rest have one each."""
    rng = np.random.default_rng(0)
    seen, train = set(), {}
    for user in range(400):
        items = (0, 1) if user < 100 else (2, 3) if user < 110 else (4, 5) if user < 120 else None
        while items is None or (items in seen and user >= 120):
            items = tuple(sorted(rng.choice(24, 5, replace=False).tolist()))
        seen.add(items)
        train[user] = list(items)
    monkeypatch.setattr(gguf_source, "Engine", SlowEngine)
    with make_workspace(tmp_path / "ws", train) as ws:
        yield ws


@pytest.fixture(scope="module")
def gguf(tmp_path_factory):
    return write_tiny_llama(tmp_path_factory.mktemp("model") / "tiny.gguf", n_ctx=1024)


def test_deadline_ends_the_run_with_the_most_shared_prompts_done(ws, gguf):
    listener = Listener()
    summary = profile(ws, model=gguf, deadline_seconds=2.5, observer=listener)
    assert summary.ended_by == "deadline" and 0 < summary.n_not_reached < 280
    assert summary.n_ok + summary.n_not_reached == summary.n_requested == 400
    assert "not reached before the deadline" in summary.sentence()
    done = {idx for idx, _ in store.usable_profiles(ws, "user")}
    assert set(range(120)) <= done and len(done) == summary.n_ok
    assert ws.db.execute("SELECT state FROM jobs").fetchall() == [("deadline",)]
    [forecast] = listener.sentences
    n_prompts, n_all, n_users = map(int, re.search(r"(\d+) of (\d+) prompts .* serve (\d+) users", forecast).groups())
    # The three shared prompts come first: 99, 9 and 9 users more than prompts.
    assert n_all == summary.n_distinct_prompts and n_users >= n_prompts + 117
    # The forecast was made after a tenth of the time, and was right to a third.
    assert n_users == pytest.approx(summary.n_ok, rel=0.33)
    assert any("deadline in" in note for note in listener.notes)


def test_run_that_the_deadline_ended_goes_on_where_it_was(ws, gguf):
    first = profile(ws, model=gguf, deadline_seconds=1.5)
    rows = dict(ws.db.execute("SELECT prompt_key, created FROM generations"))
    source, run = settings_of_last(ws, "users")
    assert source.model == str(gguf) and run.deadline_seconds is None
    second = profile(ws, model=gguf)
    assert (
        second.ended_by == "done"
        and second.n_generated == second.n_distinct_prompts - first.n_generated
        and second.n_ok == 400
    )
    assert rows.items() <= dict(ws.db.execute("SELECT prompt_key, created FROM generations")).items()
    assert settings_of_last(ws, "users") is None


def test_deadline_far_away_is_no_deadline_and_says_so(ws, gguf):
    listener = Listener()
    summary = profile(ws, model=gguf, limit=130, deadline_seconds=20.0, observer=listener)
    assert summary.ended_by == "done" and summary.n_not_reached == 0
    assert not listener.sentences or "before the deadline" in listener.sentences[0]


def test_draining_lets_those_begun_finish_and_begins_no_other(tmp_path):
    path = write_tiny_llama(tmp_path / "tiny.gguf")
    stop_signal, results = StopSignal(), []
    with Engine(path, 1, 4) as engine:
        for result in engine.generate(
            [f"prompt number {n}" for n in range(60)], max_new_tokens=12, stop_signal=stop_signal
        ):
            results.append(result)
            stop_signal.drain.set()
        assert 1 <= len(results) <= 12  # four were begun, and perhaps as many again before the stop signal was seen
        assert all(result.n_new_tokens == 12 or result.finish == "stop" for result in results)
        # The engine is as good as new.
        assert len(list(engine.generate(["one", "two"], max_new_tokens=4))) == 2


def test_stop_gives_up_those_begun(tmp_path):
    path = write_tiny_llama(tmp_path / "tiny.gguf")
    stop_signal = StopSignal()
    stop_signal.stop.set()
    with Engine(path, 2, 4) as engine:
        assert list(engine.generate(["one", "two", "three"], max_new_tokens=12, stop_signal=stop_signal)) == []


def test_stop_signal_is_set_in_time_for_the_last_answers():
    stop_signal = StopSignal()
    stop_signal.seconds_each = 0.4
    with stop_signal.by(time.monotonic() + 1.0):
        time.sleep(0.3)
        assert not stop_signal.drain.is_set()
        stop_signal.drain.wait(2.0)
        assert stop_signal.drain.is_set() and not stop_signal.stop.is_set()
        stop_signal.stop.wait(2.0)
        assert stop_signal.stop.is_set()


def test_settings_of_a_run_come_back_as_they_were(ws, gguf, monkeypatch):
    class Broken(SlowEngine):
        def generate(self, *args, **options):
            raise KeyboardInterrupt
            yield

    monkeypatch.setattr(gguf_source, "Engine", Broken)
    options = {"limit": 130, "n_retries": 3, "reuse": "prompt"}
    with pytest.raises(Exception, match="--resume"):
        profile(ws, model=gguf, n_slots=3, sampling=Sampling(0.5, 7, 9, guided=True), **options)
    source, run = settings_of_last(ws, "users")
    assert (source.n_slots, source.n_threads) == (3, 1)
    assert run == RunSettings(sampling=Sampling(0.5, 7, 9, guided=True), **options)


@pytest.mark.parametrize(
    ("part", "settings"),
    [
        ("run", {"n_retries": 30_000_000}),
        ("run", {"n_retries": True}),
        ("run", {"n_retries": None}),
        ("run", {"limit": -1}),
        ("run", {"limit": "all"}),
        ("run", {"fresh": 1}),
        ("run", {"reuse": ["history"]}),
        ("run", {"sampling": 7}),
        ("run", {"sampling": {"temperature": float("nan")}}),
        ("run", {"sampling": {"seed": 10**400}}),
        ("run", {"fresh_after": 2**70}),
        ("source", {"n_slots": 1_000_000}),
        ("source", {"n_ctx": 2**40}),
        ("source", {"max_new_tokens": 10**9}),
        ("source", {"timeout_seconds": 1e300}),
        ("source", {"requests_per_minute": 1e-300}),
        ("source", {"model": "x" * 5000}),
        ("source", {"endpoint": 5}),
        ("source", []),
    ],
)
def test_settings_of_a_stored_run_are_within_what_the_command_line_takes(ws, part, settings):
    stored = {"run": asdict(RunSettings()), "source": asdict(SourceSettings())}
    if isinstance(settings, dict):
        stored[part] |= settings
    else:
        stored[part] = settings
    store.start_job(ws, job_kind("user"), {"settings": stored})
    with pytest.raises(WorkspaceError, match="start a new run with its options, without --resume"):
        settings_of_last(ws, "user")
