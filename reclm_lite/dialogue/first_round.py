"""The first round: what is shown of a user or an item, as spans, as text and as a view.

`Shown` holds indices, so that a leak guard can check every pair behind a prompt; `Writer` turns it into the prompt that
`reclm profile` would ask for the same items. Left out: which items are hidden (`user_rounds`, `item_rounds`).
"""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from ..prompts.build import longest
from ..prompts.forms import prompt_form
from ..prompts.inputs import PromptInputs
from ..prompts.interface import USER, PromptForm
from ..prompts.spans import Span, text_of
from ..prompts.view import PromptView, prompt_view
from ..types import ItemText

_N_VIEWS = 1 << 15


@dataclass(frozen=True)
class Shown:
    """What a first round is made from: a user's items and neighbors, or an item and its co-items.

    own: items, the oldest first (of an item: itself; empty if only neighbors are shown). near: of each neighbor its
    items, ascending; of an item one co-item each. near_users: the neighbors in the same order; of an item empty.
    takers: of an item, the users whose items the co-items were counted in. old: own items that had no room.
    """

    side: str
    idx: int
    own: tuple[int, ...]
    near: tuple[tuple[int, ...], ...] = ()
    near_users: tuple[int, ...] = ()
    takers: tuple[int, ...] = ()
    old: tuple[int, ...] = ()

    def pairs(self, inputs: PromptInputs) -> Iterator[tuple[int, int]]:
        """The (user, item) pairs of interactions that it is made from."""
        if self.side == USER:
            yield from ((self.idx, item) for item in self.own)
            yield from ((user, item) for user, items in zip(self.near_users, self.near, strict=True) for item in items)
        else:
            yield from ((user, self.idx) for user in self.takers)
            for (item,) in self.near:
                yield from ((user, item) for user in sorted(set(self.takers).intersection(inputs.users_of(item))))


class Writer:
    """Prompts of what is shown, from the texts of `inputs`."""

    def __init__(self, inputs: PromptInputs):
        self.inputs = inputs
        self._views: OrderedDict[bytes, PromptView] = OrderedDict()

    def _texts(self, shown: Shown) -> tuple[list[ItemText], list[list[ItemText]]]:
        return self.inputs.show(shown.own), [self.inputs.show(items) for items in shown.near]

    def view(self, shown: Shown) -> PromptView:
        """What the compact prompt shows. Cached: the teacher by rule reads it too, and many users share one."""
        key = hashlib.blake2b(repr((shown.own, shown.near)).encode(), digest_size=16).digest()
        found = self._views.get(key)
        if found is None:
            found = self._views[key] = prompt_view(*self._texts(shown), stats=self.inputs.stats)
            if len(self._views) > _N_VIEWS:
                self._views.popitem(last=False)
        return found

    def spans(self, shown: Shown, form: str) -> tuple[Span, ...]:
        """The first question. Raises InputError if there are no words to show."""
        about = prompt_form(form)
        shown = self._as_shown_by(about, shown)
        return about.first_round(*self._texts(shown), shown.side, lambda: self.view(shown))

    def text(self, shown: Shown, form: str) -> str:
        """The text of `spans`."""
        return text_of(self.spans(shown, form))

    @staticmethod
    def _as_shown_by(form: PromptForm, shown: Shown) -> Shown:
        """`shown` with the newest own items alone, and neighbors without what the user has, if the form wants that."""
        n_own = form.n_own_items(len(shown.own))
        if form.hides_shared_items:
            has = {*shown.own, *shown.old}  # also of items that are not shown
            shown = replace(shown, near=tuple(tuple(item for item in near if item not in has) for near in shown.near))
        return shown if n_own == len(shown.own) else replace(shown, own=shown.own[len(shown.own) - n_own :])

    def shortened(self, shown: Shown, form: str, has_room: Callable[[str], bool]) -> Shown | None:
        """`shown` with as much of it as has room, by the rule of `prompts.build`; None if nothing has."""
        if has_room(self.text(shown, form)):
            return shown
        most = prompt_form(form).n_own_items(len(shown.own))
        tried: dict[str, Shown] = {}

        def write(n_own: int, near: list) -> str:
            at = len(shown.own) - n_own
            less = replace(
                shown,
                own=shown.own[at:],
                old=shown.own[:at],
                near=tuple(near),
                near_users=shown.near_users[: len(near)],
                takers=shown.takers if near else (),
            )
            text = self.text(less, form)
            tried[text] = less
            return text

        text, _ = longest(write, len(shown.own), most, list(shown.near), has_room)
        return tried[text] if has_room(text) else None
