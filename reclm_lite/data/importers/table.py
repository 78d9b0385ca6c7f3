"""The format `table`: any CSV, TSV, Parquet or JSONL file with a user and an item in every row.

Item texts come from columns of the same file or, better, from a second file with one row per item.
"""

from collections.abc import Sequence
from pathlib import Path

from ...errors import InputError
from ..dataset import Imported
from .files import find_file
from .limits import Limits, cut
from .numbering import number_all
from .staging import Reader, Staging, ident

_KINDS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
}


def import_table(
    source: Path,
    *,
    user_column: str = "user",
    item_column: str = "item",
    time_column: str | None = None,
    rating_column: str | None = None,
    text_columns: Sequence[str] = (),
    items_source: Path | None = None,
    items_item_column: str | None = None,
    title_column: str | None = None,
    category_column: str | None = None,
    subcategory_column: str | None = None,
    description_column: str | None = None,
    delimiter: str | None = None,
    quote: str = '"',
    min_rating: float | None = None,
    min_user: int | None = None,
    min_item: int | None = None,
    name: str | None = None,
    limits: Limits | None = None,
) -> Imported:
    """Read interactions, and items if `items_source` names their file.

    user_column, item_column: ids, kept as text ("007" stays "007").
    time_column: seconds since 1970, or ISO 8601 dates and times (UTC if no zone is given).
    rating_column: finite numbers.
    title_column, category_column, subcategory_column, description_column, text_columns: columns of the items' texts, in
    `items_source` if given, else in `source`; text_columns are appended to the description.
    items_item_column: the item id's column in `items_source`, by default `item_column`.
    delimiter, quote: of text files; by default `,` (CSV) or a tab (TSV), and `"`. quote="" disables quoting.
    min_rating: keep interactions rated at least this. min_user, min_item: then keep users and items with at least this
    many interactions, repeated until nothing changes.
    limits: bounds on the files, by default those of Limits().
    """
    fields = {
        "title": title_column,
        "category": category_column,
        "subcategory": subcategory_column,
        "description": description_column,
    }
    if user_column == item_column:
        raise InputError(f"the column {user_column!r} is given for both users and items; give two columns")
    _check_separators(delimiter, quote)
    paths = [Path(source)] + ([Path(items_source)] if items_source is not None else [])
    if delimiter is not None and all(_kind(path) in ("parquet", "jsonl") for path in paths):
        raise InputError("the delimiter applies to CSV and TSV files only, and there is none: leave it out")
    with Staging(*paths, limits=limits) as staging:
        reader = _open(staging, Path(source), delimiter, quote)
        staging.add_interactions(reader, user=user_column, item=item_column, time=time_column, rating=rating_column)
        if items_source is not None:
            items = _open(staging, Path(items_source), delimiter, quote)
            key = items_item_column or item_column
            items.require(key, *fields.values(), *text_columns)
            staging.add_texts(items, item=key, **_expressions(fields, text_columns))
        elif text_columns or any(fields.values()):
            reader.require(*fields.values(), *text_columns)
            _texts_of_interactions(staging, reader, item_column, _expressions(fields, text_columns))
        return number_all(
            staging,
            name=name or Path(source).name.split(".")[0] or "table",
            format="table",
            options={
                "user_column": user_column,
                "item_column": item_column,
                "time_column": time_column,
                "rating_column": rating_column,
                "text_columns": list(text_columns),
                "items_source": items_source,
                "items_item_column": items_item_column,
                "delimiter": delimiter,
                **{f"{k}_column": v for k, v in fields.items()},
            },
            min_rating=min_rating,
            min_user=min_user,
            min_item=min_item,
        )


def _kind(path: Path) -> str | None:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    return _KINDS.get(suffixes[-1] if suffixes else "")


def _check_separators(delimiter: str | None, quote: str) -> None:
    """Raise InputError unless both are valid for CSV: different single-byte characters."""
    for what, value, may_be in (
        ("delimiter", delimiter, "a tab, a comma or a semicolon"),
        ("quote", quote, '", or nothing'),
    ):
        if value is None or (what == "quote" and value == ""):
            continue
        if len(value) != 1 or not value.isascii() or value in "\0\n\r":
            raise InputError(
                f"{what}: expected one ASCII character that is neither NUL nor the end of a line (such as {may_be}), "
                f"found {cut(value)!r}"
            )
    if delimiter is not None and delimiter == quote:
        raise InputError(f"delimiter and quote are both {quote!r}: a file needs two characters, or no quote")


def _open(staging: Staging, path: Path, delimiter: str | None, quote: str) -> Reader:
    find_file(path)
    kind = _kind(path)
    if kind is None and delimiter is None:
        raise InputError(
            f"{path}: expected a name that ends in {', '.join(_KINDS)} (or one of the text kinds and .gz); rename "
            "the file, or give its delimiter"
        )
    if kind == "parquet":
        return staging.parquet(path)
    if kind == "jsonl":
        return staging.json_lines(path)
    return staging.csv(path, delimiter=delimiter or ("\t" if kind == "tsv" else ","), quote=quote)


def _expressions(fields: dict[str, str | None], text_columns: Sequence[str]) -> dict[str, str | None]:
    """The SQL expression of each text field; text columns are appended to the description."""
    expressions = {name: ident(column) if column else None for name, column in fields.items()}
    parts = [column for column in (fields["description"], *text_columns) if column]
    if parts:
        expressions["description"] = (
            f"concat_ws('. ', {', '.join(f'nullif(trim({ident(part)}), {chr(39) * 2})' for part in parts)})"
        )
    return expressions


def _texts_of_interactions(staging: Staging, reader: Reader, item: str, expressions: dict[str, str | None]) -> None:
    chosen = ", ".join(f"min({sql}) AS {name}" if sql else f"NULL AS {name}" for name, sql in expressions.items())
    differ = " OR ".join(f"count(DISTINCT {sql}) > 1" for sql in expressions.values() if sql)
    staging.check_size(reader, [sql for sql in expressions.values() if sql])
    staging.copy(
        reader,
        f"CREATE TABLE gathered AS SELECT {ident(item)} AS item, {chosen}, ({differ}) AS differs FROM {reader.sql} "
        "GROUP BY 1",
    )
    staging.copy(reader, "INSERT INTO texts SELECT item, title, category, subcategory, description FROM gathered")
    n_differing = staging.db.execute("SELECT count(*) FROM gathered WHERE differs").fetchone()[0]
    if n_differing:
        staging.notes.append(
            f"{n_differing} items have different texts in different rows of {reader.path.name}; the first by alphabet "
            "is kept"
        )
