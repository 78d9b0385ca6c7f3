"""Small dialogues with a rule that can be learned in seconds, and the small base models that learn it."""

import itertools
import random
from collections.abc import Iterable
from pathlib import Path

from reclm_lite.dialogue.preferences import DOT, DOUBLED, EMPTY, MERGED, NEIGHBOR, SHARES, SMOOTHED, STALE, TRUNCATED
from reclm_lite.dialogue.records import PREFERENCE, RL, SFT, Dialogue, Message, line_of
from reclm_lite.prompts.spans import CATALOGUE, LABEL, TEACHER, TEMPLATE, TRAIN, Span

WAR, LOVE = ("war", "tank", "army", "navy", "siege", "sword"), ("love", "kiss", "rose", "heart", "vow", "bride")
TOPICS = (WAR, LOVE)
POPULAR = ("news", "songs", "films")  # what everybody takes


def is_held_out(i: int) -> bool:
    """A fifth of all dialogues."""
    return i % 5 == 4


def three_of(topic: tuple[str, ...], i: int, rng: random.Random) -> list[str]:
    """Words of a topic, of combinations that are in held-out dialogues alone, or in training dialogues alone."""
    mine = [words for n, words in enumerate(itertools.combinations(topic, 3)) if is_held_out(n) == is_held_out(i)]
    return rng.sample(rng.choice(mine), 3)


def profile(words: Iterable[str]) -> str:
    words = list(words)
    return f"User identity: {', '.join(f'{word} fan' for word in words)}; User interests: {', '.join(words)}"


def message(role: str, *spans: tuple[str, str]) -> Message:
    return Message(role, tuple(Span(text, origin) for text, origin in spans))


def question(words: Iterable[str]) -> Message:
    return message("user", ("Topics:\n", TEMPLATE), ("\n".join(words) + "\n", TRAIN), ("Profile:\n", TEMPLATE))


def sft_dialogues(n: int, *, seed: int = 0, form: str = "compact", rounds: int = 2) -> list[Dialogue]:
    """A reader of one topic takes what is of that topic, and nothing else; a fifth is held out."""
    rng, found = random.Random(seed), []
    for i in range(n):
        topic, yes = rng.randrange(2), rng.random() < 0.5
        words = three_of(TOPICS[topic], i, rng)
        candidate = rng.choice(TOPICS[topic if yes else 1 - topic])
        messages = (
            question(words),
            message("assistant", (profile(words), TEACHER)),
            message(
                "user",
                ("Candidate:\n", TEMPLATE),
                (candidate + "\n", TRAIN if yes else CATALOGUE),
                ("Takes:\n", TEMPLATE),
            ),
            message("assistant", ("Yes" if yes else "No", LABEL)),
        )
        found.append(
            Dialogue(SFT, f"user:{i}", "user", form, "held_out" if is_held_out(i) else "train", messages[: 2 * rounds])
        )
    return found


def preferences(n: int, *, seed: int = 0, form: str = "compact") -> list[Dialogue]:
    """Of every kind of corruption, equally often."""
    rng, found = random.Random(seed), []
    for i in range(n):
        topic = rng.randrange(2)
        words, others = three_of(TOPICS[topic], i, rng), rng.sample(TOPICS[1 - topic], 3)
        kind = tuple(SHARES)[i % len(SHARES)]
        part = "held_out" if is_held_out(i) else "train"
        found.append(
            Dialogue(
                PREFERENCE,
                f"user:{i}",
                "user",
                form,
                part,
                (question(words),),
                profile(words),
                _corrupted(kind, words, others, rng),
                kind,
            )
        )
    return found


def _corrupted(kind: str, words: list[str], others: list[str], rng: random.Random) -> str:
    good = profile(words)
    identities = good.split(";")[0]
    if kind == MERGED:  # as published, or in the form of answers
        return rng.choice((profile(words + others), profile(rng.sample((words[0], *others[:2]), 3))))
    return {
        NEIGHBOR: profile(others),
        TRUNCATED: identities,
        DOUBLED: f"{identities}; {identities}",
        EMPTY: "",
        DOT: ".",
        SMOOTHED: profile(POPULAR),
        STALE: profile(words[:1] * 3),
    }[kind]


def rl_dialogues(n: int, *, seed: int = 0, form: str = "compact") -> list[Dialogue]:
    rng, found = random.Random(seed), []
    for i in range(n):
        topic = rng.randrange(2)
        words, part = three_of(TOPICS[topic], i, rng), "held_out" if is_held_out(i) else "train"
        found.append(
            Dialogue(
                RL,
                f"user:{i}",
                "user",
                form,
                part,
                (question(words),),
                positives=TOPICS[topic],
                negatives=TOPICS[1 - topic],
            )
        )
    return found


def write(path: Path, dialogues: Iterable[Dialogue]) -> Path:
    path.write_text("".join(map(line_of, dialogues)), encoding="utf-8")
    return path


def tiny_base(folder: Path, *, layers: int = 1, width: int = 64, seed: int = 0) -> Path:
    """A random model whose tokenizer knows the words above."""
    from reclm_lite.tune.scratch import ScratchSettings, make_base

    texts = [m.text for d in sft_dialogues(200) for m in d.messages] + [profile(POPULAR)] * 40
    return make_base(
        folder,
        texts,
        ScratchSettings(vocab=400, layers=layers, width=width, ffn=2 * width, heads=4, n_ctx=256, seed=seed),
    )
