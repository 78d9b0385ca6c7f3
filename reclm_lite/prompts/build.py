"""Prompts of the users and items of a workspace: training histories, neighbors and item texts, nothing else.

Only `split.train` is read. What validation and test hold out never reaches a prompt, as the user's own items or
through a neighbor. Equal histories and neighbors give equal prompts (the texts are canonical), so that one generation
serves all users who share them.

Shortening rule: a form shows at most `max_own_items` of the newest own items. If a prompt does not fit the model's
context, the oldest own items are left out one by one until it does, then, with one item left, the neighbors, and items
are counted anew. How many own items were left out is recorded with the generation. If the data have no times, a lower
index counts as older.

Left out: reading the workspace (`inputs`), the wording (`compact`, `instruct`) and the profiles themselves.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ..errors import InputError
from ..types import ItemText
from .forms import COMPACT, item_prompt, prompt_form, user_prompt
from .inputs import PromptInputs
from .interface import USER

NO_HISTORY = "no history and no neighbors"
NO_TEXT = "no text in the items"
HISTORY, NEIGHBORS, TEXT = "history", "neighbors", "text"  # what a profile was made from, see `Prompt.basis`


@dataclass(frozen=True)
class Prompt:
    """A prompt; how many own items it had no room for; what it was made from.

    basis: "history" (own items; of an item, also items that its users have), "neighbors" (a user without a history) or
    "text" (an item that nobody has touched).
    """

    text: str
    n_left_out: int
    basis: str


def user_prompt_of(
    inputs: PromptInputs, user: int, *, form: str = COMPACT, has_room: Callable[[str], bool] = lambda _: True
) -> Prompt | None:
    """A user's prompt, from training interactions only; None if there are no words to show.

    form: name of a prompt form. has_room: whether a text fits, see the module's shortening rule.
    """
    about = prompt_form(form)
    own = inputs.by_age(user)
    has = set(own) if about.hides_shared_items else ()  # also of items that are not shown
    near = [inputs.show([item for item in items if item not in has]) for items in inputs.neighbors_of(user)]

    def write(n_own: int, others: list[list[ItemText]]) -> str:
        return user_prompt(inputs.show(own[len(own) - n_own :]), others, form=form, stats=inputs.stats)

    basis = HISTORY if own else NEIGHBORS
    return _shortened(write, len(own), about.n_own_items(len(own)), near, has_room, basis)


def item_prompt_of(
    inputs: PromptInputs, item: int, *, form: str = COMPACT, has_room: Callable[[str], bool] = lambda _: True
) -> Prompt | None:
    """An item's prompt: its text, and the items that its training users have too. See `user_prompt_of`."""
    text = inputs.texts[item]
    if text.is_empty():
        return None
    near = inputs.show(inputs.co_items_of(item))

    def write(n_own: int, others: list[ItemText]) -> str:
        return item_prompt(text, others, form=form, stats=inputs.stats)

    return _shortened(write, 1, 1, near, has_room, HISTORY if near else TEXT)


def _shortened(
    write: Callable[[int, list], str], n_own: int, most: int, near: list, has_room: Callable[[str], bool], basis: str
) -> Prompt | None:
    """The longest prompt that has room, by the module's rule; the shortest if none has; None if there is no text."""
    try:
        text, n_shown = longest(write, n_own, most, near, has_room)
    except InputError:
        return None
    return Prompt(text, n_own - n_shown, basis)


def longest(
    write: Callable[[int, list], str], n_own: int, most: int, near: list, has_room: Callable[[str], bool]
) -> tuple[str, int]:
    """(text, number of own items in it): the longest prompt that has room, or the shortest if none has.

    write: makes the prompt of so many of the newest own items and of neighbors. most: own items that the form shows at
    most, of n_own.
    """
    text = write(most, near)
    if has_room(text):
        return text, most
    for others in (near, []):
        low, high = 1, most  # `low` items are known to be needed at least, `high` is the most that may fit
        best = None
        while low <= high:
            middle = (low + high) // 2
            text = write(middle, others)
            if has_room(text):
                best, low = (text, middle), middle + 1
            else:
                high = middle - 1
        if best is not None:
            return best
    return write(min(1, most), [] if n_own else near[:1]), min(1, most)


def build_prompts(
    inputs: PromptInputs,
    side: str,
    idxs: Sequence[int] | None = None,
    *,
    form: str = COMPACT,
    skipped: Counter | None = None,
) -> Iterator[tuple[int, str]]:
    """Yield (index, prompt) of users or items, in the order of `idxs` (None: all, ascending).

    skipped: counts, by reason, those that get no prompt.
    """
    skipped = Counter() if skipped is None else skipped
    write = user_prompt_of if side == USER else item_prompt_of
    n = inputs.train.shape[0 if side == USER else 1]
    for idx in range(n) if idxs is None else idxs:
        if side == USER and not inputs.items_of(idx) and not inputs.neighbors_of(idx):
            skipped[NO_HISTORY] += 1
        elif (prompt := write(inputs, idx, form=form)) is None:
            skipped[NO_TEXT] += 1
        else:
            yield int(idx), prompt.text
