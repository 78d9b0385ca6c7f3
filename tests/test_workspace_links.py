"""No link in a workspace is followed out of it, and a stored plan names nothing elsewhere."""

import json
import os
import shutil

import pytest
from bounds_workspace import IDS, N_ITEMS, bring, files_in, fill, reclm, ws  # noqa: F401  (a fixture)
from click.testing import CliRunner

from reclm_lite.cli import main
from reclm_lite.data.dataset import user_ids
from reclm_lite.errors import WorkspaceError
from reclm_lite.files import atomic_folder, atomic_path, lock_file
from reclm_lite.forget import forget_users
from reclm_lite.forget_plan import FORGETTING
from reclm_lite.workspace import Workspace

# -- links -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["reports", "llm/dialogues", "llm", "models", "matrices"])
def test_forget_touches_nothing_that_a_link_leads_to_and_names_it(ws, tmp_path, name):
    elsewhere = tmp_path / "elsewhere"
    shutil.move(ws.root / name, elsewhere)
    (elsewhere / "letters.txt").write_text("not of this software")
    (ws.root / name).symlink_to(elsewhere, target_is_directory=True)
    before = files_in(elsewhere)
    summary = forget_users(ws, [IDS[3]])
    assert files_in(elsewhere) == before
    assert any(
        "Links are not followed" in remains.text and f"{name} -> {elsewhere}" in remains.text
        for remains in summary.remains
    )
    assert IDS[3] not in user_ids(ws)


def test_links_to_files_are_left_and_their_rows_are_opened_no_more(ws, tmp_path):
    model, elsewhere = ws.path("models/lightgcn"), tmp_path / "lightgcn.safetensors"
    shutil.move(model, elsewhere)
    model.symlink_to(elsewhere)
    before = elsewhere.read_bytes()
    summary = forget_users(ws, [IDS[3]])
    assert elsewhere.read_bytes() == before and model.is_symlink()
    assert any("models/lightgcn.safetensors -> " in remains.text for remains in summary.remains)
    assert ws.has_rows_of_others("models/lightgcn") and "the list of users" in ws.stale_inputs("models/lightgcn")


def test_a_link_among_the_reports_is_deleted_but_not_what_it_leads_to(ws, tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "letters.txt").write_text("kept")
    (ws.root / "reports" / "link").symlink_to(tmp_path / "kept", target_is_directory=True)
    forget_users(ws, [IDS[3]])
    assert (tmp_path / "kept" / "letters.txt").read_text() == "kept" and not list((ws.root / "reports").iterdir())


@pytest.mark.parametrize("where", ["../victim", "{absolute}", "reports/../../victim", "llm/out/victim"])
@pytest.mark.parametrize("step", ["rename", "delete", "empty"])
def test_a_plan_that_names_a_file_elsewhere_is_not_carried_out(ws, tmp_path, where, step):
    """A workspace that somebody else made may hold any plan; opening it must not delete or overwrite files of this
    machine."""
    victim = tmp_path / "victim"
    (victim / "inner").mkdir(parents=True)
    (victim / "inner" / "file").write_text("mine")
    (ws.root / "llm" / "out").symlink_to(tmp_path, target_is_directory=True)
    (ws.root / "bait").write_text("theirs")
    name = where.format(absolute=victim)
    plan = {"rename": [], "delete": [], "empty": []}
    plan[step] = (
        [["bait", f"{name}/inner/file"], [f"{name}/inner/file", "models/stolen"]]
        if step == "rename"
        else [f"{name}/inner", name]
    )
    with ws.db:
        ws.db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (FORGETTING, json.dumps(plan)))
    ws.close()
    with Workspace.open(ws.root) as again:
        assert again.get_meta(FORGETTING) is None
    assert (victim / "inner" / "file").read_text() == "mine" and not (ws.root / "models" / "stolen").exists()


@pytest.mark.parametrize(
    "name",
    [
        ".lock",
        "workspace.toml",
        "models/popularity.safetensors",
        "matrices/split.safetensors",
        "models/.lightgcn.checkpoint",
    ],
)
def test_links_of_names_known_in_advance_are_not_written_through(ws, tmp_path, name):
    """A received workspace may hold a link to any file or folder of the machine under a name that a command will
    write."""
    victim = tmp_path / "victim"
    if name.endswith("checkpoint"):
        victim.mkdir()
        (victim / "letters.txt").write_text("mine")
    else:
        victim.write_text("mine")
    path = ws.root / name
    path.unlink(missing_ok=True)
    path.symlink_to(victim)
    before = files_in(victim) if victim.is_dir() else victim.read_bytes()
    ws.close()
    for command in (
        ["split", "--method", "ratio"],
        ["fit", "popularity"],
        ["fit", "lightgcn", "--set", "epochs=1"],
        ["report"],
    ):
        CliRunner().invoke(main, [*command, "-w", str(ws.root)])
    assert (files_in(victim) if victim.is_dir() else victim.read_bytes()) == before


def test_a_database_that_is_a_link_is_refused(ws, tmp_path):
    ws.close()
    shutil.move(ws.root / "workspace.db", tmp_path / "other.db")
    (ws.root / "workspace.db").symlink_to(tmp_path / "other.db")
    with pytest.raises(WorkspaceError, match="is a link to .*other.db, expected the file itself"):
        Workspace.open(ws.root)


def test_temporary_names_that_are_links_are_not_written_through(tmp_path):
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "letters.txt").write_text("mine")
    (tmp_path / f".x.toml.{os.getpid()}.tmp").symlink_to(victim / "letters.txt")
    with atomic_path(tmp_path / "x.toml") as temporary:
        temporary.write_text("ours")
    (tmp_path / ".out.partial").symlink_to(victim)
    (tmp_path / "out").symlink_to(victim)
    with atomic_folder(tmp_path / "out") as folder:
        folder.mkdir()
        (folder / "letters.txt").write_text("ours")
    (tmp_path / "log").symlink_to(victim / "letters.txt")
    with pytest.raises(WorkspaceError, match="is a link"):
        lock_file(tmp_path / "log")
    assert (victim / "letters.txt").read_text() == "mine" and len(list(victim.iterdir())) == 1
    assert (tmp_path / "x.toml").read_text() == "ours" == (tmp_path / "out" / "letters.txt").read_text()


@pytest.mark.parametrize("name", ["reports", "matrices", "models", "llm/dialogues"])
def test_nothing_is_made_in_a_folder_that_is_a_link_unless_the_user_says_so(ws, tmp_path, monkeypatch, name):
    shutil.move(ws.root / name, tmp_path / "elsewhere")
    (ws.root / name).symlink_to(tmp_path / "elsewhere")
    before = files_in(tmp_path / "elsewhere")
    ws.close()
    for command in (
        ["split", "--method", "ratio"],
        ["fit", "popularity"],
        ["report"],
        ["dialogue", "build", "sft", "--limit", "2"],
    ):
        assert f"{name} is a link to {tmp_path / 'elsewhere'}" in reclm(*command, "-w", ws.root, code=1)
    assert files_in(tmp_path / "elsewhere") == before
    monkeypatch.setenv("RECLM_FOLLOW_LINKS", "1")
    reclm("fit", "popularity", "-w", ws.root)


@pytest.mark.parametrize(
    "plan",
    [
        "[]",
        "{",
        "5",
        '{"rename": [["a", "b", "c"]], "empty": [], "delete": []}',
        '{"rename": [], "empty": [3], "delete": []}',
        '{"rename": [], "empty": [], "delete": ["a\\u0000b"]}',
        "[" * 100_000,
    ],
)
def test_a_plan_that_is_none_is_left_out(ws, plan):
    with ws.db:
        ws.db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (FORGETTING, plan))
    ws.close()
    with Workspace.open(ws.root) as again:
        assert again.get_meta(FORGETTING) is None and user_ids(again) == IDS
