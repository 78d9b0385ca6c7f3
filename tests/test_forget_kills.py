"""`reclm forget` under kills, failures and concurrent processes, and as a command."""

import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from forget_workspace import (  # noqa: F401  (fixtures)
    ID,
    IDS,
    N_USERS,
    PERSON,
    arrays_of,
    built,
    files_of,
    found_in,
    freshness,
    needles_of,
    profile_of,
    root,
)
from profile_workspace import make_workspace

from reclm_lite import forget
from reclm_lite.cli import forget as verb
from reclm_lite.cli import main
from reclm_lite.data.dataset import user_ids
from reclm_lite.errors import WorkspaceError
from reclm_lite.forget import forget_user
from reclm_lite.serve.recommend import Recommender, recommend
from reclm_lite.workspace import Workspace

# -- kills and other processes -----------------------------------------------------------

CHILD = """
import os, shutil, signal, sys
from pathlib import Path
from reclm_lite import forget
from reclm_lite.workspace import Workspace

def kill(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

def at_call(n, function):
    calls = []
    def wrapped(*args, **kwargs):
        calls.append(1)
        return kill() if len(calls) == n else function(*args, **kwargs)
    return wrapped

point, n = sys.argv[3], int(sys.argv[4])
ws = Workspace.open(Path(sys.argv[1]))
if point == "writing":
    forget.write_arrays = at_call(n, forget.write_arrays)
elif point == "transaction":  # everything is deleted and renumbered, and not committed
    class Db:
        def __init__(self, db):
            self.db = db
        def __getattr__(self, name):
            return getattr(self.db, name)
        def execute(self, sql, *rest):
            return kill() if "INTO meta" in sql else self.db.execute(sql, *rest)
    ws.db = Db(ws.db)
elif point == "renames":
    finish = Workspace.finish_forgetting
    def finish_forgetting(self):
        if self.get_meta("forget"):
            os.replace = at_call(n, os.replace)
        return finish(self)
    Workspace.finish_forgetting = finish_forgetting
elif point == "deletions":
    shutil.rmtree = kill
elif point == "wiping":
    Workspace._wipe_database = kill
forget.forget_user(ws, sys.argv[2])
print("done")
"""


def kill_at(root: Path, point: str, n: int) -> None:
    child = subprocess.run([sys.executable, "-c", CHILD, str(root), ID, point, str(n)], capture_output=True, text=True)
    assert child.returncode == -9 and not child.stdout, child.stderr


@pytest.mark.parametrize(("point", "n"), [("writing", 1), ("writing", 5), ("transaction", 1)])
def test_a_kill_before_the_transaction_leaves_the_workspace_as_it_was(root, point, n):
    with Workspace.open(root) as ws:
        needles, state, lists = needles_of(ws), freshness(ws), recommend(ws, ID, model="lightgcn").items
    kill_at(root, point, n)
    assert list(root.glob("*/.*.tmp"))
    with Workspace.open(root) as ws:
        assert user_ids(ws) == IDS and freshness(ws) == state and recommend(ws, ID, model="lightgcn").items == lists
        assert (root / "reports" / f"{ID}.html").exists()
        forget_user(ws, ID)
        assert freshness(ws) == state
    assert found_in(root, needles) == {} and not list(root.glob("*/.*.tmp"))


@pytest.mark.parametrize(
    ("point", "n"), [("renames", 1), ("renames", 2), ("renames", 9), ("deletions", 1), ("wiping", 1)]
)
def test_a_kill_after_it_is_finished_by_whatever_opens_the_workspace_next(root, point, n):
    with Workspace.open(root) as ws:
        needles, state, before = needles_of(ws), freshness(ws), arrays_of(ws)
    kill_at(root, point, n)
    with Workspace.open(root) as ws:
        assert found_in(root, needles) == {} and not list(root.glob("*/.*.tmp"))
        assert ws.get_meta("forget") is None
        assert freshness(ws) == state and ID not in user_ids(ws)
        for name, arrays in arrays_of(ws).items():
            if "user_vectors" in arrays:
                assert np.array_equal(arrays["user_vectors"], np.delete(before[name]["user_vectors"], PERSON, 0))


def test_an_interrupt_just_after_the_transaction_keeps_the_new_files(root, monkeypatch):
    change = forget._Forgetting._change_database

    def change_and_stop(self):
        change(self)
        raise KeyboardInterrupt

    with Workspace.open(root) as ws:
        needles, state = needles_of(ws), freshness(ws)
        monkeypatch.setattr(forget._Forgetting, "_change_database", change_and_stop)
        with pytest.raises(KeyboardInterrupt):
            forget_user(ws, ID)
        assert set(found_in(root, needles)) >= {"id", "models/lightgcn user_vectors"}
        with ws.writing():  # whoever writes next finishes it
            assert freshness(ws) == state and found_in(root, needles) == {}


def test_an_unfinished_one_that_another_process_is_at_is_not_read_unless_only_the_wiping_is_left(root):
    with Workspace.open(root) as ws, ws.writing():
        for plan, is_read in (
            ({"rename": [["a", "b"]], "empty": [], "delete": []}, False),
            ({"rename": [], "empty": [], "delete": []}, True),
        ):
            with ws.db:
                ws.db.execute("INSERT OR REPLACE INTO meta VALUES ('forget', ?)", (json.dumps(plan),))
            if is_read:
                Workspace.open(root).close()
            else:
                with pytest.raises(WorkspaceError, match="another reclm process"):
                    Workspace.open(root)


def test_a_failure_before_the_transaction_changes_nothing_and_leaves_no_temporary_file(root, monkeypatch):
    with Workspace.open(root) as ws:
        before = files_of(root)
        monkeypatch.setattr(forget, "load_interactions", lambda ws: (_ for _ in ()).throw(MemoryError()))
        with pytest.raises(MemoryError):
            forget_user(ws, ID)
        monkeypatch.undo()
        monkeypatch.setattr(
            forget._Forgetting, "_change_database", lambda self: (_ for _ in ()).throw(OSError(28, "no space"))
        )
        with pytest.raises(OSError, match="no space"):
            forget_user(ws, ID)
        assert files_of(root) == before


def test_a_reader_in_the_middle_of_a_query_delays_the_wiping_which_the_next_opening_does(root):
    with Workspace.open(root) as ws:
        needles = needles_of(ws)
        ws.db.execute("PRAGMA busy_timeout=50")
        reader = sqlite3.connect(root / "workspace.db")
        reader.execute("BEGIN")
        assert reader.execute("SELECT COUNT(*) FROM users").fetchone() == (N_USERS,)
        with pytest.raises(WorkspaceError, match="could not be wiped"):
            forget_user(ws, ID)
        assert freshness(ws)[0] == ("interactions", "ready") and ID not in user_ids(ws)
        assert found_in(root, {"id": ID.encode()})
        reader.close()
        (root / "reports" / "new.html").write_text("made since")
    with Workspace.open(root):
        assert found_in(root, needles) == {} and (root / "reports" / "new.html").exists()


def test_a_recommender_that_was_open_refuses_instead_of_serving_somebody_elses_list(root):
    with Workspace.open(root) as ws, Workspace.open(root) as served:
        recommender = Recommender(served, model="lightgcn")
        assert recommender.recommend("other-09").items
        forget_user(ws, ID)
        with pytest.raises(WorkspaceError, match="new Recommender"):
            recommender.recommend("other-09")
        assert Recommender(served, model="lightgcn").recommend("other-09").items


# -- the command ---------------------------------------------------------------------------


def reclm(*arguments: object, expect: int = 0, answer: str | None = None):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], input=answer)
    assert result.exit_code == expect, f"{result.output}\n{result.exception!r}"
    return result


def test_a_dry_run_tells_everything_and_changes_nothing(root):
    before = files_of(root)
    told = json.loads(reclm("forget", ID, "-w", root, "--dry-run", "--json").stdout)
    assert files_of(root) == before
    done = json.loads(reclm("forget", ID, "-w", root, "--yes", "--json").stdout)
    assert done.pop("dry_run") is False and told.pop("dry_run") is True
    assert told == done and done["n_interactions"] == 8 and done["users"] == [ID]
    assert files_of(root) != before


def test_nobody_to_ask_and_no_yes_is_bad_usage(root):
    before = files_of(root)
    assert "--yes" in reclm("forget", ID, "-w", root, expect=2).stderr
    reclm("forget", "-w", root, "--yes", expect=2)
    assert files_of(root) == before


def test_on_a_terminal_it_asks_and_no_means_no(root, monkeypatch):
    monkeypatch.setattr(verb, "_somebody_can_be_asked", lambda: True)
    before = files_of(root)
    result = reclm("forget", ID, "-w", root, expect=1, answer="n\n")
    assert "Would remove" in result.stderr and "Nothing was removed" in result.stderr and not result.stdout.strip("n\n")
    assert files_of(root) == before
    result = reclm("forget", ID, "-w", root, answer="y\n")
    assert f"Removed {ID}: 8 interactions, 1 profile, 2 generations" in result.stdout
    assert found_in(root, {"id": ID.encode()}) == {}


def test_an_unknown_id_among_others_removes_nobody(root):
    before = files_of(root)
    assert "'nobody'" in reclm("forget", ID, "nobody", "-w", root, "--yes", expect=1).stderr
    assert files_of(root) == before


def test_the_last_users_are_not_removed_but_the_folder_is_named(tmp_path):
    root = tmp_path / "ws"
    make_workspace(root, {0: [1], 1: [1, 2]}).close()
    assert f"rm -r {root}" in reclm("forget", "u0", "u1", "-w", root, "--yes", expect=1).stderr
    reclm("forget", "u0", "-w", root, "--yes")
    assert "only user" in reclm("forget", "u1", "-w", root, "--yes", expect=1).stderr
