"""Two rounds about a user: what the first one hides, and the items that the second one asks about.

From training interactions alone. The first round shows a user's history less a few hidden items, and the neighbors'
histories. The second asks about one hidden item (Yes) and, in another dialogue with the same first round, about an item
that similar users have and the user has never touched in training (No); so there are as many Yes as No.

- Hidden is a fifth of the history, at least one item and at most MAX_HIDDEN; the one asked about is one that neighbors
  have, if there is any. Items with the same title go together: what is hidden stands in no line of the user's own.
- The neighbors are found anew from what is shown. Those of the whole history were found by the hidden items as well: if
  histories are short they all have them, and their other items are like what is shown, so that a model would learn to
  say No to what is alike.
- Whoever has items of one title only has nothing to hide, and gets a first round alone.
- A No is found where its Yes is, so that nothing but taste tells them apart: among the items of neighbors ("near"),
  else of the neighbors' neighbors ("second"), else of anybody ("far"). Of these it is one that stands in the prompt if
  the Yes does and else does not, that as many neighbors have, and that is about as popular.
- Every item the user has in training is excluded from the No, shown or hidden. Validation and test are not looked at,
  or their absence among the No would tell of them; so a few No are items the user takes later: noise in the labels.
"""

import random
from collections import Counter

import numpy as np

from ..prompts.entries import shown_title
from ..prompts.forms import prompt_form
from ..prompts.inputs import N_NEIGHBORS
from ..prompts.interface import USER
from .draws import MAX_HIDDEN, Draw, Known, Lists, Question, best_of
from .first_round import Shown

NO_NEGATIVE = "no item of similar users that the user has not"
NOTHING_HIDDEN = "too few items to hide one"


class UserRounds:
    """Draws for users."""

    def __init__(self, known: Known):
        self.known, self.inputs = known, known.inputs
        self._like: tuple[int, np.ndarray] | None = None  # a variant, and its neighbors

    def _neighbors(self, variant: int) -> np.ndarray:
        """int32 (n_users, N_NEIGHBORS), -1 padded: of users with something hidden, the neighbors by what is shown."""
        if self._like is None or self._like[0] != variant:
            n_users, parts = self.inputs.train.shape[0], {}
            for user in range(n_users):
                own = self.inputs.by_age(user)
                if hidden := self._hidden(user, own, variant):
                    parts[user] = user, self._shown(own, hidden)
            self._like = variant, self.known.like(parts, n_users, N_NEIGHBORS)
        return self._like[1]

    def _shown(self, own: tuple[int, ...], hidden: tuple[int, ...]) -> tuple[int, ...]:
        """What is left of a history without the titles that are hidden."""
        gone = {self.known.keys[item] for item in hidden}
        return tuple(item for item in own if self.known.keys[item] not in gone)

    def draw(self, user: int, variant: int, *, hide: bool = True) -> Draw | None:
        """What a first round shows of a user; None if there is neither a history nor a neighbor."""
        own = self.inputs.by_age(user)
        hidden = self._hidden(user, own, variant) if hide else ()
        shown = self._shown(own, hidden)
        ids = (
            [other for other in self._neighbors(variant)[user].tolist() if other >= 0]
            if hidden
            else self.inputs.neighbor_ids(user)
        )
        near = sorted((self.inputs.items_of(other), other) for other in ids)
        if not own and not near:
            return None
        items, users = tuple(items for items, _ in near), tuple(other for _, other in near)
        held = self._held(items)
        hidden = tuple(
            sorted(hidden, key=lambda item: held[self.known.keys[item]] == 0)
        )  # else in the order of their draw
        return Draw(Shown(USER, user, shown, items, users), hidden, variant)

    def _hidden(self, user: int, own: tuple[int, ...], variant: int) -> tuple[int, ...]:
        """One item of each hidden title."""
        titles = self.known.distinct(own)
        if len(titles) < 2:
            return ()
        n_hidden = min(MAX_HIDDEN, max(1, len(titles) // 5))
        return tuple(self.known.lots("hide", USER, user, variant).sample(list(titles.values()), n_hidden))

    def _held(self, near: tuple[tuple[int, ...], ...]) -> Counter:
        """By how many neighbors each title is held."""
        keys = self.known.keys
        return Counter(key for items in near for key in {keys[item] for item in items} - {-1})

    def _second(self, shown: Shown, without: set[int]) -> dict[int, int]:
        """What the neighbors' neighbors have."""
        others = {other for near in shown.near_users for other in self.inputs.neighbor_ids(near)} - {shown.idx}
        return self.known.distinct([item for other in sorted(others) for item in self.inputs.items_of(other)], without)

    def pair(self, draw: Draw, prompt: str, form: str) -> tuple[Question, Question] | str:
        """The Yes and the No to a first round whose text is `prompt`; the reason in words if there is no such
        pair."""
        if not draw.hidden:
            return NOTHING_HIDDEN
        known, keys, shown = self.known, self.known.keys, draw.shown
        rng = known.lots("question", USER, shown.idx, draw.variant)
        yes, own = draw.hidden[0], {keys[item] for item in self.inputs.items_of(shown.idx)}
        held = self._held(shown.near)
        found, pool = self._pool_of(yes, shown, own, held, rng)
        if not pool:
            return NO_NEGATIVE

        shown_as = prompt_form(form).shown_title

        def is_shown(item: int) -> bool:
            return shown_as(shown_title(self.inputs.texts[item])) in prompt

        told = is_shown(yes)
        no = best_of(
            list(pool.values()),
            rng,
            lambda item: (
                is_shown(item) != told,
                abs(held[keys[item]] - held[keys[yes]]),
                round(abs(known.popularity[item] - known.popularity[yes]), 1),
            ),
        )
        takers = tuple((other, no) for other, items in zip(shown.near_users, shown.near, strict=True) if no in items)
        return Question(True, yes, ((shown.idx, yes),), told, found), Question(False, no, takers, is_shown(no), found)

    def _where(self, key: int, held: Counter, second: dict[int, int]) -> str:
        """Where a title is found: with neighbors, with their neighbors (`second`), or with anybody."""
        return "near" if held[key] else "second" if key in second else "far"

    def _pool_of(
        self, yes: int, shown: Shown, own: set[int], held: Counter, rng: random.Random
    ) -> tuple[str, dict[int, int]]:
        """Where the item of a Yes is found, and what the user has not among what is there too."""
        key = self.known.keys[yes]
        second = self._second(shown, own - {key} | set(held)) if shown.near and not held[key] else {}
        found = self._where(key, held, second)
        second.pop(key, None)
        if found == "near":
            return found, self._near(shown, own)
        return found, second if found == "second" else self.known.far(rng, own | set(held) | set(second))

    def _near(self, shown: Shown, without: set[int]) -> dict[int, int]:
        return self.known.distinct([item for items in shown.near for item in items], without)

    def lists(self, draw: Draw, n_negatives: int) -> Lists | str:
        """Hidden items, and items that the user has never touched from where those are found; the reason where one is
        empty.

        As in a pair, both come from one pool: were negatives always what similar users have, the least alike of the
        shown items would have the best rank, since a hidden item mostly lies farther away.
        """
        if not draw.hidden:
            return NOTHING_HIDDEN
        shown, own = draw.shown, {self.known.keys[item] for item in self.inputs.items_of(draw.shown.idx)}
        rng, held = self.known.lots("lists", USER, shown.idx, draw.variant), self._held(shown.near)
        found, pool = self._pool_of(draw.hidden[0], shown, own, held, rng)
        if not pool:
            return NO_NEGATIVE
        negatives = rng.sample(list(pool.values()), min(len(pool), n_negatives))
        second = self._second(shown, set(held)) if shown.near and found != "near" else {}  # the hidden ones among them
        positives = tuple(item for item in draw.hidden if self._where(self.known.keys[item], held, second) == found)
        return Lists(positives, tuple(negatives), tuple((shown.idx, item) for item in positives))
