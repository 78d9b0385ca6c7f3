"""Opens what is converted: a checkpoint, with or without an adapter merged in."""

from pathlib import Path

from reclm_lite.convert.checkpoint import Checkpoint, Source
from reclm_lite.errors import ModelError


def open_source(base: Path, adapter: Path | None = None) -> Source:
    """The model to convert. Raises ModelError for a checkpoint or an adapter that cannot be used."""
    if adapter is not None:
        raise ModelError(f"expected a checkpoint without an adapter, found {adapter}; merge it before")
    return Checkpoint(base)
