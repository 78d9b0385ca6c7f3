"""A chat model's template, reduced to the text before and the text after one user message.

The template (Jinja, from the GGUF's `tokenizer.chat_template`) is rendered once around a marker in llama-cpp-python's
sandboxed environment; only the text around the marker may hold special tokens, the message itself never does. A
template that asks for the date (Llama 3.1's) is always told the same one: a prompt must not change overnight.
"""

import hashlib
from dataclasses import dataclass
from datetime import datetime

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


def chat_wrap(model: Model) -> ChatWrap | None:
    """The wrap of a model's own chat template, or None where it has none. Raises ModelError if it cannot be rendered."""
    template = model.gguf.metadata.get("tokenizer.chat_template")
    if not isinstance(template, str) or not template.strip():
        return None
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    lib = model.lib

    def text_of(token: int) -> str:
        return model.piece(token, special=True).decode("utf-8", errors="replace") if token >= 0 else ""

    try:
        formatter = Jinja2ChatFormatter(
            template, text_of(lib.llama_vocab_eos(model.vocab)), text_of(lib.llama_vocab_bos(model.vocab))
        )
        formatter.strftime_now = _TODAY.strftime
        rendered = formatter(messages=[{"role": "user", "content": _MARKER}]).prompt
        rendered.encode()  # a lone surrogate is no text
    except Exception as error:  # the template is a program from outside: it may fail in any way
        reason = str(error)[:200] or type(error).__name__
        raise ModelError(
            f"the chat template of {model.path} cannot be rendered ({reason}); use a GGUF with a plain template, or none"
        ) from error
    before, marker, after = rendered.partition(_MARKER)
    if not marker or _MARKER in after:
        raise ModelError(
            f"expected the chat template of {model.path} to show the user's message once, found it "
            f"{rendered.count(_MARKER)} times; use a GGUF with a plain template, or none"
        )
    if len(before) + len(after) > MAX_WRAP_CHARS:
        raise ModelError(
            f"expected the chat template of {model.path} to put at most {MAX_WRAP_CHARS:,} characters around a message, "
            f"found {len(before) + len(after):,}; use a GGUF with a plain template, or none"
        )
    digest = hashlib.sha256("\0".join((template, before, after)).encode("utf-8", "backslashreplace"))
    return ChatWrap(before, after, f"chat:{digest.hexdigest()[:8]}")
