"""`reclm import`"""

from pathlib import Path

import click

from ..errors import shell_word
from ._options import common, say, workspace_option

FORMATS = ("reclm", "movielens", "mind", "recbole", "lightgcn", "table")


@click.command("import")
@click.argument("format_name", metavar="FORMAT", type=click.Choice(FORMATS))
@click.argument("source", type=click.Path(path_type=Path))
@workspace_option
@click.option("--name", help="What to call the data set [default: the source's name].")
@click.option("--min-rating", type=float, help="Keep interactions rated at least this.")
@click.option("--min-user", type=click.IntRange(min=1), help="Keep users with at least this many interactions.")
@click.option("--min-item", type=click.IntRange(min=1), help="Keep items with at least this many interactions.")
@click.option("--layout", type=click.Choice(["list", "colon", "triples"]), help="lightgcn: how a line is laid out.")
@click.option("--history/--no-history", default=None, help="mind: take the history column too [default: yes].")
@click.option("--user", "user_column", help="table, recbole: column of the user id.")
@click.option("--item", "item_column", help="table, recbole: column of the item id.")
@click.option("--time", "time_column", help="table, recbole: column of the time.")
@click.option("--rating", "rating_column", help="table, recbole: column of the rating.")
@click.option("--text", "text_columns", multiple=True, help="table: a column of item text; repeat for several.")
@click.option("--title", "title_column", help="table, recbole: column of the title.")
@click.option("--category", "category_column", help="table, recbole: column of the category.")
@click.option("--subcategory", "subcategory_column", help="table, recbole: column of the subcategory.")
@click.option("--description", "description_column", help="table, recbole: column of the description.")
@click.option(
    "--items", "items_source", type=click.Path(path_type=Path), help="table: a second table, one row an item."
)
@click.option("--items-item", "items_item_column", help="table: column of the item id there [default: as --item].")
@click.option("--delimiter", help="table: what separates columns in a CSV or TSV file [default: by the file's ending].")
@click.option("--quote", help='table: the quoting character [default: "].')
@click.option(
    "--limit",
    "limits",
    multiple=True,
    metavar="NAME=N",
    help="All but reclm: a bound on the files, such as line-bytes=8000000; docs/formats.md lists them. Repeat for "
    "several.",
)
@click.option(
    "--replace", is_flag=True, help="Replace the data set that the workspace already holds; its profiles are removed."
)
@click.option("--update", is_flag=True, help="The same data set, newer: profiles stay with the ids they belong to.")
@common
def command(root: Path, format_name: str, source: Path, replace: bool, update: bool, **options) -> None:
    """Import interactions and item texts from SOURCE into a workspace.

    FORMAT is reclm (the published pickles), movielens, mind, recbole, lightgcn or table
    (CSV, TSV, Parquet or JSONL). docs/formats.md shows the files that each one expects.

    \b
    Example:
      reclm import table orders.csv -w shop --user customer --item sku --time date --text name
      reclm import table orders-new.csv -w shop --user customer --item sku --time date --text name --update
    """
    from ..data.dataset import save_imported
    from ..data.importers import import_dataset, options_of
    from ..data.importers.limits import parse_limits
    from ..errors import InputError, WorkspaceError
    from ..forget import of_earlier_data
    from ..workspace import Workspace

    if replace and update:
        raise click.UsageError("give either --replace (another data set) or --update (the same one, newer)")
    given = {key: value for key, value in options.items() if value not in (None, ())}
    known = options_of(format_name)
    params = click.get_current_context().command.params
    foreign = [param.opts[0] for param in params if param.name in given and param.name not in known]
    if foreign:
        raise InputError(
            f"the format {format_name} has no option {', '.join(foreign)}: leave it out (`reclm import --help` says "
            "whose it is)"
        )
    if "limits" in given:
        given["limits"] = parse_limits(given["limits"])
    with Workspace.open(root) as ws, ws.writing():
        if ws.has("matrices/interactions") and not (replace or update):
            raise WorkspaceError(
                f"{root} already holds the data set {_name_of(ws)!r}: "
                "add --update if this is a newer state of it (profiles are kept), --replace to import another in its "
                "place "
                "(its profiles are removed), or use a new workspace"
            )
        data = import_dataset(format_name, source, **given)
        carried = save_imported(ws, data, update=update)
        earlier = [deleted.path for deleted in of_earlier_data(ws)]
    n_text = sum(not text.is_empty() for text in data.item_texts)
    say(
        f"Imported {data.name}: {len(data.user_ids):,} users, {len(data.item_ids):,} items ({n_text:,} with text), "
        f"{len(data.users):,} interactions. Next: reclm split -w {shell_word(root)}"
    )
    for reason, count in data.manifest.get("dropped", {}).items():
        if count:
            say(f"  left out: {count:,} ({reason})")
    for note in data.manifest.get("notes", []):
        say(f"  note: {note}")
    if carried is not None:
        for line in _carried(carried):
            say(line)
    if earlier:
        more = f" and {len(earlier) - 5:,} more" if len(earlier) > 5 else ""
        say(
            f"  people who are no longer in the data may still be in {', '.join(earlier[:5])}{more}: "
            f"`reclm forget --gone -w {shell_word(root)}` removes these"
        )


def _name_of(ws) -> str:
    from ..data.dataset import load_interactions
    from ..errors import WorkspaceError

    try:
        return load_interactions(ws).name
    except WorkspaceError:  # damaged: it is there all the same
        return "unknown"


def _carried(carried) -> list[str]:
    """What became of those who were there before, in sentences."""
    lines = [
        f"  since the last import: {carried.n_users_new:,} users new, {carried.n_users_gone:,} gone; "
        f"{carried.n_items_new:,} items new, {carried.n_items_gone:,} gone; {carried.n_profiles_kept:,} profiles kept"
    ]
    if carried.n_profiles_gone or carried.n_generations_gone:
        lines.append(
            f"  removed with those who are gone: {carried.n_profiles_gone:,} profiles, {carried.n_by_hand_gone:,} of "
            "them written "
            f"by hand or imported, and {carried.n_generations_gone:,} generations made for nobody else"
        )
    return lines
