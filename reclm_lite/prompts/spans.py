"""Pieces of a message with their origin: what each piece of text was made from.

A reader of training data can so refuse what must not be learned from. The origins are `template` (fixed words), `train`
(training interactions), `catalogue` (texts of items, whoever has them), `teacher` (a first-round answer) and `label` (a
second-round answer). There are no others: validation and test interactions have no name here.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

TEMPLATE, TRAIN, CATALOGUE, TEACHER, LABEL = "template", "train", "catalogue", "teacher", "label"
ORIGINS = (TEMPLATE, TRAIN, CATALOGUE, TEACHER, LABEL)


@dataclass(frozen=True)
class Span:
    """A piece of a message and what it was made from (one of ORIGINS)."""

    text: str
    origin: str


def text_of(spans: Iterable[Span]) -> str:
    """The text of spans, one after the other."""
    return "".join(span.text for span in spans)


def joined(spans: Iterable[Span]) -> tuple[Span, ...]:
    """The same text in as few spans as there are changes of origin."""
    found: list[Span] = []
    for span in spans:
        if found and found[-1].origin == span.origin:
            found[-1] = Span(found[-1].text + span.text, span.origin)
        else:
            found.append(span)
    return tuple(found)


def marked(mark: str, texts: Sequence[str], origin: str) -> list[Span]:
    """Each text on a line of its own; the first behind one mark, the second behind two, and so on."""
    spans = []
    for n, text in enumerate(texts, 1):
        spans += [Span(f"{mark * n} ", TEMPLATE), Span(text, origin), Span("\n", TEMPLATE)]
    return spans


def quoted(texts: Sequence[str], origin: str) -> list[Span]:
    """Each text as a list item between quotation marks."""
    return [span for text in texts for span in (Span('- "', TEMPLATE), Span(text, origin), Span('"\n', TEMPLATE))]
