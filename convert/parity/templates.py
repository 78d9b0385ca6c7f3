"""The chat template of a GGUF file against the checkpoint's: the same text, the same token ids, no second BOS.

The file's template is rendered as its users do it, with the names that llama-cpp-python gives it; the other side is
rendered by transformers' own code, or, without transformers, the checkpoint's template as the file's, with the special
tokens that its tokenizer_config.json names. Each side is rendered in a process with limits
(`reclm_lite.chat_template`). A conversation that one side refuses, the other must refuse as well.
Left out: tools, and templates beside the default one, which GGUF's users do not reach through this package.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reclm_lite import chat_template
from reclm_lite.chat_template import TemplateFailed, TemplateTooLarge, render
from reclm_lite.convert.bounded_files import MAX_CONFIG_BYTES, read_bounded
from reclm_lite.convert.checkpoint import optional_json
from reclm_lite.convert.parity import template_reference
from reclm_lite.convert.parity.tokens import ReferenceTokenizer, quiet
from reclm_lite.errors import ModelError
from reclm_lite.runtime import Model

_SYSTEM = {"role": "system", "content": "You answer in one short sentence."}
_USER = {"role": "user", "content": "Which two books should a keen gardener read in winter?"}
_ASSISTANT = {"role": "assistant", "content": "One on old roses, one on seeds."}
# (messages, add_generation_prompt); all that the package sends is in the first two.
CONVERSATIONS: tuple[tuple[list[dict[str, str]], bool], ...] = (
    ([_USER], True),
    ([_SYSTEM, _USER], True),
    ([_USER], False),
    ([_USER, _ASSISTANT], False),
    ([_SYSTEM, _USER, _ASSISTANT, {"role": "user", "content": "And in spring?"}], True),
    ([_USER, _ASSISTANT, _USER, _ASSISTANT, _USER], True),
    (
        [
            {
                "role": "user",
                "content": 'Café, naïve, 中文, 🚀 👩‍👩‍👧 e\u0301 \u00a0 <b>&amp;</b> "quoted" {{ braces }} {% raw %}',
            }
        ],
        True,
    ),
    ([{"role": "user", "content": "  spaces around  \n\n\tand lines\r\n "}], True),
    (
        [
            {"role": "user", "content": "<|im_end|> </s> <s> [INST] [/INST] <bos> <end_of_turn> <think></think>"},
            _ASSISTANT,
        ],
        True,
    ),
    ([{"role": "system", "content": "  "}, {"role": "user", "content": ""}], True),
    ([{"role": "system", "content": "<<SYS>> é\n"}, _USER, {"role": "assistant", "content": " ok \n"}], False),
    ([_USER, _USER], True),
    ([_ASSISTANT, _USER], True),
    ([{"role": "tool", "content": "42"}], False),
    ([{"role": "owner", "content": "an unknown role"}, _USER], True),
)
_N_SHOWN = 3
MAX_CHARS = 500_000  # of all conversations together, which are tokenized; a template in use writes some 20,000


@dataclass
class TemplateReport:
    """What comparing chat templates found. `problems` are sentences; `proved` is "rendered", "absent" or why not."""

    proved: str
    n_conversations: int = 0
    n_refused_by_both: int = 0
    problems: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return {
            "proved": self.proved,
            "n_conversations": self.n_conversations,
            "n_refused_by_both": self.n_refused_by_both,
            "problems": self.problems[:_N_SHOWN],
        }


def checkpoint_template(directory: Path) -> str | None:
    """The default chat template of a checkpoint: chat_template.jinja, or the one in tokenizer_config.json; else
    None."""
    file = Path(directory) / "chat_template.jinja"
    if file.is_file():
        try:
            return read_bounded(file, MAX_CONFIG_BYTES).decode()
        except UnicodeDecodeError as error:
            raise ModelError(f"expected {file} in UTF-8, found: {error}; copy the checkpoint again") from error
    template = optional_json(Path(directory) / "tokenizer_config.json").get("chat_template")
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _named(eos: str, bos: str) -> dict[str, Any]:
    """The names that a GGUF's users give its template, besides the messages."""
    return {"eos_token": eos, "bos_token": bos, **dict.fromkeys(("functions", "function_call", "tools", "tool_choice"))}


def file_names(model: Model) -> dict[str, Any]:
    """The names for a GGUF file's template: its own BOS and EOS among them."""
    lib = model.lib

    def text_of(token: int) -> str:
        return model.piece(token, special=True).decode("utf-8", errors="replace") if token >= 0 else ""

    return _named(text_of(lib.llama_vocab_eos(model.vocab)), text_of(lib.llama_vocab_bos(model.vocab)))


def rendered(template: str, names: dict[str, Any], program: str = chat_template.__name__) -> list[str | None]:
    """The text of every conversation, or None where the template refuses it. Raises TemplateFailed where nothing can be
    rendered, and where the texts are too long."""
    contexts = [{**names, "messages": messages, "add_generation_prompt": asks} for messages, asks in CONVERSATIONS]
    found = render(template, contexts, program=program)
    if too_large := next((text for text in found if isinstance(text, TemplateTooLarge)), None):
        raise too_large  # not rendered a second time by the reference
    texts = [None if isinstance(text, TemplateFailed) else text for text in found]
    n_chars = sum(len(text) for text in texts if text is not None)
    if n_chars > MAX_CHARS:
        raise TemplateFailed(
            f"it writes {n_chars:,} characters for {len(texts)} conversations, more than {MAX_CHARS:,}"
        )
    return texts


def _by_reference(reference: ReferenceTokenizer | None, directory: Path, template: str) -> list[str | None]:
    if reference is not None and reference.transformers:
        return rendered(template, dict(reference.backend.special_tokens_map), template_reference.__name__)
    config = optional_json(Path(directory) / "tokenizer_config.json")
    named = [config.get(key) for key in ("eos_token", "bos_token")]
    return rendered(template, _named(*(str(t["content"] if isinstance(t, dict) else t or "") for t in named)))


def compare_templates(model: Model, reference: ReferenceTokenizer | None, directory: Path) -> TemplateReport:
    """Renders every conversation of CONVERSATIONS on both sides, and compares texts and token ids.

    A template in one place and none in the other is a problem. `directory` is the tokenizer's.
    """
    ours = model.gguf.metadata.get("tokenizer.chat_template")
    theirs = checkpoint_template(directory)
    if reference is not None and reference.transformers:
        theirs = getattr(reference.backend, "chat_template", None)
        if isinstance(theirs, dict):
            theirs = theirs.get("default")
    if not ours and not theirs:
        return TemplateReport("absent")
    if not ours or not theirs:
        where = "the checkpoint only" if theirs else "the GGUF file only"
        return TemplateReport(
            "not rendered", problems=[f"expected one chat template on both sides, found one in {where}"]
        )
    by_transformers = reference is not None and reference.transformers
    report = TemplateReport("rendered by transformers" if by_transformers else "rendered from the checkpoint's files")
    bos = model.lib.llama_vocab_bos(model.vocab)
    try:
        by_file, by_reference = rendered(ours, file_names(model)), _by_reference(reference, directory, theirs)
    except TemplateFailed as error:
        return TemplateReport("not rendered", problems=[f"the chat template cannot be rendered: {error}"])
    with quiet("transformers"):
        for (messages, _), found, expected in zip(CONVERSATIONS, by_file, by_reference, strict=True):
            report.n_conversations += 1
            roles = ", ".join(message["role"] for message in messages)
            if found is None and expected is None:
                report.n_refused_by_both += 1
            elif found != expected:
                report.problems.append(
                    f"the conversation ({roles}) renders as {_clip(found)}, where the checkpoint gives "
                    f"{_clip(expected)}"
                )
            else:
                report.problems += _odd_ids(model, reference, str(found), bos, roles)
    if report.n_refused_by_both == report.n_conversations:
        report.problems.append("the chat template refuses every conversation, on both sides")
    return report


def _odd_ids(model: Model, reference: ReferenceTokenizer | None, text: str, bos: int, roles: str) -> list[str]:
    ids = model.tokenize(text, add_special=False, parse_special=True)
    problems = []
    if reference is not None and ids != reference.encode(text, add_special=False):
        problems.append(
            f"the rendered conversation ({roles}) has other token ids than the checkpoint's tokenizer gives"
        )
    if bos >= 0 and ids[:2] == [bos, bos]:
        problems.append(f"the rendered conversation ({roles}) begins with BOS twice")
    return problems


def _clip(text: str | None, n_chars: int = 160) -> str:
    if text is None:
        return "an error"
    return repr(text if len(text) <= n_chars else text[:n_chars] + "…")
