"""Proves that a GGUF file is whole before llama.cpp, which trusts its input, sees it.

A truncated or corrupt file can abort the whole process that loads it. Here the header, the metadata and the table
of tensors are walked with every length checked against the file's end, and every size bounded before memory is taken
for it; what they say of a model is judged by `gguf_limits`. The contents of the tensors are not judged.

Format followed: GGUF versions 2 and 3, little endian (ggml/docs/gguf.md).
"""

import hashlib
import math
import mmap
import re
import struct
from pathlib import Path
from typing import Any

from reclm_lite.errors import ModelError
from reclm_lite.gguf_limits import TOKENS, Arrays, check_limits, check_tensors
from reclm_lite.gguf_summary import GgufSummary, TensorInfo

_GGUF_MAGIC = b"GGUF"
_GGUF_VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
# GGUF value type -> struct format of one value.
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_MAX_DIMS = 4
# Far above any model; more is corruption, or made to take time and memory.
_MAX_ENTRIES = 1 << 16  # keys, tensors; the largest models have some 3,000
_MAX_STRINGS = 1 << 21  # of one array; the largest vocabularies have 262,144 tokens and some 500,000 merges
_MAX_TEXT_BYTES = 16 << 20  # one text; a chat template has some 20 KB
_MAX_TEXTS_BYTES = 64 << 20  # all texts together
_MAX_KEY_BYTES = 65_535  # as the format says
_MAX_NAME_BYTES = 63  # llama.cpp's GGML_MAX_NAME, without the NUL


class _Cursor:
    """Reads GGUF primitives from a buffer; running past the end is a truncated file, never an IndexError."""

    def __init__(self, path: Path, buffer: mmap.mmap):
        self.path, self.buffer, self.at, self.size_bytes = path, buffer, 0, len(buffer)
        self.n_text_bytes = 0

    def fail(self, expected: str, found: str) -> ModelError:
        return ModelError(
            f"{self.path} is not a whole GGUF file: expected {expected}, found {found}; copy or convert the model again"
        )

    def take(self, n_bytes: int, what: str) -> bytes:
        if n_bytes > self.size_bytes - self.at:
            raise self.fail(
                f"{n_bytes} bytes of {what} at byte {self.at}", f"the end of the file at byte {self.size_bytes}"
            )
        piece = self.buffer[self.at : self.at + n_bytes]
        self.at += n_bytes
        return piece

    def scalar(self, fmt: str, what: str) -> Any:
        return struct.unpack(fmt, self.take(struct.calcsize(fmt), what))[0]

    def string(self, what: str, most_bytes: int = _MAX_TEXT_BYTES) -> str:
        n_bytes = self.scalar("<Q", f"the length of {what}")
        if n_bytes > most_bytes:
            raise self.fail(f"at most {most_bytes:,} bytes of {what}", f"{n_bytes:,}")
        self.n_text_bytes += n_bytes
        if self.n_text_bytes > _MAX_TEXTS_BYTES:
            raise self.fail(f"at most {_MAX_TEXTS_BYTES:,} bytes of texts", "more")
        return self.take(n_bytes, what).decode("utf-8", errors="replace")

    def name(self, what: str, most_bytes: int) -> str:
        """A key, or the name of a tensor: not empty, without NUL, where llama.cpp would end it."""
        name = self.string(what, most_bytes)
        if not name or "\0" in name:
            raise self.fail(f"{what} without NUL, not empty", repr(name)[:80])
        return name

    def strings(self, n_strings: int, what: str, kept: list[bytes] | None) -> None:
        """Walks over `n_strings` strings, into `kept` if given; the loop that a vocabulary of 100,000 tokens makes
        hot."""
        if n_strings > _MAX_STRINGS:
            raise self.fail(f"at most {_MAX_STRINGS:,} texts in {what}", f"{n_strings:,}")
        at, buffer, end = self.at, self.buffer, self.size_bytes
        unpack = struct.Struct("<Q").unpack_from
        for _ in range(n_strings):
            if at + 8 > end:
                raise self.fail(f"a string of {what} at byte {at}", f"the end of the file at byte {end}")
            start = at + 8
            at = start + unpack(buffer, at)[0]
            if kept is not None:
                if at > end:
                    break
                kept.append(buffer[start:at])
        if at > end:
            raise self.fail(f"the strings of {what}", f"the end of the file at byte {end}")
        self.at = at

    def value(
        self, value_type: int, what: str, kept: list[bytes] | None = None
    ) -> tuple[Any, tuple[int, int, int] | None]:
        """One metadata value: (value, None), or (None, (type of items, their number, where they begin)) for an array.

        kept: takes the texts of an array of texts.
        """
        if value_type == _STRING:
            return self.string(what), None
        if value_type in _SCALARS:
            return self.scalar(_SCALARS[value_type], what), None
        if value_type != _ARRAY:
            raise self.fail(f"a known value type for {what}", f"type {value_type}")
        item_type = self.scalar("<I", f"the item type of {what}")
        n_items = self.scalar("<Q", f"the length of {what}")
        start = self.at
        if item_type in _SCALARS:
            size = struct.calcsize(_SCALARS[item_type])
            if n_items * size > self.size_bytes - self.at:
                raise self.fail(f"{n_items} items of {what}", f"the end of the file at byte {self.size_bytes}")
            self.at += n_items * size
        elif item_type == _STRING:
            self.strings(n_items, what, kept)
        else:  # llama.cpp reads no arrays of arrays
            raise self.fail(f"numbers or texts in the array {what}", f"items of type {item_type}")
        return None, (item_type, n_items, start)


def _read_tensor_info(cursor: _Cursor) -> tuple[str, tuple[int, ...], Any, int, int]:
    """(name, shape, GGML type, offset within the data section, size in bytes) of the next tensor."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    name = cursor.name("a tensor's name", _MAX_NAME_BYTES)
    n_dims = cursor.scalar("<I", f"the number of dimensions of {name!r}")
    if not 0 <= n_dims <= _MAX_DIMS:
        raise cursor.fail(f"at most {_MAX_DIMS} dimensions for tensor {name!r}", str(n_dims))
    shape = tuple(cursor.scalar("<Q", f"the shape of {name!r}") for _ in range(n_dims))
    type_id = cursor.scalar("<I", f"the type of {name!r}")
    offset_bytes = cursor.scalar("<Q", f"the offset of {name!r}")
    if not all(shape):
        raise cursor.fail(f"dimensions of 1 or more for tensor {name!r}", str(shape))
    try:
        ggml_type = GGMLQuantizationType(type_id)
    except ValueError as error:
        raise cursor.fail(f"a known type for tensor {name!r}", f"type {type_id}") from error
    block, block_bytes = GGML_QUANT_SIZES[ggml_type]
    n_items = math.prod(shape)
    if (shape[0] if shape else 1) % block:
        raise cursor.fail(f"rows of a multiple of {block} for tensor {name!r} ({ggml_type.name})", str(shape[:1]))
    return name, shape, ggml_type, offset_bytes, n_items // block * block_bytes


def check_gguf(path: Path, *, is_model: bool = True) -> GgufSummary:
    """Proves that a GGUF file is whole: header, metadata and tensor table readable, all tensor data present.

    is_model: it must name an architecture, and say nothing of its model that makes llama.cpp end the process; without
    one, as in an importance matrix, `architecture` is empty. Raises ModelError saying what was expected and what was
    found. The contents of the tensors are not judged.
    """
    path = Path(path)
    if not path.is_file():
        found = "a folder; name the file in it" if path.is_dir() else "no such file; check the path"
        raise ModelError(f"expected a GGUF {'model' if is_model else 'file'} at {path}, found {found}")
    size_bytes = path.stat().st_size
    if size_bytes < 24:
        raise ModelError(
            f"{path} is not a whole GGUF file: expected a header of 24 bytes, found {size_bytes} bytes; "
            "copy or convert the model again"
        )
    try:
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as buffer:
            return _parse_gguf(_Cursor(path, buffer), is_model)
    except (OSError, ValueError) as error:  # ValueError: emptied meanwhile
        raise ModelError(
            f"expected to read {path}, found: {getattr(error, 'strerror', None) or error}; check the file and its "
            "rights"
        ) from error


def _parse_gguf(cursor: _Cursor, is_model: bool) -> GgufSummary:
    magic = cursor.take(4, "the magic")
    if magic != _GGUF_MAGIC:
        raise ModelError(
            f"{cursor.path} is not a GGUF file: expected it to start with {_GGUF_MAGIC!r}, found {magic!r}; "
            "convert the checkpoint to GGUF first"
        )
    version = cursor.scalar("<I", "the version")
    if version not in _GGUF_VERSIONS:
        raise cursor.fail(f"GGUF version {' or '.join(map(str, _GGUF_VERSIONS))}, little endian", f"{version}")
    n_tensors = cursor.scalar("<Q", "the number of tensors")
    n_keys = cursor.scalar("<Q", "the number of metadata keys")
    if n_tensors > _MAX_ENTRIES or n_keys > _MAX_ENTRIES:
        raise cursor.fail(f"at most {_MAX_ENTRIES} tensors and keys", f"{n_tensors} and {n_keys}")

    metadata: dict[str, Any] = {}
    places: dict[str, tuple[int, int, int]] = {}
    tokens: list[bytes] = []
    for _ in range(n_keys):
        key = cursor.name("a metadata key", _MAX_KEY_BYTES)
        shown = repr(key)[:80]
        kept = tokens if is_model and key == TOKENS else None
        value, place = cursor.value(cursor.scalar("<I", f"the type of {shown}"), shown, kept)
        if key in metadata or key in places:
            raise cursor.fail("each metadata key once", f"{shown} twice")
        if place is None:
            metadata[key] = value
        else:
            places[key] = place
    summary = GgufSummary(
        path=cursor.path,
        version=version,
        size_bytes=cursor.size_bytes,
        architecture=_architecture(cursor, metadata, is_model),
        metadata=metadata,
        array_lengths={key: n_items for key, (_, n_items, _) in places.items()},
        tensors=_read_tensors(cursor, n_tensors, metadata.get("general.alignment", 32)),
    )
    if is_model:
        check_limits(summary, Arrays(cursor.buffer, places, tokens))
        check_tensors(summary)
    return summary


def _architecture(cursor: _Cursor, metadata: dict[str, Any], is_model: bool) -> str:
    architecture = metadata.get("general.architecture", None if is_model else "")
    if not isinstance(architecture, str) or (is_model and not re.fullmatch(r"[\w.-]{1,64}", architecture, re.ASCII)):
        raise cursor.fail("general.architecture to name the architecture", repr(architecture)[:80])
    return architecture


def _read_tensors(cursor: _Cursor, n_tensors: int, alignment: Any) -> tuple[TensorInfo, ...]:
    """The table of tensors, which lie one after the other, each from a multiple of `alignment`."""
    infos = [_read_tensor_info(cursor) for _ in range(n_tensors)]
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise cursor.fail("general.alignment to be a power of two", repr(alignment)[:80])
    data_start = -(-cursor.at // alignment) * alignment
    tensors, next_offset = [], 0
    for name, shape, ggml_type, offset_bytes, n_bytes in infos:
        if offset_bytes % alignment:
            raise cursor.fail(f"tensor {name!r} aligned to {alignment} bytes", f"offset {offset_bytes}")
        if offset_bytes != next_offset:
            clash = "overlaps the one before it" if offset_bytes < next_offset else "leaves a gap before it"
            raise cursor.fail(f"tensor {name!r} at offset {next_offset}", f"{offset_bytes}: it {clash}")
        next_offset += -(-n_bytes // alignment) * alignment
        end = data_start + offset_bytes + n_bytes
        if end > cursor.size_bytes:
            raise cursor.fail(f"tensor {name!r} to end at byte {end}", f"a file of {cursor.size_bytes} bytes")
        tensors.append(TensorInfo(name, shape, ggml_type.name, data_start + offset_bytes, n_bytes))
    if len({tensor.name for tensor in tensors}) != len(tensors):
        raise cursor.fail("each tensor's name once", "a name twice")
    return tuple(tensors)


def metadata_digests(path: Path) -> dict[str, str]:
    """SHA-256 (hex) of every metadata value as it lies in the file, arrays included, by key.

    Two files agree on a key when its digests do. Raises ModelError as `check_gguf` does.
    """
    check_gguf(path, is_model=False)
    found = {}
    with Path(path).open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as buffer:
        cursor = _Cursor(Path(path), buffer)
        cursor.take(16, "the header")
        for _ in range(cursor.scalar("<Q", "the number of metadata keys")):
            key, start = cursor.name("a metadata key", _MAX_KEY_BYTES), cursor.at
            cursor.value(cursor.scalar("<I", f"the type of {key!r}"), repr(key)[:80])
            found[key] = hashlib.sha256(buffer[start : cursor.at]).hexdigest()
    return found


def metadata_texts(path: Path, key: str) -> list[bytes]:
    """The texts of an array of texts in a file's metadata; none where there is no such array.

    Raises ModelError as `check_gguf` does.
    """
    check_gguf(path, is_model=False)
    with Path(path).open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as buffer:
        cursor = _Cursor(Path(path), buffer)
        cursor.take(16, "the header")
        for _ in range(cursor.scalar("<Q", "the number of metadata keys")):
            texts: list[bytes] = []
            found = cursor.name("a metadata key", _MAX_KEY_BYTES)
            cursor.value(
                cursor.scalar("<I", f"the type of {found!r}"), repr(found)[:80], texts if found == key else None
            )
            if found == key:
                return texts
    return []
