"""Checks the size of a Parquet file by its footer, before any page is read.

A few bytes of a Parquet file can encode any number of rows, columns or zeros.
"""

import struct
from collections.abc import Iterator
from pathlib import Path

from ...errors import InputError
from .headers import check_names
from .limits import ROW_BYTES, Limits
from .parquet_pages import check_pages
from .sql import quoted

# Real footers take some hundred bytes per column and row group; in DuckDB's memory they are several times as large.
_MAX_FOOTER_BYTES = 32 << 20
# Schema nodes per column: a list of structs of lists takes about ten.
_MAX_NODES_PER_COLUMN = 50


def check_parquet(db, path: Path, link: Path, n_bytes: int, limits: Limits) -> tuple[str, ...]:
    """The names of the columns. Raises InputError unless it is a Parquet file that unpacks within `limits`."""
    _check_footer(path, n_bytes)
    file = quoted(str(link))
    (n_nodes,) = db.execute(f"SELECT count(*) FROM parquet_schema({file})").fetchone()
    if n_nodes > 1 + _MAX_NODES_PER_COLUMN * limits.columns:
        raise InputError(
            f"{path}: found {n_nodes - 1:,} columns, nested ones among them, expected at most {limits.columns:,}; "
            "remove columns that are not needed, or raise the limit with --limit columns=N"
        )
    rows, unpacked = db.execute(
        f"SELECT (SELECT sum(num_rows::HUGEINT) FROM parquet_file_metadata({file})), "
        f"(SELECT sum(greatest(total_uncompressed_size, 0)::HUGEINT) FROM parquet_metadata({file}))"
    ).fetchone()
    codecs = {
        row[0] for row in db.execute(f"SELECT DISTINCT upper(compression) FROM parquet_metadata({file})").fetchall()
    }
    if (
        "BROTLI" in codecs
    ):  # DuckDB's decoder writes out of bounds (CVE-2026-111497), and no release is known to be without it
        raise InputError(f"{path} is compressed by Brotli, which cannot be read safely: export it with zstd or snappy")
    most = limits.unpacked_bytes(n_bytes)
    if not 0 <= (rows or 0) * ROW_BYTES <= most or (unpacked or 0) > most:
        raise InputError(
            f"{path} claims to contain {rows or 0:,} rows of {unpacked or 0:,} bytes, too much for a file of "
            f"{n_bytes:,}: refused as a decompression bomb; export it again, or raise the limit with --limit "
            "unpacked-ratio=N"
        )
    chunks = db.execute(
        "SELECT CASE WHEN dictionary_page_offset > 0 THEN least(dictionary_page_offset, data_page_offset) ELSE "
        "data_page_offset END, "
        f"num_values FROM parquet_metadata({file})"
    )
    check_pages(path, _rows(chunks), most)
    nodes = db.execute(f"SELECT name, coalesce(num_children, 0) FROM parquet_schema({file})").fetchall()
    # The names in the file; read_parquet would rename duplicate and empty names.
    check_names(str(path), [name or f"column {number}" for number, name in enumerate(_top_names(nodes), 1)], limits)
    names = [row[0] for row in db.execute(f"DESCRIBE SELECT * FROM read_parquet({file})").fetchall()]
    return check_names(str(path), names, limits)


def _rows(cursor) -> Iterator[tuple]:
    while rows := cursor.fetchmany(10_000):
        yield from rows


def _top_names(nodes: list[tuple[str, int]]) -> list[str]:
    """Names of the columns. nodes: the schema's (name, number of children) in depth-first order, root first."""
    names, inside = [], 0
    for name, n_children in nodes[1:]:
        if inside:
            inside -= 1
        else:
            names.append(name)
        inside += n_children
    return names


def _check_footer(path: Path, n_bytes: int) -> None:
    with open(path, "rb") as handle:
        head = handle.read(4)
        handle.seek(max(n_bytes - 8, 0))
        tail = handle.read(8)
    if n_bytes < 12 or head != b"PAR1" or tail[4:] != b"PAR1":
        raise InputError(f"{path} is not a whole Parquet file (it does not begin and end with PAR1): export it again")
    (footer_bytes,) = struct.unpack("<I", tail[:4])
    if footer_bytes > min(n_bytes - 12, _MAX_FOOTER_BYTES):
        raise InputError(
            f"{path} is not a whole Parquet file (a footer of {footer_bytes:,} bytes; expected at most "
            f"{_MAX_FOOTER_BYTES:,}, "
            f"in a file of {n_bytes:,}): export it again"
        )
