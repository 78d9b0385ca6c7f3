"""Gemma 3, text only (Gemma3ForCausalLM): five of six layers with a sliding window and a RoPE base of their own.

RoPE of the layers without a window: default or linear; of those with: default. Checkpoints that also read images
(Gemma3ForConditionalGeneration), Gemma 3n and EmbeddingGemma are other architectures and are not converted.
"""

from pathlib import Path
from typing import Any

from reclm_lite.convert.families import Rename, _decoder, _gemma, number, require, settings_of, size
from reclm_lite.convert.families._decoder import Sizes, canonical_name
from reclm_lite.convert.families._rope import rope_metadata, rope_of
from reclm_lite.convert.families.qwen2 import extra_tensors
from reclm_lite.errors import ModelError

__all__ = ["canonical_name", "extra_tensors", "hyperparameters", "renames"]

ARCHITECTURES = ("Gemma3ForCausalLM",)
MODEL_TYPE = "gemma3_text"
GGUF_ARCH = "gemma3"
VOCAB = ("sentencepiece", "bpe")

_LARGEST, _PATTERN = 62, 6  # layers of the 27B model; each sixth layer has no window
_CAP = "final_logit_softcapping"
_THETA, _THETA_WINDOW = 1_000_000.0, 10_000.0


def _ropes(config: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """RoPE of the layers without and with a window: per layer type (transformers 5), or in the older flat keys."""
    nested = settings_of(config, "rope_parameters")
    if not nested.keys() <= {"full_attention", "sliding_attention"}:
        raise ModelError(
            "expected rope_parameters of full_attention and sliding_attention in config.json, found "
            f"{sorted(nested)}; save the checkpoint again with transformers"
        )
    full = settings_of(nested, "full_attention") | settings_of(config, "rope_scaling")
    full.setdefault("rope_theta", config.get("rope_theta") or _THETA)
    sliding = dict(settings_of(nested, "sliding_attention"))
    sliding.setdefault("rope_theta", config.get("rope_local_base_freq") or _THETA_WINDOW)
    return (
        rope_of({"rope_parameters": full}, ("default", "linear")),
        rope_of({"rope_parameters": sliding}, ("default",)),
    )


def _with_layer_types(config: dict[str, Any], sizes: Sizes) -> dict[str, Any]:
    """Older files say only how many layers make a turn."""
    turn = size(config, "sliding_window_pattern", _PATTERN)
    kinds = ["sliding_attention" if (i + 1) % turn else "full_attention" for i in range(sizes.n_layers)]
    return {"layer_types": kinds} | {key: value for key, value in config.items() if value is not None}


def hyperparameters(config: dict[str, Any], directory: Path) -> dict[str, Any]:
    del directory
    sizes = _gemma.sizes_of(config)
    _gemma.check(config, sizes, _LARGEST)
    require(config, "attn_logit_softcapping", (None,))
    full, sliding = _ropes(config)
    cap = {} if config.get(_CAP) is None else {_CAP: number(config, _CAP)}
    return {
        **_decoder.metadata({"max_position_embeddings": 131_072} | config, sizes),
        **_decoder.head_sizes(sizes),
        **_gemma.window_metadata(_with_layer_types(config, sizes), sizes, _PATTERN),
        **rope_metadata(full),
        "rope.freq_base_swa": rope_metadata(sliding)["rope.freq_base"],
        **cap,
    }


def renames(config: dict[str, Any], names: set[str]) -> list[Rename]:
    return _gemma.renames(config, names, head_norms=True)
