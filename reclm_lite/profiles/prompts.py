"""From a workspace to prompts: training histories, neighbours and item texts, nothing else.

Only `split.train` is read. What validation and test hold out never reaches a prompt, as the user's own items or
through a neighbour. Equal histories and neighbours give equal prompts (the templates are canonical), so that one
generation serves all users who share them.

Shortening rule: the plain-words prompt shows the newest INSTRUCT_MAX_ITEMS own items; where a prompt has no room in the
model's context, the oldest own items are left out one by one until it has, then, with one item left, the neighbours.
How many own items were left out is recorded with the generation. Where the data have no times, a lower index counts as
older.

Left out: what prompts are made from (`dialogue.inputs`), the wording (`dialogue.templates`) and the profiles
themselves.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ..dialogue.inputs import N_NEIGHBORS as N_NEIGHBORS
from ..dialogue.inputs import NEIGHBORS_MISSING as NEIGHBORS_MISSING
from ..dialogue.inputs import Inputs as ProfileInputs
from ..dialogue.inputs import load_inputs as load_inputs
from ..dialogue.shorten import longest
from ..dialogue.templates import INSTRUCT_MAX_ITEMS, instruct_prompt, item_prompt, user_prompt
from ..errors import InputError
from ..types import ItemText

NO_HISTORY = "no history and no neighbours"
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
    inputs: ProfileInputs, user: int, *, instruct: bool, has_room: Callable[[str], bool] = lambda _: True
) -> Prompt | None:
    """A user's prompt, from training interactions only; None where there are no words to show.

    instruct: the plain-words prompt for chat models. has_room: see the module's shortening rule.
    """
    own = inputs.by_age(user)
    has = set(own) if instruct else ()  # also of items that are not shown
    near = [inputs.show([item for item in items if item not in has]) for items in inputs.neighbors_of(user)]

    def write(n_own: int, others: list[list[ItemText]]) -> str:
        history = inputs.show(own[len(own) - n_own :])
        return instruct_prompt(history, others) if instruct else user_prompt(history, others, stats=inputs.stats)

    most = min(len(own), INSTRUCT_MAX_ITEMS) if instruct else len(own)
    return _shortened(write, len(own), most, near, has_room, HISTORY if own else NEIGHBORS)


def item_prompt_of(
    inputs: ProfileInputs, item: int, *, instruct: bool, has_room: Callable[[str], bool] = lambda _: True
) -> Prompt | None:
    """An item's prompt: its text, and the items that its training users have too. See `user_prompt_of`."""
    text = inputs.texts[item]
    if text.is_empty():
        return None
    near = inputs.show(inputs.co_items_of(item))

    def write(n_own: int, others: list[ItemText]) -> str:
        if instruct:
            return instruct_prompt([text], [[other] for other in others], subject="item")
        return item_prompt(text, others, stats=inputs.stats)

    return _shortened(write, 1, 1, near, has_room, HISTORY if near else TEXT)


def _shortened(
    write: Callable[[int, list], str], n_own: int, most: int, near: list, has_room: Callable[[str], bool], basis: str
) -> Prompt | None:
    """The longest prompt that has room, by the module's rule; the shortest where none has; None where there is no
    text."""
    try:
        text, n_shown = longest(write, n_own, most, near, has_room)
    except InputError:
        return None
    return Prompt(text, n_own - n_shown, basis)


def build_prompts(
    inputs: ProfileInputs,
    side: str,
    idxs: Sequence[int] | None = None,
    *,
    instruct: bool = False,
    skipped: Counter | None = None,
) -> Iterator[tuple[int, str]]:
    """Yield (index, prompt) of users or items, in the order of `idxs` (all, ascending, where None).

    skipped: counts, by reason, those that get no prompt.
    """
    skipped = Counter() if skipped is None else skipped
    write = user_prompt_of if side == "user" else item_prompt_of
    n = inputs.train.shape[0 if side == "user" else 1]
    for idx in range(n) if idxs is None else idxs:
        if side == "user" and not inputs.items_of(idx) and not inputs.neighbors_of(idx):
            skipped[NO_HISTORY] += 1
        elif (prompt := write(inputs, idx, instruct=instruct)) is None:
            skipped[NO_TEXT] += 1
        else:
            yield int(idx), prompt.text
