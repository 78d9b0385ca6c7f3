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
    named = config.get("architectures") or []
    known = families().values()
    for family in known:
        if set(named) & set(family.ARCHITECTURES) or (not named and config.get("model_type") == family.MODEL_TYPE):
            for key, neutral in _NEUTRAL.items():
                require(config, key, (None, neutral))
            return family
    names = sorted(name for family in known for name in family.ARCHITECTURES)
    found = f"architectures {named} and model_type {config.get('model_type')!r}"
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
            f"expected {key} {expected} in config.json, found {value!r}; llama.cpp would compute something else, "
            "so this checkpoint cannot be converted"
        )


def size(config: dict[str, Any], key: str, default: int | None = None) -> int:
    """A setting that must be a whole number above 0. Raises ModelError for anything else."""
    value = setting(config, key, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ModelError(f"expected {key} above 0 in config.json, found {value!r}; copy config.json again")
    return value


def setting(config: dict[str, Any], key: str, default: Any = None) -> Any:
    """A setting that must be there: config.json's, or the family's default. Raises ModelError if there is neither."""
    value = config.get(key)
    if value is None:
        value = default
    if value is None:
        raise ModelError(f"expected {key} in config.json, found none; copy config.json again")
    return value
