"""`reclm bench`: graphs of exact size like real ones, results compared before they are timed, missing peers told."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
from click.testing import CliRunner

from reclm_lite.bench import machine, timing
from reclm_lite.bench.graphs import NEWS, Shape, hold_out, normalised_adjacency, power_law
from reclm_lite.bench.results import Group, Target, lines_of
from reclm_lite.bench.timing import Timing, take_turns
from reclm_lite.cli import main
from reclm_lite.errors import InputError
from reclm_lite.kernels import native


def degrees(matrix: sp.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    return np.diff(matrix.indptr), np.bincount(matrix.indices, minlength=matrix.shape[1])


@pytest.mark.parametrize(
    "sizes", [(29_858, 40_981, 810_128), (300, 200, 2_000), (40, 40, 400), (5, 7, 8), (20, 30, 10), (1, 4, 1)]
)
def test_power_law_has_exactly_the_interactions_asked_for_and_none_twice(sizes):
    matrix = power_law(*sizes, seed=3)
    assert matrix.shape == sizes[:2] and matrix.nnz == sizes[2]
    assert matrix.dtype == np.float32 and set(matrix.data) == {1.0}
    keys = np.repeat(np.arange(sizes[0]), np.diff(matrix.indptr)) * sizes[1] + matrix.indices
    assert (np.diff(keys) > 0).all()
    for degree, n in zip(degrees(matrix), sizes[:2], strict=True):
        assert degree.min() >= (1 if sizes[2] >= n else 0)


def test_power_law_is_a_function_of_its_seed():
    one, same, other = (power_law(300, 200, 2_000, seed) for seed in (1, 1, 2))
    assert (one != same).nnz == 0 and (one != other).nnz > 0


def test_power_law_has_degrees_like_a_public_check_in_graph():
    """Gowalla as LightGCN splits it: users from 8 to 811, mean 27; items of mean 20, the most visited by about
    1,400."""
    users, items = degrees(power_law(29_858, 40_981, 810_128))
    assert users.min() >= 5 and 600 <= users.max() <= 1200 and 12 <= np.median(users) <= 20
    assert 1000 <= items.max() <= 2000 and 5 <= np.median(items) <= 15
    assert 0.1 <= np.sort(items)[-len(items) // 100 :].sum() / items.sum() <= 0.3


def test_news_shape_has_short_histories_and_a_few_items_that_everyone_read():
    """Beside the MIND split: users 1 at the median and 26 at most; its first 1 % of items hold 40 %."""
    users, items = degrees(power_law(57_128, 2_386, 89_734, shape=NEWS))
    assert np.median(users) == 1 and users.max() == 26
    assert 0.3 <= np.sort(items)[-len(items) // 100 :].sum() / items.sum() <= 0.5


def test_ids_say_nothing_of_degree():
    users, items = degrees(power_law(3_000, 2_000, 40_000))
    for degree in (users, items):
        assert abs(np.corrcoef(np.arange(len(degree)), degree)[0, 1]) < 0.1


def test_communities_can_be_found_and_are_absent_where_none_are_planted():
    """Eight communities lift eight singular values of the normalised graph above those of chance."""
    planted, plain = (
        np.linalg.svd(
            normalised_adjacency(power_law(600, 500, 12_000, shape=shape))[:600, 600:].toarray(), compute_uv=False
        )
        for shape in (Shape(n_communities=8), Shape(n_communities=1))
    )
    assert planted[7] > 1.05 * plain[1] and planted[7] > 1.1 * planted[8]


@pytest.mark.parametrize("sizes", [(0, 5, 1), (5, 5, 0), (4, 4, 5), (5, 5, 26)])
def test_power_law_refuses_what_does_not_fit(sizes):
    with pytest.raises(InputError, match="interactions"):
        power_law(*sizes)


def test_hold_out_takes_a_share_of_each_user_and_never_all():
    matrix = power_law(300, 200, 3_000)
    kept, out = hold_out(matrix, 0.25)
    assert (kept + out != matrix).nnz == 0 and kept.multiply(out).nnz == 0
    assert np.diff(kept.indptr).min() >= 1 and 0.2 < out.nnz / matrix.nnz < 0.3


def test_normalised_adjacency_is_symmetric_with_a_largest_eigenvalue_of_one():
    joined = normalised_adjacency(power_law(60, 50, 500)).toarray()
    np.testing.assert_array_equal(joined, joined.T)
    assert np.linalg.eigvalsh(joined.astype(np.float64)).max() == pytest.approx(1.0, abs=1e-5)


def test_contenders_take_turns(monkeypatch):
    monkeypatch.setattr(timing, "PAUSE_SECONDS", 0.0)
    calls = []
    result = take_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3, turn_seconds=0.0)
    # Each once, then in every turn one call that does not count and one that does.
    assert "".join(calls) == "ab" + "aabb" * 3
    assert result["a"].n_calls == result["b"].n_calls == 3
    assert result["a"].min_seconds <= result["a"].median_seconds


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the peak since a moment")
def test_peak_memory_sees_an_array_that_is_gone_again():
    """In a process of its own: memory that an earlier test has freed would be used again."""
    code = """
import numpy as np
from reclm_lite.bench.timing import PeakMemory
for n_bytes in (40 << 20, 1):
    with PeakMemory() as memory:
        np.ones(n_bytes, np.uint8).sum()
    print(memory.extra_bytes)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seen, nothing = map(int, run.stdout.split())
    assert 36 << 20 < seen < 60 << 20 and nothing < 10 << 20


def test_memory_of_topk_is_measured_in_the_repository_too(monkeypatch):
    """A child's working directory must not stand for the installed package."""
    from reclm_lite.bench.memory import topk_extra_bytes

    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    monkeypatch.chdir(Path(__file__).parents[2])
    assert topk_extra_bytes(64, 5000, 16, 5, 1) > 0
    with pytest.raises(
        native.KernelError, match="memory of topk: the process that measures it failed.*precision: expected one of"
    ):
        topk_extra_bytes(1, 1, 1, 1, 1, precision="int4")


def test_near_ties_are_right_in_either_order_and_other_ids_are_not():
    from reclm_lite.bench.topk import as_good_as

    users, items = np.array([[1.0, 1.0]], np.float32), np.array([[1, 1], [1, 1 + 1e-7], [1, 1.01], [0, 0]], np.float32)
    exact = np.array([[2, 1, 0]])
    assert as_good_as(np.array([[2, 0, 1]]), exact, users, items).all()
    assert as_good_as(np.array([[1, 2, 3]]), exact, users, items).tolist() == [[False, False, False]]


def test_a_target_says_met_missed_or_not_measured():
    assert [Target("", 2.0, figure).state for figure in (2.0, 1.9, None)] == ["met", "missed", "not measured"]
    assert [Target("", 2.0, figure, at_least=False).state for figure in (2.0, 2.1)] == ["met", "missed"]


def test_a_ratio_is_that_of_medians_and_a_missing_peer_is_told():
    group = Group("g", "a group", "things", 1000)
    group.add("fast", Timing(0.001, 0.0005, 3))
    group.add("slow", Timing(0.004, 0.0005, 3))
    group.add_missing("absent")
    group.expect("fast", 3.0, "slow")
    group.expect("fast", 3.0, "absent")
    assert [(target.figure, target.state) for target in group.targets] == [(4.0, "met"), (None, "not measured")]
    text = "\n".join(lines_of([group]))
    assert "absent  not installed" in text and "met  fast against slow >= 3x: 4x" in text and "1 M things/s" in text


def bench(*arguments: str) -> tuple[list[str], dict]:
    result = CliRunner().invoke(main, ["bench", *arguments])
    assert result.exit_code == 0, f"{result.output}\n{result.exception!r}"
    *table, line = result.stdout.splitlines()
    return table, json.loads(line)


@pytest.mark.parametrize("part", ["spmm", "topk", "knn", "training"])
def test_kernels_time_ours_and_every_peer_that_is_installed(part):
    table, document = bench("kernels", "--quick", "--only", part, "--threads", "1")
    assert document["benchmark"] == "kernels" and document["machine"]["n_threads"] == 1
    assert document["groups"] and table[0].startswith(document["machine"]["cpu"])
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
    from reclm_lite.bench import spmm

    monkeypatch.setattr(spmm.native, "spmm", lambda matrix, dense, *, out, **_: np.copyto(out, 0) or out)
    result = CliRunner().invoke(main, ["bench", "kernels", "--quick", "--only", "spmm"])
    assert result.exit_code == 1 and "differs from float64" in result.stderr and not result.stdout


def test_fit_times_models_and_their_evaluation():
    table, document = bench(
        "fit", "--quick", "--model", "lightgcn", "--model", "popularity", "--model", "ease", "--threads", "1"
    )
    groups = {group["name"]: group for group in document["groups"]}
    assert [row["name"] for row in groups["epochs"]["rows"]] == ["lightgcn, default", "lightgcn, paper"]
    assert [row["name"] for row in groups["closed form"]["rows"]] == ["popularity", "ease"]
    assert {row["name"] for row in groups["evaluation"]["rows"]} == {"lightgcn", "popularity", "ease"}
    recall = {row["name"]: row["facts"]["recall_20"] for row in groups["closed form"]["rows"]}
    assert recall["ease"] > recall["popularity"] > 0
    assert document["data"][0]["n_train"] + document["data"][0]["n_test"] == 6_000


def test_fit_measures_on_a_workspace(tmp_path):
    rng = np.random.default_rng(0)
    pairs = {(user, int(item)) for user in range(40) for item in rng.integers(0, 30, 8)}
    table = tmp_path / "orders.csv"
    table.write_text("customer,sku\n" + "".join(f"u{user},i{item}\n" for user, item in sorted(pairs)), encoding="utf-8")
    ws = str(tmp_path / "shop")
    for arguments in (
        ["init", ws],
        ["import", "table", str(table), "-w", ws, "--user", "customer", "--item", "sku"],
        ["split", "-w", ws, "--method", "ratio"],
    ):
        assert CliRunner().invoke(main, arguments).exit_code == 0
    table_lines, document = bench(
        "fit", "-w", ws, "--model", "biasmf", "--model", "gfcf", "--epochs", "1", "--threads", "1"
    )
    (data,) = document["data"]
    assert data["source"] == ws and data["n_users"] == 40 and data["n_train"] + data["n_test"] == len(pairs)
    assert any(ws in line for line in table_lines)


def test_fit_tells_that_the_reference_is_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, document = bench("fit", "--quick", "--model", "lightgcn", "--threads", "1")
    rows = {row["name"]: row["note"] for group in document["groups"] for row in group["rows"] if "torch" in row["name"]}
    assert set(rows) == {"torch COO", "torch CSR"} and all("not found" in note for note in rows.values())


def test_fit_times_the_torch_reference_where_it_is_given():
    pytest.importorskip("torch")
    path = Path(__file__).parents[2] / "benchmarks" / "torch_lightgcn.py"
    _, document = bench("fit", "--quick", "--model", "lightgcn", "--threads", "1", "--reference", str(path))
    groups = [group for group in document["groups"] if "against torch" in group["name"]]
    assert [group["name"] for group in groups] == ["lightgcn against torch, bpr", "lightgcn against torch, ssm"]
    for group in groups:
        assert [row["name"] for row in group["rows"] if row["median_ms"]] == ["reclm", "torch COO", "torch CSR"]


def test_a_reference_of_another_kind_is_refused(tmp_path):
    pytest.importorskip("torch")
    (tmp_path / "other.py").write_text("x = 1\n")
    result = CliRunner().invoke(
        main, ["bench", "fit", "--quick", "--model", "lightgcn", "--reference", str(tmp_path / "other.py")]
    )
    assert result.exit_code == 1 and "TorchLightGCN" in result.stderr


def test_json_prints_one_line_alone():
    result = CliRunner().invoke(main, ["bench", "fit", "--quick", "--model", "popularity", "--json"])
    assert (
        result.exit_code == 0
        and len(result.stdout.splitlines()) == 1
        and json.loads(result.stdout)["benchmark"] == "fit"
    )


def test_bad_usage_exits_with_two():
    for arguments in (
        ["kernels", "--only", "gemm"],
        ["kernels", "--repeats", "0"],
        ["fit", "--model", "bert"],
        ["fit", "--quick", "--large"],
        ["fit", "--reference", "nowhere.py"],
        ["nothing"],
    ):
        assert CliRunner().invoke(main, ["bench", *arguments]).exit_code == 2, arguments


def test_a_workspace_that_is_not_there_exits_with_one(tmp_path):
    result = CliRunner().invoke(main, ["bench", "fit", "-w", str(tmp_path / "nowhere")])
    assert result.exit_code == 1 and "is not a workspace" in result.stderr


def test_importing_the_benchmarks_loads_no_peer():
    code = (
        "import sys, reclm_lite.bench.kernels, reclm_lite.bench.fit; print([n for n in ('torch', 'implicit', "
        "'numba') if n in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_bench_tune_measures_both_algorithms_and_tells_a_missing_peer():
    pytest.importorskip("peft")
    table, document = bench("tune", "--quick", "--threads", "1")
    rows = {row["name"]: row for row in document["groups"][0]["rows"]}
    for name in ("reclm tune ppo", "reclm tune ppo --algorithm grpo"):
        facts = rows[name]["facts"]
        assert (
            facts["peak_bytes"] >= facts["loaded_bytes"] > 50e6
            and len(facts["seconds"]) == 1
            and rows[name]["per_second"] > 0
        )
    missing = rows["trl PPOTrainer, as it comes"]
    assert (
        missing["median_ms"] is None
        and "--trl-python" in missing["note"]
        and any("--trl-python" in line for line in table)
    )
    result = CliRunner().invoke(main, ["bench", "tune", "--quick", "--trl-python", "/nowhere/python"])
    assert result.exit_code and "/nowhere/python" in result.stderr
