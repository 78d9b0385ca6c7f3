"""Two rounds about a user: what the first one hides, and the items that the second one asks about.

From training interactions alone. The first round shows a user's history less a few hidden items, and the neighbors'
histories. The second asks about one hidden item (Yes) and, in another dialogue with the same first round, about an item
that similar users have and the user has never touched in training (No); so there are as many Yes as No.

- Hidden is a fifth of the history, at least one item and at most MAX_HIDDEN; the one asked about is one that neighbors have,
  where there is any. Items with the same title go together: what is hidden stands in no line of the user's own.
- Whoever has items of one title only has nothing to hide, and gets a first round alone.
- No word of a candidate may tell its label. A Yes that neighbors have meets a No that neighbors have; a Yes that none has
  meets a No of the neighbors' neighbors that no neighbor has ("second"), or, where there is none (or are no neighbors),
  of anybody ("far"). Among these the No is taken that stands in the prompt if the Yes does and else does not, that as
  many neighbors have, and that is about as popular.
- Every item the user has in training is excluded from the No, shown or hidden. Validation and test are not looked at, or
  their absence among the No would tell of them; so a few No are items the user takes later: noise in the labels.
"""

from collections import Counter

from .draws import MAX_HIDDEN, Draw, Known, Lists, Question, best_of
from .first import USER, Shown
from .records import COMPACT
from .view import from_phrase, shown_title

NO_NEGATIVE = "no item of similar users that the user has not"
NOTHING_HIDDEN = "too few items to hide one"


class UserRounds:
    """Draws for users."""

    def __init__(self, known: Known):
        self.known, self.inputs = known, known.inputs

    def draw(self, user: int, variant: int, *, hide: bool = True) -> Draw | None:
        """What a first round shows of a user; None where there is neither a history nor a neighbor."""
        own = self.inputs.by_age(user)
        near = sorted((self.inputs.items_of(other), other) for other in self.inputs.neighbor_ids(user))
        if not own and not near:
            return None
        hidden = self._hidden(user, own, near, variant) if hide else ()
        keys = self.known.keys
        gone = {keys[item] for item in hidden}
        shown = tuple(item for item in own if keys[item] not in gone)
        return Draw(Shown(USER, user, shown, tuple(items for items, _ in near), tuple(other for _, other in near)), hidden, variant)

    def _hidden(self, user: int, own: tuple[int, ...], near: list, variant: int) -> tuple[int, ...]:
        """One item of each hidden title, the one to ask about first."""
        titles = self.known.distinct(own)
        if len(titles) < 2:
            return ()
        rng = self.known.lots("hide", USER, user, variant)
        held = self._held(tuple(items for items, _ in near))
        first = rng.choice([key for key in titles if held[key]] or list(titles))
        n_more = min(MAX_HIDDEN, max(1, len(titles) // 5)) - 1
        return tuple(titles[key] for key in (first, *rng.sample([key for key in titles if key != first], n_more)))

    def _held(self, near: tuple[tuple[int, ...], ...]) -> Counter:
        """By how many neighbors each title is held."""
        keys = self.known.keys
        return Counter(key for items in near for key in {keys[item] for item in items} - {-1})

    def _second(self, shown: Shown, without: set[int]) -> dict[int, int]:
        """What the neighbors' neighbors have."""
        others = {other for near in shown.near_users for other in self.inputs.neighbor_ids(near)} - {shown.idx}
        return self.known.distinct([item for other in sorted(others) for item in self.inputs.items_of(other)], without)

    def pair(self, draw: Draw, prompt: str, form: str) -> tuple[Question, Question] | str:
        """The Yes and the No to a first round whose text is `prompt`; the reason in words where there is no such pair."""
        if not draw.hidden:
            return NOTHING_HIDDEN
        known, keys, shown = self.known, self.known.keys, draw.shown
        rng = known.lots("question", USER, shown.idx, draw.variant)
        yes, own = draw.hidden[0], {keys[item] for item in self.inputs.items_of(shown.idx)}
        all_near = self._near_of(draw)
        held = self._held(all_near)
        if held[keys[yes]]:
            found, pool = "near", known.distinct([item for items in all_near for item in items], own)
            if not pool:
                return NO_NEGATIVE
        else:
            found, pool = "second", self._second(shown, own | set(held)) if all_near else {}
            if not pool:
                found, pool = "far", known.far(rng, own | set(held))
            if not pool:
                return NO_NEGATIVE

        def is_shown(item: int) -> bool:
            title = shown_title(self.inputs.texts[item])
            return (from_phrase(title) if form == COMPACT else title) in prompt

        told = is_shown(yes)
        no = best_of(list(pool.values()), rng, lambda item: (
            is_shown(item) != told, abs(held[keys[item]] - held[keys[yes]]), round(abs(known.popularity[item] - known.popularity[yes]), 1),
        ))  # fmt: skip
        takers = tuple((other, no) for other in self.inputs.neighbor_ids(shown.idx) if no in self.inputs.items_of(other))
        return Question(True, yes, ((shown.idx, yes),), told, found), Question(False, no, takers, is_shown(no), found)

    def _near_of(self, draw: Draw) -> tuple[tuple[int, ...], ...]:
        """All neighbors' items, those that had no room in the prompt included."""
        return self.inputs.neighbors_of(draw.shown.idx)

    def lists(self, draw: Draw, n_negatives: int) -> Lists | str:
        """The hidden items, and items of similar users that the user has never touched; the reason where one is empty."""
        if not draw.hidden:
            return NOTHING_HIDDEN
        known, shown = self.known, draw.shown
        rng = known.lots("lists", USER, shown.idx, draw.variant)
        taken = {known.keys[item] for item in self.inputs.items_of(shown.idx)}
        negatives: list[int] = []
        pools = (
            lambda: known.distinct([item for items in self._near_of(draw) for item in items], taken),
            lambda: self._second(shown, taken),
            lambda: known.far(rng, taken),
        )
        for pool in pools:
            found = list(pool().values())
            negatives += rng.sample(found, min(len(found), n_negatives - len(negatives)))
            taken |= {known.keys[item] for item in negatives}
            if len(negatives) == n_negatives:
                break
        if not negatives:
            return NO_NEGATIVE
        return Lists(draw.hidden, tuple(negatives), tuple((shown.idx, item) for item in draw.hidden))
