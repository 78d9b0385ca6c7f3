"""The folder that an export writes to: one export at a time, a place for what is not proved yet, room on the disk."""

import contextlib
import errno
import fcntl
import math
import os
import shutil
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TextIO

from reclm_lite.convert.quantize import UNQUANTIZED_FTYPES
from reclm_lite.convert.write import PlannedTensor
from reclm_lite.errors import ModelError

SCRATCH = ".export"
_SPARE_BYTES = 16 << 20  # vocabulary, metadata, manifest, what else the disk is used for meanwhile
_EMBEDDINGS = ("token_embd.weight", "output.weight")  # kept in more bits than the rest by most types


@contextlib.contextmanager
def scratch_folder(out_dir: Path) -> Iterator[Path]:
    """An empty folder inside `out_dir` for files that are being made; removed at the end, and what a kill left before.

    It is locked: a second export into the same target is refused. Raises ModelError where it cannot be written to, and
    where the folder or its lock is a link: what a link leads to is not emptied. `out_dir` itself may be one.
    """
    scratch = Path(out_dir) / SCRATCH
    try:
        Path(out_dir).mkdir(parents=True, exist_ok=True)
        if scratch.is_symlink():
            raise _linked(scratch)
        scratch.mkdir(exist_ok=True)
        lock = _open_lock(scratch / "lock")
    except OSError as error:
        raise ModelError(
            f"expected a folder that can be written to at {out_dir}, found: {error.strerror}; choose another with -o"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ModelError(
                f"another export is writing to {out_dir}: wait for it to end, or choose another folder with -o"
            ) from error
        _empty(scratch)
        try:
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _linked(path: Path) -> ModelError:
    return ModelError(
        f"expected {path}, which an export makes and deletes, to be its own, found a link or a special file; remove "
        "it, or choose another folder with -o"
    )


def _open_lock(path: Path) -> TextIO:
    """The lock file, made if there is none. Raises ModelError for a link, a pipe or a device in its place."""
    try:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        handle = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _linked(path) from error
        raise
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise _linked(path)
    return open(handle, "a+", encoding="utf-8")


def _empty(scratch: Path) -> None:
    for path in scratch.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != "lock":
            path.unlink()


def estimated_bytes(plan: Sequence[PlannedTensor], ftype: str) -> int:
    """About how large a file of type `ftype` gets; exact for unquantized types but for the vocabulary.

    For quantized types an upper guess: llama.cpp mixes types, and takes a wider one where rows do not fit in blocks.
    """
    total = 0
    for tensor in plan:
        n = math.prod(tensor.shape)
        if ftype in UNQUANTIZED_FTYPES:
            total += n * (4 if ftype == "f32" else tensor.bytes_per_value)
        elif tensor.type_name == "F32":
            total += 4 * n
        else:
            total += math.ceil(n * _bits(ftype, tensor) / 8)
    return total


def _bits(ftype: str, tensor: PlannedTensor) -> float:
    digit = int(next(c for c in ftype if c.isdigit()))
    n_columns = tensor.shape[-1]
    if n_columns % 32:
        return 16.0
    bits = digit + (1.5 if n_columns % 256 == 0 or digit == 8 else 2.5)
    return max(bits, 8.5) if tensor.target in _EMBEDDINGS else bits


def require_space(out_dir: Path, needed: Mapping[str, int]) -> None:
    """Raises ModelError, with each part of `needed` ({what: bytes}) named, where the disk has less than their sum."""
    total = sum(needed.values()) + _SPARE_BYTES
    free = shutil.disk_usage(out_dir).free
    if total > free:
        parts = ", ".join(f"{what} {_mib(n)}" for what, n in needed.items() if n)
        raise ModelError(
            f"expected {_mib(total)} free for {os.path.abspath(out_dir)} ({parts}), found {_mib(free)}; "
            "make room, ask for fewer types, or choose a folder on another disk with -o"
        )


def _mib(n_bytes: int) -> str:
    return f"{n_bytes / (1 << 20):,.0f} MiB"
