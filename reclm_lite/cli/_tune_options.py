"""The options that the stages of `reclm tune` share, and the checks of them that need no torch."""

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from ._options import threads_within_bounds

FOLDER = click.Path(path_type=Path, file_okay=False)
SCHEDULES = ("constant", "linear", "cosine")


def stage_options(stage: str, *, batch: int, every: int = 100) -> Callable:
    """What the stages share: where from, where to, on what."""
    where = [
        click.option(
            "-w",
            "--workspace",
            "root",
            envvar="RECLM_WORKSPACE",
            type=FOLDER,
            help=f"Take the dialogues from this workspace's llm/dialogues and write to its llm/{stage}.",
        ),
        click.option(
            "--dialogues",
            type=click.Path(path_type=Path, dir_okay=False),
            help="A file of dialogues [default: the workspace's].",
        ),
        click.option("-o", "--out", "out_dir", type=FOLDER, help="The run's folder [default: the workspace's]."),
        click.option(
            "--batch",
            type=click.IntRange(min=1),
            default=batch,
            show_default=True,
            help="Dialogues a step, over all processes.",
        ),
        click.option(
            "--max-length",
            type=click.IntRange(min=16),
            default=1024,
            show_default=True,
            help="Tokens of a dialogue (for ppo: of a prompt) at most; longer ones are left out and counted.",
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
            help="Steps between measurements on held-out dialogues.",
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
        click.option("--qlora", is_flag=True, help="Base weights in 4 bits (nf4); needs the extra [qlora]."),
        click.option("--gradient-checkpointing", is_flag=True, help="Less memory for activations, a third more time."),
        click.option(
            "--threads",
            "n_threads",
            type=click.IntRange(min=1),
            callback=threads_within_bounds,
            help="CPU threads [default: torch's choice].",
        ),
        click.option("--fresh", is_flag=True, help="Throw away the run that lies in the folder."),
    ]
    return _together(where)


def pass_options(default: int) -> Callable:
    return _together(
        [
            click.option("--max-steps", type=click.IntRange(min=1), help="End after that many steps at most."),
            click.option(
                "--pass-tokens",
                type=click.IntRange(min=16),
                default=default,
                show_default=True,
                help="Tokens of one pass through the model: what decides the memory.",
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
                "--lora-r", type=click.IntRange(min=1), default=r, show_default=True, help="Rank of the adapter."
            ),
            click.option("--lora-alpha", type=click.IntRange(min=1), default=alpha, show_default=True),
            click.option("--lora-dropout", type=click.FloatRange(0, 1, max_open=True), default=0.1, show_default=True),
            click.option(
                "--lora-targets",
                default="all-linear",
                show_default=True,
                help="Modules' names with commas between, or all-linear.",
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
                help="Share of the steps in which it rises.",
            ),
            click.option("--schedule", type=click.Choice(SCHEDULES), default="cosine", show_default=True),
            click.option(
                "--decay",
                type=click.FloatRange(0, 1, min_open=True),
                default=1.0,
                show_default=True,
                help="The last share of the steps, in which it falls to zero.",
            ),
            click.option(
                "--weight-decay",
                type=click.FloatRange(min=0),
                default=0.0,
                show_default=True,
                help="Of what AdamW trains.",
            ),
            click.option(
                "--max-grad-norm", type=click.FloatRange(min=0, min_open=True), default=1.0, show_default=True
            ),
        ]
    )


def needs_torch(function: Callable) -> Callable:
    """One sentence where the extra is not installed."""

    @wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        from importlib.util import find_spec

        missing = [name for name in ("torch", "transformers", "peft", "accelerate") if find_spec(name) is None]
        if missing:
            raise click.ClickException(
                f'expected {", ".join(missing)} for tuning, found none; run `pip install "reclm-lite[tune]"`'
            )
        import warnings

        warnings.filterwarnings(
            "ignore", category=FutureWarning, module="transformers"
        )  # of names that peft still uses
        return function(*args, **kwargs)

    return wrapper


def refuse(why: str, *names: str) -> None:
    """A usage error where one of these options was given: it would do nothing."""
    context = click.get_current_context()
    for name in names:
        if context.get_parameter_source(name) == click.core.ParameterSource.COMMANDLINE:
            option = next(p.opts[0] for p in context.command.params if p.name == name)
            raise click.UsageError(f"{option} does nothing {why}: leave it out")
