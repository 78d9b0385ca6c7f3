"""The unquantized file that quantized ones are made from: its type, and writing it."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reclm_lite.convert.write import TooLargeForType, write_gguf

if TYPE_CHECKING:
    from reclm_lite.convert.checkpoint import Source

logger = logging.getLogger(__name__)

# What a quantized file is made from: nothing is lost before llama.cpp rounds.
_INTERMEDIATE = {"F16": "f16", "BF16": "bf16"}


def write_unquantized(
    source: "Source", path: Path, before_f32: Callable[[], object] = lambda: None, **options: Any
) -> dict[str, Any]:
    """What quantized files are made from: as narrow as it can be with nothing lost before llama.cpp rounds.

    A merged model is float32; it is kept in float16, the precision it will run in at best, where its weights fit.
    """
    ftype = intermediate_ftype(source)
    try:
        return write_gguf(source, path, ftype, **options)
    except TooLargeForType as error:
        if not source.merged:
            raise
        logger.warning("%s: the merged weights are kept in float32 before quantization", error)
        before_f32()
        return write_gguf(source, path, "f32", **options)


def intermediate_ftype(source: "Source") -> str:
    """f16 for F16, bf16 for BF16 (f16 once an adapter is merged in), f32 for F32."""
    if source.merged and source.dtype == "BF16":
        return "f16"
    return _INTERMEDIATE.get(source.dtype, "f32")
