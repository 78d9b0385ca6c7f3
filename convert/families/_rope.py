"""Rotary positions: config.json's settings to llama.cpp's metadata, for the types both compute alike.

    default   nothing but the base
    linear    positions divided by a factor
    llama3    each frequency divided by its own factor, a tensor (`rope_freqs.weight`); llama.cpp: Llama only
    yarn      NTK-by-parts interpolation (Peng et al., 2023, arXiv:2309.00071)

Left out: dynamic and longrope, whose frequencies depend on the length of the text. Formulas follow
transformers' modeling_rope_utils.py and llama.cpp's ggml_rope_ext.
"""

import math
from typing import Any

import numpy as np

from reclm_lite.convert.families import number, require, settings_of, size
from reclm_lite.errors import ModelError

# Besides rope_type, type and rope_theta: what each type is set by. Other keys are refused, as they would be ignored.
_KEYS = {
    "linear": {"factor"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
    "yarn": {
        "factor",
        "original_max_position_embeddings",
        "attention_factor",
        "mscale",
        "mscale_all_dim",
        "beta_fast",
        "beta_slow",
        "extrapolation_factor",
        "truncate",
        "finetuned",
    },
}
# llama.cpp has these as constants for the architectures here, whatever the file's metadata say.
_YARN_CONSTANTS = {"beta_fast": 32, "beta_slow": 1, "extrapolation_factor": 1, "truncate": True}
_OLD_LENGTH = "original_max_position_embeddings"
_SHARED_KEYS = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}


def rope_of(config: dict[str, Any], types: tuple[str, ...], theta: float = 10000.0) -> dict[str, Any]:
    """RoPE settings of either layout: `rope_parameters` (transformers 5) or `rope_theta` + `rope_scaling`.

    types: the rope_type values that llama.cpp computes for this architecture; theta: the family's default base.
    Returns the settings with rope_type and rope_theta, and original_max_position_embeddings where the type has it.
    """
    # transformers' own precedence, where a file has both
    rope = dict(settings_of(config, "rope_scaling") or settings_of(config, "rope_parameters"))
    rope["rope_type"] = rope.get("rope_type") or rope.get("type") or "default"
    if rope.get("rope_theta") is None:
        rope["rope_theta"] = config.get("rope_theta") or theta
    require(rope, "rope_type", types)
    require(rope, "partial_rotary_factor", (None, 1.0))
    if rope["rope_type"] == "default":
        nested = sorted(key for key, value in rope.items() if isinstance(value, dict))
        if nested:
            raise ModelError(
                f"expected one RoPE setting for all layers in config.json, found one each for {nested}; "
                "llama.cpp has one for this architecture, so this checkpoint cannot be converted"
            )
        return rope
    known = _KEYS[rope["rope_type"]] | _SHARED_KEYS
    unknown = sorted(key for key, value in rope.items() if key not in known and value is not None)
    if unknown:
        raise ModelError(
            f"expected RoPE of type {rope['rope_type']} to be set by {sorted(known)} in config.json, found {unknown}; "
            "llama.cpp would ignore them, so this checkpoint cannot be converted"
        )
    if _OLD_LENGTH in known:
        default = size(rope, _OLD_LENGTH, size(config, "max_position_embeddings"))
        rope[_OLD_LENGTH] = size(config, _OLD_LENGTH, default)
    return rope


def _yarn_magnitude(factor: float, mscale: float = 1.0) -> float:
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def rope_metadata(rope: dict[str, Any]) -> dict[str, Any]:
    """llama.cpp's metadata for `rope_of`'s settings; `llama3_factors` gives what type llama3 needs besides."""
    values: dict[str, Any] = {"rope.freq_base": number(rope, "rope_theta")}
    if rope["rope_type"] in ("linear", "yarn"):
        values["rope.scaling.type"] = rope["rope_type"]
        values["rope.scaling.factor"] = number(rope, "factor")
    if rope["rope_type"] == "yarn":
        values["rope.scaling.original_context_length"] = rope[_OLD_LENGTH]
        for key, constant in _YARN_CONSTANTS.items():
            require(rope, key, (None, constant))
        for key in ("beta_fast", "beta_slow"):
            if rope.get(key) is not None:
                values[f"rope.scaling.yarn_{key}"] = float(rope[key])
        factor = values["rope.scaling.factor"]
        magnitude = _yarn_magnitude(factor)
        if rope.get("attention_factor") is not None:
            magnitude = number(rope, "attention_factor")
        elif rope.get("mscale") and rope.get("mscale_all_dim"):
            scale, scale_all = number(rope, "mscale"), number(rope, "mscale_all_dim")
            magnitude = _yarn_magnitude(factor, scale) / _yarn_magnitude(factor, scale_all)
        if not math.isclose(magnitude, _yarn_magnitude(factor), rel_tol=1e-9):
            # llama.cpp multiplies this with the paper's own magnitude
            values["rope.scaling.attn_factor"] = float(magnitude / _yarn_magnitude(factor))
    return values


def llama3_factors(rope: dict[str, Any], head_dim: int) -> dict[str, np.ndarray]:
    """For rope_type llama3: `rope_freqs.weight`, float32 (head_dim / 2,), by which each frequency is divided."""
    if rope["rope_type"] != "llama3":
        return {}
    factor, low, high = (number(rope, key) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    if low >= high:
        raise ModelError(
            f"expected low_freq_factor below high_freq_factor in config.json, found {low} and {high}; copy it again"
        )
    n_ctx_old = rope[_OLD_LENGTH]
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
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
