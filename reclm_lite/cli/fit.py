"""`reclm fit`"""

from pathlib import Path

import click

from ..cf.models import MODELS, PRESETS, ROWS
from ..errors import shell_word
from ._options import common, echo, progress_bar, say, threads_option, workspace_option

_HELP = """Fit a recommender: select settings on validation, then fit the model on training and validation data.

Running the same command again resumes an interrupted fit.

\b
MODEL is one of
{models}

\b
Example:
  reclm fit lightgcn -w shop --profiles users
  reclm fit simgcl -w shop --dim 64 --set n_layers=3 --set lr=0.005
"""


@click.command("fit", help=_HELP.format(models="\n".join(f"  {name:<11} {row.meaning}" for name, row in ROWS.items())))
@click.argument("model", type=click.Choice(MODELS), metavar="MODEL")
@workspace_option
@click.option("--profiles", type=click.Choice(["none", "users", "items", "both"]), default="none", show_default=True)
@click.option(
    "--preset",
    type=click.Choice(PRESETS),
    default="default",
    show_default=True,
    help="`paper`: the published architecture and settings; the number of epochs is selected on validation.",
)
@click.option("--dim", type=click.IntRange(min=1), help="Embedding dimension [default: the preset's].")
@click.option(
    "--loss",
    type=click.Choice(["bpr", "ssm"]),
    help="bpr: pairwise loss; ssm: sampled softmax [default: the preset's].",
)
@click.option("--epochs", type=click.IntRange(min=1), help="Maximum number of epochs [default: the preset's].")
@click.option("--set", "assignments", multiple=True, metavar="NAME=VALUE", help="Any other setting; repeatable.")
@click.option("--show-settings", is_flag=True, help="Print the settings that would be used, and exit.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--restart", is_flag=True, help="Start over instead of resuming an interrupted fit.")
@threads_option
@common
def command(
    root: Path,
    model: str,
    profiles: str,
    preset: str,
    dim: int | None,
    loss: str | None,
    epochs: int | None,
    assignments: tuple[str, ...],
    show_settings: bool,
    seed: int,
    restart: bool,
    n_threads: int | None,
) -> None:
    from ..cf.fit import fit, settings_of
    from ..cf.settings import listing, override
    from ..workspace import Workspace

    given = [f"{name}={value}" for name, value in (("dim", dim), ("loss", loss)) if value is not None]
    given += assignments
    if show_settings:
        if epochs is not None:
            given.append(f"epochs={epochs}")
        for name, value, meaning in listing(override(settings_of(model, preset), given)):
            echo(f"{name}={value}".ljust(28) + meaning)
        return
    with Workspace.open(root) as ws, ws.writing(), progress_bar(f"fitting {model}") as update:
        fitted = fit(
            ws,
            model,
            profiles=profiles,
            preset=preset,
            assignments=given,
            epochs=epochs,
            seed=seed,
            restart=restart,
            n_threads=n_threads,
            progress=update,
            notice=say,
        )
    say(f"Fitted {fitted.name}. Next: reclm info -w {shell_word(root)}")
