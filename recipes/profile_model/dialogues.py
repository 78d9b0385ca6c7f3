"""Dialogues of made-up people for the bundled profile model: `python recipes/profile_model/dialogues.py START OUT --wordnet FOLDER`.

Writes `sft.jsonl`, `preference.jsonl` and `rl.jsonl` as `reclm dialogue build` does, out of `synthetic.Histories` in the place
of a workspace. Second rounds: will somebody take another item of the theme (Yes), or one of another theme (No)? Rejected
profiles by the kinds of `reclm_lite.dialogue.preferences`, but for `stale`: made-up histories have no times.
"""

import argparse
import random
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from synthetic import Histories, Story
from transformers import AutoTokenizer
from wordnet_text import WORDNET, WordNetText, read_wordnet

from reclm_lite.dialogue.preferences import OF_OTHERS, SHARES, SMOOTHED, STALE, corrupted
from reclm_lite.dialogue.records import (
    CATALOGUE, COMPACT, LABEL, PREFERENCE, RL, SFT, TEACHER, TRAIN, Dialogue, Message, Span, line_of,
)  # fmt: skip
from reclm_lite.dialogue.templates import NO, YES, candidate_spans, person_spans, view_spans
from reclm_lite.dialogue.view import prompt_view
from reclm_lite.errors import InputError

HELD_OUT = 50  # one in so many
_SEEDS = {SFT: 3, PREFERENCE: 5, RL: 7}


def histories(pools: WordNetText, start: Path) -> Histories:
    """With pieces of the start's vocabulary, so that copying never depends on knowing a word."""
    tokenizer = AutoTokenizer.from_pretrained(start)
    pieces = [tokenizer.decode([i]) for i in range(3, len(tokenizer))]
    return Histories(pools, [p for p in pieces if p.strip(" ").isalnum()])


def _question(story: Story) -> Message:
    return Message("user", view_spans(story.view, story.side, has_neighbors=bool(story.near)))


def _part(i: int) -> str:
    return "held_out" if i % HELD_OUT == HELD_OUT - 1 else "train"


def sft(source: Histories, n: int, *, second_rounds: float = 0.4) -> Iterator[Dialogue]:
    """Two rounds where the story has items and a draw says so, else one."""
    for i in range(n):
        rng = random.Random(f"sft/{i}")
        story = source.story(_SEEDS[SFT], i, n_more=1)
        messages = [_question(story), Message("assistant", (Span(story.answer, TEACHER),))]
        if story.history and rng.random() < second_rounds:
            yes = rng.random() < 0.5
            shown = story.more if yes else story.others
            try:
                if story.side == "user":
                    spans = candidate_spans(shown[0], form=COMPACT, origin=TRAIN if yes else CATALOGUE)
                else:
                    spans = person_spans(shown, form=COMPACT)
                messages += [Message("user", spans), Message("assistant", (Span(YES if yes else NO, LABEL),))]
            except InputError:  # a made-up title may be all punctuation
                pass
        yield Dialogue(SFT, f"{story.side}:{i}", story.side, COMPACT, _part(i), tuple(messages))


def preferences(source: Histories, n: int) -> Iterator[Dialogue]:
    """One pair a story; the neighbor is another story with as many slots filled."""
    shares = {kind: share for kind, share in SHARES.items() if kind != STALE}
    for i in range(n):
        rng = random.Random(f"preference/{i}")
        story = source.story(_SEEDS[PREFERENCE], i, bare=0.25)
        other = source.story(_SEEDS[PREFERENCE], n + i, bare=0.25)
        kind = rng.choices(list(shares), list(shares.values()))[0]
        theirs = other.answer if kind in OF_OTHERS else ""
        if kind == SMOOTHED:
            if not story.near or not story.history:
                continue
            try:
                theirs = Story(prompt_view([], story.near), story.side).answer  # what the neighbors alone would be said to like
            except InputError:
                continue
        rejected = corrupted(kind, story.answer, theirs, rng)
        if rejected is None or rejected == story.answer:
            continue
        yield Dialogue(
            PREFERENCE, f"{story.side}:{i}", story.side, COMPACT, _part(i), (_question(story),), chosen=story.answer, rejected=rejected, corruption=kind
        )


def rl(source: Histories, n: int) -> Iterator[Dialogue]:
    """Prompts with items of the theme and of another that they do not show."""
    for i in range(n):
        story = source.story(_SEEDS[RL], i, n_more=4, bare=0.0)
        yield Dialogue(
            RL, f"{story.side}:{i}", story.side, COMPACT, _part(i), (_question(story),),
            positives=tuple(item.joined() for item in story.more), negatives=tuple(item.joined() for item in story.others),
        )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("start", type=Path, help="the folder of start.py")
    parser.add_argument("out", type=Path)
    parser.add_argument("--wordnet", type=Path, default=WORDNET, help="folder with data.noun, data.verb, data.adj, data.adv")
    parser.add_argument("--sft", type=int, default=80_000)
    parser.add_argument("--preferences", type=int, default=8_000)
    parser.add_argument("--rl", type=int, default=8_000)
    args = parser.parse_args()
    source = histories(read_wordnet(args.wordnet), args.start)
    args.out.mkdir(parents=True, exist_ok=True)
    for name, made in ((SFT, sft(source, args.sft)), (PREFERENCE, preferences(source, args.preferences)), (RL, rl(source, args.rl))):
        with (args.out / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            n = sum(bool(file.write(line_of(dialogue))) for dialogue in made)
        print(f"{n:,} dialogues in {args.out / name}.jsonl", file=sys.stderr)


if __name__ == "__main__":
    main()
