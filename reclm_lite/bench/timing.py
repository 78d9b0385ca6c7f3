"""Contenders timed in turns, so that a busy moment of the machine strikes all of them.

A turn is: a pause (threads of the one before stop spinning), one call that is not timed, then timed calls until
they fill `turn_seconds`. Reported are the median and the least over all turns.
"""

import logging
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..memory import peak_resident_bytes

PAUSE_SECONDS = 0.05


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: the median and the least of n_calls."""

    median_seconds: float
    min_seconds: float
    n_calls: int

    @classmethod
    def of(cls, seconds: list[float]) -> "Timing":
        """Of the seconds of each call."""
        return cls(statistics.median(seconds), min(seconds), len(seconds))


def take_turns(
    contenders: Mapping[str, Callable[[], object]], repeats: int, *, turn_seconds: float = 0.1
) -> dict[str, Timing]:
    """Call every contender once, then time each of them in `repeats` turns."""
    for function in contenders.values():
        function()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, function in contenders.items():
            time.sleep(PAUSE_SECONDS)
            started = time.perf_counter()
            function()
            n_calls = max(1, min(20, int(turn_seconds / max(time.perf_counter() - started, 1e-9))))
            for _ in range(n_calls):
                started = time.perf_counter()
                function()
                seconds[name].append(time.perf_counter() - started)
    return {name: Timing.of(values) for name, values in seconds.items()}


class Stopwatch:
    """Seconds between laps, the first since it was made."""

    def __init__(self) -> None:
        self.laps: list[float] = []
        self._last = time.perf_counter()

    def lap(self) -> float:
        """End a lap and begin the next; returns its seconds."""
        now = time.perf_counter()
        self.laps.append(now - self._last)
        self._last = now
        return self.laps[-1]

    def timing(self, skip: int = 0) -> Timing:
        """Median and least of the laps but the first `skip`."""
        return Timing.of(self.laps[skip:])


@contextmanager
def quiet(function: Callable) -> Iterator[None]:
    """No warnings from the module of `function`: fitting warns where nothing is validated, and here that is meant."""
    logger = logging.getLogger(function.__module__)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


class PeakMemory:
    """Resident bytes: `peak_bytes` within the block, `extra_bytes` above what was resident at its start.

    On Linux the peak of earlier work is forgotten at the start; elsewhere the peak is that of the whole process.
    """

    def __enter__(self) -> "PeakMemory":
        self._forget()
        self.start_bytes = peak_resident_bytes()
        return self

    def __exit__(self, *_: object) -> None:
        self.peak_bytes = peak_resident_bytes()
        self.extra_bytes = self.peak_bytes - self.start_bytes

    def _forget(self) -> None:
        if sys.platform == "linux":
            try:
                Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
            except OSError:  # not allowed in some containers: then the peak is that of the whole process
                return
