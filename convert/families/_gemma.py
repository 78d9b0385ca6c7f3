"""What Gemma 2 and 3 share: norms before and after each half of a layer, windows in turn, a fixed attention scale.

llama.cpp computes the rest itself and reads no setting for it: embeddings times sqrt(hidden_size), tanh-GELU,
scores divided by sqrt(head_dim), or by sqrt(hidden_size / heads) in the largest model, told by its layers.
"""

from typing import Any

from reclm_lite.convert.families import Rename, _decoder, require, size, sliding_layers
from reclm_lite.convert.families._decoder import Sizes, plus_one
from reclm_lite.errors import ModelError

HEAD_DIM, N_KV_HEADS, WINDOW = 256, 4, 4096  # where config.json does not say


def sizes_of(config: dict[str, Any]) -> Sizes:
    return _decoder.sizes_of(config, head_dim=HEAD_DIM, n_kv_heads=N_KV_HEADS, tied=True)


def check(config: dict[str, Any], sizes: Sizes, n_layers_of_largest: int) -> None:
    """Refuses what llama.cpp would compute otherwise in both versions."""
    # Older files have hidden_act too; transformers reads this one.
    require(config, "hidden_activation", ("gelu_pytorch_tanh",), default="gelu_pytorch_tanh")
    require(config, "attention_bias", (False,), default=False)
    scale = sizes.head_dim if sizes.n_layers != n_layers_of_largest else sizes.d_model // sizes.n_heads
    require(config, "query_pre_attn_scalar", (scale,), default=256)


def window_metadata(config: dict[str, Any], sizes: Sizes, pattern: int) -> dict[str, Any]:
    """Which layers have the window: llama.cpp's own turn (each `pattern`-th layer without), or a list of all."""
    usual = [bool((i + 1) % pattern) for i in range(sizes.n_layers)]
    slides = sliding_layers(config, sizes.n_layers) or usual
    if not any(slides):
        return {}
    if config.get("sliding_window", WINDOW) is None:
        raise ModelError("expected the sliding_window of its layers in config.json, found null; copy config.json again")
    window = size(config, "sliding_window", WINDOW)
    values: dict[str, Any] = {"attention.sliding_window": window}
    if slides != usual:
        values["attention.sliding_window_pattern"] = slides
    return values


def renames(config: dict[str, Any], names: set[str], *, head_norms: bool) -> list[Rename]:
    """`head_norms`: a norm on each head's q and k (Gemma 3)."""
    sizes = sizes_of(config)
    layer_norms = {
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "post_attention_norm",
        "pre_feedforward_layernorm": "ffn_norm",
        "post_feedforward_layernorm": "post_ffw_norm",
    }
    rules = _decoder.embeddings(sizes, names, norm=plus_one)
    for i in range(sizes.n_layers):
        rules += _decoder.norms(i, layer_norms, sizes.d_model, plus_one)
        if head_norms:
            q_and_k = {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}
            rules += _decoder.norms(i, q_and_k, sizes.head_dim, plus_one)
        rules += _decoder.attention(i, sizes)
        rules += _decoder.feed_forward(i, sizes)
    return rules
