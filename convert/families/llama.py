"""Llama (LlamaForCausalLM): RMSNorm, rotary positions, grouped-query attention, SwiGLU; also what copies it.

Rows of the q and k projections are reordered (see `pairs_from_halves`). Biases may be on attention, on the
feed-forward network, or on both. RoPE: default, linear, llama3, yarn.
"""

from pathlib import Path
from typing import Any

import numpy as np

from reclm_lite.convert.families import Rename, _decoder, flag, require
from reclm_lite.convert.families._decoder import canonical_name
from reclm_lite.convert.families._rope import llama3_factors, rope_metadata, rope_of

__all__ = ["canonical_name", "extra_tensors", "hyperparameters", "renames"]

ARCHITECTURES = ("LlamaForCausalLM",)
MODEL_TYPE = "llama"
GGUF_ARCH = "llama"
VOCAB = ("sentencepiece", "bpe")

_ROPE_TYPES = ("default", "linear", "llama3", "yarn")


def hyperparameters(config: dict[str, Any], directory: Path) -> dict[str, Any]:
    del directory
    require(config, "hidden_act", ("silu", "swish"), default="silu")
    sizes = _decoder.sizes_of(config)
    return {
        "vocab_size": sizes.n_vocab,
        **_decoder.metadata(config, sizes),
        **rope_metadata(rope_of(config, _ROPE_TYPES)),
        "rope.dimension_count": sizes.head_dim,
        **_decoder.head_sizes(sizes),
    }


def renames(config: dict[str, Any], names: set[str]) -> list[Rename]:
    sizes = _decoder.sizes_of(config)
    q_rows, k_rows = _decoder.pairs_from_halves(sizes.n_heads), _decoder.pairs_from_halves(sizes.n_kv_heads)
    biases = ("q", "k", "v", "o") if flag(config, "attention_bias") else ()
    rules = _decoder.embeddings(sizes, names)
    for i in range(sizes.n_layers):
        rules += _decoder.norms(i, _decoder.PRE_NORMS, sizes.d_model)
        rules += _decoder.attention(i, sizes, biases=biases, q_rows=q_rows, k_rows=k_rows)
        rules += _decoder.feed_forward(i, sizes, biases=flag(config, "mlp_bias"))
    return rules


def extra_tensors(config: dict[str, Any]) -> dict[str, np.ndarray]:
    return llama3_factors(rope_of(config, _ROPE_TYPES), _decoder.sizes_of(config).head_dim)
