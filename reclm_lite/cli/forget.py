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
    help="Also remove files made from earlier data: they may contain people whom a later import removed.",
)
@click.option("--dry-run", is_flag=True, help="Only print what would be removed.")
@click.option("--yes", is_flag=True, help="Remove without asking for confirmation.")
@json_option
@common
def command(users: tuple[str, ...], root: Path, gone: bool, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Remove people from a workspace by their ids: interactions, profiles, vectors, model rows, caches, reports.

    If an id is no longer in the data, all files made from earlier data are removed, because they do not record which
    users they contain. --gone does this without ids.

    Everything that is up to date stays up to date; nothing has to be fitted again to serve the other users. Models were
    still trained on the removed people; the output lists the commands that fit them again.

    \b
    Example:
      reclm forget 42 -w shop --dry-run
      reclm forget 42 57 -w shop --yes
      reclm forget --gone -w shop
    """
    from ..forget import forget_users
    from ..workspace import Workspace

    if not users and not gone:
        raise click.UsageError("give a user id, or --gone for all people who are no longer in the data")
    if not yes and not dry_run and not _somebody_can_be_asked():
        raise click.UsageError(
            "stdin is not a terminal, so you cannot be asked: give --yes to remove, or --dry-run to see what would "
            "be removed"
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
    """Print a ForgetSummary."""
    would = "Would remove" if summary.dry_run else "Removed"
    lines = []
    if summary.users:
        lines.append(
            f"{would} {_few(summary.users)}: {_count(summary.n_interactions, 'interaction')}, "
            f"{_count(summary.n_profiles, 'profile')}, {_count(summary.n_generations, 'generation')} used by nobody "
            f"else. Remaining: {_count(summary.n_users_left, 'user')}."
        )
    if summary.not_in_data:
        lines.append(
            f"Not among the present users: {_few(summary.not_in_data)}. If an earlier import had them, the files "
            "made from it contain them and are removed. Otherwise, check the spelling."
        )
    elif not summary.users and not summary.deleted:
        lines.append("No files made from earlier data are left.")
    if summary.n_unknown_generations:
        unknown = _count(summary.n_unknown_generations, "older generation")
        lines.append(f"{would} {unknown} with no record of whom they were made for.")
    if summary.rewritten:
        lines.append(
            f"{'Would write' if summary.dry_run else 'Wrote'} again without these people: "
            f"{', '.join(summary.rewritten)}."
        )
    for deleted in summary.deleted:
        command = f" To make it again: {deleted.command}" if deleted.command else ""
        lines.append(f"{'Would delete' if summary.dry_run else 'Deleted'} {deleted.path}: {deleted.reason}.{command}")
    for remains in summary.remains:
        lines.append(
            f"Still contains them: {remains.text}"
            + (" To make it again without these people:") * bool(remains.commands)
        )
        lines += [f"  {command}" for command in remains.commands]
    for line in lines:
        echo(printable(line), err=to_stderr)


def _few(ids: list[str]) -> str:
    more = f" and {len(ids) - 5:,} more" if len(ids) > 5 else ""
    return f"{', '.join(ids[:5])}{more}"


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"
