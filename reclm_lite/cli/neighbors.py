"""`reclm neighbors`"""

from pathlib import Path

import click

from ..errors import shell_word
from ._options import common, say, workspace_option


@click.command("neighbors")
@workspace_option
@click.option("-k", type=click.IntRange(min=1), default=5, show_default=True, help="Neighbors per user.")
@common
def command(root: Path, k: int) -> None:
    """Find similar users by LightGCN vectors, or by text vectors for users without a usable LightGCN vector.

    \b
    Example:
      reclm neighbors -w shop
    """
    from ..cf.neighbors import BASES, neighbors
    from ..workspace import Workspace

    with Workspace.open(root) as ws, ws.writing():
        found = neighbors(ws, k=k)
    counts = ", ".join(f"{int((found.basis == code).sum()):,} {name}" for code, name in BASES.items())
    say(f"Neighbors of {len(found.basis):,} users by basis: {counts}. Next: reclm profile users -w {shell_word(root)}")
