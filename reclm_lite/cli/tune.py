"""`reclm tune`: the group and its stages sft and reward (ppo is in tune_ppo.py)."""

from pathlib import Path
from typing import Any

import click

from ..errors import shell_word
from ._options import common, json_option, progress_bar, say
from ._tune_options import FOLDER, lora_options, needs_torch, optimizer_options, pass_options, refuse, stage_options
from ._tune_run import (
    base_settings,
    dialogues_and_out,
    loop_settings,
    lora_settings,
    open_base,
    optimizer_settings,
    tell,
)
from .tune_ppo import command as ppo

OPTIMIZERS = ("adamw", "muon")
FEWER = "fewer --pass-tokens"  # the remedy where memory is too little


@click.group("tune")
def command() -> None:
    """Tune a language model to write profiles: SFT on two-round dialogues, a reward model, PPO.

    All three stages share one copy of the base model; only adapters are trained (with --full, the model itself). Build
    dialogues with `reclm dialogue build`; convert the result with `reclm export`. Requires the extra [tune]. On several
    GPUs: `accelerate launch -m reclm_lite.cli tune …`. An interrupted run resumes with the same command.
    """


@command.command("sft")
@click.option("--base", help="Causal language model: a local folder, or a name on the Hugging Face hub.")
@click.option(
    "--from-scratch",
    is_flag=True,
    help="No base model: train a tokenizer on the dialogues and start from random weights (implies --full).",
)
@click.option("--vocab", type=click.IntRange(min=259), default=4096, show_default=True, help="Of a model from scratch.")
@click.option("--layers", type=click.IntRange(min=1), default=4, show_default=True, help="Of a model from scratch.")
@click.option("--width", type=click.IntRange(min=8), default=256, show_default=True, help="Of a model from scratch.")
@click.option("--ffn", type=click.IntRange(min=8), default=768, show_default=True, help="Of a model from scratch.")
@click.option("--heads", type=click.IntRange(min=1), default=4, show_default=True, help="Of a model from scratch.")
@click.option("--init-from", type=FOLDER, help="Adapter to start from.")
@click.option("--full", is_flag=True, help="Train all weights, not an adapter.")
@click.option(
    "--rounds", type=click.IntRange(1, 2), default=2, show_default=True, help="1: train on the first round only."
)
@click.option(
    "--label-weight",
    type=click.FloatRange(min=0),
    default=1.0,
    show_default=True,
    help="Loss weight of the labels Yes and No.",
)
@click.option(
    "--phrase-weight",
    type=click.FloatRange(min=0, min_open=True),
    default=1.0,
    show_default=True,
    help="Loss weight of tokens that begin a phrase of a profile (tokens that end one get half of it).",
)
@click.option("--epochs", type=click.FloatRange(min=0, min_open=True), default=3.0, show_default=True)
@click.option(
    "--packing/--no-packing",
    default=None,
    help="Pack several dialogues into one row [default: on a GPU, if the base can mask them from each other].",
)
@click.option(
    "--optimizer",
    type=click.Choice(OPTIMIZERS),
    default="adamw",
    show_default=True,
    help="muon trains the matrices with --full.",
)
@click.option("--lr-muon", type=click.FloatRange(min=0, min_open=True), default=0.02, show_default=True)
@optimizer_options(2e-4)
@lora_options(8, 16)
@pass_options(2048)
@stage_options("sft", batch=32)
@json_option
@common
@needs_torch
def sft(as_json: bool, base: str | None, from_scratch: bool, full: bool, **o: Any) -> None:
    """Supervised fine-tuning on two-round dialogues. The loss covers both answers, not the questions.

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
            "give either --base or --from-scratch" if base is None else "give either --base or --from-scratch"
        )
    full = full or from_scratch
    if o["optimizer"] == "muon" and not full:
        raise click.UsageError("--optimizer muon requires --full: add it, or leave out --optimizer")
    if not from_scratch:
        refuse("without --from-scratch", "vocab", "layers", "width", "ffn", "heads")
    if full:
        refuse("if all weights are trained", "lora_r", "lora_alpha", "lora_dropout", "lora_targets")
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
        lora=lora_settings(o),
        loop=loop_settings(o),
        optimizer=optimizer_settings(o, optimizer=o["optimizer"], lr_muon=o["lr_muon"]),
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
    """The base model next to the run's folder; created if missing."""
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
        say(f"trained a tokenizer with {settings.vocab:,} tokens on {dialogues}; the base is {folder}")
    group.barrier()
    return folder


@command.command("reward")
@click.option("--base", required=True, help="Base model of the SFT run, or the model trained by SFT with --full.")
@click.option("--init-from", type=FOLDER, help="SFT adapter to start from [default: a new adapter].")
@click.option("--epochs", type=click.FloatRange(min=0, min_open=True), default=1.0, show_default=True)
@optimizer_options(1e-4)
@lora_options(4, 8)
@pass_options(4096)
@stage_options("reward", batch=32)
@json_option
@common
@needs_torch
def reward(as_json: bool, base: str, **o: Any) -> None:
    """Train the reward model on preference pairs: a separate adapter and a scalar head on the same base.

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
        lora=lora_settings(o),
        loop=loop_settings(o),
        optimizer=optimizer_settings(o),
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


command.add_command(ppo)
