"""Every token of a GGUF vocabulary against the checkpoint's tokenizer: its text, its kind, and which tokens are
special.

Token ids of a few thousand texts touch a small part of a large vocabulary; a wrong text, a control token taken for an
ordinary one, or another end of generation shows only when the model says it.
"""

from collections.abc import Iterable
from typing import Any

from reclm_lite.convert.checkpoint import optional_json
from reclm_lite.convert.parity.tokens import ReferenceTokenizer
from reclm_lite.convert.vocab.special import KNOWN_ENDS
from reclm_lite.runtime import Model

_N_WORDS = 4096
_N_SHOWN = 3
# GGUF's name of a special token -> the kind as tokenizers and config.json name it, the first that is named.
_KINDS = {
    "bos_token_id": ("bos", "cls"),
    "padding_token_id": ("pad",),
    "unknown_token_id": ("unk",),
    "seperator_token_id": ("sep",),
    "mask_token_id": ("mask",),
}


def words(model: Model) -> list[str]:
    """The texts of up to 4,096 tokens of a vocabulary, evenly spread: each merge and each piece, put to the test."""
    found: dict[str, None] = {}
    for token in range(0, model.n_vocab, -(-model.n_vocab // _N_WORDS)):
        try:
            found[model.piece(token).decode("utf-8")] = None
        except UnicodeDecodeError:
            continue  # part of a character
    return [text for text in found if text]


def compare_vocabulary(model: Model, reference: ReferenceTokenizer, config: dict[str, Any]) -> list[str]:
    """Sentences about tokens that are not the reference's. config: the checkpoint's config.json."""
    problems = _special_problems(model, reference, config)
    lib, vocab = model.lib, model.vocab
    wordpiece = model.gguf.metadata.get("tokenizer.ggml.model") == "bert"
    named = _named_ids(reference)
    odd: dict[str, list[str]] = {"text": [], "kind": [], "piece": []}
    for token, text in _table(reference, model.n_vocab):
        special = token in named
        ours = lib.llama_vocab_get_text(vocab, token).decode("utf-8", errors="replace")
        theirs = _as_llama_writes(text) if wordpiece and not special else text
        # Either mark of a space: which one an added token has is a matter of its kind.
        if ours.replace("\u2581", " ") != theirs.replace("\u2581", " "):
            odd["text"].append(f"{token} is {ours[:40]!r}, not {theirs[:40]!r}")
        control = bool(lib.llama_vocab_is_control(vocab, token))
        attributes = lib.llama_vocab_get_attr(vocab, token)
        unknown = bool(attributes & lib.LLAMA_TOKEN_ATTR_UNKNOWN)
        if (special and not control and not unknown) or (control and not special and text not in KNOWN_ENDS):
            odd["kind"].append(f"{token}, {text[:40]!r}, is {'a' if control else 'no'} control token")
        elif attributes & lib.LLAMA_TOKEN_ATTR_UNUSED and "unused" not in text.lower():
            odd["piece"].append(f"{token}, {text[:40]!r}")
    for kind, expected in (
        ("text", "the tokens of the checkpoint's tokenizer"),
        ("kind", "the control tokens of the checkpoint's tokenizer"),
        ("piece", "every token to be in use"),
    ):
        if odd[kind]:
            problems.append(f"expected {expected}, found {len(odd[kind])} others: {'; '.join(odd[kind][:_N_SHOWN])}")
    return problems


def _table(reference: ReferenceTokenizer, n_vocab: int) -> Iterable[tuple[int, str]]:
    """(id, text) of every token that the reference has; none of a tokenizer that does not say."""
    if reference.description() is None:
        return
    for token in range(n_vocab):
        text = (
            reference.backend.convert_ids_to_tokens(token)
            if reference.transformers
            else reference.backend.id_to_token(token)
        )
        if text is not None:
            yield token, text


def _as_llama_writes(text: str) -> str:
    """A WordPiece token: llama.cpp marks what begins a word, where BERT marks what goes on."""
    return text.removeprefix("##") if text.startswith("##") else "\u2581" + text


def _named_ids(reference: ReferenceTokenizer) -> set[int]:
    """Ids that the reference takes for special."""
    if reference.description() is None:
        return set()
    if reference.transformers:
        added = reference.backend.added_tokens_decoder
    else:
        added = reference.backend.get_added_tokens_decoder()
    return {token for token, entry in added.items() if entry.special}


def _ids_of(kind: str, reference: ReferenceTokenizer, *configs: dict[str, Any]) -> set[int]:
    """Every id that the tokenizer or a configuration gives a kind of special token."""
    found = {getattr(reference.backend, f"{kind}_token_id", None)} if reference.transformers else set()
    if not reference.transformers:
        name = optional_json(reference.directory / "tokenizer_config.json").get(f"{kind}_token")
        name = name.get("content") if isinstance(name, dict) else name
        found.add(reference.backend.token_to_id(name) if isinstance(name, str) else None)
    for config in configs:
        value = config.get(f"{kind}_token_id")
        found |= set(value) if isinstance(value, list) else {value}
    return {token for token in found if isinstance(token, int) and token >= 0}


def _special_problems(model: Model, reference: ReferenceTokenizer, config: dict[str, Any]) -> list[str]:
    lib, vocab, metadata, problems = model.lib, model.vocab, model.gguf.metadata, []
    for key, kinds in _KINDS.items():
        found = metadata.get(f"tokenizer.ggml.{key}")
        expected = next((ids for kind in kinds if (ids := _ids_of(kind, reference, config))), set())
        if found is not None and expected and found not in expected:
            problems.append(f"expected {key} to be {_one_of(expected)} as in the checkpoint, found {found}")
    generation = optional_json(reference.directory / "generation_config.json")
    ends = _ids_of("eos", reference, config, generation) or _ids_of("sep", reference, config)
    # What the tokenizer puts after a text is EOS to llama.cpp, whatever it is called.
    after = set(reference.encode("", add_special=True)[-1:]) if metadata.get("tokenizer.ggml.add_eos_token") else set()
    eos = lib.llama_vocab_eos(vocab)
    if ends and eos not in ends | after:
        problems.append(f"expected EOS to be {_one_of(ends | after)} as in the checkpoint, found {eos}")
    if metadata.get("tokenizer.ggml.model") != "bert":
        deaf = sorted(token for token in ends if token < model.n_vocab and not lib.llama_vocab_is_eog(vocab, token))
        if deaf:
            problems.append(f"expected generation to end at {_one_of(ends)}, found that it does not at {deaf}")
    return problems


def _one_of(ids: set[int]) -> str:
    return " or ".join(map(str, sorted(ids)))
