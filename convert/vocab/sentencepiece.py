"""SentencePiece BPE (Llama 2, Mistral, Gemma) from `tokenizer.model`, `tokenizer.json`, or both.

llama.cpp merges the pair whose token has the highest score, leftmost first, wherever the pair's text is a token.
`tokenizer.model` holds those scores. `tokenizer.json` holds ranked merges instead; the rank becomes the score, after
a check that merging by tokens is merging by its list. Where both files are there, `tokenizer.json` is what
transformers runs: it rules on added tokens and the prefix space, and must agree with the pieces and the order of
the scores.

Left out: Unigram models, and normalizers other than the change of spaces to U+2581.
"""

import re
from pathlib import Path
from typing import Any

from reclm_lite.convert.vocab.bpe import flatten, merge_pairs
from reclm_lite.convert.vocab.spm_file import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    SentencePieceModel,
    read_sentencepiece,
)
from reclm_lite.convert.vocab.table import (
    PHANTOM_SPACE,
    AddedToken,
    added_tokens,
    check_lengths,
    refuse,
    runs_tokenizer_json,
    tokenizer_settings,
    vocabulary_size,
)

_PAD_SCORE, _ADDED_SCORE = -10000.0, -1000.0  # those of llama.cpp's own converter
_BYTE = re.compile("<0x[0-9A-F]{2}>")
_SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": PHANTOM_SPACE}
_PREPEND = {"type": "Prepend", "prepend": PHANTOM_SPACE}


def prefix_space(path: Path, tokenizer: dict[str, Any]) -> bool:
    """Whether a text gets a space before it, told by the steps of tokenizer.json; refuses other steps."""
    normalizer = flatten(tokenizer.get("normalizer"), "normalizers")
    steps = flatten(tokenizer.get("pre_tokenizer"), "pretokenizers")
    spaces_split = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
    if normalizer in ([_PREPEND, _SPACES], [_SPACES]) and steps in ([], [spaces_split]):
        return normalizer[0] == _PREPEND  # once all spaces are replaced, that Split finds none
    if not normalizer and len(steps) == 1 and steps[0].get("type") == "Metaspace":
        inner = any(token.find(PHANTOM_SPACE, 1) > 0 for token in tokenizer["model"]["vocab"])
        if steps[0].get("replacement") == PHANTOM_SPACE and not (steps[0].get("split", True) and inner):
            legacy = "always" if steps[0].get("add_prefix_space", True) else "never"
            return steps[0].get("prepend_scheme", legacy) != "never"
    raise refuse(
        path,
        "the normalizer Prepend and Replace, or Replace alone, or the pre_tokenizer Metaspace without split",
        {"normalizer": normalizer, "pre_tokenizer": steps},
    )


def scores_by_rank(path: Path, tokenizer: dict[str, Any], added: set[str]) -> dict[str, float]:
    """A score for every merged token: minus the place of its merges among those of all tokens.

    Refuses merges that llama.cpp's rule (any pair whose text is a token) would not repeat.
    """
    vocab = tokenizer["model"]["vocab"]
    pairs = merge_pairs(path, tokenizer["model"])
    scores: dict[str, float] = {}
    last = None
    for left, right in pairs:
        token = left + right
        if token != last and token in scores:
            raise refuse(path, f"all merges into {token!r} at one place of the list", "others between them")
        if token != last:
            scores[token] = -float(len(scores))
            last = token
    listed = set(pairs)
    for token in vocab:
        if token in added or len(token) < 2 or _BYTE.fullmatch(token):
            continue
        for i in range(1, len(token)):
            pair = (token[:i], token[i:])
            if pair[0] in vocab and pair[1] in vocab and pair not in listed and not added.intersection(pair):
                raise refuse(path, f"a merge for every pair of tokens that make one, {pair} among them", "none")
    return scores


def _check_agreement(path: Path, tokenizer: dict[str, Any], spm: SentencePieceModel, added: set[int]) -> None:
    """tokenizer.json against the tokenizer.model beside it: the same pieces, merged in the same order."""
    by_id = {token_id: text for text, token_id in tokenizer["model"]["vocab"].items()}
    advice = "remove the file that is not this checkpoint's"
    for token_id, (text, _, _) in enumerate(spm.pieces):
        if token_id not in added and by_id.get(token_id, text) != text:
            raise refuse(path, f"token {token_id} to be {text!r} as in tokenizer.model ({advice})", by_id[token_id])
    score_of = {text: score for text, score, _ in spm.pieces}
    before = float("inf")
    for left, right in merge_pairs(path, tokenizer["model"]):
        score = score_of.get(left + right, before)
        if score > before:
            raise refuse(path, f"merges in the order of tokenizer.model's scores ({advice})", [left, right])
        before = score


def _check_settings(path: Path, spm: SentencePieceModel) -> None:
    """Refuses what llama.cpp's SentencePiece cannot do."""
    if spm.model_type != "BPE":
        raise refuse(path, "a SentencePiece model of type BPE", spm.model_type)
    if spm.has_charsmap:
        raise refuse(path, "a SentencePiece model that does not normalize", spm.normalizer)
    if spm.remove_extra_whitespaces or not spm.escape_whitespaces or spm.whitespace_as_suffix:
        raise refuse(
            path,
            "a SentencePiece model that keeps all spaces, as U+2581 before words",
            {
                "remove_extra_whitespaces": spm.remove_extra_whitespaces,
                "escape_whitespaces": spm.escape_whitespaces,
                "treat_whitespace_as_suffix": spm.whitespace_as_suffix,
            },
        )


def _pieces_of_json(path: Path, tokenizer: dict[str, Any], added: dict[int, AddedToken]) -> dict[int, tuple]:
    """Pieces as (text, score, type) by id, where there is no tokenizer.model."""
    model = tokenizer["model"]
    scores = scores_by_rank(path, tokenizer, {token.text for token in added.values()})
    unknown = model.get("unk_token")
    pieces = {}
    for text, token_id in model["vocab"].items():
        kind = UNKNOWN if text == unknown else BYTE if _BYTE.fullmatch(text) else NORMAL
        pieces[token_id] = (text, scores.get(text, 0.0), kind)
    return pieces


def read(directory: Path, tokenizer: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """The fields of a Vocabulary; see `reclm_lite.convert.vocab`. `tokenizer` is {} without a tokenizer.json."""
    json_path, spm_path = directory / "tokenizer.json", directory / "tokenizer.model"
    added = added_tokens(directory, tokenizer)
    spm = read_sentencepiece(spm_path) if spm_path.is_file() else None
    if spm is not None:
        check_lengths(spm_path, (text for text, _, _ in spm.pieces))
    if tokenizer:
        for key in ("continuing_subword_prefix", "end_of_word_suffix", "dropout", "ignore_merges"):
            if tokenizer["model"].get(key):
                raise refuse(json_path, f"a BPE with byte_fallback and without {key}", tokenizer["model"][key])
        prefix = prefix_space(json_path, tokenizer)
        pieces = _pieces_of_json(json_path, tokenizer, added)
        if spm is not None:
            _check_agreement(json_path, tokenizer, spm, set(added))
            pieces |= dict(enumerate(spm.pieces))
    else:
        _check_settings(spm_path, spm)
        prefix, pieces = spm.add_dummy_prefix, dict(enumerate(spm.pieces))
    settings = tokenizer_settings(directory)
    if isinstance(settings.get("add_prefix_space"), bool) and not (tokenizer and runs_tokenizer_json(settings)):
        prefix = settings["add_prefix_space"]

    path = json_path if tokenizer else spm_path
    id_of = {text: token_id for token_id, (text, _, _) in pieces.items()}
    n_vocab = vocabulary_size(path, config, max([*pieces, *added], default=-1))
    missing = [f"<0x{byte:02X}>" for byte in range(256) if f"<0x{byte:02X}>" not in id_of]
    if missing:
        raise refuse(path, "tokens for all 256 bytes", f"{len(missing)} missing, such as {missing[0]}")
    tokens = [f"[PAD{i}]" for i in range(n_vocab)]
    scores, types = [_PAD_SCORE] * n_vocab, [UNUSED] * n_vocab
    for token_id, (text, score, kind) in pieces.items():
        tokens[token_id], scores[token_id], types[token_id] = text, score, kind
    for token_id, token in added.items():
        id_of[token.text] = token_id
        if not token.stated and types[token_id] in (UNKNOWN, CONTROL):
            continue
        tokens[token_id] = token.text if token.special else token.text.replace(PHANTOM_SPACE, " ")
        types[token_id], scores[token_id] = (CONTROL if token.special else USER_DEFINED), _ADDED_SCORE
    flags = {}
    if not prefix or "add_prefix_space" in settings:
        flags["tokenizer.ggml.add_space_prefix"] = prefix
    return {
        "model": "llama",
        "pre": "default",
        "tokens": tokens,
        "token_types": types,
        "scores": scores,
        "id_of": id_of,
        "flags": flags,
        "known_ids": spm.special_ids if spm is not None else {},
    }
