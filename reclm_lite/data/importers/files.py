"""Checks source files before parsing: existence, encoding, size, SHA-256. One pass over the bytes."""

import codecs
import gzip
import hashlib
import zlib
from dataclasses import dataclass
from pathlib import Path

from ...errors import InputError
from ...own_paths import FOLLOW_LINKS, follows_links
from .limits import Limits
from .locked_duckdb import real_path

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class SourceFile:
    """A checked file: its name, size and SHA-256."""

    path: Path
    n_bytes: int
    sha256: str

    def manifest(self) -> dict:
        # A name may contain bytes that are not UTF-8, but the manifest is text.
        return {
            "file": self.path.name.encode("utf-8", "replace").decode(),
            "bytes": self.n_bytes,
            "sha256": self.sha256,
        }


def find_folder(path: Path, format: str, expected: str) -> Path:
    """`path` as a folder. Raises InputError naming the files that the format expects in it."""
    if not path.exists():
        raise InputError(f"{path} does not exist: the format {format} expects a folder with {expected}")
    if not path.is_dir():
        raise InputError(f"{path} is a file: the format {format} expects the folder that contains {expected}")
    return path


def within_folder(folder: Path, *names: str) -> list[Path]:
    """The paths of `names` in the folder `folder`, which the user named; a file need not exist.

    Raises InputError for a name that is a link out of the folder: the user named the folder, not what lies elsewhere.
    """
    root = real_path(folder)
    for path in (folder / name for name in names):
        if path.is_symlink() and not follows_links() and not (real := real_path(path)).is_relative_to(root):
            raise InputError(
                f"{path} is a link to {real}, which is outside of the folder that you named: copy the file into the "
                f"folder, or set {FOLLOW_LINKS}=1 if the link is yours"
            )
    return [folder / name for name in names]


def find_file(path: Path) -> Path:
    """`path` as a regular file with content, or InputError."""
    if path.is_dir():
        raise InputError(f"{path} is a folder: expected a file; name the file in it")
    if not path.exists():
        raise InputError(f"{path} does not exist: check the path")
    if not path.is_file():
        raise InputError(f"{path} is not a regular file: copy its content into a file first")
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty: expected at least one row")
    return path


def read_source(
    path: Path, *, text: bool = True, encoding: str = "utf-8", limits: Limits | None = None, foreign: bytes = b"\0"
) -> SourceFile:
    """Hash a file and, for text, check every byte of it.

    Raises InputError with the line for a byte of `foreign` or, in UTF-8, for a byte that is not UTF-8; with `limits`
    also for a line that is too long and for a compressed file that unpacks to too much. A file named `.gz` is
    decompressed for the check; the hash is of the compressed file.
    """
    path = find_file(path)
    digest = hashlib.sha256()
    n_bytes = 0
    try:
        with open(path, "rb") as handle:
            while chunk := handle.read(_CHUNK_BYTES):
                digest.update(chunk)
                n_bytes += len(chunk)
        if text:
            opened = gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb")
            with opened as handle:
                _check_text(
                    path,
                    handle,
                    encoding,
                    limits,
                    limits.unpacked_bytes(n_bytes) if limits and path.suffix == ".gz" else 0,
                    foreign,
                )
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path} is not a whole gzip file ({error}): decompress it yourself and check it") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error}): check its permissions") from error
    return SourceFile(path, n_bytes, digest.hexdigest())


def _check_text(path: Path, handle, encoding: str, limits: Limits | None, most_bytes: int, foreign: bytes) -> None:
    """Check encoding, line length and size. most_bytes: the largest size of the text, 0 for no limit."""
    decoder = codecs.getincrementaldecoder(encoding)()
    # A chunk is no longer than a line may be, so only a line that runs over a chunk's end can be too long.
    chunk_bytes = min(_CHUNK_BYTES, limits.line_bytes) if limits else _CHUNK_BYTES
    n_lines = n_bytes = n_open = 0  # n_open: bytes of the line that has not ended
    blank = True
    while True:
        chunk = handle.read(chunk_bytes)
        for byte in foreign:
            if byte in chunk:
                line = n_lines + chunk[: chunk.index(byte)].count(b"\n") + 1
                raise InputError(f"{path}, line {line}: {_FOREIGN[byte]}")
        try:
            decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            # error.object is the decoder's rest of the last chunk, followed by this one.
            bad = error.object[error.start]
            line = n_lines + error.object[: error.start].count(b"\n") + 1
            raise InputError(
                f"{path}, line {line}: byte 0x{bad:02x} is not UTF-8; convert the file to UTF-8 first "
                "(for example with `iconv -f latin1 -t utf-8`)"
            ) from error
        if not chunk:
            break
        n_bytes += len(chunk)
        if most_bytes and n_bytes > most_bytes:
            raise InputError(
                f"{path} unpacks to more than {most_bytes:,} bytes, {limits.unpacked_ratio:,} times its size: "
                "refused as a decompression bomb; decompress it yourself, or raise the limit with --limit "
                "unpacked-ratio=N"
            )
        if limits:
            ends = [at for at in (chunk.find(b"\n"), chunk.find(b"\r")) if at >= 0]
            if n_open + (min(ends) if ends else len(chunk)) > limits.line_bytes:
                raise InputError(
                    f"{path}, line {n_lines + 1}: the line is longer than {limits.line_bytes:,} bytes; fix it, "
                    "or raise the limit with --limit line-bytes=N"
                )
            n_open = len(chunk) - 1 - max(chunk.rfind(b"\n"), chunk.rfind(b"\r")) if ends else n_open + len(chunk)
        blank = blank and not chunk.strip(b"\xef\xbb\xbf \t\r\n")
        n_lines += chunk.count(b"\n")
    if blank:
        raise InputError(f"{path} contains only white space: expected at least one row")


_FOREIGN = {
    0: (
        "found a NUL byte, which text files never contain; the file is damaged or in another encoding (UTF-16?): "
        "save it as UTF-8"
    ),
    1: "found the control character 0x01, which this format never contains; the file is damaged or of another format",
}
