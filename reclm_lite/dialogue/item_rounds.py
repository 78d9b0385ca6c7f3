"""Two rounds about an item: its audience, and whether a person belongs to it.

From training interactions alone. The first round shows an item and what its users have too; some of its users are
hidden, so that their items count for nothing there. The second asks about a hidden user (Yes) and, in another dialogue,
about somebody like the item's users who has never touched it in training (No). Both are told by at most three titles
among their newest items, the item's own title never among them.

- Hidden is a fifth of the users, at least one and at most MAX_HIDDEN; the one asked about has some other item.
- Persons are of the item's part (train, held out): nobody's pair with an item is trained on in one file and measured
  in another.
- The No is somebody like the Yes, found from what the Yes has beside the item ("near"); anybody if there are no
  neighbors ("far"). Among them it is one of whom a title stands in the prompt if that is so of the Yes, and whose
  history is about as long. Neighbors of the item's users would not do: they were found by the item too, and are nearer
  to it than its users are.
- A reward ranks what hidden users have beside the item above what none of its users has.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from ..errors import InputError
from ..prompts.interface import ITEM, USER
from ..prompts.view import title_lines
from .draws import MAX_HIDDEN, N_FAR, Draw, Known, Lists, Question, best_of
from .first_round import Shown

NO_TAKER = "no user of the item's part with another item"
NO_PERSON = "nobody like the item's users who has not touched it"
NO_NEGATIVE = "no item of similar users that none of the item's users has"
_N_TOLD = 20  # items of a person among which titles are chosen, the newest
_N_TRIED = 50  # users of an item that are looked at to find one to ask about
_N_ASKED = 20  # users of an item whose neighbors are looked at
_N_LIKE = 30  # persons like the Yes
_N_NEAREST = 8  # persons of whom titles are chosen, those of the most equal history


class ItemRounds:
    """Draws for items."""

    def __init__(self, known: Known):
        self.known, self.inputs = known, known.inputs
        self.history = lru_cache(maxsize=1 << 14)(self._history)
        self.held = lru_cache(maxsize=1 << 14)(self._held)
        self.titles = lru_cache(maxsize=1 << 14)(self._titles)
        self._like: tuple[int, np.ndarray] | None = None  # a variant, and who is like the hidden users

    def _like_hidden(self, variant: int) -> np.ndarray:
        """int32 (n_items, _N_LIKE), -1 padded: who is like the hidden user that is asked about, as far as its other
        items tell."""
        if self._like is None or self._like[0] != variant:
            n_items, parts = len(self.inputs.texts), {}
            for item in range(n_items):
                if self.known.keys[item] >= 0 and (hidden := self._hidden(item, self.inputs.users_of(item), variant)):
                    parts[item] = hidden[0], self.person(hidden[0], item, len(self.history(hidden[0])))
            self._like = variant, self.known.like(parts, n_items, _N_LIKE)
        return self._like[1]

    def _history(self, user: int) -> tuple[int, ...]:
        """The user's training items, the newest first, one of each title."""
        return tuple(self.known.distinct(self.inputs.by_age(user)[::-1]).values())

    def _n_others(self, user: int, item: int) -> int:
        """How many titles a user has beside the item's."""
        return len(self.history(user)) - self._has(user, item)

    def _has(self, user: int, item: int) -> bool:
        """Whether a user has something of the item's title."""
        return self.known.keys[item] in self.held(user)

    def _held(self, user: int) -> frozenset[int]:
        return frozenset(self.known.keys[item] for item in self.history(user))

    def person(self, user: int, item: int, n: int = _N_TOLD) -> list[int]:
        """The items that tell of a user who is asked about beside `item`: the newest n of other titles."""
        keys = self.known.keys
        return [other for other in self.history(user)[: n + 1] if keys[other] != keys[item]][:n]

    def _titles(self, items: tuple[int, ...]) -> tuple[str, ...]:
        return title_lines(self.inputs.show(items))

    def _may_be_asked(self, user: int, item: int) -> bool:
        return self.known.part(USER, user) == self.known.part(ITEM, item) and self._n_others(user, item) > 0

    def draw(self, item: int, variant: int, *, hide: bool = True) -> Draw | None:
        """What a first round shows of an item; None if it has no words."""
        if self.known.keys[item] < 0:
            return None
        takers = self.inputs.users_of(item)
        hidden = self._hidden(item, takers, variant) if hide else ()
        left = tuple(user for user in takers if user not in set(hidden))
        co_items = self.inputs.co_items_of(item, left)
        return Draw(Shown(ITEM, item, (item,), tuple((other,) for other in co_items), takers=left), hidden, variant)

    def _hidden(self, item: int, takers: tuple[int, ...], variant: int) -> tuple[int, ...]:
        rng = self.known.lots("hide", ITEM, item, variant)
        tried = rng.sample(takers, min(_N_TRIED, len(takers)))
        first = next((user for user in tried if self._may_be_asked(user, item)), None)
        if first is None:
            return ()
        n_more = min(MAX_HIDDEN, max(1, len(takers) // 5)) - 1
        return (first, *[user for user in rng.sample(takers, min(n_more + 1, len(takers))) if user != first][:n_more])

    def _like_them(self, item: int, draw: Draw, rng) -> list[int]:
        """Neighbors of the item's users who have not touched it, nor one of its title."""
        takers = set(self.inputs.users_of(item))
        asked = rng.sample(draw.shown.takers, min(_N_ASKED, len(draw.shown.takers)))
        found = {other for user in (*draw.hidden[:1], *asked) for other in self.inputs.neighbor_ids(user)} - takers
        return [user for user in sorted(found) if not self._has(user, item)]

    def _without_item(self, users: Sequence[int], item: int) -> list[int]:
        """Those who may be asked about and have nothing of the item's title."""
        return [user for user in users if not self._has(user, item) and self._may_be_asked(user, item)]

    def pair(self, draw: Draw, prompt: str, form: str) -> tuple[Question, Question] | str:
        """The Yes and the No to a first round whose text is `prompt`; the reason in words if there is no such
        pair."""
        if not draw.hidden:
            return NO_TAKER
        item, known, yes = draw.shown.idx, self.known, draw.hidden[0]
        rng = known.lots("question", ITEM, item, draw.variant)
        like = self._like_hidden(draw.variant)[item]
        pool, found = self._without_item(like[like >= 0].tolist(), item), "near"
        if not pool:
            n_users = self.inputs.train.shape[0]
            pool, found = self._without_item(rng.sample(range(n_users), min(2 * N_FAR, n_users)), item), "far"
        if not pool:
            return NO_PERSON
        size = math.log2(self._n_others(yes, item))

        def is_shown(user: int) -> bool:
            lines = self.titles(tuple(self.person(user, item)))
            return any(line in prompt for line in lines)

        def unlike(user: int) -> float:
            return round(abs(math.log2(self._n_others(user, item)) - size), 1)

        nearest = sorted(rng.sample(pool, len(pool)), key=unlike)[:_N_NEAREST]
        try:
            told = is_shown(yes)
            no = best_of(nearest, rng, lambda user: (is_shown(user) != told, unlike(user)))
        except InputError:  # titles without a word: nothing tells of the person
            return NO_PERSON
        return self._question(True, yes, item, told, found), self._question(False, no, item, is_shown(no), found)

    def _question(self, answer: bool, user: int, item: int, is_shown: bool, found: str) -> Question:
        pairs = [(user, other) for other in self.person(user, item)] + ([(user, item)] if answer else [])
        return Question(answer, user, tuple(pairs), is_shown, found)

    def lists(self, draw: Draw, n_negatives: int) -> Lists | str:
        """What hidden users have beside the item, and what similar users have and none of the item's users; or the
        reason."""
        if not draw.hidden:
            return NO_TAKER
        item, known, inputs = draw.shown.idx, self.known, self.inputs
        rng = known.lots("lists", ITEM, item, draw.variant)
        told = {known.keys[item], *(known.keys[other] for (other,) in draw.shown.near)}
        pairs = [(user, other) for user in draw.hidden for other in inputs.items_of(user)]
        positives = list(known.distinct([other for _, other in pairs], told).values())
        positives = rng.sample(positives, min(MAX_HIDDEN, len(positives)))
        if not positives:
            return "hidden users have no item that is not shown"
        taken = {known.keys[other] for other in set(inputs.train[list(inputs.users_of(item))].indices.tolist())}
        found = known.distinct([o for user in self._like_them(item, draw, rng) for o in inputs.items_of(user)], taken)
        negatives = rng.sample(list(found.values()), min(n_negatives, len(found)))
        if len(negatives) < n_negatives:
            more = known.far(rng, taken | {known.keys[other] for other in negatives})
            negatives += rng.sample(list(more.values()), min(n_negatives - len(negatives), len(more)))
        if not negatives:
            return NO_NEGATIVE
        chosen = set(positives)
        kept = tuple(pair for pair in pairs if pair[1] in chosen or pair[1] == item)
        return Lists(tuple(positives), tuple(negatives), kept)
