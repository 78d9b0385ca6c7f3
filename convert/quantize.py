"""Quantizes a GGUF file through llama.cpp's `llama_model_quantize`.

K-quants need rows of a multiple of 256 and the others of 32; llama.cpp falls back to another type for a tensor
whose rows do not fit. That is reported, since it makes a file larger than its name says.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from reclm_lite.errors import ModelError
from reclm_lite.runtime import check_gguf, pick_threads, quantize_file

logger = logging.getLogger(__name__)

# What the export writes itself, and what llama.cpp makes from it; values of enum llama_ftype.
UNQUANTIZED_FTYPES = {"f32": 0, "f16": 1, "bf16": 32}
QUANTIZED_FTYPES = {
    "q4_0": 2,
    "q4_1": 3,
    "q8_0": 7,
    "q5_0": 8,
    "q5_1": 9,
    "q2_k": 10,
    "q3_k_s": 11,
    "q3_k_m": 12,
    "q3_k_l": 13,
    "q4_k_s": 14,
    "q4_k_m": 15,
    "q5_k_s": 16,
    "q5_k_m": 17,
    "q6_k": 18,
}
FTYPES = UNQUANTIZED_FTYPES | QUANTIZED_FTYPES
_K_BLOCK, _BLOCK = 256, 32


def parse_ftype(ftype: str) -> str:
    """The name of a file type in lower case; ModelError if there is none of that name."""
    name = ftype.lower()
    if name not in FTYPES:
        raise ModelError(f"expected a type among {', '.join(FTYPES)}, found {ftype!r}")
    return name


@contextmanager
def whole_or_nothing(out: Path) -> Iterator[Path]:
    """A path beside `out` to write to; it becomes `out` when the block ends well, and is removed when it does not."""
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        yield partial
        with partial.open("rb+") as stream:
            os.fsync(stream.fileno())
        os.replace(partial, out)
    except OSError as error:
        raise ModelError(f"expected to write {out}, found: {error.strerror or error}; make room or choose another path") from error
    finally:
        partial.unlink(missing_ok=True)


def rows_that_do_not_fit(summary_tensors: Any, ftype: str) -> list[str]:
    """Names of the matrices whose rows `ftype` cannot hold in its own blocks."""
    block = _K_BLOCK if "_k" in ftype else _BLOCK
    return [t.name for t in summary_tensors if len(t.shape) > 1 and t.name.endswith(".weight") and t.shape[0] % block]


def quantize_gguf(source: Path, out: Path, ftype: str, *, n_threads: int | None = None) -> dict[str, Any]:
    """Writes `source` (f32, f16 or bf16) quantized to `ftype` at `out`, whole or not at all.

    Returns {"out", "ftype", "size_bytes", "tensor_types": {type: n}, "fallback_tensors": [name]}.
    """
    ftype = parse_ftype(ftype)
    before = check_gguf(source)
    quantized = sorted({t.type_name for t in before.tensors} - {"F32", "F16", "BF16"})
    if quantized:
        raise ModelError(f"expected {source} in F32, F16 or BF16, found {quantized}; quantize from the unquantized file")
    fallback = rows_that_do_not_fit(before.tensors, ftype) if ftype in QUANTIZED_FTYPES else []
    if fallback:
        logger.warning(
            "%d of %d tensors have rows that %s cannot hold (%s is one); llama.cpp gives them another type",
            len(fallback), len(before.tensors), ftype, fallback[0],
        )  # fmt: skip
    with whole_or_nothing(out) as partial:
        quantize_file(source, partial, FTYPES[ftype], n_threads=pick_threads(n_threads))
        after = check_gguf(partial)
        if {t.name: t.shape for t in after.tensors} != {t.name: t.shape for t in before.tensors}:
            raise ModelError(f"expected the tensors of {source} in its quantized copy, found others")
    types = [t.type_name for t in after.tensors]
    return {
        "out": str(out),
        "ftype": ftype,
        "size_bytes": after.size_bytes,
        "tensor_types": {name: types.count(name) for name in sorted(set(types))},
        "fallback_tensors": fallback,
    }
