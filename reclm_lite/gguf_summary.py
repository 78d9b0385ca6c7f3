"""What a GGUF file says of itself, as gguf_file.py reads it and gguf_limits.py judges it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a GGUF file. `shape` is in GGUF order: fastest-varying dimension first."""

    name: str
    shape: tuple[int, ...]
    type_name: str
    offset_bytes: int
    size_bytes: int


@dataclass(frozen=True)
class GgufSummary:
    """What a whole GGUF file says of itself; arrays of metadata are given by their length only."""

    path: Path
    version: int
    size_bytes: int
    architecture: str
    metadata: dict[str, Any] = field(repr=False)
    array_lengths: dict[str, int] = field(repr=False)
    tensors: tuple[TensorInfo, ...] = field(repr=False)
