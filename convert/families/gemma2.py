"""Gemma 2 (Gemma2ForCausalLM): every second layer with a sliding window, scores and logits softly capped.

Output and input embeddings are one matrix in llama.cpp: a checkpoint whose embeddings are not tied is refused, a
stored copy of them is left out.
"""

from pathlib import Path
from typing import Any

from reclm_lite.convert.families import Rename, _decoder, _gemma, flag, number
from reclm_lite.convert.families._rope import rope_metadata, rope_of
from reclm_lite.convert.families.qwen2 import extra_tensors
from reclm_lite.errors import ModelError

__all__ = ["canonical_name", "extra_tensors", "hyperparameters", "renames"]

ARCHITECTURES = ("Gemma2ForCausalLM",)
MODEL_TYPE = "gemma2"
GGUF_ARCH = "gemma2"
VOCAB = ("sentencepiece",)

_LARGEST, _PATTERN = 46, 2  # layers of the 27B model; each second layer has no window
_THETA = 10000.0  # llama.cpp's default too
_CAPS = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}  # where config.json does not say


def canonical_name(name: str) -> str | None:
    return None if name == "lm_head.weight" else _decoder.canonical_name(name)


def _cap(config: dict[str, Any], key: str) -> float:
    if config.get(key, _CAPS[key]) is None:
        raise ModelError(
            f"expected {key} above 0 in config.json, found none; llama.cpp always caps in Gemma 2, so this "
            "checkpoint cannot be converted"
        )
    return number(config, key, _CAPS[key])


def hyperparameters(config: dict[str, Any], directory: Path) -> dict[str, Any]:
    del directory
    sizes = _gemma.sizes_of(config)
    _gemma.check(config, sizes, _LARGEST)
    rope = rope_metadata(rope_of(config, ("default",)))
    # Without any window llama.cpp would still assume its own turn.
    windows = _gemma.window_metadata(config, sizes, _PATTERN)
    if not windows:
        raise ModelError("expected a sliding_attention in layer_types of config.json, found none; cannot be converted")
    return {
        **_decoder.metadata(config, sizes),
        **_decoder.head_sizes(sizes),
        **windows,
        **{key: _cap(config, key) for key in _CAPS},
        **(rope if rope["rope.freq_base"] != _THETA else {}),
    }


def renames(config: dict[str, Any], names: set[str]) -> list[Rename]:
    if not flag(config, "tie_word_embeddings", True):
        raise ModelError(
            "expected tied embeddings (tie_word_embeddings true in config.json, and no adapter that changes one of "
            "the two "
            "only), found an output layer of its own; llama.cpp has none in Gemma 2: train the adapter without "
            "embed_tokens "
            "and lm_head, or both as one (peft: ensure_weight_tying=True)"
        )
    return _gemma.renames(config, names, head_norms=False)
