"""Peak extra memory of a kernel, measured in a fresh process: memory that earlier work had freed would hide it.

python -m reclm_lite.bench.memory '{"n_users": 2048, "n_items": 40981, "dim": 64, "k": 20, "options": {}}'
"""

import json
import subprocess
import sys

import numpy as np

from ..kernels import native
from .timing import PeakMemory


def topk_extra_bytes(n_users: int, n_items: int, dim: int, k: int, n_threads: int, **options: object) -> int:
    """Resident bytes that one `native.topk` adds at its peak, its result included."""
    job = {"n_users": n_users, "n_items": n_items, "dim": dim, "k": k, "n_threads": n_threads, "options": options}
    # -P: the installed package, also where the working directory is the repository, whose folder lacks the kernels.
    run = subprocess.run(
        [sys.executable, "-P", "-m", "reclm_lite.bench.memory", json.dumps(job)], capture_output=True, text=True
    )
    if run.returncode:
        why = (run.stderr.strip().splitlines() or ["no message"])[-1]
        raise native.KernelError(f"memory of topk: the process that measures it failed ({run.returncode}): {why}")
    return int(run.stdout)


def main(job: dict) -> int:
    """Run `job` and return the extra bytes."""
    rng = np.random.default_rng(0)
    users = rng.standard_normal((job["n_users"], job["dim"]), dtype=np.float32)
    items = rng.standard_normal((job["n_items"], job["dim"]), dtype=np.float32)
    # The first call starts the threads and loads the library: neither is the kernel's working memory.
    native.topk(users[:1], items[:64].copy(), 1, n_threads=job["n_threads"], **job["options"])
    with PeakMemory() as memory:
        native.topk(users, items, job["k"], n_threads=job["n_threads"], **job["options"])
    return memory.extra_bytes


if __name__ == "__main__":
    print(main(json.loads(sys.argv[1])))
