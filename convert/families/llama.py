"""Llama (LlamaForCausalLM): RMSNorm, rotary positions, grouped-query attention, SwiGLU.

Rows of the q and k projections are reordered: transformers rotates the two halves of a head against each
other, llama.cpp rotates neighbouring pairs. Tied embeddings have no `output.weight`; llama.cpp then reads
`token_embd.weight` for the output.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np

from reclm_lite.convert.families import Rename, require
from reclm_lite.errors import ModelError

ARCHITECTURES = ("LlamaForCausalLM",)
MODEL_TYPE = "llama"
GGUF_ARCH = "llama"
VOCAB = "bpe"


def canonical_name(name: str) -> str | None:
    return None if name.endswith(".rotary_emb.inv_freq") else name


def _head_dim(config: dict[str, Any]) -> int:
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


def _rope(config: dict[str, Any]) -> dict[str, Any]:
    """RoPE settings of either layout: `rope_parameters` (transformers 5) or `rope_theta` + `rope_scaling`."""
    rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    rope.setdefault("rope_theta", config.get("rope_theta", 10000.0))
    rope["rope_type"] = rope.get("rope_type") or rope.get("type") or "default"
    return rope


def hyperparameters(config: dict[str, Any], directory: Path) -> dict[str, Any]:
    del directory
    require(config, "hidden_act", ("silu",), default="silu")
    rope = _rope(config)
    values: dict[str, Any] = {
        "vocab_size": config["vocab_size"],
        "block_count": config["num_hidden_layers"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config.get("num_key_value_heads") or config["num_attention_heads"],
        "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "rope.freq_base": float(rope["rope_theta"]),
        "rope.dimension_count": _head_dim(config),
    }
    if config.get("head_dim"):
        values["attention.key_length"] = values["attention.value_length"] = config["head_dim"]
    if rope["rope_type"] == "linear":
        values["rope.scaling.type"] = "linear"
        values["rope.scaling.factor"] = float(rope["factor"])
    elif rope["rope_type"] not in ("default", "llama3"):  # llama3: a tensor of factors, see extra_tensors
        raise ModelError(
            f"expected rope_type default, linear or llama3 in config.json, found {rope['rope_type']!r}; "
            "cannot be converted"
        )
    return values


def _pairs_from_halves(n_heads: int):
    """Reorders the rows of a projection, head by head: (half, i) -> (i, half)."""

    def permute(weight: np.ndarray) -> np.ndarray:
        # (n_heads * head_dim, ...) -> (n_heads, 2, head_dim / 2, ...) -> swap -> (n_heads * head_dim, ...)
        split = weight.reshape(n_heads, 2, weight.shape[0] // n_heads // 2, *weight.shape[1:])
        return split.swapaxes(1, 2).reshape(weight.shape)

    return permute


def renames(config: dict[str, Any], names: set[str]) -> list[Rename]:
    d_model, d_ff, n_vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    n_heads = config["num_attention_heads"]
    n_kv_heads = config.get("num_key_value_heads") or n_heads
    d_q, d_kv = n_heads * _head_dim(config), n_kv_heads * _head_dim(config)
    q_rows, k_rows = _pairs_from_halves(n_heads), _pairs_from_halves(n_kv_heads)

    rules = [
        Rename("model.embed_tokens.weight", "token_embd.weight", (n_vocab, d_model)),
        Rename("model.norm.weight", "output_norm.weight", (d_model,)),
    ]
    # Some tied checkpoints store the shared matrix twice; the copy is written, as it says the same.
    if not config.get("tie_word_embeddings", False) or "lm_head.weight" in names:
        rules.append(Rename("lm_head.weight", "output.weight", (n_vocab, d_model)))
    for i in range(config["num_hidden_layers"]):
        hf, gg = f"model.layers.{i}", f"blk.{i}"
        rules += [
            Rename(f"{hf}.input_layernorm.weight", f"{gg}.attn_norm.weight", (d_model,)),
            Rename(f"{hf}.self_attn.q_proj.weight", f"{gg}.attn_q.weight", (d_q, d_model), q_rows),
            Rename(f"{hf}.self_attn.k_proj.weight", f"{gg}.attn_k.weight", (d_kv, d_model), k_rows),
            Rename(f"{hf}.self_attn.v_proj.weight", f"{gg}.attn_v.weight", (d_kv, d_model)),
            Rename(f"{hf}.self_attn.o_proj.weight", f"{gg}.attn_output.weight", (d_model, d_q)),
            Rename(f"{hf}.post_attention_layernorm.weight", f"{gg}.ffn_norm.weight", (d_model,)),
            Rename(f"{hf}.mlp.gate_proj.weight", f"{gg}.ffn_gate.weight", (d_ff, d_model)),
            Rename(f"{hf}.mlp.up_proj.weight", f"{gg}.ffn_up.weight", (d_ff, d_model)),
            Rename(f"{hf}.mlp.down_proj.weight", f"{gg}.ffn_down.weight", (d_model, d_ff)),
        ]
        if config.get("attention_bias"):
            rules += [
                Rename(f"{hf}.self_attn.q_proj.bias", f"{gg}.attn_q.bias", (d_q,), q_rows),
                Rename(f"{hf}.self_attn.k_proj.bias", f"{gg}.attn_k.bias", (d_kv,), k_rows),
                Rename(f"{hf}.self_attn.v_proj.bias", f"{gg}.attn_v.bias", (d_kv,)),
                Rename(f"{hf}.self_attn.o_proj.bias", f"{gg}.attn_output.bias", (d_model,)),
            ]
        if config.get("mlp_bias"):
            rules += [
                Rename(f"{hf}.mlp.gate_proj.bias", f"{gg}.ffn_gate.bias", (d_ff,)),
                Rename(f"{hf}.mlp.up_proj.bias", f"{gg}.ffn_up.bias", (d_ff,)),
                Rename(f"{hf}.mlp.down_proj.bias", f"{gg}.ffn_down.bias", (d_model,)),
            ]
    return rules


def extra_tensors(config: dict[str, Any]) -> dict[str, np.ndarray]:
    """For rope_type llama3: `rope_freqs.weight`, float32 (head_dim / 2,), by which each frequency is divided."""
    rope = _rope(config)
    if rope["rope_type"] != "llama3":
        return {}
    factor, low, high = rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"]
    n_ctx_old = rope["original_max_position_embeddings"]
    dim = _head_dim(config)
    exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    frequencies = np.float32(1.0) / np.float32(rope["rope_theta"]) ** exponents
    factors = []
    for frequency in frequencies:
        wavelength = 2 * math.pi / float(frequency)
        if wavelength < n_ctx_old / high:
            factors.append(1.0)
        elif wavelength > n_ctx_old / low:
            factors.append(factor)
        else:
            smooth = (n_ctx_old / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return {"rope_freqs.weight": np.array(factors, dtype=np.float32)}
