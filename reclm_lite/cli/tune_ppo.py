"""`reclm tune ppo`"""

from pathlib import Path
from typing import Any

import click

from ..errors import shell_word
from ..tune.signals import ENCODER, PARTS, REWARD_MODEL, Part
from ._options import common, json_option, progress_bar
from ._tune_options import FOLDER, needs_torch, refuse, stage_options
from ._tune_run import base_settings, dialogues_and_out, open_base, tell

ALGORITHMS = ("ppo", "grpo")
USUAL_PROMPT = 256  # tokens, for a first word about memory; the prompts themselves are asked when they are read


def _named(part: Part) -> str:
    return f"{part.name} ({part.help})" if part.help else part.name


@click.command("ppo")
@click.option("--base", required=True, help="Base model of the SFT run, or the model trained by SFT with --full.")
@click.option(
    "--sft", type=FOLDER, help="SFT adapter: the initial policy and the reference [default: the base itself]."
)
@click.option(
    "--reward", type=FOLDER, help="Adapter folder of the reward model; its score is the part `model` of the reward."
)
@click.option(
    "--weight",
    "weights",
    multiple=True,
    metavar="PART=NUMBER",
    help=(
        f"Weight of a part of the reward: {', '.join(_named(part) for part in PARTS.values())}; repeatable [default: "
        "1 for each part that is available]."
    ),
)
@click.option("--algorithm", type=click.Choice(ALGORITHMS), default="ppo", show_default=True)
@click.option("--steps", type=click.IntRange(min=1), default=200, show_default=True)
@click.option(
    "--group-size", type=click.IntRange(min=2), default=4, show_default=True, help="Answers per prompt (grpo)."
)
@click.option(
    "--epochs", type=click.IntRange(min=1), default=4, show_default=True, help="Passes over the answers of a step."
)
@click.option(
    "--mini-batches",
    "n_mini_batches",
    type=click.IntRange(min=1),
    default=2,
    show_default=True,
    help="Mini-batches per pass, each followed by an optimizer step.",
)
@click.option(
    "--micro-batch",
    type=click.IntRange(min=1),
    default=4,
    show_default=True,
    help="Answers per pass through the model; determines memory use.",
)
@click.option(
    "--lr",
    type=click.FloatRange(min=0, min_open=True),
    default=1e-5,
    show_default=True,
    help="Learning rate of the adapter; decays to 0.",
)
@click.option(
    "--value-lr",
    type=click.FloatRange(min=0, min_open=True),
    default=1e-3,
    show_default=True,
    help="Learning rate of the value head (ppo).",
)
@click.option("--clip-range", type=click.FloatRange(min=0, min_open=True), default=0.2, show_default=True)
@click.option("--gae-lambda", type=click.FloatRange(0, 1), default=0.95, show_default=True, help="(ppo)")
@click.option(
    "--kl-coef",
    type=click.FloatRange(min=0),
    default=0.05,
    show_default=True,
    help="Initial KL coefficient; 0 disables the penalty.",
)
@click.option(
    "--kl-target",
    type=click.FloatRange(min=0, min_open=True),
    default=6.0,
    show_default=True,
    help="Target KL in nats per answer; the coefficient adapts towards it.",
)
@click.option(
    "--kl-ceiling",
    type=click.FloatRange(min=0, min_open=True),
    default=20.0,
    show_default=True,
    help="Stop if KL stays above this value.",
)
@click.option(
    "--entropy-floor",
    type=click.FloatRange(0, 1),
    default=0.1,
    show_default=True,
    help="Stop if entropy stays below this share of the SFT policy's entropy.",
)
@click.option("--max-new-tokens", type=click.IntRange(min=8), default=100, show_default=True)
@click.option(
    "--temperature",
    type=click.FloatRange(min=0, min_open=True),
    default=1.0,
    show_default=True,
    help="Sampling temperature of training answers.",
)
@click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), default=1.0, show_default=True)
@click.option(
    "--sample-every",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    help="Steps between writing sample answers to samples.jsonl.",
)
@click.option(
    "--eval-answers",
    "n_eval",
    type=click.IntRange(min=2),
    default=128,
    show_default=True,
    help="Held-out answers per evaluation.",
)
@click.option(
    "--lora-r",
    type=click.IntRange(min=1),
    default=4,
    show_default=True,
    help="Rank of the policy's adapter, if --sft is not given.",
)
@click.option("--lora-alpha", type=click.IntRange(min=1), default=8, show_default=True)
@stage_options("ppo", batch=32, every=20)
@json_option
@common
@needs_torch
def command(
    as_json: bool, base: str, sft: Path | None, reward: Path | None, weights: tuple[str, ...], **o: Any
) -> None:
    """Tune the SFT policy to maximize a reward with PPO or GRPO, with a KL penalty towards the SFT policy. Policy,
    reference, reward and value model share one copy of the base. The step with the best held-out reward and KL within
    the target is kept.

    \b
    Example:
      reclm tune ppo -w shop --base Qwen2.5-0.5B-Instruct --sft shop/llm/sft/adapter --reward shop/llm/reward/adapter
      reclm tune ppo -w shop --base shop/llm/sft/model --algorithm grpo --weight parse=1 --weight rank=2
    """
    from ..tune.adapters import LoraSettings
    from ..tune.parallel import Group
    from ..tune.ppo_run import of_estimate, train_ppo
    from ..tune.ppo_settings import PpoSettings
    from ..tune.rollout import Sampling

    if o["algorithm"] == "ppo":
        refuse("with --algorithm ppo", "group_size")
    else:
        refuse("with --algorithm grpo, which has no value head", "value_lr", "gae_lambda")
    if sft is not None:
        refuse("with --sft, whose adapter has its own", "lora_r", "lora_alpha")
    wanted = _weights(weights, reward)
    dialogues, out = dialogues_and_out("rl", o, "ppo")
    settings = PpoSettings(
        **{
            name: o[name]
            for name in (
                "algorithm",
                "steps",
                "batch",
                "group_size",
                "epochs",
                "n_mini_batches",
                "micro_batch",
                "lr",
                "value_lr",
                "clip_range",
                "gae_lambda",
                "kl_coef",
                "kl_target",
                "kl_ceiling",
                "entropy_floor",
                "n_eval",
                "eval_every",
                "save_every",
                "sample_every",
                "seed",
            )
        },
        max_prompt=o["max_length"],
        weights=wanted,
        lora=LoraSettings(o["lora_r"], o["lora_alpha"], 0.0),
        sampling=Sampling(o["max_new_tokens"], o["temperature"], o["top_p"], o["batch"]),
    )
    settings.check()
    group = Group.open(o["device"])
    model = open_base(
        base_settings(o, base),
        "a smaller --micro-batch or --batch",
        **of_estimate(settings, min(o["max_length"], USUAL_PROMPT)),
    )
    signals, about = _signals(wanted, model, reward, o["n_threads"])
    with progress_bar(o["algorithm"]) as update:
        report = train_ppo(
            model,
            dialogues,
            out,
            settings,
            signals=signals,
            sft=sft,
            about=about,
            reads=[reward] if reward else [],
            group=group,
            fresh=o["fresh"],
            progress=update,
        )
    if group.is_main:
        tell(
            "ppo",
            report,
            out,
            as_json,
            f"reclm export --base {shell_word(model.path)} --adapter {shell_word(out / 'adapter')} -o "
            f"{shell_word(out / 'gguf')}",
        )


def _weights(given: tuple[str, ...], reward: Path | None) -> dict[str, float]:
    """The parts of the reward and their weights, as given."""
    of_reward = [part.name for part in PARTS.values() if part.needs == REWARD_MODEL]
    found = {} if given else {part: 1.0 for part in PARTS if part not in of_reward or reward is not None}
    for text in given:
        part, equals, number = text.partition("=")
        try:
            value = float(number)
        except ValueError:
            value = float("nan")
        if part not in PARTS or not equals or not 0 <= value < float("inf"):
            raise click.UsageError(
                f"--weight: expected PART=NUMBER with one of the parts {', '.join(PARTS)} and a number of at least "
                f"0, found {text!r}"
            )
        if part in found:
            raise click.UsageError(f"--weight {part}: given twice; leave one out")
        found[part] = value
    found = {part: value for part, value in found.items() if value}
    scored = [part for part in of_reward if part in found]
    if scored and reward is None:
        raise click.UsageError(f"--weight {scored[0]}: requires the reward model; give it with --reward")
    if reward is not None and not scored:
        raise click.UsageError(
            f"--reward has no effect if its part has no weight: give --weight {of_reward[0]}=1, or leave it out"
        )
    if not found:
        raise click.UsageError("--weight: all weights are 0; give at least one part a weight above 0")
    return found


def _signals(
    wanted: dict[str, float], model: Any, reward: Path | None, n_threads: int | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The callables of the parts, and the part by which the best step is selected."""
    from ..files import file_sha256

    loaded: dict[str, Any] = {}
    about: dict[str, Any] = {}
    needed = {PARTS[part].needs for part in wanted}
    if REWARD_MODEL in needed:
        from ..tune.reward_model import RewardModel

        loaded[REWARD_MODEL] = RewardModel.load(model, reward)
        about["reward_sha256"] = file_sha256(reward / "adapter_model.safetensors") + file_sha256(
            reward / "head.safetensors"
        )
    if ENCODER in needed:
        from ..assets import encoder_path
        from ..text.encoder import TextEncoder

        loaded[ENCODER] = TextEncoder(encoder_path(), n_threads)
        about["encoder_sha256"] = file_sha256(encoder_path())
    parts = [part for part in PARTS.values() if part.name in wanted]
    return {part.name: part.make(*([loaded[part.needs]] if part.needs else [])) for part in parts}, about
