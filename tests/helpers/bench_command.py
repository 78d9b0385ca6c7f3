"""Runs `reclm bench` in this process, and a job for its child processes."""

import json

import numpy as np
from click.testing import CliRunner

from reclm_lite.bench.harness import PeakMemory
from reclm_lite.cli import main


def bench(*arguments: str) -> tuple[list[str], dict]:
    """(lines of the table, the JSON document) of `reclm bench` with these arguments."""
    result = CliRunner().invoke(main, ["bench", *arguments])
    assert result.exit_code == 0, f"{result.output}\n{result.exception!r}"
    *table, line = result.stdout.splitlines()
    return table, json.loads(line)


def allocate(sizes):
    """Peak extra memory of allocating and freeing an array of each size."""
    found = []
    for n_bytes in sizes:
        with PeakMemory() as memory:
            np.ones(n_bytes, np.uint8).sum()
        found.append(memory.extra_bytes)
    return found
