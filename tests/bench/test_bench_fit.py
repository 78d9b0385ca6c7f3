"""`reclm bench fit`: epochs, fits of untrained models, evaluation, and LightGCN against torch."""

import json
from pathlib import Path

import numpy as np
import pytest
from bench_command import bench
from click.testing import CliRunner

from reclm_lite.bench.fitting.fit_bench import ALL_MODELS, LARGE_MODELS
from reclm_lite.bench.fitting.torch_reference import load
from reclm_lite.cf.models import MODELS, TRAINED
from reclm_lite.cli import main
from reclm_lite.errors import InputError


def test_the_models_are_those_of_the_registry_trained_ones_first():
    assert sorted(ALL_MODELS) == sorted(MODELS) and ALL_MODELS[: len(TRAINED)] == tuple(TRAINED)
    assert set(LARGE_MODELS) <= set(MODELS)
    refused = CliRunner().invoke(main, ["bench", "fit", "--model", "bert"])
    assert refused.exit_code == 2 and all(f"'{model}'" in refused.stderr for model in MODELS)


def test_fit_times_models_and_their_evaluation_and_reports_that_the_reference_is_missing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where the reference is not found
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
    rows = {row["name"]: row["note"] for group in document["groups"] for row in group["rows"] if "torch" in row["name"]}
    assert set(rows) == {"torch COO", "torch CSR"} and all("not found" in note for note in rows.values())


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


def test_fit_times_the_torch_reference_where_it_is_given():
    pytest.importorskip("torch")
    path = Path(__file__).parents[2] / "benchmarks" / "torch_lightgcn.py"
    _, document = bench("fit", "--quick", "--model", "lightgcn", "--threads", "1", "--reference", str(path))
    groups = [group for group in document["groups"] if "against torch" in group["name"]]
    assert [group["name"] for group in groups] == ["lightgcn against torch, bpr", "lightgcn against torch, ssm"]
    for group in groups:
        assert [row["name"] for row in group["rows"] if row["median_ms"]] == ["reclm", "torch COO", "torch CSR"]


def test_a_reference_of_another_kind_is_refused(tmp_path):
    (tmp_path / "other.py").write_text("x = 1\n")
    with pytest.raises(InputError, match="expected a class TorchLightGCN"):
        load(tmp_path / "other.py")


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
        ["fit", "--quick", "--large"],
        ["fit", "--reference", "nowhere.py"],
        ["nothing"],
    ):
        assert CliRunner().invoke(main, ["bench", *arguments]).exit_code == 2, arguments


def test_a_workspace_that_is_not_there_exits_with_one(tmp_path):
    result = CliRunner().invoke(main, ["bench", "fit", "-w", str(tmp_path / "nowhere")])
    assert result.exit_code == 1 and "is not a workspace" in result.stderr
