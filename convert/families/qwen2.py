"""Qwen 2 and 2.5 (Qwen2ForCausalLM): Llama with biases on q, k and v, rows not reordered.

llama.cpp rotates halves here, as transformers does. It has no sliding window for this architecture: where some
layers have one (use_sliding_window), the context written ends where the window does. RoPE: default, linear, yarn.
"""

from pathlib import Path
from typing import Any

import numpy as np

from reclm_lite.convert.families import Rename, _decoder, flag, n_layers_of, require, shown, size, sliding_layers
from reclm_lite.convert.families._decoder import Sizes, canonical_name
from reclm_lite.convert.families._rope import rope_metadata, rope_of
from reclm_lite.errors import ModelError

__all__ = ["canonical_name", "extra_tensors", "hyperparameters", "renames", "sliding_window"]

ARCHITECTURES = ("Qwen2ForCausalLM",)
MODEL_TYPE = "qwen2"
GGUF_ARCH = "qwen2"
VOCAB = ("bpe",)

ROPE_TYPES = ("default", "linear", "yarn")
_MAX_WINDOW_LAYERS, _WINDOW = 28, 4096  # where config.json does not say


def sliding_window(config: dict[str, Any]) -> int | None:
    """Tokens that the layers with a window see; None if no layer has one."""
    if not flag(config, "use_sliding_window"):
        return None
    n_layers = n_layers_of(config)
    slides = sliding_layers(config, n_layers)
    if slides is None:
        n_full = config.get("max_window_layers", _MAX_WINDOW_LAYERS)
        if type(n_full) is not int:
            raise ModelError(
                f"expected a whole number as max_window_layers in config.json, found {shown(n_full)}; copy it again"
            )
        slides = [i >= n_full for i in range(n_layers)]
    if not any(slides) or config.get("sliding_window", _WINDOW) is None:
        return None
    return size(config, "sliding_window", _WINDOW)


def _sizes(config: dict[str, Any]) -> Sizes:
    sizes = _decoder.sizes_of(config)
    if sizes.d_q != sizes.d_model:
        raise ModelError(
            f"expected num_attention_heads x head_dim to be hidden_size {sizes.d_model} in config.json, found "
            f"{sizes.n_heads} x {sizes.head_dim}; llama.cpp has no other Qwen2, so it cannot be converted"
        )
    return sizes


def hyperparameters(config: dict[str, Any], directory: Path) -> dict[str, Any]:
    del directory
    require(config, "hidden_act", ("silu", "swish"), default="silu")
    values = _decoder.metadata(config, _sizes(config)) | rope_metadata(rope_of(config, ROPE_TYPES))
    return values | {"context_length": _decoder.within_window(values["context_length"], sliding_window(config))}


def renames(config: dict[str, Any], names: set[str]) -> list[Rename]:
    sizes = _sizes(config)
    rules = _decoder.embeddings(sizes, names)
    for i in range(sizes.n_layers):
        rules += _decoder.norms(i, _decoder.PRE_NORMS, sizes.d_model)
        rules += _decoder.attention(i, sizes, biases=("q", "k", "v"))
        rules += _decoder.feed_forward(i, sizes)
    return rules


def extra_tensors(config: dict[str, Any]) -> dict[str, np.ndarray]:
    del config
    return {}
