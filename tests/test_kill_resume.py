"""A kill at any moment loses no profile; two processes do not share a workspace."""

import os
import signal
import time
from dataclasses import replace
from multiprocessing import Process
from pathlib import Path

import numpy as np
import profiling_child
import pytest
from profile_workspace import make_workspace, profile
from tiny_llama import write_tiny_llama

from reclm_lite.errors import WorkspaceError
from reclm_lite.prompts import forms
from reclm_lite.workspace import Workspace

N_USERS = 50
MAX_NEW_TOKENS = 40  # fewer than the product's, for the test's speed; the shortest profile takes 34 of this model


def shorten_answers(monkeypatch):
    monkeypatch.setitem(forms.FORMS, "compact", replace(forms.FORMS["compact"], max_new_tokens=MAX_NEW_TOKENS))


@pytest.fixture
def ws(tmp_path, monkeypatch):
    shorten_answers(monkeypatch)
    rng = np.random.default_rng(0)
    train = {user: sorted(rng.choice(24, 3, replace=False).tolist()) for user in range(N_USERS)}
    with make_workspace(tmp_path / "ws", train) as ws:
        yield ws


@pytest.fixture(scope="module")
def gguf(tmp_path_factory):
    # Slow enough that a kill finds it at work.
    return write_tiny_llama(tmp_path_factory.mktemp("model") / "tiny.gguf", n_embd=128, n_ff=256, n_layer=3, n_ctx=1024)


def start(ws: Workspace, gguf: Path) -> Process:
    return profiling_child.start(ws.root, gguf, MAX_NEW_TOKENS)


def kill(child: Process) -> bool:
    """False where it had ended by itself."""
    child.kill()
    child.join()
    return child.exitcode == -signal.SIGKILL


def generations(ws: Workspace) -> dict[str, tuple]:
    return {row[0]: row for row in ws.db.execute("SELECT * FROM generations")}


def wait_for(ws: Workspace, n: int, child: Process) -> None:
    deadline = time.monotonic() + 30
    while len(generations(ws)) < n and child.is_alive() and time.monotonic() < deadline:
        time.sleep(0.005)


def test_kill_at_any_moment_loses_nothing_and_a_rerun_makes_only_what_is_missing(ws, gguf):
    rng = np.random.default_rng(1)
    before: dict[str, tuple] = {}
    n_killed = 0
    for _ in range(3):
        child = start(ws, gguf)
        wait_for(ws, len(before) + int(rng.integers(1, 12)), child)
        time.sleep(float(rng.uniform(0, 0.02)))
        seen = generations(ws)
        n_killed += kill(child)
        after = generations(ws)
        assert before.items() <= seen.items() <= after.items()
        before = after
    assert n_killed == 3
    assert ws.db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    summary = profile(ws, "users", model=gguf, n_slots=4)
    whole = generations(ws)
    assert before.items() <= whole.items()
    assert summary.n_generated == len(whole) - len(before) > 0
    assert summary.n_ok + summary.n_invalid == N_USERS
    assert ws.db.execute("SELECT COUNT(*) FROM profiles WHERE side='user'").fetchone() == (N_USERS,)
    states = [row[0] for row in ws.db.execute("SELECT state FROM jobs ORDER BY job_id")]
    assert states == ["killed"] * (len(states) - 1) + ["done"]
    assert profile(ws, "users", model=gguf).n_generated == 0


def test_twenty_kills_at_random_moments_lose_nothing_and_make_nothing_twice(tmp_path, gguf, monkeypatch):
    """The kill comes anywhere: before the model is loaded, within a step, between a generation and its profiles."""
    shorten_answers(monkeypatch)
    rng = np.random.default_rng(5)
    train = {user: sorted(rng.choice(24, 4, replace=False).tolist()) for user in range(250)}
    before: dict[str, tuple] = {}
    n_killed = n_with_progress = 0
    with make_workspace(tmp_path / "ws", train) as ws:
        for number in range(20):
            child = start(ws, gguf)
            if number % 5:  # else it is at its beginning
                wait_for(ws, len(before) + 1, child)
            time.sleep(float(rng.uniform(0.0, 0.1)))
            n_killed += kill(child)
            after = generations(ws)
            assert before.items() <= after.items()
            n_with_progress += len(after) > len(before)
            before = after
            # A generation comes in one transaction with whom it is for, and with their profiles unless it is tried
            # again.
            strays = "SELECT COUNT(*) FROM generations WHERE prompt_key NOT IN (SELECT prompt_key FROM {})"
            assert ws.db.execute(strays.format("uses")).fetchone() == (0,)
            assert ws.db.execute(f"{strays.format('profiles')} AND status='ok'").fetchone() == (0,)
        assert n_killed == 20 and n_with_progress >= 4
        assert ws.db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        summary = profile(ws, "users", model=gguf, n_slots=8)
        whole = generations(ws)
        assert before.items() <= whole.items()
        assert summary.n_generated == len(whole) - len(before)
        assert summary.n_ok + summary.n_invalid == 250
        assert profile(ws, "users", model=gguf).n_generated == 0


def test_ctrl_c_ends_with_a_sentence_and_keeps_what_was_made(ws, gguf):
    child = start(ws, gguf)
    wait_for(ws, 3, child)
    os.kill(child.pid, signal.SIGINT)
    child.join()
    assert child.exitcode
    n = len(generations(ws))
    assert n >= 3
    assert ws.db.execute("SELECT state FROM jobs").fetchall() == [("interrupted",)]
    summary = profile(ws, "users", model=gguf)
    assert summary.n_generated == len(generations(ws)) - n


def test_second_process_in_a_workspace_is_refused(ws, gguf):
    child = start(ws, gguf)
    try:
        wait_for(ws, 1, child)
        with pytest.raises(WorkspaceError, match=f"pid {child.pid}"):
            profile(ws, "users", model=gguf)
    finally:
        kill(child)
    assert profile(ws, "users", model=gguf, limit=3).n_requested == 3
