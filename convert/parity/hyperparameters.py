"""Hyperparameters of a GGUF file against the checkpoint's configuration, by value.

Logits show most of them, but an epsilon ten times too small, or a context length, changes nothing that prompts see.
The configuration is transformers' own reading of config.json, with its defaults, where it is the reference.
"""

import math
from typing import Any

# GGUF key behind the architecture's prefix -> where the configuration has it; the first that is there counts.
_KEYS: dict[str, tuple[str, ...]] = {
    "vocab_size": ("vocab_size",),
    "block_count": ("num_hidden_layers",),
    "embedding_length": ("hidden_size",),
    "feed_forward_length": ("intermediate_size",),
    "attention.head_count": ("num_attention_heads",),
    "attention.head_count_kv": ("num_key_value_heads",),
    "attention.key_length": ("head_dim",),
    "attention.value_length": ("head_dim",),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps",),
    "attention.layer_norm_epsilon": ("layer_norm_eps",),
    "attention.sliding_window": ("sliding_window",),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "final_logit_softcapping": ("final_logit_softcapping",),
    "rope.dimension_count": ("head_dim",),
    "rope.freq_base": ("rope_parameters.full_attention.rope_theta", "rope_parameters.rope_theta", "rope_theta"),
    "rope.freq_base_swa": ("rope_parameters.sliding_attention.rope_theta", "rope_local_base_freq"),
}


def _value(config: dict[str, Any], path: str) -> Any:
    found: Any = config
    for key in path.split("."):
        found = found.get(key) if isinstance(found, dict) else None
    return found


def compare_hyperparameters(metadata: dict[str, Any], architecture: str, config: dict[str, Any]) -> list[str]:
    """Sentences about values of a GGUF file that are not the configuration's; what either does not say is passed
    over."""
    problems = []
    for key, paths in _KEYS.items():
        found = metadata.get(f"{architecture}.{key}")
        expected = next((value for path in paths if (value := _value(config, path)) is not None), None)
        both = isinstance(found, int | float) and isinstance(expected, int | float)
        if both and not math.isclose(found, expected, rel_tol=1e-6):
            problems.append(f"expected {key} {expected:g} as in the checkpoint's configuration, found {found:g}")
    found, n_context = metadata.get(f"{architecture}.context_length"), config.get("max_position_embeddings")
    # Where llama.cpp lacks a model's sliding window, the context ends where the window does.
    if n_context and found not in (n_context, config.get("sliding_window")):
        problems.append(f"expected a context of {n_context} tokens as in the checkpoint's configuration, found {found}")
    return problems
