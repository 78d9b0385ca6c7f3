"""This project's side of `reclm bench tune`; runs in a child process (`harness.run_in_child`)."""

import tempfile
import time
from pathlib import Path
from typing import Any

from ...dialogue.records import RL, Dialogue, Message, line_of
from ...memory import peak_resident_bytes
from ...prompts.forms import COMPACT
from ...prompts.spans import TRAIN, Span


def train(job: dict[str, Any]) -> dict[str, Any]:
    """PPO with a random reward model on the base; prompts, batches, lengths and passes as the peer has them. Seconds
    are those of the steps after the first."""
    from ...tune.adapters import LoraSettings
    from ...tune.base import BaseSettings, load_base, use_threads
    from ...tune.memory import give_back_large_blocks
    from ...tune.ppo_run import train_ppo
    from ...tune.ppo_settings import PpoSettings
    from ...tune.reward_model import RewardModel
    from ...tune.rollout import Sampling
    from ...tune.signals import ModelScore

    give_back_large_blocks()
    use_threads(job["n_threads"])
    base = load_base(BaseSettings(job["base"], device="cpu", dtype="float32"))
    lora = LoraSettings(job["lora_r"], 2 * job["lora_r"], 0.0)
    reward = ModelScore(RewardModel.new(base, lora))
    settings = PpoSettings(
        algorithm=job["algorithm"],
        steps=job["steps"],
        batch=job["batch"],
        group_size=job["group_size"],
        epochs=job["epochs"],
        n_mini_batches=job["n_mini_batches"],
        micro_batch=job["micro_batch"],
        n_eval=2,
        eval_every=job["steps"],
        save_every=job["steps"],
        seed=job["seed"],
        lora=lora,
        sampling=Sampling(job["max_new_tokens"], batch=job["micro_batch"]),
    )
    ends: list[float] = []
    loaded = peak_resident_bytes()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rl.jsonl"
        path.write_text("".join(map(line_of, dialogues_of(job["texts"]))), encoding="utf-8")
        train_ppo(
            base,
            path,
            Path(folder) / "run",
            settings,
            signals={"model": reward},
            progress=lambda *_: ends.append(time.monotonic()),
        )
    return {"seconds": [b - a for a, b in zip(ends, ends[1:], strict=False)], "loaded_bytes": loaded}


def dialogues_of(texts: list[str]) -> list[Dialogue]:
    """Prompts as dialogues; the last two are held out, since a run evaluates itself."""
    n = len(texts)
    return [
        Dialogue(
            RL,
            f"user:{i}",
            "user",
            COMPACT,
            "held_out" if i >= n - 2 else "train",
            (Message("user", (Span(text, TRAIN),)),),
        )
        for i, text in enumerate(texts)
    ]
