"""`reclm quickstart`"""

from pathlib import Path

import click

from ._options import common, threads_option


@click.command("quickstart")
@click.option(
    "-w",
    "--workspace",
    "root",
    type=click.Path(path_type=Path),
    default=Path("quickstart-workspace"),
    show_default=True,
    help="Workspace folder; recreated on every run.",
)
@threads_option
@common
def command(root: Path, n_threads: int | None) -> None:
    """Run the whole pipeline on the bundled demo: import, embed, fit, profile, fit with profiles, evaluate, report.

    \b
    Example:
      reclm quickstart
    """
    from ..quickstart import run_quickstart

    run_quickstart(root, n_threads=n_threads)
