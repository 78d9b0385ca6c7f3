"""`reclm forget`"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..printable import printable
from ._options import agreed, common, echo, json_option, print_json, say, workspace_option

if TYPE_CHECKING:
    from ..forget import ForgetSummary


@click.command("forget")
@click.argument("users", nargs=-1, metavar="[USER…]")
@workspace_option
@click.option(
    "--gone",
    is_flag=True,
    help="What was made of earlier data too: it may tell of people whom an import has left out since.",
)
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@click.option("--yes", is_flag=True, help="Remove without being asked.")
@json_option
@common
def command(users: tuple[str, ...], root: Path, gone: bool, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Remove people from a workspace, by their ids: interactions, profiles, vectors, models' rows, caches, reports.

    An id that is no longer in the data is looked for in what was made of earlier data: all of that is removed, since
    nothing tells whose rows it has. --gone does the same for everybody who left, without ids.

    Everything that was up to date stays so: nothing has to be fitted again for the others to be served. What models
    have learned from everybody still has the people in it; the answer names the commands that fit them again.

    \b
    Example:
      reclm forget 42 -w shop --dry-run
      reclm forget 42 57 -w shop --yes
      reclm forget --gone -w shop
    """
    from ..forget import forget_users
    from ..workspace import Workspace

    if not users and not gone:
        raise click.UsageError("give the id of a user, or --gone for everybody who is no longer in the data")
    if not yes and not dry_run and not _somebody_can_be_asked():
        raise click.UsageError(
            "stdin is not a terminal to ask on: give --yes to remove, or --dry-run to see what would go"
        )
    with Workspace.open(root) as ws:
        if not yes and not dry_run:
            _tell(forget_users(ws, users, gone=gone, dry_run=True), to_stderr=True)
            if not agreed("Remove all this? It cannot be undone"):
                say("Nothing was removed.")
                raise click.exceptions.Exit(1)
        summary = forget_users(ws, users, gone=gone, dry_run=dry_run)
    if as_json:
        print_json(summary.as_dict())
        return
    _tell(summary)


def _somebody_can_be_asked() -> bool:
    return sys.stdin.isatty()


def _tell(summary: "ForgetSummary", *, to_stderr: bool = False) -> None:
    """A ForgetSummary in sentences."""
    would = "Would remove" if summary.dry_run else "Removed"
    lines = []
    if summary.users:
        lines.append(
            f"{would} {_few(summary.users)}: {_count(summary.n_interactions, 'interaction')}, "
            f"{_count(summary.n_profiles, 'profile')}, {_count(summary.n_generations, 'generation')} made for nobody "
            "else. "
            f"Left: {_count(summary.n_users_left, 'user')}."
        )
    if summary.not_in_data:
        lines.append(
            f"Not among the present users: {_few(summary.not_in_data)}. If an earlier import had them, they are in "
            "what was made of "
            "it, and that goes; check the spelling if not."
        )
    elif not summary.users and not summary.deleted:
        lines.append("Nothing that was made of earlier data is left.")
    if summary.n_unknown_generations:
        unknown = _count(summary.n_unknown_generations, "older generation")
        lines.append(f"{would} {unknown} of which nothing tells for whom they were made.")
    if summary.rewritten:
        lines.append(
            f"{'Would write' if summary.dry_run else 'Wrote'} again without them: {', '.join(summary.rewritten)}."
        )
    for deleted in summary.deleted:
        command = f" Make it again: {deleted.command}" if deleted.command else ""
        lines.append(f"{'Would delete' if summary.dry_run else 'Deleted'} {deleted.path}: {deleted.reason}.{command}")
    for remains in summary.remains:
        lines.append(f"Remains: {remains.text}" + " Make it again without them:" * bool(remains.commands))
        lines += [f"  {command}" for command in remains.commands]
    for line in lines:
        echo(printable(line), err=to_stderr)


def _few(ids: list[str]) -> str:
    more = f" and {len(ids) - 5:,} more" if len(ids) > 5 else ""
    return f"{', '.join(ids[:5])}{more}"


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"
