"""Whether the pages of `workspace.db` form trees, so that whatever SQLite does with it takes time by its size.

A database is b-trees of pages: a page names its children by number. SQLite follows these numbers wherever they lead. In
a file from somebody else twenty pages of which each names the next one a hundred times are a table of 100^20 rows, and
a query, a count or a deletion never ends. Rows that do not fit into a page go on in a chain of further pages, and in
such a file a thousand rows share one chain. So before anything is read, every page must be reached once, and the rows
must have no more bytes than the file.

Left out: what stands in the rows.
"""

import mmap
import sqlite3
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from .database_known import is_known, remember

# Steps of SQLite's virtual machine until the pages have been looked at: it reads a schema of fifteen lines meanwhile.
_MAX_STEPS = 1_000_000
_INNER = (2, 5)  # kinds of pages that have children: of an index, of a table
_INNER_TABLE = 5  # the one kind whose cells are no rows
_KINDS = (2, 5, 10, 13)
_N_TOGETHER = 1024  # pages


class EndlessError(ValueError):
    """The pages are no trees; the text says what was found."""


def bound_steps(db: sqlite3.Connection) -> None:
    """Have SQLite stop ("interrupted") after what reading an ordinary schema takes, until `require_trees` is done."""
    db.set_progress_handler(lambda: 1, _MAX_STEPS)


def require_trees(db: sqlite3.Connection, path: Path, *, may_write: bool) -> None:
    """Raise EndlessError where a page is reached twice. Ends what `bound_steps` began."""
    is_whole = not has_log(path)  # whether all is in the file, nothing in its log
    if is_whole and is_known(path):
        db.set_progress_handler(None, 0)
        return
    if not is_whole and may_write:
        _, n_frames, n_moved = db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        is_whole = n_frames == n_moved
    db.execute("BEGIN")  # holds off whoever would move pages meanwhile
    try:
        found = db.execute("SELECT rootpage FROM sqlite_master").fetchall()
        roots = [root for (root,) in found if root]  # views and triggers have none, and are refused afterwards
        db.set_progress_handler(None, 0)
        # What is in the log, or was moved by another process at this moment, SQLite's own view of it tells.
        if (not is_whole or _fault_of_file(path, roots)) and (fault := find_fault(db.serialize(), roots)):
            raise EndlessError(fault)
        if is_whole:
            remember(path)
    finally:
        db.rollback()


def has_log(path: Path) -> bool:
    """Whether a database has a log (-wal) with something in it."""
    log_file = path.with_name(f"{path.name}-wal")
    return log_file.exists() and log_file.stat().st_size > 0


def _fault_of_file(path: Path, roots: Iterable[int]) -> str:
    with open(path, "rb") as file:
        if not path.stat().st_size:
            return "no page"
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return find_fault(content, roots)


def find_fault(content: bytes | mmap.mmap, roots: Iterable[int]) -> str:
    """What keeps the pages from being trees of no more than they hold, or an empty text. roots: the numbers of the
    tables' and indexes' first pages; that of the schema is page 1."""
    size = int.from_bytes(content[16:18], "big")
    size = 65536 if size == 1 else size
    if size < 512 or size & (size - 1) or len(content) < size:
        return f"pages of {size} bytes"
    n_pages, n_bytes = len(content) // size, 0
    reached = np.zeros(n_pages + 1, bool)
    level = np.array([1, *(root if type(root) is int and 0 < root <= n_pages else 0 for root in roots)], np.int64)
    data = np.frombuffer(content, np.uint8)
    try:
        while level.size:
            if level.min() < 1 or level.max() > n_pages:
                return "a page that is not in the file"
            again = reached[level]
            reached[level] = True
            if again.any() or len(np.unique(level)) < len(level):
                return "a page that is reached in two ways"
            children = [level[:0]]
            for start in range(0, len(level), _N_TOGETHER):
                below, more = _look_at(data, level[start : start + _N_TOGETHER], size)
                children.append(below)
                n_bytes += more
                if n_bytes > len(content):  # rows that share a chain of overflow pages
                    return f"rows of more bytes than its {len(content):,}"
            level = np.concatenate(children)
        return _fault_of_free_pages(data, reached, size)
    except IndexError:
        return "a cell that is not in its page"
    finally:
        del data  # else the file could not be closed


def _fault_of_free_pages(data: np.ndarray, reached: np.ndarray, size: int) -> str:
    """A free page that is in use, or free twice: SQLite would write over it, and what were trees would be none."""
    (trunk,) = _number(data, np.array([32]), 4).tolist()
    while trunk:
        if not trunk < len(reached):
            return "a free page that is not in the file"
        start = (trunk - 1) * size
        following, n_leaves = _number(data, np.array([start, start + 4]), 4).tolist()
        if n_leaves > size // 4 - 2:
            return "a list of free pages that is longer than its page"
        pages = np.append(_number(data, start + 8 + 4 * np.arange(n_leaves), 4), trunk)
        if pages.min() < 1 or pages.max() >= len(reached):
            return "a free page that is not in the file"
        if reached[pages].any() or len(np.unique(pages)) < len(pages):
            return "a free page that is in use"
        reached[pages] = True
        trunk = following
    return ""


def _look_at(data: np.ndarray, pages: np.ndarray, size: int) -> tuple[np.ndarray, int]:
    """(the numbers of the pages' children, the bytes of all rows that stand in the pages). Raises IndexError for a cell
    outside its page."""
    start = (pages - 1) * size
    head = start + np.where(pages == 1, 100, 0)
    kind = data[head]
    is_page, is_inner = np.isin(kind, _KINDS), np.isin(kind, _INNER)
    n_cells = np.where(is_page, _number(data, head + 3, 2), 0)  # of other kinds, SQLite says that they are damaged
    if (n_cells > (size - 8) // 6).any():
        raise IndexError
    page = np.repeat(np.arange(len(pages)), n_cells)
    place = np.arange(len(page)) - np.repeat(np.cumsum(n_cells) - n_cells, n_cells)
    pointers = head[page] + np.where(is_inner[page], 12, 8) + 2 * place
    if (pointers + 2 > start[page] + size).any():
        raise IndexError
    cells = start[page] + (_number(data, pointers, 2) & (size - 1))  # as SQLite does
    if (cells + 4 > start[page] + size).any():
        raise IndexError
    inner = is_inner[page]
    children = np.concatenate([_number(data, head[is_inner] + 8, 4), _number(data, cells[inner], 4)])
    with_rows = kind[page] != _INNER_TABLE
    return children, _sum_of_lengths(data, (cells + np.where(inner, 4, 0))[with_rows])


def _number(data: np.ndarray, places: np.ndarray, n_bytes: int) -> np.ndarray:
    """int64: the big-endian numbers at `places`."""
    return sum(data[places + n].astype(np.int64) << 8 * (n_bytes - 1 - n) for n in range(n_bytes))


def _sum_of_lengths(data: np.ndarray, places: np.ndarray) -> int:
    """The sum of the numbers of variable length at `places`; of one that takes more than five bytes, its beginning."""
    total = 0
    value = np.zeros(len(places), np.int64)
    for n in range(5):
        byte = data[np.minimum(places + n, len(data) - 1)]
        value = value << 7 | (byte & 127)
        total += int(value[byte < 128].sum())
        value, places = value[byte >= 128], places[byte >= 128]
        if not len(places):
            break
    return total + int(value.sum())
