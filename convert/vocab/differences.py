"""Where llama.cpp is known to tokenize otherwise than the checkpoint's tokenizer, with no GGUF setting to change it.

Every reason is a property of the text and of the tokenizer's own description, so that nothing else hides behind it:

    normal form   NFC of Qwen and others: llama.cpp does not normalize text
    words         tekken's and GPT-4o's split by case: llama.cpp knows only the case of a-z and A-Z, and no marks
    prefix space  Metaspace puts none before a text that begins with a space, and `first` none after a special token;
                  llama.cpp always puts one (as SentencePiece itself does)
    added tokens  those that swallow the space around them (lstrip, rstrip) or stand alone (single_word), and
                  those that overlap: llama.cpp takes the longest anywhere first, tokenizers the leftmost
    runs          of spaces that are added tokens (Gemma): llama.cpp looks for them first, as SentencePiece does
    names         llama.cpp takes tokens for special by their text: `</s>` in Qwen's vocabulary is an ordinary one
    bytes         without a token of their own, which both drop, but merge across differently
    scores        transformers makes merges of a lone tokenizer.model by id; where its scores have another order,
                  llama.cpp does as SentencePiece itself
"""

import functools
import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reclm_lite.convert.vocab.bpe import APPROXIMATED, byte_characters, flatten, split_patterns
from reclm_lite.convert.vocab.special import KNOWN_ENDS, KNOWN_MARKS
from reclm_lite.convert.vocab.spm_file import read_sentencepiece
from reclm_lite.convert.vocab.table import PHANTOM_SPACE, looks_special


def _splitters(pre: str, path: Path, steps: list[dict[str, Any]]) -> tuple[Any, Any] | None:
    """The pre-tokenizer as it is and as llama.cpp has it, where the two differ.

    None where the file names another pre-tokenizer than the steps are: that is no known difference, but a wrong file.
    """
    if pre not in APPROXIMATED:
        return None
    own, llama_cpp = APPROXIMATED[pre]
    if split_patterns(path, steps) != (own,):
        return None
    from tokenizers import Regex, pre_tokenizers

    return pre_tokenizers.Split(Regex(own), "isolated"), pre_tokenizers.Split(Regex(llama_cpp), "isolated")


def _merged_too_early(tokenizer: dict[str, Any], directory: Path) -> frozenset[str]:
    """Pieces that the merges of `tokenizer` make before others of a better score in a lone tokenizer.model."""
    if (directory / "tokenizer.json").is_file() or not (directory / "tokenizer.model").is_file():
        return frozenset()
    score_of = {text: score for text, score, _ in read_sentencepiece(directory / "tokenizer.model").pieces}
    best, early = float("-inf"), set()
    for left, right in reversed(tokenizer["model"].get("merges") or []):
        score = score_of.get(left + right, best)
        if score < best:
            early.add(left + right)
        best = max(best, score)
    return frozenset(early)


def _longest_first(texts: list[str]) -> list[str]:
    return sorted((text for text in texts if text), key=lambda text: (-len(text.encode()), text))


def _pattern(tokens: list[dict[str, Any]]) -> re.Pattern[str] | None:
    texts = _longest_first([token["content"] for token in tokens])
    return re.compile("|".join(map(re.escape, texts))) if texts else None


class Differences:
    """The known differences between the tokenizer of a checkpoint directory and its GGUF file.

    `tokenizer` is what `tokenizers.Tokenizer.to_str` gives of it, as JSON; `metadata` is the GGUF file's. For
    WordPiece only those of added tokens are known here.
    """

    def __init__(self, directory: Path, tokenizer: dict[str, Any], metadata: Mapping[str, Any]):
        normalizers = flatten(tokenizer.get("normalizer"), "normalizers")
        steps = flatten(tokenizer.get("pre_tokenizer"), "pretokenizers")
        self._nfc = any(step.get("type") == "NFC" for step in normalizers)
        self._splits = _splitters(str(metadata.get("tokenizer.ggml.pre")), Path(directory), steps)
        self._split_differs = functools.lru_cache(maxsize=1)(
            self._compare_splits
        )  # one text is asked for several times
        self._scheme = None
        if steps and steps[0].get("type") == "Metaspace":
            legacy = "always" if steps[0].get("add_prefix_space", True) else "never"
            self._scheme = steps[0].get("prepend_scheme", legacy)
        self._no_bytes: frozenset[int] = frozenset()
        if metadata.get("tokenizer.ggml.model") == "gpt2":
            vocab = tokenizer["model"]["vocab"]
            self._no_bytes = frozenset(i for i, char in enumerate(byte_characters()) if char not in vocab)
        self._early = _merged_too_early(tokenizer, Path(directory))
        self._early_lengths = {len(piece) for piece in self._early}
        self._added = tokenizer.get("added_tokens") or []
        by_name = KNOWN_ENDS | KNOWN_MARKS
        contents = {token["content"] for token in self._added}
        named = [token for token in tokenizer["model"]["vocab"] if token in by_name and token not in contents]
        plain = [
            token["content"]
            for token in self._added
            if not (token["special"] or token["content"] in by_name or looks_special(token["content"]))
        ]
        # By parse_special: what each side looks for in a text before anything else.
        self._theirs = {True: self._added, False: [token for token in self._added if not token["special"]]}
        written = [
            # tokenizers looks for the U+2581 of such a token in raw text, llama.cpp and SentencePiece for spaces
            token["content"] if token["special"] else token["content"].replace(PHANTOM_SPACE, " ")
            for token in self._added
        ]
        plain = [text.replace(PHANTOM_SPACE, " ") for text in plain]
        self._ours = {True: _longest_first([*written, *named]), False: _longest_first(plain)}
        self._token_of = {mode: {token["content"]: token for token in self._theirs[mode]} for mode in (True, False)}
        self._patterns = {parse_special: _pattern(tokens) for parse_special, tokens in self._theirs.items()}

    def reason(self, text: str, *, parse_special: bool = True) -> str | None:
        """Why llama.cpp may tokenize `text` otherwise, or None. `parse_special` is that of `Model.tokenize`."""
        if self._nfc and not unicodedata.is_normalized("NFC", text):
            return "text not in NFC: llama.cpp does not normalize"
        if self._no_bytes and not self._no_bytes.isdisjoint(text.encode()):
            return "a byte that the vocabulary has no token for"
        found = self._found(text, parse_special)
        for token, start, end in found:
            before, after = text[start - 1 : start], text[end : end + 1]
            if (token["lstrip"] and before.isspace()) or (token["rstrip"] and after.isspace()):
                return "an added token that swallows the space beside it"
            if token["single_word"] and any(c.isalnum() or c == "_" for c in (before, after)):
                return "an added token that must stand alone, inside a word"
        if self._partition(text, parse_special) != [(start, end) for _, start, end in found]:
            return (
                "added tokens that overlap, runs of spaces, or tokens that llama.cpp takes for special ones by "
                "their text"
            )
        if self._prefix_differs(text, [(start, end) for _, start, end in found]):
            return "a space that Metaspace does not put before the text, and llama.cpp does"
        if self._early and self._holds_early(text.replace(" ", PHANTOM_SPACE)):
            return "pieces that transformers merges by id where the model has scores"
        if self._splits is not None and self._split_differs(text):
            return "letters whose case or marks llama.cpp's pre-tokenizer does not know"
        return None

    def _found(self, text: str, parse_special: bool) -> list[tuple[dict[str, Any], int, int]]:
        """Added tokens in the text as tokenizers matches them: leftmost, then longest."""
        pattern = self._patterns[parse_special]
        if pattern is None:
            return []
        token_of = self._token_of[parse_special]
        return [(token_of[match[0]], *match.span()) for match in pattern.finditer(text)]

    def _holds_early(self, text: str) -> bool:
        """Whether the text holds a piece of `_early`: each is looked for, or each part of the text is looked up."""
        n = len(text)
        if n * len(self._early_lengths) > len(self._early):
            return any(piece in text for piece in self._early)
        return any(text[at : at + size] in self._early for size in self._early_lengths for at in range(n - size + 1))

    def _partition(self, text: str, parse_special: bool) -> list[tuple[int, int]]:
        """Where llama.cpp finds its special tokens: each in what longer ones have left."""
        free, taken = [(0, len(text))], []
        for content in self._ours[parse_special]:
            if content not in text:
                continue
            left = []
            for start, end in free:
                while (at := text.find(content, start, end)) >= 0:
                    left.append((start, at))
                    taken.append((at, at + len(content)))
                    start = at + len(content)
                left.append((start, end))
            free = left
        return sorted(taken)

    def _prefix_differs(self, text: str, found: list[tuple[int, int]]) -> bool:
        if self._scheme not in ("first", "always"):
            return False
        starts = [0, *(end for _, end in found)]
        ends = [*(start for start, _ in found), len(text)]
        for start, end in zip(starts, ends, strict=True):
            if start < end and (text[start] in (" ", PHANTOM_SPACE) or (start and self._scheme == "first")):
                return True
        return False

    def _compare_splits(self, text: str) -> bool:
        own, llama_cpp = self._splits
        return own.pre_tokenize_str(text) != llama_cpp.pre_tokenize_str(text)
