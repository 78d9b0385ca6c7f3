"""Items as prompts show them: cleaned, cut to a length, and their leading phrase.

A title reads from its leading phrase on: stop words and marks before it are not shown (`The Matrix` reads `Matrix`).

Shortening rule: a text is cut at a word end after so many units, a title or part after `MAX_LINE`, a topic after
`MAX_TOPIC`. A unit is about half a token of the bundled model: 1 for a lower-case ASCII letter or a space, 2 for other
ASCII characters, 2 for each UTF-8 byte of anything else. Left out: which items are shown (`view`).
"""

import itertools
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

from ..text.bounds import bounded, bounded_item, few_marks
from ..text.keyphrases import MAX_CHUNK_CHARS, chunks, closing_year, topics_of, words
from ..types import ItemText

MAX_LINE = 70
MAX_TOPIC = 60
_KEPT_CHARS = 2_000  # of texts whose phrases are remembered: they take ten times the memory of the text
_ARTICLE = re.compile(r"^(.+), (The|An?|La|Le|Les|Il|El|Los|Las|Der|Die|Das)$")
_MARKS = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": " ", "\u201d": " ", "\u2013": "-", "\u2014": " - "})
_UNSAFE = re.compile(r"[<>|\[\]{}()\"`;\\^~*_#@=]|\u00ad|(?<!\w)'|'(?!\w)")


def clean(text: str) -> str:
    """One line of plain words: no control characters, brackets, quotes, semicolons or special-token look-alikes.

    `Matrix, The (1999)` becomes `The Matrix (1999)`; a closing year is the one thing that keeps its brackets.
    """
    text = unicodedata.normalize("NFC", few_marks(bounded(text))).translate(_MARKS)
    text = "".join(" " if unicodedata.category(c)[0] in "CZ" else c for c in text)
    text, year = closing_year(text)
    text = " ".join(word[:40] for word in _UNSAFE.sub(" ", text).split())
    if moved := _ARTICLE.match(text):
        text = f"{moved.group(2)} {moved.group(1)}"
    return f"{text} ({year})".strip() if year else text


def film_name(title: str) -> str:
    """The title without the closing year that marks a film."""
    return closing_year(title)[0]


_CHEAP = b" abcdefghijklmnopqrstuvwxyz"


def units(text: str) -> int:
    """The cost of a text, about two units a token (see the module's shortening rule)."""
    raw = text.encode("utf-8", errors="replace")
    return len(raw) + len(raw.translate(None, _CHEAP))


@lru_cache(maxsize=1 << 16)
def cut(text: str, limit: int) -> str:
    """The longest beginning of `text` that ends with a word (or, within one long word, a character) and fits."""
    if len(text) <= limit and units(text) <= limit:
        return text
    words, n, cost = text.split(maxsplit=limit), 0, -1  # fewer fit: each costs two units at least
    for word in words:
        cost += 1 + units(word)  # a space and the word
        if cost > limit:
            break
        n += 1
    kept = " ".join(words[:n])
    if not kept:
        costs = itertools.accumulate(map(units, text[: limit + 1]))
        kept = text[: sum(cost <= limit for cost in costs)]
    return kept.rstrip(" ,.:-")


@dataclass(frozen=True)
class Entry:
    """An item as prompts show it. words: of the title, in lower case. film: whether the title ends with a year."""

    topics: tuple[str, ...]
    topic: str  # the narrower ones: those of the subcategory, where that adds any
    title: str
    description: str
    words: frozenset[str]
    film: bool

    @cached_property
    def key(self) -> tuple[str, tuple[str, ...]]:
        return self.title, self.topics

    def __hash__(self) -> int:  # of all fields it would take longer than all else that is done with an entry
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash(self.key)


def entries(items: Sequence[ItemText]) -> Sequence[Entry]:
    """The distinct items with any text, cleaned, in the order of their text."""
    return _entries_of(tuple(items))


def in_words(entries: Sequence[Entry]) -> list[Entry]:
    """Those whose title says anything at all."""
    return [entry for entry in entries if any(map(str.isalnum, entry.title))]


@lru_cache(maxsize=1 << 14)  # a user is a neighbor of many
def _entries_of(items: tuple[ItemText, ...]) -> tuple[Entry, ...]:
    found: dict[tuple[str, tuple[str, ...]], Entry] = {}
    for item in sorted(set(items), key=lambda i: (i.title, i.category, i.subcategory, i.description)):
        entry = _entry(item)
        if entry.title:
            found.setdefault(entry.key, entry)
    return tuple(found[key] for key in sorted(found))


@lru_cache(maxsize=1 << 16)
def _entry(item: ItemText) -> Entry:
    item = bounded_item(item)
    title, description = clean(item.title), clean(item.description)
    if not title:
        title, description = cut(description, MAX_LINE), ""
    every = topics_of(item)
    topics = tuple(sorted({cut(topic, MAX_TOPIC) for topic in every} - {""}))
    broad = set(topics_of(replace(item, subcategory="")))
    narrow = {cut(topic, MAX_TOPIC) for topic in every if topic not in broad} - {""}
    title = cut(title, MAX_LINE) or ", ".join(topics)
    film = bool(closing_year(item.title)[1])
    return Entry(
        topics,
        cut(" / ".join(sorted(narrow) or topics), MAX_TOPIC),
        title,
        description,
        frozenset(w.lower() for w in words(title)),
        film,
    )


@lru_cache(maxsize=1 << 16)
def leading_phrase(line: str) -> str:
    """A line's first run of at most three words between stop words and punctuation; its first words if it has none."""
    title = film_name(line)
    for phrase in phrases_of(title):
        return phrase
    plain = "".join(c if c.isalnum() or c in "'-&" else " " for c in title).split()
    name = " ".join(plain[:3])[:MAX_CHUNK_CHARS].strip()
    return name if any(c.isalnum() for c in name) else ""


def phrases_of(text: str) -> tuple[str, ...]:
    """The key phrases of a text, in reading order."""
    return _kept_phrases(text) if len(text) <= _KEPT_CHARS else tuple(chunks(text))


@lru_cache(maxsize=1 << 15)
def _kept_phrases(text: str) -> tuple[str, ...]:
    return tuple(chunks(text))


def shown_title(item: ItemText) -> str:
    """An item's title as prompts show it (a description if there is none); empty if there are no words."""
    found = in_words(entries([item]))
    return found[0].title if found and leading_phrase(found[0].title) else ""


def title_key(item: ItemText) -> str:
    """What tells an item by its words: equal for items that a prompt would call the same; empty if there are
    none."""
    return shown_title(item).casefold()


def from_phrase(line: str) -> str:
    """A line from its leading phrase on, as a view shows it."""
    return line[max(0, line.find(leading_phrase(line))) :]
