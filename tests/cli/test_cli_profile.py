"""`reclm profile users`: options that contradict each other or would do nothing are refused, `--resume` takes over what
holds."""

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner
from profile_workspace import make_workspace
from pseudo_terminal import shown_on_a_terminal
from tiny_llama import write_tiny_llama

from reclm_lite.cli import main
from reclm_lite.profiles.run_settings import job_kind
from reclm_lite.profiles.sources import SourceSettings, open_source
from reclm_lite.profiles.store import unfinished_job
from reclm_lite.workspace import Workspace

TRAIN = {0: [0, 1], 1: [0, 1], 2: [2, 3], 3: [4, 5, 6]}
GOOD = "User identity: cook, gardener, parent; User interests: herbs, soups, tools"
NOWHERE = "http://127.0.0.1:9/v1"


@pytest.fixture
def root(tmp_path) -> Path:
    make_workspace(tmp_path / "ws", TRAIN).close()
    return tmp_path / "ws"


@pytest.fixture
def server(monkeypatch):
    """A server that gives every prompt the same profile; `asked` holds the models that were asked for."""
    for name in ("RECLM_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            http.asked.append(question["model"])
            body = json.dumps({"choices": [{"message": {"content": GOOD}, "finish_reason": "stop"}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.asked, http.url = [], f"http://127.0.0.1:{http.server_address[1]}/v1"
    threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
    yield http
    http.shutdown()
    http.server_close()


def profile_users(root: Path, *arguments: object, expect: int = 0) -> str:
    """Run the verb; returns stderr."""
    result = CliRunner().invoke(main, ["profile", "users", "-w", str(root), *map(str, arguments)])
    assert result.exit_code == expect, f"{arguments}: {result.output}\n{result.exception!r}"
    assert isinstance(result.exception, SystemExit | None)
    return result.stderr


def cut_short(root: Path) -> SourceSettings:
    """Let the last run count as one that the deadline ended; returns the source it was started with."""
    with Workspace.open(root) as ws:
        with ws.writing(), ws.db:
            ws.db.execute("UPDATE jobs SET state='deadline' WHERE job_id=(SELECT MAX(job_id) FROM jobs)")
        return SourceSettings(**unfinished_job(ws, job_kind("user"))["settings"]["source"])


def sources(root: Path) -> set[str]:
    with Workspace.open(root) as ws:
        return {row[0].split(",")[0] for row in ws.db.execute("SELECT source FROM profiles")}


# -- where the profiles come from -------------------------------------------------------


def test_rules_are_not_asked_of_an_endpoint(root, server):
    told = profile_users(root, "--model", "rules", "--endpoint", server.url, "--yes", expect=1)
    assert "runs on this machine" in told and "leave out --endpoint" in told
    assert not server.asked and not sources(root)


def test_a_server_may_call_its_model_by_the_name_of_a_file(root, server):
    profile_users(root, "--model", "models/my-q4_k_m.gguf", "--endpoint", server.url, "--yes", "--limit", 1)
    assert set(server.asked) == {"models/my-q4_k_m.gguf"}


def test_resume_with_another_model_leaves_the_endpoint(root, server):
    endpoint = ("--endpoint", server.url, "--requests-per-minute", 60000, "--price-in", 1)
    profile_users(root, "--model", "some-model", *endpoint, "--limit", 2, "--yes")
    n_asked = len(server.asked)
    assert n_asked and cut_short(root).endpoint == server.url
    profile_users(root, "--resume", "--model", "rules", "--fresh")
    assert len(server.asked) == n_asked and "rules" in sources(root)
    last = cut_short(root)
    assert (last.model, last.endpoint, last.requests_per_minute, last.price_in) == ("rules", None, None, None)


def test_resume_with_the_model_and_the_endpoint_asks_the_endpoint(root, server):
    profile_users(root, "--model", "some-model", "--endpoint", server.url, "--limit", 2, "--yes")
    cut_short(root)
    profile_users(root, "--resume", "--model", "other-model", "--endpoint", server.url, "--yes")
    assert set(server.asked) == {"some-model", "other-model"}
    cut_short(root)
    profile_users(root, "--resume", "--price-out", 2, "--endpoint", server.url, "--yes")  # and its model as it was
    last = cut_short(root)
    assert (last.model, last.endpoint, last.price_out) == ("other-model", server.url, 2.0)


def test_yes_does_not_agree_to_an_address_that_the_workspace_alone_names(root, server):
    """A workspace of somebody else may name any host in its last run; prompts and the key must not go there unasked."""
    profile_users(root, "--model", "some-model", "--endpoint", server.url, "--limit", 2, "--yes")
    cut_short(root)
    n_asked = len(server.asked)
    assert server.url in profile_users(root, "--resume", "--fresh", "--yes", expect=2)
    assert "stdin is not a terminal" in profile_users(root, "--resume", "--fresh", expect=2)
    assert len(server.asked) == n_asked
    with Workspace.open(root) as ws, ws.writing(), ws.db:
        ((job, detail),) = ws.db.execute("SELECT job_id, detail FROM jobs ORDER BY job_id DESC LIMIT 1")
        assert json.loads(detail)["settings"]["source"]["endpoint"] == server.url
        changed = json.loads(detail)
        changed["settings"]["source"] |= {
            "endpoint": None,
            "model": None,
            "engine": "ray",
            "ray_address": "10.0.0.1:6379",
        }
        ws.db.execute("UPDATE jobs SET detail=? WHERE job_id=?", (json.dumps(changed), job))
    assert "Ray cluster 10.0.0.1:6379 comes from the workspace" in profile_users(root, "--resume", expect=2)


def test_resume_at_an_endpoint_does_not_ask_it_for_the_model_of_this_machine(root):
    profile_users(root, "--model", "rules")
    cut_short(root)
    assert "--model NAME" in profile_users(root, "--resume", "--endpoint", NOWHERE, "--yes", expect=1)


def test_a_relative_model_is_found_from_another_folder(root, tmp_path, monkeypatch):
    path = write_tiny_llama(tmp_path / "tiny.gguf", n_ctx=1024)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    profile_users(root, "--model", "tiny.gguf", "--threads", 1, "--retries", 0, "--limit", 1)
    assert cut_short(root).model == str(path)
    monkeypatch.chdir(tmp_path / "elsewhere")
    profile_users(root, "--resume", "--limit", 2)
    assert cut_short(root).model == str(path)


def test_resume_refuses_another_file_under_the_name_of_the_model(root, tmp_path):
    path = write_tiny_llama(tmp_path / "tiny.gguf", n_ctx=1024)
    model = ("--model", path, "--threads", 1, "--retries", 0)
    assert "1 user profiled by tiny.gguf" in profile_users(root, *model, "--limit", 1)
    begun = cut_short(root)
    write_tiny_llama(path, n_ctx=1024, seed=7)
    told = profile_users(root, "--resume", expect=1)
    assert f"SHA-256 {begun.model_sha256[:12]}" in told and "without --resume" in told
    profile_users(root, "--resume", "--model", path, "--limit", 1)  # named again, so it is used
    assert cut_short(root).model_sha256 not in (None, begun.model_sha256)


def test_resume_of_a_run_that_ended_well_changes_nothing(root):
    profile_users(root, "--model", "rules")
    before = sources(root)
    assert "is complete" in profile_users(root, "--resume") and sources(root) == before
    assert "profiled by" in profile_users(root, "--resume", "--model", "rules", "--fresh")  # what is asked for is done


def test_fewer_new_tokens_than_the_shortest_profile_has_are_refused(root, tmp_path):
    path = write_tiny_llama(tmp_path / "tiny.gguf", n_ctx=1024)
    told = profile_users(root, "--model", path, "--threads", 1, "--max-new-tokens", 16, expect=1)
    assert "shortest profile" in told and "found 16" in told and not sources(root)


def test_names_that_are_no_files_stay_as_they_are(root, server):
    profile_users(root, "--model", "rules")
    assert cut_short(root).model == "rules"
    profile_users(root, "--model", "org/some-model", "--endpoint", server.url, "--yes")
    assert cut_short(root).model == "org/some-model"


def test_python_is_refused_a_model_of_this_machine_at_an_endpoint():
    from reclm_lite.errors import InputError

    with pytest.raises(InputError, match="runs on this machine"), open_source(SourceSettings("rules", NOWHERE), None):
        pass


# -- options that would do nothing --------------------------------------------------------


def test_an_empty_deadline_is_refused(root):
    assert "expected a duration" in profile_users(root, "--model", "rules", "--deadline", "", expect=1)
    assert not sources(root)


@pytest.mark.parametrize(
    ("source", "option", "told"),
    [
        ("rules", ("--price-in", "1"), "--price-in applies only to an endpoint"),
        ("rules", ("--price-out", "0"), "--price-out applies only to an endpoint"),
        ("rules", ("--requests-per-minute", "5"), "--requests-per-minute applies only to an endpoint"),
        ("rules", ("--ray-address", "127.0.0.1:1"), "--ray-address applies only to a Ray cluster: add --engine ray"),
        ("rules", ("--temperature", "0"), "--temperature has no effect with --model rules"),
        ("rules", ("--threads", "1"), "--threads has no effect with --model rules"),
        ("endpoint", ("--threads", "1"), "--threads has no effect on an endpoint"),
        ("rules", ("--slots", "4"), "--slots has no effect with --model rules"),
        ("rules", ("--seed", "0"), "--seed has no effect with --model rules"),
        ("rules", ("--retries", "1"), "--retries has no effect with --model rules"),
        ("rules", ("--fallback", "rules"), "--fallback has no effect with --model rules"),
        ("rules", ("--top-k", "40"), "--top-k has no effect with --model rules"),
        ("rules", ("--free",), "--guided/--free has no effect with --model rules"),
        ("rules", ("--max-new-tokens", "32"), "--max-new-tokens has no effect with --model rules"),
        ("endpoint", ("--free",), "--guided/--free has no effect on an endpoint"),
        ("endpoint", ("--top-k", "40"), "--top-k has no effect on an endpoint"),
        ("endpoint", ("--ray-address", "127.0.0.1:1"), "--ray-address applies only to a Ray cluster"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(root, source, option, told):
    models = {"rules": ("--model", "rules"), "endpoint": ("--model", "m", "--endpoint", NOWHERE, "--yes")}
    error = profile_users(root, *models[source], *option, expect=2)
    assert told in error and "leave it out" in error
    with Workspace.open(root) as ws:
        assert not ws.db.execute("SELECT 1 FROM jobs").fetchall()


def test_options_of_the_source_at_hand_and_defaults_are_not_refused(root, server):
    profile_users(
        root,
        "--model",
        "m",
        "--endpoint",
        server.url,
        "--yes",
        "--slots",
        1,
        "--temperature",
        0.5,
        "--seed",
        3,
        "--price-in",
        1,
        "--price-out",
        2,
        "--requests-per-minute",
        60000,
        "--max-new-tokens",
        64,
    )
    assert server.asked
    profile_users(root, "--model", "rules", "--engine", "local", "--reuse", "history")


# -- what is said ---------------------------------------------------------------------------


def test_stored_profiles_are_to_be_embedded_though_this_run_made_none(root, monkeypatch):
    from reclm_lite.profiles.sources.rules import Rules

    with monkeypatch.context() as context:
        context.setattr(Rules, "text_for", lambda self, side, idx: "")
        assert "No profile could be made" in profile_users(root, "--model", "rules")
    profile_users(root, "--model", "rules", "--fresh")
    monkeypatch.setattr(Rules, "text_for", lambda self, side, idx: "")
    told = profile_users(root, "--model", "rules", "--fresh", "--limit", 1)
    assert "1 invalid" in told and "Next: reclm embed profiles" in told and "No profile could be made" not in told


@pytest.mark.parametrize("note", ["1,234.5 prompts/s, 40 s left", "1,234.5 prompts/s, deadline in 12 h 34 min"])
def test_a_terminal_of_80_columns_shows_the_counts_and_the_note_whole(note):
    code = f"""
from reclm_lite.cli._options import progress_bar
with progress_bar("profiling users", eta=False) as update:
    update(23455, 23456, {note!r})
"""
    assert re.search(rf"23455/23456 \d:\d\d:\d\d {re.escape(note)}", shown_on_a_terminal(code, n_columns=80))
