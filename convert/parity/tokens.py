"""Token ids of a GGUF vocabulary against those of the checkpoint's own tokenizer.

The tokenizer is transformers' AutoTokenizer where transformers is installed: that is what the model was trained
with. Else it is `tokenizer.json` as the package `tokenizers` reads it. Where there is neither (a lone
SentencePiece model and no transformers), nothing is proved, and `reference_tokenizer` says so by returning None.
"""

import importlib.util
import json
import logging
import unicodedata
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reclm_lite.convert.parity.plain_copies import copy_of_tokenizer, nobody_to_ask
from reclm_lite.convert.parity.sentences import PROBE_TEXTS
from reclm_lite.convert.vocab.differences import Differences
from reclm_lite.errors import ModelError
from reclm_lite.runtime import Model, load_model

logger = logging.getLogger(__name__)

_MAX_WORDPIECE = 100  # characters of a word; beyond, transformers' WordPiece gives [UNK]
_N_SHOWN = 5
# (add_special, parse_special) of each comparison, and its name: a whole prompt, a template's text, a user's text.
_MODES = {"with BOS and EOS": (True, True), "without": (False, True), "special tokens as plain text": (False, False)}


@dataclass(frozen=True)
class ReferenceTokenizer:
    """The tokenizer of the checkpoint in `directory`. `name` says which software reads it; `transformers` is set
    where that is AutoTokenizer."""

    name: str
    backend: Any
    transformers: bool
    directory: Path

    def encode(self, text: str, *, add_special: bool, parse_special: bool = True) -> list[int]:
        """Token ids of `text`; the arguments are those of `Model.tokenize`."""
        if self.transformers:
            options = {"add_special_tokens": add_special, "split_special_tokens": not parse_special}
            return list(self.backend(text, **options)["input_ids"])
        self.backend.encode_special_tokens = not parse_special
        return list(self.backend.encode(text, add_special_tokens=add_special).ids)

    def description(self) -> dict[str, Any] | None:
        """The steps of the tokenizer as tokenizer.json writes them; None of one without, as mistral-common's."""
        fast = getattr(self.backend, "backend_tokenizer", None) if self.transformers else self.backend
        return None if fast is None else json.loads(fast.to_str())


@contextmanager
def quiet(*names: str) -> Iterator[None]:
    """Keeps the named loggers, and warnings, quiet within the block: a tokenizer warns of every long text."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def has(package: str) -> bool:
    """Whether a package can be imported; it is not imported (its parent is, for a dotted name)."""
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # the parent
        return False


def reference_tokenizer(directory: Path) -> ReferenceTokenizer | None:
    """The tokenizer of a checkpoint directory, or None where no installed software reads it.

    Raises ModelError where transformers is installed and refuses the directory's tokenizer.
    """
    directory = Path(directory)
    if has("transformers"):
        import transformers

        try:
            with quiet("transformers"), copy_of_tokenizer(directory) as copy, nobody_to_ask():
                backend = transformers.AutoTokenizer.from_pretrained(
                    copy, local_files_only=True, trust_remote_code=False
                )
        except ModelError:
            raise
        except Exception as error:  # transformers and tokenizers may fail in any way
            lacking = [name for name in ("sentencepiece", "google.protobuf") if not has(name)]
            if not (directory / "tokenizer.json").is_file() and lacking:
                logger.warning("transformers cannot read a lone tokenizer.model: pip install sentencepiece protobuf")
                return None
            if not (directory / "tokenizer.json").is_file():
                raise ModelError(
                    f"expected a tokenizer that transformers can read in {directory}, found: {error}; "
                    "copy the tokenizer's files there again"
                ) from error
        else:
            return ReferenceTokenizer(f"transformers {transformers.__version__}", backend, True, directory)
    if not has("tokenizers") or not (directory / "tokenizer.json").is_file():
        return None
    import tokenizers

    plain = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    plain.no_padding()
    plain.no_truncation()
    return ReferenceTokenizer(f"tokenizers {tokenizers.__version__}", plain, False, directory)


def differs_by_design(text: str, metadata: Mapping[str, Any]) -> str | None:
    """Why llama.cpp is known to tokenize `text` otherwise with no GGUF setting that could change it, or None.

    `metadata` is the GGUF file's. Every reason is a property of the text, so that nothing else hides behind it.
    """
    if metadata.get("tokenizer.ggml.model") != "bert":
        return None
    lowercase = bool(metadata.get("tokenizer.ggml.normalizer.lowercase"))
    if metadata.get("tokenizer.ggml.normalizer.strip_accents", lowercase):
        decomposed = unicodedata.normalize("NFD", text)
        if any(unicodedata.category(c) in ("Mc", "Me") or "\u1160" <= c <= "\u11ff" for c in decomposed):
            return "llama.cpp strips all marks and decomposed Hangul vowels; transformers non-spacing marks only"
    if any(c in text for c in "\x0b\x0c\x85"):
        return "U+000B, U+000C and U+0085 are white space to llama.cpp and dropped by transformers"
    if "\u2581" in text:
        return "U+2581 is how llama.cpp writes a space"
    if any(len(word) > _MAX_WORDPIECE for word in text.split()):
        return f"a word of over {_MAX_WORDPIECE} characters is [UNK] in transformers only"
    return None


@dataclass
class TokenReport:
    """What comparing token ids found. `mismatches` holds the first few as {"text", "mode", "expected", "found"}."""

    reference: str
    n_texts: int = 0
    n_mismatches: int = 0
    mismatches: list[dict[str, Any]] = field(default_factory=list)
    by_design: dict[str, int] = field(default_factory=dict)

    @property
    def identical(self) -> bool:
        return self.n_mismatches == 0

    def as_dict(self) -> dict[str, Any]:
        shown = [{**odd, "expected": odd["expected"][:32], "found": odd["found"][:32]} for odd in self.mismatches]
        return {
            "reference": self.reference,
            "n_texts": self.n_texts,
            "n_mismatches": self.n_mismatches,
            "mismatches": shown[:_N_SHOWN],
            "left_out_by_design": dict(sorted(self.by_design.items())),
        }


def compare_token_ids(model: Model, reference: ReferenceTokenizer, texts: Sequence[str]) -> TokenReport:
    """Token ids of each text, in the three ways that text is tokenized (`_MODES`)."""
    report = TokenReport(reference.name)
    metadata, description = model.gguf.metadata, reference.description()
    differences = Differences(reference.directory, description, metadata) if description is not None else None
    with quiet("transformers"):
        for text in texts:
            reasons, compared = set(), False
            for mode, (add_special, parse_special) in _MODES.items():
                reason = differs_by_design(text, metadata)
                if reason is None and differences is not None:
                    reason = differences.reason(text, parse_special=parse_special)
                if reason is not None:
                    reasons.add(reason)
                    continue
                compared = True
                expected = reference.encode(text, add_special=add_special, parse_special=parse_special)
                found = model.tokenize(text, add_special=add_special, parse_special=parse_special)
                if expected != found:
                    report.n_mismatches += 1
                    report.mismatches.append({"text": text, "mode": mode, "expected": expected, "found": found})
                    break
            report.n_texts += compared
            for reason in reasons:
                report.by_design[reason] = report.by_design.get(reason, 0) + 1
    return report


def token_id_mismatches(
    gguf: Path | Model, checkpoint: Path, texts: Sequence[str] = PROBE_TEXTS
) -> list[dict[str, Any]] | None:
    """Texts whose token ids differ between a GGUF file and `tokenizer.json`: [{"text", "mode", "expected", "found"}].

    Texts that `differs_by_design` are passed over. None where the checkpoint's tokenizer cannot be read here.
    """
    reference = reference_tokenizer(checkpoint)
    if reference is None:
        return None
    if isinstance(gguf, Model):
        return compare_token_ids(gguf, reference, texts).mismatches
    with load_model(gguf, vocab_only=True) as model:
        return compare_token_ids(model, reference, texts).mismatches
