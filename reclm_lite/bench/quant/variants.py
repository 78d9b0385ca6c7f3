"""The files that `reclm bench quant` compares: quantized from one unquantized GGUF, with and without importance matrix.

A file that an earlier run made is reused if its hash is the recorded one; the user's own files are taken as they are.
Every file is checked against the unquantized one: the same tensors up to the rounding of its type, the same metadata. A
file that fails is excluded with the reason; so is one that the manifest of `reclm export` beside it calls unequal to
its checkpoint. Left out: the comparison with the checkpoint itself, which needs the checkpoint.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ...convert.imatrix import collect_imatrix, read_imatrix
from ...convert.manifest import NAME as MANIFEST
from ...convert.manifest import load_manifest
from ...convert.parity.weights import compare_metadata, compare_weights
from ...convert.quantize import FTYPES, NEEDS_IMATRIX, UNQUANTIZED_FTYPES, quantize_gguf
from ...errors import InputError, ModelError
from ...own_paths import make_folder, require_own_tree
from ...runtime import GgufSummary, check_gguf, file_sha256
from .. import machine
from .resumable import State, digest_of_texts

DEFAULT_TYPES = ("q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0", "q3_k_m", "q2_k")
UNQUANTIZED = ("F32", "F16", "BF16")
_NOT_IMPROVED = (*UNQUANTIZED_FTYPES, "q8_0")  # llama.cpp rounds these without looking at the matrix
IMATRIX_FILE = "imatrix.gguf"


@dataclass(frozen=True)
class Asked:
    """One file to compare: a type to make, with or without importance matrix, or a file that is there (label: what it
    is called)."""

    ftype: str
    imatrix: bool = False
    given: Path | None = None
    label: str = ""

    @property
    def name(self) -> str:
        if self.given is not None:
            return self.label or self.given.name
        return f"{self.ftype}+imatrix" if self.imatrix else self.ftype


@dataclass(frozen=True)
class File:
    """A file to measure. excluded: why it is not measured, else empty. n_fallback: tensors that got another type."""

    name: str
    ftype: str
    imatrix: bool
    path: Path
    sha256: str = ""
    size_bytes: int = 0
    bits_per_weight: float = 0.0
    tensor_types: dict[str, int] = field(default_factory=dict)
    n_fallback: int = 0
    excluded: str = ""

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "path": str(self.path)}


def open_reference(path: Path, option: str = "--model") -> File:
    """The unquantized file that all others are compared with, which `option` named. Raises ModelError if it is
    quantized, or not a whole GGUF."""
    summary = check_gguf(path)
    matrices: Counter[str] = Counter()  # weights by type: a few tables may be kept in another than the rest
    for tensor in summary.tensors:
        if len(tensor.shape) > 1:
            matrices[tensor.type_name] += math.prod(tensor.shape)
    quantized = sorted(matrices.keys() - set(UNQUANTIZED))
    if quantized or not matrices:
        raise ModelError(
            f"expected {option} in F16, BF16 or F32, found {', '.join(quantized) or 'no matrices'} in {path}: "
            "quantize from the unquantized file, which `reclm export --quant f16` makes"
        )
    file = _described(Asked(matrices.most_common(1)[0][0].lower()), Path(path), summary)
    reason = verdict_on(file)[1]
    if reason:
        raise ModelError(
            f"expected {option} to be the model it was made from, but {reason}: export it again, and look into why"
        )
    return file


def verdict_on(file: File) -> tuple[bool | None, str]:
    """What the manifest of `reclm export` beside a file says: (whether it equals its checkpoint, why not). None: no
    entry."""
    try:
        manifest = load_manifest(file.path.parent)
    except ModelError:
        return None, ""
    for entry in manifest["files"] if manifest else ():
        if entry["sha256"] == file.sha256 and entry.get("parity"):
            reasons = entry["parity"].get("reasons") or ["the manifest has no reason"]
            return entry["passed"], "" if entry[
                "passed"
            ] else f"it fails the parity gate: {reasons[0]} ({MANIFEST} beside it)"
    return None, ""


def parse_types(names: Sequence[str], *, imatrix: bool) -> list[Asked]:
    """What to make, in the order asked for. Raises InputError for an unknown type, and if there are none.

    imatrix: whether to use a matrix; then every type that gains by it comes twice.
    """
    asked: dict[Asked, None] = {}
    labels = _labels([name for name in names if name.lower().endswith(".gguf")])
    for name in names:
        if name.lower().endswith(".gguf"):
            if not Path(name).is_file():
                raise InputError(f"expected a GGUF file at {name}, which --types names, found none; check the path")
            asked[Asked("", given=Path(name).resolve(), label=labels[name])] = None
            continue
        ftype = name.lower()
        if ftype not in FTYPES or ftype in UNQUANTIZED_FTYPES:
            known = ", ".join(each for each in FTYPES if each not in UNQUANTIZED_FTYPES)
            raise InputError(
                f"expected --types among {known} or GGUF files, found {name!r}; `reclm export --help` lists them too"
            )
        if ftype in NEEDS_IMATRIX and not imatrix:
            raise InputError(
                f"expected an importance matrix for {ftype}, which is garbage without one, found none asked for; use "
                "--imatrix auto"
            )
        if ftype not in NEEDS_IMATRIX:
            asked[Asked(ftype)] = None
        if imatrix and ftype not in _NOT_IMPROVED:
            asked[Asked(ftype, imatrix=True)] = None
    if not asked:
        raise InputError("expected at least one type or file to compare, found none; give --types")
    return list(asked)


def _labels(paths: Sequence[str]) -> dict[str, str]:
    """What each path is called: its name, or with the folders that make it unique."""
    by_path = {Path(path).resolve(): path for path in paths}
    out = {}
    for path in paths:
        parts = Path(path).resolve().parts
        others = [other.parts for other in by_path if other.parts != parts]
        n = next((n for n in range(1, len(parts)) if all(other[-n:] != parts[-n:] for other in others)), len(parts))
        out[path] = "/".join(parts[-n:])
    return out


class Maker:
    """Makes files in a subfolder of `folder` named after the reference, or finds them there; records their hashes in
    `state`."""

    def __init__(self, reference: File, folder: Path, state: State, n_threads: int):
        self.reference, self.state, self.n_threads = reference, state, n_threads
        self.folder = folder / f"{reference.path.stem}-{reference.sha256[:8]}"
        self.llama = machine.version("llama-cpp-python")
        self._summary = check_gguf(reference.path)
        require_own_tree(folder)
        make_folder(self.folder)

    def imatrix(self, texts: Sequence[str], progress: Callable[[int, int], None] | None = None) -> Path:
        """The importance matrix of the reference on `texts`. progress(done, total): sequences, if it has to be
        collected."""
        path = self.folder / IMATRIX_FILE
        made_of = {"reference": self.reference.sha256, "texts": digest_of_texts(texts), "llama": self.llama}
        kept = self.state.get("imatrix", made_of)
        if kept is None or not path.is_file() or file_sha256(path) != kept["sha256"]:
            collect_imatrix(self.reference.path, texts, path, n_threads=self.n_threads, progress=progress)
            self.state.put("imatrix", made_of, {"sha256": file_sha256(path), "n_texts": len(texts)})
        return path

    def make(self, asked: Asked, imatrix: Path | None, *, is_there: bool | None = None) -> File:
        """The file, checked. One that cannot be used is returned as excluded. is_there: the result of that method,
        None to call it."""
        path = self.path(asked)
        try:
            if not (self.is_there(asked, imatrix) if is_there is None else is_there):
                self._quantize(asked, path, imatrix)
            summary = check_gguf(path)
            file = _described(asked, path, summary)
            problem = self._judge(file, summary)
        except ModelError as error:
            return File(asked.name, asked.ftype, asked.imatrix, path, excluded=str(error))
        return replace(file, excluded=problem)

    def _made_of(self, asked: Asked, imatrix: Path | None) -> dict[str, Any]:
        matrix = file_sha256(imatrix) if asked.imatrix and imatrix is not None else None
        return {"reference": self.reference.sha256, "ftype": asked.ftype, "imatrix": matrix, "llama": self.llama}

    def path(self, asked: Asked) -> Path:
        return asked.given or self.folder / f"{self.reference.path.stem}-{asked.name.replace('+', '-')}.gguf"

    def is_there(self, asked: Asked, imatrix: Path | None) -> bool:
        """Whether the file exists as an earlier run made it, or is the user's."""
        if asked.given is not None:
            return True
        kept, path = self.state.get("file", self._made_of(asked, imatrix)), self.path(asked)
        return kept is not None and path.is_file() and file_sha256(path) == kept["sha256"]

    def _quantize(self, asked: Asked, path: Path, imatrix: Path | None) -> None:
        made_of = self._made_of(asked, imatrix)
        matrix = read_imatrix(imatrix) if asked.imatrix and imatrix is not None else None
        quantize_gguf(self.reference.path, path, asked.ftype, imatrix=matrix, n_threads=self.n_threads)
        self.state.put("file", made_of, {"sha256": file_sha256(path)})

    def _judge(self, file: File, summary: GgufSummary) -> str:
        """Why a file does not equal the reference up to rounding; empty if it does."""

        said = verdict_on(file)[1]
        if said:
            return said

        def compare() -> dict[str, Any]:
            problems = [
                *compare_weights(self._summary, summary).problems,
                *compare_metadata(self.reference.path, file.path),
            ]
            return {"problems": problems}

        made_of = {"reference": self.reference.sha256, "file": file.sha256}
        problems = self.state.once("judged", made_of, compare)["problems"]
        return f"it fails the parity gate: {problems[0]}" if problems else ""


def _described(asked: Asked, path: Path, summary: GgufSummary) -> File:
    types = [tensor.type_name for tensor in summary.tensors]
    n_weights = sum(math.prod(tensor.shape) for tensor in summary.tensors)
    n_bytes = sum(tensor.size_bytes for tensor in summary.tensors)
    n_fallback = 0
    if asked.ftype and asked.ftype not in UNQUANTIZED_FTYPES:
        from ...convert.quantize import fallback_tensors

        n_fallback = len(fallback_tensors(summary, asked.ftype))
    return File(
        asked.name,
        asked.ftype,
        asked.imatrix,
        path,
        file_sha256(path),
        summary.size_bytes,
        8 * n_bytes / n_weights,
        {name: types.count(name) for name in sorted(set(types))},
        n_fallback,
    )
