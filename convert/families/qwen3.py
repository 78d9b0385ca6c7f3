"""Qwen 3 (Qwen3ForCausalLM, dense): Qwen 2 without biases, a norm on each head's q and k, head_dim of its own.

attention_bias is refused: it puts a bias on the output projection too, for which llama.cpp has no tensor here.
"""

from pathlib import Path
from typing import Any

from reclm_lite.convert.families import Rename, _decoder, require
from reclm_lite.convert.families._decoder import Sizes, canonical_name
from reclm_lite.convert.families._rope import rope_metadata, rope_of
from reclm_lite.convert.families.qwen2 import ROPE_TYPES, extra_tensors, sliding_window

__all__ = ["canonical_name", "extra_tensors", "hyperparameters", "renames"]

ARCHITECTURES = ("Qwen3ForCausalLM",)
MODEL_TYPE = "qwen3"
GGUF_ARCH = "qwen3"
VOCAB = ("bpe",)

_HEAD_DIM = 128  # where config.json does not say


def _sizes(config: dict[str, Any]) -> Sizes:
    return _decoder.sizes_of(config, head_dim=_HEAD_DIM)


def hyperparameters(config: dict[str, Any], directory: Path) -> dict[str, Any]:
    del directory
    require(config, "hidden_act", ("silu", "swish"), default="silu")
    require(config, "attention_bias", (False,), default=False)
    sizes = _sizes(config)
    values = _decoder.metadata(config, sizes) | _decoder.head_sizes(sizes) | rope_metadata(rope_of(config, ROPE_TYPES))
    return values | {"context_length": _decoder.within_window(values["context_length"], sliding_window(config))}


def renames(config: dict[str, Any], names: set[str]) -> list[Rename]:
    sizes = _sizes(config)
    rules = _decoder.embeddings(sizes, names)
    for i in range(sizes.n_layers):
        rules += _decoder.norms(i, _decoder.PRE_NORMS, sizes.d_model)
        rules += _decoder.norms(
            i, {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}, sizes.head_dim
        )
        rules += _decoder.attention(i, sizes)
        rules += _decoder.feed_forward(i, sizes)
    return rules
