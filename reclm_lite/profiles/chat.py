"""A chat model's template, reduced to the text before and the text after one user message.

The template (Jinja, from the GGUF's `tokenizer.chat_template`) is rendered once around a marker in llama-cpp-python's
sandboxed environment; only the text around the marker may hold special tokens, the message itself never does.
"""

import hashlib
from dataclasses import dataclass

from ..errors import ModelError
from ..runtime import Model

_MARKER = "RECLM-PROMPT-GOES-HERE"


@dataclass(frozen=True)
class ChatWrap:
    """Text around a message. `name` identifies the template: `chat:` and eight hex digits of its SHA-256."""

    before: str
    after: str
    name: str


def chat_wrap(model: Model) -> ChatWrap | None:
    """The wrap of a model's own chat template, or None where it has none. Raises ModelError if it cannot be rendered."""
    template = model.gguf.metadata.get("tokenizer.chat_template")
    if not isinstance(template, str) or not template.strip():
        return None
    import jinja2
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    lib = model.lib

    def text_of(token: int) -> str:
        return model.piece(token, special=True).decode("utf-8", errors="replace") if token >= 0 else ""

    try:
        formatter = Jinja2ChatFormatter(
            template, text_of(lib.llama_vocab_eos(model.vocab)), text_of(lib.llama_vocab_bos(model.vocab))
        )
        rendered = formatter(messages=[{"role": "user", "content": _MARKER}]).prompt
    except (jinja2.TemplateError, ValueError, TypeError, KeyError) as error:
        raise ModelError(
            f"the chat template of {model.path} cannot be rendered ({error}); use a GGUF with a plain template, or none"
        ) from error
    before, marker, after = rendered.partition(_MARKER)
    if not marker or _MARKER in after:
        raise ModelError(
            f"expected the chat template of {model.path} to show the user's message once, found it "
            f"{rendered.count(_MARKER)} times; use a GGUF with a plain template, or none"
        )
    return ChatWrap(before, after, f"chat:{hashlib.sha256(template.encode()).hexdigest()[:8]}")
