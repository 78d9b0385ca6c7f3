"""`reclm init`"""

from pathlib import Path

import click

from ..errors import shell_word
from ._options import common, say


@click.command("init")
@click.argument("root", metavar="WS", type=click.Path(path_type=Path))
@common
def command(root: Path) -> None:
    """Create an empty workspace in the folder WS.

    \b
    Example:
      reclm init shop
    """
    from ..workspace import Workspace

    Workspace.create(root).close()
    say(f"Created the workspace {root}. Next: reclm import FORMAT SOURCE -w {shell_word(root)}")
