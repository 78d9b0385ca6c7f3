"""Who gives the first-round answers: what a build asks of a teacher.

The teachers themselves are in `profiles/dialogue_teachers.py` and, by rule, in `profiles/sources/rules.py`.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Protocol

from .first_round import Shown, Writer

NO_PROFILE, NO_FORM, QUOTES_HELD_OUT = (
    "no first-round answer",
    "first-round answer without the form",
    "first-round answer quotes what is held out",
)


class Teacher(Protocol):
    """Profiles for first rounds.

    identity: what decides the answers, without paths. writes: whether it answers any first round (such as one with
    neighbors alone), or only has stored profiles. is_whole: whether its profiles were made from whole histories, hidden
    items included. left_out: counts, by reason, of answers that cannot be used. writer: makes prompts of what is shown.
    """

    identity: str
    writes: bool
    is_whole: bool
    left_out: Counter

    def prepare(self, asked: Iterable[Shown], writer: Writer) -> None:
        """Called once before `answer`, with everything that will be asked; one that answers at once does not look at
        it."""

    def answer(self, shown: Shown, writer: Writer) -> str:
        """A profile in the usual form, or an empty text if there is none (counted in `left_out`)."""


class NoTeacher:
    """For dialogues without first-round answers."""

    identity, writes, is_whole = "none", False, False

    def __init__(self) -> None:
        self.left_out: Counter = Counter()

    def prepare(self, asked: Iterable[Shown], writer: Writer) -> None:
        """Nothing is asked."""

    def answer(self, shown: Shown, writer: Writer) -> str:
        raise AssertionError("no teacher was given")
