"""`manifest.json`: what an export was made from, what came out, and how it was judged.

Rewritten whole after each file, by atomic rename. docs/formats.md lists its fields. A file named in it lies
beside it with the SHA-256 given there; a later run with the same inputs and settings does not make it again.
"""

import hashlib
import importlib.metadata
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reclm_lite import __version__
from reclm_lite.convert.bounded_files import MAX_CONFIG_BYTES, parse_json, read_bounded
from reclm_lite.errors import ModelError
from reclm_lite.files import file_sha256

FORMAT = 1
NAME = "manifest.json"
# What a later run reads of it.
_FIELDS = {"identity": str, "imatrix": dict | None, "files": list}
_FIELDS_OF_FILE = {"file": str, "ftype": str, "size_bytes": int, "sha256": str, "passed": bool, "made_from": str}
_FIELDS_OF_IMATRIX = {"file": str, "computed": bool, "made_from": str}
_FIELDS_OF_COMPUTED = _FIELDS_OF_IMATRIX | {"size_bytes": int, "sha256": str}
_TOOLS = ("llama-cpp-python", "gguf", "numpy", "tokenizers", "sentencepiece", "torch", "transformers", "peft")


def load_manifest(directory: Path) -> dict[str, Any] | None:
    """The manifest of an earlier export into `directory`, None where there is none; ModelError for any other file."""
    path = Path(directory) / NAME
    if not path.exists():
        return None

    def foreign(found: str) -> ModelError:
        return ModelError(
            f"expected {path} to be an export's manifest of format {FORMAT}, found {found}; move it away, or choose "
            "another folder"
        )

    try:
        manifest = parse_json(read_bounded(path, MAX_CONFIG_BYTES))
    except ValueError as error:  # of JSON, of UTF-8
        raise foreign(f"no JSON ({error})") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise foreign(f"format {manifest.get('format')!r}" if isinstance(manifest, dict) else "another document")
    matrix = manifest.get("imatrix")
    whole = (
        _has(manifest, _FIELDS)
        and all(isinstance(entry, dict) and _has(entry, _FIELDS_OF_FILE) for entry in manifest["files"])
        and (matrix is None or _has(matrix, _FIELDS_OF_COMPUTED if matrix.get("computed") else _FIELDS_OF_IMATRIX))
    )
    if not whole:
        raise foreign("one with fields missing or of another kind")
    return manifest


def _has(document: Mapping[str, Any], fields: Mapping[str, Any]) -> bool:
    return all(name in document and isinstance(document[name], kind) for name, kind in fields.items())


def save_manifest(directory: Path, manifest: Mapping[str, Any]) -> None:
    """Writes `manifest` in place of an earlier one, whole or not at all."""
    path = Path(directory) / NAME
    partial = path.with_name(f".{NAME}.{os.getpid()}.partial")
    try:
        partial.unlink(missing_ok=True)
        with partial.open("x", encoding="utf-8") as stream:  # never through a link
            stream.write(json.dumps(manifest, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise ModelError(
            f"expected to write {path}, found: {error.strerror or error}; make room or choose another folder"
        ) from error
    finally:
        partial.unlink(missing_ok=True)


@dataclass(frozen=True)
class Input:
    """A file that an export reads: its role (base, adapter, imatrix), where it lies, and its name in the manifest.

    `stat`: size and times as they were when this was made.
    """

    role: str
    path: Path
    name: str
    stat: tuple[int, ...]

    def changed(self) -> bool:
        return _stat(self.path) != self.stat


def list_inputs(files: Mapping[str, Sequence[Path]], folders: Mapping[str, Path]) -> list[Input]:
    """The files by role, named relative to their role's folder: a manifest goes with the model, paths stay at home."""
    return [
        Input(role, path, path.relative_to(folders[role]).as_posix(), _stat(path))
        for role, paths in files.items()
        for path in map(Path, paths)
    ]


def describe_inputs(inputs: Sequence[Input]) -> list[dict[str, Any]]:
    """[{"role", "file", "size_bytes", "sha256"}] of the files, each read whole."""
    return [
        {"role": each.role, "file": each.name, "size_bytes": each.path.stat().st_size, "sha256": file_sha256(each.path)}
        for each in inputs
    ]


def _stat(path: Path) -> tuple[int, ...]:
    if not path.is_file():
        return ()
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino


def digest(*parts: Any) -> str:
    """SHA-256 (hex) of JSON-able values."""
    return hashlib.sha256(
        json.dumps(parts, sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass")
    ).hexdigest()


def tools() -> dict[str, str]:
    """Versions of what takes part in an export, of those that are installed."""
    versions = {"reclm-lite": __version__}
    for name in _TOOLS:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
