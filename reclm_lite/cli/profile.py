"""`reclm profile show` and `edit`. `profile_run` has `users` and `items`, `profile_exchange` has `export` and
`import`."""

from pathlib import Path

import click

from ..errors import shell_word
from ..printable import printable
from ._options import common, echo, json_option, print_json, say, workspace_option
from .profile_exchange import export_command, import_command
from .profile_run import run_command


@click.group("profile")
def command() -> None:
    """Write, show or edit the profiles of users and items.

    \b
    Example:
      reclm profile users -w shop
      reclm profile show -w shop --user 42
    """


command.add_command(run_command("users"))
command.add_command(run_command("items"))
command.add_command(export_command)
command.add_command(import_command)


def _side(user: str | None, item: str | None) -> tuple[str, str]:
    if (user is None) == (item is None):
        raise click.UsageError("give either --user ID or --item ID")
    return ("user", user) if user is not None else ("item", item)


@command.command("show", short_help="Show one profile.")
@workspace_option
@click.option("--user", help="A user's id.")
@click.option("--item", help="An item's id.")
@json_option
@common
def show(root: Path, user: str | None, item: str | None, as_json: bool) -> None:
    """Show a profile, its source and its status.

    \b
    Example:
      reclm profile show -w shop --user 42
    """
    from ..profiles.store import find_profile
    from ..workspace import Workspace

    side, ident = _side(user, item)
    with Workspace.open(root) as ws:
        profile = find_profile(ws, side, ident)
    if as_json:
        print_json(
            {
                "side": side,
                "id": ident,
                "profile": profile.text,
                "source": profile.source,
                "status": profile.status,
                "reason": profile.reason,
                "basis": profile.basis,
                "created": profile.created,
            }
        )
        return
    for line in (
        profile.text or "(no valid profile)",
        f"source: {profile.source}",
        f"status: {profile.status}" + (f" ({profile.reason})" if profile.reason else ""),
        f"made:   {profile.created}" + (f", from the {profile.basis}" if profile.basis else ""),
    ):
        echo(printable(line))


@command.command("edit", short_help="Replace one profile with your text.")
@workspace_option
@click.option("--user", help="A user's id.")
@click.option("--item", help="An item's id.")
@click.argument("text")
@common
def edit(root: Path, user: str | None, item: str | None, text: str) -> None:
    """Replace a profile with TEXT. An edited profile is never overwritten by a model.

    \b
    Example:
      reclm profile edit -w shop --user 42 "User identity: cook, gardener, parent; User interests: herbs, soups, tools"
    """
    from ..profiles.store import edit_profile
    from ..workspace import Workspace

    side, ident = _side(user, item)
    with Workspace.open(root) as ws, ws.writing():
        edit_profile(ws, side, ident, text)
    say(f"Saved your profile of {side} {ident}. Next: reclm embed profiles -w {shell_word(root)}")
