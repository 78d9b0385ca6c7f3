"""Numbers, settings and lists of figures as they stand on the report page."""

import json
from collections.abc import Mapping, Sequence
from html import escape


def tiles_html(tiles: Sequence[tuple[str, str]]) -> str:
    cells = (f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in tiles)
    return f'<dl class="facts">{"".join(cells)}</dl>'


def plural(n: int, word: str) -> str:
    return f"{n:,} {word}" if n == 1 else f"{n:,} {word}s"


def percent(n: int, total: int) -> str:
    if not total:
        return "–"
    share = 100 * n / total
    return f"{share:.0f} %" if share >= 10 or n == 0 else f"{share:.1f} %"


def short(value: object) -> str:
    """One line for a table cell: plain values as they are, the rest as JSON cut at 300 characters."""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    text = str(value) if isinstance(value, (str, float, bool)) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 300 else text[:299] + "…"


def pretty(params: Mapping) -> str:
    text = json.dumps(params, indent=1, ensure_ascii=False, default=str, sort_keys=True)
    return text if len(text) <= 4000 else text[:3999] + "…"


def lookup(params: Mapping, key: str) -> object:
    """A value by name, at any depth; a dash where there is none."""
    if key in params:
        return params[key]
    for value in params.values():
        if isinstance(value, Mapping):
            found = lookup(value, key)
            if found != "–":
                return found
    return "–"
