"""A quantized encoder's weights in BF16, where the processor multiplies BF16 directly.

Sentence encoders are read in batches of many tokens: arithmetic, not memory, is their limit, and on processors with
AVX512-BF16 (or AMX) llama.cpp is a quarter faster on BF16 weights than on the Q8_0 weights they are kept in (measured
by benchmarks/bench_encoder.py). The copy has the same values, lies in the user's cache folder under the file's hash, and
is made once. Left out: models over MAX_BYTES, for which the copy would cost more memory than it is worth.
"""

import logging
import os
from pathlib import Path

from ..runtime import check_gguf, file_sha256, quantize_file

log = logging.getLogger(__name__)

MAX_BYTES = 64 << 20
_LLAMA_FTYPE_MOSTLY_BF16 = 32


def multiplies_bf16() -> bool:
    """Whether this processor has instructions for products of BF16 (Linux on x86; elsewhere: no)."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def expanded(path: Path) -> Path:
    """The BF16 copy of a small Q8_0 file, made if need be; `path` itself where there can be none.

    Raises ModelError where llama.cpp cannot make the copy.
    """
    path = Path(path)
    summary = check_gguf(path)
    if summary.size_bytes > MAX_BYTES or "Q8_0" not in {tensor.type_name for tensor in summary.tensors}:
        return path
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "reclm-lite"
        copy = folder / f"{file_sha256(path)[:32]}-bf16.gguf"
        if not copy.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            _make(path, copy)
        check_gguf(copy)
    except (OSError, RuntimeError) as error:  # RuntimeError: no home folder
        log.warning("no faster copy of %s is kept (%s); the file is used as it is", path.name, error)
        return path
    log.info("text encoder: BF16 copy %s", copy)
    return copy


def _make(path: Path, copy: Path) -> None:
    partial = copy.with_name(f".{copy.name}.{os.getpid()}.tmp")
    try:
        quantize_file(path, partial, _LLAMA_FTYPE_MOSTLY_BF16, n_threads=1, requantize=True)
        os.replace(partial, copy)
    finally:
        partial.unlink(missing_ok=True)
