"""What is shown of a history: the choice of topics, lines and items, before any wording.

A view depends on the *sets* of items and of neighbors, not on their order or repetition. It has three topics and three
lines.

- Topics are those of the whole history, the ones that set it apart first (relative to the catalogue where `stats` is
  given), with the neighbors' topics counted at a quarter of the weight; then topics the user lacks and at least half
  of the neighbors have; then the lines' leading phrases. None begins like another.
- Lines are items chosen one by one: the item with the heaviest topics and the most words shared with the rest of the
  history, after which its topics and words count half, so that the lines cover the history. A history too short for
  three lines is shown in parts: its titles cut before a later phrase (the phrase of rarest words first), then its
  descriptions, then the neighbors' items that the user does not have, those of most neighbors first.

Left out: how single texts are cleaned and shortened (`entries`), and the wording (`compact`, `instruct`).
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import InputError
from ..text.keyphrases import PhraseStats, topics_of
from ..types import ItemText
from .entries import (
    MAX_LINE,
    MAX_TOPIC,
    Entry,
    cut,
    entries,
    film_name,
    from_phrase,
    in_words,
    leading_phrase,
    phrases_of,
)

N_SLOTS = 3
MAX_UNITS = 480  # of a compact prompt: no view makes a longer one
_PART_CHARS = 4 * MAX_LINE  # of a part, before it is cut to a line: more never shows, since a character costs a unit
_NEIGHBOR_WEIGHT = 0.25

_FILLERS = ("stories", "classics", "discoveries")


@dataclass(frozen=True)
class PromptView:
    """What a compact prompt shows, before it becomes text; the rule-based teacher reads the same.

    `topics` and `lines` hold three entries each; `leading_phrase` differs from line to line.
    """

    topics: tuple[str, ...]
    lines: tuple[str, ...]
    film: bool


def _topic_weights(
    own: Sequence[Entry], near: Sequence[Sequence[Entry]], depth: dict[str, int], stats: PhraseStats | None
) -> dict[str, float]:
    """Each own topic's share of the history, against its share of the catalogue where that is known."""
    counts: dict[str, float] = dict(Counter(topic for entry in own for topic in entry.topics))
    n_own = max(1, len(own))
    if near:
        for entries in near:
            for topic, count in Counter(t for entry in entries for t in entry.topics).items():
                if topic in counts:
                    counts[topic] += _NEIGHBOR_WEIGHT * n_own * count / len(entries) / len(near)
    weights = {}
    for topic, weight in counts.items():
        share = weight / n_own
        lift = max(0.02, math.log((share + 0.01) / stats.topic_share(topic))) if stats else 1.0 + 0.001 * depth[topic]
        weights[topic] = share * lift
    return weights


def prompt_view(
    history: Sequence[ItemText], neighbors: Sequence[Sequence[ItemText]] = (), *, stats: PhraseStats | None = None
) -> PromptView:
    """What the prompt shows of a history and its neighbors' histories; raises InputError if there is no text."""
    own = entries(history)
    near = sorted((e for e in map(entries, neighbors) if e), key=lambda entries: [e.key for e in entries])
    if not own and not near:
        raise InputError("expected at least one item with text, found none; give the items a title or a description")
    depth: dict[str, int] = {}
    for item in history:
        for position, topic in enumerate(topics_of(item)):
            depth[cut(topic, MAX_TOPIC)] = max(depth.get(topic, 0), position)
    weights = _topic_weights(own, near, depth, stats)
    ranked = sorted(weights, key=lambda t: (-weights[t], t))
    chosen = _choose(own, weights, stats)
    near_topics, near_titles = _near(near, own, weights)
    topics = [*ranked, *near_topics]
    lines = _fill([e.title for e in chosen], [])
    if len(lines) < N_SLOTS:
        lines = _fill(_parts(chosen, near, stats), lines)
    lines = _fill([*near_titles, *topics], lines)
    if not lines:
        raise InputError(
            "expected words in the items' texts, found only punctuation; give the items titles or descriptions"
        )
    film = (chosen or near[0])[0].film
    lines = _fill(_FILLERS, lines)
    topics += [cut(leading_phrase(line), MAX_TOPIC) for line in lines]
    return PromptView(_distinct([*topics, *_FILLERS]), _apart(lines), film)


def _distinct(topics: Sequence[str]) -> tuple[str, ...]:
    """The first `N_SLOTS` of which none begins with another's first word (`news` says little beside `news us`)."""
    found: list[str] = []
    said: list[str] = []
    for topic in topics:
        first = re.split(r"[\s-]", topic.casefold())[0]
        if first and not any(first.startswith(other) or other.startswith(first) for other in said):
            found.append(topic)
            said.append(first)
        if len(found) == N_SLOTS:
            break
    return tuple(found)


def _apart(lines: list[str]) -> tuple[str, ...]:
    """Each line from its leading phrase on, up to where another takes over a later part of the same text."""
    cut = []
    for line in map(from_phrase, lines):
        found = (line.find(other) for other in lines if other != line)
        end = min((at for at in found if at >= len(leading_phrase(line))), default=len(line))
        shorter = line[:end].rstrip(" ,:.-")
        cut.append(shorter if leading_phrase(shorter) == leading_phrase(line) else line)
    return tuple(cut)


def _fill(texts: Sequence[str], lines: list[str]) -> list[str]:
    """`lines` and then `texts` up to `N_SLOTS`, leaving out texts whose leading phrase says nothing new."""
    lines = list(lines)
    said = [set(leading_phrase(line).casefold().split()) for line in lines]
    for text in texts:
        if len(lines) >= N_SLOTS:
            break
        phrase = set(leading_phrase(text).casefold().split())
        if phrase and not any(phrase <= other for other in said):
            lines.append(text)
            said.append(phrase)
    return lines


def _parts(chosen: list[Entry], near: Sequence[Sequence[Entry]], stats: PhraseStats | None) -> list[str]:
    """Titles, then descriptions, each again from every phrase on, the phrase of rarest words first."""
    told = {word for entries in near for entry in entries for word in entry.words}
    found = []
    for field in ("title", "description"):
        ranked: list[tuple[float, int, str]] = []
        for text in (film_name(getattr(entry, field)) for entry in chosen):
            start = 0
            for phrase in phrases_of(text):
                start = max(start, text.find(phrase, start))
                weight = sum(
                    (stats.idf(w) if stats else 1.0) * (1.25 if w in told else 1.0) for w in phrase.lower().split()
                )
                ranked.append((-round(weight, 6), len(ranked), cut(text[start : start + _PART_CHARS], MAX_LINE)))
                start += len(phrase)
        found += [part for _, _, part in sorted(ranked)]
    return found


def _choose(own: Sequence[Entry], weights: dict[str, float], stats: PhraseStats | None) -> list[Entry]:
    """The items to show, in the order to show them; `own` is sorted, so that ties go to the lower text."""
    counts = Counter(word for entry in own for word in entry.words)
    n_own = max(1, len(own))
    shared = {w: (stats.idf(w) if stats else 1.0) * n / n_own for w, n in counts.items() if n > 1}
    weights = dict(weights)
    left = list(own)
    chosen: list[Entry] = []
    while left and len(chosen) < 2 * N_SLOTS:
        scores = [
            sum(weights[t] for t in e.topics) / (1 + len(e.topics))
            + sum(sorted(shared.get(w, 0.0) for w in e.words)) / (1 + len(e.words))
            for e in left
        ]
        best = left.pop(max(range(len(left)), key=lambda i: (round(scores[i], 9), -i)))
        chosen.append(best)
        for topic in best.topics:
            weights[topic] /= 2
        for word in best.words:
            shared[word] = shared.get(word, 0.0) / 2
    return chosen


def _near(
    near: Sequence[Sequence[Entry]], own: Sequence[Entry], weights: dict[str, float]
) -> tuple[list[str], list[str]]:
    """The neighbors' topics and titles that the user does not have, most common first."""
    have = {entry.key for entry in own}
    held = Counter(entry for entries in near for entry in entries if entry.key not in have)
    topic_counts = Counter(t for entries in near for t in {t for e in entries for t in e.topics} if t not in weights)
    topics = sorted((t for t, n in topic_counts.items() if 2 * n >= len(near)), key=lambda t: (-topic_counts[t], t))
    closeness = {e: sum(weights.get(t, 0.0) for t in e.topics) for e in held}
    entries = sorted(held, key=lambda e: (-held[e], -round(closeness[e], 9), e.key))
    return topics[:N_SLOTS], [entry.title for entry in entries[: 2 * N_SLOTS]]


def item_view(item: ItemText, co_items: Sequence[ItemText] = (), *, stats: PhraseStats | None = None) -> PromptView:
    """What `item_prompt` shows: the item as a history of one, each co-item as a neighbor."""
    return prompt_view([item], [[other] for other in co_items], stats=stats)


def title_lines(items: Sequence[ItemText], n: int = N_SLOTS) -> tuple[str, ...]:
    """At most `n` titles that stand for a history, chosen and shown as a view's lines are; no parts, nothing filled in.

    Raises InputError if there are no words.
    """
    own = in_words(entries(items))
    depth = {topic: 0 for entry in own for topic in entry.topics}
    chosen = _choose(own, _topic_weights(own, (), depth, None), None)
    lines = _fill([entry.title for entry in chosen], [])[:n]
    if not lines:
        raise InputError("expected words in the items' texts, found none; give the items titles or descriptions")
    return tuple(map(from_phrase, lines))
