"""Reads safetensors files by blocks of rows, without torch and without leaving mapped pages behind.

A header says what the file must hold; every claim of it is checked before a value is read, as the file may be
truncated, half copied or made by anyone. Values are read into memory of their own, a block at a time, so what stays
resident is a block whatever the tensor's size.

Format followed: safetensors 1.0 (8-byte little-endian header length, JSON header, raw little-endian data in one run
without gaps).
"""

import math
import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from reclm_lite.convert.bounded_files import open_regular, parse_json
from reclm_lite.errors import ModelError

BLOCK_BYTES = 32 << 20
# Far above real files, whose headers take some 100 bytes a tensor; parsed, JSON takes up to twenty times as much.
_MAX_HEADER_BYTES = 25 << 20
_MAX_DIMS = 16
_MAX_COUNT = 2**48  # of one dimension, and of bytes
# safetensors dtype -> numpy dtype of the bytes on disk. bfloat16 is widened on reading.
READABLE = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "F64": "<f8"}
_HELD_BYTES = {"F32": 4, "F16": 2, "BF16": 6, "F64": 12}
# Bytes per item of the dtypes that are recognized; those that are not readable are refused when asked for.
_ITEM_BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
_ITEM_BYTES |= {"I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1}


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies: file, dtype as safetensors names it, shape (row-major), byte range in the file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start_byte: int
    end_byte: int


class _Duplicate(ValueError):
    """A JSON object that names the same key twice: readers differ in which one they take."""


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    for key, value in pairs:
        if key in seen:
            raise _Duplicate(f"the name {key!r} twice")
        seen[key] = value
    return seen


def parse_unique_json(text: bytes) -> Any:
    """JSON whose objects name each key once. Raises ValueError with what is wrong."""
    return parse_json(text, _unique_keys)


def _counts(value: Any) -> tuple[int, ...] | None:
    """`value` as a few whole numbers from 0, none of them beyond any tensor; None if it is anything else."""
    if not isinstance(value, list) or len(value) > _MAX_DIMS:
        return None
    if any(type(item) is not int or not 0 <= item <= _MAX_COUNT for item in value):
        return None
    return tuple(value)


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors that one safetensors file says it holds, in the order of their bytes.

    Raises ModelError, naming the file and the tensor, if the file is not whole or claims what cannot be.
    """

    def broken(expected: str, found: str) -> ModelError:
        return ModelError(f"{path} is not a whole safetensors file: expected {expected}, found {found}; copy it again")

    try:
        with open_regular(path) as stream:
            size_bytes = os.fstat(stream.fileno()).st_size
            prefix = stream.read(8)
            if len(prefix) < 8:
                raise broken("an 8-byte header length", f"{size_bytes} bytes in all")
            n_header = struct.unpack("<Q", prefix)[0]
            if n_header > size_bytes - 8:
                raise broken(f"a header of {n_header} bytes", f"{size_bytes} bytes in all")
            if n_header > _MAX_HEADER_BYTES:
                raise broken(f"a header of at most {_MAX_HEADER_BYTES} bytes", f"{n_header}")
            text = stream.read(n_header)
    except OSError as error:
        raise ModelError(f"expected to read {path}, found: {error.strerror}; check the file and its rights") from error
    try:
        header = parse_unique_json(text)
    except _Duplicate as error:
        raise broken("each tensor once in its header", str(error)) from error
    except ValueError as error:
        raise broken("a JSON header", str(error)) from error
    if not isinstance(header, dict):
        raise broken("a JSON object as its header", type(header).__name__)
    header.pop("__metadata__", None)

    data_start = 8 + n_header
    tensors = {}
    for name, entry in header.items():
        if not isinstance(entry, dict) or not isinstance(entry.get("dtype"), str):
            raise broken(f"dtype, shape and data_offsets for tensor {name!r}", repr(entry)[:80])
        if not re.fullmatch("[A-Z0-9_]{1,16}", entry["dtype"]):
            raise broken(f"a dtype such as F32 or BF16 for tensor {name!r}", repr(entry["dtype"])[:80])
        shape, offsets = _counts(entry.get("shape")), _counts(entry.get("data_offsets"))
        if shape is None:
            raise broken(f"a shape of whole numbers for tensor {name!r}", repr(entry.get("shape"))[:80])
        if offsets is None or len(offsets) != 2 or offsets[0] > offsets[1]:
            raise broken(f"two rising data_offsets for tensor {name!r}", repr(entry.get("data_offsets"))[:80])
        dtype, start, end = entry["dtype"], data_start + offsets[0], data_start + offsets[1]
        if end > size_bytes:
            raise broken(f"tensor {name!r} to end at byte {end}", f"{size_bytes} bytes in all")
        if dtype in _ITEM_BYTES and end - start != math.prod(shape) * _ITEM_BYTES[dtype]:
            raise broken(f"{math.prod(shape)} items of {dtype} for tensor {name!r}", f"{end - start} bytes")
        tensors[name] = StoredTensor(path, dtype, shape, start, end)

    ordered = dict(sorted(tensors.items(), key=lambda item: (item[1].start_byte, item[1].end_byte)))
    next_byte = data_start
    for name, tensor in ordered.items():
        if tensor.start_byte != next_byte:
            clash = "overlaps the one before it" if tensor.start_byte < next_byte else "leaves a gap before it"
            raise broken(f"tensor {name!r} to begin at byte {next_byte}", f"{tensor.start_byte}: it {clash}")
        next_byte = tensor.end_byte
    if next_byte != size_bytes:
        raise broken(f"{next_byte} bytes in all", f"{size_bytes}")
    return ordered


def _fill(stream: BinaryIO, items: np.ndarray, name: str, stored: StoredTensor) -> None:
    view = memoryview(items).cast("B")
    filled = 0
    while filled < len(view):
        n_read = stream.readinto(view[filled:])
        if not n_read:
            raise ModelError(
                f"expected {len(view) - filled} more bytes of tensor {name!r} in {stored.file}, found its end; "
                "the file was cut while it was read: copy it again"
            )
        filled += n_read


def _widen(items: np.ndarray, dtype: str) -> np.ndarray:
    """float16 as it is, everything else as float32. A float64 beyond float32 becomes infinite."""
    if dtype == "BF16":
        return np.left_shift(items, 16, dtype=np.uint32).view(np.float32)
    if dtype == "F64":
        with np.errstate(over="ignore"):
            return items.astype(np.float32)
    return items


def half_to_single(halves: np.ndarray, out: np.ndarray) -> None:
    """Widens float16 to float32 of the same shape, exactly; `out` is contiguous. Four times as fast as numpy's cast.

    The bits are shifted into place and multiplied by 2^112, which sets the exponent right, that of subnormal numbers
    too. Infinity and NaN, whose exponent is special, are left to numpy.
    """
    bits = halves.view(np.int16)
    if np.max(np.bitwise_and(bits, 0x7FFF)) >= 0x7C00:
        np.copyto(out, halves)
        return
    wide = out.view(np.int32)
    np.copyto(wide, bits)
    np.left_shift(wide, 13, out=wide)
    np.bitwise_and(wide, -0x70002000, out=wide)  # sign, exponent and fraction; drops the sign's copies between them
    np.multiply(out, np.float32(2.0**112), out=out)


def row_items(name: str, stored: StoredTensor) -> int:
    """Items in one row (of the first axis) of a tensor that can be read; a scalar is one row of one item.

    Raises ModelError, naming the tensor, for a dtype that cannot be read and for a tensor without values.
    """
    if stored.dtype not in READABLE:
        raise ModelError(
            f"expected tensor {name!r} of {stored.file} as one of {sorted(READABLE)}, found {stored.dtype}; "
            "convert the checkpoint as it was before quantization"
        )
    if not math.prod(stored.shape):
        raise ModelError(f"expected values in tensor {name!r} of {stored.file}, found shape {stored.shape}")
    return math.prod(stored.shape[1:])


def read_rows(name: str, stored: StoredTensor, first_row: int, n_rows: int) -> np.ndarray:
    """Rows of a tensor's first axis: float16 if stored so, else float32 (n_rows, *shape[1:]); memory of its own.

    Raises ModelError for a dtype that cannot be read, a tensor without values, and a file that ends too early.
    """
    per_row = row_items(name, stored)
    items = np.empty(n_rows * per_row, READABLE[stored.dtype])
    try:
        with open_regular(stored.file, buffering=0) as stream:
            stream.seek(stored.start_byte + first_row * per_row * items.itemsize)
            _fill(stream, items, name, stored)
    except OSError as error:
        raise ModelError(f"expected to read tensor {name!r} of {stored.file}, found: {error.strerror}") from error
    return _widen(items, stored.dtype).reshape((n_rows, *stored.shape[1:]) if stored.shape else ())


def row_ranges(name: str, stored: StoredTensor, max_bytes: int) -> Iterator[tuple[int, int]]:
    """(first_row, n_rows) of blocks that take at most `max_bytes` while they are read, or of single rows."""
    # What is read and, unless that is already the result, what it is widened to are held together.
    bytes_per_row = row_items(name, stored) * _HELD_BYTES[stored.dtype]
    n_rows, step = stored.shape[0] if stored.shape else 1, max(1, max_bytes // bytes_per_row)
    for first_row in range(0, n_rows, step):
        yield first_row, min(step, n_rows - first_row)


def read_blocks(name: str, stored: StoredTensor, max_bytes: int = BLOCK_BYTES) -> Iterator[np.ndarray]:
    """The tensor's values by blocks of whole rows (of its first axis), in order; `name` is for messages.

    Yields float16 if stored so, else float32, each of shape (n_rows, *shape[1:]), each memory of its own and of at
    most `max_bytes` unless one row is larger; a scalar is one block of shape (). Raises what `read_rows` raises.
    """
    for first_row, n_rows in row_ranges(name, stored, max_bytes):
        yield read_rows(name, stored, first_row, n_rows)


def read_tensor(name: str, stored: StoredTensor) -> np.ndarray:
    """The whole tensor at once: float16 if stored so, else float32; raises what `read_rows` raises."""
    return gather(stored.shape, read_blocks(name, stored))


def gather(shape: tuple[int, ...], blocks: Iterator[np.ndarray]) -> np.ndarray:
    """Row blocks put together to an array of `shape`, of the first block's dtype."""
    first = next(blocks)
    if first.shape == shape:
        return first
    whole = np.empty(shape, first.dtype)
    whole[: len(first)] = first
    row = len(first)
    for block in blocks:
        whole[row : row + len(block)] = block
        row += len(block)
    return whole
