"""What `reclm bench quant` has measured, kept on disk so that a stopped run continues, and what is left to do.

One JSON file per measurement, `<kind>-<digest>.json`, written whole or not at all. Its name hashes everything that
decides the figures (files by SHA-256, prompts, users, seeds, versions), so another model, split or sample never finds
another's figures. Left out: generated texts, which the store of the workspace's copy keeps (`written_profiles`).
"""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...errors import InputError, WorkspaceError
from ...files import atomic_path, lock_file, read_document
from ...own_paths import make_folder, require_own_tree
from ...profiles.eta import format_duration
from ...profiles.run_progress import Observer

Say = Callable[[str], None]

_MAX_STATE_BYTES = 64 << 20  # rows of a measurement by user and seed


def digest(*parts: Any) -> str:
    """16 hex digits over JSON-able parts."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]


def digest_of_texts(texts: Iterable[str]) -> str:
    """16 hex digits over texts, in their order."""
    return digest(list(texts))


class State:
    """The folder of measurements; made, or InputError if it cannot be. n_found, n_made: how many existed already, and
    how many this run added."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.n_found = self.n_made = 0
        try:
            require_own_tree(folder)
            make_folder(folder)
        except OSError as error:
            raise InputError(
                f"expected a folder that can be written at {folder.parent}, found: {error.strerror}; check --out"
            ) from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder for this process. Raises WorkspaceError if another process holds it."""
        lock = lock_file(self.folder / ".lock")
        if lock is None:
            raise WorkspaceError(
                f"another reclm process is measuring into {self.folder.parent}: wait for it to end, or give another "
                "--out"
            )
        with lock:
            yield

    def path(self, kind: str, made_of: Mapping[str, Any]) -> Path:
        return self.folder / f"{kind}-{digest(kind, made_of)}.json"

    def has(self, kind: str, made_of: Mapping[str, Any]) -> bool:
        return self.path(kind, made_of).is_file()

    def get(self, kind: str, made_of: Mapping[str, Any]) -> Any:
        """The kept value, or None. Raises InputError if the file is damaged."""
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
        """The kept value, or that of `make()`, which is then kept."""
        found = self.get(kind, made_of)
        if found is not None:
            self.n_found += 1
            return found
        made = self.put(kind, made_of, make())
        self.n_made += 1
        return made


class Steps(Observer):
    """Reports each step, and estimates the time of the rest from steps of the same kind.

    left: steps to go, by kind. seconds: of those that are done, by kind.
    """

    def __init__(self, say: Say):
        self._say = say
        self.left: Counter[str] = Counter()
        self.seconds: dict[str, list[float]] = {}
        self._label, self._said_at = "", 0.0

    @contextmanager
    def step(self, kind: str, label: str) -> Iterator[None]:
        started = time.monotonic()
        self.begin(kind, label)
        self._say(self._label + self._rest())
        try:
            yield
        finally:
            self.left[kind] -= self.left[kind] > 0
            self.seconds.setdefault(kind, []).append(time.monotonic() - started)

    def _rest(self) -> str:
        known = [(n, self.seconds[kind]) for kind, n in self.left.items() if n and kind in self.seconds]
        total = sum(n * sum(spent) / len(spent) for n, spent in known)
        n_steps = sum(self.left.values())
        unknown = any(n and kind not in self.seconds for kind, n in self.left.items())
        if not n_steps:
            return ""
        about = f", {'at least' if unknown else 'about'} {format_duration(total)}" if total >= 1 else ""
        return f" ({n_steps} step{'s'[: n_steps > 1]} to go{about})"

    def begin(self, kind: str, label: str) -> None:
        """Begin work that `progress` and `sequences` report on."""
        self._label, self._said_at = f"{label}: {kind}", time.monotonic()

    def progress(self, done: int, total: int, note: str = "") -> None:
        """Report a run of profiles, every ten seconds."""
        if note:
            self._say_sometimes(f"{done:,} of {total:,} users, {note}")

    def sequences(self, done: int, total: int) -> None:
        """Report the collection of an importance matrix, every ten seconds."""
        self._say_sometimes(f"{done:,} of {total:,} prompts")

    def _say_sometimes(self, text: str) -> None:
        if time.monotonic() - self._said_at >= 10:
            self._said_at = time.monotonic()
            self._say(f"{self._label}: {text}")

    def say(self, sentence: str) -> None:
        self._say(sentence)
