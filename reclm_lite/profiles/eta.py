"""Measures the speed of a run and estimates its end, or how far it gets by a deadline.

The rate is that of answers over the last minute. What is left is counted in prompts, since prompts serve unequal
numbers of users. Left out: stopping (`answers.StopSignal`) and showing (`run_progress`).
"""

import re
import time
from collections import deque
from collections.abc import Sequence

import numpy as np

from ..errors import InputError

WINDOW_SECONDS = 60.0
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_NUMBER = r"\d{1,12}(?:\.\d{1,12})?"  # bounded, or the number is no number of seconds that a clock can add
_DURATION = re.compile(rf"(?:{_NUMBER}[smhd])+")
_PART = re.compile(rf"({_NUMBER})([smhd])")
_SECONDS = re.compile(_NUMBER)


def parse_duration(text: str) -> float:
    """Seconds of `6h`, `1h30m`, `90s`, `0.5h`, or a bare number of seconds. Raises InputError otherwise."""
    text = text.strip().lower().replace(" ", "")
    if _SECONDS.fullmatch(text):
        seconds = float(text)
    elif _DURATION.fullmatch(text):
        seconds = sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))
    else:
        raise InputError(f"expected a duration such as 6h, 1h30m or 90s, found {text[:80]!r}")
    if seconds <= 0:
        raise InputError(f"expected a duration above zero, found {text[:80]!r}")
    return seconds


def format_duration(seconds: float) -> str:
    """`6 h 05 min`, `12 min`, `40 s`."""
    seconds = max(0.0, seconds)
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def counted(n: int, noun: str) -> str:
    """A number and its noun, in the plural where that is due."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


class Throughput:
    """The speed of one run. sizes: users (or items) that each prompt serves, in the order in which prompts are
    begun."""

    def __init__(self, sizes: Sequence[int], now: float | None = None):
        self.started = time.monotonic() if now is None else now
        self.n_prompts = len(sizes)
        self.n_done = 0
        self._served = np.cumsum(sizes) if len(sizes) else np.zeros(1, np.int64)
        self._recent: deque[tuple[float, int]] = deque([(self.started, 0)])

    def begin(self, at: float | None) -> None:
        """The first prompt was begun only then, the model having been loaded. None, or too late: no change."""
        if at is not None and self.n_done == 0 and at > self.started:
            self.started = at
            self._recent = deque([(at, 0)])

    def note(self, n: int = 1, now: float | None = None) -> None:
        """`n` more prompts have their answer."""
        now = time.monotonic() if now is None else now
        self.n_done += n
        self._recent.append((now, self.n_done))
        while len(self._recent) > 2 and now - self._recent[0][0] > WINDOW_SECONDS:
            self._recent.popleft()

    def is_known(self, now: float | None = None) -> bool:
        """Whether enough has been seen to name a rate: eight answers, or half a minute and one."""
        now = time.monotonic() if now is None else now
        return self.n_done >= 8 or (self.n_done > 0 and now - self.started >= WINDOW_SECONDS / 2)

    def per_second(self, now: float | None = None) -> float:
        """Prompts a second over the last minute; 0.0 before the first answer."""
        now = time.monotonic() if now is None else now
        at, done = self._recent[0]
        return (self.n_done - done) / max(now - at, 1e-9) if self.n_done > done else 0.0

    def seconds_left(self, now: float | None = None) -> float | None:
        """Until the last answer at the present rate; None while no rate is known."""
        rate = self.per_second(now)
        return (self.n_prompts - self.n_done) / rate if rate and self.is_known(now) else None

    def reach(self, seconds: float, now: float | None = None) -> tuple[int, int]:
        """(prompts, users) that will be done `seconds` from now at the present rate."""
        n = min(self.n_prompts, self.n_done + int(seconds * self.per_second(now)))
        return n, int(self._served[n - 1]) if n else 0
