"""`reclm profile export` and `reclm profile import`."""

from pathlib import Path

import click

from ..errors import shell_word
from ..profiles.exchange_format import EXPORT_FORMATS, IMPORT_FORMATS
from ._options import common, json_option, print_json, say, workspace_option
from ._out import data_on_stdout

_SIDES = {"users": ("user",), "items": ("item",), "both": ("user", "item")}


@click.command("export", short_help="Write profiles to a file.")
@workspace_option
@click.option(
    "--side",
    type=click.Choice(tuple(_SIDES)),
    default="both",
    show_default=True,
    help=("Profiles of users, items or both."),
)
@click.option("-o", "--output", type=click.Path(path_type=Path, allow_dash=True), help="Output file [default: stdout].")
@click.option(
    "--format", "form", type=click.Choice(EXPORT_FORMATS), help="[default: by the file's ending; jsonl on stdout]"
)
@click.option("--force", is_flag=True, help="Replace an existing file.")
@common
def export_command(root: Path, side: str, output: Path | None, form: str | None, force: bool) -> None:
    """Write the profiles of a workspace as JSON lines or CSV, one row per profile. Invalid ones are included, with the
    reason.

    The columns are side, id, profile, status, source, reason, basis and created (docs/profiles-exchange.md).

    \b
    Example:
      reclm profile export -w shop -o profiles.jsonl
      reclm profile export -w shop --side users --format csv | head
    """
    from ..profiles.eta import counted
    from ..profiles.exchange import export_profiles, export_to_file
    from ..profiles.exchange_format import format_of
    from ..workspace import Workspace

    path = None if output is None or str(output) == "-" else output
    form = format_of(path, form)
    with Workspace.open(root) as ws:
        if path is None:
            with data_on_stdout() as handle:
                n = export_profiles(ws, handle, _SIDES[side], form)
        else:
            n = export_to_file(ws, path, _SIDES[side], form, force=force)
    say(f"Wrote {counted(n, 'profile')}" + (f" to {path}." if path else "."))


@click.command("import", short_help="Import profiles from a file.")
@click.argument("source", metavar="FILE", type=click.Path(path_type=Path))
@workspace_option
@click.option(
    "--side",
    type=click.Choice(("users", "items")),
    help="Side of the profiles if the file has no such column; otherwise import only this side.",
)
@click.option("--format", "form", type=click.Choice(IMPORT_FORMATS), help="[default: by the file's ending]")
@click.option("--overwrite", is_flag=True, help="Also replace profiles that were edited by hand in this workspace.")
@click.option("--skip-invalid", is_flag=True, help="Skip rows that cannot be imported.")
@json_option
@common
def import_command(
    root: Path, source: Path, side: str | None, form: str | None, overwrite: bool, skip_invalid: bool, as_json: bool
) -> None:
    """Import the profiles of FILE (JSON lines or CSV with the columns id and profile), either all of them or none. Each
    profile is checked and assigned by the id of its user or item. Models never overwrite imported profiles. The format
    reclm is that of the published files (UID, Input, Response).

    \b
    Example:
      reclm profile import profiles.jsonl -w shop
      reclm profile import mind_fine_tune.csv -w news --format reclm --side users --skip-invalid
    """
    from ..profiles.exchange import import_profiles
    from ..workspace import Workspace

    with Workspace.open(root) as ws:
        summary = import_profiles(ws, source, side=side, form=form, overwrite=overwrite, skip_invalid=skip_invalid)
    if as_json:
        print_json(summary.as_dict())
    say(summary.sentence())
    if summary.n_imported:
        say(f"Next: reclm embed profiles -w {shell_word(root)}")
