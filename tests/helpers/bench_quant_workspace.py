"""A small workspace, settings and jobs for the tests of `reclm bench quant`."""

import json

import numpy as np

from reclm_lite.bench import harness
from reclm_lite.bench.quant import quant_bench

N_USERS, N_ITEMS = 40, 24
TYPES = ("q4_0",)


def histories(seed):
    rng = np.random.default_rng(seed)
    rows = [rng.permutation(N_ITEMS)[:5].tolist() for _ in range(N_USERS)]
    return (
        {u: row[:2] for u, row in enumerate(rows)},
        {u: row[2:3] for u, row in enumerate(rows)},
        {u: row[3:] for u, row in enumerate(rows)},
    )


def settings(root, model, out, **options):
    plain = {"types": TYPES, "imatrix": False, "n_prompts": 30, "n_seeds": 2, "epochs": 1, "turns": 1, "n_slots": 8}
    return quant_bench.Settings(root, model, out, 1, **{**plain, **options})


def job_in_this_process(function, arguments, **_):
    """What `run_in_child` gives, without the seconds that a process takes to start."""
    job = {"module": function.__module__, "function": function.__name__, "arguments": arguments}
    answer = json.loads(json.dumps(harness.call_job(json.loads(json.dumps(job, default=str)))))
    return harness.Finished(answer["result"], answer["peak_bytes"], 0.0)
