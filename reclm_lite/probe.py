"""Tries a foreign GGUF file in a process of its own before this one loads it, once for each file's content.

`check_gguf` refuses what is known to make llama.cpp end the process; what is not known ends the process of
`probe_child`, and becomes a sentence here. A file that passed is remembered in memory, and in the user's cache folder
under its hash and the versions of llama-cpp-python and of the probe, so it is tried once. Refusals are not kept: memory
may have been short. The bundled models are not tried.
"""

import contextlib
import functools
import importlib.metadata
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from reclm_lite.errors import ModelError
from reclm_lite.files import file_sha256
from reclm_lite.probe_child import NOT_LOADED, PASSED

if TYPE_CHECKING:
    from reclm_lite.gguf_file import GgufSummary

PROBE_VERSION = 2  # goes up when the probe asks more of a file
# Architectures of llama.cpp that make vectors and no text; asked for the next token, they end the process.
ENCODERS = frozenset(
    (
        "bert",
        "modern-bert",
        "nomic-bert",
        "nomic-bert-moe",
        "neo-bert",
        "jina-bert-v2",
        "jina-bert-v3",
        "eurobert",
        "t5encoder",
    )
)
_SECONDS = 120  # on a machine that is busy; a small model takes 0.1
_BYTES_PER_SECOND = 20 << 20  # of a slow disk, which a large model is read from
_MAX_KEPT = 2000  # files in the cache folder; the oldest go
_HERE = Path(__file__).parent
_passed: set[str] = set()  # hashes of what passed in this process's time


def encodes(summary: "GgufSummary") -> bool:
    """Whether a model makes vectors and no text."""
    return summary.metadata.get(f"{summary.architecture}.attention.causal") is False or summary.architecture in ENCODERS


def pooling_of(summary: "GgufSummary") -> int | None:
    return summary.metadata.get(f"{summary.architecture}.pooling_type")


def is_bundled(path: Path) -> bool:
    """Whether a file came with the package."""
    return Path(path).resolve().parent == (_HERE / "assets").resolve()


class Probe:
    """A file being tried, from when this is made until `wait`; nothing is tried where it is known to pass.

    Raises ModelError if the trial ends badly, or cannot be made.
    """

    def __init__(self, summary: "GgufSummary"):
        self.summary, self._child = summary, None
        folder = _bindings()
        if is_bundled(summary.path) or folder is None:  # without llama-cpp-python, the load says so
            return
        try:
            self._hash = file_sha256(summary.path)
        except OSError as error:
            raise ModelError(
                f"expected to read {summary.path}, found: {error.strerror or error}; check the file and its rights"
            ) from error
        if self._hash in _passed:
            return
        if _is_kept(self._hash):
            _passed.add(self._hash)
            return
        self._seconds = _SECONDS + summary.size_bytes / _BYTES_PER_SECOND
        job = {
            "path": os.fsdecode(Path(summary.path).resolve()),
            "size_bytes": summary.size_bytes,
            "seconds": self._seconds,
            "encoder": encodes(summary),
            "pooling_type": pooling_of(summary),
            "folder": folder,
            "sys_path": [p for p in sys.path if p],
        }
        self._said = tempfile.TemporaryFile()  # a pipe would fill up, and a child of the child keep it open
        try:
            self._child = subprocess.Popen(
                [sys.executable or "python3", "-I", "-S", str(_HERE / "probe_child.py"), json.dumps(job)],
                stdin=subprocess.DEVNULL,
                stdout=self._said,
                stderr=subprocess.STDOUT,
                env={**os.environ, "GGML_NO_BACKTRACE": "1"},
            )
        except OSError as error:
            self._said.close()
            raise ModelError(
                f"expected to try {summary.path} in a process of its own first, found: {error.strerror or error}; "
                "allow more processes (ulimit -u), or end some"
            ) from error

    def wait(self) -> None:
        """Until the file has passed; at once where nothing is tried."""
        if self._child is None:
            return
        child, self._child = self._child, None
        try:
            code = child.wait(self._seconds + 5)  # the child's own alarm comes before
        except subprocess.TimeoutExpired:
            code = -signal.SIGALRM
        finally:  # even after a Ctrl-C
            if child.poll() is None:
                child.kill()
                child.wait()
            self._said.seek(0)
            said = self._said.read(1 << 16).decode("utf-8", errors="replace")
            self._said.close()
        if code == 0 and said.endswith(PASSED):
            _passed.add(self._hash)
            _keep(self._hash)
        elif code == 0 and said.endswith(NOT_LOADED):
            _passed.add(self._hash)  # llama.cpp refuses it by itself, with its own reason, which the load will give
        else:
            raise self._failure(code, said)

    def close(self) -> None:
        """Ends a trial that nobody waited for. Safe to call twice."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            self._child = None
            self._said.close()

    def __enter__(self) -> "Probe":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _failure(self, code: int, said: str) -> ModelError:
        path = self.summary.path
        if not Path(path).is_file():
            return ModelError(f"expected a GGUF model at {path}, found no such file any more; check the path")
        if code == -signal.SIGALRM:
            return ModelError(
                f"expected {path} to load in llama.cpp and to decode a few tokens, found that it had not after "
                f"{self._seconds:.0f} seconds; use another model, or a less busy machine"
            )
        if code == -signal.SIGKILL:
            return ModelError(
                f"expected {path} to load in llama.cpp, found that its process was killed, as where memory is short; "
                "free some, or use a smaller model"
            )
        ended = f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        lines = [line.strip() for line in said.splitlines() if line.strip()]
        reason = "".join(c for c in (lines[-1] if lines else "") if c.isprintable())[-200:]
        return ModelError(
            f"expected {path} to load in llama.cpp and to decode a few tokens, found that a process which tried was "
            f"{ended}"
            f"{f' ({reason})' if reason else ''}; the file is corrupt, or of a model that this version of llama.cpp "
            "cannot run: "
            "download or convert it again, or use another"
        )


@functools.cache
def _bindings() -> str | None:
    """The folder of llama_cpp's bindings, without importing them."""
    try:
        found = importlib.util.find_spec("llama_cpp")
    except (ImportError, ValueError):
        return None
    return os.path.dirname(found.origin) if found is not None and found.origin else None


@functools.cache
def _version() -> str | None:
    try:
        return importlib.metadata.version("llama-cpp-python")
    except importlib.metadata.PackageNotFoundError:
        return None


def _kept_under() -> Path | None:
    """The folder of what passed with these versions; None where no version is known or there is no home folder."""
    try:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        return None
    return home / "reclm-lite" / f"models-that-passed-{_version()}-{PROBE_VERSION}" if _version() else None


def _is_kept(digest: str) -> bool:
    folder = _kept_under()
    try:
        # Another user's word counts for nothing.
        return folder is not None and (folder / digest).stat().st_uid == os.getuid()
    except OSError:
        return False


def _keep(digest: str) -> None:
    """Remember that a file passed; where that cannot be written, it is tried again next time."""
    folder = _kept_under()
    if folder is None:
        return
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # An empty file appears whole; nothing of the model is written down.
        os.close(os.open(folder / digest, os.O_CREAT | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
        kept = [(entry.stat().st_mtime_ns, entry.path) for entry in os.scandir(folder)]
        for _, path in sorted(kept)[: max(0, len(kept) - _MAX_KEPT)]:
            os.unlink(path)
