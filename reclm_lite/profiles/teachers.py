"""The rule-based teacher: a profile from key phrases and topics, without any model.

The rule reads what the compact prompt shows (`PromptView`), so that a small model can learn it from the prompt. What
sets the history apart from the catalogue, and the neighbours' share in that, decides which topics and lines are shown
and in which order (`prompt_view`). From there:

- identities: the three topics, each with a noun: `football nfl follower`, `war film fan`;
- interests: the leading phrase of each of the three lines, that is, its first run of at most three words that no
  stop word and no punctuation mark interrupts.

`prompt_view` fills up from neighbours, topics and stock words, so that three and three always come out.
"""

from collections.abc import Sequence

from reclm_lite.prompts.entries import leading_phrase
from reclm_lite.prompts.view import PromptView, item_view, prompt_view
from reclm_lite.text.keyphrases import PhraseStats
from reclm_lite.types import ItemText, Profile

_NOUNS = {
    "follower": "sports sport football soccer basketball baseball hockey tennis golf racing news politics finance "
    "markets "
    "business economy weather world crime elections election government law science technology tech",
    "enthusiast": "health fitness wellness lifestyle food drink recipes cooking travel style beauty fashion home "
    "garden "
    "autos cars outdoors photography art",
    "listener": "music songs audio radio podcasts podcast jazz rock",
    "reader": "books book literature fiction novels poetry magazines history philosophy",
    "player": "games game gaming puzzles toys",
    "viewer": "tv television movies video videos entertainment",
    "shopper": "shopping deals electronics clothing shoes jewelry grocery tools kitchen office",
}
_NOUN_OF = {word: noun for noun, listed in _NOUNS.items() for word in listed.split()}


def identity_of(topic: str, *, film: bool) -> str:
    """`war` → `war film fan` beside films; `football nfl` → `football nfl follower`; anything else → `… fan`."""
    if film:
        return f"{topic} film fan"
    nouns = [_NOUN_OF[word] for word in topic.split() if word in _NOUN_OF]
    return f"{topic} {nouns[0] if nouns else 'fan'}"


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

    @staticmethod
    def from_view(view: PromptView) -> Profile:
        """The profile of what a prompt shows; nothing else decides."""
        return Profile(
            tuple(identity_of(topic, film=view.film) for topic in view.topics),
            tuple(leading_phrase(line) for line in view.lines),
        )
