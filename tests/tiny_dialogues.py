"""Small dialogues with a rule that can be learned in seconds, and the small base models that learn it."""

import random
from collections.abc import Iterable
from pathlib import Path

from reclm_lite.dialogue.records import (
    CATALOGUE, LABEL, PREFERENCE, RL, SFT, TEACHER, TEMPLATE, TRAIN, Dialogue, Message, Span, line_of,
)  # fmt: skip

WAR, LOVE = ("war", "tank", "army"), ("love", "kiss", "rose")
TOPICS = (WAR, LOVE)


def profile(words: Iterable[str]) -> str:
    a, b, c = words
    return f"User identity: {a} fan, {b} fan, {c} fan; User interests: {a}, {b}, {c}"


def message(role: str, *spans: tuple[str, str]) -> Message:
    return Message(role, tuple(Span(text, origin) for text, origin in spans))


def question(words: Iterable[str]) -> Message:
    return message("user", ("Topics:\n", TEMPLATE), ("\n".join(words) + "\n", TRAIN), ("Profile:\n", TEMPLATE))


def sft_dialogues(n: int, *, seed: int = 0, form: str = "compact", rounds: int = 2) -> list[Dialogue]:
    """A reader of one topic takes what is of that topic, and nothing else; a fifth is held out."""
    rng, found = random.Random(seed), []
    for i in range(n):
        topic, yes = rng.randrange(2), rng.random() < 0.5
        words = rng.sample(TOPICS[topic], 3)
        candidate = rng.choice(TOPICS[topic if yes else 1 - topic])
        messages = (
            question(words),
            message("assistant", (profile(words), TEACHER)),
            message("user", ("Candidate:\n", TEMPLATE), (candidate + "\n", TRAIN if yes else CATALOGUE), ("Takes:\n", TEMPLATE)),
            message("assistant", ("Yes" if yes else "No", LABEL)),
        )
        found.append(Dialogue(SFT, f"user:{i}", "user", form, "held_out" if i % 5 == 4 else "train", messages[: 2 * rounds]))
    return found


def preferences(n: int, *, seed: int = 0, form: str = "compact") -> list[Dialogue]:
    rng, found = random.Random(seed), []
    for i in range(n):
        topic = rng.randrange(2)
        words = rng.sample(TOPICS[topic], 3)
        good = profile(words)
        kind, bad = (
            ("neighbor", profile(rng.sample(TOPICS[1 - topic], 3))), ("truncated", good.split(";")[0]), ("empty", ""), ("dot", "."),
        )[i % 4]  # fmt: skip
        part = "held_out" if i % 5 == 4 else "train"
        found.append(Dialogue(PREFERENCE, f"user:{i}", "user", form, part, (question(words),), chosen=good, rejected=bad, corruption=kind))
    return found


def rl_dialogues(n: int, *, seed: int = 0, form: str = "compact") -> list[Dialogue]:
    rng, found = random.Random(seed), []
    for i in range(n):
        topic = rng.randrange(2)
        words, part = rng.sample(TOPICS[topic], 3), "held_out" if i % 5 == 4 else "train"
        found.append(Dialogue(RL, f"user:{i}", "user", form, part, (question(words),), positives=TOPICS[topic], negatives=TOPICS[1 - topic]))
    return found


def write(path: Path, dialogues: Iterable[Dialogue]) -> Path:
    path.write_text("".join(map(line_of, dialogues)), encoding="utf-8")
    return path


def tiny_base(folder: Path, *, layers: int = 1, width: int = 64, seed: int = 0) -> Path:
    """A random model whose tokenizer knows the words above."""
    from reclm_lite.tune.scratch import ScratchSettings, make_base

    texts = [m.text for d in sft_dialogues(200) for m in d.messages]
    return make_base(folder, texts, ScratchSettings(vocab=400, layers=layers, width=width, ffn=2 * width, heads=4, n_ctx=256, seed=seed))
