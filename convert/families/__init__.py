"""Model families that convert to GGUF. A new family is one module here and its name in `_FAMILIES`.

A family module has: `ARCHITECTURES` and `MODEL_TYPE` as `config.json` names them, `GGUF_ARCH`, `VOCAB` ("bpe" or
"wordpiece"), and the functions `canonical_name`, `hyperparameters` and `renames`, described by `Family`.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np

from reclm_lite.errors import ModelError

_FAMILIES = ("llama", "bert")


@dataclass(frozen=True)
class Rename:
    """One tensor's way from checkpoint to GGUF. `shape` is row-major, as numpy and the checkpoint have it."""

    source: str
    target: str
    shape: tuple[int, ...]
    transform: Callable[[np.ndarray], np.ndarray] | None = None
    keep_f32: bool = False  # llama.cpp reads it in float32 whatever the file's type


class Family(Protocol):
    """What a family module provides."""

    ARCHITECTURES: tuple[str, ...]
    MODEL_TYPE: str
    GGUF_ARCH: str
    VOCAB: str

    def canonical_name(self, name: str) -> str | None:
        """A checkpoint tensor's name as `renames` knows it; None if it is deliberately not converted."""
        ...

    def hyperparameters(self, config: dict[str, Any], directory: Path) -> dict[str, Any]:
        """GGUF metadata of the architecture, without its prefix; refuses what llama.cpp would compute otherwise."""
        ...

    def renames(self, config: dict[str, Any], names: set[str]) -> list[Rename]:
        """Every tensor the model needs; `names` are those present, to tell tied from untied and biases."""
        ...

    def extra_tensors(self, config: dict[str, Any]) -> dict[str, np.ndarray]:
        """float32 tensors that the GGUF needs and the checkpoint does not hold (RoPE factors)."""
        ...


def family_of(config: dict[str, Any]) -> Family:
    """The family of a checkpoint by its `architectures`, or by `model_type` where it names none."""
    named = config.get("architectures") or []
    known: list[str] = []
    for module_name in _FAMILIES:
        family = cast(Family, importlib.import_module(f"{__name__}.{module_name}"))
        known += family.ARCHITECTURES
        if set(named) & set(family.ARCHITECTURES) or (not named and config.get("model_type") == family.MODEL_TYPE):
            return family
    raise ModelError(
        f"expected a checkpoint of one of {sorted(known)}, found architectures {named} and "
        f"model_type {config.get('model_type')!r}; no other family can be converted yet"
    )


def require(config: dict[str, Any], key: str, allowed: tuple[Any, ...], default: Any = None) -> None:
    """Refuses a configuration that llama.cpp would run as if it were another."""
    value = config.get(key, default)
    if value not in allowed:
        raise ModelError(f"expected config.json to have {key} among {allowed}, found {value!r}; cannot be converted")
