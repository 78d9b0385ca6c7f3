"""Files and folders that appear whole or not at all, and what a file's content hashes to."""

import contextlib
import errno
import fcntl
import functools
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from .errors import WorkspaceError


def file_sha256(path: Path) -> str:
    """SHA-256 of a file as hex; remembered in memory as long as its size and times stay the same."""
    path = Path(path).resolve()
    stat = path.stat()
    return _sha256_of(path, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


@functools.lru_cache(maxsize=64)
def _sha256_of(path: Path, size_bytes: int, mtime_ns: int, ctime_ns: int) -> str:
    del size_bytes, mtime_ns, ctime_ns  # part of the cache key only
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def lock_file(path: Path) -> IO[str] | None:
    """`path`, opened and locked until it is closed; None where another process has it."""
    file = path.open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it onto `path` only if the block succeeds."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise WorkspaceError(
                f"no space left on the disk while writing {path}: nothing was replaced; free some space and run the command again"
            ) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield a path beside `folder` to fill; it becomes `folder`, in place of one that is there, only if the block succeeds.

    For one process at a time: what a kill left of an earlier try is thrown away by the next.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    yield partial
    for path in (*partial.iterdir(), partial):
        sync(path)
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(partial, folder)


def sync(path: Path) -> None:
    """Make a file's content, or the renames and deletions in a folder, last through a power failure."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
