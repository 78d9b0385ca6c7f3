"""Which prompts a run asks, for whom, and which first.

Users (or items) with equal surroundings share a prompt. The most valuable come first: those that most users share, then
those of the most active, so that a run that ends early has done the most good. Whoever needs no new profile is left
out: a profile that a person wrote or imported stays, and so does, after a new import, that of a user whose own history
did
not change. Left out: what answers, and where answers are kept.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ..prompts.build import NO_HISTORY, NO_TEXT, Prompt, item_prompt_of, user_prompt_of
from ..prompts.inputs import PromptInputs
from .answers import Group

log = logging.getLogger(__name__)


@dataclass
class Plan:
    """Groups in the order of their value, and who is in none. Counts are of users (or items)."""

    groups: list[Group] = field(default_factory=list)
    n_requested: int = 0
    skipped: Counter = field(default_factory=Counter)
    n_left_out_prompts: int = 0  # prompts that had no room for the oldest items


def history_key(inputs: PromptInputs, side: str, idx: int) -> str:
    """A hash of the texts of a user's own training items (of an item: of its own text), whatever their order."""
    texts = inputs.show(inputs.items_of(idx)) if side == "user" else [inputs.texts[idx]]
    lines = sorted(repr((text.title, text.category, text.subcategory, text.description)) for text in texts)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32]


def make_plan(
    inputs: PromptInputs,
    side: str,
    idxs: Sequence[int],
    *,
    form: str,
    has_room: Callable[[str], bool],
    limit: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Plan:
    """Write the prompts of `idxs` and group those that share one.

    form: name of a prompt form. limit: at most this many users (or items). progress: called now and then with the
    number of users (or items) planned, and of all.
    """
    plan = Plan()
    alike = _alike(inputs, side, idxs, plan.skipped)
    left = sum(map(len, alike)) if limit is None else min(limit, sum(map(len, alike)))
    total = left
    shared: dict[str, list] = {}  # prompt -> [Prompt, members]
    write = user_prompt_of if side == "user" else item_prompt_of
    for members in alike:
        if left <= 0:
            break
        for prompt, who in _written(inputs, write, members, form, has_room):
            if prompt is None:
                plan.skipped[NO_TEXT] += len(who)
                continue
            who = who[:left]
            left -= len(who)
            if who:
                shared.setdefault(prompt.text, [prompt, []])[1].extend(who)
        progress(total - left, total)
    plan.groups = [
        Group(prompt.text, tuple(sorted(members)), prompt.n_left_out, prompt.basis)
        for prompt, members in shared.values()
    ]
    plan.n_requested = sum(len(group.idxs) for group in plan.groups)
    activity = _activity(inputs, side)
    plan.groups.sort(key=lambda group: (-len(group.idxs), -activity(group.idxs[0]), group.idxs[0]))
    plan.n_left_out_prompts = sum(group.n_left_out > 0 for group in plan.groups)
    return plan


def _alike(inputs: PromptInputs, side: str, idxs: Sequence[int], skipped: Counter) -> list[list[int]]:
    """Those with equal surroundings together, the most valuable first; counts those that have none."""
    alike: dict[object, list[int]] = {}
    for idx in idxs:
        key = (inputs.items_of(idx), inputs.neighbors_of(idx)) if side == "user" else idx
        if key == ((), ()):
            skipped[NO_HISTORY] += 1
        elif side == "item" and inputs.texts[idx].is_empty():
            skipped[NO_TEXT] += 1
        else:
            alike.setdefault(key, []).append(idx)
    activity = _activity(inputs, side)
    return sorted(alike.values(), key=lambda members: (-len(members), -activity(members[0]), members[0]))


def _written(
    inputs: PromptInputs, write: Callable, members: list[int], form: str, has_room: Callable[[str], bool]
) -> list[tuple[Prompt | None, list[int]]]:
    """The prompts of members with equal surroundings: one, unless old items are left out and ages differ among them."""
    first = write(inputs, members[0], form=form, has_room=has_room)
    if first is None or not first.n_left_out or inputs.times is None or len(members) == 1:
        return [(first, members)]
    by_age: dict[tuple[int, ...], list[int]] = {}
    for member in members:
        by_age.setdefault(inputs.by_age(member), []).append(member)
    return [(write(inputs, who[0], form=form, has_room=has_room), who) for who in by_age.values()]


def _activity(inputs: PromptInputs, side: str) -> Callable[[int], int]:
    """How many training interactions a user (or item) has."""
    indptr = (inputs.train if side == "user" else inputs.train_by_item).indptr
    return lambda idx: int(indptr[idx + 1] - indptr[idx])
