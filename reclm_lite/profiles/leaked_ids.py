"""Rejects answers that repeat an id of the data set: an id says nothing about taste and may identify a person."""

from dataclasses import replace

from ..data.dataset import item_ids, user_ids
from ..workspace import Workspace
from .answers import INVALID, OK, Generation


class LeakedIds:
    """The ids of users and items that cannot be mistaken for words: at least six characters, with letters and
    digits."""

    def __init__(self, ws: Workspace):
        ids = (name.casefold() for name in (*user_ids(ws), *item_ids(ws)) if len(name) >= 6)
        self.ids = frozenset(name for name in ids if any(map(str.isdigit, name)) and any(map(str.isalpha, name)))

    def judged(self, generation: Generation) -> Generation:
        """The generation, marked invalid if it repeats an id."""
        if generation.status == OK:
            words = (word.strip(" ,;:.()'").casefold() for word in generation.raw.split())
            if found := next((word for word in words if word in self.ids), None):
                return replace(
                    generation,
                    status=INVALID,
                    reason=f"the answer repeats the id {found!r}; generate the profile again",
                )
        return generation
