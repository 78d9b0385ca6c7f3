"""Which large databases were looked at already, so that opening one again costs nothing (database_pages.py looks).

A file that passed, or that this process has just written, is known by its place on the disk, its size and its times: an
empty file of a hashed name in the user's cache folder. A copy from somewhere else has another place and other times.
"""

import contextlib
import hashlib
import os
from pathlib import Path

LARGE_BYTES = 16 << 20  # a smaller one is looked at in milliseconds
_MAX_KEPT = 64
_VERSION = 1  # counts up when database_pages looks for more


def is_known(path: Path) -> bool:
    """Whether the file passed, or was written by this software, and has not been touched since."""
    try:
        # Another user's word counts for nothing.
        return _mark(path).stat().st_uid == os.getuid()
    except (OSError, RuntimeError, AttributeError):  # no home folder; no user numbers on this system
        return False


def remember(path: Path) -> None:
    """Remember a large file as it is now; where that cannot be written, it is looked at again next time."""
    with contextlib.suppress(OSError, RuntimeError):
        if path.stat().st_size < LARGE_BYTES:
            return
        mark = _mark(path)
        mark.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(mark, os.O_CREAT | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
        kept = sorted((entry.stat().st_mtime_ns, entry.path) for entry in os.scandir(mark.parent))
        for _, old in kept[: max(0, len(kept) - _MAX_KEPT)]:
            os.unlink(old)


def _mark(path: Path) -> Path:
    found = path.stat()
    facts = (_VERSION, found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "reclm-lite" / "databases-that-passed" / hashlib.sha256(repr(facts).encode()).hexdigest()[:32]
