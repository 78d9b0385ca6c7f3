"""The body of an answer of `POST /chat/completions`, as a stranger may have written it: a reply, or what went wrong.

A body is JSON of bounded size, nesting and numbers before anything of it is looked at. Of a name that comes twice in an
object the last counts, as in every JSON reader. Left out: HTTP (`http_chat`), the text's own form
(`prompts.answer`).
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# Lists and objects, of which real answers have a dozen: each takes some 200 bytes for 2 that are sent.
MAX_CONTAINERS = 100_000
MAX_DEPTH = 64  # of containers in containers; real answers have five
MAX_DIGITS = 400  # of a number; the longest float written out has 309 before its point


@dataclass(frozen=True)
class Reply:
    """What a server answered. n_prompt_tokens, n_new_tokens: as it counts them, None if it does not."""

    text: str
    finish: str
    n_prompt_tokens: int | None
    n_new_tokens: int | None


def read_json(content: bytes) -> object:
    """The document in a body. Raises ValueError, with words for a person, where it is none or goes beyond the
    bounds."""
    if content.count(b"[") + content.count(b"{") > MAX_CONTAINERS:
        raise ValueError("JSON of too many parts")
    try:
        document = json.loads(content, parse_int=_integer)
    except RecursionError:
        raise ValueError("JSON nested too deeply") from None
    except ValueError:
        raise ValueError("no JSON") from None
    level, depth = [document], 0
    while level := [inner for one in level for inner in _inside(one)]:
        depth += 1
        if depth > MAX_DEPTH:
            raise ValueError("JSON nested too deeply")
    return document


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError
    return int(digits)


def _inside(value: object) -> list:
    """The values of a list or an object that may hold further ones."""
    found = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [one for one in found if isinstance(one, dict | list)]


def read_reply(content: bytes, without_key: Callable[[str], str]) -> Reply:
    """The answer in a body. Raises ValueError if there is none. without_key: cuts the key out of a text."""
    document: Any = read_json(content)
    choices = document.get("choices") if isinstance(document, dict) else None
    if not isinstance(choices, list) or not choices:
        raise ValueError("no choices")
    choice: Any = choices[0]
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict):
        raise ValueError("no message")
    text = message.get("content")
    if isinstance(text, list):  # in parts
        text = "".join(part["text"] for part in text if isinstance(part, dict) and isinstance(part.get("text"), str))
    if text is not None and not isinstance(text, str):
        raise ValueError("no text")
    usage = document.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    finish = choice.get("finish_reason")
    return Reply(
        without_key((text or "").encode("utf-8", "replace").decode()),  # a lone surrogate cannot be stored
        finish if isinstance(finish, str) else "stop",
        _count(usage.get("prompt_tokens")),
        _count(usage.get("completion_tokens")),
    )


def read_error(content: bytes, without_key: Callable[[str], str]) -> tuple[str, str]:
    """(code or type, message) of an error, each empty if the server gives none; no key and no control characters in
    it."""
    try:
        error = read_json(content)
    except ValueError:
        return "", ""
    error = error.get("error", error) if isinstance(error, dict) else error
    if isinstance(error, str):
        return "", plain(without_key(error), 300)
    if not isinstance(error, dict):
        return "", ""
    codes = [plain(error[name], 100) for name in ("code", "type") if isinstance(error.get(name), str)]
    code = " ".join(codes)
    message = error.get("message") or error.get("detail") or ""
    code = "insufficient_quota" if "insufficient_quota" in code.split() else code
    return code, plain(without_key(str(message)), 300)


def plain(text: str, limit: int) -> str:
    """One line without control characters, cut."""
    text = text.lstrip()[: 20 * limit]  # so that a long one is not looked at to its end
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _count(value: object) -> int | None:
    return value if type(value) is int and 0 <= value < 1 << 31 else None
