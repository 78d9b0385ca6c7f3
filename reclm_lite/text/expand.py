"""Expands a quantized encoder's weights to 16 bits, if the processor is faster with those.

Sentence encoders process batches of many tokens, so arithmetic limits them, not memory bandwidth. On processors with
BF16 products (AVX512-BF16, AMX), llama.cpp is a quarter faster with BF16 weights than with the stored Q8_0; with AVX2
but without products of 8-bit integers (VNNI), it is a quarter faster with F16 (`reclm bench profile`,
benchmarks/bench_encoder.py). The copy has the same values up to rounding, lies in the user's cache folder under the
file's hash, and is made once. Left out: models over MAX_BYTES, for which the copy would take too much memory.
"""

import logging
import os
from pathlib import Path

from ..files import file_sha256
from ..runtime import check_gguf, quantize_file

log = logging.getLogger(__name__)

MAX_BYTES = 64 << 20
_FTYPES = {"f16": 1, "bf16": 32}  # enum llama_ftype


def faster_type() -> str | None:
    """The type of weights, "bf16" or "f16", that is faster than Q8_0 on this processor; None except on Linux x86."""
    try:
        flags = set(Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split())
    except OSError:
        return None
    if flags & {"avx512_bf16", "amx_bf16"}:
        return "bf16"
    return "f16" if {"avx2", "fma", "f16c"} <= flags and not flags & {"avx512_vnni", "avx_vnni"} else None


def expanded(path: Path, to: str) -> Path:
    """The copy of a small Q8_0 file in type `to`, made if needed; `path` itself if no copy is possible.

    Raises ModelError if llama.cpp cannot make the copy.
    """
    path = Path(path)
    summary = check_gguf(path)
    if summary.size_bytes > MAX_BYTES or "Q8_0" not in {tensor.type_name for tensor in summary.tensors}:
        return path
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "reclm-lite"
        copy = folder / f"{file_sha256(path)[:32]}-{to}.gguf"
        if not copy.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            _make(path, copy, to)
        check_gguf(copy)
    except (OSError, RuntimeError) as error:  # RuntimeError: no home folder
        log.warning("cannot keep a faster copy of %s (%s); using the file itself", path.name, error)
        return path
    log.info("text encoder: copy in %s, %s", to, copy)
    return copy


def _make(path: Path, copy: Path, to: str) -> None:
    partial = copy.with_name(f".{copy.name}.{os.getpid()}.tmp")
    try:
        quantize_file(path, partial, _FTYPES[to], n_threads=1, requantize=True)
        os.replace(partial, copy)
    finally:
        partial.unlink(missing_ok=True)
