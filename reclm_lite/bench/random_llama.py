"""A random Llama checkpoint with a LoRA adapter, written tensor by tensor: `reclm bench export` exports it.

The weights are random, the shapes those of a 1.1-billion-parameter model. Left out: training; the tokenizer knows
single bytes and three special tokens, unless another is written in its place.
"""

import json
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SPECIAL = ("<|begin|>", "<|end|>", "<|pad|>")
# Weights(rng, name, shape): a tensor's rows in blocks, float32.
Weights = Callable[[np.random.Generator, str, tuple[int, ...]], Iterator[np.ndarray]]


@dataclass(frozen=True)
class Shape:
    """The sizes of a Llama and the rank of its adapter."""

    hidden: int = 2048
    feed_forward: int = 5632
    n_layers: int = 22
    n_heads: int = 32
    n_kv_heads: int = 4
    n_vocab: int = 32_000
    rank: int = 16

    def projections(self) -> dict[str, tuple[int, int]]:
        """The adapted matrices of a layer: {name: (rows, columns)}."""
        d_kv = self.hidden // self.n_heads * self.n_kv_heads
        return {
            "self_attn.q_proj": (self.hidden, self.hidden),
            "self_attn.k_proj": (d_kv, self.hidden),
            "self_attn.v_proj": (d_kv, self.hidden),
            "self_attn.o_proj": (self.hidden, self.hidden),
            "mlp.gate_proj": (self.feed_forward, self.hidden),
            "mlp.up_proj": (self.feed_forward, self.hidden),
            "mlp.down_proj": (self.hidden, self.feed_forward),
        }

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of the checkpoint: {name: shape}."""
        shapes: dict[str, tuple[int, ...]] = {
            "model.embed_tokens.weight": (self.n_vocab, self.hidden),
            "model.norm.weight": (self.hidden,),
            "lm_head.weight": (self.n_vocab, self.hidden),
        }
        for layer in range(self.n_layers):
            prefix = f"model.layers.{layer}"
            shapes |= {f"{prefix}.{name}.weight": shape for name, shape in self.projections().items()}
            shapes |= {f"{prefix}.{norm}_layernorm.weight": (self.hidden,) for norm in ("input", "post_attention")}
        return shapes

    @property
    def n_params(self) -> int:
        return sum(int(np.prod(shape)) for shape in self.tensors().values())


QUICK = Shape(hidden=128, feed_forward=256, n_layers=2, n_heads=4, n_kv_heads=2, n_vocab=512, rank=4)


def write_checkpoint(
    directory: Path,
    shape: Shape,
    seed: int = 0,
    *,
    write_tokenizer: Callable[[Path], None] | None = None,
    weights: Weights | None = None,
) -> Path:
    """The checkpoint, float16, in `directory`; returns it. write_tokenizer(directory) writes the tokenizer's files."""
    directory.mkdir(parents=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.feed_forward,
        "num_hidden_layers": shape.n_layers,
        "num_attention_heads": shape.n_heads,
        "num_key_value_heads": shape.n_kv_heads,
        "vocab_size": shape.n_vocab,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
        "torch_dtype": "float16",
    }
    _write_json(directory / "config.json", config)
    (write_tokenizer or _write_tokenizer)(directory)
    _write_safetensors(directory / "model.safetensors", shape.tensors(), "F16", seed, weights or _random_rows)
    return directory


def write_adapter(directory: Path, shape: Shape, base: Path, seed: int = 1) -> Path:
    """A float32 LoRA adapter of all projections, as peft saves one, in `directory`; returns it."""
    directory.mkdir(parents=True)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base),
        "r": shape.rank,
        "lora_alpha": 2 * shape.rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": sorted(name.split(".")[1] for name in shape.projections()),
    }
    _write_json(directory / "adapter_config.json", config)
    tensors = {}
    for layer in range(shape.n_layers):
        for name, (n_rows, n_columns) in shape.projections().items():
            prefix = f"base_model.model.model.layers.{layer}.{name}"
            tensors[f"{prefix}.lora_A.weight"] = (shape.rank, n_columns)
            tensors[f"{prefix}.lora_B.weight"] = (n_rows, shape.rank)
    _write_safetensors(directory / "adapter_model.safetensors", tensors, "F32", seed, _random_rows)
    return directory


def _write_json(path: Path, document: object) -> None:
    path.write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")


def _write_safetensors(path: Path, shapes: dict[str, tuple[int, ...]], dtype: str, seed: int, weights: Weights) -> None:
    n_bytes = 2 if dtype == "F16" else 4
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in shapes.items():
        start, end = end, end + n_bytes * int(np.prod(shape))
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    rng = np.random.default_rng(seed)
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for name, shape in shapes.items():
            for block in weights(rng, name, shape):
                stream.write(block.astype("<f2" if dtype == "F16" else "<f4").tobytes())


def _random_rows(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    """float32 normal with deviation 0.02; around 1 for vectors, which are the scales of norms."""
    del name
    if len(shape) == 1:
        yield 1 + 0.02 * rng.standard_normal(shape, dtype=np.float32)
        return
    yield from normal_rows(rng, shape, 0.02)


def normal_rows(
    rng: np.random.Generator, shape: tuple[int, int], deviation: float, at_once: int = 1 << 22
) -> Iterator[np.ndarray]:
    """float32 normal rows in blocks of about `at_once` numbers."""
    n_rows = max(1, at_once // shape[1])
    for first in range(0, shape[0], n_rows):
        yield deviation * rng.standard_normal((min(n_rows, shape[0] - first), shape[1]), dtype=np.float32)


def _write_tokenizer(directory: Path) -> None:
    """Byte-level BPE of GPT-2's form with one merge: what a byte is written as follows its bytes_to_unicode."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]
    tokens = [*SPECIAL, *letters, "th"]
    special = [
        {
            "id": i,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for i, token in enumerate(SPECIAL)
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": [["t", "h"]],
        },
    }
    _write_json(directory / "tokenizer.json", document)
    write_tokenizer_config(directory)


def write_tokenizer_config(directory: Path) -> None:
    """Which of the special tokens begins, ends and pads a text."""
    begin, end, pad = SPECIAL
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": begin, "eos_token": end, "pad_token": pad}
    _write_json(directory / "tokenizer_config.json", settings)
