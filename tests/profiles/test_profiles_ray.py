"""A Ray cluster gives the same answers, and losing a node or the driver loses no stored answer."""

import asyncio
import dataclasses
import logging
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from profile_workspace import make_workspace
from tiny_llama import write_tiny_llama

from reclm_lite.errors import ModelError
from reclm_lite.files import file_sha256
from reclm_lite.profiles.answers import Group, StopSignal
from reclm_lite.profiles.generate import Observer, RunSettings, run_profiles
from reclm_lite.profiles.scheduler import GREEDY, GenerationResult
from reclm_lite.profiles.sources import SourceSettings, ray_cluster, ray_mailbox
from reclm_lite.profiles.sources.gguf import Gguf
from reclm_lite.prompts import forms
from reclm_lite.workspace import Workspace

N_USERS = 100
MAX_NEW_TOKENS = 40  # fewer than the product's, for the test's speed; the shortest profile takes 34 of this model
OBJECT_STORE_BYTES = 80 << 20
CHILD = """
import sys
from dataclasses import replace
from pathlib import Path
from reclm_lite.profiles.answers import StopSignal, Group
from reclm_lite.profiles.generate import RunSettings, run_profiles
from reclm_lite.profiles.sources import SourceSettings, ray_mailbox
from reclm_lite.prompts import forms
from reclm_lite.workspace import Workspace
root, model, address = sys.argv[1:4]
forms.FORMS["compact"] = replace(forms.FORMS["compact"], max_new_tokens=int(sys.argv[4]))
ray_mailbox.BATCH_LEAST = 8
with Workspace.open(Path(root)) as ws:
    source = SourceSettings(model, n_threads=1, n_slots=4, engine="ray", ray_address=address)
    run_profiles(ws, "users", source=source, settings=RunSettings(n_retries=0))
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    # Slow enough that a kill finds it at work.
    return write_tiny_llama(tmp_path_factory.mktemp("model") / "tiny.gguf", n_embd=256, n_ff=512, n_layer=6, n_ctx=512)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setitem(forms.FORMS, "compact", replace(forms.FORMS["compact"], max_new_tokens=MAX_NEW_TOKENS))
    monkeypatch.setattr(ray_mailbox, "BATCH_LEAST", 8)


@pytest.fixture
def ws(tmp_path, small):
    rng = np.random.default_rng(0)
    train = {user: sorted(rng.choice(24, 3, replace=False).tolist()) for user in range(N_USERS)}
    with make_workspace(tmp_path / "ws", train) as ws:
        yield ws


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of one CPU each on this machine; a dead one is noticed within seconds."""
    pytest.importorskip("ray.data", reason="the extra [ray] is not installed")
    from ray.cluster_utils import Cluster

    before = dict(os.environ)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    watch = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 1000}
    node = {"num_cpus": 1, "object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args={**node, "_system_config": watch})
    try:
        made.add_node(**node)
        yield made
    finally:
        import ray

        ray.shutdown()
        made.shutdown()
        os.environ.clear()
        os.environ.update(before)


def settings(model: Path, **options) -> SourceSettings:
    return SourceSettings(str(model), n_threads=1, n_slots=4, **options)


def generations(ws: Workspace) -> dict[str, tuple]:
    return {row[0]: row for row in ws.db.execute("SELECT * FROM generations")}


class KillNode(Observer):
    """Kills a node without warning once both are at work, at the latest when three quarters of the users have a
    profile."""

    def __init__(self, raylet: int, caplog: pytest.LogCaptureFixture):
        self.raylet, self.caplog, self.killed_at = raylet, caplog, None

    def progress(self, done: int, total: int, note: str = "") -> None:
        n_begun = sum("has begun" in record.message for record in self.caplog.records)
        if self.killed_at is None and ((n_begun == 2 and done > total // 8) or done > 3 * total // 4):
            self.killed_at = done
            os.kill(self.raylet, signal.SIGKILL)


def test_worker_with_another_file_ends_the_run_with_its_own_sentence_and_the_name_of_its_node(cluster, model, small):
    source = ray_cluster.RayCluster(model, False, settings(model, engine="ray", ray_address=cluster.address))
    try:
        source.about.sha256 = "0" * 64
        with pytest.raises(
            ModelError, match=r"^node .*: expected .*tiny\.gguf to be the driver's model .* found a file with SHA-256"
        ):
            list(source.answers("user", [Group("a prompt", (0,))], GREEDY, StopSignal()))
    finally:
        source.close()


def test_drained_run_ends_early_with_the_answers_that_were_begun(cluster, model, small):
    source = ray_cluster.RayCluster(model, False, settings(model, engine="ray", ray_address=cluster.address))
    groups = [Group(f"prompt {number} of a long row of prompts", (number,)) for number in range(400)]
    stop_signal, answered = StopSignal(), []
    try:
        for group, generation in source.answers("user", groups, GREEDY, stop_signal):
            answered.append(group.idxs[0])
            assert generation.n_new_tokens > 0
            stop_signal.drain.set()
    finally:
        source.close()
    assert len(set(answered)) == len(answered) < len(groups) // 2
    assert stop_signal.seconds_each > 0 and source.spent.n_answers == len(answered)


def test_killed_driver_leaves_its_answers_and_the_local_engine_makes_the_rest(cluster, ws, model):
    # No finally of its own runs at a SIGKILL: what ends its actors is that Ray misses it.
    command = [sys.executable, "-c", CHILD, str(ws.root), str(model), cluster.address, str(MAX_NEW_TOKENS)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        until = time.monotonic() + 120
        while len(generations(ws)) < 10 and child.poll() is None and time.monotonic() < until:
            time.sleep(0.01)
    finally:
        child.kill()
        printed = child.communicate()[0]
    assert child.returncode == -signal.SIGKILL and printed == b""
    before = generations(ws)
    assert 10 <= len(before) < N_USERS // 2
    summary = run_profiles(ws, "users", source=settings(model), settings=RunSettings(n_retries=0))
    after = generations(ws)
    assert before.items() <= after.items()
    assert summary.n_from_cache == len(before)
    assert summary.n_generated == len(after) - len(before) > 0
    assert summary.n_ok + summary.n_invalid == N_USERS


def test_a_node_killed_half_way_costs_no_answer_and_they_are_those_of_the_local_engine(
    cluster, ws, model, caplog, capfd
):
    (node,) = cluster.worker_nodes
    killer = KillNode(node.all_processes["raylet"][0].process.pid, caplog)
    caplog.set_level(logging.INFO, "reclm_lite")
    source = settings(model, engine="ray", ray_address=cluster.address)
    capfd.readouterr()
    summary = run_profiles(ws, "users", source=source, settings=RunSettings(n_retries=0), observer=killer)
    assert capfd.readouterr().out == ""
    assert killer.killed_at < N_USERS
    assert any("1 node(s) left" in note for note in summary.notes)
    made = generations(ws)
    assert summary.n_generated == len(made) == summary.n_distinct_prompts
    assert ws.db.execute("SELECT COUNT(DISTINCT idx) FROM profiles WHERE side='user'").fetchone() == (N_USERS,)

    again = run_profiles(ws, "users", source=settings(model), settings=RunSettings(n_retries=0))
    assert (again.n_generated, again.n_from_cache) == (0, len(made))
    fresh = RunSettings(n_retries=0, fresh=True)
    run_profiles(ws, "users", source=settings(model), settings=fresh)
    local = generations(ws)
    assert local.keys() == made.keys()
    assert [row[1:4] for row in local.values()] == [made[key][1:4] for key in local]  # raw, status, reason


def test_a_row_is_answered_once_whoever_hands_it_over():
    def result(row: int, text: str) -> GenerationResult:
        return GenerationResult(row, text, 3, 3, "stop")

    async def story() -> None:
        mailbox = ray_mailbox.Mailbox("absent")
        assert await mailbox.begin("a", [1, 2, 3]) == ([1, 2, 3], True)
        assert await mailbox.hand_over("a", [result(1, "first"), result(3, "first")], 0.5) == (False, False)
        # Node a is lost, its batch is given to b.
        assert await mailbox.begin("b", [1, 2, 3]) == ([2], True)
        await mailbox.hand_over("b", [result(2, "second"), result(3, "second")], 0.25)
        news = await mailbox.take(False, False, 0.0)
        assert [(one.index, one.text) for one in news.results] == [(1, "first"), (3, "first"), (2, "second")]
        assert (news.seconds_each, news.nodes, news.error) == (0.5, ["a", "b"], None)
        assert (await mailbox.take(True, False, 0.0)).results == []
        assert await mailbox.begin("b", [4]) == ([4], False)
        assert await mailbox.hand_over("b", [], 0.25) == (True, False)
        await mailbox.fail("the first")
        await mailbox.fail("the second")
        assert (await mailbox.take(True, False, 0.0)).error == "the first"
        assert await mailbox.hand_over("b", [], 0.25) == (True, True)

    asyncio.run(story())


def test_a_batch_that_kills_every_worker_ends_the_run():
    async def story() -> list[bool]:
        mailbox = ray_mailbox.Mailbox("absent")
        went_on = []
        for number in range(ray_mailbox.MAX_BEGUN):
            went_on.append((await mailbox.begin(f"node {number}", [7, 8, 9]))[1])
        # One answer came after all, so it is not the batch.
        await mailbox.hand_over("node 3", [GenerationResult(8, "text", 3, 3, "stop")], 0.5)
        for number in range(ray_mailbox.MAX_BEGUN + 1):
            went_on.append((await mailbox.begin(f"node {number}", [7, 8, 9]))[1])
        assert (await mailbox.take(False, False, 0.0)).error.startswith(
            "node 4: expected answers to 2 prompts, found that the worker"
        )
        return went_on

    assert asyncio.run(story()) == [True] * 2 * ray_mailbox.MAX_BEGUN + [False]


@pytest.mark.parametrize(("n", "n_nodes"), [(1, 1), (15, 4), (500, 2), (57_128, 3), (1_000_000, 64)])
def test_batches_hold_every_prompt_and_shrink_towards_the_end(n, n_nodes):
    sizes = ray_mailbox.batch_sizes(n, n_nodes)
    assert sum(sizes) == n and min(sizes) > 0
    assert max(sizes) <= ray_mailbox.BATCH_MOST
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] <= max(ray_mailbox.BATCH_LEAST, n // n_nodes)


@pytest.fixture
def job(model):
    return ray_mailbox.Job(
        str(model),
        False,
        file_sha256(model),
        model.stat().st_size,
        512,
        None,
        None,
        None,
        MAX_NEW_TOKENS,
        GREEDY,
        False,
    )


def never(offset: int) -> bytes:
    raise AssertionError("nothing is sent")


def test_node_that_has_the_model_is_sent_nothing(job, model):
    assert ray_mailbox.model_file(job, never) == model


def test_node_without_the_model_is_sent_it_once(job, model, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(ray_mailbox, "CHUNK_BYTES", 1 << 20)
    elsewhere = dataclasses.replace(job, path=str(tmp_path / "absent.gguf"))
    mailbox = ray_mailbox.Mailbox(str(model))
    copy = ray_mailbox.model_file(elsewhere, lambda offset: asyncio.run(mailbox.chunk(offset)))
    assert copy.read_bytes() == model.read_bytes() and job.size_bytes > 2 << 20
    assert os.listdir(copy.parent) == [f"{job.sha256}.gguf"]
    assert ray_mailbox.model_file(elsewhere, never) == copy
    copy.write_bytes(b"damaged")
    assert (
        ray_mailbox.model_file(elsewhere, lambda offset: asyncio.run(mailbox.chunk(offset))).read_bytes()
        == model.read_bytes()
    )


def test_what_is_sent_must_be_the_model(job, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    elsewhere = dataclasses.replace(job, path=str(tmp_path / "absent.gguf"))
    with pytest.raises(ModelError, match="found others"):
        ray_mailbox.model_file(elsewhere, lambda offset: b"x" * (job.size_bytes - offset))
    with pytest.raises(ModelError, match="found others"):
        ray_mailbox.model_file(elsewhere, lambda offset: b"")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(ModelError, match="expected room for the model in .*put the model at"):
        ray_mailbox.model_file(elsewhere, never)
    assert not list((tmp_path / "cache").rglob("*gguf*"))


def test_missing_ray_is_told_with_the_command_that_installs_it(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    source = ray_cluster.RayCluster(model, False, settings(model, engine="ray"))
    with pytest.raises(ModelError, match=r'requires ray.*pip install "reclm-lite\[ray\]"'):
        list(source.answers("user", [Group("a prompt", (0,))], GREEDY, StopSignal()))
    source.close()


def test_address_of_no_cluster_is_told(model, monkeypatch):
    pytest.importorskip("ray.data", reason="the extra [ray] is not installed")
    source = ray_cluster.RayCluster(model, False, settings(model, engine="ray", ray_address="ray://127.0.0.1:10001"))
    with pytest.raises(ModelError, match="a cluster that this machine belongs to"):
        list(source.answers("user", [Group("a prompt", (0,))], GREEDY, StopSignal()))


def test_keys_are_those_of_the_local_engine(model):
    local, far = (
        Gguf(model, False, settings(model)),
        ray_cluster.RayCluster(model, False, settings(model, engine="ray")),
    )
    assert local.identity(GREEDY) == far.identity(GREEDY) and local.label(GREEDY) == far.label(GREEDY)
    local.close(), far.close()
