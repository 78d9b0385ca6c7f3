"""`reclm info`"""

from pathlib import Path

import click

from ._options import common, json_option, print_json, workspace_option


@click.command("info")
@workspace_option
@json_option
@common
def command(root: Path, as_json: bool) -> None:
    """Show what a workspace holds, what is stale, and the next command.

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
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(f"{root}: {status.dataset or 'empty'}"), title_justify="left", box=None, pad_edge=False)
    for column in ("stage", "state", "what"):
        table.add_column(column)
    styles = {"ready": "green", "stale": "yellow", "damaged": "red", "missing": "dim", "not possible": "dim"}
    for stage in status.stages:
        table.add_row(stage.name, f"[{styles[stage.state]}]{stage.state}[/]", escape(stage.detail))
    console = Console()
    console.print(table)
    console.print(f"\nNext: [bold]{escape(status.next_command)}[/]", soft_wrap=True, highlight=False)
