"""The frame of a page that needs nothing but itself: no script, no network, the style sheet inside; for `page` and for
benchmarks."""

from collections.abc import Sequence
from html import escape
from importlib import resources


def shell(
    title: str, *, kicker: str, heading: str, soft: str, lede: str, sections: Sequence[tuple[str, str, str]]
) -> str:
    """The page as HTML. title, kicker, heading, soft: plain text; lede: HTML; sections: (anchor, title, HTML)."""
    links = "".join(f'<li><a href="#{key}">{escape(name)}</a></li>' for key, name, _ in sections)
    body = "".join(
        f'<section id="{key}" aria-labelledby="{key}-title"><h2 id="{key}-title">{escape(name)}</h2>{html}</section>'
        for key, name, html in sections
    )
    style = resources.files(__package__).joinpath("style.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        f'<header><p class="kicker">{escape(kicker)}</p><h1>{escape(heading)}</h1>'
        f'<p class="soft">{escape(soft)}</p><p class="lede">{lede}</p><nav '
        f'aria-label="Sections"><ul>{links}</ul></nav></header>\n'
        f"<main>{body}</main>\n"
        "<footer><p>Written by reclm-lite on this machine. The page holds everything it shows and loads "
        "nothing.</p></footer>\n"
        "</body>\n</html>\n"
    )
