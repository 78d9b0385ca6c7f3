"""Limits how much of a text from outside is processed, so that a title of megabytes costs no more than a long title.

White space is collapsed before a text is cut, and runs of combining marks are cut before it is normalized: putting n of
them in order takes n² steps. A text within the bounds stays as it is.
"""

import re
import unicodedata
from dataclasses import replace

from reclm_lite.types import ItemText

MAX_SCANNED_CHARS = 1 << 20  # of a text, before its white space is collapsed
MAX_FIELD_CHARS = 20_000  # of a title, a category or a description: some 3,000 words, of which prompts show a dozen
MAX_MARKS = 30  # combining marks in a row, as in Unicode's stream-safe form; no language writes more than a few

_MANY_MARKS = re.compile(rf"[^\w\s]{{{MAX_MARKS + 1}}}")  # marks are neither letters nor digits nor spaces


def bounded(text: str, n_chars: int = MAX_FIELD_CHARS) -> str:
    """The text; of a longer one than `n_chars`, its beginning, with single spaces."""
    if len(text) <= n_chars:
        return text
    return " ".join(text[:MAX_SCANNED_CHARS].split())[:n_chars]


def bounded_item(item: ItemText) -> ItemText:
    """The item, each field `bounded`."""
    fields = item.title, item.category, item.subcategory, item.description
    return (
        item
        if max(map(len, fields)) <= MAX_FIELD_CHARS
        else replace(item, **dict(zip(vars(item), map(bounded, fields))))
    )


def few_marks(text: str) -> str:
    """The text without the combining marks that follow `MAX_MARKS` others at once."""
    if text.isascii() or not _MANY_MARKS.search(text):
        return text
    kept, n = [], 0
    for char in text:
        n = n + 1 if unicodedata.combining(char) else 0
        if n <= MAX_MARKS:
            kept.append(char)
    return "".join(kept)
