"""`reclm import`"""

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ..data.importers.formats import FORMATS, options
from ..errors import shell_word
from ._options import common, say, workspace_option

_KINDS = {"text": None, "number": float, "count": click.IntRange(min=1), "path": click.Path(path_type=Path)}


def _format_options(function: Callable) -> Callable:
    """The click options of the import formats, from the registry."""
    for option, help_text in reversed(options().items()):
        settings: dict[str, Any] = {"help": help_text, "metavar": option.metavar, "multiple": option.repeated}
        if option.kind == "switch":
            settings = {"help": help_text, "default": None}
        elif option.choices:
            settings["type"] = click.Choice(option.choices)
        else:
            settings["type"] = _KINDS[option.kind]
        function = click.option(option.flag, option.keyword, **settings)(function)
    return function


def _help() -> str:
    width = max(map(len, FORMATS))
    rows = "\n".join(f"  {row.name:<{width}}  {row.help[:-1]}: {row.files}" for row in FORMATS.values())
    return f"""Import interactions and item texts from SOURCE into a workspace.

    FORMAT is one of the following; docs/formats.md describes the files of each.

    \b
{textwrap.indent(rows, "    ")}

    \b
    Example:
      reclm import table orders.csv -w shop --user customer --item sku --time date --text name
      reclm import table orders-new.csv -w shop --user customer --item sku --time date --text name --update
    """


@click.command("import", help=_help())
@click.argument("format_name", metavar="FORMAT", type=click.Choice(list(FORMATS)))
@click.argument("source", type=click.Path(path_type=Path))
@workspace_option
@_format_options
@click.option("--replace", is_flag=True, help="Replace the data set in the workspace; its profiles are removed.")
@click.option(
    "--update", is_flag=True, help=("Import a newer version of the same data set; profiles stay with their ids.")
)
@common
def command(root: Path, format_name: str, source: Path, replace: bool, update: bool, **chosen: Any) -> None:
    from ..data.dataset import save_imported
    from ..data.importers import import_dataset
    from ..data.importers.limits import parse_limits
    from ..errors import InputError, WorkspaceError
    from ..forget import of_earlier_data
    from ..workspace import Workspace

    if replace and update:
        raise click.UsageError("give either --replace (another data set) or --update (a newer version of the same one)")
    given = {key: value for key, value in chosen.items() if value not in (None, ())}
    known = FORMATS[format_name].keywords
    params = click.get_current_context().command.params
    foreign = [param.opts[0] for param in params if param.name in given and param.name not in known]
    if foreign:
        raise InputError(
            f"the format {format_name} has no option {', '.join(foreign)}: leave it out (`reclm import --help` lists "
            "the formats of each option)"
        )
    if "limits" in given:
        given["limits"] = parse_limits(given["limits"])
    with Workspace.open(root) as ws, ws.writing():
        if ws.has("matrices/interactions") and not (replace or update):
            raise WorkspaceError(
                f"{root} already contains the data set {_name_of(ws)!r}: add --update if this is a newer version of "
                "it (profiles are kept), --replace to replace it by another (its profiles are removed), or use a new "
                "workspace"
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
            say(f"  skipped: {count:,} ({reason})")
    for note in data.manifest.get("notes", []):
        say(f"  note: {note}")
    if carried is not None:
        for line in _carried(carried):
            say(line)
    if earlier:
        more = f" and {len(earlier) - 5:,} more" if len(earlier) > 5 else ""
        say(
            f"  files that may still contain people who are no longer in the data: {', '.join(earlier[:5])}{more}. "
            f"To remove these files: reclm forget --gone -w {shell_word(root)}"
        )


def _name_of(ws) -> str:
    from ..data.dataset import load_interactions
    from ..errors import WorkspaceError

    try:
        return load_interactions(ws).name
    except WorkspaceError:  # damaged: it is there all the same
        return "unknown"


def _carried(carried) -> list[str]:
    """Lines on what happened to the users, items and profiles of the previous import."""
    lines = [
        f"  since the last import: {carried.n_users_new:,} new users, {carried.n_users_gone:,} gone; "
        f"{carried.n_items_new:,} new items, {carried.n_items_gone:,} gone; {carried.n_profiles_kept:,} profiles kept"
    ]
    if carried.n_profiles_gone or carried.n_generations_gone:
        lines.append(
            f"  removed with users and items that are gone: {carried.n_profiles_gone:,} profiles, "
            f"{carried.n_by_hand_gone:,} of them edited by hand or imported, and {carried.n_generations_gone:,} "
            "generations used by nobody else"
        )
    return lines
