"""The export as one command: checkpoint (and adapter) -> unquantized GGUF -> importance matrix -> each type -> proof.

    manifest = export(Path("checkpoint"), Path("out"), ["q8_0", "q4_k_m"], adapter=Path("adapter"), calibration=texts)

Everything is made in a folder of its own inside the target and renamed into place once it has been judged, so a
kill at any moment leaves no file under a final name that was not proved. The manifest is written after each file;
a later run with the same inputs and settings keeps what is there. Nothing here loads torch: the parity gate does,
where it is installed.
"""

import contextlib
import datetime as dt
import logging
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reclm_lite.convert.families import family_of
from reclm_lite.convert.imatrix import collect_imatrix, read_imatrix
from reclm_lite.convert.manifest import (
    FORMAT,
    Input,
    describe_inputs,
    digest,
    list_inputs,
    load_manifest,
    save_manifest,
    tools,
)
from reclm_lite.convert.merge import open_source
from reclm_lite.convert.parity import Gate
from reclm_lite.convert.quantize import FTYPES, UNQUANTIZED_FTYPES, quantize_gguf
from reclm_lite.convert.request import Request, check_request, folder_name
from reclm_lite.convert.target import estimated_bytes, require_space, scratch_folder
from reclm_lite.convert.unquantized import intermediate_ftype, write_unquantized
from reclm_lite.convert.write import PlannedTensor, plan_tensors, write_gguf
from reclm_lite.errors import ModelError
from reclm_lite.files import file_sha256, is_own_file
from reclm_lite.runtime import check_gguf

if TYPE_CHECKING:
    from reclm_lite.convert.checkpoint import Source

logger = logging.getLogger(__name__)

IMATRIX_FILE = "imatrix.gguf"
_SMALL_PARAMS = 30_000_000  # of 4.5 million, 128 prompts take 3 s on one thread and 11 s on two

# progress(what is being done, how much of it is done, how much there is; 0 where that is not known)
Progress = Callable[[str, int, int], None]


def export(
    base: Path,
    out_dir: Path,
    quants: Sequence[str],
    *,
    adapter: Path | None = None,
    imatrix: str | Path | None = "auto",
    calibration: Sequence[str] = (),
    parity: str = "auto",
    name: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    n_threads: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Makes `out_dir/<name>-<quant>.gguf` for each of `quants` and returns the manifest (docs/formats.md).

    imatrix: "auto" (computed from `calibration` where a type gains by it), a file, or None. calibration: texts, one
    prompt each; a part of them is held out for the gate where there are enough. parity: "auto", "transformers",
    "gguf" (against the unquantized file) or "off". metadata: GGUF keys to add, such as general.license.
    A file that fails the gate is kept as `<name>-<quant>.failed-parity.gguf`, with "passed": false in the manifest.
    Raises ModelError for input that cannot be used, and where the disk is too small.
    """
    request = check_request(
        base,
        out_dir,
        quants,
        adapter=adapter,
        imatrix=imatrix,
        calibration=calibration,
        parity=parity,
        name=name,
        metadata=metadata,
        n_threads=n_threads,
    )
    source = open_source(request.base, request.adapter)
    plan = plan_tensors(source, family_of(source.config), "f16")
    with scratch_folder(request.out_dir) as scratch:
        return _Export(request, source, plan, scratch, progress or (lambda *_: None)).run()


class _Export:
    """One run of `export`: what it knows, and its steps in order."""

    def __init__(
        self, request: Request, source: "Source", plan: list[PlannedTensor], scratch: Path, progress: Progress
    ):
        self.request, self.source, self.plan, self.scratch, self.progress = request, source, plan, scratch, progress
        self.out_dir = request.out_dir
        self.manifest: dict[str, Any] = {"files": []}
        self.hashes: dict[Path, str] = {}  # of files that were read anyway
        self.matrix = read_imatrix(request.imatrix) if isinstance(request.imatrix, Path) else None

    def run(self) -> dict[str, Any]:
        started = time.monotonic()
        earlier, files = load_manifest(self.out_dir), self._input_files()
        todo = list(self.request.ftypes)
        if earlier is not None:
            self.progress("reading the inputs", 0, 0)
            inputs = describe_inputs(files)
            self._begin(inputs, earlier)
            todo = [ftype for ftype in todo if not self._made(ftype)]
            if not todo:
                return self._save() if earlier["files"] != self.manifest["files"] else earlier
        self._require_space(todo, intermediate_ftype(self.source))
        if earlier is not None:
            unquantized, ftype = self._unquantized(todo)
        else:
            # Hashing takes as long as reading: with nothing to compare with, it is done beside the writing.
            with ThreadPoolExecutor(1) as thread:
                hashing = thread.submit(describe_inputs, files)
                unquantized, ftype = self._unquantized(todo)
                inputs = hashing.result()
        changed = [each.path for each in files if each.changed()]
        if changed:
            raise ModelError(
                f"expected the inputs to stay as they are during the export, found {changed[0]} changed; run it again"
            )
        if earlier is None:
            self._begin(inputs, None)
        imatrix = self._imatrix(unquantized, todo)
        with self._gate(unquantized) as gate:
            # What the others are made from is renamed into place last.
            for each in sorted(todo, key=lambda each: each == ftype):
                self._make(each, unquantized, ftype, imatrix, gate)
                self.manifest["run"] = {
                    "seconds": round(time.monotonic() - started, 2),
                    "peak_memory_bytes": _peak_memory_bytes(),
                }
                self._save()
        return self.manifest

    # -- what there is -----------------------------------------------------------------------------------------

    def _input_files(self) -> list[Input]:
        request = self.request
        folders = {"base": request.base} | ({"adapter": request.adapter} if request.adapter else {})
        files: dict[str, list[Path]] = {role: [] for role in folders}
        for path in self.source.files():
            inside = [role for role, folder in folders.items() if path.is_relative_to(folder)]
            files[max(inside, key=lambda role: len(folders[role].parts))].append(path)
        if isinstance(request.imatrix, Path):
            files["imatrix"], folders["imatrix"] = [request.imatrix], request.imatrix.parent
        return list_inputs(files, folders)

    def _begin(self, inputs: list[dict[str, Any]], earlier: dict[str, Any] | None) -> None:
        """A manifest for this run, with those files of an earlier one that are what they would be made as again."""
        request, versions = self.request, tools()
        model = sorted(
            (entry["role"], entry["file"], entry["sha256"]) for entry in inputs if entry["role"] != "imatrix"
        )
        self.identity = digest(
            model, request.name, request.metadata, versions["reclm-lite"], versions["llama-cpp-python"]
        )
        given = [entry["sha256"] for entry in inputs if entry["role"] == "imatrix"]
        self.imatrix_key = digest(given) if given else digest(self.identity, request.imatrix, request.calibration)
        self.manifest = {
            "format": FORMAT,
            "name": request.name,
            "architecture": family_of(self.source.config).GGUF_ARCH,
            "n_params": sum(tensor.n_values for tensor in self.plan),
            "base": folder_name(request.base),
            "adapter": folder_name(request.adapter) if request.adapter else None,
            "made_with": versions,
            "settings": {
                "imatrix": request.imatrix.name if isinstance(request.imatrix, Path) else request.imatrix,
                "parity": request.parity,
                "n_calibration_texts": len(request.calibration),
                "calibration_sha256": digest(request.calibration),
                "n_gate_prompts": len(request.prompts),
                "gate_prompts_sha256": digest(request.prompts),
                "gate_prompts_held_out": request.prompts_held_out,
            },
            "inputs": inputs,
            "identity": self.identity,
            "imatrix": None,
            "files": [],
        }
        if earlier is None:
            return
        if earlier["identity"] != self.identity and earlier["files"]:
            logger.warning(
                "%s holds an export of other inputs or by another version: its files are made anew", self.out_dir
            )
        imatrix = earlier["imatrix"]
        known = imatrix and imatrix["computed"] and imatrix["file"] == IMATRIX_FILE
        if known and imatrix["made_from"] == self.imatrix_key and self._is_there(imatrix):
            self.manifest["imatrix"] = imatrix
        for entry in earlier["files"]:
            if (
                entry["passed"]
                and entry["ftype"] in FTYPES
                and entry["file"] == request.file(entry["ftype"])
                and entry["made_from"] == self._file_key(entry["ftype"])
                and self._is_there(entry)
            ):
                self.manifest["files"].append(entry)
            elif entry["ftype"] not in request.ftypes:
                logger.warning("%s is of an earlier export and leaves the manifest", self.out_dir / entry["file"])

    def _file_key(self, ftype: str) -> str:
        """What a file of type `ftype` depends on, its verdict included."""
        request = self.request
        imatrix = self.imatrix_key if request.uses_imatrix(ftype) else None
        return digest(
            self.identity, ftype, imatrix, request.parity, request.prompts if request.parity != "off" else None
        )

    def _is_there(self, entry: Mapping[str, Any]) -> bool:
        """Whether the folder itself holds a file as an earlier manifest describes it; a link to one does not count."""
        path = self.out_dir / entry["file"]
        return is_own_file(path) and path.stat().st_size == entry["size_bytes"] and file_sha256(path) == entry["sha256"]

    def _made(self, ftype: str) -> dict[str, Any] | None:
        return next((entry for entry in self.manifest["files"] if entry["ftype"] == ftype), None)

    # -- steps -------------------------------------------------------------------------------------------------

    def _require_space(self, todo: Sequence[str], ftype: str) -> None:
        """Refuses a disk too small for `todo`, made from a file of type `ftype`."""
        request = self.request
        needed = {request.file(each): estimated_bytes(self.plan, each) for each in todo}
        if ftype not in todo and not self._made(ftype):
            needed[f"the unquantized {ftype} file, for the time of the export"] = estimated_bytes(self.plan, ftype)
        if request.parity != "off":
            needed["the parity gate, for the time of the export"] = Gate.scratch_bytes(self.source.config)
        require_space(self.out_dir, needed)

    def _unquantized(self, todo: Sequence[str]) -> tuple[Path, str]:
        """The file that the others are quantized from, and its type: there already, or made in the scratch folder."""
        ftype = intermediate_ftype(self.source)
        made = self._made(ftype)
        if made:
            return self.out_dir / made["file"], ftype
        path = self.scratch / "unquantized.gguf"
        written = write_unquantized(
            self.source,
            path,
            lambda: self._require_space(todo, "f32"),
            progress=self._progress("writing tensors"),
            **self._names,
        )
        self.hashes[path] = written["sha256"]
        return path, written["ftype"]

    def _imatrix(self, unquantized: Path, todo: Sequence[str]) -> Any:
        request = self.request
        if not any(map(request.uses_imatrix, todo)):
            return None
        if isinstance(request.imatrix, Path):
            self.manifest["imatrix"] = {"file": request.imatrix.name, "computed": False, "made_from": self.imatrix_key}
            return self.matrix
        path = self.out_dir / IMATRIX_FILE
        if self.manifest["imatrix"] is None:
            started = time.monotonic()
            made = self.scratch / IMATRIX_FILE
            summary = collect_imatrix(
                unquantized,
                request.calibration,
                made,
                n_threads=self._collecting_threads(),
                progress=self._progress("importance matrix"),
            )
            self.manifest["imatrix"] = {
                "file": IMATRIX_FILE,
                "computed": True,
                "size_bytes": made.stat().st_size,
                "sha256": file_sha256(made),
                **{key: value for key, value in summary.as_dict().items() if key != "out"},
                "seconds": round(time.monotonic() - started, 2),
                "made_from": self.imatrix_key,
            }
            self._publish(made, IMATRIX_FILE)
            self._save()
        return read_imatrix(path)

    def _gate(self, unquantized: Path) -> Any:
        request = self.request
        if request.parity == "off":
            return contextlib.nullcontext()
        scratch = self.scratch / "parity"
        scratch.mkdir()
        return Gate(
            self.source,
            unquantized,
            scratch=scratch,
            prompts=request.prompts,
            reference=request.parity,
            adapter=request.adapter,
            n_threads=request.n_threads,
            progress=self._progress("reference of the parity gate"),
        )

    def _make(self, ftype: str, unquantized: Path, unquantized_ftype: str, imatrix: Any, gate: Any) -> None:
        """One file: made in the scratch folder, judged, renamed into place, told in the manifest."""
        request, started = self.request, time.monotonic()
        path, used, fallback = unquantized, None, {}
        if ftype != unquantized_ftype:
            path = self.scratch / request.file(ftype)
            if ftype in UNQUANTIZED_FTYPES:
                written = write_gguf(
                    self.source, path, ftype, progress=self._progress(f"{ftype}: writing"), **self._names
                )
                self.hashes[path] = written["sha256"]
            else:
                self.progress(f"{ftype}: quantizing", 0, 0)
                used = imatrix if request.uses_imatrix(ftype) else None
                report = quantize_gguf(unquantized, path, ftype, imatrix=used, n_threads=request.n_threads)
                fallback = report["fallback_tensors"]
        made_seconds, started = time.monotonic() - started, time.monotonic()
        passed, verdict = True, None
        if gate is not None:
            self.progress(f"{ftype}: parity", 0, 0)
            judged = gate.judge(path, ftype)
            passed, verdict = judged.passed, judged.as_dict()
            self.manifest["reference"] = gate.reference
        tensors = check_gguf(path).tensors
        types = [tensor.type_name for tensor in tensors]
        entry = {
            "file": request.file(ftype, failed=not passed),
            "ftype": ftype,
            "size_bytes": path.stat().st_size,
            "sha256": self.hashes.get(path) or file_sha256(path),
            "bits_per_weight": round(8 * sum(tensor.size_bytes for tensor in tensors) / self.manifest["n_params"], 4),
            "tensor_types": {name: types.count(name) for name in sorted(set(types))},
            "fallback_tensors": fallback,
            "imatrix": used is not None,
            "passed": passed,
            "parity": verdict,
            "seconds": {"make": round(made_seconds, 2), "parity": round(time.monotonic() - started, 2)},
            "made_from": self._file_key(ftype),
        }
        self._publish(path, entry["file"])
        other = self.out_dir / request.file(ftype, failed=passed)
        if passed:
            other.unlink(missing_ok=True)
        elif other.exists():
            logger.warning("%s is of an earlier export: its successor failed the parity gate", other)
        made = [*self.manifest["files"], entry]
        order = [*request.ftypes, *(each["ftype"] for each in made)]
        self.manifest["files"] = sorted(made, key=lambda each: order.index(each["ftype"]))

    def _collecting_threads(self) -> int | None:
        """One for a small model unless asked for: threads meet after every matrix, which takes it longer than
        computing."""
        return self.request.n_threads or (1 if self.manifest["n_params"] < _SMALL_PARAMS else None)

    # -- small things ------------------------------------------------------------------------------------------

    @property
    def _names(self) -> dict[str, Any]:
        return {"name": self.request.name, "metadata": self.request.metadata}

    def _progress(self, what: str) -> Callable[[int, int], None]:
        return lambda done, total: self.progress(what, done, total)

    def _publish(self, path: Path, name: str) -> None:
        try:
            os.replace(path, self.out_dir / name)
        except OSError as error:
            raise ModelError(
                f"expected to put {name} into {self.out_dir}, found: {error.strerror}; see what lies there"
            ) from error

    def _save(self) -> dict[str, Any]:
        self.manifest["updated"] = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
        save_manifest(self.out_dir, self.manifest)
        return self.manifest


def _peak_memory_bytes() -> int:
    """The largest resident memory of this process so far, files that are mapped included."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
