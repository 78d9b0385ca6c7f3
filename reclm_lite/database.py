"""Opening `workspace.db`: to work in it, to read it where nothing may be written, and to read it on a full disk.

Left out: its tables (schema.py), and what the rows mean (the stages).
"""

import contextlib
import functools
import os
import shutil
import sqlite3
from pathlib import Path

from .database_known import remember
from .database_pages import EndlessError, bound_steps, has_log, require_trees
from .errors import WorkspaceError
from .files import is_own_file
from .schema import SCHEMA, SCHEMA_VERSION, upgrade


def close_database(db: sqlite3.Connection, path: Path) -> None:
    """Close what `open_database` opened, which need not be looked at again for what was written meanwhile."""
    db.close()
    if not has_log(path):
        remember(path)


def may_write(root: Path, path: Path) -> bool:
    """Whether this process may write the database `path` of the workspace `root`."""
    return os.access(root, os.W_OK) and os.access(path, os.W_OK)


def open_database(root: Path, path: Path) -> tuple[sqlite3.Connection, bool]:
    """(the database of the workspace `root`, brought to the present schema; whether there is no space left to write
    in).

    Raises WorkspaceError where it is missing, damaged, of a newer version, or in the hands of another process.
    """
    if not path.is_file():
        raise WorkspaceError(f"{path} is missing: the workspace is damaged; make a new one with `reclm init`")
    if path.is_symlink():
        raise WorkspaceError(
            f"{path} is a link to {os.readlink(path)}, expected the file itself: put it there, or make a new workspace"
        )
    journal = path.with_name(f"{path.name}-journal")
    if os.path.lexists(journal):
        # SQLite would play it back, and then delete a further file that it names, wherever that is. This software keeps
        # a log (-wal).
        raise WorkspaceError(
            f"{journal} is not of this software, and may name any file for SQLite to delete: remove it, or take a "
            "copy back"
        )
    for end in ("-wal", "-shm"):
        beside = path.with_name(f"{path.name}{end}")
        if os.path.lexists(beside) and not is_own_file(beside):
            raise WorkspaceError(f"{beside} is no file, expected the log of {path.name} or nothing: remove it")
    no_space = False
    try:
        try:
            db = _to_write(path) if may_write(root, path) else _to_read(path)
            _require_own_content(db, path, may_write=may_write(root, path))
            row = db.execute("SELECT value FROM meta WHERE key='schema_version'").fetchone()
        except sqlite3.OperationalError as error:
            if not may_write(root, path) or not _is_full(error, root):
                raise
            no_space = True
            db = _without_space(path)
            _require_own_content(db, path, may_write=False)
            row = db.execute("SELECT value FROM meta WHERE key='schema_version'").fetchone()
    except sqlite3.OperationalError as error:
        if getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_INTERRUPT:  # see `bound_steps`
            raise WorkspaceError(
                f"{path} is damaged (its list of tables has no end): do not use this workspace, take a copy back, or "
                "make a new one and import the data again"
            ) from error
        # Not the content: a full disk, a folder that may not be written, another process for long.
        raise WorkspaceError(
            f"{path} cannot be opened for work ({error}): see that the disk has space, that {root} may be written "
            "and that no other process holds it, then run the command again"
        ) from error
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:  # the latter for SQLite's own words on a damaged file
        raise WorkspaceError(
            f"{path} cannot be read as a workspace database ({error}): put a copy back, or make a new workspace with "
            "`reclm init`"
        ) from error
    version = str(row[0])[:20] if row else "none"
    found = int(version) if version.isascii() and version.isdigit() else 0
    if not 1 <= found <= SCHEMA_VERSION:
        db.close()
        raise WorkspaceError(
            f"{root}: expected schema version {SCHEMA_VERSION} or older, found {version}; "
            "use the version of reclm-lite that made it, or make a new workspace"
        )
    if found < SCHEMA_VERSION:
        if not may_write(root, path) or no_space:
            db.close()
            raise WorkspaceError(
                f"{root} has schema version {found} and cannot be written, so it cannot be brought to "
                f"{SCHEMA_VERSION}: "
                "open it once where it can be written"
            )
        upgrade(db, root, found)
    return db, no_space


def _require_own_content(db: sqlite3.Connection, path: Path, *, may_write: bool) -> None:
    """Raise WorkspaceError unless the database is of the tables of schema.py, in pages that form trees."""
    try:
        require_trees(db, path, may_write=may_write)
    except EndlessError as error:
        db.close()
        raise WorkspaceError(
            f"{path} is damaged (its pages hold {error}, and reading it might never end): do not use this workspace, "
            "take a copy back, or make a new one and import the data again"
        ) from error
    _require_own_objects(db, path)


def _require_own_objects(db: sqlite3.Connection, path: Path) -> None:
    """Raise WorkspaceError unless the tables and indexes are those of schema.py, and nothing else is there.

    A workspace may come from somebody else. A view, a trigger, or an expression in a table or an index makes a plain
    query run for ever, or copies what is deleted. Asked before any table is read.
    """
    own = _own_objects()
    for kind, name, table, sql in db.execute("SELECT type, name, tbl_name, sql FROM sqlite_master").fetchall():
        if kind == "index" and str(name).startswith(f"sqlite_autoindex_{table}_") and sql is None and table in own:
            continue  # of a key
        if kind == "table" and name in own:
            columns, conditions = _table_facts(db, str(name), str(sql))
            if columns <= own[name][0] and conditions == own[name][1]:  # an older version's table lacks columns
                continue
        if kind == "index" and own.get(name) == _plain(str(sql)):
            continue
        db.close()
        raise WorkspaceError(
            f"{path} holds the {kind} {str(name)[:60]!r}, which is not as this software makes it: do not use this "
            "workspace, "
            "or make a new one and import the data again"
        )


@functools.cache
def _own_objects() -> dict[str, object]:
    """Table or index -> what `_require_own_objects` compares: of a database that was made just now."""
    with contextlib.closing(sqlite3.connect(":memory:")) as db:
        db.executescript(SCHEMA)
        found = db.execute("SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
        return {name: _table_facts(db, name, sql) if kind == "table" else _plain(sql) for kind, name, sql in found}


def _table_facts(db: sqlite3.Connection, name: str, sql: str) -> tuple[frozenset, tuple]:
    """Columns (name, type, not null, default, place in the key, computed) and how often each kind of condition stands
    in a table's text.

    The text itself differs between a table that was made and one that was brought up from an older version.
    """
    columns = frozenset(tuple(column[1:]) for column in db.execute(f'PRAGMA table_xinfo("{name}")').fetchall())
    text = _plain(sql)
    words = (
        " check",
        " references",
        " collate",
        " generated",
        " as (",
        "create virtual",
        " unique",
        " without rowid",
        " strict",
    )
    return columns, (*(text.count(word) for word in words), text.count(_SIDE_CHECK))


_SIDE_CHECK = "check (side in ('user', 'item'))"


def _plain(sql: str) -> str:
    """Lower case, comments left out, white space collapsed."""
    lines = (line.partition("--")[0] for line in sql.lower().splitlines())
    return " ".join(" ".join(lines).split())


def _to_write(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=10.0)
    bound_steps(db)
    try:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=NORMAL")
        db.execute(
            "SELECT 1 FROM sqlite_master LIMIT 1"
        )  # makes the index of the log, for which a full disk has no room
    except BaseException:
        db.close()  # its locks would be in the way of the next try
        raise
    return db


def _to_read(path: Path) -> sqlite3.Connection:
    """Of a folder that may not be written, such as a mount in a container: SQLite cannot keep its log there."""
    # A log of a process at work, or killed, counts too.
    how = "mode=ro" if has_log(path) else "immutable=1"
    db = sqlite3.connect(f"{path.absolute().as_uri()}?{how}", uri=True, timeout=10.0)
    bound_steps(db)
    return db


def _without_space(path: Path) -> sqlite3.Connection:
    """On a full disk: SQLite cannot make its index of the log there, and keeps it in memory if nobody else may open the
    file."""
    if not has_log(path):
        return _to_read(path)
    db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=10.0)
    bound_steps(db)
    db.execute("PRAGMA locking_mode=EXCLUSIVE")
    return db


def _is_full(error: sqlite3.OperationalError, root: Path) -> bool:
    """Whether SQLite failed for want of space: it says so, or it could not write and there is none."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return code == sqlite3.SQLITE_FULL or (
        code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN) and shutil.disk_usage(root).free < 1 << 16
    )
