"""Candidate key phrases of short texts, and their frequencies in a catalogue.

A phrase is one to three adjacent words without a stop word or punctuation mark between them. Words keep their case;
counts ignore it. For scripts without spaces (Chinese, Japanese, Thai) there is no word segmentation: a run of such
characters is cut into pieces of at most eight, which is crude but never fails.

Left out: stemming, part-of-speech tags, any language model. The counts are document frequencies.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache

from reclm_lite.types import ItemText

from .bounds import bounded_item

MAX_PHRASE_WORDS = 3
MAX_WORD_CHARS = 30
MAX_CHUNK_CHARS = 46
_RUN_CHARS = 8

STOP_WORDS = frozenset(
    """a about above across after again against ago ahead all almost along already also although always am amid among an
    and another any anyone anything are aren't around as at away back be became because become been before behind being
    below beneath beside besides best better between beyond both but by came can can't cannot come comes could couldn't
    did didn't do does doesn't doing don't done down during each either else enough especially etc even ever every
    everyone everything except far few first for from further gave get gets getting give given go goes going gone got
    had has hasn't have haven't having he he's her here here's hers herself him himself his how however i i'm if in
    inside instead into is isn't it it's its itself just keep know known last least less let let's like likely made
    make makes making many may maybe me might mine more most much must my myself near need never new next no nobody none
    nor not nothing now of off often on once one ones only onto or other others our ours out outside over own past per
    perhaps put quite rather really said same saw say saying says see seen several shall she she's should since so some
    someone something still such take taken takes tell than that that's the their theirs them themselves then there
    there's these they they're thing things this those though through throughout till to together told too took toward
    towards two under until unto up upon us use used uses using usually very via want wants was wasn't way we we're well
    went were weren't what what's whatever when where whether which while who who's whole whom whose why will with
    within without won't would wouldn't yes yet you you'd you'll you're you've your yours yourself vs and/or""".split()
)

_UNSPACED = "\u0e00-\u0e7f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_TOKEN = re.compile(
    rf"[{_UNSPACED}]{{1,{_RUN_CHARS}}}|(?:(?![{_UNSPACED}])[^\W_])(?:(?![{_UNSPACED}])[\w'&+-])*|[^\w\s]"
)


def closing_year(text: str) -> tuple[str, str]:
    """(text before it, year) of a text that ends with a year in brackets, like film titles; else (text, "").

    Not a regular expression: one with leading optional spaces takes quadratic time on runs of spaces.
    """
    whole = text.rstrip()
    year = whole[-5:-1]
    if whole[-6:-5] == "(" and whole[-1:] == ")" and len(year) == 4 and year.isascii() and year.isdigit():
        return whole[:-6].rstrip(), year
    return text, ""


def segments(text: str) -> list[list[str]]:
    """Runs of adjacent words without stop words or punctuation marks between them, in reading order."""
    runs: list[list[str]] = []
    run: list[str] = []
    end = -1
    for match in _TOKEN.finditer(text):
        if run and match.start() == end:  # two words without a space between: pieces of an unspaced run
            runs.append(run)
            run = []
        end = match.end()
        token = match.group().rstrip("'-&+_")
        if token and token[0].isalnum() and len(token) <= MAX_WORD_CHARS and token.lower() not in STOP_WORDS:
            run.append(token)
        elif run:
            runs.append(run)
            run = []
        if run and len(token) < len(match.group()):
            runs.append(run)
            run = []
    if run:
        runs.append(run)
    return runs


def words(text: str) -> list[str]:
    """The words except stop words, in reading order, with their case."""
    return [word for run in segments(text) for word in run]


def chunks(text: str) -> list[str]:
    """The phrases of a text in reading order: runs of words cut into threes from the left, without bare digits."""
    found = []
    for run in segments(text):
        for start in range(0, len(run), MAX_PHRASE_WORDS):
            part = run[start : start + MAX_PHRASE_WORDS]
            while len(" ".join(part)) > MAX_CHUNK_CHARS:
                part.pop()
            if part and not all(word.isdigit() for word in part):
                found.append(" ".join(part))
    return found


def candidates(text: str) -> list[str]:
    """Every phrase of one to three words once, in its first spelling, in reading order."""
    found: dict[str, str] = {}
    for run in segments(text):
        for start in range(len(run)):
            for stop in range(start + 1, min(start + MAX_PHRASE_WORDS, len(run)) + 1):
                phrase = " ".join(run[start:stop])
                found.setdefault(phrase.lower(), phrase)
    return list(found.values())


@lru_cache(maxsize=1 << 16)
def topics_of(item: ItemText) -> tuple[str, ...]:
    """The item's topics in lower case, most specific last; `|`, `,`, `/` and `;` separate topics within a field.

    A subcategory that starts with its category is split: `travel`, `travelnews` gives `travel news`. A title that ends
    with a year, like film titles, adds its decade: `1990s`.
    """
    item = bounded_item(item)
    found: dict[str, None] = {}
    category = ""
    for field in (item.category, item.subcategory):
        for part in re.split(r"[|,/;]", field):
            topic = " ".join(re.sub(r"[^\w\s'&+-]|_", " ", part).split()).lower()[:MAX_WORD_CHARS].strip()
            if (
                category
                and len(topic) > len(category) + 1
                and topic.startswith(category)
                and topic[len(category)].isalnum()
            ):
                topic = f"{category} {topic[len(category) :]}"
            if topic and topic != "no genres listed":
                found.setdefault(topic)
        category = next(iter(found), "") if len(found) == 1 else ""
    if year := closing_year(item.title)[1]:
        found.setdefault(f"{year[:3]}0s")
    return tuple(found)


class PhraseStats:
    """Document frequencies of phrases and topics in a catalogue."""

    def __init__(self, n_texts: int, phrase_counts: dict[str, int], topic_counts: dict[str, int]):
        self.n_texts = n_texts
        self.phrase_counts = phrase_counts
        self.topic_counts = topic_counts

    @classmethod
    def from_texts(cls, texts: Iterable[str], topics: Iterable[Sequence[str]] = ()) -> "PhraseStats":
        """Counts over `texts`; topics: those of each item, if any.

        Phrases of several words that occur in one text only are not stored; unknown phrases count as seen once anyway.
        """
        counts: Counter[str] = Counter()
        n_texts = 0
        for text in texts:
            n_texts += 1
            counts.update({phrase.lower() for phrase in candidates(text)})
        kept = {phrase: count for phrase, count in counts.items() if count > 1 or " " not in phrase}
        topic_counts: Counter[str] = Counter()
        for item_topics in topics:
            topic_counts.update(set(item_topics))
        return cls(n_texts, kept, dict(topic_counts))

    @classmethod
    def from_items(cls, items: Iterable[ItemText]) -> "PhraseStats":
        """Counts over a catalogue: titles and descriptions for phrases, categories for topics."""
        items = list(items)
        texts = (f"{item.title}. {item.description}" for item in map(bounded_item, items))
        return cls.from_texts(texts, (topics_of(item) for item in items))

    def idf(self, phrase: str) -> float:
        """Inverse document frequency, `log((1 + n_texts) / (1 + count))`, at least 0."""
        return max(0.0, math.log((1 + self.n_texts) / (1 + self.phrase_counts.get(phrase.lower(), 0))))

    def topic_share(self, topic: str) -> float:
        """The share of the catalogue's items with the topic, smoothed to be above 0."""
        return (self.topic_counts.get(topic, 0) + 0.5) / (self.n_texts + 1.0)
