"""A killed import leaves a folder with ids; the next import removes it, and nothing else."""

import os
import signal
import stat
import subprocess
import sys
import time

import pytest

from reclm_lite.data.importers import import_dataset
from reclm_lite.data.importers.leftovers import StagingFolder, leftover_staging, remove_leftover_staging

CODE = """
import sys, time, tempfile
tempfile.tempdir = sys.argv[1]
from reclm_lite.data.importers.staging import Staging
with Staging() as staging:
    staging.db.execute("INSERT INTO listed_users VALUES ('somebody')")
    print(staging.folder, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    return scratch


def test_the_folder_of_a_killed_import_is_removed_by_the_next_and_that_of_a_living_one_is_not(scratch, tmp_path):
    with subprocess.Popen([sys.executable, "-c", CODE, str(scratch)], stdout=subprocess.PIPE, text=True) as process:
        folder = process.stdout.readline().strip()
        assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700 and os.path.exists(f"{folder}/staging.duckdb")
        assert remove_leftover_staging() == [] and os.path.exists(f"{folder}/staging.duckdb")
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert os.path.exists(folder)
    (tmp_path / "log.csv").write_text("user,item\nu,a\n")
    import_dataset("table", tmp_path / "log.csv")
    assert list(scratch.iterdir()) == []


def test_only_own_folders_of_exactly_that_name_are_removed_and_no_link_is_followed(scratch, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "letter.txt").write_text("x")
    for name in (
        "reclm-import-abcd",
        "reclm-import-ABCDEFGH",
        "my-reclm-import-abcdefgh",
        "reclm-import-abcdefgh.old",
        "reclm-import-abcdefghi",
    ):
        (scratch / name).mkdir()
    (scratch / "reclm-import-aaaaaaaa").symlink_to(elsewhere)
    (scratch / "reclm-import-bbbbbbbb").write_text("a file")
    kept = {path.name for path in scratch.iterdir()}
    locked = scratch / "reclm-import-dddddddd"  # its lock is a link
    locked.mkdir()
    (locked / "lock").symlink_to(elsewhere / "made")
    old = scratch / "reclm-import-cccccccc"  # as earlier versions left them: without a lock
    old.mkdir()
    (old / "source-1.csv").symlink_to(elsewhere / "letter.txt")
    (old / "folder").symlink_to(elsewhere)
    assert old not in leftover_staging(), "an import of an earlier version may be at work in it"
    two_days_ago = time.time() - 48 * 3600
    os.utime(old, (two_days_ago, two_days_ago))
    assert leftover_staging() == [old] and old.exists()
    with monkeypatch.context() as patch:
        patch.setattr("os.geteuid", lambda: os.getuid() + 1)
        assert remove_leftover_staging() == []
    assert remove_leftover_staging() == [old]
    assert {path.name for path in scratch.iterdir()} == kept | {locked.name}
    assert (elsewhere / "letter.txt").read_text() == "x" and [path.name for path in elsewhere.iterdir()] == [
        "letter.txt"
    ]


def test_a_folder_that_a_clean_up_took_while_it_was_made_is_made_anew(scratch, monkeypatch):
    import fcntl

    flock, taken = fcntl.flock, []

    def late(lock, how):
        if not taken:
            taken.append(how)
            (folder,) = scratch.iterdir()
            (folder / "lock").unlink()
            folder.rmdir()
        flock(lock, how)

    monkeypatch.setattr("fcntl.flock", late)
    folder = StagingFolder()
    assert taken and folder.path.is_dir() and (folder.path / "lock").exists()
    folder.close()
    assert list(scratch.iterdir()) == []


def test_leftovers_are_found_without_loading_duckdb(scratch):
    code = (
        "import sys; from reclm_lite.data.importers.leftovers import remove_leftover_staging; "
        "remove_leftover_staging(); "
        "assert 'duckdb' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "TMPDIR": str(scratch)})
