"""The chat template of a GGUF file against the checkpoint's: the same text, the same token ids, no second BOS.

The file's template is rendered as its users do it, by llama-cpp-python's formatter; the other side is transformers'
`apply_chat_template`, or, without transformers, the checkpoint's template through the same formatter with the special
tokens that its tokenizer_config.json names. A conversation that one side refuses, the other must refuse as well.
Left out: tools, and templates beside the default one, which GGUF's users do not reach through this package.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reclm_lite.convert.checkpoint import optional_json
from reclm_lite.convert.parity.tokens import ReferenceTokenizer, quiet
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
    ([{"role": "user", "content": "Café, naïve, 中文, 🚀 👩‍👩‍👧 e\u0301 \u00a0 <b>&amp;</b> \"quoted\" {{ braces }} {% raw %}"}], True),
    ([{"role": "user", "content": "  spaces around  \n\n\tand lines\r\n "}], True),
    ([{"role": "user", "content": "<|im_end|> </s> <s> [INST] [/INST] <bos> <end_of_turn> <think></think>"}, _ASSISTANT], True),
    ([{"role": "system", "content": "  "}, {"role": "user", "content": ""}], True),
    ([{"role": "system", "content": "<<SYS>> é\n"}, _USER, {"role": "assistant", "content": " ok \n"}], False),
    ([_USER, _USER], True),
    ([_ASSISTANT, _USER], True),
    ([{"role": "tool", "content": "42"}], False),
    ([{"role": "owner", "content": "an unknown role"}, _USER], True),
)  # fmt: skip
_N_SHOWN = 3

_Render = Callable[[list[dict[str, str]], bool], str]


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
    """The default chat template of a checkpoint: chat_template.jinja, or the one in tokenizer_config.json; else None."""
    file = Path(directory) / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = optional_json(Path(directory) / "tokenizer_config.json").get("chat_template")
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _formatter(template: str, eos: str, bos: str) -> _Render:
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    formatter = Jinja2ChatFormatter(template, eos, bos)

    def render(messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
        formatter.add_generation_prompt = add_generation_prompt
        return formatter(messages=messages).prompt

    return render


def file_formatter(model: Model, template: str) -> _Render:
    """Renders a GGUF file's template with the file's own BOS and EOS."""
    lib = model.lib

    def text_of(token: int) -> str:
        return model.piece(token, special=True).decode("utf-8", errors="replace") if token >= 0 else ""

    return _formatter(template, text_of(lib.llama_vocab_eos(model.vocab)), text_of(lib.llama_vocab_bos(model.vocab)))


def _reference_formatter(reference: ReferenceTokenizer | None, directory: Path, template: str) -> _Render:
    if reference is not None and reference.transformers:

        def render(messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
            return reference.backend.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=add_generation_prompt
            )

        return render
    config = optional_json(Path(directory) / "tokenizer_config.json")
    named = [config.get(key) for key in ("eos_token", "bos_token")]
    return _formatter(template, *(str(t["content"] if isinstance(t, dict) else t or "") for t in named))


def _rendered(render: _Render, messages: list[dict[str, str]], add_generation_prompt: bool) -> str | None:
    """The rendered text, or None where the template refuses the conversation."""
    import jinja2

    try:
        return render(messages, add_generation_prompt)
    except (jinja2.TemplateError, ValueError, TypeError, KeyError, IndexError, AttributeError):
        return None


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
        return TemplateReport("not rendered", problems=[f"expected one chat template on both sides, found one in {where}"])
    by_file, by_reference = file_formatter(model, ours), _reference_formatter(reference, directory, theirs)
    by_transformers = reference is not None and reference.transformers
    report = TemplateReport("rendered by transformers" if by_transformers else "rendered from the checkpoint's files")
    bos = model.lib.llama_vocab_bos(model.vocab)
    with quiet("transformers"):
        for messages, add_generation_prompt in CONVERSATIONS:
            report.n_conversations += 1
            roles = ", ".join(message["role"] for message in messages)
            found = _rendered(by_file, messages, add_generation_prompt)
            expected = _rendered(by_reference, messages, add_generation_prompt)
            if found is None and expected is None:
                report.n_refused_by_both += 1
            elif found != expected:
                report.problems.append(
                    f"the conversation ({roles}) renders as {_clip(found)}, where the checkpoint gives {_clip(expected)}"
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
        problems.append(f"the rendered conversation ({roles}) has other token ids than the checkpoint's tokenizer gives")
    if bos >= 0 and ids[:2] == [bos, bos]:
        problems.append(f"the rendered conversation ({roles}) begins with BOS twice")
    return problems


def _clip(text: str | None, n_chars: int = 160) -> str:
    if text is None:
        return "an error"
    return repr(text if len(text) <= n_chars else text[:n_chars] + "…")
