"""`reclm split`"""

from pathlib import Path

import click

from ..errors import shell_word
from ._options import common, say, workspace_option

METHODS = ("given", "ratio", "leave-last", "temporal", "cold-items", "none")


@click.command("split")
@workspace_option
@click.option(
    "--method",
    type=click.Choice(METHODS),
    help=("How to split the interactions [default: chosen from the data and printed]."),
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--test-fraction", type=click.FloatRange(0, 1, min_open=True, max_open=True), help="[default: 0.2]")
@click.option("--valid-fraction", type=click.FloatRange(0, 1, min_open=True, max_open=True), help="[default: 0.1]")
@click.option(
    "--item-fraction",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="cold-items: share of the items held out [default: 0.1]",
)
@common
def command(root: Path, method: str | None, seed: int, **fractions) -> None:
    """Split the interactions into training, validation and test sets.

    `given` keeps a published split; `none` uses everything for training (deployment). Every method takes a validation
    set out of the training part; models are selected on it.

    \b
    Example:
      reclm split -w shop --method temporal
    """
    from ..data.split import run_split
    from ..workspace import Workspace

    chosen = {key: value for key, value in fractions.items() if value is not None}
    with Workspace.open(root) as ws, ws.writing():
        split = run_split(ws, method, seed=seed, **chosen)
    if "chosen_because" in split.params:
        say(f"Method {split.params['method']}: {split.params['chosen_because']}.")
    say(
        f"Split by {split.params['method']} (seed {seed}): {split.train.nnz:,} training, {split.valid.nnz:,} "
        "validation, "
        f"{split.test.nnz:,} test, {split.unseen.nnz:,} with unseen items. Next: reclm info -w {shell_word(root)}"
    )
