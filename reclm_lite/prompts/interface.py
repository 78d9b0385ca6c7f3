"""The contract of a prompt form: all that differs between one way of writing prompts and another.

A new form is one file that defines a `PromptForm` (copy `compact.py` or `instruct.py`) and one row in `forms.FORMS`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..types import ItemText
from .entries import Entry
from .spans import Span
from .view import PromptView

USER, ITEM = "user", "item"


@dataclass(frozen=True)
class PromptForm:
    """One way to write prompts.

    name: as given to `--form`, and as stored in files of dialogues.
    version: of the texts. It is part of the key of every stored generation: change it whenever a text changes.
    audience: which models it is for, a phrase for the help of `--form`.
    uses_chat_template: whether a prompt is the user's message in the model's chat template, or the whole input.
    max_own_items: at most so many of the newest own items are shown; None: all are considered.
    hides_shared_items: leave out neighbors' items that the user has too, shown or not.
    max_new_tokens: of an answer, unless the caller says otherwise.

    first_round(own, near, side, view): spans of the prompt for a profile. own: items of a user, or one item. near: of
    each neighbor its items; of an item one co-item each. side: "user" or "item". view: makes the `PromptView` of the
    same items, for forms that need it. Raises InputError if there is no text to show.
    candidate(entry, origin): spans of the second round about a user: will the user take this item? origin: of the
    item's texts.
    person(titles): spans of the second round about an item: will a person with these titles take it?
    shown_title(title): an own item's title as it reads in the first round.
    n_tokens(text): an estimate of the tokens of a text, without a tokenizer.
    """

    name: str
    version: str
    audience: str
    uses_chat_template: bool
    max_own_items: int | None
    hides_shared_items: bool
    max_new_tokens: int
    first_round: Callable[
        [Sequence[ItemText], Sequence[Sequence[ItemText]], str, Callable[[], PromptView]], tuple[Span, ...]
    ]
    candidate: Callable[[Entry, str], tuple[Span, ...]]
    person: Callable[[Sequence[str]], tuple[Span, ...]]
    shown_title: Callable[[str], str]
    n_tokens: Callable[[str], int]

    def n_own_items(self, n: int) -> int:
        """How many of `n` own items a prompt considers at most."""
        return n if self.max_own_items is None else min(n, self.max_own_items)
