"""Options shared by the stages of `reclm tune`, and the checks that work without torch."""

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from ._options import threads_within_bounds

FOLDER = click.Path(path_type=Path, file_okay=False)
SCHEDULES = ("constant", "linear", "cosine")


def stage_options(stage: str, *, batch: int, every: int = 100) -> Callable:
    """Options of every stage: input, output and device."""
    where = [
        click.option(
            "-w",
            "--workspace",
            "root",
            envvar="RECLM_WORKSPACE",
            type=FOLDER,
            help=f"Read dialogues from this workspace's llm/dialogues and write to its llm/{stage}.",
        ),
        click.option(
            "--dialogues",
            type=click.Path(path_type=Path, dir_okay=False),
            help="Dialogue file [default: the workspace's].",
        ),
        click.option(
            "-o", "--out", "out_dir", type=FOLDER, help=("Output folder of the run [default: in the workspace].")
        ),
        click.option(
            "--batch",
            type=click.IntRange(min=1),
            default=batch,
            show_default=True,
            help="Dialogues per step, over all processes.",
        ),
        click.option(
            "--max-length",
            type=click.IntRange(min=16),
            default=1024,
            show_default=True,
            help="Maximum tokens per dialogue (ppo: per prompt); longer ones are skipped and counted.",
        ),
        click.option(
            "--save-every",
            type=click.IntRange(min=1),
            default=every,
            show_default=True,
            help="Steps between checkpoints.",
        ),
        click.option(
            "--eval-every",
            type=click.IntRange(min=1),
            default=every,
            show_default=True,
            help="Steps between evaluations on held-out dialogues.",
        ),
        click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True),
        click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1 or mps."),
        click.option(
            "--dtype",
            type=click.Choice(("auto", "float32", "bfloat16")),
            default="auto",
            show_default=True,
            help="auto: bfloat16 on a GPU, else float32.",
        ),
        click.option("--qlora", is_flag=True, help="Load the base weights in 4 bits (nf4); needs the extra [qlora]."),
        click.option(
            "--gradient-checkpointing",
            is_flag=True,
            help=("Gradient checkpointing: less activation memory, about a third more time."),
        ),
        click.option(
            "--threads",
            "n_threads",
            type=click.IntRange(min=1),
            callback=threads_within_bounds,
            help="CPU threads [default: torch's choice].",
        ),
        click.option("--fresh", is_flag=True, help="Delete the existing run in the folder and start over."),
    ]
    return _together(where)


def pass_options(default: int) -> Callable:
    return _together(
        [
            click.option("--max-steps", type=click.IntRange(min=1), help="Maximum number of steps."),
            click.option(
                "--pass-tokens",
                type=click.IntRange(min=16),
                default=default,
                show_default=True,
                help="Tokens per forward and backward pass; determines memory use.",
            ),
        ]
    )


def _together(options: list[Callable]) -> Callable:
    def decorate(function: Callable) -> Callable:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def lora_options(r: int, alpha: int) -> Callable:
    return _together(
        [
            click.option(
                "--lora-r", type=click.IntRange(min=1), default=r, show_default=True, help="Rank of the LoRA adapter."
            ),
            click.option("--lora-alpha", type=click.IntRange(min=1), default=alpha, show_default=True),
            click.option("--lora-dropout", type=click.FloatRange(0, 1, max_open=True), default=0.1, show_default=True),
            click.option(
                "--lora-targets",
                default="all-linear",
                show_default=True,
                help="Comma-separated module names, or all-linear.",
            ),
        ]
    )


def optimizer_options(lr: float) -> Callable:
    return _together(
        [
            click.option(
                "--lr",
                type=click.FloatRange(0, 10, min_open=True),
                default=lr,
                show_default=True,
                help="Learning rate (of AdamW).",
            ),
            click.option(
                "--warmup",
                type=click.FloatRange(0, 1, max_open=True),
                default=0.03,
                show_default=True,
                help="Share of steps for learning-rate warmup.",
            ),
            click.option("--schedule", type=click.Choice(SCHEDULES), default="cosine", show_default=True),
            click.option(
                "--decay",
                type=click.FloatRange(0, 1, min_open=True),
                default=1.0,
                show_default=True,
                help="Share of final steps over which the learning rate decays to zero.",
            ),
            click.option(
                "--weight-decay",
                type=click.FloatRange(min=0),
                default=0.0,
                show_default=True,
                help="Weight decay of the parameters trained by AdamW.",
            ),
            click.option(
                "--max-grad-norm", type=click.FloatRange(min=0, min_open=True), default=1.0, show_default=True
            ),
        ]
    )


def needs_torch(function: Callable) -> Callable:
    """Raises ClickException if the [tune] extra is not installed."""

    @wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        from importlib.util import find_spec

        missing = [name for name in ("torch", "transformers", "peft", "accelerate") if find_spec(name) is None]
        if missing:
            raise click.ClickException(
                f'expected {", ".join(missing)} for tuning, not installed; run `pip install "reclm-lite[tune]"`'
            )
        import warnings

        warnings.filterwarnings(
            "ignore", category=FutureWarning, module="transformers"
        )  # of names that peft still uses
        return function(*args, **kwargs)

    return wrapper


def refuse(why: str, *names: str) -> None:
    """Raises UsageError if one of these options was given although it would have no effect."""
    context = click.get_current_context()
    for name in names:
        if context.get_parameter_source(name) == click.core.ParameterSource.COMMANDLINE:
            option = next(p.opts[0] for p in context.command.params if p.name == name)
            raise click.UsageError(f"{option} has no effect {why}: leave it out")
