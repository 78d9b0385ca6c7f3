"""Vocabularies to GGUF: byte-level BPE, SentencePiece and WordPiece, with special tokens and chat templates.

    bpe            byte-level BPE (GPT-2, Qwen, Llama 3, ...) from tokenizer.json
    sentencepiece  SentencePiece BPE (Llama 2, Mistral, Gemma) from tokenizer.model or tokenizer.json
    wordpiece      WordPiece (BERT) from tokenizer.json
    special        special tokens, BOS and EOS, chat templates
    differences    where llama.cpp is known to tokenize otherwise, text by text

What kind a directory holds is told by its files, never by its name; what llama.cpp would run as another tokenizer is
refused, and the export proves the result by comparing token ids. Left out: Unigram vocabularies.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reclm_lite.convert.checkpoint import optional_json
from reclm_lite.convert.vocab import bpe, sentencepiece, wordpiece
from reclm_lite.convert.vocab.special import Special, read_special
from reclm_lite.convert.vocab.table import check_ids, check_lengths, check_table, refuse
from reclm_lite.errors import ModelError

_READERS: dict[str, Callable[[Path, dict[str, Any], dict[str, Any]], dict[str, Any]]] = {
    "bpe": bpe.read,
    "sentencepiece": sentencepiece.read,
    "wordpiece": wordpiece.read,
}

_SPECIAL_ORDER = ("bos", "eos", "eot", "eom", "unk", "sep", "pad", "mask")


@dataclass(frozen=True)
class Vocabulary:
    """What `write_vocabulary` puts into a GGUF file. Entry i of tokens, token_types and scores belongs to id i.

    `model` and `pre` are llama.cpp's names of the kind; `token_types` are gguf.TokenType; `scores` are
    SentencePiece's, `merges` those of BPE by rank; `flags` are GGUF keys with their values.
    """

    model: str
    pre: str
    tokens: list[str]
    token_types: list[int]
    special: Special
    scores: list[float] | None = None
    merges: list[str] = field(default_factory=list)
    flags: dict[str, bool] = field(default_factory=dict)
    n_token_types: int | None = None


def vocabulary_kind(directory: Path, tokenizer: dict[str, Any]) -> str:
    """ "bpe", "sentencepiece" or "wordpiece", told by tokenizer.json (`tokenizer`, {} without one) and its neighbors.

    Raises ModelError for a directory without a tokenizer or with one of another kind.
    """
    if not tokenizer:
        if (directory / "tokenizer.model").is_file():
            return "sentencepiece"
        others = ("vocab.json", "merges.txt", "vocab.txt", "tekken.json", "spiece.model", "sentencepiece.bpe.model")
        found = [name for name in others if (directory / name).is_file()]
        raise ModelError(
            f"expected tokenizer.json, or tokenizer.model of SentencePiece, in {directory}, found "
            f"{', '.join(found) or 'no tokenizer'}; copy it there, or write it with "
            "transformers.AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)"
        )
    model = tokenizer.get("model")
    model = model if isinstance(model, dict) else {}
    if not isinstance(model.get("vocab"), dict) or model.get("type") not in ("BPE", "WordPiece"):
        raise refuse(directory / "tokenizer.json", "a model of type BPE or WordPiece", model.get("type"))
    if model["type"] == "WordPiece":
        return "wordpiece"
    return "sentencepiece" if model.get("byte_fallback") else "bpe"


def read_vocabulary(directory: Path, kinds: str | tuple[str, ...], config: dict[str, Any]) -> Vocabulary:
    """The vocabulary of a checkpoint directory, as large as `config["vocab_size"]`.

    `kinds` are those that the model family may have: "bpe", "sentencepiece", "wordpiece". Raises ModelError for
    what llama.cpp would tokenize otherwise, naming the step; see `vocab.differences` for what remains.
    """
    directory = Path(directory)
    path = directory / "tokenizer.json"
    tokenizer = optional_json(path)
    kind = vocabulary_kind(directory, tokenizer)
    kinds = (kinds,) if isinstance(kinds, str) else kinds
    if kind not in kinds:
        raise refuse(directory, f"a tokenizer of kind {' or '.join(kinds)}, as this model family has", kind)
    if tokenizer:
        check_ids(path, tokenizer["model"]["vocab"])
        check_lengths(path, tokenizer["model"]["vocab"])
    try:
        fields = _READERS[kind](directory, tokenizer, config)
        id_of, known_ids = fields.pop("id_of"), fields.pop("known_ids", {})
        check_table(path if tokenizer else directory / "tokenizer.model", fields["tokens"])
        special = read_special(
            directory,
            tokenizer,
            config,
            model=fields["model"],
            pre=fields["pre"],
            tokens=fields["tokens"],
            id_of=id_of,
            known_ids=known_ids,
        )
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise refuse(directory, "tokenizer files of the layout that transformers writes", repr(error)) from error
    return Vocabulary(special=special, **fields)


def write_vocabulary(writer: Any, vocabulary: Vocabulary) -> None:
    """Adds the vocabulary, its special tokens and chat templates to a gguf.GGUFWriter."""
    if vocabulary.n_token_types is not None:
        writer.add_token_type_count(vocabulary.n_token_types)
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    if vocabulary.scores is not None:
        writer.add_token_scores(vocabulary.scores)
    writer.add_token_types(vocabulary.token_types)
    if vocabulary.model == "gpt2":
        writer.add_token_merges(vocabulary.merges)
    for key, flag in vocabulary.flags.items():
        writer.add_bool(key, flag)
    # In one order whatever was found first.
    for kind, token_id in sorted(vocabulary.special.ids.items(), key=lambda item: _SPECIAL_ORDER.index(item[0])):
        getattr(writer, f"add_{kind}_token_id")(token_id)
    for kind, flag in vocabulary.special.add.items():
        getattr(writer, f"add_add_{kind}_token")(flag)
    if vocabulary.special.chat_template is not None:
        writer.add_chat_template(vocabulary.special.chat_template)
