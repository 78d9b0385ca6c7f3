"""`reclm info`"""

from pathlib import Path

import click

from ..printable import printable
from ._options import common, console, json_option, print_json, workspace_option


@click.command("info")
@workspace_option
@json_option
@common
def command(root: Path, as_json: bool) -> None:
    """Show what a workspace contains, what is stale, and the next command.

    \b
    Example:
      reclm info -w shop
    """
    from ..status import workspace_status
    from ..workspace import Workspace

    with Workspace.open(root) as ws:
        status = workspace_status(ws)
    if as_json:
        print_json(status.as_dict())
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=printable(f"{root}: {status.dataset or 'empty'}"), title_justify="left", box=None, pad_edge=False
    )
    for column in ("stage", "state", "what"):
        table.add_column(column)
    styles = {"ready": "green", "stale": "yellow", "damaged": "red", "missing": "dim", "not possible": "dim"}
    for stage in status.stages:
        table.add_row(printable(stage.name), Text(stage.state, styles[stage.state]), printable(stage.detail))
    terminal = console()
    terminal.print(table)
    terminal.print(Text.assemble("\nNext: ", (printable(status.next_command), "bold")), soft_wrap=True)
