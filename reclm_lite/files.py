"""Atomic writes of files and folders, locks, and SHA-256 of files.

A folder may come from somebody else, so no file is opened to write through a symbolic link of a name that is known in
advance, and none that is in a workspace behind a link (own_paths.py).
"""

import contextlib
import errno
import fcntl
import functools
import hashlib
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from .errors import InputError, WorkspaceError
from .own_paths import require_own_path


def file_sha256(path: Path) -> str:
    """SHA-256 of a file as hex; remembered in memory as long as its size and times stay the same.

    Raises InputError where it is no file: a pipe would be waited for, a device read without end.
    """
    path = Path(path).resolve()
    facts = path.stat()
    if not stat.S_ISREG(facts.st_mode):
        raise InputError(f"expected a file at {path}, found a folder, pipe or device; copy its content into a file")
    return _sha256_of(path, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)


@functools.lru_cache(maxsize=64)
def _sha256_of(path: Path, size_bytes: int, mtime_ns: int, ctime_ns: int) -> str:
    del size_bytes, mtime_ns, ctime_ns  # part of the cache key only
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def is_own_file(path: Path) -> bool:
    """Whether `path` is a regular file: no link, which may lead anywhere, and no pipe or device, which may not end."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


# Of one document (results, settings, notes) of a workspace, as JSON or text; this software writes some kilobytes.
MAX_DOCUMENT_BYTES = 8 << 20


def read_document(path: Path, max_bytes: int = MAX_DOCUMENT_BYTES) -> str:
    """A text file in UTF-8. Raises ValueError where it is larger (a file of holes takes no disk, but memory) or no
    text, OSError where it cannot be read or is no regular file."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe would be waited for
    with open(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "expected a regular file", str(path))
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise ValueError(f"expected at most {max_bytes:,} bytes, found more")
    return content.decode()


def open_to_append(path: Path) -> IO[str]:
    """`path` as text to append to. Raises WorkspaceError if it is a symbolic link, a pipe or a device."""
    require_own_path(path.parent)
    try:
        # Without O_NONBLOCK, a pipe is waited for until somebody reads from it.
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        handle = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise WorkspaceError(
                f"{path} is a link, expected a file: remove it, nothing was written through it"
            ) from error
        if error.errno == errno.ENXIO:
            raise _no_file(path) from error
        raise
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise _no_file(path)
    return open(handle, "a", encoding="utf-8")


def _no_file(path: Path) -> WorkspaceError:
    return WorkspaceError(f"{path} is a pipe, a socket or a device, expected a file: remove it")


def lock_file(path: Path) -> IO[str] | None:
    """Open `path` and lock it until it is closed; None if another process holds the lock.

    Raises WorkspaceError if it is a symbolic link.
    """
    file = open_to_append(path)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file


def _open_device(path: Path) -> int:
    """Open a device or pipe for writing. Raises WorkspaceError if a pipe has no reader within two seconds."""
    for _ in range(20):
        try:
            handle = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            time.sleep(0.1)
            continue
        os.set_blocking(handle, True)
        return handle
    raise WorkspaceError(f"nobody reads from the pipe {path}: start its reader first, or write to a file")


@contextlib.contextmanager
def atomic_path(path: Path, *, named_by_user: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` only if the block succeeds.

    named_by_user: a device or a pipe, such as /dev/stdout, is not replaced by a file: what the block wrote is copied
    into it.
    Raises WorkspaceError where `path` lies in a workspace behind a link.
    """
    require_own_path(path.parent)
    if named_by_user and path.exists() and not path.is_file() and not path.is_dir():
        with tempfile.TemporaryDirectory(prefix="reclm-out-") as folder:
            yield Path(folder) / path.name
            with open(Path(folder) / path.name, "rb") as source, open(_open_device(path), "wb") as target:
                shutil.copyfileobj(source, target)
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        yield temporary
        with open(temporary, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise WorkspaceError(
                f"no space left on the disk while writing {path}: nothing was replaced; free some space and run the "
                "command again"
            ) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield a new folder beside `folder`; it replaces `folder` only if the block succeeds.

    For one process at a time: leftovers of a killed process are deleted.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    remove_folder(partial)
    yield partial
    for path in (*partial.iterdir(), partial):
        sync(path)
    remove_folder(folder)
    os.replace(partial, folder)


def remove_folder(folder: Path) -> None:
    """Remove a folder and all in it, or what else has its name; of a symbolic link, the link alone.

    Raises WorkspaceError where it lies in a workspace behind a link.
    """
    require_own_path(folder.parent)
    if folder.is_dir() and not folder.is_symlink():
        shutil.rmtree(folder)
    else:  # rmtree would wait for a pipe
        folder.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Flush a file's content, or a folder's renames and deletions, to disk, so that they survive a power failure."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
