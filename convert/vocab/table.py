"""The table of tokens: text and type of every id, from `tokenizer.json` and the files beside it.

Ids that no token has become [PAD<id>], as in llama.cpp's own converter. llama.cpp stops the whole process at two
tokens of one text, so that is refused here.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reclm_lite.convert.checkpoint import read_json
from reclm_lite.errors import ModelError

PHANTOM_SPACE = "\u2581"  # SentencePiece writes a space so; llama.cpp marks a WordPiece word's first piece with it
NAMED = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")


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


def optional_json(path: Path) -> dict[str, Any]:
    """A JSON object of a checkpoint, {} where there is no such file."""
    found = read_json(path) if path.is_file() else {}
    if not isinstance(found, dict):
        raise ModelError(f"expected a JSON object in {path}, found {type(found).__name__}; copy the file again")
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
    settings = optional_json(directory / "tokenizer_config.json")
    named = {content(settings.get(f"{kind}_token")) for kind in NAMED}
    for key in ("extra_special_tokens", "additional_special_tokens"):
        listed = settings.get(key) or []
        named.update(content(entry) for entry in (listed.values() if isinstance(listed, dict) else listed))
    found: dict[int, AddedToken] = {}

    def add(token_id: int, text: str, special: bool, stated: bool, source: str) -> None:
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
    for token_id, token in (settings.get("added_tokens_decoder") or {}).items():
        add(int(token_id), token["content"], bool(token.get("special")), True, "tokenizer_config.json")
    return found


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
    if not isinstance(n_vocab, int) or n_vocab < 1:
        raise ModelError(f"expected a positive vocab_size in config.json, found {n_vocab!r}; copy the checkpoint again")
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
