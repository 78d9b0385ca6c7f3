"""The grammar of an answer, for constrained decoding: `User identity: a, b, c; User interests: x, y, z`.

A token is refused only if no valid profile could begin with it, and then the model's next choice is tried. Where the
grammar leaves one continuation (its fixed words) the model is not asked at all. So nearly every answer parses, and an
answer that would have parsed anyway is left as it is. Words that look like ids are no part of a
profile: they say nothing of a person and may point to one. Only the token that makes a word one is refused, so the
beginning of an id may stay (`N555` of `N55528`). Characters that show nothing (direction marks, zero-width spaces) are
no part of a profile either.

A `GrammarState` is how far a text has come in the grammar; `GrammarState.after` advances it by a few characters.
`constrained_decoding` follows many answers token by token with it. Left out: what the phrases say.
"""

import re
from typing import NamedTuple

from ..prompts.answer import MAX_PHRASE_CHARS, is_unprinted, looks_like_id

GRAMMAR_VERSION = "3"
HEAD, MIDDLE = "User identity:", " User interests:"
N_PHRASES = 3
MAX_WORDS = 6

_DIGIT = re.compile(r"\d")
_FIXED = {0: HEAD, 2: MIDDLE}  # by part; 1 and 3 are the two lists


class GrammarState(NamedTuple):
    """How far a text has come: in which part (0 to 3: HEAD, identities, MIDDLE, interests), after how much of it.

    n_fixed: characters of the fixed words written. phrases: of the present list, those closed by a comma, folded for
    comparison. phrase: what has been written of the present one.
    """

    part: int = 0
    n_fixed: int = 0
    phrases: tuple[str, ...] = ()
    phrase: str = ""

    def after(self, text: str) -> "GrammarState | None":
        """The state after `text`, or None if no valid profile goes on like that."""
        part, n_fixed, phrases, phrase = self.part, self.n_fixed, self.phrases, self.phrase
        if part not in _FIXED and "," not in text and ";" not in text and text.isprintable():
            phrase += text
            return GrammarState(part, n_fixed, phrases, phrase) if _has_room(phrase) else None
        for c in text:
            if part in _FIXED:
                fixed = _FIXED[part]
                if part == 0 and n_fixed == 0 and c.isspace():
                    continue  # before the text
                if fixed[n_fixed] != c:
                    return None
                n_fixed += 1
                if n_fixed == len(fixed):
                    part, n_fixed, phrases, phrase = part + 1, 0, (), ""
            elif c == "," or c == ";":
                key = _finished(phrase, phrases)
                is_last = len(phrases) == N_PHRASES - 1
                if key is None or is_last == (c == ",") or (c == ";" and part == 3):
                    return None
                if c == ",":
                    phrases, phrase = (*phrases, key), ""
                else:
                    part = 2
            elif is_unprinted(c):
                return None
            else:
                phrase += c
        if part in _FIXED or len(phrase) == 0:
            return GrammarState(part, n_fixed, phrases, phrase)
        return GrammarState(part, n_fixed, phrases, phrase) if _has_room(phrase) else None

    @property
    def may_end(self) -> bool:
        """Whether the text is a whole profile; full stops behind its last phrase are no part of the phrase."""
        if self.part != 3 or len(self.phrases) != N_PHRASES - 1:
            return False
        return _finished(" ".join(self.phrase.split()).rstrip(" ."), self.phrases) is not None

    @property
    def forced(self) -> str:
        """The fixed words that must come next, or nothing if the model has a choice."""
        return _FIXED[self.part][self.n_fixed :] if self.part in _FIXED else ""


START = GrammarState()


def _has_room(phrase: str) -> bool:
    """Whether a phrase, its last word perhaps not whole, is short enough and holds no id."""
    if (
        len(phrase) <= MAX_PHRASE_CHARS
        and phrase.count(" ") < MAX_WORDS
        and phrase.isprintable()
        and not _DIGIT.search(phrase)
    ):
        return True
    words = phrase.split()
    return len(words) <= MAX_WORDS and len(" ".join(words)) <= MAX_PHRASE_CHARS and not any(map(looks_like_id, words))


def _finished(phrase: str, before: tuple[str, ...]) -> str | None:
    """A phrase folded for comparison, or None if it cannot stand as it is, or stands already."""
    key = " ".join(phrase.split()).casefold()
    return key if key not in before and any(map(str.isalnum, key)) and _has_room(phrase) else None


def may_begin(text: str) -> bool:
    """Whether some valid profile begins with `text`."""
    return START.after(text) is not None


def may_end(text: str) -> bool:
    """Whether `text` is a whole profile."""
    state = START.after(text)
    return state is not None and state.may_end
