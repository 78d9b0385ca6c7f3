"""A temporary DuckDB database that turns tables of text into interactions of integers.

An importer copies its input into three tables of text; `numbering.number_all` then filters, drops duplicates, numbers
users and items, and passes only integers to Python. DuckDB spills to the temporary folder (`$TMPDIR`), so memory is
bounded for files of any size.

    raw(user, item, time, rating, part)   one row per interaction; `part` is GIVEN_* or NULL
    texts(item, title, category, subcategory, description)
    listed_users(user)                    users that a format lists separately
"""

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors import InputError, WorkspaceError
from .files import SourceFile, read_source
from .headers import bad_json_line, csv_header, json_keys
from .leftovers import StagingFolder, remove_leftover_staging
from .limits import Limits, cut, listed
from .locked_duckdb import connect, is_plain, real_path
from .parquet import check_parquet
from .sentences import sentence
from .sql import ident, quoted, seconds

_MEMORY_LIMIT = "768MB"
_ORDERED_MEMORY_LIMIT = "256MB"


# The beginning of DuckDB's message about a line that is not a JSON object.
_BAD_JSON = ("Invalid Input Error: Malformed JSON", "Invalid Input Error: JSON transform error")


@dataclass(frozen=True)
class Reader:
    """A file that DuckDB can scan: an SQL table expression with text columns.

    most_bytes: limit on the text of the selected columns; None if the file's size bounds it anyway.
    """

    sql: str
    path: Path
    columns: tuple[str, ...]
    most_bytes: int | None = None

    def require(self, *names: str | None) -> None:
        """Raise InputError, listing the columns found, unless the file has all of `names`."""
        missing = [name for name in names if name is not None and name not in self.columns]
        if missing:
            raise InputError(
                f"{self.path} has no column {listed(missing)}: found {listed(self.columns)}; give the right column"
            )


class Staging:
    """The temporary database. Use as a context manager; `close()` removes it.

    sources: the files that may be read, in addition to the folder's own; missing ones are ignored. DuckDB can open no
    other file, load no extension and change no setting, whatever a file contains.
    """

    def __init__(
        self, *sources: Path, limits: Limits | None = None, memory_limit: str = _MEMORY_LIMIT, threads: int = 2
    ):
        import duckdb

        self._error, self._interrupted = duckdb.Error, duckdb.InterruptException
        self.limits = limits or Limits()
        self.sources: list[SourceFile] = []
        self.notes: list[str] = []
        self._memory_limit = memory_limit
        self._readable = [str(real) for path in sources if is_plain(real := real_path(path))]
        self._ordered_db = None
        remove_leftover_staging()
        try:
            self._temporary = StagingFolder()
        except OSError as error:
            raise WorkspaceError(
                f"cannot create a temporary folder ({error.strerror or error}): set TMPDIR to another"
            ) from error
        self.folder = self._temporary.path
        try:
            if not is_plain(self.folder) or any(mark in str(self.folder) for mark in "*?["):
                raise WorkspaceError(
                    f"TMPDIR is {str(self.folder.parent)!r}, which DuckDB cannot use: set one of UTF-8 letters "
                    "without * ? [ and \\"
                )
            with self.reading():
                self.db = connect(
                    self.folder,
                    self._readable,
                    "staging.duckdb",
                    memory_limit=memory_limit,
                    threads=threads,
                    preserve_insertion_order=False,
                )
                self.db.execute(
                    "CREATE TABLE raw (user VARCHAR, item VARCHAR, time VARCHAR, rating VARCHAR, part UTINYINT)"
                )
                self.db.execute(
                    "CREATE TABLE texts (item VARCHAR, title VARCHAR, category VARCHAR, subcategory VARCHAR, "
                    "description VARCHAR)"
                )
                self.db.execute("CREATE TABLE listed_users (user VARCHAR)")
        except BaseException:
            self._temporary.close()
            raise

    @property
    def ordered(self):
        """A second database, for row numbers: it reads files in order, which takes more memory or a single thread."""
        if self._ordered_db is None:
            self._ordered_db = connect(
                self.folder,
                self._readable,
                "",
                memory_limit=_ORDERED_MEMORY_LIMIT,
                threads=1,
                preserve_insertion_order=True,
            )
        return self._ordered_db

    def close(self) -> None:
        if self._ordered_db is not None:
            self._ordered_db.close()
        self.db.close()
        self._temporary.close()

    def __enter__(self) -> "Staging":
        return self

    def __exit__(self, *exc) -> None:
        self.close()

    # -- reading ---------------------------------------------------------------

    def source(self, path: Path, *, text: bool = True, encoding: str = "utf-8", foreign: bytes = b"\0") -> Path:
        """Check, hash and record a file; returns a path that DuckDB does not interpret as a glob pattern."""
        source = read_source(path, text=text, encoding=encoding, limits=self.limits, foreign=foreign)
        self.sources.append(source)
        link = self.folder / f"source-{len(self.sources)}"
        real = real_path(path)
        if not is_plain(real):
            shutil.copyfile(real, link)
        else:
            link.symlink_to(real)
        return link

    def csv(
        self,
        path: Path,
        *,
        delimiter: str,
        quote: str = '"',
        columns: Sequence[str] | None = None,
        encoding: str = "utf-8",
    ) -> Reader:
        """A delimited text file; its first line names the columns unless `columns` does."""
        link = self.source(path, encoding=encoding)
        header = columns is None
        if columns is None:
            columns = csv_header(path, delimiter, quote, self.limits)
        if encoding != "utf-8":
            link = self._recoded(link, encoding)
        struct = ", ".join(f"{quoted(name)}: 'VARCHAR'" for name in columns)
        sql = (
            f"read_csv({quoted(str(link))}, delim={quoted(delimiter)}, quote={quoted(quote)}, escape={quoted(quote)}, "
            f"header={str(header).lower()}, auto_detect=false, columns={{{struct}}}, {self._packing(path)}, "
            f"{self._line_size()})"
        )
        return Reader(sql, path, tuple(columns))

    def lines(self, path: Path, *, encoding: str = "utf-8") -> Reader:
        """A text file as one column `line`; empty lines are NULL."""
        link = self.source(path, encoding=encoding, foreign=b"\0\1")
        if encoding != "utf-8":
            link = self._recoded(link, encoding)
        sql = (
            f"read_csv({quoted(str(link))}, delim={quoted(chr(1))}, quote='', escape='', header=false, "
            "auto_detect=false, "
            f"columns={{'line': 'VARCHAR'}}, {self._packing(path)}, {self._line_size()})"
        )
        return Reader(sql, path, ("line",))

    def _packing(self, path: Path) -> str:
        return f"compression='{'gzip' if path.suffix == '.gz' else 'none'}'"

    def _line_size(self) -> str:
        return f"max_line_size={self.limits.line_bytes + 4}"  # DuckDB counts the line's end too

    def json_lines(self, path: Path) -> Reader:
        """A file of one JSON object per line; the first object's keys are its columns."""
        link = self.source(path)
        names = json_keys(path, self.limits)
        struct = ", ".join(f"{quoted(name)}: 'VARCHAR'" for name in names)
        # The link's name has no suffix, so DuckDB does not guess a compression.
        packing = ", compression='gzip'" if path.suffix == ".gz" else ""
        sql = (
            f"read_json({quoted(str(link))}, format='newline_delimited', columns={{{struct}}}{packing}, "
            f"maximum_object_size={self.limits.line_bytes + 4})"
        )
        return Reader(sql, path, names)

    def parquet(self, path: Path) -> Reader:
        """A Parquet file; every column is read as text."""
        link = self.source(path, text=False)
        scan = f"read_parquet({quoted(str(link))})"
        with self.reading(path):
            names = check_parquet(self.db, path, link, self.sources[-1].n_bytes, self.limits)
        cast = ", ".join(f"CAST({ident(name)} AS VARCHAR) AS {ident(name)}" for name in names)
        return Reader(f"(SELECT {cast} FROM {scan})", path, names, self.limits.unpacked_bytes(self.sources[-1].n_bytes))

    def _recoded(self, link: Path, encoding: str) -> Path:
        target = link.with_name(link.name + ".utf8")
        with (
            open(link, encoding=encoding, newline="") as source,
            open(target, "w", encoding="utf-8", newline="") as out,
        ):
            shutil.copyfileobj(source, out)
        return target

    def copy(self, reader: Reader, statement: str) -> None:
        """Run an INSERT that scans `reader`; DuckDB's errors become sentences about the file."""
        with self.reading(reader.path):
            self.db.execute(statement)

    def refuse(self, reader: Reader, where: str, value: str, message: str) -> None:
        """Raise InputError for the first row of `reader` that satisfies `where`; do nothing if there is none.

        message: may use {value}, the text of the SQL expression `value` in that row.
        """
        with self.reading(reader.path):
            if not self.db.execute(f"SELECT 1 FROM {reader.sql} WHERE {where} LIMIT 1").fetchall():
                return
            found = self.ordered.execute(
                f"SELECT n, v FROM (SELECT row_number() OVER () AS n, left({value}, 100) AS v, ({where}) AS bad FROM "
                f"{reader.sql}) "
                "WHERE bad ORDER BY n LIMIT 1"
            ).fetchone()
        row, found = found or ("?", None)
        raise InputError(
            f"{reader.path}, row {row}: " + message.format(value="nothing" if found is None else repr(cut(found)))
        )

    @contextlib.contextmanager
    def reading(self, path: Path | None = None) -> Iterator[None]:
        """Turn DuckDB's errors into sentences about the file at `path`, and its interruption into Python's."""
        try:
            yield
        except (self._error, RuntimeError) as error:
            # A message may quote the file, so detect an interruption by the type of the error only.
            if isinstance(error, self._interrupted) or (
                not isinstance(error, self._error) and "interrupt" in str(error).lower()
            ):
                raise KeyboardInterrupt from error
            if not isinstance(error, self._error):
                raise
            if path is not None and str(error).startswith(_BAD_JSON):
                raise bad_json_line(path) from error
            raise sentence(
                error, path, link=str(self.folder), limits=self.limits, memory_limit=self._memory_limit
            ) from error

    # -- the interactions ------------------------------------------------------

    def add_interactions(
        self,
        reader: Reader,
        *,
        user: str,
        item: str,
        time: str | None = None,
        rating: str | None = None,
        part: int | None = None,
    ) -> None:
        """Copy named columns of `reader` into `raw`, after checking all required values."""
        reader.require(user, item, time, rating)
        checks = [
            (where, column, said) for column in (user, item) for where, said in self._id_checks(column, "row needs one")
        ]
        if rating is not None:
            number = f"try_cast({ident(rating)} AS FLOAT)"
            checks.append(
                (
                    f"NOT coalesce(isfinite({number}), false)",
                    rating,
                    "contains {value}, expected a finite number; fix or remove the row",
                )
            )
        if time is not None:
            said = (
                "contains {value}, expected seconds since 1970 or a date and time such as 2024-05-01 12:30:00; fix "
                "or remove the row"
            )
            checks.append((f"{seconds(ident(time))} IS NULL", time, said))
        chosen = [ident(name) if name else "NULL" for name in (user, item, time, rating)]
        with self.reading(reader.path):
            size, *bad = self.db.execute(
                f"SELECT {_size(chosen)}, {', '.join(f'bool_or({where})' for where, _, _ in checks)} FROM {reader.sql}"
            ).fetchone()
        self._require_size(reader, size)
        for found, (where, column, said) in zip(bad, checks, strict=True):
            if found:
                self.refuse(reader, where, ident(column), f"column {column!r} {said}")
        self.copy(
            reader, f"INSERT INTO raw SELECT {', '.join(chosen)}, {'NULL' if part is None else part} FROM {reader.sql}"
        )

    def add_texts(self, reader: Reader, *, item: str, **columns: str | None) -> None:
        """Copy an items table into `texts`; `columns` are SQL expressions of title, category and so on.

        Raises InputError if an item id is empty or occurs twice.
        """
        reader.require(item)
        for where, said in self._id_checks(item, "item needs an id"):
            self.refuse(reader, where, ident(item), f"column {item!r} {said}")
        chosen = [columns.get(name) or "NULL" for name in ("title", "category", "subcategory", "description")]
        self.check_size(reader, [ident(item), *chosen])
        self.copy(reader, f"INSERT INTO texts SELECT {ident(item)}, {', '.join(chosen)} FROM {reader.sql}")
        with self.reading(reader.path):
            twice = self.db.execute(
                "SELECT item FROM texts GROUP BY item HAVING count(*) > 1 ORDER BY item LIMIT 1"
            ).fetchone()
            if twice is None:
                return
            rows = self.ordered.execute(
                f"SELECT n FROM (SELECT row_number() OVER () AS n, {ident(item)} AS id FROM {reader.sql}) WHERE id = "
                "? ORDER BY n LIMIT 2",
                [twice[0]],
            ).fetchall()
        raise InputError(
            f"{reader.path}, row {rows[1][0]}: the item id {twice[0]!r} in column {item!r} was in row {rows[0][0]} "
            "already; "
            "keep one row per item"
        )

    def _id_checks(self, column: str, needed: str) -> list[tuple[str, str]]:
        """(condition, message) for each reason to refuse an id of `column`."""
        name, most = ident(column), self.limits.id_bytes
        return [
            (f"coalesce({name}, '') = ''", f"is empty; every {needed}"),
            (
                f"coalesce(strlen({name}), 0) > {most}",
                f"contains an id of more than {most:,} bytes: {{value}}; give the right column, or raise the limit "
                "with --limit id-bytes=N",
            ),
            (
                f"contains(coalesce({name}, ''), chr(0))",
                "contains an id with a NUL character: {value}; fix or remove the row",
            ),
        ]

    def check_size(self, reader: Reader, expressions: Sequence[str]) -> None:
        """Raise InputError if the text of these SQL expressions is too large for a file of its size.

        A Parquet file can store a long text once and refer to it in a million rows.
        """
        if reader.most_bytes is not None:
            with self.reading(reader.path):
                (size,) = self.db.execute(f"SELECT {_size(expressions)} FROM {reader.sql}").fetchone()
            self._require_size(reader, size)

    def _require_size(self, reader: Reader, size: int | None) -> None:
        if reader.most_bytes is not None and (size or 0) > reader.most_bytes:
            raise InputError(
                f"{reader.path}: its columns come to {size:,} bytes, more than {reader.most_bytes:,}: refused as a "
                "decompression "
                "bomb; export it again, or raise the limit with --limit unpacked-ratio=N"
            )


def _size(expressions: Sequence[str]) -> str:
    """SQL: the bytes of some columns of text, over all rows."""
    return f"sum(({' + '.join(f'strlen(coalesce({sql}, {chr(39) * 2}))' for sql in expressions)})::HUGEINT)"
