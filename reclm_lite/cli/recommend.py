"""`reclm recommend`"""

from pathlib import Path

import click

from ..printable import printable
from ._options import common, console, json_option, print_json, say, workspace_option


@click.command("recommend")
@workspace_option
@click.option("--user", help="A user's id.")
@click.option("--text", help="A search text instead of a user: recommend items that match it.")
@click.option("--history", metavar="ID,ID,…", help="Item ids instead of a user: recommend to a user with this history.")
@click.option("-k", type=click.IntRange(min=1), default=20, show_default=True, help="Number of items.")
@click.option("--model", help="A fitted model, such as lightgcn or lightgcn+users [default: the best on validation].")
@click.option(
    "--stale",
    is_flag=True,
    help="Use a model even if interactions have changed since it was fitted (same users and items only).",
)
@json_option
@common
def command(
    root: Path,
    user: str | None,
    text: str | None,
    history: str | None,
    k: int,
    model: str | None,
    stale: bool,
    as_json: bool,
) -> None:
    """Recommend items to a user: title, score and the reason.

    A user without history gets recommendations from text or popularity, and the reason says so. A user who is not in
    the workspace is folded in from their items (--history); nothing is fitted again. Stale models are skipped unless
    --stale is given; a model of other users or items is never used.

    \b
    Example:
      reclm recommend -w shop --user 42 -k 10
      reclm recommend -w shop --text "trail running shoes"
      reclm recommend -w shop --history 1196,260,1210
    """
    from ..serve.recommend import recommend
    from ..workspace import Workspace

    if [user, text, history].count(None) != 2:
        raise click.UsageError("give either --user ID, --text WORDS or --history IDS")
    with Workspace.open(root) as ws:
        answer = recommend(
            ws,
            user,
            k=k,
            model=model,
            text=text,
            history=None if history is None else history.split(","),
            allow_stale=stale,
        )
    if as_json:
        print_json(answer.as_json())
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("#", justify="right")
    for column in ("item", "title", "score", "reason"):
        table.add_column(column, justify="right" if column == "score" else "left", overflow="fold")
    for rank, item in enumerate(answer.items, 1):
        table.add_row(
            str(rank), printable(item.item), printable(item.title), f"{item.score:,.3f}", printable(item.reason)
        )
    console().print(table)
    if answer.note:
        say(answer.note)
