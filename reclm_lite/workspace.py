"""A workspace: one directory that holds a project's whole state.

    workspace.toml   configuration and the data manifest
    workspace.db     SQLite (WAL): users, items, profiles, generations, jobs, runs
    matrices/ vectors/ models/   arrays as safetensors, provenance in the header
    reports/         what was made for people

Every array file ("artefact") carries a fingerprint of its own content and those
of its inputs, so that a stage can say "stale" and name the command that mends it.
Files appear by atomic rename only; one process writes at a time (`Workspace.writing`).
This module leaves out what the artefacts mean: the stages know.
"""

import contextlib
import datetime as dt
import errno
import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import sqlite3
import struct
import time
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from . import __version__
from .errors import MissingArtefactError, WorkspaceError, shell_word
from .files import atomic_path, sync
from .schema import SCHEMA, SCHEMA_VERSION, upgrade

log = logging.getLogger(__name__)

FOLDERS = ("matrices", "vectors", "models", "llm", "reports")
# Dialogues to tune with: histories of people, so `reclm forget` deletes what lies there.
DIALOGUES = "llm/dialogues"
MAX_TOML_BYTES = 4 << 20  # of workspace.toml; an import writes some kilobytes
# The row of `meta` that holds what is left to do of a `reclm forget` (forget.py writes it, with its transaction).
FORGETTING = "forget"


@dataclass(frozen=True)
class Artefact:
    """Arrays of one file with what they were made from."""

    name: str
    arrays: dict[str, np.ndarray]
    fingerprint: str
    inputs: dict[str, str] = field(default_factory=dict)
    params: dict = field(default_factory=dict)
    created: str = ""


def now() -> str:
    """The current time, ISO 8601, UTC, whole seconds."""
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds")


def fingerprint_arrays(arrays: Mapping[str, np.ndarray], params: Mapping) -> str:
    """SHA-256 (32 hex digits) over names, dtypes, shapes and bytes of arrays, and over `params`."""
    digest = hashlib.sha256(json.dumps(params, sort_keys=True, default=str).encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name}|{array.dtype}|{array.shape}|".encode())
        digest.update(array.data if array.size else b"")
    return digest.hexdigest()[:32]


def artefact_fingerprint(arrays: Mapping[str, np.ndarray], inputs: Mapping[str, str], params: Mapping) -> str:
    """The fingerprint of an artefact: of its arrays, its settings and its inputs' fingerprints."""
    return fingerprint_arrays(arrays, {"params": params, "inputs": dict(inputs)})


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], metadata: dict[str, str]) -> None:
    """Write a safetensors file. Raises OSError where the system refuses, such as on a full disk."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    try:
        save_file(dict(arrays), path, metadata=metadata)
    except SafetensorError as error:  # which tells the system's error in words alone
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


class Workspace:
    """An open workspace. Use as a context manager, or call `close()`."""

    def __init__(self, root: Path):
        self.root = Path(root)
        self.db_path = self.root / "workspace.db"
        self.toml_path = self.root / "workspace.toml"
        self._lock_handle = None
        self._lock_depth = 0
        self._writing_since = 0.0
        self.db = self._connect()
        plan = self.get_meta(FORGETTING)
        if plan is not None:  # a kill came between: half of the files may still be the old ones
            try:
                with self.writing():
                    pass
            except BaseException as error:
                if not isinstance(error, WorkspaceError) or any(json.loads(plan).values()):
                    self.close()
                    raise
                # Another process works here, and all that is left to do is wiping the database.

    @property
    def argument(self) -> str:
        """The folder as a word of a shell command, for messages that name the next command."""
        return shell_word(self.root)

    # -- life ------------------------------------------------------------------

    @classmethod
    def create(cls, root: Path) -> "Workspace":
        """Make an empty workspace. Raises WorkspaceError if `root` exists and is not empty."""
        root = Path(root)
        if (root / "workspace.toml").exists():
            raise WorkspaceError(f"{root} is a workspace already: use it with -w {shell_word(root)}, or choose another folder")
        if root.exists() and (not root.is_dir() or any(root.iterdir())):
            raise WorkspaceError(f"{root} exists and is not an empty folder: choose another folder for the workspace")
        try:
            for folder in FOLDERS:
                (root / folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise WorkspaceError(f"cannot make the workspace {root}: {error.strerror}") from error
        db = sqlite3.connect(root / "workspace.db")
        with db:
            db.execute("PRAGMA journal_mode=WAL")
            db.executescript(SCHEMA)
            db.execute("INSERT INTO meta VALUES ('schema_version', ?)", (str(SCHEMA_VERSION),))
        db.close()
        # workspace.toml is written last: a folder without it is not a workspace.
        write_toml(root / "workspace.toml", {"workspace": {"schema_version": SCHEMA_VERSION, "created": now()}})
        return cls(root)

    @classmethod
    def open(cls, root: Path) -> "Workspace":
        """Open an existing workspace. Raises WorkspaceError if there is none or it is of another version."""
        root = Path(root)
        if not (root / "workspace.toml").is_file():
            raise WorkspaceError(f"{root} is not a workspace (no workspace.toml): make one with `reclm init {shell_word(root)}`")
        return cls(root)

    def _connect(self) -> sqlite3.Connection:
        if not self.db_path.is_file():
            raise WorkspaceError(f"{self.db_path} is missing: the workspace is damaged; make a new one with `reclm init`")
        try:
            db = self._connect_to_write() if self._may_write else self._connect_to_read()
            row = db.execute("SELECT value FROM meta WHERE key='schema_version'").fetchone()
        except sqlite3.OperationalError as error:
            # Not the content: a full disk, a folder that may not be written, another process for long.
            raise WorkspaceError(
                f"{self.db_path} cannot be opened for work ({error}): see that the disk has space, that {self.root} may be written "
                "and that no other process holds it, then run the command again"
            ) from error
        except sqlite3.DatabaseError as error:
            raise WorkspaceError(
                f"{self.db_path} cannot be read as a workspace database ({error}): put a copy back, "
                "or make a new workspace with `reclm init`"
            ) from error
        found = int(row[0]) if row and row[0].isdigit() else None
        if found is None or not 1 <= found <= SCHEMA_VERSION:
            raise WorkspaceError(
                f"{self.root}: expected schema version {SCHEMA_VERSION} or older, found {row[0] if row else 'none'}; "
                "use the version of reclm-lite that made it, or make a new workspace"
            )
        if found < SCHEMA_VERSION:
            if not self._may_write:
                db.close()
                raise WorkspaceError(
                    f"{self.root} has schema version {found} and cannot be written, so it cannot be brought to {SCHEMA_VERSION}: "
                    "open it once where it can be written"
                )
            upgrade(db, self.root, found)
        return db

    @property
    def _may_write(self) -> bool:
        return os.access(self.root, os.W_OK) and os.access(self.db_path, os.W_OK)

    def _connect_to_write(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.db_path, timeout=10.0)
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=NORMAL")
        return db

    def _connect_to_read(self) -> sqlite3.Connection:
        """Of a folder that may not be written, such as a mount in a container: SQLite cannot keep its log there."""
        log_file = self.db_path.with_name(f"{self.db_path.name}-wal")
        if log_file.exists() and log_file.stat().st_size:  # of a process at work, or killed: what it says counts too
            how = "mode=ro"
        else:
            how = "immutable=1"
        return sqlite3.connect(f"{self.db_path.absolute().as_uri()}?{how}", uri=True, timeout=10.0)

    def close(self) -> None:
        self.db.close()
        self._unlock()

    def __enter__(self) -> "Workspace":
        return self

    def __exit__(self, *exc) -> None:
        self.close()

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the workspace's writer lock (re-entrant). Raises WorkspaceError if another process has it.

        Whoever takes it first finishes a `reclm forget` that was killed.
        """
        if self._lock_depth == 0:
            try:
                if not self._may_write:
                    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
                handle = open(self.root / ".lock", "a+")
            except OSError as error:
                raise WorkspaceError(f"{self.root} cannot be written ({error.strerror}): work in a copy of it that can") from error
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                handle.seek(0)
                holder = handle.read().strip() or "unknown"
                handle.close()
                raise WorkspaceError(
                    f"another reclm process ({holder}) is working in {self.root}: wait for it to end, then run the command again"
                ) from error
            handle.truncate(0)
            handle.write(f"pid {os.getpid()}")
            handle.flush()
            self._lock_handle, self._writing_since = handle, time.monotonic()
        self._lock_depth += 1
        try:
            if self._lock_depth == 1:
                self.finish_forgetting()
            yield
        finally:
            self._lock_depth -= 1
            if self._lock_depth == 0:
                self._unlock()

    def _unlock(self) -> None:
        if self._lock_handle is not None:
            self._lock_handle.close()
            self._lock_handle = None
            self._lock_depth = 0

    def finish_forgetting(self) -> bool:
        """Do what is left of a `reclm forget` whose transaction is committed; every step may be done twice. Under the writer's lock.

        False where every file is in its place, but workspace.db could not be wiped of deleted rows: the next writer tries again.
        """
        text = self.get_meta(FORGETTING)
        if text is None:
            return True
        plan = json.loads(text)
        for source, target in plan["rename"]:
            if (self.root / source).exists():
                os.replace(self.root / source, self.root / target)
        emptied = [path for name in plan["empty"] if (self.root / name).is_dir() for path in (self.root / name).iterdir()]
        for path in [*emptied, *(self.root / name for name in plan["delete"])]:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        for folder in {self.root, *(self.root / name for name in FOLDERS)}:
            if folder.is_dir():
                sync(folder)
        with self.db:  # what is made from now on is not for this plan to delete
            done = json.dumps({"rename": [], "empty": [], "delete": []})
            self.db.execute("UPDATE meta SET value=? WHERE key=?", (done, FORGETTING))
        return self._wipe_database()

    def _wipe_database(self) -> bool:
        """Rewrite workspace.db without free pages and empty its log, then drop the plan; False where another process hinders it."""
        try:
            self.db.execute("PRAGMA secure_delete=ON")
            self.db.execute("VACUUM")
            if self.db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
                log.warning("%s is being read by another process: what was deleted is wiped from it when that has ended", self.db_path)
                return False
            with self.db:
                self.db.execute("DELETE FROM meta WHERE key=?", (FORGETTING,))
            self.db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        except sqlite3.OperationalError as error:
            log.warning("%s could not be wiped of what was deleted (%s): the next command tries again", self.db_path, error)
            return False
        return True

    # -- configuration ---------------------------------------------------------

    @property
    def config(self) -> dict:
        """The content of workspace.toml: sections alone."""
        try:
            with open(self.toml_path, "rb") as handle:
                content = handle.read(MAX_TOML_BYTES + 1)
            if len(content) > MAX_TOML_BYTES:
                raise ValueError(f"expected at most {MAX_TOML_BYTES:,} bytes, found more")
            config = tomllib.loads(content.decode())
            for name, section in config.items():
                if not isinstance(section, dict):
                    raise ValueError(f"expected a section [{name[:40]}], found {name[:40]} = {section!r:.40}")
            return config
        except (ValueError, RecursionError) as error:  # ValueError: also of bytes that are no UTF-8, and of endless numbers
            raise WorkspaceError(
                f"{self.toml_path} is not valid TOML ({error}): mend it, or empty the file (the data set is kept elsewhere)"
            ) from error

    def set_config(self, section: str, values: Mapping) -> None:
        """Replace one section of workspace.toml, atomically."""
        config = self.config
        config[section] = dict(values)
        write_toml(self.toml_path, config)

    def get_meta(self, key: str) -> str | None:
        row = self.db.execute("SELECT value FROM meta WHERE key=?", (key,)).fetchone()
        return row[0] if row else None

    # -- artefacts -------------------------------------------------------------

    def path(self, name: str) -> Path:
        """The file of artefact `name` (such as `matrices/split`)."""
        return self.root / f"{name}.safetensors"

    def has(self, name: str) -> bool:
        return self.path(name).is_file()

    def save(self, name: str, arrays: Mapping[str, np.ndarray], *, inputs: Mapping[str, str], params: Mapping) -> str:
        """Write arrays with provenance by atomic rename; returns the fingerprint.

        inputs: name -> fingerprint of each artefact this one was made from.
        params: JSON-able settings that made it. Its provenance also says how many seconds the writer's lock has been held for it.
        """
        arrays = {key: np.ascontiguousarray(value) for key, value in arrays.items()}
        params = json.loads(json.dumps(params, default=str))
        fingerprint = artefact_fingerprint(arrays, inputs, params)
        provenance = {
            "fingerprint": fingerprint,
            "inputs": dict(inputs),
            "params": params,
            "created": now(),
            "made_by": f"reclm-lite {__version__}",
        }
        if self._lock_depth:
            provenance["seconds"] = round(time.monotonic() - self._writing_since, 3)
        target = self.path(name)
        target.parent.mkdir(exist_ok=True)
        with atomic_path(target) as temporary:
            write_arrays(temporary, arrays, {"reclm": json.dumps(provenance)})
        return fingerprint

    def load(self, name: str, *, made_by: str) -> Artefact:
        """Read an artefact. `made_by` is the command that makes it, named in the error when it is missing."""
        from safetensors import SafetensorError, safe_open

        provenance = self.provenance(name, made_by=made_by)
        try:
            with safe_open(self.path(name), framework="np") as handle:
                arrays = {key: handle.get_tensor(key) for key in handle.keys()}
        except (SafetensorError, OSError) as error:
            raise WorkspaceError(f"{self.path(name)} cannot be read ({error}): make it again with `{made_by}`") from error
        return Artefact(
            name, arrays, provenance["fingerprint"], provenance["inputs"], provenance["params"], provenance["created"]
        )

    def provenance(self, name: str, *, made_by: str) -> dict:
        """The provenance in an artefact's header, without reading its arrays."""
        path = self.path(name)
        if not path.is_file():
            raise MissingArtefactError(f"{name} has not been made in {self.root}: run `{made_by}` first")
        try:
            with open(path, "rb") as handle:
                (length,) = struct.unpack("<Q", handle.read(8))
                header = json.loads(handle.read(min(length, 100_000_000)))
            provenance = json.loads(header.pop("__metadata__")["reclm"])
            end = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
            if path.stat().st_size != end:
                raise ValueError(f"expected {end} bytes, found {path.stat().st_size}")
            return provenance
        except (struct.error, ValueError, KeyError, TypeError, UnicodeDecodeError) as error:
            raise WorkspaceError(f"{path} is not a whole artefact of this software: make it again with `{made_by}`") from error

    def command_for(self, name: str) -> str:
        """The command that makes artefact `name`, for messages."""
        kind, _, stem = name.partition("/")
        model, _, profiles = stem.partition("+")
        if kind == "models":
            return f"reclm fit {shell_word(model)} -w {self.argument}" + (f" --profiles {shell_word(profiles)}" if profiles else "")
        if kind == "vectors":
            return f"reclm embed {'items' if stem == 'items' else 'profiles'} -w {self.argument}"
        return f"reclm {stem if stem in ('split', 'neighbors') else 'import FORMAT SOURCE'} -w {self.argument}"

    def fingerprint(self, name: str) -> str | None:
        """The fingerprint of an artefact, or None where it has not been made."""
        if not self.has(name):
            return None
        return self.provenance(name, made_by=self.command_for(name))["fingerprint"]

    def stale_inputs(self, name: str) -> list[str]:
        """The inputs of artefact `name` that have changed since it was made (empty: up to date)."""
        inputs = self.provenance(name, made_by=self.command_for(name))["inputs"]
        return [key for key, value in inputs.items() if self.fingerprint(key) != value]

    def require_fresh(self, name: str, *, made_by: str) -> None:
        """Raise MissingArtefactError unless artefact `name` exists and its inputs have not changed."""
        self.provenance(name, made_by=made_by)
        stale = self.stale_inputs(name)
        if stale:
            raise MissingArtefactError(
                f"{name} is stale: {', '.join(stale)} changed since it was made; run `{made_by}` again"
            )


def write_toml(path: Path, config: Mapping) -> None:
    """Replace a TOML file, atomically."""
    import tomli_w

    with atomic_path(path) as temporary:
        temporary.write_text(tomli_w.dumps(config), encoding="utf-8")
