"""Reads the page headers of a Parquet file: the decompressed size of each page.

Readers allocate what a page's own header says, whatever the footer claims. A header is a struct in Thrift's compact
protocol; this reads the relevant fields and skips the others. See apache/parquet-format, parquet.thrift.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from ...errors import InputError

# Writers end a page at 1 to 100 MB.
MAX_PAGE_BYTES = 128 << 20
# At the usual 1 MB per page that is a file of 1 TB; the limit bounds the time for many small pages.
MAX_PAGES = 1_000_000
# A page header nests three structs; statistics nest no deeper.
_MAX_DEPTH = 8
_DATA_PAGE, _DATA_PAGE_V2 = 5, 8  # fields of a page header that contain a data page's header
_VARINTS, _STRUCT, _BINARY = (4, 5, 6), 12, 8


class _BadHeaderError(Exception):
    pass


def check_pages(path: Path, chunks: Iterable[tuple[int, int]], most_bytes: int) -> None:
    """Raise InputError for a page that is too large, or pages that come to more than `most_bytes` once decompressed.

    chunks: (offset of the first page, number of values) of each column chunk.
    """
    n_pages = n_bytes = 0
    with open(path, "rb") as handle:
        for offset, n_values in chunks:
            while n_values > 0:
                try:
                    unpacked, packed, found = _page(handle, offset)
                except (_BadHeaderError, OSError, OverflowError, ValueError) as error:
                    raise InputError(
                        f"{path} is not a whole Parquet file (no page at byte {offset:,}): export it again"
                    ) from error
                offset = handle.tell() + packed
                n_values -= found
                n_bytes += unpacked
                n_pages += 1
                if unpacked > MAX_PAGE_BYTES or n_pages > MAX_PAGES:
                    raise InputError(
                        f"{path}: found a page of {unpacked:,} bytes among {n_pages:,}, expected at most "
                        f"{MAX_PAGES:,} pages of at most "
                        f"{MAX_PAGE_BYTES:,} bytes; export it with smaller or fewer pages"
                    )
                if n_bytes > most_bytes:
                    raise InputError(
                        f"{path} unpacks to more than {most_bytes:,} bytes: refused as a decompression bomb; export "
                        "it again, "
                        "or raise the limit with --limit unpacked-ratio=N"
                    )


def _page(handle: BinaryIO, offset: int) -> tuple[int, int, int]:
    """(decompressed bytes, stored bytes, number of values: 0 unless it is a data page) of the page at `offset`."""
    handle.seek(offset)
    header = _struct(handle, 0)
    unpacked, packed = header.get(2), header.get(3)
    if not isinstance(unpacked, int) or not isinstance(packed, int) or unpacked < 0 or packed < 0:
        raise _BadHeaderError
    own = header.get(_DATA_PAGE) or header.get(_DATA_PAGE_V2)
    n_values = own.get(1) if isinstance(own, dict) else 0
    if not isinstance(n_values, int) or n_values < 0:
        raise _BadHeaderError
    return unpacked, packed, n_values


def _struct(handle: BinaryIO, depth: int) -> dict[int, object]:
    """The integers and structs of a struct by field number; everything else is skipped."""
    if depth > _MAX_DEPTH:
        raise _BadHeaderError
    fields: dict[int, object] = {}
    number = 0
    while head := _byte(handle):
        number = number + (head >> 4) if head >> 4 else _zigzag(handle)
        kind = head & 15
        if kind in _VARINTS:
            fields[number] = _zigzag(handle)
        elif kind == _STRUCT:
            fields[number] = _struct(handle, depth + 1)
        elif kind == _BINARY:
            handle.seek(_varint(handle), 1)
        elif kind == 3:
            _byte(handle)
        elif kind == 7:
            handle.seek(8, 1)
        elif kind not in (1, 2):  # booleans have no bytes; page headers hold no lists or maps
            raise _BadHeaderError
    return fields


def _byte(handle: BinaryIO) -> int:
    found = handle.read(1)
    if not found:
        raise _BadHeaderError
    return found[0]


def _varint(handle: BinaryIO) -> int:
    value = 0
    for shift in range(0, 64, 7):
        byte = _byte(handle)
        value |= (byte & 127) << shift
        if byte < 128:
            return value
    raise _BadHeaderError


def _zigzag(handle: BinaryIO) -> int:
    value = _varint(handle)
    return (value >> 1) ^ -(value & 1)
