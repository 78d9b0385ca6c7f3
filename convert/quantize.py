"""Quantizes a GGUF file through llama.cpp's `llama_model_quantize`, with an importance matrix where there is one.

llama.cpp chooses a type for each tensor: a file of type q4_k_m holds some tensors in Q6_K. K- and IQ-types need rows of
a multiple of 256 and the others of 32; a tensor whose rows do not fit gets another type. That is reported, since it
makes a file larger than its name says. Left out: the types for models trained in one or two bits (tq1_0, tq2_0, q1_0,
q2_0) and for mixtures of experts (mxfp4).

Rules followed: llama.cpp's src/llama-quant.cpp.
"""

import logging
from pathlib import Path
from typing import Any

from reclm_lite.convert.bounded_files import whole_or_nothing
from reclm_lite.convert.imatrix_file import Imatrix, check_fits
from reclm_lite.errors import ModelError
from reclm_lite.runtime import GgufSummary, check_gguf, pick_threads, quantize_file

__all__ = ["FTYPES", "NEEDS_IMATRIX", "parse_ftype", "quantize_gguf", "whole_or_nothing"]

logger = logging.getLogger(__name__)

# What the export writes itself, and what llama.cpp makes from it; values of enum llama_ftype.
UNQUANTIZED_FTYPES = {"f32": 0, "f16": 1, "bf16": 32}
_OF_32 = {"q4_0": 2, "q4_1": 3, "q8_0": 7, "q5_0": 8, "q5_1": 9, "iq4_nl": 25}  # rows in blocks of 32, else of 256
QUANTIZED_FTYPES = _OF_32 | {
    "q2_k": 10,
    "q3_k_s": 11,
    "q3_k_m": 12,
    "q3_k_l": 13,
    "q4_k_s": 14,
    "q4_k_m": 15,
    "q5_k_s": 16,
    "q5_k_m": 17,
    "q6_k": 18,
    "iq2_xxs": 19,
    "iq2_xs": 20,
    "q2_k_s": 21,
    "iq3_xs": 22,
    "iq3_xxs": 23,
    "iq1_s": 24,
    "iq3_s": 26,
    "iq3_m": 27,
    "iq2_s": 28,
    "iq2_m": 29,
    "iq4_xs": 30,
    "iq1_m": 31,
}
FTYPES = UNQUANTIZED_FTYPES | QUANTIZED_FTYPES
# So few bits that rounding without knowing which columns matter gives garbage; llama.cpp refuses, half-way through.
NEEDS_IMATRIX = frozenset({"iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq2_m", "iq3_xxs", "iq3_xs", "q2_k_s"})

_K_BLOCK = 256
_MAX_BUFFER_BYTES = 64 << 20  # of a tensor's rows at work at once
# With a matrix, llama.cpp gives the first ffn_down of these files a type with an offset: no fallback.
_WITH_OFFSET = {"q4_0": "Q4_1", "q5_0": "Q5_1"}
# BERT's tables of positions and token types, which llama.cpp leaves as they are.
_KEPT = ("position_embd.weight", "token_types.weight")


def parse_ftype(ftype: str) -> str:
    """The name of a file type in lower case; ModelError if there is none of that name."""
    name = ftype.lower()
    if name not in FTYPES:
        raise ModelError(f"expected a type among {', '.join(FTYPES)}, found {ftype!r}")
    return name


def fallback_tensors(summary: GgufSummary, ftype: str) -> dict[str, str]:
    """The tensors of a file of type `ftype` whose rows forced another type than llama.cpp's rule gives: {name: type}.

    Rules for types in blocks of 256 give only such types; rules for types in blocks of 32 give the type itself, or one
    in blocks of 256 where a tensor deserves more bits. Any other type in the file is a fallback.
    """
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    intended = {ftype.upper(), _WITH_OFFSET.get(ftype)} if ftype in _OF_32 else set()
    found = {}
    for tensor in summary.tensors:
        is_matrix = len(tensor.shape) > 1 and tensor.name.endswith(".weight") and tensor.name not in _KEPT
        block, _ = GGML_QUANT_SIZES[GGMLQuantizationType[tensor.type_name]]
        if is_matrix and block != _K_BLOCK and tensor.type_name not in intended:
            found[tensor.name] = tensor.type_name
    return found


def _origin(imatrix: Imatrix) -> dict[str, int | str]:
    """What llama.cpp's quantize tool notes of the matrix in the file it makes; names only, no paths."""
    entries: dict[str, int | str] = {"quantize.imatrix.file": imatrix.name}
    if imatrix.datasets:
        entries["quantize.imatrix.dataset"] = Path(imatrix.datasets[0]).name
    entries["quantize.imatrix.entries_count"] = len(imatrix.entries)
    if imatrix.chunk_count > 0:
        entries["quantize.imatrix.chunks_count"] = imatrix.chunk_count
    return entries


def _check_imatrix(imatrix: Imatrix | None, before: GgufSummary, ftype: str) -> list[str]:
    """Names of the weights without an entry; refuses a matrix of another model, and none where one is needed."""
    if imatrix is None:
        if ftype in NEEDS_IMATRIX:
            raise ModelError(
                f"expected an importance matrix for {ftype}, which is garbage without one, found none; "
                "pass --imatrix auto, or choose a larger type such as q3_k_m"
            )
        return []
    missing = check_fits(imatrix, before)
    if missing and ftype in NEEDS_IMATRIX:
        raise ModelError(
            f"expected an importance for every weight for {ftype}, found none in {imatrix.name} for {len(missing)} "
            f"({missing[0]} is one); collect the matrix from this model"
        )
    if missing:
        logger.warning(
            "%s has no importance for %d weights (%s is one); they are rounded without",
            imatrix.name,
            len(missing),
            missing[0],
        )
    return missing


def quantize_gguf(
    source: Path, out: Path, ftype: str, *, imatrix: Imatrix | None = None, n_threads: int | None = None
) -> dict[str, Any]:
    """Writes `source` (f32, f16 or bf16) quantized to `ftype` at `out`, whole or not at all.

    Returns {"out", "ftype", "size_bytes", "tensor_types": {type: n}, "fallback_tensors": {name: type it got},
    "imatrix": bool, "without_importance": [name]}. Raises ModelError for a source that is quantized already, a matrix
    of another model, and a type of NEEDS_IMATRIX without a matrix.
    """
    ftype = parse_ftype(ftype)
    before = check_gguf(source)
    quantized = sorted({t.type_name for t in before.tensors} - {"F32", "F16", "BF16"})
    if quantized:
        raise ModelError(
            f"expected {source} in F32, F16 or BF16, found {quantized}; quantize from the unquantized file"
        )
    if ftype in UNQUANTIZED_FTYPES:
        imatrix = None  # nothing is rounded by importance
    missing = _check_imatrix(imatrix, before, ftype)
    with whole_or_nothing(out) as partial:
        quantize_file(
            source,
            partial,
            FTYPES[ftype],
            n_threads=pick_threads(n_threads),
            imatrix=imatrix.means() if imatrix else None,
            metadata=_origin(imatrix) if imatrix else None,
            max_buf_size=_MAX_BUFFER_BYTES,
        )
        after = check_gguf(partial)
        if {t.name: t.shape for t in after.tensors} != {t.name: t.shape for t in before.tensors}:
            raise ModelError(f"expected the tensors of {source} in its quantized copy, found others")
    fallback = fallback_tensors(after, ftype) if ftype in QUANTIZED_FTYPES else {}
    if fallback:
        name, got = next(iter(fallback.items()))
        logger.warning(
            "%d of %d tensors have rows that %s cannot hold; llama.cpp gave them another type (%s: %s)",
            len(fallback),
            len(after.tensors),
            ftype,
            name,
            got,
        )
    types = [t.type_name for t in after.tensors]
    return {
        "out": str(out),
        "ftype": ftype,
        "size_bytes": after.size_bytes,
        "tensor_types": {name: types.count(name) for name in sorted(set(types))},
        "fallback_tensors": fallback,
        "imatrix": imatrix is not None,
        "without_importance": missing,
    }
