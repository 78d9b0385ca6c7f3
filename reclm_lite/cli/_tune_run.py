"""Code shared by the stages of `reclm tune`: settings from options, loading the base model, the final summary."""

from pathlib import Path
from typing import Any

import click

from ..own_paths import require_own_path
from ._options import echo, print_json, say
from ._tune_options import refuse


def base_settings(stage: dict[str, Any], base: str, *, full: bool = False) -> Any:
    from ..tune.base import BaseSettings, use_threads

    if stage["n_threads"]:
        use_threads(stage["n_threads"])
    return BaseSettings(base, stage["device"], stage["dtype"], stage["qlora"], stage["gradient_checkpointing"], full)


def dialogues_and_out(kind: str, stage: dict[str, Any], folder: str) -> tuple[Path, Path]:
    """Paths of the dialogue file and of the run's folder."""
    root = stage["root"]
    dialogues = stage["dialogues"] or (root and root / "llm" / "dialogues" / f"{kind}.jsonl")
    out = stage["out_dir"] or (root and root / "llm" / folder)
    if dialogues is None or out is None:
        missing = "--dialogues" if dialogues is None else "-o"
        raise click.UsageError(f"give a workspace (-w), or {missing}")
    for path, chosen in ((dialogues, stage["dialogues"]), (out, stage["out_dir"])):
        if chosen is None:
            require_own_path(path, below=root)
    return dialogues, out


def loop_settings(stage: dict[str, Any]) -> Any:
    from ..tune.loop import LoopSettings

    return LoopSettings(stage["save_every"], stage["eval_every"], stage["seed"])


def optimizer_settings(o: dict[str, Any], **more: Any) -> Any:
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


def lora_settings(o: dict[str, Any]) -> Any:
    from ..tune.adapters import LoraSettings

    return LoraSettings(o["lora_r"], o["lora_alpha"], o["lora_dropout"], o["lora_targets"])


def open_base(settings: Any, smaller: str, **of_estimate: Any) -> Any:
    """Load the base model after checking that it fits in memory. smaller: options that reduce memory, named in the
    error; of_estimate: see `memory.estimate`."""
    from ..tune.base import load_base
    from ..tune.memory import estimate, give_back_large_blocks, require_memory

    give_back_large_blocks()
    say(require_memory(settings, estimate(settings, **of_estimate), smaller))
    base = load_base(settings)
    for note in (*base.notes, *_if_not_exported(base)):
        say(note)
    return base


def _if_not_exported(base: Any) -> list[str]:
    """Warn before a long run if `reclm export` cannot convert the result."""
    from ..convert.families import family_of
    from ..errors import ModelError

    try:
        family_of(base.causal.config.to_dict())
    except ModelError:
        return [
            f"`reclm export` cannot convert models of type {base.causal.config.model_type}: it can be tuned, but its "
            "GGUF file has to be made with llama.cpp's converter from the merged weights"
        ]
    return []


def tell(stage: str, facts: dict[str, Any], out: Path, as_json: bool, next_command: str) -> None:
    """Print the results as text or JSON, and the next command."""
    if as_json:
        print_json({"stage": stage, "out": str(out), **facts})
        return
    if facts.get("already_done"):
        say("This run is already complete; nothing was changed. Give --fresh to start it again. Its results:")
    for name, value in facts.items():
        if name != "already_done" and not isinstance(value, dict):
            echo(f"{name:<28} {number(value)}")
    if "before" in facts:
        echo(f"{'on held-out prompts':<28} {'SFT policy':>12} {'best step':>12}")
        for name, value in facts["before"].items():
            echo(f"  {name:<26} {number(value):>12} {number(facts['after'][name]):>12}")
    if facts.get("best_step") == 0 and not facts.get("already_done"):
        say(
            "No step improved on the starting weights on held-out dialogues, so the starting weights were kept: try "
            "another --lr, more steps or more dialogues."
        )
    say(f"Written to {out}. Next: {next_command}")


def number(value: object) -> str:
    """Format a number for the terminal."""
    if isinstance(value, float):
        return f"{value:,.0f}" if value.is_integer() and abs(value) >= 10 else f"{value:,.4f}"
    return f"{value:,}" if isinstance(value, int) else str(value) if value not in (None, "") else "-"
