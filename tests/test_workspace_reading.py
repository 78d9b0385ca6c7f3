"""A workspace in a folder that may not be written, such as a mount in a container: it can be read, and is left as it
is."""

import os
import shutil
import sqlite3
from pathlib import Path

import pytest
from click.testing import CliRunner
from profile_workspace import make_workspace

from reclm_lite.cli import main
from reclm_lite.errors import WorkspaceError
from reclm_lite.profiles.store import find_profile, set_profile
from reclm_lite.workspace import Workspace

TEXT = "User identity: a, b, c; User interests: d, e, f"


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Of a workspace with one profile. Root may write everywhere, so that the folder may not be is told by `os.access`
    alone."""
    with make_workspace(tmp_path / "ws", {0: [0, 1], 1: [1]}) as ws:
        set_profile(ws, "user", 0, TEXT)
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode, **more: not mode & os.W_OK and real(path, mode, **more))
    return tmp_path / "ws"


def names(root: Path) -> set[str]:
    return {path.name for path in root.iterdir()}


def test_it_is_read_and_nothing_is_made_in_it(root):
    before = names(root)
    with Workspace.open(root) as ws:
        assert find_profile(ws, "user", "u0").text == TEXT
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            ws.db.execute("DELETE FROM profiles")
        assert names(root) == before
    shown = CliRunner().invoke(main, ["profile", "show", "-w", str(root), "--user", "u0"])
    assert shown.exit_code == 0 and shown.stdout.startswith(TEXT)
    exported = CliRunner().invoke(main, ["profile", "export", "-w", str(root)])
    assert exported.exit_code == 0 and len(exported.stdout.splitlines()) == 1
    assert names(root) == before


def test_what_a_killed_process_left_in_the_log_is_read_too(root, tmp_path):
    copy = tmp_path / "copy"
    with sqlite3.connect(root / "workspace.db") as db:  # open, its log not merged yet
        db.execute("UPDATE profiles SET text = ?", (TEXT.replace("d, e, f", "g, h, i"),))
        db.commit()
        shutil.copytree(root, copy)
    db.close()
    assert (copy / "workspace.db-wal").stat().st_size
    with Workspace.open(copy) as ws:
        assert find_profile(ws, "user", "u0").text.endswith("g, h, i")


def test_who_would_write_is_told(root):
    (root / ".lock").unlink(missing_ok=True)
    (root / ".lock").mkdir()  # as little to be opened as in a folder that may not be written
    told = CliRunner().invoke(main, ["profile", "edit", "-w", str(root), "--user", "u0", TEXT])
    assert told.exit_code == 1 and "cannot be written" in told.stderr and "a copy" in told.stderr
    with pytest.raises(WorkspaceError, match="cannot be written"), Workspace.open(root) as ws, ws.writing():
        pass


def test_an_older_schema_is_not_brought_up_to_date_there(root):
    with sqlite3.connect(root / "workspace.db") as db:
        db.execute("UPDATE meta SET value='1' WHERE key='schema_version'")
    db.close()
    with pytest.raises(WorkspaceError, match="open it once where it can be written"):
        Workspace.open(root)


def test_a_workspace_of_version_1_is_brought_up_and_opens_again(tmp_path):
    """The tables as the first version made them."""
    with make_workspace(tmp_path / "ws", {0: [0, 1], 1: [2]}) as ws:
        root = ws.root
        ws.db.executescript("""
            DROP TABLE profiles; DROP TABLE generations; DROP TABLE uses;
            CREATE TABLE profiles (
                side TEXT NOT NULL CHECK (side IN ('user', 'item')), idx INTEGER NOT NULL,
                status TEXT NOT NULL, text TEXT NOT NULL, reason TEXT NOT NULL DEFAULT '',
                source TEXT NOT NULL, prompt_key TEXT NOT NULL DEFAULT '', created TEXT NOT NULL,
                PRIMARY KEY (side, idx));
            CREATE TABLE generations (
                prompt_key TEXT PRIMARY KEY, raw TEXT NOT NULL, status TEXT NOT NULL, reason TEXT NOT NULL DEFAULT '',
                n_prompt_tokens INTEGER NOT NULL, n_new_tokens INTEGER NOT NULL, created TEXT NOT NULL);
            INSERT INTO profiles VALUES ('user', 1, 'ok', 'a profile', '', 'x', 'key', '');
            UPDATE meta SET value='1' WHERE key='schema_version';
        """)
    for _ in range(2):
        with Workspace.open(root) as ws:
            assert ws.db.execute("SELECT text, basis FROM profiles").fetchall() == [("a profile", "")]
            assert ws.db.execute("SELECT * FROM uses").fetchall() == [("key", "user", 1)]
            assert ws.get_meta("schema_version") == "2"
