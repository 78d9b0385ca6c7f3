"""A DuckDB connection that can open only named files and one folder, without extensions and with locked settings."""

import os
from collections.abc import Sequence
from pathlib import Path

from .sql import quoted


def connect(folder: Path, readable: Sequence[str], name: str, **settings: object):
    """Connect to a DuckDB that can access `folder` and the files `readable`, and nothing else.

    name: of the database file in `folder`; if empty, the database is in memory.
    """
    import duckdb

    db = duckdb.connect(
        str(folder / name) if name else ":memory:",
        config=settings
        | {"temp_directory": str(folder), "autoinstall_known_extensions": False, "autoload_known_extensions": False},
    )
    db.execute("SET enable_progress_bar=false")  # it would be printed among the results
    # Older versions check the opened name, which is a link in the folder; newer ones check the link's target.
    db.execute(f"SET allowed_directories=[{quoted(str(folder))}]")
    db.execute(f"SET allowed_paths=[{', '.join(map(quoted, readable))}]")
    db.execute("SET enable_external_access=false")
    db.execute("SET lock_configuration=true")
    return db


def real_path(path: Path) -> Path:
    """The path with links resolved; for a loop of links any path (where `Path.resolve` raises RuntimeError)."""
    return Path(os.path.realpath(path))


def is_plain(path: Path) -> bool:
    """Whether DuckDB can open this path: UTF-8 without backslashes, which it treats as separators."""
    try:
        return "\\" not in str(path) and bool(str(path).encode())
    except UnicodeEncodeError:
        return False
