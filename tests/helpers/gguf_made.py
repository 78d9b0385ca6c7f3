"""GGUF files of a few kilobytes, made key by key, so that a test can spoil any one of them.

`llama()`, `qwen3()`, `gemma2()`, `bert()` and so on give models that llama.cpp loads; `spoiled` gives their neighbors,
each wrong in one place. Unlike `tiny_llama`, nothing here checks what it writes.
"""

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from tiny_llama import byte_alphabet

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
_FORMATS = {
    U8: "<B",
    I8: "<b",
    U16: "<H",
    I16: "<h",
    U32: "<I",
    I32: "<i",
    F32: "<f",
    BOOL: "<?",
    U64: "<Q",
    I64: "<q",
    F64: "<d",
}
_F32_TENSOR = 0


@dataclass(frozen=True)
class Made:
    """keys: name -> (type, value); an array's value is (item type, [values]). tensors: name -> (shape, ggml type,
    bytes).

    A shape is in GGUF order: fastest-varying dimension first.
    """

    keys: dict[str, tuple[int, Any]]
    tensors: dict[str, tuple[tuple[int, ...], int, bytes]]
    extra: dict[str, Any] = field(default_factory=dict)

    def data(self) -> bytes:
        """The file's bytes."""
        keys = b"".join(
            _string(name) + struct.pack("<I", kind) + _value(kind, value) for name, (kind, value) in self.keys.items()
        )
        table, data = b"", b""
        for name, (shape, kind, values) in self.tensors.items():
            table += _string(name) + struct.pack(
                f"<I{len(shape)}QIQ", len(shape), *(n % 2**64 for n in shape), kind, len(data)
            )
            data += values + bytes(-len(values) % 32)
        header = b"GGUF" + struct.pack("<IQQ", 3, len(self.tensors), len(self.keys)) + keys + table
        return header + bytes(-len(header) % 32) + data

    def with_key(self, name: str, kind: int, value: Any) -> "Made":
        return replace(self, keys=self.keys | {name: (kind, value)})

    def without(self, *names: str) -> "Made":
        return replace(
            self,
            keys={name: value for name, value in self.keys.items() if name not in names},
            tensors={name: value for name, value in self.tensors.items() if name not in names},
        )

    def with_tensor(self, name: str, shape: tuple[int, ...], kind: int, values: bytes) -> "Made":
        return replace(self, tensors=self.tensors | {name: (shape, kind, values)})


def _string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def _value(kind: int, value: Any) -> bytes:
    if kind == STRING:
        return _string(value)
    if kind == ARRAY:
        item, values = value
        return struct.pack("<IQ", item, len(values)) + b"".join(_value(item, each) for each in values)
    return struct.pack(_FORMATS[kind], value)


def tensor(*shape: int) -> tuple[tuple[int, ...], int, bytes]:
    """A float32 tensor of small numbers."""
    n = math.prod(shape)
    return shape, _F32_TENSOR, struct.pack(f"<{n}f", *((i % 7 - 3) / 8 for i in range(n)))


def spm(n_more: int = 0) -> dict[str, tuple[int, Any]]:
    """A SentencePiece vocabulary: <unk>, <s>, </s>, the bytes, a space and a few letters."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", "a", "b"]
    tokens += [f"<more{i}>" for i in range(n_more)]
    types = [2, 3, 3] + [6] * 256 + [1] * (3 + n_more)
    return {
        "tokenizer.ggml.model": (STRING, "llama"),
        "tokenizer.ggml.tokens": (ARRAY, (STRING, tokens)),
        "tokenizer.ggml.scores": (ARRAY, (F32, [0.0] * len(tokens))),
        "tokenizer.ggml.token_type": (ARRAY, (I32, types)),
        "tokenizer.ggml.bos_token_id": (U32, 1),
        "tokenizer.ggml.eos_token_id": (U32, 2),
        "tokenizer.ggml.unknown_token_id": (U32, 0),
        "tokenizer.ggml.add_bos_token": (BOOL, True),
    }


def bpe() -> dict[str, tuple[int, Any]]:
    """A byte-level vocabulary: <s>, </s>, the bytes, one merge."""
    tokens = ["<s>", "</s>", *byte_alphabet(), "th"]
    return {
        "tokenizer.ggml.model": (STRING, "gpt2"),
        "tokenizer.ggml.pre": (STRING, "gpt-2"),
        "tokenizer.ggml.tokens": (ARRAY, (STRING, tokens)),
        "tokenizer.ggml.token_type": (ARRAY, (I32, [3, 3] + [1] * 257)),
        "tokenizer.ggml.merges": (ARRAY, (STRING, ["t h"])),
        "tokenizer.ggml.bos_token_id": (U32, 0),
        "tokenizer.ggml.eos_token_id": (U32, 1),
        "tokenizer.ggml.add_bos_token": (BOOL, True),
    }


def wordpiece() -> dict[str, tuple[int, Any]]:
    """BERT's: [PAD], [UNK], [CLS], [SEP], a few letters."""
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "\u2581a", "\u2581b", "c", "d"]
    return {
        "tokenizer.ggml.model": (STRING, "bert"),
        "tokenizer.ggml.tokens": (ARRAY, (STRING, tokens)),
        "tokenizer.ggml.token_type": (ARRAY, (I32, [3, 3, 3, 3, 1, 1, 1, 1])),
        "tokenizer.ggml.token_type_count": (U32, 2),
        "tokenizer.ggml.padding_token_id": (U32, 0),
        "tokenizer.ggml.unknown_token_id": (U32, 1),
        "tokenizer.ggml.bos_token_id": (U32, 2),
        "tokenizer.ggml.seperator_token_id": (U32, 3),
    }


def n_vocab(vocabulary: dict[str, tuple[int, Any]]) -> int:
    return len(vocabulary["tokenizer.ggml.tokens"][1][1])


def decoder(
    architecture: str, vocabulary: dict[str, tuple[int, Any]], n_layer: int = 1, **more: tuple[int, Any]
) -> Made:
    """A causal model with two heads of four columns over one of keys and values."""
    keys = {
        "general.architecture": (STRING, architecture),
        "general.name": (STRING, "made"),
        f"{architecture}.block_count": (U32, n_layer),
        f"{architecture}.context_length": (U32, 64),
        f"{architecture}.embedding_length": (U32, 8),
        f"{architecture}.feed_forward_length": (U32, 16),
        f"{architecture}.attention.head_count": (U32, 2),
        f"{architecture}.attention.head_count_kv": (U32, 1),
        f"{architecture}.attention.layer_norm_rms_epsilon": (F32, 1e-5),
        f"{architecture}.rope.dimension_count": (U32, 4),
        f"{architecture}.rope.freq_base": (F32, 10000.0),
        f"{architecture}.vocab_size": (U32, n_vocab(vocabulary)),
        **{f"{architecture}.{name.replace('__', '.')}": value for name, value in more.items()},
        **vocabulary,
    }
    tensors = {"token_embd.weight": tensor(8, n_vocab(vocabulary)), "output_norm.weight": tensor(8)}
    for layer in range(n_layer):
        tensors |= {
            f"blk.{layer}.attn_norm.weight": tensor(8),
            f"blk.{layer}.attn_q.weight": tensor(8, 8),
            f"blk.{layer}.attn_k.weight": tensor(8, 4),
            f"blk.{layer}.attn_v.weight": tensor(8, 4),
            f"blk.{layer}.attn_output.weight": tensor(8, 8),
            f"blk.{layer}.ffn_norm.weight": tensor(8),
            f"blk.{layer}.ffn_gate.weight": tensor(8, 16),
            f"blk.{layer}.ffn_up.weight": tensor(8, 16),
            f"blk.{layer}.ffn_down.weight": tensor(16, 8),
        }
    return Made(keys, tensors)


def llama(vocabulary: dict[str, tuple[int, Any]] | None = None) -> Made:
    return decoder("llama", vocabulary or spm())


def charsmap(edges: dict[int, int], texts: bytes = b"x\0", n_units: int = 512) -> bytes:
    """A character map whose units are 0 but for `edges` {unit: value}."""
    units = [edges.get(at, 0) for at in range(n_units)]
    return struct.pack(f"<I{n_units}I", 4 * n_units, *units) + texts


def unigram(blob: bytes, item: int = U8) -> Made:
    """A model of tokenizer "t5" with this character map; the array's items are of type `item`."""
    vocabulary = spm() | {
        "tokenizer.ggml.model": (STRING, "t5"),
        "tokenizer.ggml.precompiled_charsmap": (ARRAY, (item, list(blob))),
    }
    return llama(vocabulary)


def qwen2() -> Made:
    made = decoder("qwen2", bpe())
    for part, n in (("q", 8), ("k", 4), ("v", 4)):
        made = made.with_tensor(f"blk.0.attn_{part}.bias", *tensor(n))
    return made


def qwen3() -> Made:
    made = decoder("qwen3", bpe(), attention__key_length=(U32, 4), attention__value_length=(U32, 4))
    return made.with_tensor("blk.0.attn_q_norm.weight", *tensor(4)).with_tensor("blk.0.attn_k_norm.weight", *tensor(4))


def gemma2() -> Made:
    made = decoder(
        "gemma2",
        spm(),
        attention__key_length=(U32, 4),
        attention__value_length=(U32, 4),
        attention__sliding_window=(U32, 32),
        attn_logit_softcapping=(F32, 50.0),
        final_logit_softcapping=(F32, 30.0),
    )
    return made.with_tensor("blk.0.post_attention_norm.weight", *tensor(8)).with_tensor(
        "blk.0.post_ffw_norm.weight", *tensor(8)
    )


def mixture() -> Made:
    """Llama's architecture with four experts, two of them used."""
    made = decoder("llama", spm(), expert_count=(U32, 4), expert_used_count=(U32, 2))
    made = made.without(*(f"blk.0.ffn_{part}.weight" for part in ("gate", "up", "down")))
    made = made.with_tensor("blk.0.ffn_gate_inp.weight", *tensor(8, 4)).with_tensor(
        "blk.0.ffn_down_exps.weight", *tensor(16, 8, 4)
    )
    return made.with_tensor("blk.0.ffn_gate_exps.weight", *tensor(8, 16, 4)).with_tensor(
        "blk.0.ffn_up_exps.weight", *tensor(8, 16, 4)
    )


def bert() -> Made:
    vocabulary = wordpiece()
    keys = {
        "general.architecture": (STRING, "bert"),
        "bert.block_count": (U32, 1),
        "bert.context_length": (U32, 32),
        "bert.embedding_length": (U32, 8),
        "bert.feed_forward_length": (U32, 16),
        "bert.attention.head_count": (U32, 2),
        "bert.attention.layer_norm_epsilon": (F32, 1e-5),
        "bert.attention.causal": (BOOL, False),
        "bert.pooling_type": (U32, 1),
        **vocabulary,
    }
    tensors = {
        "token_embd.weight": tensor(8, n_vocab(vocabulary)),
        "token_types.weight": tensor(8, 2),
        "position_embd.weight": tensor(8, 32),
        "token_embd_norm.weight": tensor(8),
        "token_embd_norm.bias": tensor(8),
    }
    for part, shape in (
        ("attn_q", (8, 8)),
        ("attn_k", (8, 8)),
        ("attn_v", (8, 8)),
        ("attn_output", (8, 8)),
        ("ffn_up", (8, 16)),
        ("ffn_down", (16, 8)),
    ):
        tensors |= {f"blk.0.{part}.weight": tensor(*shape), f"blk.0.{part}.bias": tensor(shape[1])}
    for part in ("attn_output_norm", "layer_output_norm"):
        tensors |= {f"blk.0.{part}.weight": tensor(8), f"blk.0.{part}.bias": tensor(8)}
    return Made(keys, tensors)


MADE = {
    "llama": llama,
    "llama-bpe": lambda: llama(bpe()),
    "qwen2": qwen2,
    "qwen3": qwen3,
    "gemma2": gemma2,
    "mixture": mixture,
    "bert": bert,
}

_INTEGERS = (0, 1, 2, 3, 5, 7, 8, 16, 33, 255, 512, 513, 2**16, 2**31 - 1, 2**31, 2**32 - 1)
_FLOATS = (math.nan, math.inf, -math.inf, -1.0, 0.0, -0.0, 1e-45, 1e38, -1e38)


def spoiled(made: Made) -> Iterator[tuple[str, Made]]:
    """Every key left out, of every other type, and with values at the edges; tensors of other shapes and types, or left
    out."""
    for name, (kind, value) in made.keys.items():
        yield f"without {name}", made.without(name)
        if kind in (U32, F32, BOOL):
            for other in (U8, I8, U16, I16, U32, I32, U64, I64, F32, F64, BOOL):
                if other != kind:
                    yield (
                        f"{name} as type {other}",
                        made.with_key(
                            name,
                            other,
                            float(value) if other in (F32, F64) else bool(value) if other == BOOL else int(value) % 100,
                        ),
                    )
            yield f"{name} as text", made.with_key(name, STRING, "1")
            yield f"{name} as array", made.with_key(name, ARRAY, (kind, [value]))
            yield f"{name} as two", made.with_key(name, ARRAY, (kind, [value, value]))
            yield f"{name} as empty array", made.with_key(name, ARRAY, (kind, []))
        if kind == U32:
            for number in (*_INTEGERS, value + 1, max(value - 1, 0), 2 * value, value // 2):
                if number != value:
                    yield f"{name} = {number}", made.with_key(name, kind, number)
                    yield f"{name} = [{number}]", made.with_key(name, ARRAY, (kind, [number]))
        if kind == F32:
            for number in _FLOATS:
                yield f"{name} = {number}", made.with_key(name, kind, number)
        if kind == STRING:
            for text in (
                "",
                "a",
                "\0",
                "llama",
                "bert",
                "gpt2",
                "t5",
                "rwkv",
                "plamo2",
                "gemma4",
                "none",
                "no_vocab",
                "test",
                "hybriddna",
                "whitespace",
                "mamba",
                "gemma3",
                "tekken",
                "llama-bpe",
                b"\xff\xfe",
            ):
                if text != value:
                    yield f"{name} = {text!r}", made.with_key(name, kind, text)
        if kind == ARRAY:
            item, values = value
            yield f"{name} empty", made.with_key(name, kind, (item, []))
            yield f"{name} cut", made.with_key(name, kind, (item, values[:-1]))
            yield f"{name} of one", made.with_key(name, kind, (item, values[:1]))
            yield f"{name} doubled", made.with_key(name, kind, (item, values * 2))
            yield f"{name} with one more", made.with_key(name, kind, (item, [*values, values[0]]))
            if item == STRING:
                for at in range(0, len(values), max(1, len(values) // 12)):
                    for text in ("", "a", " ", "a\0b", "\u4f60" * 20, b"\xff", "<0x41>", "<0xZZ>", values[-1]):
                        yield (
                            f"{name}[{at}] = {text!r}",
                            made.with_key(name, kind, (item, [*values[:at], text, *values[at + 1 :]])),
                        )
                yield f"{name} as bytes", made.with_key(name, kind, (U8, [1] * len(values)))
            else:
                edges = _FLOATS if item == F32 else (-(2**31), -1, 0, 1, 2, 3, 4, 5, 6, 7, 2**31 - 1)
                for number in edges:
                    yield f"{name} all {number}", made.with_key(name, kind, (item, [number] * len(values)))
                    yield f"{name}[-1] = {number}", made.with_key(name, kind, (item, [*values[:-1], number]))
                for other in (U8, I8, U16, I64, F32, I32, F64):
                    if other != item:
                        yield f"{name} of type {other}", made.with_key(name, kind, (other, [1] * len(values)))
    architecture = made.keys["general.architecture"][1]
    for key, values in _OTHER_KEYS.items():
        for kind, value in values:
            name = key if key.startswith(("general.", "tokenizer.", "split.")) else f"{architecture}.{key}"
            yield f"{name} = {str(value)[:40]}", made.with_key(name, kind, value)
    for name, (shape, kind, values) in made.tensors.items():
        yield f"without {name}", made.without(name)
        for other, n_bytes in ((1, 2), (24, 1), (25, 2), (26, 4), (27, 8), (28, 8), (30, 2), (8, 0), (2, 0), (14, 0)):
            if n_bytes:
                yield f"{name} of type {other}", made.with_tensor(name, shape, other, bytes(n_bytes * math.prod(shape)))
        for changed in (
            (*shape, 1),
            (*shape, 2),
            (shape[0] + 1, *shape[1:]),
            (*shape[:-1], shape[-1] + 1),
            (1,),
            (),
            shape[::-1],
            (0, *shape[1:]),
        ):
            if changed != shape:
                yield f"{name} of shape {changed}", made.with_tensor(name, changed, 0, bytes(4 * math.prod(changed)))
        wide = (32, *shape[1:])
        for other, n_bytes in ((2, 18), (8, 34)):
            yield (
                f"{name} of type {other} and shape {wide}",
                made.with_tensor(name, wide, other, bytes(n_bytes * math.prod(wide) // 32)),
            )
        yield f"{name} all NaN", made.with_tensor(name, shape, kind, b"\xff" * len(values))
    yield "another tensor", made.with_tensor("blk.7.attn_q.weight", *tensor(8, 8))
    yield "a tensor of no model", made.with_tensor("x" * 63, *tensor(8))
    yield "a long name", made.with_tensor("x" * 64, *tensor(8))
    yield "a name with a NUL", made.with_tensor("token_embd.weight\0", *tensor(8))


_OTHER_KEYS: dict[str, tuple[tuple[int, Any], ...]] = {
    "general.alignment": ((U32, 0), (U32, 1), (U32, 3), (U32, 64), (U32, 2**31), (U64, 32), (I32, -32), (F32, 32.0)),
    "general.name": ((U32, 1), (STRING, "x" * 5000), (ARRAY, (STRING, ["a"]))),
    "general.file_type": ((U32, 999), (U32, 2**32 - 1), (STRING, "q")),
    "split.count": ((U16, 2), (U16, 65535), (U32, 2)),
    "pooling_type": tuple((U32, n) for n in (0, 1, 2, 3, 4, 5, 99, 2**31, 2**32 - 1)),
    "attention.causal": ((BOOL, True), (BOOL, False)),
    "attention.key_length": tuple((U32, n) for n in (0, 1, 2, 3, 4, 5, 8, 2**16, 2**31, 2**32 - 1)),
    "attention.value_length": tuple((U32, n) for n in (0, 1, 2, 3, 4, 5, 8, 2**16, 2**31, 2**32 - 1)),
    "attention.key_length_swa": tuple((U32, n) for n in (0, 1, 2, 3, 5, 8, 2**32 - 1)),
    "attention.value_length_swa": tuple((U32, n) for n in (0, 1, 2, 3, 5, 8, 2**32 - 1)),
    "attention.sliding_window": tuple((U32, n) for n in (0, 1, 2**31, 2**32 - 1)),
    "attention.sliding_window_pattern": (
        (U32, 0),
        (U32, 1),
        (U32, 2**32 - 1),
        (ARRAY, (BOOL, [True])),
        (ARRAY, (BOOL, [])),
    ),
    "attention.max_alibi_bias": ((F32, math.nan), (F32, -1.0), (F32, 8.0), (F32, math.inf)),
    "attention.clamp_kqv": ((F32, math.nan), (F32, -1.0), (F32, math.inf)),
    "attention.scale": ((F32, math.nan), (F32, 0.0), (F32, math.inf)),
    "attention.layer_norm_epsilon": ((F32, math.nan), (F32, -1.0)),
    "rope.dimension_count": tuple((U32, n) for n in (0, 1, 2, 3, 6, 8, 2**32 - 1)),
    "rope.dimension_count_swa": tuple((U32, n) for n in (0, 1, 2, 3, 6, 8, 2**32 - 1)),
    "rope.freq_base": tuple((F32, x) for x in (math.nan, 0.0, -1.0, math.inf, 1e-45)),
    "rope.freq_base_swa": tuple((F32, x) for x in (math.nan, 0.0, -1.0, math.inf)),
    "rope.scaling.type": (
        (STRING, "none"),
        (STRING, "yarn"),
        (STRING, "longrope"),
        (STRING, "linear"),
        (STRING, "x"),
        (STRING, ""),
    ),
    "rope.scaling.factor": tuple((F32, x) for x in (math.nan, 0.0, -1.0, math.inf, 1e-45)),
    "rope.scaling.original_context_length": tuple((U32, n) for n in (0, 1, 2**31, 2**32 - 1)),
    "rope.scaling.attn_factor": ((F32, math.nan), (F32, -1.0), (F32, math.inf)),
    "expert_count": tuple((U32, n) for n in (1, 2, 1024, 1025, 2**32 - 1)),
    "expert_used_count": tuple((U32, n) for n in (1, 2, 1024, 1025, 2**32 - 1)),
    "expert_group_count": tuple((U32, n) for n in (1, 2, 3, 2**32 - 1)),
    "expert_group_used_count": tuple((U32, n) for n in (1, 2, 3, 2**32 - 1)),
    "nextn_predict_layers": tuple((U32, n) for n in (1, 2, 2**32 - 1)),
    "embedding_length_out": tuple((U32, n) for n in (0, 1, 9, 2**31, 2**32 - 1)),
    "logit_scale": ((F32, math.nan), (F32, 0.0)),
    "use_parallel_residual": ((BOOL, True),),
    "final_logit_softcapping": ((F32, math.nan), (F32, 0.0), (F32, -1.0)),
    "attn_logit_softcapping": ((F32, math.nan), (F32, 0.0), (F32, -1.0), (F32, math.inf)),
    "classifier.output_labels": ((ARRAY, (STRING, ["a"] * 3)), (ARRAY, (U32, [1]))),
    "tokenizer.ggml.add_bos_token": ((BOOL, True),),
    "tokenizer.ggml.add_eos_token": ((BOOL, True),),
    "tokenizer.ggml.add_sep_token": ((BOOL, True),),
    "tokenizer.ggml.add_space_prefix": ((BOOL, True), (BOOL, False)),
    "tokenizer.ggml.eot_token_id": ((U32, 2**31), (U32, 1), (U32, 2**32 - 1)),
    "tokenizer.ggml.eos_token_ids": ((ARRAY, (I32, [-1, 2**30])),),
    "tokenizer.ggml.token_type_count": tuple((U32, n) for n in (0, 1, 3, 2**31, 2**32 - 1)),
    "tokenizer.ggml.precompiled_charsmap": ((ARRAY, (U8, [0] * 8)), (ARRAY, (U8, [255] * 64)), (ARRAY, (U8, []))),
    "tokenizer.ggml.suppress_tokens": ((ARRAY, (I32, [-1])), (ARRAY, (U8, [1]))),
    "tokenizer.ggml.pre": (
        (STRING, "llama-bpe"),
        (STRING, "tekken"),
        (STRING, "kimi-k2"),
        (STRING, "unknown"),
        (STRING, "gpt-4o"),
    ),
    "tokenizer.chat_template": ((STRING, "{{"), (STRING, "x" * 5000), (U32, 1), (ARRAY, (STRING, ["a"]))),
}
