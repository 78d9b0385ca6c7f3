"""Files that are written whole or not at all, and small files read with a bound on their size and nesting.

Files of a checkpoint are opened by `open_regular` only: a pipe or a device among them is refused, as reading it may
never end. Links to regular files are followed for reading (the Hugging Face cache consists of them), never for writing.
"""

import errno
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from reclm_lite.errors import ModelError

# Far above real files (config.json has some KB, the largest tokenizer.json 35 MB); parsed, JSON takes up to twenty
# times as much.
MAX_CONFIG_BYTES = 4 << 20
MAX_TOKENIZER_BYTES = 128 << 20
_MAX_DEPTH = 64  # of brackets in brackets; real files have ten


@contextmanager
def whole_or_nothing(out: Path) -> Iterator[Path]:
    """A path beside `out` to write to; it becomes `out` when the block ends well, and is removed when it does not.

    What lies at that path before, such as a link that somebody put there, is removed and not written through.
    """
    out = Path(out)
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial.unlink(missing_ok=True)
        try:
            yield partial
            with partial.open("rb+") as stream:
                os.fsync(stream.fileno())
            os.replace(partial, out)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise ModelError(
            f"expected to write {out}, found: {error.strerror or error}; make room or choose another path"
        ) from error


def open_regular(path: Path, buffering: int = -1) -> BinaryIO:
    """A regular file, opened for reading bytes. Raises OSError as `open` does, and for pipes, devices and folders."""
    # A pipe would not open before somebody writes to it.
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "a folder, pipe or device in the place of a regular file", str(path))
    return open(handle, "rb", buffering=buffering)


def read_bounded(path: Path, most_bytes: int) -> bytes:
    """A whole file of at most `most_bytes`; ModelError, naming it, for a larger one and for one that cannot be read."""
    try:
        with open_regular(path) as stream:
            data = stream.read(most_bytes + 1)
    except OSError as error:
        raise ModelError(
            f"expected to read {path}, found: {error.strerror or error}; check the file and its rights"
        ) from error
    if len(data) > most_bytes:
        raise ModelError(f"expected at most {most_bytes:,} bytes in {path}, found more; copy the file again")
    return data


def parse_json(text: bytes, pairs: Any = None) -> Any:
    """JSON of bounded nesting, each object made by `pairs` if given. Raises ValueError with what is wrong."""
    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=pairs)
    except RecursionError as error:
        raise ValueError("brackets nested too deep") from error
    level, depth = [value], 0
    while level := [
        inner
        for one in level
        if isinstance(one, (dict, list))
        for inner in (one.values() if isinstance(one, dict) else one)
        if isinstance(inner, (dict, list))
    ]:
        depth += 1
        if depth > _MAX_DEPTH:  # what shows a value in a message would run into Python's own bound
            raise ValueError("brackets nested too deep")
    return value
