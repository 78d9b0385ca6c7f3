"""Text from outside, made fit for people's eyes: what could command a terminal, or reorder a line, shows as an escape.

Titles, ids, file names, sources, messages of servers: whatever somebody else wrote passes here on its way to a terminal
or a log (`cli/_out.py`), and JSON passes through `json_text`. Left out: HTML, which the report escapes, and CSV, see
`csv_cells.py`.
"""

import json
import re
from typing import Any

# C0 and C1 controls and DEL (escape sequences begin with one of them), direction marks, embeddings, overrides and
# isolates (they reorder what is read), line and paragraph separators (a second line that nobody printed), interlinear
# annotations, and halves of surrogate pairs (no encoding has them). Joiners, variation selectors and combining marks
# stay: scripts and emoji are made of them.
_UNSAFE = "\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ufff9-\ufffb\ud800-\udfff"
_IN_A_LINE = re.compile(f"[{_UNSAFE}]")
_IN_LINES = re.compile(f"(?![\t\n])[{_UNSAFE}]")


def printable(text: str, *, lines: bool = False) -> str:
    """`text` with every character of `_UNSAFE` as a visible escape, such as `\\x1b` or `\\u202e`.

    lines: tabs and line breaks stay, for what is meant to have several lines. Printing the result again changes
    nothing.
    """
    return (_IN_LINES if lines else _IN_A_LINE).sub(_escape, text)


def json_text(document: Any, *, indent: int | None = None) -> str:
    """JSON, readable in every script and yet safe to print: the same characters as escapes that any reader of JSON
    turns back.

    Raises ValueError where a number is not finite, which JSON cannot say.
    """
    text = json.dumps(document, ensure_ascii=False, indent=indent, allow_nan=False)
    return _IN_LINES.sub(lambda match: f"\\u{ord(match[0]):04x}", text)  # they stand within strings alone


def _escape(match: re.Match) -> str:
    code = ord(match[0])
    return {9: "\\t", 10: "\\n", 13: "\\r"}.get(code) or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")
