"""Dialogues to tokens, the same for every stage and, byte for byte, what the profile engine shows a GGUF of the model.

Without a chat template (form "compact") a dialogue is BOS, then each message's text, with the end token after every
answer. With one the template's own words stand around the messages, found by rendering it once around
markers. Only those words may hold special tokens: what a message says is tokenized as plain text, whatever it looks
like. The engine tokenizes the words before a message, the message, and the words after it apart
(`profiles.scheduler.Tokenizer`), and so does this module. BOS comes once, at the very front.

A template that writes something else before an answer in a finished turn than where an answer is asked for (some put an
empty thought there) is followed where the answer is asked for, since that is what the model will see.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np

from ..chat_template import TemplateFailed, render
from ..dialogue.records import Message
from ..errors import ModelError
from ..prompts.forms import prompt_form
from ..prompts.spans import ORIGINS

_MARKERS = ("RECLM-FIRST-QUESTION", "RECLM-FIRST-ANSWER", "RECLM-SECOND-QUESTION", "RECLM-SECOND-ANSWER")
_TODAY = datetime(2024, 7, 26)  # the engine's, for templates that ask for the date


@dataclass(frozen=True)
class Tokens:
    """ids: int32 (n,). is_answer: bool (n,), tokens that carry loss. origin: uint8 (n,), 0 for words of the template
    and 1 + the place in ORIGINS of the span that the token begins in.
    """

    ids: np.ndarray
    is_answer: np.ndarray
    origin: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)


class Renderer:
    """tokenizer: a fast tokenizer of transformers. form: name of a prompt form. end: ids that end an answer."""

    def __init__(self, tokenizer: Any, form: str):
        self.tokenizer, self.form = tokenizer, form
        if not getattr(tokenizer, "is_fast", False):
            raise ModelError(
                "expected a fast tokenizer (tokenizer.json) beside the model, found none; convert it with transformers"
            )
        if not prompt_form(form).uses_chat_template:
            self._first, self._asks, self._between, self.end = self._bos(), [], [], [int(tokenizer.eos_token_id)]
        else:
            self._read_template()

    def _bos(self) -> list[int]:
        with_special, bos = self.tokenizer("a")["input_ids"], self.tokenizer.bos_token_id
        return [int(bos)] if bos is not None and with_special[:1] == [bos] else []

    def _read_template(self) -> None:
        def context(roles: int, ask: bool) -> dict[str, Any]:
            messages = [{"role": ("user", "assistant")[i % 2], "content": _MARKERS[i]} for i in range(roles)]
            special = {
                name: str(token) for name, token in self.tokenizer.special_tokens_map.items() if isinstance(token, str)
            }
            return {**special, "messages": messages, "tools": None, "documents": None, "add_generation_prompt": ask}

        try:
            rendered = render(self.tokenizer.get_chat_template(), [context(1, True), context(4, False)], today=_TODAY)
            if failed := [one for one in rendered if isinstance(one, TemplateFailed)]:
                raise failed[0]
        except (TemplateFailed, ValueError) as error:  # ValueError: several templates, none of them the default
            raise ModelError(
                f"the chat template of the base cannot be rendered ({error}); give a base with a plain template"
            ) from error
        first, asks = self._cut(rendered[0], _MARKERS[:1])
        *_, between, _, _ = self._cut(rendered[1], _MARKERS)
        ids = self._special(between)
        eos = {int(self.tokenizer.eos_token_id), *map(int, self.tokenizer.all_special_ids)}
        eos |= {
            i
            for i, token in self.tokenizer.added_tokens_decoder.items()
            if token.special or token.content.startswith("<")
        }
        ends = next((n for n, token in enumerate(ids) if token in eos), None)
        if ends is None:
            raise ModelError(
                "expected the chat template of the base to end an answer with a special token, found none; give "
                "another base"
            )
        self._first, self._asks, self.end, self._between = (
            self._special(first),
            self._special(asks),
            ids[: ends + 1],
            ids[ends + 1 :],
        )
        if bos := self._bos():
            self._first = self._first if self._first[:1] == bos else [*bos, *self._first]

    @staticmethod
    def _cut(text: str, markers: Sequence[str]) -> list[str]:
        parts = []
        for marker in markers:
            before, found, text = text.partition(marker)
            if not found or marker in text:
                raise ModelError(
                    "expected the chat template of the base to show every message once, in order; give a base with a "
                    "plain template"
                )
            parts.append(before)
        return [*parts, text]

    def _special(self, text: str) -> list[int]:
        return list(map(int, self.tokenizer(text, add_special_tokens=False)["input_ids"])) if text else []

    def _plain(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids of a message's text, and where in it each begins and ends."""
        found = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True)
        return list(map(int, found["input_ids"])), found["offset_mapping"]

    def answer(self, text: str) -> list[int]:
        """Ids of an answer and of what ends it."""
        return [*self._plain(text)[0], *self.end]

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Ids up to where the answer to the last message begins. messages: user, then assistant and user in turn."""
        return self._render(messages).ids.tolist()

    def dialogue(self, messages: Sequence[Message]) -> Tokens:
        """A whole dialogue, answers and what ends them marked."""
        return self._render(messages)

    def _render(self, messages: Sequence[Message]) -> Tokens:
        ids: list[int] = list(self._first)
        marks, origins = [False] * len(ids), [0] * len(ids)

        def fixed(tokens: Sequence[int], is_answer: bool = False) -> None:
            ids.extend(tokens)
            marks.extend([is_answer] * len(tokens))
            origins.extend([0] * len(tokens))

        for n, message in enumerate(messages):
            is_answer = message.role == "assistant"
            if n and not is_answer:
                fixed(self._between)
            tokens, offsets = self._plain(message.text)
            ids.extend(tokens)
            marks.extend([is_answer] * len(tokens))
            origins.extend(_origins(message, offsets))
            fixed(self.end if is_answer else self._asks, is_answer)
        return Tokens(np.array(ids, np.int32), np.array(marks, bool), np.array(origins, np.uint8))


def _origins(message: Message, offsets: Sequence[tuple[int, int]]) -> list[int]:
    """For each token, which origin the span has that it begins in."""
    ends = np.cumsum([len(span.text) for span in message.spans])
    places = np.minimum(np.searchsorted(ends, [start for start, _ in offsets], side="right"), len(message.spans) - 1)
    return [1 + ORIGINS.index(message.spans[place].origin) for place in places]
