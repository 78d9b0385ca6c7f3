"""Export and import of profiles as files, keyed by the ids of users and items.

Written are JSON lines or CSV with the columns of `COLUMNS`; read are these, other files with at least `id` and
`profile`, and the published CSV files (`UID,Input,Response`). An import is one transaction: a line that cannot be
imported stops all of it,
unless it is to be left out. Left out: numbers of users and items (they differ between workspaces), and generations.
"""

import contextlib
import csv
import datetime as dt
import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import BinaryIO

from ..csv_cells import marked
from ..data.importers.files import read_source
from ..errors import InputError, ProfileFormatError
from ..files import atomic_path
from ..printable import json_text
from ..prompts.answer import format_profile, parse_profile
from ..prompts.build import HISTORY, NEIGHBORS, TEXT
from ..workspace import Workspace, now
from .eta import counted
from .exchange_format import COLUMNS, CSV, JSONL, RECLM, BadRow, format_of, read_rows
from .store import SIDES, one_side

_N_SHOWN = 5
_MAX_SOURCE_CHARS = 500
_MAX_TIME_CHARS = 40


@dataclass(frozen=True)
class BadLine:
    """A line that cannot be imported. line: counted from 1, the header too; of a row of several lines, the first."""

    line: int
    reason: str


@dataclass
class ImportSummary:
    """Counts of lines. n_unchanged: the same profile was stored already; n_kept: edited by hand here, so kept;
    n_invalid: marked as invalid by the file; n_other_side: of the side that was not requested.
    """

    n_imported: int = 0
    n_unchanged: int = 0
    n_kept: int = 0
    n_invalid: int = 0
    n_other_side: int = 0
    n_bad: int = 0
    bad: list[BadLine] = field(default_factory=list)  # the first few

    def as_dict(self) -> dict:
        return asdict(self)

    def sentence(self) -> str:
        parts = [f"Imported {counted(self.n_imported, 'profile')}"]
        for count, what in (
            (self.n_unchanged, "unchanged"),
            (self.n_kept, "kept because they were edited by hand here (--overwrite replaces them)"),
            (self.n_invalid, "skipped because the file marks them as invalid"),
            (self.n_other_side, "of the other side skipped"),
            (self.n_bad, f"skipped ({_first(self.bad, self.n_bad)})"),
        ):
            if count:
                parts.append(f"{count:,} {what}")
        return "; ".join(parts) + "."


# -- out ---------------------------------------------------------------------------


def export_profiles(ws: Workspace, handle: BinaryIO, sides: tuple[str, ...] = SIDES, form: str = JSONL) -> int:
    """Write the profiles of `sides` ("user", "item") by ascending index, invalid ones too; returns how many.

    One row at a time, all of one moment, whatever another process writes meanwhile.
    """
    n, text = 0, io.TextIOWrapper(handle, encoding="utf-8", errors="replace", newline="", write_through=False)
    writer = csv.writer(text, lineterminator="\n")
    quoting = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)  # the other one leaves a bare \r as it is
    if form == CSV:
        writer.writerow(COLUMNS)
    is_outer = ws.db.in_transaction
    try:
        if not is_outer:
            ws.db.execute("BEGIN")
        for side in map(one_side, sides):
            rows = ws.db.execute(
                f"SELECT side, {side}_id, text, status, source, reason, basis, created FROM profiles "
                f"JOIN {side}s ON {side}_idx = idx WHERE side=? ORDER BY idx",
                (side,),
            )
            for row in rows:
                if form == CSV:
                    cells = [marked(cell) for cell in row]  # a spreadsheet shows what would be a formula as text
                    has_return = any(isinstance(cell, str) and "\r" in cell for cell in cells)
                    (quoting if has_return else writer).writerow(cells)
                else:
                    text.write(json_text(dict(zip(COLUMNS, row, strict=True))) + "\n")
                n += 1
        text.flush()
    finally:
        if not is_outer:
            ws.db.rollback()
        with contextlib.suppress(ValueError, OSError):
            text.detach()
    return n


def export_to_file(
    ws: Workspace, path: Path, sides: tuple[str, ...] = SIDES, form: str = JSONL, *, force: bool = False
) -> int:
    """`export_profiles` into a file that appears whole or not at all. Raises InputError if it is there and not
    `force`."""
    if path.is_dir() or not path.parent.is_dir():
        raise InputError(f"the folder of {path} does not exist: give another file")
    if path.is_file() and not force:
        raise InputError(f"{path} exists: give another file, or add --force to replace it")
    with atomic_path(path, named_by_user=True) as temporary, open(temporary, "wb") as handle:
        return export_profiles(ws, handle, sides, form)


# -- in ----------------------------------------------------------------------------


def import_profiles(
    ws: Workspace,
    path: Path,
    *,
    side: str | None = None,
    form: str | None = None,
    overwrite: bool = False,
    skip_invalid: bool = False,
) -> ImportSummary:
    """Import the profiles of a file, checked and normalized, all or nothing. Models never overwrite them.

    side: the side of lines without one; of other lines, only this side is imported. overwrite: also replace profiles
    edited by hand here. skip_invalid: skip lines that cannot be imported. Raises InputError, which names the first of
    those lines.
    """
    side = side and one_side(side)
    form = format_of(path, form)
    if form == RECLM and side is None:
        raise InputError(
            "expected --side users or --side items with the format reclm, found none: its files have no column for "
            "the side"
        )
    read_source(path)
    with ws.writing():
        taking = _Taking(ws, path.name, side, overwrite)
        try:
            ws.db.execute("BEGIN IMMEDIATE")
            n_lines = 0
            for n_lines, (line, row) in enumerate(read_rows(path, form), 1):  # noqa: B007  (counted for what follows the loop)
                try:
                    taking.take(line, row)
                except (BadRow, ProfileFormatError) as error:
                    taking.note(line, str(error).removesuffix("; generate the profile again"))
            summary = taking.summary
            if not n_lines:
                raise InputError(f"{path} contains no profiles: expected at least one row")
            if summary.n_bad and not skip_invalid:
                raise InputError(
                    f"{path}: {summary.n_bad:,} of {counted(n_lines, 'row')} cannot be imported "
                    f"({_first(summary.bad, summary.n_bad)}); nothing was imported: fix them, or skip them with "
                    "--skip-invalid"
                )
            if summary.n_bad == n_lines:
                raise InputError(
                    f"{path}: none of its {counted(n_lines, 'row')} can be imported "
                    f"({_first(summary.bad, summary.n_bad)})"
                )
            ws.db.commit()
        except BaseException:
            ws.db.rollback()
            raise
    return summary


def read_profiles(
    ws: Workspace, path: Path, *, side: str | None = None, form: str | None = None
) -> tuple[dict[tuple[str, int], str], int]:
    """({(side, index): text}, how many rows were passed over) of a file, without storing anything; texts as they stand
    there.

    Passed over are rows of people and items that the workspace does not know, that came before, without a text, and
    invalid ones.
    """
    side = side and one_side(side)
    form = format_of(path, form)
    if form == RECLM and side is None:
        raise InputError("expected a side with the format reclm, found none: its files have no column for the side")
    read_source(path)
    taking, found, n_bad = _Taking(ws, path.name, side, False), {}, 0
    for _, row in read_rows(path, form):
        try:
            if isinstance(row, BadRow):
                raise row
            one = taking._side(row)
            key = one, taking._idx(one, row)
            if not _text(row, "profile") or _text(row, "status") == "invalid" or key in found:
                raise BadRow("no text")
            if side in (None, one):
                found[key] = _text(row, "profile")
        except BadRow:
            n_bad += 1
    return found, n_bad


class _Taking:
    """One import, within its transaction."""

    def __init__(self, ws: Workspace, name: str, side: str | None, overwrite: bool):
        self.ws, self.name, self.side, self.overwrite = ws, name, side, overwrite
        self.summary = ImportSummary()
        self._line_of: dict[tuple[str, int], int] = {}

    def note(self, line: int, reason: str) -> None:
        self.summary.n_bad += 1
        if len(self.summary.bad) < _N_SHOWN:
            self.summary.bad.append(BadLine(line, reason))

    def take(self, line: int, row: Mapping[str, object] | BadRow) -> None:
        if isinstance(row, BadRow):
            raise row
        summary = self.summary
        side = self._side(row)
        if self.side is not None and side != self.side:
            summary.n_other_side += 1
            return
        idx = self._idx(side, row)
        if (side, idx) in self._line_of:
            raise BadRow(f"{side} {row['id']!r} is already in line {self._line_of[side, idx]}")
        self._line_of[side, idx] = line
        status = _text(row, "status")
        if status == "invalid":
            summary.n_invalid += 1
            return
        if "profile" not in row or not isinstance(row["profile"], str):
            raise BadRow("expected a text under 'profile', found none")
        self._put(
            side,
            idx,
            format_profile(parse_profile(row["profile"])),
            "edited" if status == "edited" else "imported",
            row,
        )

    def _side(self, row: Mapping[str, object]) -> str:
        found = _text(row, "side") or self.side
        if not found:
            raise BadRow("expected a side, found none: add a column, or --side users or --side items")
        if found.removesuffix("s") not in SIDES:
            raise BadRow(f"expected side 'user' or 'item', found {found[:40]!r}")
        return found.removesuffix("s")

    def _idx(self, side: str, row: Mapping[str, object]) -> int:
        ident = row.get("id")
        if type(ident) is int:
            ident = str(ident)
        if not isinstance(ident, str) or not ident:
            raise BadRow("expected an id under 'id', found none")
        found = self.ws.db.execute(f"SELECT {side}_idx FROM {side}s WHERE {side}_id=?", (_storable(ident),)).fetchone()
        if found is None:
            raise BadRow(f"the workspace has no {side} {ident[:80]!r}")
        return found[0]

    def _put(self, side: str, idx: int, text: str, status: str, row: Mapping[str, object]) -> None:
        summary, db = self.summary, self.ws.db
        known = db.execute("SELECT status, text FROM profiles WHERE side=? AND idx=?", (side, idx)).fetchone()
        # The same text, of a model or by hand, stays what it is: a file that comes home changes nothing.
        if known and known[1] == text and (status == "imported" or known[0] == status):
            summary.n_unchanged += 1
            return
        if known and known[0] == "edited" and not self.overwrite:
            summary.n_kept += 1
            return
        source = _storable(_text(row, "source"))[:_MAX_SOURCE_CHARS] or f"imported from {self.name}"
        basis, created = _text(row, "basis"), _text(row, "created")
        db.execute(
            "INSERT OR REPLACE INTO profiles (side, idx, status, text, reason, source, prompt_key, created, basis, "
            "history_key, data_key) "
            "VALUES (?, ?, ?, ?, '', ?, '', ?, ?, '', '')",
            (
                side,
                idx,
                status,
                _storable(text),
                source,
                created if _is_time(created) else now(),
                basis if basis in (HISTORY, NEIGHBORS, TEXT) else "",
            ),
        )
        summary.n_imported += 1


def _text(row: Mapping[str, object], column: str) -> str:
    """A column's text on one line, or an empty text where it has none."""
    value = row.get(column)
    return " ".join(value.split()) if isinstance(value, str) else ""


def _storable(text: str) -> str:
    """Without lone surrogates, which JSON may hold and no file may."""
    return text.encode("utf-8", "replace").decode()


def _is_time(text: str) -> bool:
    try:
        dt.datetime.fromisoformat(text[:_MAX_TIME_CHARS])
    except ValueError:
        return False
    return len(text) <= _MAX_TIME_CHARS


def _first(bad: list[BadLine], n: int) -> str:
    told = "; ".join(f"line {one.line}: {one.reason}" for one in bad)
    return told + (f"; and {n - len(bad):,} more" if n > len(bad) else "")
