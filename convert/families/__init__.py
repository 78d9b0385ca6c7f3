"""Model families that convert to GGUF. A new family is one module here and its name in `_FAMILIES`.

A family module has: `ARCHITECTURES` and `MODEL_TYPE` as `config.json` names them, `GGUF_ARCH`, `VOCAB`, and the
functions `canonical_name`, `hyperparameters`, `renames` and `extra_tensors`, described by `Family`. What decoders
share is in `_decoder.py` and `_rope.py`.

What a family must refuse: every setting that changes what transformers computes and that llama.cpp, for that
architecture, reads nowhere. A file that loads and answers otherwise is worse than none.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np

from reclm_lite.errors import ModelError

_FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "bert")

# Settings that models of other architectures compute by. None of the families here has them in llama.cpp, so they
# may only say what computing without them would: absent, None, or the value given here.
_NEUTRAL = {
    "add_cross_attention": False,
    "attention_multiplier": None,
    "clip_qkv": None,
    "embedding_multiplier": 1.0,
    "is_causal": True,
    "llama_4_scaling": None,
    "logit_scale": 1.0,
    "logits_scaling": 1.0,
    "n_routed_experts": 0,
    "no_rope_layers": None,
    "num_experts": 0,
    "num_local_experts": 0,
    "parallel_attn": False,
    "partial_rotary_factor": 1.0,
    "quantization_config": None,
    "residual_multiplier": 1.0,
    "rotary_pct": 1.0,
    "use_bidirectional_attention": False,
}


_MAX_LAYERS = 512  # LLAMA_MAX_LAYERS
_LARGEST_INT = 2**31 - 1
_SMALLEST_FLOAT, _LARGEST_FLOAT = (float(x) for x in (np.finfo(np.float32).tiny, np.finfo(np.float32).max))


@dataclass(frozen=True)
class Rename:
    """One tensor's way from checkpoint to GGUF. `shape` is row-major, as numpy and the checkpoint have it.

    transform: changes values, not the shape; such a tensor is read whole, all others by blocks of rows.
    keep_f32: llama.cpp reads it in float32 whatever the file's type.
    """

    source: str
    target: str
    shape: tuple[int, ...]
    transform: Callable[[np.ndarray], np.ndarray] | None = None
    keep_f32: bool = False


class Family(Protocol):
    """What a family module provides.

    VOCAB: the kinds of vocabulary that its models have, those preferred first: "sentencepiece", "bpe", "wordpiece".
    """

    ARCHITECTURES: tuple[str, ...]
    MODEL_TYPE: str
    GGUF_ARCH: str
    VOCAB: tuple[str, ...]

    def canonical_name(self, name: str) -> str | None:
        """A checkpoint tensor's name as `renames` knows it; None if it is deliberately not converted."""
        ...

    def hyperparameters(self, config: dict[str, Any], directory: Path) -> dict[str, Any]:
        """GGUF metadata of the architecture, without its prefix; refuses what llama.cpp would compute otherwise.

        The types of the values are those they are written with: bool, int (uint32), float (float32), str, or a
        list of one of them. Raises ModelError naming the setting.
        """
        ...

    def renames(self, config: dict[str, Any], names: set[str]) -> list[Rename]:
        """Every tensor the model needs; `names` are those present, to tell tied from untied."""
        ...

    def extra_tensors(self, config: dict[str, Any]) -> dict[str, np.ndarray]:
        """float32 tensors that the GGUF needs and the checkpoint does not hold (RoPE factors)."""
        ...


def families() -> dict[str, Family]:
    """{GGUF architecture's module name: family}, all that convert."""
    return {name: cast(Family, importlib.import_module(f"{__name__}.{name}")) for name in _FAMILIES}


def family_of(config: dict[str, Any]) -> Family:
    """The family of a checkpoint by its `architectures`, or by `model_type` where it names none.

    Raises ModelError, with the families there are, for any other, and for a setting of another architecture.
    """
    named, kind = config.get("architectures") or [], config.get("model_type")
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        raise ModelError(
            f"expected a list of names as architectures in config.json, found {shown(named)}; copy it again"
        )
    known = families().values()
    for family in known:
        if set(named) & set(family.ARCHITECTURES) or (not named and kind == family.MODEL_TYPE):
            require(config, "model_type", (None, family.MODEL_TYPE))
            for key, neutral in _NEUTRAL.items():
                require(config, key, (None, neutral))
            return family
    names = sorted(name for family in known for name in family.ARCHITECTURES)
    found = f"architectures {named} and model_type {shown(kind)}"
    advice = "no other family can be converted yet"
    if "text_config" in config:
        advice = "a model that also reads images or sound is not converted; save its language model on its own"
    raise ModelError(f"expected a checkpoint of one of the {len(names)} architectures {names}, found {found}; {advice}")


def require(config: dict[str, Any], key: str, allowed: tuple[Any, ...], default: Any = None) -> None:
    """Refuses a configuration that llama.cpp would run as if it were another."""
    value = config.get(key, default)
    if value not in allowed:
        expected = " or ".join(repr(choice) for choice in allowed)
        raise ModelError(
            f"expected {key} {expected} in config.json, found {shown(value)}; llama.cpp would compute something else, "
            "so this checkpoint cannot be converted"
        )


def shown(value: Any) -> str:
    """A value of config.json for a message: on one line and of bounded length."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def size(config: dict[str, Any], key: str, default: int | None = None, *, at_most: int = _LARGEST_INT) -> int:
    """A setting that must be a whole number from 1 to `at_most`. Raises ModelError for anything else."""
    value = setting(config, key, default)
    if type(value) is not int or not 1 <= value <= at_most:
        expected = "a whole number above 0" + (f" and up to {at_most}" if at_most < _LARGEST_INT else "")
        raise ModelError(f"expected {expected} as {key} in config.json, found {shown(value)}; copy config.json again")
    return value


def number(config: dict[str, Any], key: str, default: float | None = None) -> float:
    """A setting that must be a number above 0 that float32 can hold. Raises ModelError for anything else."""
    value = setting(config, key, default)
    if type(value) not in (int, float) or not _SMALLEST_FLOAT <= value <= _LARGEST_FLOAT:
        raise ModelError(
            f"expected a number above 0 as {key} in config.json, found {shown(value)}; copy config.json again"
        )
    return float(value)


def flag(config: dict[str, Any], key: str, default: bool = False) -> bool:
    """A setting that must be true or false. Raises ModelError for anything else."""
    value = setting(config, key, default)
    if not isinstance(value, bool):
        raise ModelError(
            f"expected true or false as {key} in config.json, found {shown(value)}; copy config.json again"
        )
    return value


def settings_of(config: dict[str, Any], key: str) -> dict[str, Any]:
    """A setting that is itself a set of settings; empty if there is none. Raises ModelError for anything else."""
    value = setting(config, key, {})
    if not isinstance(value, dict):
        raise ModelError(f"expected settings by name as {key} in config.json, found {shown(value)}; copy it again")
    return value


def n_layers_of(config: dict[str, Any]) -> int:
    """Layers of the model, as many as llama.cpp can run."""
    return size(config, "num_hidden_layers", at_most=_MAX_LAYERS)


def sliding_layers(config: dict[str, Any], n_layers: int) -> list[bool] | None:
    """For each layer, by `layer_types`, whether its attention has a window; None where config.json does not say."""
    kinds = config.get("layer_types")
    if kinds is None:
        return None
    if not isinstance(kinds, list) or len(kinds) != n_layers:
        found = len(kinds) if isinstance(kinds, list) else shown(kinds)
        raise ModelError(f"expected layer_types for {n_layers} layers in config.json, found {found}; copy it again")
    for kind in kinds:
        require({"layer_types": kind}, "layer_types", ("sliding_attention", "full_attention"))
    return [kind == "sliding_attention" for kind in kinds]


def setting(config: dict[str, Any], key: str, default: Any = None) -> Any:
    """A setting that must be there: config.json's, or the family's default. Raises ModelError if there is neither."""
    value = config.get(key)
    if value is None:
        value = default
    if value is None:
        raise ModelError(f"expected {key} in config.json, found none; copy config.json again")
    return value
