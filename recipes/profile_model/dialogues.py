"""Dialogues of made-up people for the bundled profile model: `python recipes/profile_model/dialogues.py START OUT
--wordnet FOLDER`.

Writes `sft.jsonl`, `preference.jsonl` and `rl.jsonl` as `reclm dialogue build` does, out of `synthetic.Histories` in
the place
of a workspace. Second rounds: will somebody take another item of the theme (Yes), or one of another theme (No)?
Rejected profiles by the kinds and shares of `reclm_lite.dialogue.preferences`.
"""

import argparse
import multiprocessing
import random
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from synthetic import Histories, Story
from transformers import AutoTokenizer
from wordnet_text import WORDNET, WordNetText, read_wordnet

from reclm_lite.dialogue.preferences import ASKED, OF_OTHERS, SHARES, SMOOTHED, STALE, corrupted
from reclm_lite.dialogue.records import PREFERENCE, RL, SFT, Dialogue, Message, line_of
from reclm_lite.errors import InputError
from reclm_lite.prompts.compact import view_spans
from reclm_lite.prompts.forms import COMPACT, NO, YES, candidate_spans, person_spans
from reclm_lite.prompts.spans import CATALOGUE, LABEL, TEACHER, TRAIN, Span
from reclm_lite.prompts.view import prompt_view
from reclm_lite.types import ItemText

HELD_OUT = 50  # one in so many
_N_SPARE = 20  # stories at most for a pair, where some cannot be spoiled in the way that was drawn
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


def sft(source: Histories, n: int, begin: int = 0, *, second_rounds: float = 0.4) -> Iterator[Dialogue]:
    """Numbers `begin` to n - 1: two rounds where the story has items and a draw says so, else one."""
    for i in range(begin, n):
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


def _instead(kind: str, story: Story, rng: random.Random) -> str:
    """The other profile that a corruption takes: a neighbor's, or the teacher's of less. Empty where it cannot be
    had."""
    if kind in OF_OTHERS:
        own, near = rng.choice((story.more, story.others)), ()
    elif kind == SMOOTHED:
        own, near = (), story.near
    else:
        own, near = story.history[: len(story.history) // 2], story.near
    if not (own or near) or (kind == STALE and not own):
        return ""
    try:
        return Story(prompt_view(own, near), story.side).answer
    except InputError:
        return ""


def preferences(source: Histories, n: int, begin: int = 0) -> Iterator[Dialogue]:
    """Pairs `begin` to n - 1; the neighbor is somebody of the same theme or of another, and made-up histories have the
    oldest item first."""
    for i in range(begin, n):
        rng = random.Random(f"preference/{i}")
        kind = rng.choices(list(SHARES), list(SHARES.values()))[0]
        for spare in range(_N_SPARE):
            story = source.story(_SEEDS[PREFERENCE], _N_SPARE * i + spare, n_more=3, bare=0.0)
            if story.side == "item" and kind in ASKED:
                continue
            rejected = corrupted(
                kind, story.answer, _instead(kind, story, rng) if kind in (*OF_OTHERS, *ASKED) else "", rng
            )
            if rejected is not None and rejected != story.answer:
                yield Dialogue(
                    PREFERENCE,
                    f"{story.side}:{i}",
                    story.side,
                    COMPACT,
                    _part(i),
                    (_question(story),),
                    chosen=story.answer,
                    rejected=rejected,
                    corruption=kind,
                )
                break


def _ranked(items: tuple[ItemText, ...]) -> tuple[str, ...]:
    """Without descriptions: their vectors would be most of the time of a step of PPO."""
    return tuple(replace(item, description="").joined() for item in items)


def rl(source: Histories, n: int, begin: int = 0) -> Iterator[Dialogue]:
    """Prompts `begin` to n - 1, with items of the theme and of another that they do not show."""
    for i in range(begin, n):
        story = source.story(_SEEDS[RL], i, n_more=2, bare=0.0)
        yield Dialogue(
            RL,
            f"{story.side}:{i}",
            story.side,
            COMPACT,
            _part(i),
            (_question(story),),
            positives=_ranked(story.more),
            negatives=_ranked(story.others),
        )


KINDS: dict[str, Callable[[Histories, int, int], Iterator[Dialogue]]] = {SFT: sft, PREFERENCE: preferences, RL: rl}
_CHUNK = 500
_source: Histories  # of a worker process


def _begin_worker(wordnet: Path, start: Path) -> None:
    global _source
    _source = histories(read_wordnet(wordnet), start)


def _lines(chunk: tuple[str, int, int]) -> list[str]:
    kind, begin, end = chunk
    return [line_of(dialogue) for dialogue in KINDS[kind](_source, end, begin)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("start", type=Path, help="the folder of start.py")
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "--wordnet", type=Path, default=WORDNET, help="folder with data.noun, data.verb, data.adj, data.adv"
    )
    parser.add_argument("--sft", type=int, default=80_000)
    parser.add_argument("--preferences", type=int, default=6_000)
    parser.add_argument("--rl", type=int, default=4_000)
    parser.add_argument("--jobs", type=int, default=1, help="processes; the files are the same with any number")
    args = parser.parse_args()
    if args.jobs < 1:
        parser.error(f"expected --jobs of at least 1, found {args.jobs}")
    args.out.mkdir(parents=True, exist_ok=True)
    _begin_worker(args.wordnet, args.start)  # here too: what is missing is told once, before any process begins
    # An executor, not a pool: a pool would begin a process that died anew for ever.
    with ProcessPoolExecutor(
        args.jobs, multiprocessing.get_context("spawn"), _begin_worker, (args.wordnet, args.start)
    ) as pool:
        apply = pool.map if args.jobs > 1 else map
        for kind, n in ((SFT, args.sft), (PREFERENCE, args.preferences), (RL, args.rl)):
            chunks = [(kind, begin, min(begin + _CHUNK, n)) for begin in range(0, n, _CHUNK)]
            with (args.out / f"{kind}.jsonl").open("w", encoding="utf-8") as file:
                found = 0
                for lines in apply(_lines, chunks):
                    file.writelines(lines)
                    found += len(lines)
            print(f"{found:,} dialogues in {args.out / kind}.jsonl", file=sys.stderr)


if __name__ == "__main__":
    main()
