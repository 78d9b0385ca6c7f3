"""The table of tokens: text and type of every id, from `tokenizer.json` and the files beside it.

Ids that no token has become [PAD<id>], as in llama.cpp's own converter. llama.cpp stops the whole process at two
tokens of one text, so that is refused here.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reclm_lite.convert.checkpoint import optional_json
from reclm_lite.errors import ModelError

PHANTOM_SPACE = "\u2581"  # SentencePiece writes a space so; llama.cpp marks a WordPiece word's first piece with it
NAMED = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
_EXTRA = ("extra_special_tokens", "additional_special_tokens")
_MAX_VOCAB = 1 << 22  # tokens; the largest vocabularies have 2^18
# Characters of a token, and of all together: the longest tokens in use are runs of some hundred spaces, and the largest
# vocabularies have 2 million characters. Every beginning of a token is looked up, so long ones would cost their square.
MAX_TOKEN_CHARS = 2048
MAX_VOCAB_CHARS = 8 << 20
_MAX_ADDED = 20_000  # each is searched for in every text of the parity gate; Gemma 3 has 6,400
# Classes of transformers that run tokenizer.json as it stands; others, such as LlamaTokenizer, build their own steps.
_AS_IT_STANDS = (None, "PreTrainedTokenizerFast", "TokenizersBackend")


def refuse(path: Path, expected: str, found: Any) -> ModelError:
    """The error of a tokenizer that llama.cpp would run as another."""
    return ModelError(f"expected {expected} in {path}, found {found!r}; this tokenizer cannot be converted")


def looks_special(token: str) -> bool:
    """Some checkpoints mark control tokens as ordinary added ones; llama.cpp's own converter has this list."""
    if token in ("<pad>", "<mask>", "<2mass>", "[@BOS@]"):
        return True
    pairs = (("<|", "|>"), ("<\uff5c", "\uff5c>"), ("<unused", ">"))
    return any(token.startswith(head) and token.endswith(tail) for head, tail in pairs)


def content(entry: Any) -> str | None:
    """A token as tokenizer_config.json writes it: a string, or an object with `content`."""
    if isinstance(entry, dict):
        entry = entry.get("content")
    return entry if isinstance(entry, str) else None


def tokenizer_settings(directory: Path) -> dict[str, Any]:
    """tokenizer_config.json, with what older checkpoints keep in special_tokens_map.json instead.

    As in transformers: the latter is read where the former has no `added_tokens_decoder`, and rules then.
    """
    settings = optional_json(directory / "tokenizer_config.json")
    if "added_tokens_decoder" not in settings:
        settings |= optional_json(directory / "special_tokens_map.json")
    return settings


def runs_tokenizer_json(settings: dict[str, Any]) -> bool:
    """Whether transformers takes the steps of tokenizer.json as they stand, whatever `settings` say."""
    return settings.get("tokenizer_class") in _AS_IT_STANDS


def _extra_tokens(path: Path, settings: dict[str, Any]) -> list[str]:
    """The special tokens without a role that tokenizer_config.json lists, or names one by one."""
    found = []
    for key in _EXTRA:
        listed = settings.get(key) or []
        entries = list(listed.values()) if isinstance(listed, dict) else listed
        if not isinstance(entries, list) or None in (texts := [content(entry) for entry in entries]):
            raise refuse(path, f"{key} as a list of tokens", listed)
        found += texts
    return found


@dataclass(frozen=True)
class AddedToken:
    """A token matched in the text before anything else. `stated` says that tokenizer_config.json lists it."""

    text: str
    special: bool
    stated: bool = False


def added_tokens(directory: Path, tokenizer: dict[str, Any]) -> dict[int, AddedToken]:
    """Added tokens by id, from tokenizer.json, tokenizer_config.json and added_tokens.json, each checked by the others.

    Special are those marked so, those that tokenizer_config.json names (bos_token, ...) and those that look it.
    """
    settings = tokenizer_settings(directory)
    extra = _extra_tokens(directory / "tokenizer_config.json", settings)
    named = {content(settings.get(f"{kind}_token")) for kind in NAMED} | set(extra)
    found: dict[int, AddedToken] = {}

    def add(token_id: Any, text: Any, special: Any, stated: bool, source: str) -> None:
        if type(token_id) is not int or token_id < 0 or not isinstance(text, str) or not isinstance(special, bool):
            raise refuse(
                directory / source, "added tokens of an id, a text and true or false", [token_id, text, special]
            )
        known = found.get(token_id)
        if known is not None and known.text != text:
            raise refuse(directory / source, f"token {token_id} to be {known.text!r} as in tokenizer.json", text)
        special = special or text in named or looks_special(text) or (known is not None and known.special)
        found[token_id] = AddedToken(text, special, stated)

    # The package tokenizers does not go by the ids of added tokens: what the model lacks comes after all others.
    vocab = (tokenizer.get("model") or {}).get("vocab") or {}
    following = len(vocab)
    for token in tokenizer.get("added_tokens") or []:
        token_id = vocab.get(token["content"], following)
        if token_id != token["id"]:
            found_id = f"{token['content']!r} as {token['id']}, which tokenizers reads as {token_id}"
            raise refuse(directory / "tokenizer.json", "added tokens to follow the others without a gap", found_id)
        following += token_id == following
        add(token_id, token["content"], token["special"], False, "tokenizer.json")
    if not tokenizer:  # with a tokenizer.json, transformers does not read it
        for text, token_id in optional_json(directory / "added_tokens.json").items():
            add(token_id, text, False, False, "added_tokens.json")
    for key, token in (settings.get("added_tokens_decoder") or {}).items():
        token_id = int(key) if re.fullmatch("[0-9]{1,18}", key) else key
        add(token_id, token["content"], token.get("special", False), True, "tokenizer_config.json")
    if len(found) > _MAX_ADDED:
        raise refuse(directory, f"at most {_MAX_ADDED:,} added tokens", f"{len(found):,}")
    check_lengths(directory, (token.text for token in found.values()))
    known = {token.text for token in found.values()} | set(vocab)
    if tokenizer and (unknown := [text for text in extra if text not in known]):
        raise refuse(directory / "tokenizer_config.json", "extra special tokens to be in tokenizer.json", unknown[0])
    return found


def check_lengths(path: Path, texts: Iterable[str]) -> None:
    """Refuses tokens of more than MAX_TOKEN_CHARS characters, and of more than MAX_VOCAB_CHARS together."""
    n_chars = 0
    for text in texts:
        n_chars += len(text)
        if len(text) > MAX_TOKEN_CHARS:
            found = f"{text[:40]}... of {len(text):,}"
            raise refuse(path, f"tokens of at most {MAX_TOKEN_CHARS:,} characters", found)
        if n_chars > MAX_VOCAB_CHARS:
            raise refuse(path, f"at most {MAX_VOCAB_CHARS:,} characters in all tokens together", "more")


def check_ids(path: Path, vocab: dict[str, Any]) -> None:
    """Refuses a vocabulary of tokenizer.json whose ids are no numbers from 0, or given twice."""
    for text, token_id in vocab.items():
        if type(token_id) is not int or token_id < 0:
            raise refuse(path, f"a number from 0 as the id of {text!r}", token_id)
    if len(set(vocab.values())) != len(vocab):
        raise refuse(path, "every id once", f"{len(vocab)} tokens with {len(set(vocab.values()))} ids")


def check_table(path: Path, tokens: list[str]) -> None:
    """Refuses two ids of one text, and text without a UTF-8 form."""
    first: dict[str, int] = {}
    for token_id, token in enumerate(tokens):
        other = first.setdefault(token, token_id)
        if other != token_id:
            raise refuse(path, "every token once as llama.cpp writes it", f"{token!r} as {other} and {token_id}")
        if "\0" in token:
            raise refuse(path, "tokens without NUL, where llama.cpp would end them", f"{token!r} as {token_id}")
    try:
        "".join(tokens).encode()
    except UnicodeEncodeError as error:
        raise refuse(path, "tokens of whole Unicode characters", str(error)) from error


def vocabulary_size(path: Path, config: dict[str, Any], largest_id: int) -> int:
    """Rows of the embedding; a larger vocabulary is refused, a smaller one is filled up."""
    n_vocab = config.get("vocab_size") or (config.get("text_config") or {}).get("vocab_size")
    if type(n_vocab) is not int or not 0 < n_vocab <= _MAX_VOCAB:
        raise ModelError(
            f"expected a vocab_size of 1 to {_MAX_VOCAB} in config.json, found {n_vocab!r}; copy the checkpoint again"
        )
    if largest_id >= n_vocab:
        raise ModelError(
            f"expected token ids below vocab_size {n_vocab} in {path}, found {largest_id}: the vocabulary is larger "
            "than the embedding; take the tokenizer of this checkpoint, or resize its embedding"
        )
    return n_vocab


def token_table(
    directory: Path, tokenizer: dict[str, Any], config: dict[str, Any]
) -> tuple[list[str], list[int], dict[str, int]]:
    """Tokens, their types (gguf.TokenType) and the ids by text as tokenizer.json writes them.

    For byte-level BPE and WordPiece.
    """
    from gguf import TokenType

    path = directory / "tokenizer.json"
    vocab: dict[str, int] = tokenizer["model"]["vocab"]
    added = added_tokens(directory, tokenizer)
    n_vocab = vocabulary_size(path, config, max([*vocab.values(), *added], default=-1))
    tokens = [f"[PAD{i}]" for i in range(n_vocab)]
    types = [int(TokenType.UNUSED)] * n_vocab
    for text, token_id in vocab.items():
        tokens[token_id], types[token_id] = text, int(TokenType.NORMAL)
    for token_id, token in added.items():
        if types[token_id] == TokenType.NORMAL and tokens[token_id] != token.text:
            raise refuse(path, f"token {token_id} to be {tokens[token_id]!r} wherever it is listed", token.text)
        text = token.text if token.special else token.text.replace(PHANTOM_SPACE, " ")
        tokens[token_id] = text
        types[token_id] = int(TokenType.CONTROL if token.special else TokenType.USER_DEFINED)
    return tokens, types, vocab | {token.text: token_id for token_id, token in added.items()}
