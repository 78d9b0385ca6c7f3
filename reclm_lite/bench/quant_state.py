"""What `reclm bench quant` has measured, kept by what it was measured of: a second run costs nothing.

One JSON file a measurement, `<kind>-<digest>.json`, written whole or not at all. Its name hashes everything that
decides the figures (files by SHA-256, prompts, users, seeds, versions), so another model, split or sample never finds
another's figures.
Left out: generated texts, which the store of the workspace's copy keeps (`quant_profiles`).
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files import atomic_path, read_document

_MAX_STATE_BYTES = 64 << 20  # rows of a measurement by user and seed


def digest(*parts: Any) -> str:
    """16 hex digits over JSON-able parts."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]


def digest_of_texts(texts: Iterable[str]) -> str:
    """16 hex digits over texts, in their order."""
    return digest(list(texts))


class State:
    """The folder of measurements. n_found, n_made: how many were there already, and how many this run added."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.n_found = self.n_made = 0
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, kind: str, made_of: Mapping[str, Any]) -> Path:
        return self.folder / f"{kind}-{digest(kind, made_of)}.json"

    def has(self, kind: str, made_of: Mapping[str, Any]) -> bool:
        return self.path(kind, made_of).is_file()

    def get(self, kind: str, made_of: Mapping[str, Any]) -> Any:
        """The value that was kept, or None. Raises InputError where the file was damaged."""
        path = self.path(kind, made_of)
        if not path.is_file():
            return None
        try:
            kept = json.loads(read_document(path, _MAX_STATE_BYTES))
            if kept["made_of"] == json.loads(json.dumps(made_of)):
                return kept["value"]
            found = "one of something else"
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            found = f"{type(error).__name__}"
        raise InputError(
            f"expected a measurement as JSON in {path}, found {found}; delete that file and run the command again"
        )

    def put(self, kind: str, made_of: Mapping[str, Any], value: Any) -> Any:
        """Keep a JSON-able value; returns it."""
        with atomic_path(self.path(kind, made_of)) as temporary:
            temporary.write_text(
                json.dumps({"kind": kind, "made_of": made_of, "value": value}, allow_nan=False) + "\n", encoding="utf-8"
            )
        return value

    def once(self, kind: str, made_of: Mapping[str, Any], make: Callable[[], Any]) -> Any:
        """What was kept, or what `make()` gives, kept from now on."""
        found = self.get(kind, made_of)
        if found is not None:
            self.n_found += 1
            return found
        made = self.put(kind, made_of, make())
        self.n_made += 1
        return made
