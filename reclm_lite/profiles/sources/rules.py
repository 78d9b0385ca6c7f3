"""Profiles by rule, without any model: from key phrases and topics; a source of profiles and a teacher of dialogues.

The rule reads what the compact prompt shows (`PromptView`), so that a small model can learn it from the prompt. What
sets the history apart from the catalogue, and the neighbors' share in that, decides which topics and lines are shown
and in which order (`prompt_view`). From there:

- identities: the three topics, each with a noun: `football nfl follower`, `war film fan`;
- interests: the leading phrase of each of the three lines, that is, its first run of at most three words that no
  stop word and no punctuation mark interrupts.

`prompt_view` fills up from neighbors, topics and stock words, so that three and three always come out.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property

from ...dialogue.first_round import Shown, Writer
from ...dialogue.teacher import NO_FORM, NO_PROFILE
from ...errors import InputError, ProfileFormatError
from ...prompts.answer import format_profile, parse_profile
from ...prompts.entries import leading_phrase
from ...prompts.forms import COMPACT, prompt_form
from ...prompts.inputs import PromptInputs
from ...prompts.view import PromptView, item_view, prompt_view
from ...text.keyphrases import PhraseStats
from ...types import ItemText, Profile
from ..answers import Generation, Group, Spent, StopSignal, judge
from ..sampling import GREEDY, Sampling
from ..store import prompt_key

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
        """A user's profile; raises InputError if neither history nor neighbors have any words."""
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


class Rules:
    """A `Source` by rule. It reads the same inputs as the prompt; nothing is drawn, so nothing is tried again."""

    form = COMPACT  # which shows what the rules read
    tries_again = False

    def __init__(self, inputs: PromptInputs):
        digest = hashlib.sha256(repr(inputs.texts).encode()).hexdigest()[:12]
        self.inputs = inputs
        self.spent = Spent()
        self._identity = f"rules, template {prompt_form(COMPACT).version}, catalogue {digest}"

    @cached_property
    def teacher(self) -> RuleTeacher:
        return RuleTeacher(self.inputs.stats)

    def identity(self, sampling: Sampling) -> str:
        del sampling  # a rule has none
        return self._identity

    label = identity

    def has_room(self, prompt: str) -> bool:
        del prompt
        return True

    def text_for(self, side: str, idx: int) -> str:
        """The profile of a user or item by rule, or an empty text where the items have no words."""
        inputs = self.inputs
        try:
            if side == "user":
                near = [inputs.show(items) for items in inputs.neighbors_of(idx)]
                return format_profile(self.teacher.profile(inputs.show(inputs.items_of(idx)), near))
            return format_profile(self.teacher.item_profile(inputs.texts[idx], inputs.show(inputs.co_items_of(idx))))
        except InputError:
            return ""

    def answers(
        self, side: str, groups: Sequence[Group], sampling: Sampling, stop_signal: StopSignal
    ) -> Iterator[tuple[Group, Generation]]:
        source = self.identity(sampling)
        for group in groups:
            if stop_signal.drain.is_set():
                return
            self.spent.n_answers += 1
            text = self.text_for(side, group.idxs[0])
            yield group, judge(prompt_key(source, group.prompt), text, "stop", n_left_out=group.n_left_out)

    def close(self) -> None:
        """Nothing is held."""


class RulesTeacher:
    """A teacher of dialogues (`dialogue.teacher.Teacher`) by rule: no model, no waiting."""

    writes, is_whole = True, False

    def __init__(self, inputs: PromptInputs):
        self.identity = Rules(inputs).identity(GREEDY)
        self.left_out: Counter = Counter()

    def prepare(self, asked: Iterable[Shown], writer: Writer) -> None:
        """Nothing to prepare."""

    def answer(self, shown: Shown, writer: Writer) -> str:
        try:
            return format_profile(parse_profile(format_profile(RuleTeacher.from_view(writer.view(shown)))))
        except (InputError, ProfileFormatError) as error:
            self.left_out[NO_FORM if isinstance(error, ProfileFormatError) else NO_PROFILE] += 1
            return ""
