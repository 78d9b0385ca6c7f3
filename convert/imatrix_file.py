"""The file of an importance matrix: llama.cpp's GGUF form, read and written, and its earlier `.dat` form, read.

For every weight it holds the sum of squares of each input column (`NAME.in_sum2`) and the number of tokens summed
(`NAME.counts`). Numbers that cannot be such sums, and a matrix that belongs to another model, are refused.

Format followed: llama.cpp's tools/imatrix and common/imatrix-loader.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from reclm_lite.convert.bounded_files import whole_or_nothing
from reclm_lite.errors import ModelError
from reclm_lite.gguf_file import metadata_texts
from reclm_lite.runtime import GgufSummary, check_gguf

_SUMS, _COUNTS = ".in_sum2", ".counts"
_ALIGNMENT = 32
_F32 = 0  # enum ggml_type
_UINT32, _STRING, _ARRAY = 4, 8, 9  # GGUF value types
_LEGACY_CHUNK = 512  # tokens of a chunk where a file does not say; llama.cpp's tools assume the same
_MAX_NAME = 1024  # bytes of a name in a legacy file; more is corruption
_MAX_COUNT = 2**53
_MAX_UINT32 = 2**32 - 1


@dataclass(frozen=True)
class Importance:
    """One weight's entry. `sums`: float32 (n_matrices, n_columns), sums of squares; `counts`: int64 (n_matrices,)."""

    sums: np.ndarray
    counts: np.ndarray

    def mean(self) -> np.ndarray:
        """Mean square of each column, float32 (n_matrices * n_columns,); 1 where no token was seen."""
        counts = self.counts.astype(np.float32)[:, None]
        return np.where(counts > 0, self.sums / np.where(counts > 0, counts, 1), np.float32(1)).reshape(-1)


@dataclass(frozen=True)
class Imatrix:
    """An importance matrix: {weight's name: Importance}, and where it comes from.

    `name` is the name of its file, `datasets` those of the texts; `chunk_count` counts chunks of `chunk_size` tokens.
    """

    entries: Mapping[str, Importance]
    datasets: tuple[str, ...]
    chunk_count: int
    chunk_size: int
    name: str = "imatrix.gguf"

    def means(self) -> dict[str, np.ndarray]:
        """What llama.cpp's quantization takes: {weight's name: mean square of each column, float32}."""
        return {name: entry.mean() for name, entry in self.entries.items()}


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def write_imatrix(path: Path, imatrix: Imatrix) -> None:
    """Writes llama.cpp's GGUF form at `path`, whole or not at all: the bytes that `llama-imatrix` would write."""
    tensors = []
    for name in sorted(imatrix.entries):
        entry = imatrix.entries[name]
        tensors.append((name + _SUMS, entry.sums))
        tensors.append((name + _COUNTS, entry.counts[:, None]))
    header = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), 4)
    header += _string("general.type") + struct.pack("<I", _STRING) + _string("imatrix")
    header += _string("imatrix.datasets") + struct.pack("<IIQ", _ARRAY, _STRING, len(imatrix.datasets))
    header += b"".join(map(_string, imatrix.datasets))
    header += _string("imatrix.chunk_count") + struct.pack("<II", _UINT32, imatrix.chunk_count)
    header += _string("imatrix.chunk_size") + struct.pack("<II", _UINT32, imatrix.chunk_size)
    data = bytearray()
    for name, values in tensors:
        n_rows, n_columns = values.shape
        dims = (n_columns,) if n_rows == 1 else (n_columns, n_rows)
        header += _string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, _F32, len(data))
        data += values.astype("<f4").tobytes()
        data += bytes(-len(data) % _ALIGNMENT)
    with whole_or_nothing(path) as partial, partial.open("wb") as stream:
        stream.write(header + bytes(-len(header) % _ALIGNMENT))
        stream.write(data)


def _checked(path: Path, name: str, sums: np.ndarray, counts: np.ndarray) -> Importance:
    """An entry whose numbers can be an importance; ModelError says which cannot."""
    if not np.isfinite(sums).all() or (sums < 0).any():
        raise ModelError(
            f"expected finite sums of squares for {name!r} in {path}, found others; collect the matrix again"
        )
    if not np.isfinite(counts).all() or (counts < 0).any() or (counts > _MAX_COUNT).any():
        raise ModelError(
            f"expected numbers of tokens for {name!r} in {path}, found {counts[:3].tolist()}; collect it again"
        )
    if not len(counts) or not sums.size or sums.size % len(counts):
        raise ModelError(f"expected {len(counts)} rows of sums for {name!r} in {path}, found {sums.size} values")
    return Importance(sums.reshape(len(counts), -1).astype(np.float32), np.rint(counts).astype(np.int64))


def read_imatrix(path: Path) -> Imatrix:
    """An importance matrix from llama.cpp's GGUF form or its earlier `.dat` form; ModelError if it is neither."""
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"expected an importance matrix at {path}, found no such file; check the path")
    with path.open("rb") as stream:
        magic = stream.read(4)
    return _read_gguf(path) if magic == b"GGUF" else _read_legacy(path)


def _read_gguf(path: Path) -> Imatrix:
    summary = check_gguf(path, is_model=False)
    kind = summary.metadata.get("general.type")
    if kind != "imatrix":
        raise ModelError(
            f"expected an importance matrix at {path}, found a GGUF file of type {kind!r}; "
            "make one with `reclm export --imatrix auto`, or with llama.cpp's llama-imatrix"
        )
    count, size = (summary.metadata.get(f"imatrix.chunk_{key}") for key in ("count", "size"))
    if type(count) is not int or type(size) is not int or "imatrix.datasets" not in summary.array_lengths:
        raise ModelError(
            f"expected imatrix.datasets, imatrix.chunk_count and imatrix.chunk_size in {path}, found not all"
        )
    if not 0 <= count <= _MAX_UINT32 or not 0 <= size <= _MAX_UINT32:
        raise ModelError(
            f"expected imatrix.chunk_count and imatrix.chunk_size of 0 to {_MAX_UINT32} in {path}, found {count} and "
            f"{size}; "
            "collect the matrix again"
        )
    tensors = {tensor.name: tensor for tensor in summary.tensors}
    names = sorted({name.removesuffix(_SUMS).removesuffix(_COUNTS) for name in tensors})
    entries = {}
    with path.open("rb") as stream:
        for name in names:
            pair = []
            for full_name in (name + _SUMS, name + _COUNTS):
                tensor = tensors.get(full_name)
                if tensor is None or tensor.type_name != "F32":
                    found = "none" if tensor is None else tensor.type_name
                    raise ModelError(f"expected a tensor {full_name!r} of type F32 in {path}, found {found}")
                stream.seek(tensor.offset_bytes)
                pair.append(np.frombuffer(stream.read(tensor.size_bytes), dtype="<f4"))
            entries[name] = _checked(path, name, *pair)
    if not entries:
        raise ModelError(f"expected an importance matrix at {path}, found one without entries")
    datasets = tuple(text.decode("utf-8", errors="replace") for text in metadata_texts(path, "imatrix.datasets"))
    return Imatrix(entries, datasets, count, size, path.name)


class _Legacy:
    """Reads the numbers of a legacy file; its end comes as a ModelError."""

    def __init__(self, path: Path):
        self.path, self.raw, self.at = path, path.read_bytes(), 0

    def take(self, n_bytes: int) -> bytes:
        if n_bytes < 0 or n_bytes > len(self.raw) - self.at:
            raise ModelError(
                f"{self.path} is not a whole importance matrix: expected {n_bytes} more bytes at byte {self.at}, "
                f"found the end at byte {len(self.raw)}; collect or copy it again"
            )
        self.at += n_bytes
        return self.raw[self.at - n_bytes : self.at]

    def int32(self) -> int:
        return struct.unpack("<i", self.take(4))[0]


def _read_legacy(path: Path) -> Imatrix:
    """int32 n_entries; per entry its name, n_calls, n_values and float32 mean squares times n_calls; then the
    number of chunks and the dataset's name, which the earliest files lack."""
    reader = _Legacy(path)
    n_entries = reader.int32()
    if n_entries < 1 or n_entries > len(reader.raw):
        raise ModelError(f"expected an importance matrix at {path}, found a file of another format")
    entries = {}
    for _ in range(n_entries):
        length = reader.int32()
        if not 0 < length <= _MAX_NAME:
            raise ModelError(f"expected an importance matrix at {path}, found a name of {length} bytes")
        name = reader.take(length).decode("utf-8", errors="replace")
        if name in entries:
            raise ModelError(
                f"expected each name once in the importance matrix {path}, found {name!r} twice; collect it again"
            )
        n_calls, n_values = reader.int32(), reader.int32()
        values = np.frombuffer(reader.take(4 * n_values), dtype="<f4")
        # Multiplied by a power of two, the mean stays the same to the bit; zero calls mean values that are means.
        calls = np.array([n_calls or 1], dtype=np.float64)
        with np.errstate(over="ignore", invalid="ignore"):  # what becomes infinite is refused
            sums = values * np.float32(_LEGACY_CHUNK)
        entries[name] = _checked(path, name, sums, calls * _LEGACY_CHUNK)
    chunk_count, datasets = 0, ()
    if reader.at < len(reader.raw):
        chunk_count = reader.int32()
        dataset = reader.take(reader.int32()).decode("utf-8", errors="replace")
        datasets = (dataset,) if dataset else ()
    if chunk_count < 0:
        raise ModelError(f"expected a number of chunks in {path}, found {chunk_count}")
    return Imatrix(entries, datasets, chunk_count, _LEGACY_CHUNK, path.name)


def weights_of(summary: GgufSummary) -> dict[str, tuple[int, ...]]:
    """The matrices of a model's blocks, which an importance matrix has an entry for: {name: (n_columns, n_rows)}."""
    weights = {}
    for tensor in summary.tensors:
        if not tensor.name.startswith("blk.") or not tensor.name.endswith(".weight") or len(tensor.shape) < 2:
            continue
        if len(tensor.shape) > 2:
            raise ModelError(
                f"expected matrices in {summary.path}, found {tensor.name!r} of shape {tensor.shape}: "
                "mixtures of experts are not among the known families"
            )
        weights[tensor.name] = tensor.shape
    return weights


def check_fits(imatrix: Imatrix, summary: GgufSummary) -> list[str]:
    """Refuses a matrix of another model, naming the tensor; returns the model's weights that it has no entry for."""
    columns = {tensor.name: tensor.shape[0] for tensor in summary.tensors if len(tensor.shape) > 1}
    unknown = sorted(imatrix.entries.keys() - columns.keys())
    if unknown:
        raise ModelError(
            f"expected an importance matrix of {summary.path}, found one of another model ({imatrix.name}): "
            f"it has {unknown[0]!r}, the model does not; collect it from this model"
        )
    for name, entry in sorted(imatrix.entries.items()):
        if entry.sums.shape != (1, columns[name]):
            raise ModelError(
                f"expected an importance matrix of {summary.path}, with {columns[name]} columns for {name!r}, found "
                f"{entry.sums.size} in {imatrix.name}; collect it from this model"
            )
    return sorted(weights_of(summary).keys() - imatrix.entries.keys())
