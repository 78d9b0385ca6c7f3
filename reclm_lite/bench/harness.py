"""What all benchmarks measure with: child processes, timing in turns, and peak memory.

Work whose memory is measured runs in a fresh Python process: memory that earlier work has freed would hide it. A job is
a module-level function of this package with JSON-able arguments and result (`run_in_child`); a foreign program gets its
job as JSON on stdin and prints its result as the last line of stdout (`run_command`).

Light: a child loads this module before its job, so that nothing heavy may be imported here.
"""

import ctypes
import importlib
import json
import logging
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ModelError
from ..memory import peak_resident_bytes

PAUSE_SECONDS = 0.05


# -- child processes ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Finished:
    """A job that ended: its result, the child's peak resident memory, and the seconds from its start to its exit."""

    result: Any
    peak_bytes: int
    seconds: float

    @property
    def with_peak(self) -> dict[str, Any]:
        """A result that is a dict, with "peak_bytes" added."""
        return {**self.result, "peak_bytes": self.peak_bytes}


def run_in_child(
    function: Callable[..., Any],
    arguments: Mapping[str, Any],
    *,
    what: str = "",
    remedy: str = "",
    error: type[Exception] = ModelError,
) -> Finished:
    """Call `function(**arguments)` in a fresh Python process.

    function: of a module's top level; arguments are turned into JSON, paths into strings. Raises `error` with the last
    line that the child wrote if it fails; what, remedy: for that message.
    """
    # -P: the installed package, even if the working directory is the repository, whose folder lacks the kernels.
    command = [sys.executable, "-P", "-m", "reclm_lite.bench.harness"]
    job = {"module": function.__module__, "function": function.__name__, "arguments": arguments}
    what = what or f"the benchmark job {function.__name__!r}"
    started = time.perf_counter()
    answer = run_command(command, job, what, remedy=remedy, error=error)
    return Finished(answer["result"], answer["peak_bytes"], time.perf_counter() - started)


def run_command(
    command: Sequence[str],
    job: Mapping[str, Any],
    what: str,
    *,
    remedy: str = "",
    environment: Mapping[str, str] | None = None,
    error: type[Exception] = ModelError,
) -> Any:
    """Run a program with `job` as JSON on stdin; returns what the last line of its stdout holds as JSON.

    environment: variables to add. Raises `error` as `run_in_child` does.
    """
    done = subprocess.run(
        list(command),
        input=json.dumps(job, default=str),
        capture_output=True,
        text=True,
        env={**os.environ, **(environment or {})},
    )
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise error(f"{what} failed with exit code {done.returncode}: {why}{remedy}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def call_job(job: Mapping[str, Any]) -> dict[str, Any]:
    """What a child does: call the job's function; returns its result and this process's peak resident memory."""
    function = getattr(importlib.import_module(job["module"]), job["function"])
    result = function(**job["arguments"])
    return {"result": result, "peak_bytes": peak_resident_bytes()}


def end_with_parent() -> None:
    """Linux only: kill this process when its parent ends, so that it does not disturb the next benchmark."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


# -- timing ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Timing:
    """Seconds per call: median and minimum of n_calls."""

    median_seconds: float
    min_seconds: float
    n_calls: int

    @classmethod
    def of(cls, seconds: list[float]) -> "Timing":
        """From the seconds of each call."""
        return cls(statistics.median(seconds), min(seconds), len(seconds))

    @classmethod
    def once(cls, seconds: float) -> "Timing":
        """From a single call."""
        return cls(seconds, seconds, 1)


def take_turns(
    contenders: Mapping[str, Callable[[], object]], repeats: int, *, turn_seconds: float = 0.1
) -> dict[str, Timing]:
    """Call every contender once, then time each of them in `repeats` turns: a busy moment of the machine hits all.

    A turn is a pause (threads of the contender before stop spinning), one call that is not timed, then timed calls
    until they fill `turn_seconds`.
    """
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
    """Seconds of laps; the first begins when the watch is made."""

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
        """Median and minimum of the laps after the first `skip`."""
        return Timing.of(self.laps[skip:])


@contextmanager
def quiet(function: Callable) -> Iterator[None]:
    """Silence warnings of the module of `function`: fitting warns if nothing is validated, which is intended here."""
    logger = logging.getLogger(function.__module__)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


# -- memory ------------------------------------------------------------------------------------------


class PeakMemory:
    """Resident bytes: `peak_bytes` within the block, `extra_bytes` above what was resident at its start.

    On Linux the peak of earlier work is reset at the start; elsewhere the peak is that of the whole process.
    """

    def __enter__(self) -> "PeakMemory":
        self._reset()
        self.start_bytes = peak_resident_bytes()
        return self

    def __exit__(self, *_: object) -> None:
        self.peak_bytes = peak_resident_bytes()
        self.extra_bytes = self.peak_bytes - self.start_bytes

    def _reset(self) -> None:
        if sys.platform == "linux":
            try:
                Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
            except OSError:  # not allowed in some containers: then the peak is that of the whole process
                return


if __name__ == "__main__":
    end_with_parent()
    print(json.dumps(call_job(json.load(sys.stdin))))
