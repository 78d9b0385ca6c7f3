"""The rule-based teacher: a profile from key phrases and topics, without any model.

The rule reads what the compact prompt shows (`PromptView`), so that a small model can learn it from the prompt:

- interests: a line's phrases are its runs of words between stop words and punctuation, cut into threes from the
  left. A phrase weighs the sum of its words' rarity in the catalogue; a word met in several of the user's lines
  counts half again for each (three at most), one that neighbours share a quarter more. Interests are the heaviest
  phrase of the first line, of the second, of the third; then the second heaviest of each; title before description,
  the user's lines before the neighbours';
- identities: the topics in the order shown (what sets the user apart from the catalogue first), then the neighbours'
  topics, then the interests, each with a noun: `football nfl follower`, `war film fan`.

Where text is short it falls back on the topics and then on `… stories`, `works like …`; three and three always come out.
"""

from collections import Counter
from collections.abc import Iterator, Sequence

from reclm_lite.dialogue.templates import MAX_PHRASE_CHARS, Line, PromptView, film_name, item_view, prompt_view
from reclm_lite.errors import InputError
from reclm_lite.text.keyphrases import MAX_PHRASE_WORDS, PhraseStats, segments
from reclm_lite.types import ItemText, Profile

_NOUNS = {
    "follower": "sports sport football soccer basketball baseball hockey tennis golf racing news politics finance markets "
    "business economy weather world crime elections election government law science technology tech",
    "enthusiast": "health fitness wellness lifestyle food drink recipes cooking travel style beauty fashion home garden "
    "autos cars outdoors photography art",
    "listener": "music songs audio radio podcasts podcast jazz rock",
    "reader": "books book literature fiction novels poetry magazines history philosophy",
    "player": "games game gaming puzzles toys",
    "viewer": "tv television movies video videos entertainment",
    "shopper": "shopping deals electronics clothing shoes jewelry grocery tools kitchen office",
}
_NOUN_OF = {word: noun for noun, listed in _NOUNS.items() for word in listed.split()}
_MAX_NAME_CHARS = MAX_PHRASE_CHARS - 14


def identity_of(topic: str, *, film: bool) -> str:
    """`war` → `war film fan` beside films; `football nfl` → `football nfl follower`; anything else → `… fan`."""
    if film:
        return f"{topic} film fan"
    nouns = [_NOUN_OF[word] for word in topic.split() if word in _NOUN_OF]
    return f"{topic} {nouns[0] if nouns else 'fan'}"


def chunks(text: str) -> list[str]:
    """The phrases of a text in reading order: runs of words, cut into threes from the left, never digits alone."""
    found = []
    for run in segments(text):
        for start in range(0, len(run), MAX_PHRASE_WORDS):
            part = run[start : start + MAX_PHRASE_WORDS]
            while len(" ".join(part)) > _MAX_NAME_CHARS:
                part.pop()
            if part and not all(word.isdigit() for word in part):
                found.append(" ".join(part))
    return found


class RuleTeacher:
    """Profiles by rule; `stats` are the catalogue's document frequencies."""

    def __init__(self, stats: PhraseStats):
        self.stats = stats

    def profile(self, history: Sequence[ItemText], neighbors: Sequence[Sequence[ItemText]] = ()) -> Profile:
        """A user's profile; raises InputError where neither history nor neighbours have any words."""
        return self.from_view(prompt_view(history, neighbors, stats=self.stats))

    def item_profile(self, item: ItemText, co_items: Sequence[ItemText] = ()) -> Profile:
        """The profile of an item's audience; `co_items` are items that the same users have."""
        return self.from_view(item_view(item, co_items, stats=self.stats))

    def from_view(self, view: PromptView) -> Profile:
        """The profile of what a prompt shows; the view alone decides, with the rarity of words in `stats`."""
        interests = self._interests(view)
        films = bool([*view.lines, *view.near_lines] and (view.lines or view.near_lines)[0].is_film)
        identity = [identity_of(topic, film=films) for topic in view.topics + view.near_topics]
        return Profile(_first_three([*identity, *(f"{phrase} fan" for phrase in interests)]), tuple(interests))

    def _interests(self, view: PromptView) -> tuple[str, ...]:
        weights = self._word_weights(view)
        own = [self._ranked(line, weights) for line in view.lines]
        near = [self._ranked(line, weights) for line in view.near_lines]
        found = [*_round_robin(own), *_round_robin(near), *view.topics, *view.near_topics]
        if not found:
            raise InputError("expected words in the items' texts, found only punctuation; give the items titles or descriptions")
        return _first_three([*found, f"{found[0]} stories", f"works like {found[0]}"])

    def _word_weights(self, view: PromptView) -> dict[str, float]:
        own = Counter(word for line in view.lines for word in _line_words(line))
        near = {word for line in view.near_lines for word in _line_words(line)}
        return {
            word: self.stats.idf(word) * (1 + 0.5 * (min(own[word], 3) - 1 if own[word] else 0) + 0.25 * (word in near))
            for word in own.keys() | near
        }

    def _ranked(self, line: Line, weights: dict[str, float]) -> list[str]:
        """A line's phrases, the title's before the description's, heaviest first, ties in reading order."""
        title, ranked = film_name(line.title), []
        for text in (title, line.description):
            ranked += sorted(chunks(text), key=lambda phrase: -round(sum(weights[w] for w in phrase.lower().split()), 6))
        if not ranked:
            plain = "".join(c if c.isalnum() or c in "'-&" else " " for c in title).split()
            name = " ".join(plain[:MAX_PHRASE_WORDS])[:_MAX_NAME_CHARS].strip()
            ranked = [name] if any(c.isalnum() for c in name) else []
        return ranked


def _line_words(line: Line) -> set[str]:
    return {word for text in (line.title, line.description) for phrase in chunks(text) for word in phrase.lower().split()}


def _round_robin(ranked: list[list[str]]) -> Iterator[str]:
    """The first of each list, then the second of each; a phrase whose words were all given before is passed over."""
    seen: set[str] = set()
    for rank in range(max(map(len, ranked), default=0)):
        for phrases in ranked:
            if rank < len(phrases) and not seen.issuperset(phrases[rank].lower().split()):
                seen.update(phrases[rank].lower().split())
                yield phrases[rank]


def _first_three(phrases: Sequence[str]) -> tuple[str, ...]:
    found: dict[str, str] = {}
    for phrase in phrases:
        found.setdefault(phrase.casefold(), phrase)
    return tuple(list(found.values())[:3])
