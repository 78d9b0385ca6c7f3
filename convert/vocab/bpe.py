"""Byte-level BPE from `tokenizer.json`, with llama.cpp's name for its pre-tokenizer.

llama.cpp does not run a tokenizer's own pre-tokenizer; it has a list of them by name, and a wrong name changes
token ids without a word. So the steps of `pre_tokenizer` are put in one form (the regular expressions that split
the text, in order) and looked up; what is not in the table is refused. llama.cpp's own converter instead knows
models by a hash of token ids, which tells nothing about a model it has not seen.

Left out: a prefix space (llama.cpp's BPE has none), dropout, normalizers other than NFC.
"""

import heapq
from pathlib import Path
from typing import Any

from reclm_lite.convert.vocab.table import refuse, token_table

_CASE = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SLASH = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
QWEN2 = _CASE + "|" + _WORD + r"|\p{N}" + _REST
QWEN35 = _CASE + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = _CASE + "|" + _WORD + r"|\p{N}{1,3}" + _REST


def _by_case(upper: str, lower: str, ending: str, digits: str) -> str:
    """A pattern that splits words where a lower-case letter meets an upper-case one, as tekken and GPT-4o do."""
    start = r"[^\r\n\p{L}\p{N}]?"
    return f"{start}{upper}*{lower}+{ending}|{start}{upper}+{lower}*{ending}|{digits}{_SLASH}"


TEKKEN = _by_case(_UPPER, _LOWER, "", r"\p{N}")
GPT4O = _by_case(_UPPER, _LOWER, _CASE + "?", r"\p{N}{1,3}")
# llama.cpp has these two only roughly: marks are no part of a word, and only a-z and A-Z have case.
_ANY_UPPER, _ANY_LOWER = r"[\p{L}&&[^a-z]]", r"[\p{L}&&[^A-Z]]"
APPROXIMATED = {
    "tekken": (TEKKEN, _by_case(_ANY_UPPER, _ANY_LOWER, "", r"\p{N}")),
    "gpt-4o": (GPT4O, _by_case(_ANY_UPPER, _ANY_LOWER, _CASE + "?", r"\p{N}{1,3}")),
}
_DEEPSEEK3 = (
    r"\p{N}{1,3}",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
_DEEPSEEK_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+", r"\p{N}")

# The splits in order -> llama.cpp's name, for a model that merges every word and for one that first looks whether
# the whole word is a token (`ignore_merges`). Many models share a name: OLMo and GPT-2, StarCoder and SmolLM.
PRE_TOKENIZERS: dict[tuple[str, ...], dict[bool, str]] = {
    (GPT2,): {False: "gpt-2"},
    (r"\p{N}", GPT2): {False: "smollm"},
    (QWEN2,): {False: "qwen2"},
    (QWEN35,): {False: "qwen35"},
    (LLAMA3,): {False: "dbrx", True: "llama-bpe"},
    (r"\p{N}{1,3}", _CASE + "|" + _WORD + r"|\p{N}+" + _REST): {True: "minicpm5"},
    (TEKKEN,): {True: "tekken"},
    (GPT4O,): {False: "gpt-4o"},
    _DEEPSEEK3: {False: "deepseek-v3"},
    _DEEPSEEK_CODER: {False: "deepseek-coder"},
}

_STEPS = "a pre_tokenizer of Split and Digits that ends in ByteLevel without prefix space"
_NEVER_IN_TEXT = frozenset([0xC0, 0xC1, *range(0xF5, 0x100)])  # bytes that no UTF-8 text has
# Patterns that match every character, so that keeping only the matches loses nothing.
_COVERING = {GPT2, QWEN2, QWEN35, LLAMA3, TEKKEN, GPT4O}


def flatten(step: dict[str, Any] | None, inner: str) -> list[dict[str, Any]]:
    """The steps of a normalizer or pre_tokenizer in order; `inner` is the key under which a Sequence holds them."""
    if not step:
        return []
    if step.get("type") == "Sequence":
        return [deeper for part in step.get(inner) or [] for deeper in flatten(part, inner)]
    return [step]


def _split_pattern(step: dict[str, Any]) -> str | None:
    """The regular expression of a Split that keeps every piece, or None."""
    pattern = (step.get("pattern") or {}).get("Regex")
    if pattern is None:
        return None
    pattern = pattern.replace("\r", r"\r").replace("\n", r"\n")  # some files write the characters themselves
    if step.get("behavior") == "Isolated" or (
        step.get("behavior") == "Removed" and step.get("invert") and pattern in _COVERING
    ):
        return pattern
    return None


def split_patterns(path: Path, steps: list[dict[str, Any]]) -> tuple[str, ...]:
    """The steps of a pre_tokenizer as regular expressions in order; refuses a step that is no such split."""
    patterns: list[str] = []
    for n, step in enumerate(steps):
        kind, last = step.get("type"), n == len(steps) - 1
        if kind == "ByteLevel" and last and not step.get("add_prefix_space"):
            if step.get("use_regex", True):
                patterns.append(GPT2)
            return tuple(patterns)
        if kind == "Digits":
            patterns.append(r"\p{N}" if step.get("individual_digits") else r"\p{N}+")
        elif kind == "Split" and (pattern := _split_pattern(step)) is not None:
            patterns.append(pattern)
        else:
            raise refuse(path, f"{_STEPS} (step {n + 1} is another)", step)
    raise refuse(path, _STEPS, [step.get("type") for step in steps])


def merge_pairs(path: Path, model: dict[str, Any]) -> list[tuple[str, str]]:
    """Merges by rank, from either layout of tokenizer.json: "a b" or ["a", "b"]."""
    pairs = []
    for merge in model.get("merges") or []:
        parts = merge.split(" ") if isinstance(merge, str) else merge
        if len(parts) != 2 or not all(isinstance(part, str) and part for part in parts):
            raise refuse(path, "merges of two parts", merge)
        pairs.append((parts[0], parts[1]))
    return pairs


def merged_by_ranks(word: str, ranks: dict[tuple[str, str], int]) -> list[str]:
    """A word's pieces after all merges, lowest rank first, leftmost first; at most 3 n - 2 look-ups for n characters.

    A heap holds the pairs that can be merged by (rank, place of the left piece). A merge leaves entries of pairs that
    are no more; they are told by their pieces.
    """
    pieces: list[str | None] = list(word)
    n = len(pieces)
    before, after = list(range(-1, n - 1)), list(range(1, n + 1))  # places of the neighbours
    waiting: list[tuple[int, int, str, str]] = []

    def offer(at: int) -> None:
        if at >= 0 and after[at] < n:
            pair = pieces[at], pieces[after[at]]
            rank = ranks.get(pair)
            if rank is not None:
                heapq.heappush(waiting, (rank, at, *pair))

    for at in range(n - 1):
        offer(at)
    while waiting:
        _, at, left, right = heapq.heappop(waiting)
        other = after[at]
        if pieces[at] != left or other >= n or pieces[other] != right:
            continue
        pieces[at], pieces[other] = left + right, None
        after[at] = after[other]
        if after[at] < n:
            before[after[at]] = at
        offer(before[at])
        offer(at)
    return [piece for piece in pieces if piece is not None]


def _first_unreached(vocab: dict[str, int], added: set[str], pairs: list[tuple[str, str]]) -> str | None:
    """A token that merging does not give for its own text: the only words for which `ignore_merges` matters."""
    ranks = {pair: rank for rank, pair in reversed(list(enumerate(pairs)))}
    for token in vocab:
        if token not in added and len(merged_by_ranks(token, ranks)) > 1:
            return token
    return None


def pre_tokenizer_name(tokenizer: dict[str, Any], path: Path) -> str:
    """llama.cpp's name for the pre-tokenizer of a byte-level BPE, told by its structure.

    Raises ModelError for any step that no name stands for.
    """
    model = tokenizer["model"]
    patterns = split_patterns(path, flatten(tokenizer.get("pre_tokenizer"), "pretokenizers"))
    names = PRE_TOKENIZERS.get(patterns)
    if names is None:
        known = ", ".join(sorted(name for names in PRE_TOKENIZERS.values() for name in names.values()))
        raise refuse(path, f"the pre_tokenizer that llama.cpp calls one of {known}", list(patterns))
    whole_words = bool(model.get("ignore_merges"))
    if whole_words in names:
        return names[whole_words]
    added = {token["content"] for token in tokenizer.get("added_tokens") or []}
    odd = _first_unreached(model["vocab"], added, merge_pairs(path, model))
    if odd is not None:
        raise refuse(
            path, f"ignore_merges {not whole_words} beside this pre_tokenizer, or tokens that merges give", odd
        )
    return names[not whole_words]


def byte_characters() -> list[str]:
    """The character that stands for each byte: printable ones for themselves, the others from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def read(directory: Path, tokenizer: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """The fields of a Vocabulary; see `reclm_lite.convert.vocab`."""
    path = directory / "tokenizer.json"
    model = tokenizer["model"]
    for key in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
        if model.get(key):
            raise refuse(path, f"a byte-level BPE without {key}", model[key])
    for step in flatten(tokenizer.get("normalizer"), "normalizers"):
        if step.get("type") != "NFC":
            raise refuse(path, "no normalizer but NFC", step)
    name = pre_tokenizer_name(tokenizer, path)
    absent = [byte for byte, char in enumerate(byte_characters()) if char not in model["vocab"]]
    if any(0x20 <= byte < 0x7F for byte in absent) or (
        model.get("unk_token") and not _NEVER_IN_TEXT.issuperset(absent)
    ):
        raise refuse(path, "tokens for all bytes that occur in text", f"{len(absent)} missing: {absent[:5]}")
    tokens, types, id_of = token_table(directory, tokenizer, config)
    merges: list[str] = []
    for left, right in merge_pairs(path, model):
        if not {left, right, left + right} <= model["vocab"].keys():
            raise refuse(path, "merges of tokens into a token", [left, right])
        if " " not in left and " " not in right:  # no byte is written as a space: such a merge never happens
            merges.append(f"{left} {right}")
    if not merges:
        raise refuse(path, "merges, without which llama.cpp takes no byte-level BPE", "none")
    return {"model": "gpt2", "pre": name, "tokens": tokens, "token_types": types, "id_of": id_of, "merges": merges}
