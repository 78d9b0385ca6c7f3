"""A toy for PPO: a tiny base that answers any prompt by a color and an animal, each of four about as often as the
others."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tiny_dialogues import message, write

from reclm_lite.dialogue.records import RL, Dialogue
from reclm_lite.prompts.spans import TEMPLATE, TRAIN

COLORS, ANIMALS = ("red", "green", "blue", "white"), ("cat", "dog", "cow", "hen")
ANSWERS = [f"{color} {animal}" for color, animal in itertools.product(COLORS, ANIMALS)]
PROMPTS = ("one", "two", "a longer one", "another of these")
HELD_OUT = ("one more", "the last of all")  # never learned from


def dialogues(n: int = 40) -> list[Dialogue]:
    """A quarter is held out, with prompts of its own."""
    found = []
    for i in range(n):
        part, prompts = ("held_out", HELD_OUT) if i % 4 == 3 else ("train", PROMPTS)
        question = message("user", ("Say:\n", TEMPLATE), (prompts[i // 2 % len(prompts)] + "\n", TRAIN))
        found.append(
            Dialogue(RL, f"user:{i}", "user", "compact", part, (question,), positives=("a",), negatives=("b",))
        )
    return found


def likes_blue(_: Sequence[Dialogue], answers: Sequence[str]) -> np.ndarray:
    """1 for blue things, and a half for dogs."""
    return np.array([("blue" in answer) + 0.5 * ("dog" in answer) for answer in answers], dtype=np.float32)


def make_toy(folder: Path, *, n_steps: int = 60) -> tuple[Path, Path]:
    """The base, trained in full (untrained if n_steps is 0), and the file of its dialogues."""
    import torch

    from reclm_lite.tune.base import BaseSettings, load_base
    from reclm_lite.tune.rendering import Renderer
    from reclm_lite.tune.rollout import collate, logprobs_of, states_of
    from reclm_lite.tune.scratch import ScratchSettings, make_base

    found = dialogues()
    texts = [d.messages[0].text for d in found] + ANSWERS * 4
    path = make_base(folder / "base", texts, ScratchSettings(vocab=300, layers=2, width=32, ffn=64, heads=4, n_ctx=64))
    file = write(folder / "rl.jsonl", found)
    if n_steps == 0:
        return path, file
    base = load_base(BaseSettings(str(path), device="cpu", full=True))
    renderer = Renderer(base.tokenizer, base.form)
    prompts = {d.messages[0].text: d.messages for d in found}.values()
    pairs = [(renderer.prompt(messages), renderer.answer(answer)) for messages in prompts for answer in ANSWERS]
    batch = collate([p for p, _ in pairs], [a for _, a in pairs], base.pad_id, base.device)
    # Words that one gradient made would be told apart by their small random beginnings alone, and no adapter could
    # prefer one.
    torch.manual_seed(0)
    torch.nn.init.normal_(base.model.get_input_embeddings().weight, std=0.3)
    optimizer = torch.optim.AdamW(base.model.parameters(), lr=1e-2)
    for _ in range(n_steps):
        loss = -logprobs_of(base, states_of(base, batch), batch.targets, 1.0).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    base.causal.save_pretrained(folder / "sft")
    base.tokenizer.save_pretrained(folder / "sft")
    return folder / "sft", file
