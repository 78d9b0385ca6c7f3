"""The temporary folder of an import: made with a lock, and removed by the next import if its owner was killed.

A folder `reclm-import-XXXXXXXX` in `$TMPDIR` contains every id of the data while an import runs. The import holds a
lock on the file `lock` in it; the system releases the lock when the process ends, however it ends.
"""

import fcntl
import os
import re
import shutil
import stat
import tempfile
import time
from pathlib import Path

PREFIX = "reclm-import-"
_LOCK = "lock"
# The eight characters that tempfile.mkdtemp appends.
_NAME = re.compile(re.escape(PREFIX) + r"[a-z0-9_]{8}")
# A folder without a lock belongs to an older version, which may still be running, or is just being created.
_OLD_SECONDS = 24 * 3600


class StagingFolder:
    """A new folder of mode 0700, locked until `close()` removes it."""

    def __init__(self) -> None:
        while True:
            path = Path(tempfile.mkdtemp(prefix=PREFIX))
            lock = _open_lock(path)
            if lock is None:
                continue
            fcntl.flock(lock, fcntl.LOCK_EX)
            # Another process's clean-up may have removed the folder before it was locked.
            if (path / _LOCK).exists() and os.path.samestat(os.fstat(lock), os.stat(path / _LOCK)):
                break
            os.close(lock)
        self.path, self._lock = path, lock

    def close(self) -> None:
        if self._lock is not None:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._lock)
            self._lock = None


def remove_leftover_staging() -> list[Path]:
    """Remove this user's import folders in `$TMPDIR` whose process has ended; returns those that were removed.

    Only folders of exactly the name that an import gives; links are neither followed nor removed.
    """
    return _leftovers(remove=True)


def leftover_staging() -> list[Path]:
    """The folders that `remove_leftover_staging` would remove."""
    return _leftovers(remove=False)


def _leftovers(*, remove: bool) -> list[Path]:
    found_here = []
    try:
        paths = sorted(path for path in Path(tempfile.gettempdir()).iterdir() if _NAME.fullmatch(path.name))
    except OSError:
        return []
    for path in paths:
        try:
            found = path.lstat()
        except OSError:
            continue
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            continue
        if not os.path.lexists(path / _LOCK) and time.time() - found.st_mtime < _OLD_SECONDS:
            continue
        lock = _open_lock(path)
        if lock is None:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue  # its import is still running
        else:
            if remove:
                shutil.rmtree(path, ignore_errors=True)
            if not remove or not path.exists():
                found_here.append(path)
        finally:
            os.close(lock)
    return found_here


def _open_lock(folder: Path) -> int | None:
    """Open the folder's lock file, created if missing; None if that fails."""
    try:
        return os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
    except OSError:
        return None
