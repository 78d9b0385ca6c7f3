"""Progress of a run: users done, prompts per second, time left, and how far it gets before its deadline."""

import time
from collections.abc import Sequence

from .answers import Group, Source
from .eta import Throughput, format_duration

REPORT_SECONDS = 0.2  # between two reports


class Observer:
    """Receives the progress of a run; this base class ignores it."""

    def progress(self, done: int, total: int, note: str = "") -> None:
        """`done` of `total` users (or items) have a profile. note: the speed in words."""

    def say(self, sentence: str) -> None:
        """A message for the user."""

    def agree(self, source: Source, plan_groups: Sequence[Group], users: int) -> None:
        """Called once before a source is asked for anything; raises to call the run off."""


class RunProgress:
    """Measures one run and reports to its observer. deadline: in `time.monotonic()` seconds, None: none."""

    def __init__(self, observer: Observer, side: str, deadline: float | None):
        self.observer, self.side, self.deadline = observer, side, deadline
        self._next_report = 0.0
        self._forecast_at: float | None = None
        self._throughput = Throughput([])

    def planned(self, done: int, total: int) -> None:
        """`done` of `total` users (or items) have a prompt."""
        if time.monotonic() >= self._next_report:
            self._next_report = time.monotonic() + REPORT_SECONDS
            self.observer.progress(0, total, f"writing prompts: {done:,}")

    def start(self, sizes: Sequence[int], now: float) -> None:
        """A source is asked for prompts that serve so many users (or items) each, in this order."""
        self._throughput = Throughput(sizes)
        if self.deadline is not None and self._forecast_at is None:
            self._forecast_at = now + min(60.0, 0.1 * (self.deadline - now))

    def answered(self, begun: float | None) -> None:
        """One more prompt has its answer. begun: when the source began with the first prompt."""
        self._throughput.begin(begun)
        self._throughput.note()

    def report(self, done: int, total: int) -> None:
        """Report the progress, from time to time and at the end."""
        now = time.monotonic()
        is_due = self._forecast_at is not None and now >= self._forecast_at and self._throughput.is_known(now)
        if is_due and self.deadline is not None:
            self._forecast_at = float("inf")
            self._forecast(self.deadline - now, now)
        if now >= self._next_report or done == total:
            self._next_report = now + REPORT_SECONDS
            left = self._throughput.seconds_left(now)
            note = f"{self._throughput.per_second(now):,.1f} prompts/s" if left is not None else ""
            if left is not None and self.deadline is not None and now + left > self.deadline:
                note += f", deadline in {format_duration(self.deadline - now)}"
            elif left is not None:
                note += f", {format_duration(left)} left"
            self.observer.progress(done, total, note)

    def _forecast(self, left: float, now: float) -> None:
        """Say how far the run will get, once its speed is known."""
        n_prompts, n_users = self._throughput.reach(left, now)
        n_all, rate = self._throughput.n_prompts, f"{self._throughput.per_second(now):,.1f} prompts/s measured"
        if n_prompts >= n_all:
            need = format_duration(self._throughput.seconds_left(now) or 0.0)
            self.observer.say(f"{rate}: all {n_all:,} prompts will be done in {need}, before the deadline.")
        else:
            self.observer.say(
                f"{rate}: {n_prompts:,} of {n_all:,} prompts will be done by the deadline in "
                f"{format_duration(left)}; they serve {n_users:,} {self.side}s, starting with the most shared "
                "prompts."
            )
