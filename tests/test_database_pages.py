"""A workspace.db whose pages are no trees is refused before a table is read; one whose rows share pages gives no more
than the file holds."""

import sqlite3
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from reclm_lite import database_known, database_pages
from reclm_lite.data import dataset
from reclm_lite.database_pages import find_fault
from reclm_lite.errors import WorkspaceError
from reclm_lite.workspace import Workspace

SIZE = 4096


@pytest.fixture
def path(tmp_path):
    """The database of a workspace of 3,000 users, all of it in one file."""
    with Workspace.create(tmp_path / "ws") as ws:
        with ws.db:
            ws.db.executemany("INSERT INTO users VALUES (?, ?)", ((n, f"reader-{n}") for n in range(3000)))
            ws.db.executemany("INSERT INTO meta VALUES (?, 'x')", ((f"key-{n}",) for n in range(3000)))
        ws.db.execute("PRAGMA journal_mode=DELETE")
    return tmp_path / "ws" / "workspace.db"


def roots_of(path: Path) -> dict[str, int]:
    db = sqlite3.connect(path)
    roots = dict(db.execute("SELECT name, rootpage FROM sqlite_master").fetchall())
    db.close()
    return roots


def shared(content: bytes, root: int, *, depth: int = 6, n_ways: int = 100) -> bytes:
    """The database with a table at `root` of n_ways ** depth leaves, which are all one page."""
    pages = bytearray(content)
    head = 100 if root == 1 else 0
    leaf = root
    while pages[(leaf - 1) * SIZE + (100 if leaf == 1 else 0)] == 5:
        leaf = struct.unpack_from(">I", pages, (leaf - 1) * SIZE + (100 if leaf == 1 else 0) + 8)[0]
    if leaf == root:  # an empty leaf will do
        pages += struct.pack(">BHHHB", 13, 0, 0, SIZE, 0).ljust(SIZE, b"\0")
        leaf = len(pages) // SIZE

    def inner(child: int, head: int) -> bytes:
        page, place = bytearray(SIZE), SIZE
        for n in range(n_ways):
            place -= 5
            page[place : place + 5] = struct.pack(">IB", child, n)
            struct.pack_into(">H", page, head + 12 + 2 * n, place)
        struct.pack_into(">BHHHBI", page, head, 5, 0, n_ways, place, 0, child)
        return bytes(page)

    for _ in range(depth - 1):
        pages += inner(leaf, 0)
        leaf = len(pages) // SIZE
    top = inner(leaf, head)
    pages[(root - 1) * SIZE + head : root * SIZE] = top[head:]
    struct.pack_into(">I", pages, 28, len(pages) // SIZE)
    return bytes(pages)


def log_of(content: bytes) -> bytes:
    """A write-ahead log that holds every page of a database."""
    a, b = 0, 0

    def add(data: bytes) -> bytes:
        nonlocal a, b
        for x, y in struct.iter_unpack("<2I", data):
            a = (a + x + b) & 0xFFFFFFFF
            b = (b + y + a) & 0xFFFFFFFF
        return struct.pack(">2I", a, b)

    content = bytearray(content)
    content[18:20] = b"\2\2"  # of a database that keeps a log
    head = struct.pack(">6I", 0x377F0682, 3007000, SIZE, 0, 1, 2)
    log, n = head + add(head), len(content) // SIZE
    for number in range(1, n + 1):
        page = bytes(content[(number - 1) * SIZE : number * SIZE])
        start = struct.pack(">2I", number, n if number == n else 0)
        log += start + struct.pack(">2I", 1, 2) + add(start + page) + page
    return log


def open_in_a_child(root: Path) -> str:
    """What opening and counting says, in a process that is ended after ten seconds of processor time."""
    code = (
        "import resource, sys; from pathlib import Path; resource.setrlimit(resource.RLIMIT_CPU, (10, 10))\n"
        "from reclm_lite.workspace import Workspace; from reclm_lite.errors import WorkspaceError\n"
        "try: ws = Workspace.open(Path(sys.argv[1])); print(ws.db.execute('SELECT COUNT(*) FROM users').fetchone())\n"
        "except WorkspaceError as error: print(error)"
    )
    return subprocess.run([sys.executable, "-c", code, root], capture_output=True, text=True, timeout=60).stdout


@pytest.mark.parametrize("table", ["users", "meta", "items", "generations", "sqlite_master"])
def test_pages_that_are_reached_in_two_ways_are_refused(path, table):
    path.write_bytes(shared(path.read_bytes(), {"sqlite_master": 1, **roots_of(path)}[table]))
    told = open_in_a_child(path.parent)
    assert "is damaged (its " in told or "cannot be read as a workspace database" in told  # SQLite's word on its tables


@pytest.mark.parametrize("table", ["users", "sqlite_master"])
@pytest.mark.parametrize("may_write", [True, False])
def test_pages_of_the_log_count_too(path, table, may_write, monkeypatch):
    content = path.read_bytes()
    path.with_name("workspace.db-wal").write_bytes(
        log_of(shared(content, {"sqlite_master": 1, **roots_of(path)}[table], depth=3 if may_write else 2))
    )
    path.write_bytes(content[:18] + b"\2\2" + content[20:])
    if not may_write:
        monkeypatch.setattr("reclm_lite.database.may_write", lambda *_: False)
        with pytest.raises(WorkspaceError, match="is damaged|cannot be read"):
            Workspace.open(path.parent)
        return
    told = open_in_a_child(path.parent)
    assert "is damaged (its " in told or "cannot be read as a workspace database" in told


def test_rows_that_share_a_chain_of_pages_are_refused(path):
    """Three rows of 1 MB, of which the last two go on in the chain of the first: a file of 1 MB told of 3 MB."""
    with Workspace.open(path.parent) as ws:
        with ws.db:
            ws.db.executemany("INSERT INTO items VALUES (?, ?, '', '', '', ?)", ((n, f"i{n}", "x") for n in range(3)))
            ws.db.execute("UPDATE items SET description=? WHERE item_idx=0", ("y" * (1 << 20),))
        ws.db.execute("PRAGMA journal_mode=DELETE")
    content = bytearray(path.read_bytes())
    page = (roots_of(path)["items"] - 1) * SIZE
    (at,) = struct.unpack_from(">H", content, page + 8)
    for n in (1, 2):  # the other rows are the first one once more
        struct.pack_into(">H", content, page + 8 + 2 * n, at)
    path.write_bytes(content)
    with pytest.raises(WorkspaceError, match="rows of more bytes than its"):
        Workspace.open(path.parent)


def test_a_root_that_two_tables_have_is_refused(path):
    roots = roots_of(path)
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA writable_schema=ON")
        db.execute("UPDATE sqlite_master SET rootpage=? WHERE name='runs'", (roots["jobs"],))
    db.close()
    with pytest.raises(WorkspaceError, match="reached in two ways"):
        Workspace.open(path.parent)


def test_each_page_is_reached_once_in_databases_of_this_software(path):
    with Workspace.open(path.parent) as ws:
        with ws.db:
            ws.db.executemany("INSERT INTO items VALUES (?, ?, ?, '', '', ?)", _long_items(500))
            ws.db.execute("DELETE FROM meta WHERE key LIKE 'key-%7%'")
        content, roots = ws.db.serialize(), [row[0] for row in ws.db.execute("SELECT rootpage FROM sqlite_master")]
        assert find_fault(content, roots) == ""
    with Workspace.open(path.parent) as ws:
        assert len(dataset.item_texts(ws)) == 500


def test_a_writer_at_work_does_not_hinder_opening(path):
    with Workspace.open(path.parent) as ws:
        ws.db.execute("BEGIN IMMEDIATE")
        ws.db.execute("INSERT INTO meta VALUES ('a', 'b')")
        with Workspace.open(path.parent) as other:
            assert other.get_meta("a") is None
        ws.db.commit()
        with Workspace.open(path.parent) as other:
            assert other.get_meta("a") == "b"


@pytest.mark.parametrize("cut", [0, 15, 100, 5000])
def test_a_part_of_a_database_is_a_sentence(path, cut):
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(WorkspaceError):
        Workspace.open(path.parent)


def test_free_pages_that_are_in_use_are_refused(path):
    roots = roots_of(path)
    with sqlite3.connect(path) as db:
        db.execute("DELETE FROM users")
    db.close()
    with Workspace.open(path.parent) as ws:
        ws.db.execute("PRAGMA journal_mode=DELETE")
    content = bytearray(path.read_bytes())
    (trunk,) = struct.unpack_from(">I", content, 32)
    assert trunk
    struct.pack_into(">2I", content, (trunk - 1) * SIZE + 4, 1, roots["meta"])
    path.write_bytes(content)
    with pytest.raises(WorkspaceError, match="a free page that is in use"):
        Workspace.open(path.parent)
    struct.pack_into(">2I", content, (trunk - 1) * SIZE, trunk, 0)  # a list that goes round
    path.write_bytes(content)
    with pytest.raises(WorkspaceError, match="a free page that is in use"):
        Workspace.open(path.parent)


def test_a_large_database_is_looked_at_again_only_when_another_has_touched_it(path, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(database_known, "LARGE_BYTES", 1)
    looked = []
    monkeypatch.setattr(database_pages, "find_fault", lambda *a: looked.append(a) or find_fault(*a))
    Workspace.open(path.parent).close()
    assert len(looked) == 1
    with Workspace.open(path.parent) as ws, ws.db:
        ws.db.execute("INSERT INTO meta VALUES ('a', 'b')")
    Workspace.open(path.parent).close()
    assert len(looked) == 1
    path.write_bytes(shared(path.read_bytes(), roots_of(path)["meta"], depth=2))
    with pytest.raises(WorkspaceError, match="reached in two ways"):
        Workspace.open(path.parent)


def _long_items(n: int) -> list[tuple[int, str, str, str]]:
    return [(number, f"i{number}", f"Title {number}", "words " * (number % 40) * 100) for number in range(n)]
