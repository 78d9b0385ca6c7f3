"""A workspace: one directory that holds the whole state of a project.

    workspace.toml   configuration and the data manifest
    workspace.db     SQLite (WAL): users, items, profiles, generations, jobs, runs
    matrices/ vectors/ models/   arrays as safetensors, provenance in the header
    reports/         reports as HTML

An array file ("artefact", artefacts.py) is stale if an input, or an input of an input, has changed. An artefact whose
rows belong to other users or items than the present ones is never opened. Files are written by atomic rename; one
process writes at a time (`Workspace.writing`). Left out: the meaning of artefacts, which the stages define.
"""

import contextlib
import datetime as dt
import json
import logging
import sqlite3
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from . import __version__
from .artefacts import (
    SIDES,
    Artefact,
    artefact_fingerprint,
    ids_digest,
    numbered_by,
    read_arrays,
    read_provenance,
    write_arrays,
)
from .database import close_database, open_database
from .errors import MissingArtefactError, WorkspaceError, shell_word
from .files import atomic_path
from .forget_plan import FORGETTING, NOTHING_LEFT, carry_out, read_plan
from .own_paths import make_folder, require_own_path
from .schema import SCHEMA, SCHEMA_VERSION
from .staleness import Stale, staleness
from .workspace_toml import read_toml, write_toml
from .writer_lock import take_lock

log = logging.getLogger(__name__)

FOLDERS = ("matrices", "vectors", "models", "llm", "reports")
# Dialogues for tuning contain people's histories, so `reclm forget` deletes the files there.
DIALOGUES = "llm/dialogues"
# The row of `meta` that counts how often `import --replace` has replaced the data.
REPLACEMENTS = "replacements"


def now() -> str:
    """The current time, ISO 8601, UTC, whole seconds."""
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds")


class Workspace:
    """An open workspace. Use as a context manager, or call `close()`."""

    def __init__(self, root: Path):
        self.root = Path(root)
        self.db_path = self.root / "workspace.db"
        self.toml_path = self.root / "workspace.toml"
        self._lock_handle = None
        self._lock_depth = 0
        self._writing_since = 0.0
        self._ids: tuple[tuple[int, int], dict[str, str]] | None = None
        self.db, self._no_space = open_database(self.root, self.db_path)
        plan = self.get_meta(FORGETTING)
        if plan is not None:  # `reclm forget` was killed: some files may still be the old ones
            try:
                with self.writing(own_folders=False):
                    pass
            except BaseException as error:
                if not isinstance(error, WorkspaceError) or any(read_plan(plan, self.db_path).values()):
                    self.close()
                    raise
                # Another process is working here, and only wiping the database is left to do.

    @property
    def argument(self) -> str:
        """The folder, quoted as a shell argument, for messages that name the next command."""
        return shell_word(self.root)

    # -- life ------------------------------------------------------------------

    @classmethod
    def create(cls, root: Path) -> "Workspace":
        """Create an empty workspace. Raises WorkspaceError if `root` exists and is not empty."""
        root = Path(root)
        if (root / "workspace.toml").exists():
            raise WorkspaceError(
                f"{root} is a workspace already: use it with -w {shell_word(root)}, or choose another folder"
            )
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
        """Open an existing workspace. Raises WorkspaceError if there is none or it has another version."""
        root = Path(root)
        if not (root / "workspace.toml").is_file():
            raise WorkspaceError(
                f"{root} is not a workspace (no workspace.toml): make one with `reclm init {shell_word(root)}`"
            )
        require_own_path(root / "workspace.toml")
        return cls(root)

    def close(self) -> None:
        close_database(self.db, self.db_path)
        self._unlock()

    def __enter__(self) -> "Workspace":
        return self

    def __exit__(self, *exc) -> None:
        self.close()

    @contextlib.contextmanager
    def writing(self, *, own_folders: bool = True) -> Iterator[None]:
        """Hold the workspace's writer lock (re-entrant). Raises WorkspaceError if another process has it.

        own_folders: call `require_own_folders`. The first process to take the lock finishes a killed `reclm forget`.
        """
        if own_folders:
            self.require_own_folders()
        if self._lock_depth == 0:
            handle = take_lock(self.root, self.db_path, no_space=self._no_space)
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

    def require_own_folders(self) -> None:
        """Raise WorkspaceError if a folder of the workspace is a symbolic link, see `require_own_path`."""
        for folder in (*FOLDERS, DIALOGUES):
            require_own_path(self.root / folder)

    def _unlock(self) -> None:
        if self._lock_handle is not None:
            self._lock_handle.close()
            self._lock_handle = None
            self._lock_depth = 0

    def finish_forgetting(self) -> bool:
        """Finish a `reclm forget` whose transaction is committed. Needs the writer lock; every step is idempotent.

        False if all files are done, but deleted rows could not be wiped from workspace.db; the next writer tries again.
        """
        text = self.get_meta(FORGETTING)
        if text is None:
            return True
        carry_out(read_plan(text, self.db_path), self.root, FOLDERS)
        with self.db:  # so that the plan does not delete files made from now on
            done = json.dumps(NOTHING_LEFT)
            self.db.execute("UPDATE meta SET value=? WHERE key=?", (done, FORGETTING))
        return self._wipe_database()

    def _wipe_database(self) -> bool:
        """Rewrite workspace.db without free pages, empty its log, drop the plan; False if another process blocks it."""
        try:
            self.db.execute("PRAGMA secure_delete=ON")
            self.db.execute("VACUUM")
            if self.db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
                log.warning(
                    "%s is being read by another process: what was deleted is wiped from it when that has ended",
                    self.db_path,
                )
                return False
            with self.db:
                self.db.execute("DELETE FROM meta WHERE key=?", (FORGETTING,))
            self.db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        except sqlite3.OperationalError as error:
            log.warning(
                "%s could not be wiped of what was deleted (%s): the next command tries again", self.db_path, error
            )
            return False
        return True

    # -- configuration ---------------------------------------------------------

    @property
    def config(self) -> dict:
        """The content of workspace.toml: sections only."""
        return read_toml(self.toml_path)

    def set_config(self, section: str, values: Mapping) -> None:
        """Replace one section of workspace.toml, atomically."""
        config = self.config
        config[section] = dict(values)
        write_toml(self.toml_path, config)

    def get_meta(self, key: str) -> str | None:
        row = self.db.execute("SELECT value FROM meta WHERE key=?", (key,)).fetchone()
        return row[0] if row else None

    # -- lists of ids ----------------------------------------------------------

    def ids(self) -> dict[str, str]:
        """The digests of the present lists of ids, in index order, by "users" and "items"."""
        state = self.db.execute("PRAGMA data_version").fetchone()[0], self.db.total_changes
        if self._ids is None or self._ids[0] != state:
            found = {}
            # An id means the same person after an update, but another one after a replacement.
            data_set = self.get_meta(REPLACEMENTS) or "0"
            for side, one in zip(SIDES, ("user", "item"), strict=True):
                rows = self.db.execute(f"SELECT {one}_idx, {one}_id FROM {side} ORDER BY {one}_idx")
                found[side] = ids_digest(data_set, (f"{idx} {ident}" for idx, ident in rows))
            self._ids = state, found
        return self._ids[1]

    # -- artefacts -------------------------------------------------------------

    def path(self, name: str) -> Path:
        """The file of artefact `name` (such as `matrices/split`)."""
        return self.root / f"{name}.safetensors"

    def has(self, name: str) -> bool:
        return self.path(name).is_file()

    def save(self, name: str, arrays: Mapping[str, np.ndarray], *, inputs: Mapping[str, str], params: Mapping) -> str:
        """Write arrays with provenance by atomic rename; returns the fingerprint.

        inputs: name -> fingerprint of each artefact that this one was made from.
        params: JSON-able settings. The provenance also records for how many seconds the writer lock has been held.
        """
        arrays = {key: np.ascontiguousarray(value) for key, value in arrays.items()}
        params = json.loads(json.dumps(params, default=str))
        ids = {side: self.ids()[side] for side in numbered_by(name)}
        fingerprint = artefact_fingerprint(arrays, inputs, params, ids)
        provenance = {
            "fingerprint": fingerprint,
            "inputs": dict(inputs),
            "ids": ids,
            "params": params,
            "created": now(),
            "made_by": f"reclm-lite {__version__}",
        }
        if self._lock_depth:
            provenance["seconds"] = round(time.monotonic() - self._writing_since, 3)
        target = self.path(name)
        make_folder(target.parent)
        with atomic_path(target) as temporary:
            write_arrays(temporary, arrays, {"reclm": json.dumps(provenance)})
        return fingerprint

    def load(self, name: str, *, made_by: str, any_ids: bool = False) -> Artefact:
        """Read an artefact. made_by: the command that makes it, named in the error if it is missing.

        Raises MissingArtefactError if its rows belong to other users or items than the workspace's, or to the same in
        another order. any_ids: skip that check, for callers that do not use row numbers.
        """
        require_own_path(self.path(name))
        provenance = self.provenance(name, made_by=made_by)
        if not any_ids:
            self._require_same_ids(name, provenance, made_by)
        try:
            arrays = read_arrays(self.path(name))
        except (ValueError, OSError) as error:
            raise WorkspaceError(
                f"{self.path(name)} cannot be read ({error}): make it again with `{made_by}`"
            ) from error
        return Artefact(
            name, arrays, provenance["fingerprint"], provenance["inputs"], provenance["params"], provenance["created"]
        )

    def _require_same_ids(self, name: str, provenance: dict, made_by: str) -> None:
        if "ids" not in provenance:  # of an older version: its rows are known only if nothing has changed since
            causes = staleness(self, name).changed
            if causes:
                raise MissingArtefactError(
                    f"{name} does not tell which users and items its rows are (an older version made it), and "
                    f"{', '.join(causes)} changed "
                    f"since: run `{made_by}` again"
                )
            return
        other = self.other_ids(name, provenance)
        if other:
            raise MissingArtefactError(
                f"the rows of {name} are not those of the present {' and '.join(other)}, whose list has changed since "
                "it was made: "
                f"run `{made_by}` again"
            )

    def other_ids(self, name: str, provenance: dict) -> list[str]:
        """The lists ("users", "items") that number an artefact's rows and differ from the present ones."""
        return [side for side in numbered_by(name) if provenance["ids"].get(side) != self.ids()[side]]

    def has_rows_of_others(self, name: str) -> bool:
        """Whether an artefact's rows belong to another list of users than the present one, according to its header."""
        provenance = self.provenance(name, made_by=self.command_for(name))
        return "ids" in provenance and "users" in self.other_ids(name, provenance)

    def provenance(self, name: str, *, made_by: str) -> dict:
        """The provenance in an artefact's header, without reading its arrays."""
        path = self.path(name)
        if not path.is_file():
            raise MissingArtefactError(f"{name} has not been made in {self.root}: run `{made_by}` first")
        try:
            return read_provenance(path)
        except ValueError as error:
            raise WorkspaceError(
                f"{path} is not a whole artefact of this software ({error}): make it again with `{made_by}`"
            ) from error

    def command_for(self, name: str) -> str:
        """The command that makes artefact `name`, for messages."""
        kind, _, stem = name.partition("/")
        model, _, profiles = stem.partition("+")
        if kind == "models":
            return f"reclm fit {shell_word(model)} -w {self.argument}" + (
                f" --profiles {shell_word(profiles)}" if profiles else ""
            )
        if kind == "vectors":
            return f"reclm embed {'items' if stem == 'items' else 'profiles'} -w {self.argument}"
        return f"reclm {stem if stem in ('split', 'neighbors') else 'import FORMAT SOURCE'} -w {self.argument}"

    def fingerprint(self, name: str) -> str | None:
        """The fingerprint of an artefact, or None if it does not exist."""
        if not self.has(name):
            return None
        return self.provenance(name, made_by=self.command_for(name))["fingerprint"]

    def stale_inputs(self, name: str, told: dict[str, Stale] | None = None) -> list[str]:
        """What has changed since artefact `name` or its inputs were made: names of artefacts, "the list of users" or
        "the list of items". Empty if it is up to date. told: what was found so far, for callers that ask for many
        (staleness.py).
        """
        return staleness(self, name, told).changed

    def require_fresh(self, name: str, *, made_by: str) -> None:
        """Raise MissingArtefactError unless artefact `name` exists and neither its inputs nor theirs have changed."""
        self.provenance(name, made_by=made_by)
        stale = staleness(self, name)
        if stale.changed:
            commands = [f"`{self.command_for(one)}`" for one in stale.again[:-1]] + [f"`{made_by}`"]
            raise MissingArtefactError(
                f"{name} is stale: {', '.join(stale.changed)} changed since it was made; run "
                f"{', then '.join(commands)} again"
            )
