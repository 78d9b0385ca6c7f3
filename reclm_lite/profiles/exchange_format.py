"""Files of profiles: their formats, and reading them row by row.

JSON lines or CSV with the columns of `COLUMNS` (at least `id` and `profile`), and the published CSV files
(`UID,Input,Response`). Left out: what is done with the rows (`exchange`).
"""

import codecs
import csv
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from ..csv_cells import unmarked
from ..errors import InputError

COLUMNS = ("side", "id", "profile", "status", "source", "reason", "basis", "created")
JSONL, CSV, RECLM = "jsonl", "csv", "reclm"
EXPORT_FORMATS, IMPORT_FORMATS = (JSONL, CSV), (JSONL, CSV, RECLM)
_BY_SUFFIX = {".jsonl": JSONL, ".ndjson": JSONL, ".csv": CSV}
# Columns of the published files, as those of ours.
_RECLM_COLUMNS = {"UID": "id", "Response": "profile"}


def format_of(path: Path | None, asked: str | None) -> str:
    """'jsonl', 'csv' or 'reclm': as asked for, else by the file's ending; JSON lines without a file."""
    if asked is not None or path is None:
        return asked or JSONL
    if path.suffix.lower() not in _BY_SUFFIX:
        raise InputError(
            f"expected a file that ends in {', '.join(_BY_SUFFIX)}, found {path}: rename it, or give its --format"
        )
    return _BY_SUFFIX[path.suffix.lower()]


class BadRow(Exception):
    """Why a row cannot be imported."""


def read_rows(path: Path, form: str) -> Iterator[tuple[int, Mapping[str, object] | BadRow]]:
    """(line, columns) of every row; a row that cannot be read comes as `BadRow`."""
    if form == JSONL:
        yield from _json_rows(path)
        return
    with open(path, encoding="utf-8-sig", newline="") as handle:
        reader = csv.reader(handle, strict=True)
        unmark = unmarked if form == CSV else str  # the published files have no marks
        try:
            header = next(reader, [])
            wanted = list(_RECLM_COLUMNS) if form == RECLM else ["id", "profile"]
            _check_header(path, wanted, header)
            if form == RECLM:  # a column of ours beside theirs means nothing there
                header = [_RECLM_COLUMNS.get(name, f"their {name}") for name in header]
            line = reader.line_num + 1
            for cells in reader:
                if len(cells) == len(header):
                    yield line, dict(zip(header, map(unmark, cells), strict=True))
                elif cells:
                    yield line, BadRow(f"expected {len(header)} columns, found {len(cells)}")
                line = reader.line_num + 1
        except csv.Error as error:
            raise InputError(
                f"{path}, line {reader.line_num}: not CSV ({error}); nothing was imported: fix the file"
            ) from error


def _check_header(path: Path, wanted: list[str], header: list[str]) -> None:
    missing = [name for name in wanted if name not in header]
    if missing:
        raise InputError(
            f"{path}: expected the columns {' and '.join(wanted)}, found {', '.join(header)[:200] or 'none'}: "
            f"give the file a header line with {' and '.join(missing)}"
        )
    if twice := sorted(name for name, count in Counter(header).items() if count > 1):
        raise InputError(f"{path}: expected each column once, found {', '.join(twice)[:200]} twice: remove one of them")


def _json_rows(path: Path) -> Iterator[tuple[int, Mapping[str, object] | BadRow]]:
    with open(path, "rb") as handle:
        for number, line in enumerate(handle, 1):
            line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                yield number, BadRow(f"not JSON ({getattr(error, 'msg', None) or str(error)[:80]})")
                continue
            yield (
                number,
                row
                if isinstance(row, dict)
                else BadRow(f"expected an object in braces, found {line[:40].decode('utf-8', 'replace')}"),
            )
