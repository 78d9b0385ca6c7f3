"""Mistral (MistralForCausalLM): Llama without biases, in version 0.1 with a sliding window.

llama.cpp runs it as Llama, and Llama has no window there: the context written ends where the window does (4,096
tokens for version 0.1), up to which both compute the same. Versions 0.2 and later have no window.
"""

from pathlib import Path
from typing import Any

import numpy as np

from reclm_lite.convert.families import Rename, _decoder, llama, size
from reclm_lite.convert.families._decoder import canonical_name

__all__ = ["canonical_name", "extra_tensors", "hyperparameters", "renames"]

ARCHITECTURES = ("MistralForCausalLM",)
MODEL_TYPE = "mistral"
GGUF_ARCH = "llama"
VOCAB = ("sentencepiece", "bpe")

_N_KV_HEADS, _WINDOW = 8, 4096  # where config.json does not say; null says no window


def _as_llama(config: dict[str, Any]) -> dict[str, Any]:
    n_kv_heads = config.get("num_key_value_heads", _N_KV_HEADS)
    return config | {"num_key_value_heads": n_kv_heads, "attention_bias": False, "mlp_bias": False}


def hyperparameters(config: dict[str, Any], directory: Path) -> dict[str, Any]:
    values = llama.hyperparameters(_as_llama(config), directory)
    has_window = config.get("sliding_window", _WINDOW) is not None
    window = size(config, "sliding_window", _WINDOW) if has_window else None
    return values | {"context_length": _decoder.within_window(values["context_length"], window)}


def renames(config: dict[str, Any], names: set[str]) -> list[Rename]:
    return llama.renames(_as_llama(config), names)


def extra_tensors(config: dict[str, Any]) -> dict[str, np.ndarray]:
    return llama.extra_tensors(_as_llama(config))
