"""Vocabularies to GGUF: byte-level BPE and WordPiece, both from `tokenizer.json`.

llama.cpp does not run a tokenizer's own pre-tokenizer; it has a list of them by name, and a wrong name changes
token ids without a word. So the name is told from the structure of `tokenizer.json`, anything not understood is
refused, and the export proves the result by comparing token ids (`parity.token_id_mismatches`).
Left out: SentencePiece and Unigram vocabularies.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reclm_lite.convert.checkpoint import read_json
from reclm_lite.errors import ModelError

_PHANTOM_SPACE = "\u2581"  # how llama.cpp marks a word's first piece; WordPiece itself marks the others with ##

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_QWEN2_REGEX = (
    _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3_REGEX = (
    _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Split pattern -> (llama.cpp's name for it, whether that name takes a whole word that is a token before merging).
_SPLIT_PATTERNS = {_QWEN2_REGEX: ("qwen2", False), _LLAMA3_REGEX: ("llama-bpe", True)}


@dataclass(frozen=True)
class Vocabulary:
    """What `write` puts into a GGUF file. `tokens[i]` and `token_types[i]` (gguf.TokenType) belong to id i."""

    model: str
    pre: str
    tokens: list[str]
    token_types: list[int]
    flags: dict[str, bool]
    n_token_types: int | None = None


def _refuse(path: Path, expected: str, found: Any) -> ModelError:
    return ModelError(f"expected {expected} in {path}, found {found!r}; this tokenizer cannot be converted")


def _looks_special(token: str) -> bool:
    """Some checkpoints mark control tokens as ordinary added ones; llama.cpp's own converter has this list."""
    if token in ("<pad>", "<mask>", "<2mass>", "[@BOS@]"):
        return True
    pairs = (("<|", "|>"), ("<\uff5c", "\uff5c>"), ("<unused", ">"))
    return any(token.startswith(head) and token.endswith(tail) for head, tail in pairs)


def _token_table(tokenizer: dict[str, Any], path: Path, n_vocab: int) -> tuple[list[str], list[int]]:
    """Tokens and their types in the order of their ids; ids the tokenizer does not use become [PAD<id>]."""
    from gguf import TokenType

    by_id: dict[int, tuple[str, int]] = {}
    for token, token_id in tokenizer["model"]["vocab"].items():
        by_id[token_id] = (token, TokenType.NORMAL)
    for added in tokenizer.get("added_tokens") or []:
        special = added["special"] or _looks_special(added["content"])
        token = added["content"] if special else added["content"].replace(_PHANTOM_SPACE, " ")
        by_id[added["id"]] = (token, TokenType.CONTROL if special else TokenType.USER_DEFINED)
    if max(by_id) >= n_vocab:
        raise _refuse(path, f"token ids below vocab_size {n_vocab}", max(by_id))
    table = [by_id.get(i, (f"[PAD{i}]", TokenType.UNUSED)) for i in range(n_vocab)]
    return [token for token, _ in table], [int(kind) for _, kind in table]


def bpe_pre_tokenizer(tokenizer: dict[str, Any], path: Path) -> str:
    """llama.cpp's name for the pre-tokenizer of a byte-level BPE, told by its structure."""
    model = tokenizer["model"]
    for key in ("continuing_subword_prefix", "end_of_word_suffix", "dropout", "byte_fallback"):
        if model.get(key):
            raise _refuse(path, f"a byte-level BPE without {key}", model[key])
    if tokenizer.get("normalizer") is not None:
        raise _refuse(path, "no normalizer", tokenizer["normalizer"].get("type"))
    pre = tokenizer.get("pre_tokenizer") or {}
    steps = pre.get("pretokenizers", []) if pre.get("type") == "Sequence" else [pre]
    kinds = [step.get("type") for step in steps]
    if not kinds or kinds[-1] != "ByteLevel" or steps[-1].get("add_prefix_space"):
        raise _refuse(path, "a pre_tokenizer that ends in ByteLevel without add_prefix_space", kinds)
    own_regex = steps[-1].get("use_regex", True)
    name, whole_words = None, False
    if kinds == ["ByteLevel"] and own_regex:
        name = "gpt-2"
    elif kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits") and own_regex:
        name = "smollm"
    elif kinds == ["Split", "ByteLevel"] and not own_regex:
        if steps[0].get("behavior") == "Isolated" and not steps[0].get("invert"):
            name, whole_words = _SPLIT_PATTERNS.get(steps[0]["pattern"].get("Regex"), (None, False))
    if name is None:
        raise _refuse(path, "the pre_tokenizer of GPT-2, SmolLM, Qwen2 or Llama 3", steps)
    if bool(model.get("ignore_merges")) != whole_words:
        raise _refuse(path, f"ignore_merges {whole_words} beside this pre_tokenizer", model.get("ignore_merges"))
    return name


def _bpe(tokenizer: dict[str, Any], path: Path, config: dict[str, Any]) -> Vocabulary:
    if tokenizer["model"].get("type") != "BPE":
        raise _refuse(path, "a BPE model", tokenizer["model"].get("type"))
    pre = bpe_pre_tokenizer(tokenizer, path)
    tokens, types = _token_table(tokenizer, path, config["vocab_size"])
    return Vocabulary("gpt2", pre, tokens, types, {})


def _wordpiece(tokenizer: dict[str, Any], path: Path, config: dict[str, Any]) -> Vocabulary:
    from gguf import TokenType

    model, normalizer = tokenizer["model"], tokenizer.get("normalizer") or {}
    if model.get("type") != "WordPiece" or model.get("continuing_subword_prefix") != "##":
        raise _refuse(path, "a WordPiece model with the prefix ##", model.get("type"))
    if normalizer.get("type") != "BertNormalizer":
        raise _refuse(path, "a BertNormalizer", normalizer.get("type"))
    if not (normalizer.get("clean_text") and normalizer.get("handle_chinese_chars")):
        raise _refuse(path, "a BertNormalizer with clean_text and handle_chinese_chars", normalizer)
    if (tokenizer.get("pre_tokenizer") or {}).get("type") != "BertPreTokenizer":
        raise _refuse(path, "a BertPreTokenizer", tokenizer.get("pre_tokenizer"))
    tokens, types = _token_table(tokenizer, path, config["vocab_size"])
    for i, (token, kind) in enumerate(zip(tokens, types, strict=True)):
        if kind != TokenType.CONTROL:
            tokens[i] = token[2:] if token.startswith("##") else _PHANTOM_SPACE + token
    flags = {"tokenizer.ggml.normalizer.lowercase": bool(normalizer.get("lowercase"))}
    if normalizer.get("strip_accents") is not None:
        flags["tokenizer.ggml.normalizer.strip_accents"] = bool(normalizer["strip_accents"])
    return Vocabulary("bert", "default", tokens, types, flags, config.get("type_vocab_size", 1))


_READERS = {"bpe": _bpe, "wordpiece": _wordpiece}


def read_vocabulary(directory: Path, kind: str, config: dict[str, Any]) -> Vocabulary:
    """The vocabulary of a checkpoint directory; `kind` is what the model family uses, "bpe" or "wordpiece"."""
    path = Path(directory) / "tokenizer.json"
    if not path.is_file() and kind == "bpe" and (path.parent / "tokenizer.model").is_file():
        raise _refuse(path.parent, "a byte-level BPE in tokenizer.json", "a SentencePiece tokenizer.model")
    return _READERS[kind](read_json(path), path, config)


def write_vocabulary(writer: Any, vocabulary: Vocabulary, directory: Path) -> None:
    """Adds the vocabulary and the special tokens of `directory` to a gguf.GGUFWriter."""
    from gguf import SpecialVocab

    if vocabulary.n_token_types is not None:
        writer.add_token_type_count(vocabulary.n_token_types)
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.token_types)
    for key, flag in vocabulary.flags.items():
        writer.add_bool(key, flag)
    # `cls` has no key of its own in GGUF: SpecialVocab writes it as BOS.
    kinds = ("bos", "eos", "unk", "sep", "pad", "mask")
    # It warns of templates for pairs of texts, which llama.cpp never builds.
    logging.getLogger("gguf.vocab").setLevel(logging.ERROR)
    special = SpecialVocab(directory, vocabulary.model == "gpt2", kinds, n_vocab=len(vocabulary.tokens))
    special.add_to_gguf(writer, quiet=True)
