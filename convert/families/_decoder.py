"""What the decoders share: sizes, metadata and the renames of embeddings, attention and feed-forward layers.

Names follow transformers on the left (`model.layers.0.self_attn.q_proj`) and llama.cpp on the right
(`blk.0.attn_q`). Shapes are row-major: a projection is (d_out, d_in).
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from reclm_lite.convert.families import Rename, flag, n_layers_of, number, size
from reclm_lite.errors import ModelError

logger = logging.getLogger(__name__)

_LARGEST_HEAD = 1 << 16  # far beyond any model; RoPE factors are computed for each item

Transform = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Sizes:
    """A decoder's sizes; d_q and d_kv are those of all heads together."""

    n_vocab: int
    d_model: int
    d_ff: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    tied: bool  # one matrix for input and output embeddings

    @property
    def d_q(self) -> int:
        return self.n_heads * self.head_dim

    @property
    def d_kv(self) -> int:
        return self.n_kv_heads * self.head_dim


def sizes_of(
    config: dict[str, Any], *, head_dim: int | None = None, n_kv_heads: int | None = None, tied: bool = False
) -> Sizes:
    """Sizes from config.json; the arguments are what the family assumes where it says nothing."""
    d_model, n_heads = size(config, "hidden_size"), size(config, "num_attention_heads")
    sizes = Sizes(
        n_vocab=size(config, "vocab_size"),
        d_model=d_model,
        d_ff=size(config, "intermediate_size"),
        n_layers=n_layers_of(config),
        n_heads=n_heads,
        n_kv_heads=size(config, "num_key_value_heads", n_kv_heads or n_heads),
        head_dim=size(config, "head_dim", head_dim or d_model // n_heads, at_most=_LARGEST_HEAD),
        tied=flag(config, "tie_word_embeddings", tied),
    )
    if n_heads % sizes.n_kv_heads or sizes.head_dim % 2:
        raise ModelError(
            "expected num_attention_heads to be a multiple of num_key_value_heads and head_dim to be even in "
            "config.json, "
            f"found {n_heads}, {sizes.n_kv_heads} and {sizes.head_dim}; copy config.json again"
        )
    return sizes


def canonical_name(name: str) -> str | None:
    """Frequencies are computed, not read: old checkpoints store them per layer."""
    return None if name.endswith(".rotary_emb.inv_freq") else name


def metadata(config: dict[str, Any], sizes: Sizes) -> dict[str, Any]:
    """What every decoder's metadata have, but for RoPE."""
    return {
        "block_count": sizes.n_layers,
        "context_length": size(config, "max_position_embeddings"),
        "embedding_length": sizes.d_model,
        "feed_forward_length": sizes.d_ff,
        "attention.head_count": sizes.n_heads,
        "attention.head_count_kv": sizes.n_kv_heads,
        "attention.layer_norm_rms_epsilon": number(config, "rms_norm_eps", 1e-6),
    }


def head_sizes(sizes: Sizes) -> dict[str, int]:
    return {"attention.key_length": sizes.head_dim, "attention.value_length": sizes.head_dim}


def within_window(n_ctx: int, window: int | None) -> int:
    """The context length to write for a model with a sliding window that llama.cpp does not have.

    Up to `window` tokens the window hides nothing and full attention is the same computation, so the model is
    converted with a context that ends there.
    """
    if window is None or window >= n_ctx:
        return n_ctx
    logger.warning(
        "context length limited to %d tokens, not %d: beyond them the model attends through a sliding window, "
        "which llama.cpp does not have for this architecture",
        window,
        n_ctx,
    )
    return window


def embeddings(sizes: Sizes, names: set[str], norm: Transform | None = None) -> list[Rename]:
    """Input and output embeddings and the last norm. A tied model has no `output.weight`."""
    rules = [
        Rename("model.embed_tokens.weight", "token_embd.weight", (sizes.n_vocab, sizes.d_model)),
        Rename("model.norm.weight", "output_norm.weight", (sizes.d_model,), norm),
    ]
    # Some tied checkpoints store the shared matrix twice; the copy is written, as it says the same.
    if not sizes.tied or "lm_head.weight" in names:
        rules.append(Rename("lm_head.weight", "output.weight", (sizes.n_vocab, sizes.d_model)))
    return rules


def attention(
    layer: int,
    sizes: Sizes,
    *,
    biases: tuple[str, ...] = (),
    q_rows: Transform | None = None,
    k_rows: Transform | None = None,
) -> list[Rename]:
    """The four projections of a layer; `biases` names those of q, k, v, o that have one."""
    shapes = {
        "q": ("attn_q", (sizes.d_q, sizes.d_model), q_rows),
        "k": ("attn_k", (sizes.d_kv, sizes.d_model), k_rows),
        "v": ("attn_v", (sizes.d_kv, sizes.d_model), None),
        "o": ("attn_output", (sizes.d_model, sizes.d_q), None),
    }
    rules = []
    for key, (target, shape, rows) in shapes.items():
        hf, gg = f"model.layers.{layer}.self_attn.{key}_proj", f"blk.{layer}.{target}"
        rules.append(Rename(f"{hf}.weight", f"{gg}.weight", shape, rows))
        if key in biases:
            rules.append(Rename(f"{hf}.bias", f"{gg}.bias", shape[:1], rows))
    return rules


def feed_forward(layer: int, sizes: Sizes, *, biases: bool = False) -> list[Rename]:
    """The gated feed-forward network of a layer."""
    shapes = {
        "gate": (sizes.d_ff, sizes.d_model),
        "up": (sizes.d_ff, sizes.d_model),
        "down": (sizes.d_model, sizes.d_ff),
    }
    rules = []
    for key, shape in shapes.items():
        hf, gg = f"model.layers.{layer}.mlp.{key}_proj", f"blk.{layer}.ffn_{key}"
        rules.append(Rename(f"{hf}.weight", f"{gg}.weight", shape))
        if biases:
            rules.append(Rename(f"{hf}.bias", f"{gg}.bias", shape[:1]))
    return rules


# The two norms of a layer that has them before attention and before the feed-forward net only.
PRE_NORMS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}


def norms(layer: int, targets: dict[str, str], dim: int, transform: Transform | None = None) -> list[Rename]:
    """Norms of a layer, `{"input_layernorm": "attn_norm"}`, each (dim,)."""
    return [
        Rename(f"model.layers.{layer}.{hf}.weight", f"blk.{layer}.{gg}.weight", (dim,), transform)
        for hf, gg in targets.items()
    ]


def pairs_from_halves(n_heads: int) -> Transform:
    """Reorders the rows of a projection or its bias, head by head: (half, i) -> (i, half).

    transformers rotates the two halves of a head against each other; llama.cpp, for Llama's architecture,
    neighboring pairs.
    """

    def permute(weight: np.ndarray) -> np.ndarray:
        # (n_heads * head_dim, ...) -> (n_heads, 2, head_dim / 2, ...) -> swap -> (n_heads * head_dim, ...)
        split = weight.reshape(n_heads, 2, weight.shape[0] // n_heads // 2, *weight.shape[1:])
        return split.swapaxes(1, 2).reshape(weight.shape)

    return permute


def plus_one(weight: np.ndarray) -> np.ndarray:
    """Gemma's norms scale by 1 + weight, in float32 whatever the weight is stored in; llama.cpp's by weight."""
    return weight.astype(np.float32) + np.float32(1)
