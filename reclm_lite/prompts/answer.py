"""The answer that prompts ask for: three identities and three interests, written and parsed in one form.

    User identity: a, b, c; User interests: x, y, z

Left out: holding a model to that form while it writes (`profiles.answer_grammar`).
"""

import re
import unicodedata

from ..errors import ProfileFormatError
from ..types import Profile

MAX_PHRASE_CHARS = 60


_DIGITS = re.compile(r"\d{6}")


def looks_like_id(word: str) -> bool:
    """Whether a word is more likely an identifier than a word: six digits on end, or letters with four digits or more.

    `N5552`, `B000FQ9QVI` and `user-1042` are; `1990s`, `covid-19`, `2019-2020` and `mp3` are not. A word that begins
    with a digit needs six letters and digits together. Not told from a word: an id of letters alone or of at most three
    digits (`user-104`), which may be the beginning of a longer one, and a number of at most five digits.
    """
    if _DIGITS.search(word):
        return True
    n_letters, n_digits = sum(map(str.isalpha, word)), sum(map(str.isdigit, word))
    if n_digits < 4 or n_letters == 0:
        return False
    return n_letters + n_digits >= 6 or next(filter(str.isalnum, word)).isalpha()


_UNPRINTED = frozenset(
    {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}
)  # controls, formats, surrogates, private use, line separators
_JOINERS = "\u200c\u200d"  # formats too, but Persian, Indic scripts and emoji are not written without them


def is_unprinted(char: str) -> bool:
    """Whether a character shows nothing of its own: a control, a direction mark, a zero-width space, a soft hyphen."""
    if unicodedata.category(char) in _UNPRINTED:
        return char not in _JOINERS
    return ord(char) & 0xFFFE == 0xFFFE or "\ufdd0" <= char <= "\ufdef"  # never to be characters; others may be yet


def format_profile(profile: Profile) -> str:
    """`User identity: a, b, c; User interests: x, y, z`."""
    return f"User identity: {', '.join(profile.identity)}; User interests: {', '.join(profile.interests)}"


MAX_ANSWER_CHARS = 4_000  # of a profile as it is given: ten times what six phrases of MAX_PHRASE_CHARS take
# No part can match what the next one does, so that a text is read once, whatever it is.
_ANSWER = re.compile(r"User identity:([^;\n]*); *User interests:([^;\n]*)", re.IGNORECASE)


def parse_profile(text: str) -> Profile:
    """The profile in a model's answer; raises ProfileFormatError unless it has the published form.

    Surrounding whitespace and full stops at the end are forgiven; nothing may come before or after. Whitespace of any
    kind within a phrase becomes one space; characters that show nothing (`is_unprinted`) are refused. What
    `format_profile` makes of the result is parsed to the same again.
    """
    text = text.strip()
    if len(text) > MAX_ANSWER_CHARS:
        raise ProfileFormatError(
            f"expected a profile of at most {MAX_ANSWER_CHARS:,} characters, found {len(text):,}; generate the "
            "profile again"
        )
    match = _ANSWER.fullmatch(text)
    if not match:
        raise ProfileFormatError(
            f"expected 'User identity: a, b, c; User interests: x, y, z', found {text[:80]!r}; generate the profile "
            "again"
        )
    lists = []
    for name, part in zip(("identities", "interests"), match.groups()):
        part = part.lstrip(" ")
        phrases = tuple(" ".join(phrase.split()) for phrase in part.split(","))
        if name == "interests":
            phrases = (*phrases[:-1], phrases[-1].rstrip(" ."))
        if len(phrases) != 3 or not all(phrases):
            raise ProfileFormatError(f"expected 3 {name}, found {part[:80]!r}; generate the profile again")
        if len({phrase.casefold() for phrase in phrases}) != 3:
            raise ProfileFormatError(f"expected 3 different {name}, found {part[:80]!r}; generate the profile again")
        if unprinted := [c for phrase in phrases for c in phrase if is_unprinted(c)]:
            raise ProfileFormatError(
                f"expected {name} of characters that are printed, found U+{ord(unprinted[0]):04X} in {part[:80]!r}; "
                "remove it, or generate the profile again"
            )
        if longest := [phrase for phrase in phrases if len(phrase) > MAX_PHRASE_CHARS]:
            raise ProfileFormatError(
                f"expected {name} of at most {MAX_PHRASE_CHARS} characters, found {len(longest[0])}; generate the "
                "profile again"
            )
        lists.append(phrases)
    return Profile(*lists)
