"""Answers that repeat an id of the data set are no profiles: they say nothing of a taste and may point to a person."""

from dataclasses import replace

from ..data.dataset import item_ids, user_ids
from ..workspace import Workspace
from .answers import INVALID, OK, Generation


class LeakedIds:
    """The ids of users and items that could not be taken for words: six characters or more, letters and figures among
    them."""

    def __init__(self, ws: Workspace):
        ids = (name.casefold() for name in (*user_ids(ws), *item_ids(ws)) if len(name) >= 6)
        self.ids = frozenset(name for name in ids if any(map(str.isdigit, name)) and any(map(str.isalpha, name)))

    def judged(self, generation: Generation) -> Generation:
        """The generation, invalid where it repeats one of them."""
        if generation.status == OK:
            words = (word.strip(" ,;:.()'").casefold() for word in generation.raw.split())
            if found := next((word for word in words if word in self.ids), None):
                return replace(
                    generation,
                    status=INVALID,
                    reason=f"the answer repeats the id {found!r}; generate the profile again",
                )
        return generation
