"""`manifest.json`: what an export was made from, what came out, and how it was judged.

Rewritten whole after each file, by atomic rename. docs/formats.md lists its fields. A file named in it lies
beside it with the SHA-256 given there; a later run with the same inputs and settings does not make it again.
"""

import hashlib
import importlib.metadata
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reclm_lite import __version__
from reclm_lite.errors import ModelError
from reclm_lite.runtime import file_sha256

FORMAT = 1
NAME = "manifest.json"
_REQUIRED = {"identity", "inputs", "imatrix", "files"}
_REQUIRED_OF_FILE = {"file", "ftype", "size_bytes", "sha256", "passed", "made_from"}
_TOOLS = ("llama-cpp-python", "gguf", "numpy", "tokenizers", "sentencepiece", "torch", "transformers", "peft")


def load_manifest(directory: Path) -> dict[str, Any] | None:
    """The manifest of an earlier export into `directory`, None where there is none; ModelError for any other file."""
    path = Path(directory) / NAME
    if not path.exists():
        return None

    def foreign(found: str) -> ModelError:
        return ModelError(
            f"expected {path} to be an export's manifest of format {FORMAT}, found {found}; move it away, or choose another folder"
        )

    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise foreign(f"no JSON ({error})") from error
    except OSError as error:
        raise foreign(str(error.strerror)) from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise foreign(f"format {manifest.get('format')!r}" if isinstance(manifest, dict) else "another document")
    if not _REQUIRED <= manifest.keys() or not all(_REQUIRED_OF_FILE <= entry.keys() for entry in manifest["files"]):
        raise foreign("one with fields missing")
    return manifest


def save_manifest(directory: Path, manifest: Mapping[str, Any]) -> None:
    """Writes `manifest` in place of an earlier one, whole or not at all."""
    path = Path(directory) / NAME
    partial = path.with_name(f".{NAME}.{os.getpid()}.partial")
    try:
        with partial.open("w", encoding="utf-8") as stream:
            stream.write(json.dumps(manifest, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise ModelError(f"expected to write {path}, found: {error.strerror or error}; make room or choose another folder") from error
    finally:
        partial.unlink(missing_ok=True)


def describe_inputs(files: Mapping[str, Sequence[Path]], earlier: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """[{"role", "file", "size_bytes", "mtime_ns", "sha256"}] of the files by role (base, adapter, imatrix).

    A file of the same path, size and modification time as in the `earlier` manifest keeps the hash it had there.
    """
    known = {
        (entry["role"], entry["file"], entry["size_bytes"], entry["mtime_ns"]): entry["sha256"]
        for entry in (earlier or {}).get("inputs", ())
    }
    described = []
    for role, paths in files.items():
        for path in paths:
            path = Path(path).resolve()
            stat = path.stat()
            key = (role, str(path), stat.st_size, stat.st_mtime_ns)
            described.append(
                dict(zip(("role", "file", "size_bytes", "mtime_ns"), key, strict=True), sha256=known.get(key) or file_sha256(path))
            )
    return described


def changed_inputs(inputs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Input files that are no longer what `describe_inputs` saw, by size and modification time."""
    odd = []
    for entry in inputs:
        path = Path(entry["file"])
        stat = path.stat() if path.is_file() else None
        if stat is None or (stat.st_size, stat.st_mtime_ns) != (entry["size_bytes"], entry["mtime_ns"]):
            odd.append(entry["file"])
    return odd


def digest(*parts: Any) -> str:
    """SHA-256 (hex) of JSON-able values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()


def tools() -> dict[str, str]:
    """Versions of what takes part in an export, of those that are installed."""
    versions = {"reclm-lite": __version__}
    for name in _TOOLS:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
