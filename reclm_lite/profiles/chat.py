"""A chat model's template, reduced to the text before and the text after one user message.

The template (Jinja, from the GGUF's `tokenizer.chat_template`) is rendered once around a marker, in a process with
limits (`chat_template`); only the text around the marker may hold special tokens, the message itself never does. A
template that asks for the date (Llama 3.1's) is always told the same one: a prompt must not change overnight.
"""

import hashlib
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ..chat_template import TemplateFailed, render_one
from ..errors import ModelError
from ..runtime import Model

MAX_WRAP_CHARS = 16_000
_MARKER = "RECLM-PROMPT-GOES-HERE"
_TODAY = datetime(2024, 7, 26)  # what Llama 3.1's template says where it cannot ask


@dataclass(frozen=True)
class ChatWrap:
    """Text around a message. `name` identifies template and wrap: `chat:` and eight hex digits of their SHA-256."""

    before: str
    after: str
    name: str


def context_of(model: Model, messages: list[dict[str, str]]) -> dict[str, Any]:
    """What a GGUF's template is rendered with: the names that llama-cpp-python gives it."""
    lib = model.lib

    def text_of(token: int) -> str:
        return model.piece(token, special=True).decode("utf-8", errors="replace") if token >= 0 else ""

    return {
        "messages": messages,
        "add_generation_prompt": True,
        "eos_token": text_of(lib.llama_vocab_eos(model.vocab)),
        "bos_token": text_of(lib.llama_vocab_bos(model.vocab)),
        **dict.fromkeys(("functions", "function_call", "tools", "tool_choice")),
    }


def chat_wrap(model: Model) -> ChatWrap | None:
    """The wrap of a model's own chat template, or None if it has none. Raises ModelError if it cannot be
    rendered."""
    template = model.gguf.metadata.get("tokenizer.chat_template")
    if not isinstance(template, str) or not template.strip():
        return None
    try:
        rendered = render_one(template, context_of(model, [{"role": "user", "content": _MARKER}]), today=_TODAY)
    except TemplateFailed as error:
        raise ModelError(
            f"the chat template of {model.path} cannot be rendered ({error}); use a GGUF with a plain template, or none"
        ) from error
    before, marker, after = rendered.partition(_MARKER)
    if not marker or _MARKER in after:
        raise ModelError(
            f"expected the chat template of {model.path} to contain the user's message once, found it "
            f"{rendered.count(_MARKER)} times; use a GGUF with a plain template, or none"
        )
    if len(before) + len(after) > MAX_WRAP_CHARS:
        raise ModelError(
            f"expected the chat template of {model.path} to put at most {MAX_WRAP_CHARS:,} characters around a "
            "message, "
            f"found {len(before) + len(after):,}; use a GGUF with a plain template, or none"
        )
    digest = hashlib.sha256("\0".join((template, before, after)).encode("utf-8", "backslashreplace"))
    return ChatWrap(before, after, f"chat:{digest.hexdigest()[:8]}")
