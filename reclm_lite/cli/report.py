"""`reclm report`"""

from pathlib import Path

import click

from ._options import common, echo, workspace_option


@click.command("report")
@workspace_option
@click.option("-o", "--out", type=click.Path(path_type=Path, dir_okay=False), help="[default: WS/reports/report.html]")
@common
def command(root: Path, out: Path | None) -> None:
    """Write a self-contained HTML report about a workspace.

    \b
    Example:
      reclm report -w shop
    """
    from ..report import write_report
    from ..workspace import Workspace

    with Workspace.open(root) as ws:
        echo(write_report(ws, out))
