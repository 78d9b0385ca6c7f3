"""A short, repeatable slice of every fuzz target: seeds and a few hundred mutated inputs, in a process of its own.

`make fuzz` runs the same targets for minutes each, guided by coverage; tests/fuzz/harness.py says what a target is.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).parent / "fuzz"
sys.path.insert(0, str(FUZZ))
from harness import load_targets

CODE = """
import json, sys
sys.path[:0] = sys.argv[1:3]
from harness import bound_memory, load_targets, run_mutated
target = load_targets()[sys.argv[3]]
last = []
target.run(target.seeds()[0])  # loads what it needs, so that the bound is on inputs alone
bound_memory(target.memory_bytes)
try:
    outcomes = run_mutated(target, n=target.n_slice, seed=17, before=lambda data: last.__setitem__(slice(None), [data]))
except BaseException:
    print("the input was", last, file=sys.stderr)
    raise
print(json.dumps(outcomes))
"""


@pytest.mark.parametrize("name", load_targets())
def test_hostile_inputs_are_accepted_or_refused_and_nothing_else(name):
    target = load_targets()[name]
    run = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", CODE, str(FUZZ), str(FUZZ.parent / "helpers"), name],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "PYTHONHASHSEED": "0"},
    )
    assert run.returncode == 0, f"exit code {run.returncode}: {run.stderr[-4000:]}"
    outcomes = json.loads(run.stdout.splitlines()[-1])
    assert sum(outcomes.values()) == len(target.seeds()) + target.n_slice
    assert len(outcomes) > 1, f"every input ended the same way ({outcomes}): the seeds or the target are no good"
