"""`reclm profile`: make, show, edit."""

from pathlib import Path

import click

from ..errors import shell_word
from ._options import common, json_option, print_json, progress_bar, say, threads_option, workspace_option


@click.group("profile")
def command() -> None:
    """Write, show or edit the profiles of users and items.

    \b
    Example:
      reclm profile users -w shop
      reclm profile show -w shop --user 42
    """


def _generate(side: str):
    @click.command(side, short_help=f"Write the profiles of {side}.")
    @workspace_option
    @click.option("--model", type=str, help="A GGUF file, or `rules` [default: the bundled profile model].")
    @click.option("--limit", type=click.IntRange(min=1), help="At most this many; those whose prompt most share, first.")
    @click.option("--slots", "n_slots", type=click.IntRange(min=1), help="Sequences in flight [default: by the model].")
    @click.option("--guided/--free", default=True, show_default=True,
                  help="Hold the answer's form while it is written, or let the model write freely.")  # fmt: skip
    @threads_option
    @json_option
    @common
    def verb(root: Path, model: str | None, limit: int | None, n_slots: int | None, guided: bool, n_threads: int | None,
             as_json: bool) -> None:  # fmt: skip
        from ..profiles.generate import run_profiles
        from ..workspace import Workspace

        with Workspace.open(root) as ws, ws.writing(), progress_bar(f"profiling {side}") as update:
            summary = run_profiles(ws, side, model=model, limit=limit, n_slots=n_slots, guided=guided, n_threads=n_threads,
                                   progress=update)  # fmt: skip
        if as_json:
            print_json(summary.as_dict())
        say(summary.sentence())
        if not summary.n_ok + summary.n_edited:
            say("No profile could be made, so there is nothing to embed: models without profiles serve these data.")
            return
        say(f"Next: reclm embed profiles -w {shell_word(root)}")

    verb.help = (
        f"Write the profiles of {side} with a language model on this machine; resumable.\n\n"
        "\b\nExample:\n"
        f"  reclm profile {side} -w shop --limit 2000"
    )
    return verb


command.add_command(_generate("users"))
command.add_command(_generate("items"))


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
        print_json({"side": side, "id": ident, "profile": profile.text, "source": profile.source,
                    "status": profile.status, "reason": profile.reason, "created": profile.created})  # fmt: skip
        return
    click.echo(profile.text or "(no valid profile)")
    click.echo(f"source: {profile.source}\nstatus: {profile.status}" + (f" ({profile.reason})" if profile.reason else ""))
    click.echo(f"made:   {profile.created}")


@command.command("edit", short_help="Replace one profile by a text of yours.")
@workspace_option
@click.option("--user", help="A user's id.")
@click.option("--item", help="An item's id.")
@click.argument("text")
@common
def edit(root: Path, user: str | None, item: str | None, text: str) -> None:
    """Replace a profile by TEXT; an edited profile is never overwritten by a model.

    \b
    Example:
      reclm profile edit -w shop --user 42 "User identity: cook, gardener, parent; User interests: herbs, soups, tools"
    """
    from ..profiles.store import edit_profile
    from ..workspace import Workspace

    side, ident = _side(user, item)
    with Workspace.open(root) as ws, ws.writing():
        edit_profile(ws, side, ident, text)
    say(f"Kept your profile of {side} {ident}. Next: reclm embed profiles -w {shell_word(root)}")
