"""Column names from a CSV header or the first JSON object, and the search for an invalid line of JSON.

Call these after `files.read_source` has checked the length of every line.
"""

import csv
import gzip
import io
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

from ...errors import InputError
from .limits import Limits, cut


def open_text(path: Path) -> IO[str]:
    """Open a UTF-8 text file, decompressed if its name ends in `.gz`, without its byte order mark."""
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return open(path, encoding="utf-8-sig", newline="")


def check_names(where: str, names: Sequence[str], limits: Limits) -> tuple[str, ...]:
    """`names`. Raises InputError for too many, for duplicates (ignoring case), or for a NUL character."""
    if len(names) > limits.columns:
        raise InputError(
            f"{where}: found {len(names):,} columns, expected at most {limits.columns:,}; leave out what the import "
            "does not need, "
            "or raise the limit with --limit columns=N"
        )
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(name.casefold(), name)
        if other is not name:
            if other == name:
                raise InputError(f"{where}: the column {cut(name)!r} comes twice; give every column its own name")
            raise InputError(
                f"{where}: the columns {cut(other)!r} and {cut(name)!r} differ only in upper and lower case; rename one"
            )
        if not name or "\0" in name or any("\ud800" <= letter <= "\udfff" for letter in name):
            raise InputError(f"{where}: the column name {cut(name)!r} is empty or contains a NUL character; rename it")
    return tuple(names)


def csv_header(path: Path, delimiter: str, quote: str, limits: Limits) -> tuple[str, ...]:
    """The names in the first line; an empty name becomes `column N`."""
    with open_text(path) as handle:
        # A quoted name may span several lines, so the bound on line length is not enough.
        head = handle.read(limits.line_bytes + 1)
    quoting = {"quotechar": quote} if quote else {"quoting": csv.QUOTE_NONE}
    names: list[str] = []
    try:
        reader = csv.reader(io.StringIO(head, newline=""), delimiter=delimiter, strict=True, **quoting)
        names = next(reader, [])
    except csv.Error as error:
        raise InputError(f"{path}, line 1: the header cannot be read ({error}); fix it") from error
    if not any(names):
        raise InputError(f"{path}, line 1: expected column names, found an empty line; add a header")
    # DuckDB loses rows if the header contains line breaks of another kind than the file's line ends.
    lines = list(itertools.islice(io.StringIO(head, newline=""), reader.line_num))
    if len({line[len(line.rstrip("\r\n")) :] for line in lines}) > 1:
        raise InputError(
            f"{path}, line 1: a column name contains a line break of another kind than the line endings of the file; "
            "rename it"
        )
    return check_names(f"{path}, line 1", [name or f"column {number}" for number, name in enumerate(names, 1)], limits)


def json_keys(path: Path, limits: Limits) -> tuple[str, ...]:
    """The keys of the first line's object."""
    with open_text(path) as handle:
        number, line = next(((number, line) for number, line in enumerate(handle, 1) if line.strip()), (1, ""))
    found = _parsed(path, number, line)
    if not isinstance(found, dict) or not found:
        raise InputError(
            f"{path}, line {number}: expected a JSON object, found {type(found).__name__}; write one object per line"
        )
    return check_names(f"{path}, line {number}", list(found), limits)


def bad_json_line(path: Path) -> InputError:
    """The error for the first line that is not a JSON object, since DuckDB reports other line numbers."""
    with open_text(path) as handle:
        for number, line in enumerate(handle, 1):
            try:
                if line.strip() and not isinstance(_parsed(path, number, line, _no_key_twice), dict):
                    return InputError(f"{path}, line {number}: expected a JSON object; write one object per line")
            except InputError as error:
                return error
    return InputError(f"{path}: not valid JSON lines (perhaps a broken \\u escape); write one object per line")


def _no_key_twice(pairs: list[tuple[str, object]]) -> dict:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key occurs twice in an object")
    return found


def _parsed(path: Path, number: int, line: str, object_of: Callable = dict) -> object:
    try:
        # Numbers stay text, because Python refuses to parse very long ones.
        return json.loads(line, parse_int=str, parse_float=str, object_pairs_hook=object_of)
    except RecursionError as error:
        raise InputError(f"{path}, line {number}: the JSON object is nested too deeply; write flat objects") from error
    except ValueError as error:
        raise InputError(
            f"{path}, line {number}: not a valid JSON object ({error}); write one object per line"
        ) from error
