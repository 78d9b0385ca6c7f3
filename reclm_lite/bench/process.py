"""Work in a process of its own: a job as JSON on stdin, its result as the last line of stdout."""

import ctypes
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import ModelError


def python(module: str) -> list[str]:
    """The command that runs a module. -P: the installed package, also where the working directory is the repository."""
    return [sys.executable, "-P", "-m", module]


def end_with_parent() -> None:
    """Have this process killed when the one that began it is: it would go on working beside the next run. On Linux
    alone."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def run(
    command: Sequence[str],
    job: Mapping[str, Any],
    what: str,
    *,
    remedy: str = "",
    environment: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Run a job; returns its result. Raises ModelError with the last line it wrote, and `remedy`, where it fails; what:
    for the message."""
    made = subprocess.run(
        list(command),
        input=json.dumps(job, default=str),
        capture_output=True,
        text=True,
        env={**os.environ, **(environment or {})},
    )
    if made.returncode:
        why = (made.stderr.strip().splitlines() or ["no message"])[-1]
        raise ModelError(f"expected {what} to end well, found exit code {made.returncode}: {why}{remedy}")
    return json.loads(made.stdout.strip().splitlines()[-1])
