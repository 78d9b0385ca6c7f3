"""The form of the answer, held while it is written: `User identity: a, b, c; User interests: x, y, z`.

The model chooses; a choice is refused only where no valid profile could begin like that, and then its next choice is
asked. Where the form leaves one continuation (its fixed words) that is taken. So nearly every answer parses, and an
answer that would have parsed anyway is left as it is. Left out: what the phrases say.
"""

from ..dialogue.templates import MAX_PHRASE_CHARS

FORM_VERSION = "1"
HEAD, MIDDLE = "User identity:", " User interests:"
N_PHRASES = 3
MAX_WORDS = 6


def may_begin(text: str) -> bool:
    """Whether some valid profile begins with `text`."""
    text = text.lstrip()
    if len(text) <= len(HEAD):
        return HEAD.startswith(text)
    if not text.startswith(HEAD):
        return False
    identities, semicolon, rest = text[len(HEAD) :].partition(";")
    if not semicolon:
        return _list_may_begin(identities)
    if not is_list(identities):
        return False
    if len(rest) <= len(MIDDLE):
        return MIDDLE.startswith(rest)
    return rest.startswith(MIDDLE) and ";" not in rest and _list_may_begin(rest[len(MIDDLE) :])


def may_end(text: str) -> bool:
    """Whether `text` is a whole profile."""
    head, semicolon, rest = text.strip().partition(";")
    return (
        bool(semicolon)
        and head.startswith(HEAD)
        and is_list(head[len(HEAD) :])
        and rest.startswith(MIDDLE)
        and is_list(rest[len(MIDDLE) :])
    )


def forced(text: str) -> str:
    """The fixed words that must come next, or nothing where the model has a choice."""
    text = text.lstrip()
    if HEAD.startswith(text):
        return HEAD[len(text) :]
    _, semicolon, rest = text.partition(";")
    return MIDDLE[len(rest) :] if semicolon and MIDDLE.startswith(rest) else ""


def is_list(text: str) -> bool:
    """Whether `text` is three different phrases of the length that a profile allows."""
    phrases = [" ".join(phrase.split()) for phrase in text.split(",")]
    return len(phrases) == N_PHRASES and _different(phrases)


def _list_may_begin(text: str) -> bool:
    *whole, last = (" ".join(phrase.split()) for phrase in text.split(","))
    if any(c < " " or "\x7f" <= c <= "\x9f" for c in text) or len(whole) >= N_PHRASES or not _different(whole) or len(last) > MAX_PHRASE_CHARS:
        return False
    return len(last.split()) <= MAX_WORDS


def _different(phrases: list[str]) -> bool:
    keys = {phrase.casefold() for phrase in phrases}
    return len(keys) == len(phrases) and all(
        len(phrase) <= MAX_PHRASE_CHARS and any(c.isalnum() for c in phrase) for phrase in phrases
    )
