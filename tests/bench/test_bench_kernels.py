"""`reclm bench kernels`: results are compared before they are timed, and missing peers are reported."""

import subprocess
import sys

import numpy as np
import pytest
from bench_command import bench
from click.testing import CliRunner

from reclm_lite.bench import KERNEL_PARTS, machine
from reclm_lite.bench.kernels import spmm_bench
from reclm_lite.bench.kernels.topk_bench import as_good_as, topk_extra_bytes
from reclm_lite.cli import main
from reclm_lite.kernels import native


def test_memory_of_topk_is_measured_in_a_child_and_a_failure_is_a_kernel_error():
    assert topk_extra_bytes(64, 5000, 16, 5, 1) > 0
    with pytest.raises(native.KernelError, match="measuring the memory of topk failed.*precision: expected one of"):
        topk_extra_bytes(1, 1, 1, 1, 1, precision="int4")


def test_near_ties_are_right_in_either_order_and_other_ids_are_not():
    users, items = np.array([[1.0, 1.0]], np.float32), np.array([[1, 1], [1, 1 + 1e-7], [1, 1.01], [0, 0]], np.float32)
    exact = np.array([[2, 1, 0]])
    assert as_good_as(np.array([[2, 0, 1]]), exact, users, items).all()
    assert as_good_as(np.array([[1, 2, 3]]), exact, users, items).tolist() == [[False, False, False]]


def test_kernels_time_ours_and_every_peer_that_is_installed():
    table, document = bench("kernels", "--quick", "--threads", "1")
    assert document["benchmark"] == "kernels" and document["machine"]["n_threads"] == 1
    names = {group["name"] for group in document["groups"]}
    assert names >= {"spmm", "propagation", "topk", "topk trained", "knn", "negatives", "InfoNCE", "Adam"}
    assert document["settings"]["parts"] == list(KERNEL_PARTS) and table[0].startswith(document["machine"]["cpu"])
    for group in document["groups"]:
        for row in group["rows"]:
            module = next((name for name in ("torch", "implicit") if row["name"].startswith(name)), "numpy")
            assert (row["median_ms"] is not None) == machine.installed(module), row
            assert row["median_ms"] is None or row["min_ms"] <= row["median_ms"]
        assert any(row["name"].startswith("reclm") for row in group["rows"])
    assert {row["unit"] for row in document["limits"]} == {"GB/s", "GFLOP/s"}


def test_kernels_tell_peers_that_are_not_installed(monkeypatch):
    monkeypatch.setattr(machine, "installed", lambda module: False)
    table, document = bench("kernels", "--quick", "--only", "spmm", "--threads", "1")
    missing = {row["name"]: row["note"] for row in document["groups"][0]["rows"] if row["median_ms"] is None}
    assert missing == {"torch CSR": "not installed", "torch COO": "not installed"}
    assert any("torch COO" in line and "not installed" in line for line in table)


def test_a_wrong_result_is_an_error_and_is_not_timed(monkeypatch):
    monkeypatch.setattr(spmm_bench.native, "spmm", lambda matrix, dense, *, out, **_: np.copyto(out, 0) or out)
    result = CliRunner().invoke(main, ["bench", "kernels", "--quick", "--only", "spmm"])
    assert result.exit_code == 1 and "differs from float64" in result.stderr and not result.stdout


def test_importing_the_benchmarks_loads_no_peer():
    code = """
import sys
import reclm_lite.bench.fitting.fit_bench, reclm_lite.bench.kernels.kernel_bench
print([name for name in ("torch", "implicit", "numba") if name in sys.modules])
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
