"""What the metadata and tensors of a GGUF model must say, lest llama.cpp ends the process instead of refusing the file.

llama.cpp asserts much of what it computes with: a file whose layers, heads, experts, positions or vocabulary do not fit
each other aborts whoever loads it, some types of tensors are read through a null pointer. Here each of those is a
sentence. What llama.cpp refuses by itself (a missing key, a value of another type, a tensor of another shape) is left
to it, and what is not known here to `probe`, which tries a foreign file in a process of its own.

Rules followed: llama.cpp's llama-model.cpp (load_hparams), llama-vocab.cpp (load, tokenize), src/models, ggml-cpu.
"""

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from reclm_lite.errors import ModelError
from reclm_lite.gguf_charsmap import MAX_BYTES, charsmap_problem
from reclm_lite.gguf_summary import GgufSummary

if TYPE_CHECKING:
    import mmap

TOKENS = "tokenizer.ggml.tokens"
CHARSMAP = "tokenizer.ggml.precompiled_charsmap"
_MAX_LAYERS, _MAX_EXPERTS = 512, 1024  # llama.cpp's LLAMA_MAX_LAYERS, LLAMA_MAX_EXPERTS
_MAX_INT32 = 2**31 - 1
_TENSOR_ALIGNMENT = 32  # bytes; ggml asserts it of mapped weights
# Array items that a number for each layer may have: GGUF type -> struct code.
_INTEGER_ITEMS = {4: "I", 5: "i", 7: "?"}
_INT32 = 5
_BYTE_ITEMS = (0, 1)
# Whole numbers: key behind the architecture's prefix -> (least, most).
_NUMBERS = {
    "context_length": (1, _MAX_INT32),
    "embedding_length": (1, _MAX_INT32),
    "block_count": (1, _MAX_LAYERS),
    "vocab_size": (1, _MAX_INT32),
    "expert_count": (0, _MAX_EXPERTS),
    "attention.key_length": (1, _MAX_INT32),
    "attention.value_length": (1, _MAX_INT32),
    "attention.key_length_swa": (1, _MAX_INT32),
    "attention.value_length_swa": (1, _MAX_INT32),
    "attention.sliding_window": (0, 2**30),  # positions are added to it, as 32-bit integers
    "max_tokens": (4, _MAX_INT32),  # ours: a text encoder's, in tokens
    "pooling_type": (0, 4),  # none, mean, CLS, last, rank
}
_TEXTS = ("general.name", "tokenizer.chat_template", "tokenizer.ggml.model", "tokenizer.ggml.pre")
_ROPE_TYPES = ("none", "linear", "yarn", "longrope")
# Architectures that rotate whole heads and have keys and values of one width; llama.cpp asserts both.
_WHOLE_HEADS = frozenset(
    "llama qwen2 qwen2moe qwen3 qwen3moe mistral3 smollm3 starcoder2 olmo olmo2 olmoe granite internlm2 exaone "
    "arcee".split()
)
# Encoders whose heads share the columns of an embedding, and whose vectors have as many.
_SHARED_COLUMNS = frozenset("bert nomic-bert nomic-bert-moe jina-bert-v2 jina-bert-v3".split())
# Architectures without attention, or with it in some layers only.
_WITHOUT_HEADS = frozenset("mamba mamba2 rwkv6 rwkv6qwen2 rwkv7 arwkv7".split())
# Special tokens that hold where the file names none that the vocabulary has: tokenizer -> (first, last, unknown).
_DEFAULT_ENDS = {
    "llama": (1, 2, 0),
    "gpt2": (11, 11, None),
    "t5": (None, 1, 2),
    "bert": (101, 102, 100),
    "plamo2": (1, 2, 0),
    "gemma4": (None, None, None),
    "hybriddna": (11, 11, None),
    "whitespace": (11, 11, None),
    "rwkv": (None, None, None),
}
# Of BPE: pre-tokenizers that put the first token before every text.
_BPE_WITH_BOS = frozenset(
    "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano tekken chameleon".split()
)
_BYTE_TYPE = 6  # token type
# Types of tensors that ggml multiplies with nothing.
_NO_WEIGHTS = frozenset(("I8", "I16", "I32", "I64", "F64", "Q8_1", "Q8_K"))


@dataclass(frozen=True)
class Arrays:
    """Arrays of a file's metadata, read when asked for. places: key -> (type of items, their number, where they
    begin)."""

    buffer: "mmap.mmap"
    places: Mapping[str, tuple[int, int, int]]
    tokens: list[bytes]

    def integers(self, key: str) -> list[int] | None:
        """A short array of whole numbers; None if it is anything else."""
        item_type, n_items, start = self.places[key]
        if item_type not in _INTEGER_ITEMS or n_items > _MAX_LAYERS:
            return None
        return list(struct.unpack_from(f"<{n_items}{_INTEGER_ITEMS[item_type]}", self.buffer, start))

    def raw_bytes(self, key: str, most: int) -> bytes | None:
        """The first `most` bytes of an array of bytes; None for an array of others."""
        item_type, n_items, start = self.places[key]
        return self.buffer[start : start + min(n_items, most)] if item_type in _BYTE_ITEMS else None

    def has_int32(self, key: str, number: int) -> bool:
        """Whether an array of 32-bit integers holds `number`; arrays of other types hold nothing here."""
        item_type, n_items, start = self.places.get(key, (0, 0, 0))
        if item_type != _INT32:
            return False
        return number in struct.unpack_from(f"<{n_items}i", self.buffer, start)


def check_limits(summary: GgufSummary, arrays: Arrays) -> None:
    """Raises ModelError for metadata that make llama.cpp end the process, or that this package cannot use."""
    _Limits(summary, arrays).check()


class _Limits:
    def __init__(self, summary: GgufSummary, arrays: Arrays):
        self.summary, self.arrays, self.metadata = summary, arrays, summary.metadata

    def fail(self, key: str, expected: str, found: Any) -> ModelError:
        shown = repr(found)[:80] if found is not None else "none"
        return ModelError(
            f"{self.summary.path} is no model that llama.cpp can run: expected {key} {expected}, found {shown}; "
            "download or convert the model again, or use another"
        )

    def check(self) -> None:
        self._texts_and_reals()
        for name, (least, most) in _NUMBERS.items():
            self.number(name, least, most)
        n_layers = self.number("block_count", 1, _MAX_LAYERS)
        nextn = self.number("nextn_predict_layers", 0, _MAX_LAYERS) or 0
        if n_layers is not None:
            if nextn > n_layers:
                raise self.fail(self.key("nextn_predict_layers"), f"of at most {n_layers}, the number of layers", nextn)
            self._experts(n_layers)
            self._heads(n_layers)
            self._windows(n_layers)
        if "split.count" in self.metadata and self.metadata["split.count"] not in (0, 1):
            raise self.fail(
                "split.count",
                "of 1: a model in one file (llama-gguf-split --merge makes one)",
                self.metadata["split.count"],
            )
        if self.arrays.places.get(TOKENS) or "tokenizer.ggml.model" in self.metadata:
            self._vocabulary()

    def key(self, name: str) -> str:
        return f"{self.summary.architecture}.{name}"

    def number(self, name: str, least: int, most: int) -> int | None:
        """A whole number of the architecture within its bounds; None where the file has none."""
        key = self.key(name)
        value = self.metadata.get(key)
        if key in self.arrays.places:
            raise self.fail(key, f"as one number of {least} to {most}", "an array")
        if value is not None and (type(value) is not int or not least <= value <= most):
            raise self.fail(key, f"as a number of {least} to {most}", value)
        return value

    def per_layer(self, name: str, n_layers: int, most: int = _MAX_INT32) -> list[int] | None:
        """One number for each layer, as an array or one for all; None where the file has none."""
        key = self.key(name)
        if key not in self.arrays.places:
            value = self.number(name, 0, most)
            return None if value is None else [value] * n_layers
        values = self.arrays.integers(key)
        if values is None or len(values) != n_layers or not all(0 <= value <= most for value in values):
            raise self.fail(
                key, f"as {n_layers} numbers of 0 to {most}, one for each layer", values or "an array of others"
            )
        return values

    def _texts_and_reals(self) -> None:
        for key in _TEXTS:
            if key in self.arrays.places or not isinstance(self.metadata.get(key, ""), str):
                raise self.fail(key, "as a text", self.metadata.get(key, "an array"))
        prefix = self.key("")
        for key, value in self.metadata.items():
            if isinstance(value, float) and key.startswith(prefix):
                if not math.isfinite(value):
                    raise self.fail(key, "as a finite number", value)
                if key.endswith("epsilon") and value < 0:
                    raise self.fail(key, "as a number from 0 on", value)
        scaling = self.metadata.get(self.key("rope.scaling.type"), "none")
        if scaling not in _ROPE_TYPES:
            raise self.fail(self.key("rope.scaling.type"), f"as one of {', '.join(_ROPE_TYPES)}", scaling)

    def _experts(self, n_layers: int) -> None:
        n_experts = self.number("expert_count", 0, _MAX_EXPERTS) or 0
        used = self.per_layer("expert_used_count", n_layers, _MAX_EXPERTS) or [0] * n_layers
        least = 1 if n_experts else 0
        if not least <= max(used) <= n_experts:
            raise self.fail(
                self.key("expert_used_count"), f"of {least} to {n_experts}, the number of experts", max(used)
            )
        n_groups = self.number("expert_group_count", 0, _MAX_EXPERTS) or 0
        if n_groups and (n_groups >= n_experts or n_experts % n_groups):
            raise self.fail(self.key("expert_group_count"), f"to divide {n_experts} experts into groups", n_groups)
        n_used = self.number("expert_group_used_count", 0, _MAX_EXPERTS) or 0
        if n_groups > 1 and not 0 < n_used < n_groups:
            raise self.fail(self.key("expert_group_used_count"), f"of 1 to {n_groups - 1}", n_used)

    def _heads(self, n_layers: int) -> None:
        architecture = self.summary.architecture
        heads = self.per_layer("attention.head_count", n_layers)
        self.per_layer("feed_forward_length", n_layers)
        if heads is None:
            return
        kv = self.per_layer("attention.head_count_kv", n_layers) or heads
        if architecture not in _WITHOUT_HEADS and not heads[0]:
            raise self.fail(self.key("attention.head_count"), "of 1 or more", heads[0])
        if architecture in _WHOLE_HEADS and not min(*heads, *kv):
            raise self.fail(self.key("attention.head_count_kv"), "of 1 or more", min(*heads, *kv))
        for n_heads, n_kv in zip(heads, kv):
            if n_kv and n_heads % n_kv:
                raise self.fail(self.key("attention.head_count_kv"), f"to divide {n_heads} heads", n_kv)
        if not heads[0]:
            return
        n_embd = self.number("embedding_length", 1, _MAX_INT32)
        width = self.number("attention.key_length", 1, _MAX_INT32) or (n_embd // heads[0] if n_embd else None)
        if width is None:
            return
        if not width:
            raise self.fail(
                self.key("attention.head_count"), f"of at most {n_embd}, the columns of an embedding", heads[0]
            )
        values = self.number("attention.value_length", 1, _MAX_INT32) or (n_embd or 0) // heads[0]
        whole = architecture in _WHOLE_HEADS
        if architecture in _SHARED_COLUMNS and not width == values == (n_embd or 0) // heads[0]:
            raise self.fail(
                self.key("attention.key_length"),
                f"of {(n_embd or 0) // heads[0]}, as {n_embd} columns by {heads[0]} heads",
                width,
            )
        if architecture in _SHARED_COLUMNS and self.number("embedding_length_out", 0, _MAX_INT32) not in (
            None,
            0,
            n_embd,
        ):
            raise self.fail(
                self.key("embedding_length_out"), f"of {n_embd}", self.metadata[self.key("embedding_length_out")]
            )
        if whole and values != width:
            raise self.fail(self.key("attention.value_length"), f"of {width}, the width of a key", values)
        for suffix in ("", "_swa"):
            most = self.number(f"attention.key_length{suffix}", 1, _MAX_INT32) or width
            rotated = self.number(f"rope.dimension_count{suffix}", 1, _MAX_INT32)
            if rotated is not None and (rotated > most or rotated % 2):
                raise self.fail(
                    self.key(f"rope.dimension_count{suffix}"),
                    f"as an even number of at most {most}, a head's width",
                    rotated,
                )
            if whole and not suffix and (rotated or width) != width:
                raise self.fail(self.key("rope.dimension_count"), f"of {width}, a head's width", rotated)
            if whole and width % 2:
                raise self.fail(self.key("attention.key_length"), "as an even number, which can be rotated", width)

    def _windows(self, n_layers: int) -> None:
        """A pattern of sliding windows must have one: llama.cpp makes two memories for it."""
        key = self.key("attention.sliding_window_pattern")
        if key in self.arrays.places:
            layers = self.arrays.integers(key)
            if layers is None or len(layers) != n_layers or not any(layers):
                raise self.fail(key, f"for each of {n_layers} layers, with a window in one at least", layers)
        elif self.number("attention.sliding_window_pattern", 0, _MAX_INT32) == 1:
            raise self.fail(key, "other than 1, which leaves no layer a window", 1)

    def _vocabulary(self) -> None:
        model, tokens = self.metadata.get("tokenizer.ggml.model"), self.arrays.tokens
        if model not in _DEFAULT_ENDS:
            raise self.fail("tokenizer.ggml.model", f"as one of {', '.join(sorted(_DEFAULT_ENDS))}", model)
        if not tokens:
            raise self.fail(TOKENS, "with tokens", "none")
        # llama.cpp takes a text up to its first NUL, and gives an empty one a name of its own.
        known = {token.partition(b"\0")[0] or b"[EMPTY_%d]" % at for at, token in enumerate(tokens)}
        if len(known) != len(tokens) and model != "hybriddna":
            raise self.fail(TOKENS, "each once", f"{len(tokens) - len(known)} of {len(tokens)} twice")
        if model == "llama":
            missing = next((b for b in range(256) if b"<0x%02X>" % b not in known and bytes([b]) not in known), None)
            if missing is not None:
                raise self.fail(TOKENS, "with a token for every byte (<0x00> to <0xFF>)", f"none for <0x{missing:02X}>")
        if model == "bert" and self.arrays.has_int32("tokenizer.ggml.token_type", _BYTE_TYPE):
            raise self.fail("tokenizer.ggml.token_type", "without bytes, which this vocabulary has not", _BYTE_TYPE)
        pre = self.metadata.get("tokenizer.ggml.pre")
        if pre == "whitespace" != model:
            raise self.fail("tokenizer.ggml.pre", f"as one for tokenizer {model}", pre)
        if model == "t5" and CHARSMAP in self.arrays.places:
            blob = self.arrays.raw_bytes(CHARSMAP, MAX_BYTES + 1)
            if problem := "no bytes" if blob is None else charsmap_problem(blob):
                raise self.fail(CHARSMAP, "as a map that no text leads out of", problem)
        if model == "rwkv" and not known & {b"\n", b"\\n"}:
            raise self.fail(TOKENS, "with a token for the end of a line", "none")
        self._ends(model, len(tokens))

    def _ends(self, model: str, n_tokens: int) -> None:
        """The tokens that are put around every text must be there."""
        first, last, unknown = _DEFAULT_ENDS[model]
        pre = self.metadata.get("tokenizer.ggml.pre", "")
        adds_first = model in ("llama", "plamo2", "gemma4") or pre in _BPE_WITH_BOS
        is_bert = model == "bert"
        wanted = [
            ("bos_token_id", first, is_bert or self.metadata.get("tokenizer.ggml.add_bos_token", adds_first)),
            ("seperator_token_id", last if is_bert else None, is_bert),  # the key is spelled so
            ("unknown_token_id", unknown, is_bert),
            (
                "eos_token_id",
                None if is_bert else last,
                not is_bert and self.metadata.get("tokenizer.ggml.add_eos_token", model == "t5"),
            ),
        ]
        for name, default, needed in wanted:
            key = f"tokenizer.ggml.{name}"
            found = self.metadata.get(key, default)
            usable = [id_ for id_ in (found, default) if type(id_) is int and 0 <= id_ < n_tokens]
            if needed and not usable:
                raise self.fail(key, f"as a token of 0 to {n_tokens - 1}, which goes with every text", found)


def check_tensors(summary: GgufSummary) -> None:
    """Raises ModelError for tensors of types that ggml cannot compute with, and for data that are not aligned."""

    def fail(name: str, expected: str, found: str) -> ModelError:
        return ModelError(
            f"{summary.path} is no model that llama.cpp can run: expected tensor {name!r} {expected}, found {found}; "
            "download or convert the model again, or use another"
        )

    for tensor in summary.tensors:
        # A table that names experts by tokens holds integers.
        is_weight = tensor.name.endswith((".weight", ".bias")) and "tid2eid" not in tensor.name
        if is_weight and tensor.type_name in _NO_WEIGHTS:
            raise fail(tensor.name, "of a type that weights may have, such as F16 or Q8_0", tensor.type_name)
        added = "norm" in tensor.name or tensor.name.endswith(".bias") or tensor.name == "token_types.weight"
        if (
            is_weight
            and added
            and tensor.type_name != "F32"
            and (tensor.name == "token_types.weight" or math.prod(tensor.shape[1:]) == 1)
        ):
            raise fail(tensor.name, "of type F32, as it is added or multiplied by columns", tensor.type_name)
        if tensor.offset_bytes % _TENSOR_ALIGNMENT:
            raise fail(tensor.name, f"from a multiple of {_TENSOR_ALIGNMENT} bytes on", f"byte {tensor.offset_bytes}")
