"""A quantized encoder's weights in 16 bits, where the processor is faster on those.

Sentence encoders are read in batches of many tokens: arithmetic, not memory, is their limit. Where a processor
multiplies BF16 (AVX512-BF16, AMX), llama.cpp is a quarter faster on BF16 weights than on the Q8_0 weights they are kept
in; where it has AVX2 and no products of 8-bit integers (VNNI), it is a quarter faster on F16 (`reclm bench profile`,
benchmarks/bench_encoder.py). The copy has the same values but for rounding, lies in the user's cache folder under the
file's hash, and is made once. Left out: models over MAX_BYTES, for which the copy would cost more memory than it is
worth.
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
    """The type of weights, "bf16" or "f16", that this processor is faster on than on Q8_0 (Linux on x86; elsewhere:
    None)."""
    try:
        flags = set(Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split())
    except OSError:
        return None
    if flags & {"avx512_bf16", "amx_bf16"}:
        return "bf16"
    return "f16" if {"avx2", "fma", "f16c"} <= flags and not flags & {"avx512_vnni", "avx_vnni"} else None


def expanded(path: Path, to: str) -> Path:
    """The copy of a small Q8_0 file in type `to`, made if need be; `path` itself where there can be none.

    Raises ModelError where llama.cpp cannot make the copy.
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
