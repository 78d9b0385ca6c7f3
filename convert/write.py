"""A checkpoint -> an unquantized GGUF file (f32, f16, bf16), a block of rows at a time.

    write_gguf(Checkpoint(Path("checkpoint")), Path("model-f16.gguf"), "f16")

Every tensor of the checkpoint is either converted or known to be left out; a leftover or a missing one is refused.
Matrices that are copied or merged pass through in blocks of rows, so memory does not grow with the model; those
whose rows are reordered (the q and k projections of a layer) are held one at a time. The file appears whole or not
at all, after each tensor's bytes have been read again and compared by checksum with what was written.

Format followed: GGUF 3, little endian (ggml/docs/gguf.md); header and metadata are written by the `gguf` package.
"""

import collections
import hashlib
import math
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from reclm_lite.convert.bounded_files import whole_or_nothing
from reclm_lite.convert.families import Family, Rename, family_of
from reclm_lite.convert.quantize import UNQUANTIZED_FTYPES
from reclm_lite.convert.vocab import read_vocabulary, write_vocabulary
from reclm_lite.errors import ModelError
from reclm_lite.runtime import check_gguf, single_to_half

if TYPE_CHECKING:
    from reclm_lite.convert.checkpoint import Source

_ALIGNMENT = 32  # of a tensor's data; the format's default
_BLOCK_BYTES = 8 << 20  # of a tensor in memory at once, as the source gives it
_F16_MAX, _F32_MAX = 65504.0, float(np.finfo(np.float32).max)
# type -> (bytes per value, the same width as integers, exponent bits that are all set in infinity and NaN only)
_LAYOUT = {"F32": (4, np.uint32, 0x7F800000), "F16": (2, np.uint16, 0x7C00), "BF16": (2, np.uint16, 0x7F80)}

# progress(bytes written, bytes in all)
Progress = Callable[[int, int], None]


class TooLargeForType(ModelError):
    """A weight is finite, but beyond what the file's type can hold."""


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor to write: its name in the file, row-major shape, type (F32, F16, BF16), and its values.

    blocks: gives the values as consecutive blocks of rows, float16 or float32. origin: where they come from, in words.
    """

    target: str
    shape: tuple[int, ...]
    type_name: str
    blocks: Callable[[], Iterator[np.ndarray]]
    origin: Callable[[], str]

    @property
    def n_values(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes_per_value(self) -> int:
        return _LAYOUT[self.type_name][0]

    @property
    def size_bytes(self) -> int:
        return self.n_values * self.bytes_per_value


def _match_tensors(source: "Source", family: Family) -> list[tuple[Rename, str]]:
    """Pairs each rename with the checkpoint's name for it; refuses leftovers, duplicates, gaps and odd shapes."""
    stored: dict[str, str] = {}
    for name in source.tensors:
        canonical = family.canonical_name(name)
        if canonical is None:
            continue
        if canonical in stored:
            raise ModelError(f"expected one tensor for {canonical!r}, found {stored[canonical]!r} and {name!r}")
        stored[canonical] = name
    rules = family.renames(source.config, set(stored))
    missing = [rule.source for rule in rules if rule.source not in stored]
    leftover = sorted(set(stored) - {rule.source for rule in rules})
    if missing or leftover:
        raise ModelError(
            f"expected the tensors of {source.config.get('architectures')} in {source.directory}, found "
            f"{len(missing)} missing ({', '.join(missing[:3]) or 'none'}) and {len(leftover)} left over "
            f"({', '.join(leftover[:3]) or 'none'}); check config.json, and give an adapter's folder as the adapter"
        )
    for rule in rules:
        shape = source.tensors[stored[rule.source]].shape
        if shape != rule.shape:
            raise ModelError(f"expected {rule.source!r} of shape {rule.shape} (config.json), found {shape}")
    return [(rule, stored[rule.source]) for rule in rules]


def plan_tensors(source: "Source", family: Family, ftype: str) -> list[PlannedTensor]:
    """Every tensor of the file, in its order; ModelError where the checkpoint is not what its config.json says."""
    plan = [
        PlannedTensor(target, array.shape, "F32", lambda array=array: iter([array]), lambda target=target: repr(target))
        for target, array in family.extra_tensors(source.config).items()
    ]
    for rule, name in _match_tensors(source, family):

        def blocks(rule: Rename = rule, name: str = name) -> Iterator[np.ndarray]:
            return iter([rule.transform(source.tensor(name))]) if rule.transform else source.blocks(name, _BLOCK_BYTES)

        narrow = len(rule.shape) > 1 and not rule.keep_f32
        type_name = ftype.upper() if narrow else "F32"
        plan.append(PlannedTensor(rule.target, rule.shape, type_name, blocks, lambda name=name: source.origin(name)))
    return plan


def _encode(block: np.ndarray, tensor: PlannedTensor) -> np.ndarray:
    """A block's bytes as they go into the file; refuses values that are not finite or that the type cannot hold."""
    _, integers, exponent = _LAYOUT[tensor.type_name]
    with np.errstate(over="ignore", invalid="ignore"):
        if tensor.type_name == "BF16":
            bits = np.ascontiguousarray(block, dtype=np.float32).view(np.uint32)
            # To nearest, ties to even: half of the last kept bit, less one where that bit is 0.
            encoded = ((bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16).astype(np.uint16)
        elif tensor.type_name == "F16" and block.dtype == np.float32:
            encoded = single_to_half(block).view(integers)
        else:
            dtype = np.float32 if tensor.type_name == "F32" else np.float16
            encoded = np.ascontiguousarray(block, dtype=dtype).view(integers)
    if encoded.size and (encoded & integers(exponent)).max() == exponent:
        _refuse(block, tensor)
    return encoded


def _refuse(block: np.ndarray, tensor: PlannedTensor) -> None:
    finite = np.isfinite(block)
    if not finite.all():
        raise ModelError(f"expected finite weights, found NaN or infinity in {tensor.origin()}; train or copy it again")
    largest, limit = float(np.abs(block).max()), _F16_MAX if tensor.type_name == "F16" else _F32_MAX
    name = "float16" if tensor.type_name == "F16" else "bfloat16"
    raise TooLargeForType(
        f"expected weights within {name}'s {limit:g}, found {largest:g} in {tensor.origin()}; "
        f"export as {'bf16 or f32' if tensor.type_name == 'F16' else 'f32'}"
    )


def add_metadata(writer: Any, metadata: Mapping[str, Any], prefix: str = "") -> None:
    """Adds values under `prefix`: bool, int (uint32), float (float32), str, or a list of them, by their Python type."""
    for key, value in metadata.items():
        if isinstance(value, bool):
            writer.add_bool(prefix + key, value)
        elif isinstance(value, int):
            writer.add_uint32(prefix + key, value)
        elif isinstance(value, float):
            writer.add_float32(prefix + key, value)
        elif isinstance(value, (list, tuple)):
            writer.add_array(prefix + key, list(value))
        else:
            writer.add_string(prefix + key, value)


def _write_header(
    source: "Source", family: Family, path: Path, ftype: str, plan: list[PlannedTensor], entries: dict
) -> None:
    import gguf

    vocabulary = read_vocabulary(source.tokenizer_directory, family.VOCAB, source.config)
    writer = gguf.GGUFWriter(path=path, arch=family.GGUF_ARCH)
    try:
        writer.add_type("model")
        add_metadata(writer, family.hyperparameters(source.config, source.directory), prefix=f"{family.GGUF_ARCH}.")
        add_metadata(writer, entries)
        writer.add_file_type(UNQUANTIZED_FTYPES[ftype])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        write_vocabulary(writer, vocabulary)
        for tensor in plan:
            kind = gguf.GGMLQuantizationType[tensor.type_name]
            dtype = np.dtype(np.float32 if tensor.type_name == "F32" else np.float16)
            writer.add_tensor_info(tensor.target, tensor.shape, dtype, tensor.size_bytes, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
    finally:
        writer.close()


class _Appender:
    """Appends to a file in a thread of its own, so that the next block is computed while one is written.

    One block is being written and one may wait. `checksums`: {tensor name: CRC-32 of its bytes}. Data given to `put`
    must not change after.
    """

    def __init__(self, path: Path):
        self.checksums: dict[str, int] = {}
        self._stream = path.open("ab")
        self._thread = ThreadPoolExecutor(1)
        self._waiting: collections.deque[Future[None]] = collections.deque()

    def put(self, name: str, data: memoryview) -> None:
        self._submit(self._write, name, data)

    def pad(self) -> None:
        self._submit(self._write_padding)

    def finish(self) -> None:
        """Returns when everything is written; raises what writing raised."""
        while self._waiting:
            self._waiting.popleft().result()

    def _submit(self, function: Callable[..., None], *arguments: Any) -> None:
        while len(self._waiting) > 1:
            self._waiting.popleft().result()
        self._waiting.append(self._thread.submit(function, *arguments))

    def _write(self, name: str, data: memoryview) -> None:
        self.checksums[name] = zlib.crc32(data, self.checksums.get(name, 0))
        self._stream.write(data)

    def _write_padding(self) -> None:
        self._stream.write(bytes(-self._stream.tell() % _ALIGNMENT))

    def __enter__(self) -> "_Appender":
        return self

    def __exit__(self, *exc: object) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._stream.close()


def _write_tensors(path: Path, plan: list[PlannedTensor], progress: Progress | None) -> dict[str, int]:
    """Appends the tensors to a file that has its header; returns {tensor name: CRC-32 of its bytes}."""
    done, total = 0, sum(tensor.size_bytes for tensor in plan)
    with _Appender(path) as file:
        file.pad()
        for tensor in plan:
            n_bytes = 0
            for block in tensor.blocks():
                data = memoryview(_encode(block, tensor)).cast("B")
                file.put(tensor.target, data)
                n_bytes += len(data)
                if progress:
                    progress(done + n_bytes, total)
            if n_bytes != tensor.size_bytes:
                raise ModelError(
                    f"expected {tensor.size_bytes} bytes of {tensor.origin()}, found {n_bytes}; copy it again"
                )
            file.pad()
            done += n_bytes
        file.finish()
        return file.checksums


def _read_again(path: Path, checksums: dict[str, int]) -> str:
    """Compares each tensor of the file with its checksum, a block at a time; returns the whole file's SHA-256."""
    summary, whole = check_gguf(path), hashlib.sha256()
    found: dict[str, int] = {}
    at = 0
    with path.open("rb", buffering=0) as stream, ThreadPoolExecutor(1) as hashing:
        for tensor in sorted(summary.tensors, key=lambda tensor: tensor.offset_bytes):
            end = tensor.offset_bytes + tensor.size_bytes
            whole.update(stream.read(tensor.offset_bytes - at))
            at, found[tensor.name] = tensor.offset_bytes, 0
            hashed: Future[None] | None = None
            while at < end:
                data = stream.read(min(end - at, _BLOCK_BYTES))
                if not data:
                    break
                if hashed:
                    hashed.result()
                hashed = hashing.submit(whole.update, data)
                found[tensor.name] = zlib.crc32(data, found[tensor.name])
                at += len(data)
            if hashed:
                hashed.result()
        whole.update(stream.read())
    if found != checksums:
        odd = sorted(name for name in found.keys() | checksums.keys() if found.get(name) != checksums.get(name))
        raise ModelError(f"expected {path} to hold what was written, found other bytes in {odd[:3]}; check the disk")
    return whole.hexdigest()


def write_gguf(
    source: "Source",
    path: Path,
    ftype: str,
    *,
    name: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Writes a checkpoint (an adapter merged in, if `source` has one) as GGUF of type f32, f16 or bf16, whole or not at
    all.

    `name` is the model's (default: the directory's); `metadata` adds keys such as `general.license`.
    Returns {"out", "architecture", "ftype", "size_bytes", "sha256", "n_tensors", "n_params"}. Raises ModelError naming
    the tensor for NaN, infinity, a shape other than config.json says, a leftover or a missing tensor; TooLargeForType
    for a weight beyond float16 or bfloat16.
    """
    if ftype not in UNQUANTIZED_FTYPES:
        raise ModelError(f"expected one of {', '.join(UNQUANTIZED_FTYPES)} to write without llama.cpp, found {ftype!r}")
    family = family_of(source.config)
    plan = plan_tensors(source, family, ftype)
    entries = {"general.name": name or source.directory.resolve().name, **(metadata or {})}
    with whole_or_nothing(path) as partial:
        _write_header(source, family, partial, ftype, plan, entries)
        sha256 = _read_again(partial, _write_tensors(partial, plan, progress))
        size_bytes = partial.stat().st_size
    return {
        "out": str(path),
        "architecture": family.GGUF_ARCH,
        "ftype": ftype,
        "size_bytes": size_bytes,
        "sha256": sha256,
        "n_tensors": len(plan),
        "n_params": sum(tensor.n_values for tensor in plan),
    }
