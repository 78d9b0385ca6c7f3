"""People who left can still be forgotten, files have one mode, and a full disk does not hinder reading."""

import json
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from bounds_workspace import IDS, N_ITEMS, bring, files_in, fill, reclm, ws  # noqa: F401  (a fixture)

from reclm_lite.artefacts import ids_digest, read_provenance
from reclm_lite.cf.fit import fit
from reclm_lite.data.dataset import LEFT_BEHIND, load_interactions, user_ids
from reclm_lite.data.split import run_split
from reclm_lite.errors import InputError, WorkspaceError
from reclm_lite.forget import forget_users, of_earlier_data
from reclm_lite.workspace import Workspace

# -- people who left ---------------------------------------------------------------------


@pytest.mark.parametrize("update", [True, False])
def test_who_left_with_an_import_is_named_to_remain_and_can_be_forgotten_by_id(ws, update):
    bring(ws, [ident for ident in IDS if ident != IDS[3]], update=update)
    assert ws.get_meta(LEFT_BEHIND) == "1"
    told = {deleted.path for deleted in of_earlier_data(ws)}
    assert {
        "reports",
        "llm/dialogues/sft.jsonl",
        "models/lightgcn.safetensors",
        "matrices/neighbors.safetensors",
    } <= told
    assert (ws.root / "reports" / "report.html").exists(), "looking deletes nothing"
    summary = forget_users(ws, [IDS[3]])
    assert summary.not_in_data == [IDS[3]] and summary.users == []
    assert not any(IDS[3].encode() in content for content in files_in(ws.root).values())
    assert user_ids(ws) == [ident for ident in IDS if ident != IDS[3]] and load_interactions(ws).n_users == 9
    assert of_earlier_data(ws) == [] and ws.get_meta(LEFT_BEHIND) is None
    assert ws.has("vectors/items"), "item vectors tell of nobody"
    with pytest.raises(InputError, match="expected the id of a user"):
        forget_users(ws, [IDS[3]])


def test_who_is_there_and_who_left_go_in_one_pass(ws):
    bring(ws, IDS[1:], update=True)
    run_split(ws, "ratio", seed=0)
    fit(ws, "popularity")
    summary = forget_users(ws, [IDS[0], IDS[5]])
    assert (summary.users, summary.not_in_data) == ([IDS[5]], [IDS[0]])
    assert user_ids(ws) == [ident for ident in IDS[1:] if ident != IDS[5]]
    assert ws.stale_inputs("models/popularity") == [] and not ws.has("models/lightgcn")


def test_an_update_without_loss_leaves_nobody_behind(ws):
    bring(ws, [*IDS, "new"], update=True)
    assert ws.get_meta(LEFT_BEHIND) is None and of_earlier_data(ws) == []


def test_replaced_people_are_wiped_from_the_free_pages_of_the_database(ws):
    bring(ws, [f"somebody-else-{n}" for n in range(10)])
    ws.close()
    assert b"reader-3" not in (ws.root / "workspace.db").read_bytes()
    assert not (ws.root / "workspace.db-wal").exists() or b"reader-3" not in (ws.root / "workspace.db-wal").read_bytes()


def test_command_for_all_who_left(ws):
    reclm("forget", "-w", ws.root, "--yes", code=2)
    assert "Would delete reports" in reclm("forget", "--gone", "-w", ws.root, "--dry-run"), "they may tell of anybody"
    bring(ws, IDS[:-2], update=True)
    assert "Would delete models/lightgcn.safetensors: made of earlier data" in reclm(
        "forget", "--gone", "-w", ws.root, "--dry-run"
    )
    assert (ws.root / "models" / "lightgcn.safetensors").exists()
    told = reclm("forget", IDS[-1], "-w", ws.root, "--yes")
    assert f"Not among the present users: {IDS[-1]}" in told and "Deleted reports" in told
    assert not (ws.root / "models" / "lightgcn.safetensors").exists()


def test_what_the_library_leaves_of_a_killed_write_is_deleted(ws):
    left = ws.root / "models" / ".tmpAb12Cd"
    left.write_text(IDS[3])
    forget_users(ws, [IDS[3]])
    assert not left.exists()


# -- files ---------------------------------------------------------------------------------


def test_artefacts_have_the_mode_that_the_umask_gives_like_the_database(tmp_path):
    before = os.umask(0o027)
    try:
        with Workspace.create(tmp_path / "ws") as ws:
            bring(ws, IDS)
            fill(ws)
            modes = {stat.S_IMODE(path.stat().st_mode) for path in ws.root.rglob("*") if path.is_file()}
    finally:
        os.umask(before)
    assert modes == {0o640}


def test_a_header_that_is_no_header_is_refused_with_a_reason(tmp_path):
    path = tmp_path / "x.safetensors"
    for content in (
        b"",
        b"\xff" * 8,
        b"\x00" * 8,
        (2).to_bytes(8, "little") + b"[]",
        (1 << 20).to_bytes(8, "little") + b"[" * (1 << 20),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="header"):
            read_provenance(path)


def test_digests_of_ids_tell_apart_what_joins_to_the_same_text():
    assert len({ids_digest("0", ids) for ids in (["ab", "c"], ["a", "bc"], ["abc"], ["abc", ""], ["c", "ab"], [])}) == 6
    assert ids_digest("0", ["a"]) != ids_digest("1", ["a"])


def test_the_digest_follows_the_table_also_when_another_process_changes_it(ws):
    before = ws.ids()
    assert ws.ids() is before
    with sqlite3.connect(ws.db_path) as other:
        other.execute("UPDATE users SET user_id='x' WHERE user_idx=0")
    other.close()
    assert ws.ids()["users"] != before["users"] and ws.ids()["items"] == before["items"]


def test_a_configuration_that_is_no_table_is_a_sentence(ws):
    ws.toml_path.write_text("data = 5\n")
    with pytest.raises(WorkspaceError, match=r"expected a section \[data\]"):
        ws.config  # noqa: B018
    ws.toml_path.write_text("a = " + "[" * 100_000)
    with pytest.raises(WorkspaceError, match="cannot be used"):
        ws.config  # noqa: B018


def test_the_manifest_is_restored_from_the_interactions(ws):
    ws.toml_path.write_text("")
    load_interactions(ws)
    assert ws.config["data"] == {
        "name": "shop",
        "interactions": load_interactions(ws).fingerprint,
        "manifest": {"format": "table"},
    }


# -- a full disk -----------------------------------------------------------------------------


@pytest.fixture
def full(ws, tmp_path):
    """A copy of the workspace on a file system of its own that has not a byte left."""
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("needs root to mount a small file system")
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", mounted], capture_output=True).returncode:
        pytest.skip("cannot mount a small file system here")
    try:
        yield mounted
    finally:
        subprocess.run(["umount", "-l", mounted], check=True)


def fill_up(folder: Path) -> None:
    with open(folder / "filler", "ab", buffering=0) as filler, pytest.raises(OSError, match="No space left"):
        while True:
            filler.write(bytes(4096))


@pytest.mark.parametrize("has_log", [False, True])
def test_a_full_disk_does_not_hinder_info_and_recommend(ws, full, has_log):
    root = full / "ws"
    if has_log:  # as a killed process leaves it: rows that are in the log alone
        ws.db.execute("PRAGMA wal_autocheckpoint=0")
        with ws.db:
            ws.db.execute("UPDATE items SET title='A new title' WHERE item_idx=0")
        shutil.copytree(ws.root, root)
        (root / "workspace.db-shm").unlink()
        assert (root / "workspace.db-wal").stat().st_size
    else:
        ws.close()
        shutil.copytree(ws.root, root)
    fill_up(full)
    assert shutil.disk_usage(full).free == 0
    assert "model lightgcn" in reclm("info", "-w", root)
    assert json.loads(reclm("recommend", "-w", root, "--user", IDS[2], "--json"))["basis"] == "model"
    fill_up(full)  # the log has become part of the database, which freed some
    told = reclm("fit", "popularity", "-w", root, code=1)
    assert "no space left" in told
    with Workspace.open(root) as opened:
        title = opened.db.execute("SELECT title FROM items WHERE item_idx=0").fetchone()[0]
    assert (title == "A new title") == has_log


@pytest.mark.parametrize(
    "line",
    [
        "a." * 40 + "b = 1",
        "a . " * 40 + "b = 1",
        '"a\\"".' * 40 + "b = 1",
        "'a'." * 40 + "b = 1",
        "[" + "a." * 40 + "b]",
        "c = {" + "a." * 40 + "b = 1}",
        "c = " + "[" * 40 + "]" * 40,
    ],
)
def test_a_configuration_of_deep_keys_is_a_sentence(ws, line):
    """tomllib takes time and memory by the square of a key's parts: 40 kB took 27 s and 7 GB."""
    ws.toml_path.write_text(f"[data]\n{line}\n")
    with pytest.raises(WorkspaceError, match="expected .*at most 32"):
        ws.config  # noqa: B018


def test_a_configuration_with_dots_in_texts_is_read(ws):
    text = "1.2.3 www.a-shop.example.com/a.b.c " * 50
    ws.set_config("data", {"name": text, "manifest": {"of": [{"x.y": text}] * 40}})
    assert ws.config["data"]["name"] == text
