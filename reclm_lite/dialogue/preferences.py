"""Rejected profiles: what may go wrong with a good one, by kind.

The published kinds, in the published shares among themselves:

    neighbor    a similar user's profile                                       30 %
    merged      the user's own and a similar user's together                   30 %
    truncated   the identities alone                                           10 %
    doubled     the identities twice                                           10 %
    empty       nothing                                                        10 %
    dot         "."                                                            10 %

and two of our own, a tenth each of all:

    smoothed    only what the neighbors share: the profile of a prompt without the user's own items
    stale       the profile of the oldest half of the history; users of data with times alone

A merged profile is drawn in one of two forms, equally often: six and six phrases, as published, which the form of
answers does not allow, and three and three with some of the neighbor's among them, which it does, so that only the
taste tells it.
"""

import random
from collections.abc import Mapping
from dataclasses import replace

from ..errors import InputError
from ..prompts.answer import format_profile, parse_profile
from ..prompts.interface import USER
from ..types import Profile
from .first_round import Shown

NEIGHBOR, MERGED, TRUNCATED, DOUBLED, EMPTY, DOT = "neighbor", "merged", "truncated", "doubled", "empty", "dot"
SMOOTHED, STALE = "smoothed", "stale"
OF_OTHERS = (NEIGHBOR, MERGED)  # take a neighbor's profile
ASKED = (SMOOTHED, STALE)  # are asked of the teacher
SHARES: dict[str, float] = {
    NEIGHBOR: 0.24,
    MERGED: 0.24,
    TRUNCATED: 0.08,
    DOUBLED: 0.08,
    EMPTY: 0.08,
    DOT: 0.08,
    SMOOTHED: 0.1,
    STALE: 0.1,
}


def parse_shares(text: str) -> dict[str, float]:
    """`neighbor=3,merged=3,empty=1` or `neighbor,empty` (equal shares), as shares that sum up to 1."""
    found: dict[str, float] = {}
    for part in text.split(","):
        name, _, share = (piece.strip() for piece in part.partition("="))
        if name not in SHARES:
            raise InputError(
                f"expected corruptions among {', '.join(SHARES)}, found {name!r}; name them with commas between"
            )
        try:
            found[name] = float(share) if share else 1.0
        except ValueError:
            found[name] = -1.0
        if not 0 < found[name] < float("inf"):
            raise InputError(
                f"expected a share above 0 for the corruption {name}, found {share!r}; write such as {name}=3"
            )
    total = sum(found.values())
    return {name: share / total for name, share in found.items()}


def draw_kind(shares: Mapping[str, float], possible: set[str], rng: random.Random) -> str | None:
    """One of the kinds that are possible, by their shares; None if none is."""
    kinds = [kind for kind in shares if kind in possible]
    return rng.choices(kinds, [shares[kind] for kind in kinds])[0] if kinds else None


def possible_kinds(shown: Shown, *, has_others: bool, writes: bool, has_times: bool) -> set[str]:
    """What may be done to the profile of a first round. has_others: somebody similar has one; writes: see `teacher`."""
    found = {TRUNCATED, DOUBLED, EMPTY, DOT}
    if has_others:
        found |= {NEIGHBOR, MERGED}
    if writes and shown.near and shown.own:
        found.add(SMOOTHED)
    if writes and has_times and shown.side == USER and len(shown.own) > 1:
        found.add(STALE)
    return found


def asked_instead(kind: str, shown: Shown) -> Shown:
    """The first round whose answer is the rejected profile of a kind in ASKED."""
    if kind == SMOOTHED:
        return replace(shown, own=(), old=())
    return replace(shown, own=shown.own[: len(shown.own) // 2], old=shown.own[len(shown.own) // 2 :])


def corrupted(kind: str, chosen: str, other: str, rng: random.Random) -> str | None:
    """The rejected text. other: the neighbor's or the asked profile, empty if the kind takes none; None if it is
    missing."""
    own = parse_profile(chosen)
    if kind in (EMPTY, DOT):
        return "" if kind == EMPTY else "."
    head = format_profile(own).split(";")[0]
    if kind in (TRUNCATED, DOUBLED):
        return head if kind == TRUNCATED else f"{head}; {head}"
    if not other:
        return None
    return other if kind != MERGED else _merged(own, parse_profile(other), rng)


def _merged(own: Profile, other: Profile, rng: random.Random) -> str | None:
    if rng.random() < 0.5:
        return format_profile(Profile(own.identity + other.identity, own.interests + other.interests))
    lists = []
    for ours, theirs in ((own.identity, other.identity), (own.interests, other.interests)):
        have = {phrase.casefold() for phrase in ours}
        new = [phrase for phrase in theirs if phrase.casefold() not in have]
        if not new:
            return None
        n_new = min(len(new), rng.choice((1, 2)))
        mixed = rng.sample(ours, 3 - n_new) + rng.sample(new, n_new)
        lists.append(tuple(rng.sample(mixed, 3)))
    return format_profile(Profile(*lists))
