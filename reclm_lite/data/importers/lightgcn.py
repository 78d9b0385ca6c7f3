"""The format `lightgcn`: train.txt and test.txt as published with LightGCN and related papers; no texts.

A line has one of three layouts:

    list      0 12 7 99        a user, then items, separated by spaces
    colon     0:12 7 99        the same with a colon after the user
    triples   0<TAB>12<TAB>3   a user, an item and a count, which is kept as the rating

Without `layout`, the first non-empty line decides: a colon means `colon`, a tab `triples`, anything else `list`; the
manifest records the choice. All other lines must have the same layout.
"""

from pathlib import Path

from ...errors import InputError
from ..dataset import GIVEN_TEST, GIVEN_TRAIN, Imported
from .files import find_folder, within_folder
from .limits import Limits
from .numbering import number_all
from .staging import Reader, Staging

LAYOUTS = ("list", "colon", "triples")
# A line of each layout; a user without items is allowed.
_PATTERNS = {
    "list": r"^[^\s:]+( +[^\s:]+)* *$",
    "colon": r"^[^\s:]+:( *[^\s:]+)* *$",
    "triples": r"^[^\t]+\t[^\t]+\t[^\t]+$",
}
_EXAMPLES = {"list": "'0 12 7 99'", "colon": "'0:12 7 99'", "triples": "user, item and count separated by tabs"}


def import_lightgcn(
    source: Path,
    *,
    layout: str | None = None,
    min_rating: float | None = None,
    min_user: int | None = None,
    min_item: int | None = None,
    name: str | None = None,
    limits: Limits | None = None,
) -> Imported:
    """Read a folder with train.txt and test.txt; the two become the given split.

    layout: `list`, `colon` or `triples`; by default detected from the first line (see the module docstring).
    min_rating (triples only: of the count), min_user, min_item: as for the format table.
    limits: bounds on the files, by default those of Limits().
    """
    folder = find_folder(Path(source), "lightgcn", "train.txt and test.txt")
    if layout is not None and layout not in LAYOUTS:
        raise InputError(f"expected one of the layouts {', '.join(LAYOUTS)}, found {layout!r}")
    found = {}
    with Staging(*within_folder(folder, "train.txt", "test.txt"), limits=limits) as staging:
        for file, part in (("train.txt", GIVEN_TRAIN), ("test.txt", GIVEN_TEST)):
            lines = staging.lines(folder / file)
            found[file] = layout or _layout(staging, lines)
            _add(staging, lines, found[file], part)
        if len(set(found.values())) > 1:
            raise InputError(
                f"{folder}: train.txt reads as layout {found['train.txt']} and test.txt as {found['test.txt']}; give "
                "one with --layout"
            )
        data = number_all(
            staging,
            name=name or folder.resolve().name,
            format="lightgcn",
            options={"layout": found["train.txt"]},
            min_rating=min_rating,
            min_user=min_user,
            min_item=min_item,
        )
    data.manifest["layout_told_by"] = "the option" if layout else "the first line"
    return data


def _layout(staging: Staging, lines: Reader) -> str:
    with staging.reading(lines.path):
        found = staging.ordered.execute(f"SELECT line FROM {lines.sql} WHERE trim(line) <> '' LIMIT 1").fetchone()
    if found is None:
        raise InputError(f"{lines.path}: expected lines such as {_EXAMPLES['list']}, found only empty lines")
    (first,) = found
    return "colon" if ":" in first else "triples" if "\t" in first else "list"


def _add(staging: Staging, lines: Reader, layout: str, part: int) -> None:
    staging.refuse(
        lines,
        f"coalesce(trim(line), '') <> '' AND NOT regexp_matches(line, '{_PATTERNS[layout]}')",
        "line[:60]",
        f"expected {_EXAMPLES[layout]} (layout {layout}), found {{value}}; fix the line or give another layout",
    )
    kept = f"(SELECT trim(line) AS line FROM {lines.sql} WHERE trim(line) <> '')"
    if layout == "triples":
        table = (
            "(SELECT parts[1] AS user, parts[2] AS item, parts[3] AS count FROM (SELECT string_split(line, "
            f"chr(9)) AS parts FROM {kept}))"
        )
        reader = Reader(table, lines.path, ("user", "item", "count"))
        staging.add_interactions(reader, user="user", item="item", rating="count", part=part)
        return
    pattern = " +" if layout == "list" else ":? +|:"
    staging.copy(
        lines,
        f"INSERT INTO raw SELECT user, item, NULL, NULL, {part} FROM (SELECT parts[1] AS user, unnest(parts[2:]) "
        "AS item "
        f"FROM (SELECT string_split_regex(line, '{pattern}') AS parts FROM {kept})) WHERE item <> ''",
    )
    staging.copy(
        lines, f"INSERT INTO listed_users SELECT DISTINCT string_split_regex(line, '{pattern}')[1] FROM {kept}"
    )
