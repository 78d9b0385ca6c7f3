"""A DuckDB that can open the named files and one folder only, loads no extension and accepts no change of settings."""

import os
from collections.abc import Sequence
from pathlib import Path

from .sql import quoted


def connect(folder: Path, readable: Sequence[str], name: str, **settings: object):
    """A DuckDB that reads `folder` and the files `readable`, and nothing else.

    name: of the database file in `folder`; if empty, the database is in memory.
    """
    import duckdb

    db = duckdb.connect(
        str(folder / name) if name else ":memory:",
        config=settings
        | {"temp_directory": str(folder), "autoinstall_known_extensions": False, "autoload_known_extensions": False},
    )
    db.execute("SET enable_progress_bar=false")  # it would stand among the results
    # Older versions compare the name that is opened, a link in the folder; newer ones the file that it leads to.
    db.execute(f"SET allowed_directories=[{quoted(str(folder))}]")
    db.execute(f"SET allowed_paths=[{', '.join(map(quoted, readable))}]")
    db.execute("SET enable_external_access=false")
    db.execute("SET lock_configuration=true")
    return db


def real_path(path: Path) -> Path:
    """The path without links; of a loop of links, some path (`Path.resolve` raises RuntimeError there)."""
    return Path(os.path.realpath(path))


def is_plain(path: Path) -> bool:
    """Can DuckDB be told of this path? Not if it is not UTF-8; and it takes a backslash for a separator of folders."""
    try:
        return "\\" not in str(path) and bool(str(path).encode())
    except UnicodeEncodeError:
        return False
