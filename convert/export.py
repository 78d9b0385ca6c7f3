"""The export as one command: checkpoint (and adapter) -> unquantized GGUF -> importance matrix -> each type -> proof.

    manifest = export(Path("checkpoint"), Path("out"), ["q8_0", "q4_k_m"], adapter=Path("adapter"), calibration=texts)

Everything is made in a folder of its own inside the target and renamed into place once it has been judged, so a
kill at any moment leaves no file under a final name that was not proved. The manifest is written after each file;
a later run with the same inputs and settings keeps what is there. Nothing here loads torch: the parity gate does,
where it is installed.
"""

import contextlib
import fcntl
import logging
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reclm_lite.convert.families import family_of
from reclm_lite.convert.manifest import FORMAT, changed_inputs, describe_inputs, digest, load_manifest, save_manifest, tools
from reclm_lite.convert.merge import open_source
from reclm_lite.convert.parity import token_id_mismatches
from reclm_lite.convert.quantize import UNQUANTIZED_FTYPES, parse_ftype, quantize_gguf, whole_or_nothing
from reclm_lite.convert.write import PlannedTensor, TooLargeForType, plan_tensors, write_gguf
from reclm_lite.errors import ModelError
from reclm_lite.runtime import check_gguf, file_sha256

if TYPE_CHECKING:
    from reclm_lite.convert.merge import Source

logger = logging.getLogger(__name__)

PARITY_MODES = ("auto", "transformers", "gguf", "off")
IMATRIX_FILE = "imatrix.gguf"
N_GATE_PROMPTS = 64
_WORK = ".export"  # the folder inside the target where files are made
_NO_IMATRIX = (*UNQUANTIZED_FTYPES, "q8_0")  # types that an importance matrix does not change
_INTERMEDIATE = {"F16": "f16", "BF16": "bf16"}

# progress(what is being done, how much of it is done, how much there is)
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Settings:
    """What an export was asked for, checked. prompts: for the gate; calibration: for the importance matrix."""

    ftypes: tuple[str, ...]
    name: str
    imatrix: str | Path | None
    calibration: tuple[str, ...]
    prompts: tuple[str, ...]
    prompts_held_out: bool
    parity: str
    metadata: dict[str, Any] = field(default_factory=dict)
    n_threads: int | None = None

    def file(self, ftype: str, *, failed: bool = False) -> str:
        return f"{self.name}-{ftype}{'.failed-parity' if failed else ''}.gguf"

    def wants_imatrix(self, ftype: str) -> bool:
        return self.imatrix is not None and ftype not in _NO_IMATRIX


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
            try:
                written = _write_unquantized(source, scratch, name=name, metadata=metadata)
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


def _write_unquantized(source: "Source", path: Path, **options: Any) -> dict[str, Any]:
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
        return write_gguf(source, path, "f32", **options)


def intermediate_ftype(source: "Source") -> str:
    """f16 for F16, bf16 for BF16 (f16 once an adapter is merged in), f32 for F32."""
    if source.merged and source.dtype == "BF16":
        return "f16"
    return _INTERMEDIATE.get(source.dtype, "f32")
