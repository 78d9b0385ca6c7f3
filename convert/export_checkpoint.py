"""One GGUF file of a checkpoint, without importance matrix, parity gate or manifest. export.py does it with them."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reclm_lite.convert.bounded_files import whole_or_nothing
from reclm_lite.convert.merge import open_source
from reclm_lite.convert.parity import token_id_mismatches
from reclm_lite.convert.quantize import UNQUANTIZED_FTYPES, parse_ftype, quantize_gguf
from reclm_lite.convert.unquantized import write_unquantized
from reclm_lite.convert.write import write_gguf
from reclm_lite.errors import ModelError

if TYPE_CHECKING:
    from reclm_lite.convert.checkpoint import Source

logger = logging.getLogger(__name__)


def export_checkpoint(
    checkpoint: Path,
    out: Path,
    ftype: str = "f16",
    *,
    adapter: Path | None = None,
    metadata: Mapping[str, Any] | None = None,
    name: str | None = None,
    n_threads: int | None = None,
) -> dict[str, Any]:
    """One GGUF file of type `ftype`, without importance matrix, gate or manifest: for recipes that judge it themselves.

    Token ids are proved on the probe texts where the package `tokenizers` is installed. Returns {"out",
    "architecture", "ftype", "size_bytes", "n_tensors", "token_ids_proved", "fallback_tensors": {name: type}}.
    """
    ftype, out = parse_ftype(ftype), Path(out)
    source = open_source(checkpoint, adapter)
    fallback: dict[str, str] = {}
    with whole_or_nothing(out) as partial:
        if ftype in UNQUANTIZED_FTYPES:
            written = write_gguf(source, partial, ftype, name=name, metadata=metadata)
        else:
            scratch = partial.with_suffix(".unquantized")
            scratch.unlink(missing_ok=True)  # a link there would be written through
            try:
                written = write_unquantized(source, scratch, name=name, metadata=metadata)
                fallback = quantize_gguf(scratch, partial, ftype, n_threads=n_threads)["fallback_tensors"]
            finally:
                scratch.unlink(missing_ok=True)
        token_ids_proved = _prove_token_ids(partial, source)
    return {
        "out": str(out),
        "architecture": written["architecture"],
        "ftype": ftype,
        "size_bytes": out.stat().st_size,
        "n_tensors": written["n_tensors"],
        "token_ids_proved": token_ids_proved,
        "fallback_tensors": fallback,
    }


def _prove_token_ids(path: Path, source: "Source") -> bool:
    mismatches = token_id_mismatches(path, source.tokenizer_directory)
    if mismatches is None:
        logger.warning("token ids of %s are not proved: the package `tokenizers` is not installed", path.name)
        return False
    if mismatches:
        first = mismatches[0]
        raise ModelError(
            f"expected the token ids of the tokenizer in {source.tokenizer_directory}, found others for "
            f"{len(mismatches)} texts: {first['text']!r} gave {first['found'][:12]}, not {first['expected'][:12]}"
        )
    return True
