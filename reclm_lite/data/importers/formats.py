"""The registry of import formats, read by `reclm import` and its help, the table in docs/formats.md and the tests.

A new format is one module here, `NAME.py` with a function `import_NAME(source, **options) -> Imported`, and one row in
FORMATS. An option is declared in the row too, unless another format has it. This module loads none of the importers.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..dataset import Imported


@dataclass(frozen=True)
class Option:
    """An option of `reclm import` and the keyword of the importers that it becomes.

    help: a sentence that begins in lower case. kind: text, number, count (at least 1), path, switch, or choice (among
    `choices`). metavar: the placeholder of its value in the help page, by default that of the kind. repeated: whether
    it may be given several times.
    """

    flag: str
    keyword: str
    help: str
    kind: str = "text"
    choices: tuple[str, ...] = ()
    metavar: str | None = None
    repeated: bool = False


@dataclass(frozen=True)
class Format:
    """A row of the registry. help: one line. files: what SOURCE is, so that users recognize the format."""

    name: str
    help: str
    files: str
    options: tuple[Option, ...]

    @property
    def keywords(self) -> tuple[str, ...]:
        """The keywords that the importer takes besides the source."""
        return tuple(option.keyword for option in self.options)

    def importer(self) -> "Callable[..., Imported]":
        """The function that reads this format; loads its module."""
        module = importlib.import_module(f"{__package__}.{self.name}")
        return getattr(module, f"import_{self.name}")


NAME = Option("--name", "name", "name of the data set [default: the source's name].")
MIN_RATING = Option("--min-rating", "min_rating", "keep interactions rated at least this.", "number")
MIN_USER = Option("--min-user", "min_user", "keep users with at least this many interactions.", "count")
MIN_ITEM = Option("--min-item", "min_item", "keep items with at least this many interactions.", "count")
LIMITS = Option(
    "--limit",
    "limits",
    "a limit on input files, such as line-bytes=8000000; docs/formats.md lists them. Repeat for several.",
    metavar="NAME=N",
    repeated=True,
)
USER = Option("--user", "user_column", "column with user ids.")
ITEM = Option("--item", "item_column", "column with item ids.")
TIME = Option("--time", "time_column", "column with times.")
RATING = Option("--rating", "rating_column", "column with ratings.")
TITLE = Option("--title", "title_column", "column with titles.")
CATEGORY = Option("--category", "category_column", "column with categories.")
SUBCATEGORY = Option("--subcategory", "subcategory_column", "column with subcategories.")
DESCRIPTION = Option("--description", "description_column", "column with descriptions.")

_KEEP = (MIN_USER, MIN_ITEM)
_COLUMNS = (USER, ITEM, TIME, RATING, TITLE, CATEGORY, SUBCATEGORY, DESCRIPTION)

FORMATS = {
    row.name: row
    for row in (
        Format("reclm", "The MIND split of the RecLM authors.", "a folder of their pickles", (NAME,)),
        Format(
            "movielens",
            "The film ratings of GroupLens, any layout.",
            "a folder with ratings.csv, ratings.dat or u.data",
            (NAME, MIN_RATING, *_KEEP, LIMITS),
        ),
        Format(
            "mind",
            "Microsoft News.",
            "a folder with behaviors.tsv and news.tsv",
            (
                NAME,
                *_KEEP,
                LIMITS,
                Option("--history/--no-history", "history", "also import the history column [default: yes].", "switch"),
            ),
        ),
        Format(
            "recbole",
            "Atomic files of RecBole.",
            "a .inter file, or a folder with one",
            (NAME, MIN_RATING, *_KEEP, LIMITS, *_COLUMNS),
        ),
        Format(
            "lightgcn",
            "Lists of item ids with a given split, no texts.",
            "a folder with train.txt and test.txt",
            (
                NAME,
                MIN_RATING,
                *_KEEP,
                LIMITS,
                Option(
                    "--layout",
                    "layout",
                    ("layout of the lines [default: detected]."),
                    "choice",
                    choices=("list", "colon", "triples"),
                ),
            ),
        ),
        Format(
            "table",
            "Any table with a user and an item in every row.",
            "a CSV, TSV, Parquet or JSONL file",
            (
                NAME,
                MIN_RATING,
                *_KEEP,
                LIMITS,
                *_COLUMNS,
                Option("--text", "text_columns", "a column of item text; repeat for several.", repeated=True),
                Option("--items", "items_source", "a second table with one row per item.", "path"),
                Option("--items-item", "items_item_column", "column with item ids in that table [default: as --item]."),
                Option(
                    "--delimiter", "delimiter", "column separator of a CSV or TSV file [default: by the file's ending]."
                ),
                Option("--quote", "quote", 'quote character [default: "].'),
            ),
        ),
    )
}


def options() -> dict[Option, str]:
    """Every option once, and its help: a sentence that begins with the formats that take it, unless all do."""
    found: dict[Option, str] = {}
    for option in (option for row in FORMATS.values() for option in row.options):
        takers = [row.name for row in FORMATS.values() if option in row.options]
        others = [name for name in FORMATS if name not in takers]
        if not others:
            found[option] = option.help[0].upper() + option.help[1:]
        elif len(others) < len(takers) and len(others) < 3:
            found[option] = f"All but {' and '.join(others)}: {option.help}"
        else:
            found[option] = f"{', '.join(takers)}: {option.help}"
    return found


def markdown_table() -> str:
    """The table of formats in docs/formats.md."""
    rows = [f"| [{row.name}](#{row.name}) | {row.help.rstrip('.')} | {row.files} |" for row in FORMATS.values()]
    return "\n".join(["| format | what it is | SOURCE |", "| --- | --- | --- |", *rows]) + "\n"
