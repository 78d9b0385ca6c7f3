"""`reclm tune`"""

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from ..errors import shell_word
from ._options import common, echo, json_option, print_json, progress_bar, say, threads_within_bounds

FOLDER = click.Path(path_type=Path, file_okay=False)
OPTIMIZERS = ("adamw", "muon")
SCHEDULES = ("constant", "linear", "cosine")
FEWER = "fewer --pass-tokens"  # the remedy where memory is too little


@click.group("tune")
def command() -> None:
    """Tune a language model to write profiles: SFT on two-round dialogues, a reward model, PPO.

    One copy of the base model serves all three; what is trained are adapters (or, with --full, the model itself).
    Dialogues come from `reclm dialogue build`; what comes out goes into `reclm export`. Needs the extra [tune]. With
    several GPUs: `accelerate launch -m reclm_lite.cli tune …`. A run that was stopped goes on by the same command.
    """


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


def _pass_options(default: int) -> Callable:
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


def _lora_options(r: int, alpha: int) -> Callable:
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


def _optimizer_options(lr: float) -> Callable:
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


def base_settings(stage: dict[str, Any], base: str, *, full: bool = False) -> Any:
    from ..tune.base import BaseSettings, use_threads

    if stage["n_threads"]:
        use_threads(stage["n_threads"])
    return BaseSettings(base, stage["device"], stage["dtype"], stage["qlora"], stage["gradient_checkpointing"], full)


def dialogues_and_out(kind: str, stage: dict[str, Any], folder: str) -> tuple[Path, Path]:
    """The dialogues and the run's folder."""
    root = stage["root"]
    dialogues = stage["dialogues"] or (root and root / "llm" / "dialogues" / f"{kind}.jsonl")
    out = stage["out_dir"] or (root and root / "llm" / folder)
    if dialogues is None or out is None:
        missing = "--dialogues" if dialogues is None else "-o"
        raise click.UsageError(f"give a workspace (-w), or {missing}")
    return dialogues, out


def _loop(stage: dict[str, Any]) -> Any:
    from ..tune.loop import LoopSettings

    return LoopSettings(stage["save_every"], stage["eval_every"], stage["seed"])


def _optimizer(o: dict[str, Any], **more: Any) -> Any:
    from ..tune.optim import OptimizerSettings

    if o["schedule"] == "constant":
        refuse("with --schedule constant", "decay")
    return OptimizerSettings(
        lr=o["lr"],
        weight_decay=o["weight_decay"],
        warmup=o["warmup"],
        schedule=o["schedule"],
        decay=o["decay"],
        max_grad_norm=o["max_grad_norm"],
        **more,
    )


def _lora(o: dict[str, Any]) -> Any:
    from ..tune.adapters import LoraSettings

    return LoraSettings(o["lora_r"], o["lora_alpha"], o["lora_dropout"], o["lora_targets"])


def open_base(settings: Any, smaller: str, **of_estimate: Any) -> Any:
    """The base, once its memory is known to be there. smaller: the options that make a pass smaller; of_estimate: see
    `memory.estimate`."""
    from ..tune.base import load_base
    from ..tune.memory import estimate, give_back_large_blocks, require_memory

    give_back_large_blocks()
    say(require_memory(settings, estimate(settings, **of_estimate), smaller))
    base = load_base(settings)
    for note in (*base.notes, *_if_not_exported(base)):
        say(note)
    return base


def _if_not_exported(base: Any) -> list[str]:
    """A word before hours are spent on what has no way into this project's own engine."""
    from ..convert.families import family_of
    from ..errors import ModelError

    try:
        family_of(base.causal.config.to_dict())
    except ModelError:
        return [
            f"`reclm export` does not convert models of type {base.causal.config.model_type}: it can be tuned, but "
            "llama.cpp's own converter has to make its GGUF file of the merged weights"
        ]
    return []


def tell(stage: str, facts: dict[str, Any], out: Path, as_json: bool, next_command: str) -> None:
    """What came out, for people or as JSON, and the next command."""
    if as_json:
        print_json({"stage": stage, "out": str(out), **facts})
        return
    if facts.get("already_done"):
        say("This run is done; nothing was changed. Give --fresh to begin it again. Its figures:")
    for name, value in facts.items():
        if name != "already_done" and not isinstance(value, dict):
            echo(f"{name:<28} {number(value)}")
    if "before" in facts:
        echo(f"{'on held-out prompts':<28} {'SFT policy':>12} {'best step':>12}")
        for name, value in facts["before"].items():
            echo(f"  {name:<26} {number(value):>12} {number(facts['after'][name]):>12}")
    if facts.get("best_step") == 0 and not facts.get("already_done"):
        say(
            "No step was better than the beginning on held-out dialogues, so what was written is the beginning: try "
            "another --lr, more steps or more dialogues."
        )
    say(f"Written to {out}. Next: {next_command}")


def number(value: object) -> str:
    """A figure for people."""
    if isinstance(value, float):
        return f"{value:,.0f}" if value.is_integer() and abs(value) >= 10 else f"{value:,.4f}"
    return f"{value:,}" if isinstance(value, int) else str(value) if value not in (None, "") else "-"


@command.command("sft")
@click.option("--base", help="A causal model: a local folder, or a name on a hub.")
@click.option(
    "--from-scratch",
    is_flag=True,
    help="No base: train a tokenizer on the dialogues and begin with random weights (implies --full).",
)
@click.option("--vocab", type=click.IntRange(min=259), default=4096, show_default=True, help="Of a model from scratch.")
@click.option("--layers", type=click.IntRange(min=1), default=4, show_default=True, help="Of a model from scratch.")
@click.option("--width", type=click.IntRange(min=8), default=256, show_default=True, help="Of a model from scratch.")
@click.option("--ffn", type=click.IntRange(min=8), default=768, show_default=True, help="Of a model from scratch.")
@click.option("--heads", type=click.IntRange(min=1), default=4, show_default=True, help="Of a model from scratch.")
@click.option("--init-from", type=FOLDER, help="An adapter to go on from.")
@click.option("--full", is_flag=True, help="Train all weights, not an adapter.")
@click.option(
    "--rounds", type=click.IntRange(1, 2), default=2, show_default=True, help="1: leave the second round out."
)
@click.option(
    "--label-weight",
    type=click.FloatRange(min=0),
    default=1.0,
    show_default=True,
    help="Weight of Yes and No in the loss.",
)
@click.option(
    "--phrase-weight",
    type=click.FloatRange(min=0, min_open=True),
    default=1.0,
    show_default=True,
    help="Weight of tokens that begin a phrase of a profile (half of it: that end one).",
)
@click.option("--epochs", type=click.FloatRange(min=0, min_open=True), default=3.0, show_default=True)
@click.option(
    "--packing/--no-packing",
    default=None,
    help="Several dialogues in one row [default: on a GPU, where the base can keep them apart].",
)
@click.option(
    "--optimizer",
    type=click.Choice(OPTIMIZERS),
    default="adamw",
    show_default=True,
    help="muon: for the matrices of --full.",
)
@click.option("--lr-muon", type=click.FloatRange(min=0, min_open=True), default=0.02, show_default=True)
@_optimizer_options(2e-4)
@_lora_options(8, 16)
@_pass_options(2048)
@stage_options("sft", batch=32)
@json_option
@common
@needs_torch
def sft(as_json: bool, base: str | None, from_scratch: bool, full: bool, **o: Any) -> None:
    """Supervised fine-tuning on two-round dialogues; loss on both answers, none on the questions.

    \b
    Example:
      reclm tune sft -w shop --base Qwen2.5-0.5B-Instruct
      reclm tune sft -w shop --from-scratch --epochs 10 --optimizer muon --lr 1.5e-3
    """
    from ..tune.batches import Weights
    from ..tune.parallel import Group
    from ..tune.sft import SftSettings, train_sft

    if (base is None) != from_scratch:
        raise click.UsageError(
            "give --base, or --from-scratch" if base is None else "give either --base or --from-scratch"
        )
    full = full or from_scratch
    if o["optimizer"] == "muon" and not full:
        raise click.UsageError("--optimizer muon is for all weights: give --full, or leave it out")
    if not from_scratch:
        refuse("without --from-scratch", "vocab", "layers", "width", "ffn", "heads")
    if full:
        refuse("where all weights are trained", "lora_r", "lora_alpha", "lora_dropout", "lora_targets")
    elif o["init_from"]:
        refuse("with --init-from, whose adapter has its own", "lora_r", "lora_alpha", "lora_dropout", "lora_targets")
    if o["optimizer"] != "muon":
        refuse("without --optimizer muon", "lr_muon")
    if o["rounds"] == 1:
        refuse("without second rounds", "label_weight")
    dialogues, out = dialogues_and_out("sft", o, "sft")
    settings = SftSettings(
        epochs=o["epochs"],
        max_steps=o["max_steps"],
        batch=o["batch"],
        max_length=o["max_length"],
        pass_tokens=o["pass_tokens"],
        packing=o["packing"],
        rounds=o["rounds"],
        weights=Weights(o["label_weight"], o["phrase_weight"]),
        full=full,
        lora=_lora(o),
        loop=_loop(o),
        optimizer=_optimizer(o, optimizer=o["optimizer"], lr_muon=o["lr_muon"]),
    )
    group = Group.open(o["device"])
    if from_scratch:
        base = str(_from_scratch(dialogues, out, o, group))
    model = open_base(base_settings(o, base, full=full), FEWER, lora_r=o["lora_r"], pass_tokens=o["pass_tokens"])
    with progress_bar("sft") as update:
        facts = train_sft(
            model, dialogues, out, settings, init_from=o["init_from"], group=group, fresh=o["fresh"], progress=update
        )
    if group.is_main:
        adapter = shell_word(out / "adapter")
        tuned, exported = (
            f"--base {shell_word(base)} --init-from {adapter}",
            f"--base {shell_word(model.path)} --adapter {adapter}",
        )  # export asks no hub
        if full:
            tuned = exported = f"--base {shell_word(out / 'model')}"
        tell(
            "sft",
            facts,
            out,
            as_json,
            f"reclm tune reward {tuned} …, or reclm export {exported} -o {shell_word(out / 'gguf')}",
        )


def _from_scratch(dialogues: Path, out: Path, o: dict[str, Any], group: Any) -> Path:
    """The base beside the run's folder, made where it is not there."""
    from ..tune.memory import Sizes, estimate, require_memory
    from ..tune.scratch import ScratchSettings, base_for

    settings = ScratchSettings(o["vocab"], o["layers"], o["width"], o["ffn"], o["heads"], o["max_length"], o["seed"])
    settings.check()
    sizes = Sizes(settings.n_parameters, settings.width, settings.layers, settings.vocab, settings.ffn, settings.width)
    to_be_made = base_settings(o, "", full=True)
    require_memory(
        to_be_made, estimate(to_be_made, lora_r=0, pass_tokens=o["pass_tokens"], sizes=sizes), FEWER
    )  # before it is made
    out = out.resolve()
    folder = out.with_name(f"{out.name}-base")
    if group.is_main and base_for(dialogues, folder, settings, fresh=o["fresh"]):
        say(f"trained a tokenizer of {settings.vocab:,} tokens on {dialogues}; the base is {folder}")
    group.barrier()
    return folder


@command.command("reward")
@click.option("--base", required=True, help="The base of the SFT run, or the model that SFT with --full made.")
@click.option("--init-from", type=FOLDER, help="The adapter of SFT, to begin with [default: a new one].")
@click.option("--epochs", type=click.FloatRange(min=0, min_open=True), default=1.0, show_default=True)
@_optimizer_options(1e-4)
@_lora_options(4, 8)
@_pass_options(4096)
@stage_options("reward", batch=32)
@json_option
@common
@needs_torch
def reward(as_json: bool, base: str, **o: Any) -> None:
    """Train the reward model on preference pairs: an adapter of its own and a scalar head on the same base.

    \b
    Example:
      reclm tune reward -w shop --base Qwen2.5-0.5B-Instruct --init-from shop/llm/sft/adapter
    """
    from ..tune.parallel import Group
    from ..tune.reward import RewardSettings, train_reward

    if o["init_from"]:
        refuse("with --init-from, whose adapter has its own", "lora_r", "lora_alpha", "lora_dropout", "lora_targets")
    dialogues, out = dialogues_and_out("preference", o, "reward")
    settings = RewardSettings(
        epochs=o["epochs"],
        max_steps=o["max_steps"],
        batch=o["batch"],
        max_length=o["max_length"],
        pass_tokens=o["pass_tokens"],
        lora=_lora(o),
        loop=_loop(o),
        optimizer=_optimizer(o),
    )
    group = Group.open(o["device"])
    model = open_base(base_settings(o, base), FEWER, lora_r=o["lora_r"], pass_tokens=o["pass_tokens"], logits=0)
    with progress_bar("reward") as update:
        facts = train_reward(
            model, dialogues, out, settings, init_from=o["init_from"], group=group, fresh=o["fresh"], progress=update
        )
    if group.is_main:
        tell(
            "reward",
            facts,
            out,
            as_json,
            f"reclm tune ppo --base {shell_word(base)} --reward {shell_word(out / 'adapter')} …",
        )


from .tune_ppo import command as _ppo  # noqa: E402  (it takes the options above)

command.add_command(_ppo)
