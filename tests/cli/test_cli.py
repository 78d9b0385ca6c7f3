"""The command line is a contract: help, examples, exit codes, one JSON document on stdout."""

import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest
from commands import ITEMS, reclm, verbs

from reclm_lite.cli._group import VERBS

RECLM = Path(sysconfig.get_path("scripts")) / "reclm"


@pytest.fixture(scope="module")
def csv(tmp_path_factory) -> Path:
    """Eight users; the last one has a single interaction."""
    folder = tmp_path_factory.mktemp("csv")
    rows = ["customer,sku,when,name,kind"]
    for user in range(7):
        for turn in range(4):
            ident, title, kind = ITEMS[(user + turn) % len(ITEMS)]
            rows.append(f"u{user},{ident},2024-01-{10 + turn:02d},{title},{kind}")
    rows.append(f"once,{ITEMS[0][0]},2024-01-10,{ITEMS[0][1]},{ITEMS[0][2]}")
    path = folder / "orders.csv"
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def built(tmp_path_factory, csv) -> Path:
    """A workspace that has gone the whole path by commands (profiles by rules, so that it is quick)."""
    ws = tmp_path_factory.mktemp("cli") / "ws"
    reclm("init", ws)
    reclm(
        "import",
        "table",
        csv,
        "-w",
        ws,
        "--user",
        "customer",
        "--item",
        "sku",
        "--time",
        "when",
        "--title",
        "name",
        "--category",
        "kind",
    )
    reclm("split", "-w", ws, "--method", "none")
    reclm("embed", "items", "-w", ws)
    for model in ("popularity", "random"):
        reclm("fit", model, "-w", ws)
    reclm("fit", "lightgcn", "-w", ws, "--epochs", "2")
    reclm("neighbors", "-w", ws, "-k", "2")
    reclm("profile", "users", "-w", ws, "--model", "rules")
    reclm("embed", "profiles", "-w", ws)
    reclm("fit", "lightgcn", "-w", ws, "--profiles", "users", "--epochs", "2")
    return ws


@pytest.mark.parametrize(
    ("path", "command"), verbs(), ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_every_verb_has_help_with_an_example_and_verbosity(path, command):
    text = reclm(*path, "--help")
    assert "Example:" in text and f"reclm {path[0]}" in text
    assert "--verbose" in text and "--debug" in text


def test_readme_or_formats_names_every_verb():
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    missing = [name for name in VERBS if f"reclm {name}" not in readme]
    assert not missing


def test_bad_usage_exits_with_two():
    assert "Did you mean 'fit'" in reclm("fti", expect=2)
    reclm("import", expect=2)
    reclm("recommend", "-w", ".", expect=2)


def test_failure_exits_with_one_and_one_sentence(tmp_path):
    error = reclm("info", "-w", tmp_path / "nothing", expect=1)
    assert "is not a workspace" in error and "reclm init" in error and "Traceback" not in error


def test_missing_stage_names_the_command_that_makes_it(tmp_path, csv):
    ws = tmp_path / "ws"
    reclm("init", ws)
    assert "reclm import" in reclm("split", "-w", ws, expect=1)
    reclm("import", "table", csv, "-w", ws, "--user", "customer", "--item", "sku")
    assert "reclm split" in reclm("fit", "popularity", "-w", ws, expect=1)
    reclm("split", "-w", ws)
    assert "reclm profile" in reclm("fit", "lightgcn", "-w", ws, "--profiles", "users", expect=1)


def test_info_names_the_next_command_at_every_stage(tmp_path, csv):
    ws = tmp_path / "ws"
    reclm("init", ws)
    assert json.loads(reclm("info", "-w", ws, "--json"))["next"].startswith("reclm import")
    reclm("import", "table", csv, "-w", ws, "--user", "customer", "--item", "sku", "--title", "name")
    assert json.loads(reclm("info", "-w", ws, "--json"))["next"].startswith("reclm split")
    reclm("split", "-w", ws)
    assert json.loads(reclm("info", "-w", ws, "--json"))["next"].startswith("reclm embed items")


def test_info_says_what_is_stale(built, tmp_path):
    ws = tmp_path / "copy"
    shutil.copytree(built, ws)
    reclm("split", "-w", ws, "--method", "none", "--seed", "5")
    stages = {stage["name"]: stage["state"] for stage in json.loads(reclm("info", "-w", ws, "--json"))["stages"]}
    assert stages["split"] == "ready" and stages["model lightgcn"] == "stale"
    assert "reclm fit lightgcn" in reclm("recommend", "-w", ws, "--user", "u1", "--model", "lightgcn", expect=1)


def test_evaluate_json_is_one_document_of_the_stated_form(built, tmp_path):
    ws = tmp_path / "copy"
    shutil.copytree(built, ws)
    reclm("split", "-w", ws, "--method", "ratio", "--test-fraction", "0.3")
    reclm("fit", "biasmf", "-w", ws, "--epochs", "2")
    document = json.loads(reclm("evaluate", "-w", ws, "--json"))
    assert {"dataset", "split", "rows"} <= set(document)
    keys = {"model", "profiles", "setting", "selection", "recall@20", "recall@40", "ndcg@20", "ndcg@40", "n_users"}
    assert all(keys <= set(row) for row in document["rows"])
    assert {"random", "popularity", "biasmf"} <= {row["model"] for row in document["rows"]}


def test_recommend_json_is_one_document_of_the_stated_form(built):
    document = json.loads(reclm("recommend", "-w", built, "--user", "u1", "-k", "2", "--json"))
    assert document["user"] == "u1" and len(document["items"]) == 2 and document["basis"]
    assert all({"item", "title", "score"} <= set(item) for item in document["items"])
    seen = {ITEMS[(1 + turn) % len(ITEMS)][0] for turn in range(4)}
    assert not seen & {item["item"] for item in document["items"]}


def test_ids_keep_their_spelling(built):
    document = json.loads(reclm("recommend", "-w", built, "--text", "goal in the derby", "-k", "1", "--json"))
    assert document["items"][0]["item"] == "007"


def test_unknown_user_is_told_with_close_ids(built):
    assert "u1" in reclm("recommend", "-w", built, "--user", "u11", expect=1)


def test_profile_show_and_edit(built, tmp_path):
    ws = tmp_path / "copy"
    shutil.copytree(built, ws)
    shown = json.loads(reclm("profile", "show", "-w", ws, "--user", "u1", "--json"))
    assert shown["status"] == "ok" and shown["profile"].startswith("User identity: ")
    mine = "User identity: cook, baker, parent; User interests: soup, bread, squash"
    reclm("profile", "edit", "-w", ws, "--user", "u1", mine)
    reclm("profile", "users", "-w", ws, "--model", "rules")
    assert json.loads(reclm("profile", "show", "-w", ws, "--user", "u1", "--json"))["profile"] == mine
    assert "User identity" in reclm("profile", "edit", "-w", ws, "--user", "u1", "a nice person", expect=1)


def test_import_refuses_to_replace_unasked_and_keeps_what_was_there(built, csv, tmp_path):
    ws = tmp_path / "copy"
    shutil.copytree(built, ws)
    arguments = ("import", "table", csv, "-w", ws, "--user", "customer", "--item", "sku")
    assert "--replace" in reclm(*arguments, expect=1)
    bad = tmp_path / "bad.csv"
    bad.write_text("a,b\n1,2\n", encoding="utf-8")
    assert "customer" in reclm(
        "import", "table", bad, "-w", ws, "--user", "customer", "--item", "sku", "--replace", expect=1
    )
    assert json.loads(reclm("recommend", "-w", ws, "--user", "u1", "-k", "1", "--json"))["items"]
    reclm(*arguments, "--replace")
    assert "reclm split" in reclm("fit", "popularity", "-w", ws, expect=1)


def test_second_process_in_a_workspace_is_told_to_wait(built):
    from reclm_lite.workspace import Workspace

    with Workspace.open(built) as ws, ws.writing():
        result = subprocess.run([RECLM, "fit", "popularity", "-w", built], capture_output=True, text=True, timeout=60)
    assert result.returncode == 1 and "another reclm process" in result.stderr
    assert subprocess.run([RECLM, "fit", "popularity", "-w", built], capture_output=True, timeout=60).returncode == 0


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files through the shell")
def test_full_disk_is_told_and_leaves_the_old_data(built, tmp_path):
    """A file-size limit stands in for the full disk: the write fails with EFBIG or a short write, as ENOSPC would."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("needs root to mount a small file system")
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", small], capture_output=True).returncode:
        pytest.skip("cannot mount a small file system here")
    try:
        ws = small / "ws"
        reclm("init", ws)
        big = tmp_path / "big.csv"
        big.write_text("user,item\n" + "".join(f"u{n},i{n % 997}\n" for n in range(60_000)), encoding="utf-8")
        result = subprocess.run(
            [RECLM, "import", "table", big, "-w", ws, "--user", "user", "--item", "item"],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert result.returncode == 1 and "no space left" in result.stderr, result.stderr
        assert "reclm import" in reclm("info", "-w", ws)
    finally:
        subprocess.run(["umount", small], check=True)


def test_kill_in_the_middle_of_import_leaves_old_or_new_never_a_mix(tmp_path):
    ws, big = tmp_path / "ws", tmp_path / "big.csv"
    big.write_text("user,item\n" + "".join(f"u{n % 5003},i{n % 997}\n" for n in range(300_000)), encoding="utf-8")
    small = tmp_path / "small.csv"
    small.write_text("user,item\na,x\na,y\nb,x\n", encoding="utf-8")
    options = ("--user", "user", "--item", "item", "-w", ws)
    reclm("init", ws)
    reclm("import", "table", small, *options)
    outcomes = set()
    for delay in (0.3, 0.5, 0.7, 0.9, 1.2, 1.6, 2.5):
        process = subprocess.Popen(
            [RECLM, "import", "table", big, *map(str, options), "--replace"], stderr=subprocess.DEVNULL
        )
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        stages = json.loads(reclm("info", "-w", ws, "--json"))["stages"]
        assert stages[0]["state"] == "ready"
        outcomes.add(stages[0]["detail"])
    assert outcomes <= {"2 users, 2 items, 3 interactions", "5,003 users, 997 items, 300,000 interactions"}, outcomes


def test_interrupt_exits_with_one_sentence(built, tmp_path):
    ws = tmp_path / "copy"
    shutil.copytree(built, ws)
    process = subprocess.Popen(
        [RECLM, "fit", "lightgcn", "-w", ws, "--epochs", "1000000"], stderr=subprocess.PIPE, text=True
    )
    time.sleep(3)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 1 or "Fitted" in error
    assert "Traceback" not in error
    reclm("recommend", "-w", ws, "--user", "u1", "--model", "lightgcn")
