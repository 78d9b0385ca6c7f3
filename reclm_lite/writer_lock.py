"""The writer's lock of a workspace: one process at a time, and a sentence for every reason why it cannot be had."""

import contextlib
import errno
import fcntl
import os
import stat
from pathlib import Path
from typing import IO

from .database import may_write
from .errors import WorkspaceError


def take_lock(root: Path, db_path: Path, *, no_space: bool) -> IO[bytes]:
    """The open lock file of the workspace `root`; closing it gives the lock back. Raises WorkspaceError.

    no_space: whether the database was opened without space on its disk.
    """
    try:
        if not may_write(root, db_path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        if no_space:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        lock = os.open(root / ".lock", flags, 0o666)
        handle = open(lock, "r+b", buffering=0)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise WorkspaceError(
                f"no space left on the disk of {root}: nothing was changed; free some space and run the command again"
            ) from error
        if error.errno == errno.ELOOP:
            raise WorkspaceError(f"{root / '.lock'} is a link, expected a file: remove it") from error
        raise WorkspaceError(f"{root} cannot be written ({error.strerror}): work in a copy of it that can") from error
    if not stat.S_ISREG(os.fstat(lock).st_mode):
        handle.close()
        raise WorkspaceError(f"{root / '.lock'} is a pipe or a device, expected a file: remove it")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        handle.seek(0)
        holder = handle.read(100).decode(errors="replace").strip() or "unknown"
        handle.close()
        raise WorkspaceError(
            f"another reclm process ({holder}) is working in {root}: wait for it to end, then run the command again"
        ) from error
    if (
        os.fstat(lock).st_nlink == 1
    ):  # of a file with other names, in a folder of somebody else or a backup, nothing is changed
        with contextlib.suppress(OSError):  # a full disk: who holds the lock is only told to others
            handle.truncate(0)
            handle.write(f"pid {os.getpid()}".encode())
    return handle
