"""A temporary DuckDB database in which tables of text become interactions of integers.

An importer copies what it reads into three tables, all text; `Staging.imported` filters,
drops repeats, gives every user and item an index, and hands only integers to Python. DuckDB
spills to the temporary folder (`$TMPDIR`), so memory stays bounded whatever the file's size.

    raw(user, item, time, rating, part)   one row per interaction; `part` is GIVEN_* or NULL
    texts(item, title, category, subcategory, description)
    listed_users(user)                    users that a format lists apart from interactions
"""

import contextlib
import csv
import gzip
import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...errors import InputError, WorkspaceError
from ...types import ItemText
from ..dataset import Imported
from .files import SourceFile, read_source

_FETCH_ROWS = 50_000
_MEMORY_LIMIT = "768MB"
# DuckDB takes buffers of sixteen such lines.
_MAX_LINE_BYTES = 4 << 20


def quoted(text: str) -> str:
    """An SQL string literal."""
    return "'" + text.replace("'", "''") + "'"


def ident(name: str) -> str:
    """An SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


@dataclass(frozen=True)
class Reader:
    """A file that DuckDB can scan: an SQL table expression with text columns."""

    sql: str
    path: Path
    columns: tuple[str, ...]

    def require(self, *names: str | None) -> None:
        """Raise InputError, listing the columns found, unless the file has all of `names`."""
        missing = [name for name in names if name is not None and name not in self.columns]
        if missing:
            raise InputError(
                f"{self.path} has no column {', '.join(map(repr, missing))}: "
                f"found {', '.join(map(repr, self.columns))}; name the right column"
            )


class Staging:
    """The temporary database. Use as a context manager; `close()` removes it."""

    def __init__(self, *, memory_limit: str = _MEMORY_LIMIT, threads: int = 2):
        import duckdb

        self._error = duckdb.Error
        self._folder = Path(tempfile.mkdtemp(prefix="reclm-import-"))
        self.sources: list[SourceFile] = []
        self.notes: list[str] = []
        try:
            self.db = duckdb.connect(
                str(self._folder / "staging.duckdb"),
                config={
                    "memory_limit": memory_limit, "threads": threads, "preserve_insertion_order": False,
                    "temp_directory": str(self._folder), "autoinstall_known_extensions": False,
                },
            )  # fmt: skip
            self.db.execute("CREATE TABLE raw (user VARCHAR, item VARCHAR, time VARCHAR, rating VARCHAR, part UTINYINT)")
            self.db.execute(
                "CREATE TABLE texts (item VARCHAR, title VARCHAR, category VARCHAR, subcategory VARCHAR, description VARCHAR)"
            )
            self.db.execute("CREATE TABLE listed_users (user VARCHAR)")
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise

    def close(self) -> None:
        self.db.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> "Staging":
        return self

    def __exit__(self, *exc) -> None:
        self.close()

    # -- reading ---------------------------------------------------------------

    def source(self, path: Path, *, text: bool = True, encoding: str = "utf-8") -> Path:
        """Check and hash a file, record it, and return a path that DuckDB does not take for a pattern."""
        source = read_source(path, text=text, encoding=encoding)
        self.sources.append(source)
        suffix = "".join(part for part in path.suffixes[-2:] if re.fullmatch(r"\.\w+", part))
        link = self._folder / f"source-{len(self.sources)}{suffix}"
        link.symlink_to(path.resolve())
        return link

    def csv(
        self, path: Path, *, delimiter: str, quote: str = '"', columns: Sequence[str] | None = None, encoding: str = "utf-8"
    ) -> Reader:
        """A delimited text file; its first line names the columns unless `columns` does."""
        link = self.source(path, encoding=encoding)
        header = columns is None
        if columns is None:
            columns = _header(path, delimiter, quote)
        if encoding != "utf-8":
            link = self._recoded(link, encoding)
        struct = ", ".join(f"{quoted(name)}: 'VARCHAR'" for name in columns)
        sql = (
            f"read_csv({quoted(str(link))}, delim={quoted(delimiter)}, quote={quoted(quote)}, escape={quoted(quote)}, "
            f"header={str(header).lower()}, auto_detect=false, columns={{{struct}}}, max_line_size={_MAX_LINE_BYTES})"
        )
        return Reader(sql, path, tuple(columns))

    def lines(self, path: Path, *, encoding: str = "utf-8") -> Reader:
        """A text file as one column `line`; empty lines are NULL."""
        link = self.source(path, encoding=encoding)
        if encoding != "utf-8":
            link = self._recoded(link, encoding)
        sql = (
            f"read_csv({quoted(str(link))}, delim={quoted(chr(1))}, quote='', escape='', header=false, auto_detect=false, "
            f"columns={{'line': 'VARCHAR'}}, max_line_size={_MAX_LINE_BYTES})"
        )
        return Reader(sql, path, ("line",))

    def json_lines(self, path: Path) -> Reader:
        """A file of one JSON object per line; the first object's keys are its columns."""
        link = self.source(path)
        opened = gzip.open(path, "rt", encoding="utf-8-sig") if path.suffix == ".gz" else open(path, encoding="utf-8-sig")
        with opened as handle:
            try:
                first = json.loads(next((line for line in handle if line.strip()), ""))
            except ValueError as error:
                raise InputError(f"{path}, line 1: expected a JSON object on each line ({error})") from error
        if not isinstance(first, dict) or not first:
            raise InputError(f"{path}, line 1: expected a JSON object, found {type(first).__name__}; write one object per line")
        struct = ", ".join(f"{quoted(name)}: 'VARCHAR'" for name in first)
        sql = f"read_json({quoted(str(link))}, format='newline_delimited', columns={{{struct}}}, maximum_object_size={_MAX_LINE_BYTES})"
        return Reader(sql, path, tuple(first))

    def parquet(self, path: Path) -> Reader:
        """A Parquet file; every column is read as text."""
        link = self.source(path, text=False)
        scan = f"read_parquet({quoted(str(link))})"
        with self.reading(path):
            names = [row[0] for row in self.db.execute(f"DESCRIBE SELECT * FROM {scan}").fetchall()]
        cast = ", ".join(f"CAST({ident(name)} AS VARCHAR) AS {ident(name)}" for name in names)
        return Reader(f"(SELECT {cast} FROM {scan})", path, tuple(names))

    def _recoded(self, link: Path, encoding: str) -> Path:
        target = link.with_name(link.name + ".utf8")
        with open(link, encoding=encoding, newline="") as source, open(target, "w", encoding="utf-8", newline="") as out:
            shutil.copyfileobj(source, out)
        return target

    def copy(self, reader: Reader, statement: str) -> None:
        """Run an INSERT that scans `reader`; DuckDB's errors become sentences about the file."""
        with self.reading(reader.path):
            self.db.execute(statement)

    def refuse(self, reader: Reader, where: str, value: str, message: str) -> None:
        """Raise InputError at the first row of `reader` for which `where` holds; do nothing if none does.

        message: may use {value}, the text of the SQL expression `value` in that row.
        """
        with self.reading(reader.path):
            if not self.db.execute(f"SELECT 1 FROM {reader.sql} WHERE {where} LIMIT 1").fetchall():
                return
            # Row numbers need the file's own order.
            self.db.execute("SET preserve_insertion_order=true")
            row, found = self.db.execute(
                f"SELECT n, v FROM (SELECT row_number() OVER () AS n, {value} AS v, ({where}) AS bad FROM {reader.sql}) "
                "WHERE bad ORDER BY n LIMIT 1"
            ).fetchone()
            self.db.execute("SET preserve_insertion_order=false")
        raise InputError(f"{reader.path}, row {row}: " + message.format(value="nothing" if found is None else repr(found)))

    @contextlib.contextmanager
    def reading(self, path: Path | None = None) -> Iterator[None]:
        """Turn DuckDB's errors into sentences about the file at `path`, and its interruption into Python's."""
        try:
            yield
        except (self._error, RuntimeError) as error:
            if "interrupt" in str(error).lower():
                raise KeyboardInterrupt from error
            if not isinstance(error, self._error):
                raise
            if path is not None and "Malformed JSON" in str(error):
                raise _bad_json_line(path) from error
            raise _sentence(str(error), path) from error

    # -- the interactions ------------------------------------------------------

    def add_interactions(
        self, reader: Reader, *, user: str, item: str, time: str | None = None, rating: str | None = None, part: int | None = None
    ) -> None:
        """Copy named columns of `reader` into `raw`, after checking every value that must be there."""
        reader.require(user, item, time, rating)
        checks = [(f"coalesce({ident(column)}, '') = ''", column, "is empty; every row needs one") for column in (user, item)]
        if rating is not None:
            number = f"try_cast({ident(rating)} AS FLOAT)"
            checks.append(
                (f"NOT coalesce(isfinite({number}), false)", rating, "holds {value}, expected a finite number; mend or remove the row")
            )
        if time is not None:
            said = "holds {value}, expected seconds since 1970 or a date and time such as 2024-05-01 12:30:00; mend or remove the row"
            checks.append((f"{seconds(ident(time))} IS NULL", time, said))
        with self.reading(reader.path):
            bad = self.db.execute(f"SELECT {', '.join(f'bool_or({where})' for where, _, _ in checks)} FROM {reader.sql}").fetchone()
        for found, (where, column, said) in zip(bad, checks, strict=True):
            if found:
                self.refuse(reader, where, ident(column), f"column {column!r} {said}")
        chosen = [ident(name) if name else "NULL" for name in (user, item, time, rating)]
        self.copy(reader, f"INSERT INTO raw SELECT {', '.join(chosen)}, {'NULL' if part is None else part} FROM {reader.sql}")

    def add_texts(self, reader: Reader, *, item: str, **columns: str | None) -> None:
        """Copy an items table into `texts`; `columns` are SQL expressions of title, category and so on.

        Raises InputError where an item id is empty or comes twice.
        """
        reader.require(item)
        self.refuse(reader, f"coalesce({ident(item)}, '') = ''", "NULL", f"column {item!r} is empty; every item needs an id")
        chosen = [columns.get(name) or "NULL" for name in ("title", "category", "subcategory", "description")]
        self.copy(reader, f"INSERT INTO texts SELECT {ident(item)}, {', '.join(chosen)} FROM {reader.sql}")
        with self.reading(reader.path):
            twice = self.db.execute("SELECT item FROM texts GROUP BY item HAVING count(*) > 1 ORDER BY item LIMIT 1").fetchone()
            if twice is None:
                return
            self.db.execute("SET preserve_insertion_order=true")
            rows = self.db.execute(
                f"SELECT n FROM (SELECT row_number() OVER () AS n, {ident(item)} AS id FROM {reader.sql}) WHERE id = ? ORDER BY n LIMIT 2",
                [twice[0]],
            ).fetchall()
            self.db.execute("SET preserve_insertion_order=false")
        raise InputError(
            f"{reader.path}, row {rows[1][0]}: the item id {twice[0]!r} in column {item!r} was in row {rows[0][0]} already; "
            "keep one row per item"
        )

    def imported(
        self,
        *,
        name: str,
        format: str,
        options: dict,
        min_rating: float | None = None,
        min_user: int | None = None,
        min_item: int | None = None,
    ) -> Imported:
        """Filter, drop repeats, number users and items, and return the data set.

        Users and items are numbered by id: whole numbers first, in their order, then the rest as text.
        Of a repeated pair the earliest is kept; without times, the one rated highest.
        """
        min_user, min_item = min_user or 0, min_item or 0
        with self.reading():
            counts = self._pairs(min_rating)
            counts |= self._core(min_user, min_item)
            if counts["interactions"] == 0:
                sources = ", ".join(str(source.path) for source in self.sources)
                if not counts["rows"]:
                    raise InputError(f"{sources}: expected at least one interaction, found none; check that the file is whole")
                limits = {"min_rating": min_rating, "min_user": min_user or None, "min_item": min_item or None}
                told = ", ".join(f"{name} {value}" for name, value in limits.items() if value is not None)
                raise InputError(f"{sources}: no interaction is left of {counts['rows']:,} rows ({told}): lower these limits")
            user_ids = self._number("user", f"SELECT user FROM listed_users WHERE {min_user} = 0")
            item_ids = self._number("item", f"SELECT item FROM texts WHERE {min_item} = 0")
            has_time, has_rating, has_part = self.db.execute(
                "SELECT count(time) > 0, count(rating) > 0, count(part) > 0 FROM pairs"
            ).fetchone()
            arrays = self.db.execute(
                "SELECT CAST(un.idx AS INTEGER) AS users, CAST(tn.idx AS INTEGER) AS items"
                + (", p.time AS timestamps" if has_time else "")
                + (", p.rating AS ratings" if has_rating else "")
                + (", p.part AS given" if has_part else "")
                + " FROM pairs p JOIN user_numbers un ON p.u = un.old JOIN item_numbers tn ON p.i = tn.old ORDER BY 1, 2"
            ).fetchnumpy()
            texts, missing, empty = self._item_texts(len(item_ids))
            used_users, used_items = self.db.execute("SELECT count(DISTINCT u), count(DISTINCT i) FROM pairs").fetchone()
        dropped = {
            "rated below min_rating": counts["below"],
            "repeated pairs": counts["repeated"],
            "pairs of users or items below min_user or min_item": counts["outside_core"],
        }
        return Imported(
            name=name, user_ids=user_ids, item_ids=item_ids, item_texts=texts,
            **{key: np.ascontiguousarray(value) for key, value in arrays.items()},
            manifest={
                "format": format,
                "sources": [source.manifest() for source in self.sources],
                "options": plain(options | {"min_rating": min_rating, "min_user": min_user, "min_item": min_item}),
                "dropped": dropped,
                "counts": {
                    "rows": counts["rows"], "users": len(user_ids), "items": len(item_ids),
                    "interactions": counts["interactions"], "users_without_history": len(user_ids) - used_users,
                    "items_without_interactions": len(item_ids) - used_items, "items_without_text": empty,
                    "items_not_in_items_table": missing,
                },
                "notes": self.notes,
            },
        )  # fmt: skip

    def _pairs(self, min_rating: float | None) -> dict[str, int]:
        """Table `pairs` (u, i, time, rating, part): distinct pairs by provisional integers."""
        keep = "true" if min_rating is None else f"(rating IS NULL OR CAST(rating AS FLOAT) >= {float(min_rating)!r}::FLOAT)"
        db = self.db
        rows, kept, rated = db.execute(f"SELECT count(*), count(*) FILTER ({keep}), count(rating) FROM raw").fetchone()
        if min_rating is not None and not rated and rows:
            raise InputError(f"min_rating {min_rating} needs ratings, and these data have none: leave it out")
        for side in ("user", "item"):
            listed = f"SELECT {side} AS id FROM {'listed_users' if side == 'user' else 'texts'}"
            db.execute(
                f"CREATE TABLE {side}s AS SELECT id, CAST(row_number() OVER (ORDER BY try_cast(id AS BIGINT) NULLS LAST, id) - 1 "
                f"AS INTEGER) AS old FROM (SELECT DISTINCT {side} AS id FROM raw UNION {listed})"
            )
        db.execute(
            f"""CREATE TABLE pairs AS
            SELECT u, i, min(time) AS time, part,
                   CASE WHEN count(time) > 0 THEN min_by(rating, (time, -rating)) ELSE max(rating) END AS rating
            FROM (SELECT users.old AS u, items.old AS i, {seconds("time")} AS time, CAST(rating AS FLOAT) AS rating, part
                  FROM raw JOIN users ON raw.user = users.id JOIN items ON raw.item = items.id WHERE {keep})
            GROUP BY u, i, part"""
        )
        db.execute("DROP TABLE raw")
        n_pairs = db.execute("SELECT count(*) FROM pairs").fetchone()[0]
        return {"rows": rows, "below": rows - kept, "repeated": kept - n_pairs}

    def _core(self, min_user: int, min_item: int) -> dict[str, int]:
        """Drop users and items with too few pairs, again and again until none is left to drop."""
        db = self.db
        before = db.execute("SELECT count(*) FROM pairs").fetchone()[0]
        n_pairs = -1
        while (now := db.execute("SELECT count(*) FROM pairs").fetchone()[0]) != n_pairs:
            n_pairs = now
            for side, least in (("u", min_user), ("i", min_item)):
                if least > 1:
                    db.execute(
                        f"DELETE FROM pairs WHERE {side} IN (SELECT {side} FROM pairs GROUP BY {side} "
                        f"HAVING count(DISTINCT {'i' if side == 'u' else 'u'}) < {int(least)})"
                    )
        return {"interactions": n_pairs, "outside_core": before - n_pairs}

    def _number(self, side: str, listed: str) -> list[str]:
        """Table `{side}_numbers` (old, idx) of the users or items that stay; returns their ids in order."""
        self.db.execute(
            f"CREATE TABLE {side}_numbers AS SELECT old, id, row_number() OVER (ORDER BY old) - 1 AS idx FROM {side}s "
            f"WHERE old IN (SELECT {side[0]} FROM pairs) OR id IN ({listed})"
        )
        return [row[0] for row in self._rows(f"SELECT id FROM {side}_numbers ORDER BY idx")]

    def _item_texts(self, n_items: int) -> tuple[list[ItemText], int, int]:
        texts: list[ItemText] = []
        missing = empty = 0
        for known, *fields in self._rows(
            "SELECT t.item IS NOT NULL, coalesce(title, ''), coalesce(category, ''), coalesce(subcategory, ''), "
            "coalesce(description, '') FROM item_numbers n LEFT JOIN texts t ON n.id = t.item ORDER BY n.idx"
        ):
            text = ItemText(*(field.strip() for field in fields))
            texts.append(text)
            missing += not known
            empty += text.is_empty()
        assert len(texts) == n_items
        return texts, missing, empty

    def _rows(self, query: str) -> Iterator[tuple]:
        cursor = self.db.execute(query)
        while rows := cursor.fetchmany(_FETCH_ROWS):
            yield from rows


def seconds(column: str) -> str:
    """SQL: a column of text as BIGINT seconds since 1970, NULL where it is no time.

    Numbers beyond the year 5138 are refused: they are milliseconds taken for seconds.
    """
    number = f"try_cast({column} AS DOUBLE)"
    return (
        f"CASE WHEN {number} IS NOT NULL THEN CASE WHEN abs({number}) < 1e11 THEN CAST(floor({number}) AS BIGINT) END "
        f"ELSE CAST(floor(epoch(try_cast({column} AS TIMESTAMP))) AS BIGINT) END"
    )


def plain(options: dict) -> dict:
    """Options as the manifest keeps them: what is unset left out, paths by name, sequences as lists."""
    kept = {key: value for key, value in options.items() if value not in (None, (), [], 0)}
    return {
        key: value.name if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
        for key, value in kept.items()
    }


def _header(path: Path, delimiter: str, quote: str) -> list[str]:
    opened = gzip.open(path, "rt", encoding="utf-8-sig") if path.suffix == ".gz" else open(path, encoding="utf-8-sig", newline="")
    with opened as handle:
        quoting = {"quotechar": quote} if quote else {"quoting": csv.QUOTE_NONE}
        try:
            names = next(csv.reader(handle, delimiter=delimiter, strict=True, **quoting), [])
        except csv.Error as error:
            raise InputError(f"{path}, line 1: the line of column names cannot be read ({error}); mend it") from error
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"{path}, line 1: the column {twice[0]!r} comes twice; give every column its own name")
    if not any(names):
        raise InputError(f"{path}, line 1: expected column names, found an empty line; add a header")
    return [name or f"column {number}" for number, name in enumerate(names, 1)]


def _bad_json_line(path: Path) -> InputError:
    """The first line that is not JSON: DuckDB counts lines from elsewhere."""
    opened = gzip.open(path, "rt", encoding="utf-8-sig") if path.suffix == ".gz" else open(path, encoding="utf-8-sig")
    with opened as handle:
        for number, line in enumerate(handle, 1):
            try:
                if line.strip():
                    json.loads(line)
            except ValueError as error:
                return InputError(f"{path}, line {number}: not a valid JSON object ({error}); write one object per line")
    return InputError(f"{path}: not valid JSON lines; write one object per line")


def _without_link(message: str, name: str) -> str:
    """The message with `name` in the place of the temporary link, whatever is quoted in it of the file: in one pass."""
    parts = re.split(r"""([\s"']+)""", message)  # words, and between them what separates words
    for at in range(0, len(parts), 2):
        if found := re.match(r"(?s).*source-\d+[^,]*", parts[at]):
            parts[at] = name + parts[at][found.end() :]
            if at and parts[at - 1][-1:] in ("'", '"'):
                parts[at - 1] = parts[at - 1][:-1]
            if parts[at] == name and at + 1 < len(parts) and parts[at + 1][:1] in ("'", '"'):
                parts[at + 1] = parts[at + 1][1:]
    return "".join(parts)


def _sentence(message: str, path: Path | None) -> InputError | WorkspaceError:
    """DuckDB's message, which runs over many lines and names the temporary link, as one sentence."""
    where = str(path) if path else "import"
    message = _without_link(message, path.name if path else "the file")
    line = re.search(r"Line: (\d{1,18})", message) or re.search(r"in line (\d{1,18})", message)
    if line:
        where += f", line {line[1]}"
    fields = re.search(r"Expected Number of Columns: (\d{1,18}) Found: (\d{1,18})", message)
    if fields:
        problem = "too many fields" if int(fields[2]) > int(fields[1]) else "too few fields"
        return InputError(f"{where}: {problem}: expected {fields[1]}, found {fields[2]}; quote or mend the line")
    if "unterminated quote" in message:
        return InputError(
            f"{where}: a quotation mark opens a field and is not closed before the field ends; "
            "double the quotation marks inside fields, or import with no quote character"
        )
    if re.search(r"No space left|[Dd]isk.{0,60}full|max_temp_directory_size|failed to offload", message):
        folder = tempfile.gettempdir()
        return WorkspaceError(f"{where}: no space left in {folder} for the import's temporary files; free some or set TMPDIR")
    if "Maximum line size" in message or "maximum_object_size" in message:
        return InputError(f"{where}: a line is longer than {_MAX_LINE_BYTES:,} bytes, perhaps for a quotation mark that is never closed")
    if "Out of Memory" in message:
        return WorkspaceError(f"{where}: the import needs more than the {_MEMORY_LIMIT} of memory it is allowed: {message.splitlines()[0]}")
    if "magic bytes" in message or "parquet" in message.lower():
        return InputError(f"{where} is not a whole Parquet file ({message.splitlines()[0]}): export it again")
    if "state machine" in message:
        return InputError(f"{where}: lines end in different ways (LF, CR LF, CR) or quotation marks are unbalanced; mend the file")
    return InputError(f"{where} cannot be read: {message.splitlines()[0]}")
