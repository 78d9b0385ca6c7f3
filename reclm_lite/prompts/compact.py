"""The compact prompt, which the bundled model was trained on: three topics and three lines of text (see `view`).

Each stands behind a mark of its own; the answer follows the last line break at once:

    Topics:
    * football nfl
    ** sports
    *** Patriots rally
    History:
    # Patriots rally past
    ## Jets in
    ### overtime
    Profile:

The second round, about an item for a user, or about a person for an item:

    Candidate:                      Person:
    * football nfl                  # Patriots rally past Jets in overtime
    # Patriots rally past Jets      ## field guide to mosses
    Takes:                          Takes:
"""

import math
from collections.abc import Callable, Sequence

from ..types import ItemText
from .entries import Entry, from_phrase, units
from .interface import USER, PromptForm
from .spans import CATALOGUE, TEMPLATE, TRAIN, Span, joined, marked
from .view import PromptView


def render(view: PromptView, heading: str, origin: str = TRAIN) -> tuple[Span, ...]:
    """The prompt of a view. heading: "Films", "History", "Film" or "Item". origin: of what the view shows."""
    return joined(
        [
            Span("Topics:\n", TEMPLATE),
            *marked("*", view.topics, origin),
            Span(f"{heading}:\n", TEMPLATE),
            *marked("#", view.lines, origin),
            Span("Profile:\n", TEMPLATE),
        ]
    )


def view_spans(view: PromptView, side: str, *, has_neighbors: bool) -> tuple[Span, ...]:
    """The prompt of a view. side: "user" or "item"."""
    if side == USER:
        return render(view, "Films" if view.film else "History")
    # Co-items fill lines and weigh topics, so that what is shown is of the training interactions where there are any.
    return render(view, "Film" if view.film else "Item", TRAIN if has_neighbors else CATALOGUE)


def _first_round(
    own: Sequence[ItemText], near: Sequence[Sequence[ItemText]], side: str, view: Callable[[], PromptView]
) -> tuple[Span, ...]:
    return view_spans(view(), side, has_neighbors=bool(near))


def _candidate(entry: Entry, origin: str) -> tuple[Span, ...]:
    topic = marked("*", [entry.topic] if entry.topic else [], origin)
    line = marked("#", [from_phrase(entry.title)], origin)
    return joined([Span("Candidate:\n", TEMPLATE), *topic, *line, Span("Takes:\n", TEMPLATE)])


def _person(titles: Sequence[str]) -> tuple[Span, ...]:
    return joined([Span("Person:\n", TEMPLATE), *marked("#", titles, TRAIN), Span("Takes:\n", TEMPLATE)])


FORM = PromptForm(
    name="compact",
    version="4",
    audience="prompts of the bundled model",
    uses_chat_template=False,
    max_own_items=None,
    hides_shared_items=False,
    max_new_tokens=96,
    first_round=_first_round,
    candidate=_candidate,
    person=_person,
    shown_title=from_phrase,
    n_tokens=lambda text: math.ceil(units(text) / 2),  # small vocabularies have about two units a token
)
