"""The registry of prompt forms, and prompts by the name of a form.

A new form is one file with a `PromptForm` (see `interface`) and one row in `FORMS`; command-line choices, help texts,
manifests and the choice by chat template are made from the table. The first form with a chat template is used for
models that have one, the first without for the others.
"""

from collections.abc import Sequence

from ..errors import InputError
from ..text.keyphrases import PhraseStats
from ..types import ItemText
from . import compact, instruct
from .entries import entries, in_words, leading_phrase
from .interface import ITEM, USER, PromptForm
from .spans import CATALOGUE, Span, text_of
from .view import prompt_view, title_lines

FORMS: dict[str, PromptForm] = {form.name: form for form in (compact.FORM, instruct.FORM)}
COMPACT, INSTRUCT = compact.FORM.name, instruct.FORM.name
ROUNDS_VERSION = "1"  # of the second rounds of all forms
YES, NO = "Yes", "No"  # the answers of a second round


def prompt_form(name: str) -> PromptForm:
    """The form of that name. Raises InputError if there is none."""
    try:
        return FORMS[name]
    except KeyError:
        raise InputError(f"expected form among {', '.join(FORMS)}, found {name!r}; choose one of them") from None


def form_for(has_chat_template: bool) -> str:
    """The name of the form for models with or without a chat template."""
    return next(form.name for form in FORMS.values() if form.uses_chat_template == has_chat_template)


def forms_help() -> str:
    """What the forms are, a sentence for the help of `--form`."""
    described = "; ".join(f"{form.name}: {form.audience}" for form in FORMS.values())
    return f"How prompts are written. {described}."


def answer_lengths() -> str:
    """The default length of an answer by form, for a help text: `96 tokens (compact), 128 tokens (instruct)`."""
    return ", ".join(f"{form.max_new_tokens} tokens ({form.name})" for form in FORMS.values())


def template_versions() -> dict[str, str]:
    """The version of each form's texts, and of the second rounds."""
    return {form.name: form.version for form in FORMS.values()} | {"rounds": ROUNDS_VERSION}


# -- the first round -------------------------------------------------------------


def user_spans(
    history: Sequence[ItemText],
    neighbors: Sequence[Sequence[ItemText]] = (),
    *,
    form: str,
    stats: PhraseStats | None = None,
    side: str = USER,
) -> tuple[Span, ...]:
    """The first round of a user. Raises InputError if there is no text to show.

    stats: of the catalogue; with it, the compact prompt puts first what sets the user apart, without it, what is most
    frequent.
    """
    return prompt_form(form).first_round(history, neighbors, side, lambda: prompt_view(history, neighbors, stats=stats))


def item_spans(
    item: ItemText, co_items: Sequence[ItemText] = (), *, form: str, stats: PhraseStats | None = None
) -> tuple[Span, ...]:
    """The first round of an item, for its audience; `co_items` are items that the same users have."""
    return user_spans([item], [[other] for other in co_items], form=form, stats=stats, side=ITEM)


def user_prompt(
    history: Sequence[ItemText],
    neighbors: Sequence[Sequence[ItemText]] = (),
    *,
    form: str = COMPACT,
    stats: PhraseStats | None = None,
) -> str:
    """The text of `user_spans`; the completion is `answer.format_profile`'s text, then end of sequence."""
    return text_of(user_spans(history, neighbors, form=form, stats=stats))


def item_prompt(
    item: ItemText, co_items: Sequence[ItemText] = (), *, form: str = COMPACT, stats: PhraseStats | None = None
) -> str:
    """The text of `item_spans`."""
    return text_of(item_spans(item, co_items, form=form, stats=stats))


# -- the second round ------------------------------------------------------------


def candidate_spans(item: ItemText, *, form: str, origin: str = CATALOGUE) -> tuple[Span, ...]:
    """Will the user of the first round take this item? Raises InputError if the item has no words.

    origin: what the question about the item was made from; a Yes comes from a training interaction.
    """
    found = in_words(entries([item]))
    if not found or not leading_phrase(found[0].title):
        raise InputError("expected words in the item's texts, found none; give the item a title or a description")
    return prompt_form(form).candidate(found[0], origin)


def person_spans(history: Sequence[ItemText], *, form: str) -> tuple[Span, ...]:
    """Will a person with this history take the item of the first round? Raises InputError if there are no words."""
    return prompt_form(form).person(title_lines(history))
