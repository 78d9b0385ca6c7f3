"""What the profile model is shown and what it answers: one compact prompt, one plain-words prompt, one answer form.

The compact prompt (for the bundled model) is canonical: it depends on the *sets* of items and of neighbours, not on
their order or repetition. `prompt_view` decides what is shown:

- topics: those of the whole history, the ones that set it apart first (relative to the catalogue where `stats` is
  given), with the neighbours' topics counted at a quarter of the weight;
- lines: at most `MAX_LINES` items, chosen one by one: the item with the heaviest topics and the most words shared
  with the rest of the history, after which its topics and words count half, so that the lines cover the history;
- neighbours: at most `MAX_NEAR_LINES` of their items the user does not have, those of most neighbours first, and
  the topics the user lacks.

Shortening rule. Titles are cut at a word end after `MAX_TITLE` units, descriptions are shown only beside one or two
lines, and then lines are dropped (neighbours' first, then the user's last) until the prompt costs at most
`max_units`. A unit is about half a token of the bundled model in the worst case of each kind of character: 1 for a
lower-case ASCII letter or a space, 2 for other ASCII, 2 for each UTF-8 byte of anything else.
"""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from reclm_lite.errors import InputError, ProfileFormatError
from reclm_lite.text.keyphrases import PhraseStats, topics_of, words
from reclm_lite.types import ItemText, Profile

TEMPLATE_VERSION = "1"

MAX_LINES = 4
MAX_NEAR_LINES = 2
MAX_TOPICS = 4
MAX_NEAR_TOPICS = 2
MAX_TITLE = 110
MAX_DESCRIPTION = (220, 90)
MAX_UNITS = 640
MAX_PHRASE_CHARS = 60
_NEIGHBOR_WEIGHT = 0.25

_YEAR = re.compile(r"\s*\((\d{4})\)\s*$")
_ARTICLE = re.compile(r"^(.+), (The|An?|La|Le|Les|Il|El|Los|Las|Der|Die|Das)$")
_MARKS = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": " ", "\u201d": " ", "\u2013": "-", "\u2014": " - "})
_UNSAFE = re.compile(r"[<>|\[\]{}()\"`;\\^~*_#@=]|\u00ad|(?<!\w)'|'(?!\w)")


@dataclass(frozen=True)
class Line:
    """One item as the prompt shows it."""

    topic: str
    title: str
    description: str = ""

    def __str__(self) -> str:
        head = f"- {self.topic}: {self.title}" if self.topic else f"- {self.title}"
        return f"{head}. {self.description}" if self.description else head

    @property
    def is_film(self) -> bool:
        return bool(_YEAR.search(self.title))


@dataclass(frozen=True)
class PromptView:
    """What a compact prompt shows, before it becomes text; the rule-based teacher reads the same."""

    topics: tuple[str, ...]
    lines: tuple[Line, ...]
    near_topics: tuple[str, ...]
    near_lines: tuple[Line, ...]


def clean(text: str) -> str:
    """One line of plain words: no control characters, brackets, quotes, semicolons or special-token look-alikes.

    `Matrix, The (1999)` becomes `The Matrix (1999)`; a closing year is the one thing that keeps its brackets.
    """
    text = unicodedata.normalize("NFC", text).translate(_MARKS)
    text = "".join(" " if unicodedata.category(c)[0] in "CZ" else c for c in text)
    text, year = (_YEAR.sub("", text), found.group(1)) if (found := _YEAR.search(text)) else (text, "")
    text = " ".join(word[:40] for word in _UNSAFE.sub(" ", text).split())
    if moved := _ARTICLE.match(text):
        text = f"{moved.group(2)} {moved.group(1)}"
    return f"{text} ({year})".strip() if year else text


def film_name(title: str) -> str:
    """The title without the closing year that marks a film."""
    return _YEAR.sub("", title)


def units(text: str) -> int:
    """The cost of a text, about two units a token (see the module's shortening rule)."""
    return sum(1 if c == " " or "a" <= c <= "z" else 2 * len(c.encode()) for c in text)


def _cut(text: str, limit: int) -> str:
    """The longest beginning of `text` that ends with a word (or, within one long word, a character) and fits."""
    if units(text) <= limit:
        return text
    kept = ""
    for word in text.split():
        longer = f"{kept} {word}".strip()
        if units(longer) > limit:
            break
        kept = longer
    while not kept and text:
        text = text[:-1]
        kept = text if units(text) <= limit else ""
    return kept.rstrip(" ,.:-")


@dataclass(frozen=True)
class _Entry:
    topics: tuple[str, ...]
    title: str
    description: str
    words: frozenset[str]

    @property
    def key(self) -> tuple[str, tuple[str, ...]]:
        return self.title, self.topics


def _entries(items: Sequence[ItemText]) -> list[_Entry]:
    """The distinct items with any text, cleaned, in the order of their text."""
    found: dict[tuple[str, tuple[str, ...]], _Entry] = {}
    for item in sorted(set(items), key=lambda i: (i.title, i.category, i.subcategory, i.description)):
        title, description = clean(item.title), clean(item.description)
        if not title:
            title, description = _cut(description, MAX_TITLE), ""
        topics = tuple(sorted(topics_of(item)))
        title = _cut(title, MAX_TITLE) or ", ".join(topics)
        if title:
            entry = _Entry(topics, title, description, frozenset(w.lower() for w in words(title)))
            found.setdefault(entry.key, entry)
    return [found[key] for key in sorted(found)]


def _topic_weights(
    own: list[_Entry], near: list[list[_Entry]], depth: dict[str, int], stats: PhraseStats | None
) -> dict[str, float]:
    """Each own topic's share of the history, against its share of the catalogue where that is known."""
    counts: dict[str, float] = Counter(topic for entry in own for topic in entry.topics)
    n_own = max(1, len(own))
    if near:
        for entries in near:
            for topic, count in Counter(t for entry in entries for t in entry.topics).items():
                if topic in counts:
                    counts[topic] += _NEIGHBOR_WEIGHT * n_own * count / len(entries) / len(near)
    weights = {}
    for topic, count in counts.items():
        share = count / n_own
        lift = max(0.02, math.log((share + 0.01) / stats.topic_share(topic))) if stats else 1.0 + 0.001 * depth[topic]
        weights[topic] = share * lift
    return weights


def prompt_view(
    history: Sequence[ItemText],
    neighbors: Sequence[Sequence[ItemText]] = (),
    *,
    stats: PhraseStats | None = None,
    max_units: int = MAX_UNITS,
) -> PromptView:
    """What the prompt shows of a history and its neighbours' histories; raises InputError where there is no text."""
    own = _entries(history)
    near = sorted((e for e in map(_entries, neighbors) if e), key=lambda entries: [e.key for e in entries])
    if not own and not near:
        raise InputError("expected at least one item with text, found none; give the items a title or a description")
    depth: dict[str, int] = {}
    for item in history:
        for position, topic in enumerate(topics_of(item)):
            depth[topic] = max(depth.get(topic, 0), position)
    weights = _topic_weights(own, near, depth, stats)
    ranked = sorted(weights, key=lambda t: (-weights[t], t))
    chosen = _choose(own, weights, stats)
    lines = [Line(_head(entry, ranked), entry.title, "") for entry in chosen]
    if len(chosen) <= len(MAX_DESCRIPTION):
        limit = MAX_DESCRIPTION[max(0, len(chosen) - 1)]
        lines = [Line(line.topic, line.title, _cut(e.description, limit)) for line, e in zip(lines, chosen)]
    near_topics, near_lines = _near(near, own, weights)
    view = PromptView(tuple(ranked[:MAX_TOPICS]), tuple(lines), near_topics, near_lines)
    return _shorten(view, max_units)


def _head(entry: _Entry, ranked: Sequence[str]) -> str:
    """The topic a line shows: the item's topic that says most about the user."""
    for topic in ranked:
        if topic in entry.topics:
            return topic
    return entry.topics[0] if entry.topics else ""


def _choose(own: list[_Entry], weights: dict[str, float], stats: PhraseStats | None) -> list[_Entry]:
    """The items to show, in the order to show them; `own` is sorted, so that ties go to the lower text."""
    counts = Counter(word for entry in own for word in entry.words)
    n_own = max(1, len(own))
    shared = {w: (stats.idf(w) if stats else 1.0) * n / n_own for w, n in counts.items() if n > 1}
    weights = dict(weights)
    left, chosen = list(own), []
    while left and len(chosen) < MAX_LINES:
        def score(entry: _Entry) -> float:
            by_topic = sum(weights[t] for t in entry.topics) / (1 + len(entry.topics))
            return by_topic + sum(sorted(shared.get(w, 0.0) for w in entry.words)) / (1 + len(entry.words))

        best = max(left, key=lambda entry: round(score(entry), 9))
        chosen.append(best)
        left.remove(best)
        for topic in best.topics:
            weights[topic] /= 2
        for word in best.words:
            shared[word] = shared.get(word, 0.0) / 2
    return chosen


def _near(near: list[list[_Entry]], own: list[_Entry], weights: dict[str, float]) -> tuple[tuple[str, ...], tuple[Line, ...]]:
    have = {entry.key for entry in own}
    held = Counter(entry for entries in near for entry in entries if entry.key not in have)
    topic_counts = Counter(t for entries in near for t in {t for e in entries for t in e.topics} if t not in weights)
    topics = sorted(topic_counts, key=lambda t: (-topic_counts[t], t))[:MAX_NEAR_TOPICS]
    closeness = {e: sum(weights.get(t, 0.0) for t in e.topics) for e in held}
    entries = sorted(held, key=lambda e: (-held[e], -round(closeness[e], 9), e.key))[:MAX_NEAR_LINES]
    return tuple(topics), tuple(Line(_head(e, sorted(weights, key=lambda t: (-weights[t], t))), e.title) for e in entries)


def _shorten(view: PromptView, max_units: int) -> PromptView:
    """The shortening rule: neighbours' lines go first, then the descriptions, then the last own lines."""
    topics, lines, near_topics, near_lines = list(view.topics), list(view.lines), list(view.near_topics), list(view.near_lines)
    while True:
        short = PromptView(tuple(topics), tuple(lines), tuple(near_topics), tuple(near_lines))
        if units(render(short)) <= max_units:
            return short
        if near_lines and lines:
            near_lines.pop()
        elif any(line.description for line in lines):
            lines = [Line(line.topic, line.title) for line in lines]
        elif len(lines) > 1:
            lines.pop()
        elif len(near_lines) > 1:
            near_lines.pop()
        elif near_topics:
            near_topics.pop()
        elif len(topics) > 1:
            topics.pop()
        else:
            raise InputError(f"expected room for one line of text, found max_units={max_units}; give at least {MAX_UNITS // 2}")


def render(view: PromptView, subject: str = "History") -> str:
    """The compact prompt; the answer follows its last line break at once."""
    parts = []
    if view.topics:
        parts.append("Topics: " + ", ".join(view.topics))
    if view.lines:
        parts += [f"{subject}:", *map(str, view.lines)]
    if view.near_topics or view.near_lines:
        parts.append(" ".join(["Similar:", ", ".join(view.near_topics)]).strip())
        parts += map(str, view.near_lines)
    return "\n".join([*parts, "Profile:"]) + "\n"


def user_prompt(
    history: Sequence[ItemText],
    neighbors: Sequence[Sequence[ItemText]] = (),
    *,
    stats: PhraseStats | None = None,
    max_units: int = MAX_UNITS,
) -> str:
    """The bundled model's prompt for a user; the completion is `format_profile`'s text, then end of sequence.

    `stats` (the catalogue's) lets the prompt put first what sets the user apart; without it, what is most frequent.
    """
    return render(prompt_view(history, neighbors, stats=stats, max_units=max_units))


def item_prompt(
    item: ItemText, co_items: Sequence[ItemText] = (), *, stats: PhraseStats | None = None, max_units: int = MAX_UNITS
) -> str:
    """The bundled model's prompt for the audience of an item; `co_items` are items that the same users have."""
    return render(item_view(item, co_items, stats=stats, max_units=max_units), "Item")


def item_view(
    item: ItemText, co_items: Sequence[ItemText] = (), *, stats: PhraseStats | None = None, max_units: int = MAX_UNITS
) -> PromptView:
    """What `item_prompt` shows: the item as a history of one, each co-item as a neighbour."""
    return prompt_view([item], [[other] for other in co_items], stats=stats, max_units=max_units)


def instruct_prompt(history: Sequence[ItemText], neighbors: Sequence[Sequence[ItemText]] = (), *, max_items: int = 20) -> str:
    """A plain-words instruction for any instruct model, asking for the same answer form."""
    own, others = _entries(history), [_entries(n) for n in neighbors]
    others = sorted((e for e in others if e), key=lambda entries: [e.key for e in entries])
    if not own and not others:
        raise InputError("expected at least one item with text, found none; give the items a title or a description")

    def show(entry: _Entry, limit: int) -> str:
        return str(Line(" / ".join(entry.topics), entry.title, _cut(entry.description, limit)))

    parts = [
        "You describe the taste of one person for a recommender system, from what the person has read, watched or bought."
    ]
    if own:
        parts += ["", "The person's own items:", *(show(e, 200) for e in own[:max_items])]
    for number, entries in enumerate(others[:5], 1):
        parts += ["", f"Items of similar person {number} (a hint only):", *(show(e, 0) for e in entries[:5])]
    parts += [
        "",
        "Name three short identities (what kind of person this is) and three short interests (subjects the person's own "
        "items are about). Answer with one line in exactly this form and nothing else:",
        "User identity: first, second, third; User interests: first, second, third",
    ]
    return "\n".join(parts) + "\n"


def format_profile(profile: Profile) -> str:
    """`User identity: a, b, c; User interests: x, y, z`."""
    return f"User identity: {', '.join(profile.identity)}; User interests: {', '.join(profile.interests)}"


_ANSWER = re.compile(r"User identity: *([^;\n]*); *User interests: *([^;\n]*?)\.?", re.IGNORECASE)


def parse_profile(text: str) -> Profile:
    """The profile in a model's answer; raises ProfileFormatError unless it has the published form.

    Surrounding whitespace and a final full stop are forgiven; nothing may come before or after.
    """
    match = _ANSWER.fullmatch(text.strip())
    if not match:
        raise ProfileFormatError(
            f"expected 'User identity: a, b, c; User interests: x, y, z', found {text[:80]!r}; generate the profile again"
        )
    lists = []
    for name, part in zip(("identities", "interests"), match.groups()):
        phrases = tuple(" ".join(phrase.split()) for phrase in part.split(","))
        if len(phrases) != 3 or not all(phrases):
            raise ProfileFormatError(f"expected 3 {name}, found {part[:80]!r}; generate the profile again")
        if len({phrase.casefold() for phrase in phrases}) != 3:
            raise ProfileFormatError(f"expected 3 different {name}, found {part[:80]!r}; generate the profile again")
        if longest := [phrase for phrase in phrases if len(phrase) > MAX_PHRASE_CHARS]:
            raise ProfileFormatError(
                f"expected {name} of at most {MAX_PHRASE_CHARS} characters, found {len(longest[0])}; generate the profile again"
            )
        lists.append(phrases)
    return Profile(*lists)
