"""Checkpoint directory -> GGUF file, written whole or not at all and read again afterwards.

    export_checkpoint(Path("checkpoint"), Path("model-q8_0.gguf"), "q8_0")

Every tensor of the checkpoint is either converted or known to be left out; a leftover or a missing one is
refused. One tensor is in memory at a time. The file is then read again: each tensor's bytes are compared by
checksum with what was written, and token ids with the checkpoint's tokenizer where `tokenizers` is installed.
"""

import logging
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from reclm_lite.convert.checkpoint import Checkpoint
from reclm_lite.convert.families import Family, Rename, family_of
from reclm_lite.convert.parity import token_id_mismatches
from reclm_lite.convert.quantize import UNQUANTIZED_FTYPES, parse_ftype, quantize_gguf, whole_or_nothing
from reclm_lite.convert.vocab import read_vocabulary, write_vocabulary
from reclm_lite.errors import ModelError
from reclm_lite.runtime import check_gguf

logger = logging.getLogger(__name__)

_F16_MAX = 65504.0
# What a quantized file is made from: nothing is lost before llama.cpp rounds.
_INTERMEDIATE = {"F16": "f16", "BF16": "bf16"}


@dataclass(frozen=True)
class _Planned:
    """One tensor to write: its GGUF name, row-major shape, type (F32, F16, BF16), and where its values come from."""

    target: str
    shape: tuple[int, ...]
    type_name: str
    values: Callable[[], np.ndarray]


def _match_tensors(checkpoint: Checkpoint, family: Family) -> list[tuple[Rename, str]]:
    """Pairs each rename with the checkpoint's name for it; refuses leftovers, duplicates, gaps and odd shapes."""
    stored: dict[str, str] = {}
    for name in checkpoint.tensors:
        canonical = family.canonical_name(name)
        if canonical is None:
            continue
        if canonical in stored:
            raise ModelError(f"expected one tensor for {canonical!r}, found {stored[canonical]!r} and {name!r}")
        stored[canonical] = name
    rules = family.renames(checkpoint.config, set(stored))
    missing = [rule.source for rule in rules if rule.source not in stored]
    leftover = sorted(set(stored) - {rule.source for rule in rules})
    if missing or leftover:
        raise ModelError(
            f"expected the tensors of {checkpoint.config.get('architectures')} in {checkpoint.directory}, found "
            f"{len(missing)} missing ({', '.join(missing[:3]) or 'none'}) and {len(leftover)} left over "
            f"({', '.join(leftover[:3]) or 'none'}); check config.json, and merge adapters first"
        )
    for rule in rules:
        shape = checkpoint.tensors[stored[rule.source]].shape
        if shape != rule.shape:
            raise ModelError(f"expected {rule.source!r} of shape {rule.shape} (config.json), found {shape}")
    return [(rule, stored[rule.source]) for rule in rules]


def _plan(checkpoint: Checkpoint, family: Family, ftype: str) -> Iterator[_Planned]:
    for target, array in family.extra_tensors(checkpoint.config).items():
        yield _Planned(target, array.shape, "F32", lambda array=array: array)
    for rule, name in _match_tensors(checkpoint, family):

        def values(rule: Rename = rule, name: str = name) -> np.ndarray:
            array = checkpoint.tensor(name)
            return rule.transform(array) if rule.transform else array

        narrow = len(rule.shape) > 1 and not rule.keep_f32
        yield _Planned(rule.target, rule.shape, ftype.upper() if narrow else "F32", values)


def _encode(tensor: _Planned) -> np.ndarray:
    """A tensor's bytes as they go into the file; refuses values that the type cannot hold."""
    array = tensor.values()
    if not np.isfinite(array).all():
        raise ModelError(f"expected finite weights, found NaN or infinity in {tensor.target!r}; train or copy again")
    if tensor.type_name == "F32":
        return np.ascontiguousarray(array, dtype=np.float32)
    if tensor.type_name == "F16":
        largest = float(np.abs(array).max())
        if largest > _F16_MAX:
            raise ModelError(
                f"expected weights within float16's {_F16_MAX:g}, found {largest:g} in {tensor.target!r}; "
                "export as bf16 or f32"
            )
        return np.ascontiguousarray(array, dtype=np.float16)
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    return quantize(np.ascontiguousarray(array, dtype=np.float32), GGMLQuantizationType.BF16)


def _add_metadata(writer: Any, metadata: Mapping[str, Any], prefix: str = "") -> None:
    """Adds values under `prefix`: bool, int (uint32), float (float32) or str, by their Python type."""
    for key, value in metadata.items():
        if isinstance(value, bool):
            writer.add_bool(prefix + key, value)
        elif isinstance(value, int):
            writer.add_uint32(prefix + key, value)
        elif isinstance(value, float):
            writer.add_float32(prefix + key, value)
        else:
            writer.add_string(prefix + key, value)


def _write(checkpoint: Checkpoint, family: Family, path: Path, ftype: str, metadata: Mapping[str, Any]) -> dict[str, int]:
    """Writes an unquantized GGUF file; returns {tensor name: CRC-32 of its bytes}."""
    import gguf

    plan = list(_plan(checkpoint, family, ftype))
    vocabulary = read_vocabulary(checkpoint.directory, family.VOCAB, checkpoint.config)
    writer = gguf.GGUFWriter(path=path, arch=family.GGUF_ARCH)
    try:
        writer.add_type("model")
        hyperparameters = family.hyperparameters(checkpoint.config, checkpoint.directory)
        _add_metadata(writer, hyperparameters, prefix=f"{family.GGUF_ARCH}.")
        _add_metadata(writer, metadata)
        writer.add_file_type(UNQUANTIZED_FTYPES[ftype])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        write_vocabulary(writer, vocabulary, checkpoint.directory)
        for tensor in plan:
            kind = gguf.GGMLQuantizationType[tensor.type_name]
            shape, n_bytes = tensor.shape, int(np.prod(tensor.shape)) * (4 if tensor.type_name == "F32" else 2)
            dtype = np.dtype(np.float32 if tensor.type_name == "F32" else np.float16)
            writer.add_tensor_info(tensor.target, shape, dtype, n_bytes, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        checksums = {}
        for tensor in plan:
            data = _encode(tensor)
            checksums[tensor.target] = zlib.crc32(data.view(np.uint8).reshape(-1))
            writer.write_tensor_data(data)
    finally:
        writer.close()
    return checksums


def _read_again(path: Path, checksums: dict[str, int]) -> None:
    summary = check_gguf(path)
    found = {}
    with path.open("rb") as stream:
        for tensor in summary.tensors:
            stream.seek(tensor.offset_bytes)
            found[tensor.name] = zlib.crc32(stream.read(tensor.size_bytes))
    if found != checksums:
        odd = sorted(name for name in found.keys() | checksums.keys() if found.get(name) != checksums.get(name))
        raise ModelError(f"expected {path} to hold what was written, found other bytes in {odd[:3]}; check the disk")


def _prove_token_ids(path: Path, checkpoint: Checkpoint) -> bool:
    mismatches = token_id_mismatches(path, checkpoint.directory)
    if mismatches is None:
        logger.warning("token ids of %s are not proved: the package `tokenizers` is not installed", path.name)
        return False
    if mismatches:
        first = mismatches[0]
        raise ModelError(
            f"expected the token ids of {checkpoint.directory / 'tokenizer.json'}, found others for "
            f"{len(mismatches)} texts: {first['text']!r} gave {first['found'][:12]}, not {first['expected'][:12]}"
        )
    return True


def export_checkpoint(
    checkpoint: Path,
    out: Path,
    ftype: str = "f16",
    *,
    metadata: Mapping[str, Any] | None = None,
    name: str | None = None,
    n_threads: int | None = None,
) -> dict[str, Any]:
    """Converts a Hugging Face checkpoint directory to a GGUF file of type `ftype` (see quantize.FTYPES).

    `metadata` adds keys such as `general.license`; `name` is the model's name (default: the directory's).
    Returns {"out", "architecture", "ftype", "size_bytes", "n_tensors", "token_ids_proved", "fallback_tensors"}.
    """
    ftype, out = parse_ftype(ftype), Path(out)
    source = Checkpoint(checkpoint)
    family = family_of(source.config)
    entries = {"general.name": name or source.directory.resolve().name, **(metadata or {})}
    written_ftype = ftype if ftype in UNQUANTIZED_FTYPES else _INTERMEDIATE.get(source.dtype, "f32")
    fallback: list[str] = []
    with whole_or_nothing(out) as partial:
        unquantized = partial if written_ftype == ftype else partial.with_name(f".{out.name}.{os.getpid()}.unquantized")
        try:
            checksums = _write(source, family, unquantized, written_ftype, entries)
            _read_again(unquantized, checksums)
            token_ids_proved = _prove_token_ids(unquantized, source)
            if unquantized != partial:
                fallback = quantize_gguf(unquantized, partial, ftype, n_threads=n_threads)["fallback_tensors"]
        finally:
            if unquantized != partial:
                unquantized.unlink(missing_ok=True)
        summary = check_gguf(partial)
    return {
        "out": str(out),
        "architecture": summary.architecture,
        "ftype": ftype,
        "size_bytes": summary.size_bytes,
        "n_tensors": len(summary.tensors),
        "token_ids_proved": token_ids_proved,
        "fallback_tensors": fallback,
    }
