"""WordPiece vocabularies (BERT) from `tokenizer.json`, cased or uncased.

Followed: BERT's normalizer and pre-tokenizer as llama.cpp has them built in. Left out: other normalizers.
"""

from pathlib import Path
from typing import Any

from reclm_lite.convert.vocab.table import PHANTOM_SPACE, refuse, runs_tokenizer_json, token_table, tokenizer_settings

# What transformers' BertTokenizer takes from tokenizer_config.json, and its name in tokenizer.json.
_SETTINGS = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}
_BY_DEFAULT = {"pad": "[PAD]", "mask": "[MASK]"}  # as BertTokenizer names them where no file does


def read(directory: Path, tokenizer: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """The fields of a Vocabulary; see `reclm_lite.convert.vocab`."""
    from gguf import TokenType

    path = directory / "tokenizer.json"
    model, normalizer = tokenizer["model"], tokenizer.get("normalizer") or {}
    if model.get("continuing_subword_prefix") != "##":
        raise refuse(path, "a WordPiece model with the prefix ##", model.get("continuing_subword_prefix"))
    if normalizer.get("type") != "BertNormalizer":
        raise refuse(path, "a BertNormalizer", normalizer.get("type"))
    if not (normalizer.get("clean_text") and normalizer.get("handle_chinese_chars")):
        raise refuse(path, "a BertNormalizer with clean_text and handle_chinese_chars", normalizer)
    if (tokenizer.get("pre_tokenizer") or {}).get("type") != "BertPreTokenizer":
        raise refuse(path, "a BertPreTokenizer", tokenizer.get("pre_tokenizer"))
    settings = tokenizer_settings(directory)
    for key, step in _SETTINGS.items():
        stated = settings.get(key)
        if stated not in (None, normalizer.get(step)) and not runs_tokenizer_json(settings):
            expected = f"{key} of tokenizer_config.json to be {normalizer.get(step)!r}, as {step} of tokenizer.json"
            raise refuse(directory, expected, stated)
    tokens, types, id_of = token_table(directory, tokenizer, config)
    named = _BY_DEFAULT | {"unk": model.get("unk_token")}
    known_ids = {kind: id_of[text] for kind, text in named.items() if text in id_of}
    for i, (token, kind) in enumerate(zip(tokens, types, strict=True)):
        if kind != TokenType.CONTROL:
            tokens[i] = token[2:] if token.startswith("##") else PHANTOM_SPACE + token
    flags = {"tokenizer.ggml.normalizer.lowercase": bool(normalizer.get("lowercase"))}
    if normalizer.get("strip_accents") is not None:
        flags["tokenizer.ggml.normalizer.strip_accents"] = bool(normalizer["strip_accents"])
    return {
        "model": "bert",
        "pre": "default",
        "tokens": tokens,
        "token_types": types,
        "id_of": id_of,
        "known_ids": known_ids,
        "flags": flags,
        "n_token_types": config.get("type_vocab_size", 1),
    }
