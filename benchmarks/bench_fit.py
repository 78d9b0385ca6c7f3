"""Seconds per epoch of training, and the kernels beside scipy and numpy, in one run.

    python benchmarks/bench_fit.py                      a generated graph of the size of the MIND split
    python benchmarks/bench_fit.py --workspace WS       the split and vectors of a workspace
    python benchmarks/bench_fit.py --json

Each figure is the median of its repetitions; the machine, the threads and the versions stand above them.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import scipy
import scipy.sparse as sp

from reclm_lite.cf.fit import Inputs, fit_arrays
from reclm_lite.data.dataset import Split, load_split
from reclm_lite.kernels import native
from reclm_lite.workspace import Workspace

EPOCHS = 3


def generated(seed: int = 0) -> Inputs:
    """57,128 users, 2,386 items, about 90,000 interactions with a long tail on both sides."""
    rng = np.random.default_rng(seed)
    n_users, n_items = 57_128, 2_386
    degree = np.minimum(rng.geometric(0.65, n_users), 40)
    users = np.repeat(np.arange(n_users), degree)
    items = np.minimum((n_items * rng.random(len(users)) ** 4).astype(np.int64), n_items - 1)
    matrix = sp.csr_matrix((np.ones(len(users), np.float32), (users, items)), shape=(n_users, n_items))
    matrix.sum_duplicates()
    matrix.data[:] = 1.0
    chosen = rng.random(matrix.nnz) < 0.05
    parts = []
    for keep in (~chosen, chosen):
        part = matrix.copy()
        part.data = keep.astype(np.float32)
        part.eliminate_zeros()
        parts.append(part)
    text = rng.standard_normal((n_items, 384), dtype=np.float32)
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    empty = sp.csr_matrix(matrix.shape, dtype=np.float32)
    split = Split(parts[0], parts[1], empty, empty, np.arange(n_items, dtype=np.int32), np.zeros(0, np.int32))
    return Inputs(split, text)


def of_workspace(root: Path) -> Inputs:
    with Workspace.open(root) as ws:
        text = None
        if ws.has("vectors/items"):
            text = ws.load("vectors/items", made_by="reclm embed items").arrays["vectors"]
        return Inputs(load_split(ws), text)


def median_seconds(function, repetitions: int) -> float:
    function()
    seconds = []
    for _ in range(repetitions):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def bench_training(inputs: Inputs, n_threads: int) -> list[dict]:
    rows = []
    for preset in ("paper", "default"):
        for model in ("biasmf", "lightgcn"):
            stamps = [time.perf_counter()]
            fit_arrays(
                inputs, model, preset=preset, epochs=EPOCHS, refit=False, n_threads=n_threads,
                progress=lambda *_, stamps=stamps: stamps.append(time.perf_counter()),
            )  # fmt: skip
            # The first epoch compiles the loops.
            seconds = statistics.median(np.diff(stamps)[1:])
            rows.append({"what": f"epoch of {model}, {preset}", "seconds": seconds,
                         "per_second": inputs.split.train.nnz / seconds, "unit": "interactions"})  # fmt: skip
    return rows


def bench_kernels(inputs: Inputs, n_threads: int) -> list[dict]:
    train = inputs.split.train
    rng = np.random.default_rng(0)
    items = rng.standard_normal((train.shape[1], 64), dtype=np.float32)
    users = rng.standard_normal((min(8192, train.shape[0]), 64), dtype=np.float32)
    matrix = native.make_csr(train.indptr, train.indices, None, train.shape)
    seen = train[: len(users)]
    mask = native.make_csr(seen.indptr, seen.indices, None, seen.shape)

    def numpy_topk() -> None:
        scores = users @ items.T
        rows = np.repeat(np.arange(len(users)), np.diff(seen.indptr))
        scores[rows, seen.indices] = -np.inf
        part = np.argpartition(-scores, 19, axis=1)[:, :20]
        np.take_along_axis(part, np.argsort(-np.take_along_axis(scores, part, 1), axis=1), 1)

    timed = {
        "propagation, 64 columns, kernel": (lambda: native.spmm(matrix, items, n_threads=n_threads), train.nnz, "edges"),
        "propagation, 64 columns, scipy": (lambda: train @ items, train.nnz, "edges"),
        "masked top-20, 64 columns, kernel": (
            lambda: native.topk(users, items, 20, seen=mask, n_threads=n_threads), len(users), "users",
        ),
        "masked top-20, 64 columns, numpy": (numpy_topk, len(users), "users"),
    }  # fmt: skip
    rows = []
    for what, (function, count, unit) in timed.items():
        seconds = median_seconds(function, 7)
        rows.append({"what": what, "seconds": seconds, "per_second": count / seconds, "unit": unit})
    return rows


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workspace", type=Path)
    parser.add_argument("--threads", type=int, default=native.default_threads())
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    inputs = of_workspace(arguments.workspace) if arguments.workspace else generated()
    split = inputs.split
    about = {
        "machine": processor(), "threads": arguments.threads, "python": platform.python_version(),
        "numpy": np.__version__, "scipy": scipy.__version__,
        "n_users": split.n_users, "n_items": split.n_items, "n_train": split.train.nnz,
    }  # fmt: skip
    rows = bench_kernels(inputs, arguments.threads) + bench_training(inputs, arguments.threads)
    if arguments.json:
        json.dump({"about": about, "rows": rows}, sys.stdout, indent=2)
        print()
        return 0
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    for row in rows:
        print(f"{row['what']:36} {row['seconds'] * 1e3:10.1f} ms {row['per_second']:14,.0f} {row['unit']}/s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
