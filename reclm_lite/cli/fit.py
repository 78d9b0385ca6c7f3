"""`reclm fit`"""

from pathlib import Path

import click

from ..errors import shell_word
from ._options import common, progress_bar, say, threads_option, workspace_option

MODELS = ("popularity", "random", "biasmf", "lightgcn")


@click.command("fit")
@click.argument("model", type=click.Choice(MODELS))
@workspace_option
@click.option("--profiles", type=click.Choice(["none", "users", "items", "both"]), default="none", show_default=True)
@click.option("--preset", type=click.Choice(["default", "paper"]), default="default", show_default=True,
              help="`paper`: the published architecture and settings, exactly.")  # fmt: skip
@click.option("--epochs", type=click.IntRange(min=1), help="At most this many epochs [default: the preset's].")
@click.option("--seed", type=int, default=0, show_default=True)
@threads_option
@common
def command(root: Path, model: str, profiles: str, preset: str, epochs: int | None, seed: int, n_threads: int | None) -> None:
    """Fit a recommender: epochs are selected on validation, then the model is fitted on training and validation.

    \b
    Example:
      reclm fit lightgcn -w shop --profiles users
    """
    from ..cf.fit import fit
    from ..workspace import Workspace

    with Workspace.open(root) as ws, ws.writing():
        with progress_bar(f"fitting {model}") as update:
            fitted = fit(ws, model, profiles=profiles, preset=preset, epochs=epochs, seed=seed, n_threads=n_threads,
                         progress=update)  # fmt: skip
    say(f"Fitted {fitted.name}. Next: reclm info -w {shell_word(root)}")
