"""`reclm bench export`: a model made on the spot, every contender in a process of its own, results compared, peers
told."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from reclm_lite.bench import machine
from reclm_lite.bench.comparison import Group
from reclm_lite.bench.exporting import export_bench as bench
from reclm_lite.bench.harness import Timing
from reclm_lite.bench.random_llama import QUICK, Shape, write_adapter, write_checkpoint
from reclm_lite.cli import main
from reclm_lite.convert.export_checkpoint import export_checkpoint
from reclm_lite.convert.merge import open_source
from reclm_lite.errors import InputError, ModelError


def test_the_full_model_has_the_parameters_of_a_1_1_b_llama() -> None:
    assert Shape().n_params == 1_100_048_384


def test_the_model_made_is_a_function_of_its_seed_and_merges(tmp_path: Path) -> None:
    one, same, other = (write_checkpoint(tmp_path / name, QUICK, seed) for name, seed in (("1", 1), ("2", 1), ("3", 2)))
    read = [(folder / "model.safetensors").read_bytes() for folder in (one, same, other)]
    assert read[0] == read[1] != read[2]
    source = open_source(one, write_adapter(tmp_path / "adapter", QUICK, one))
    assert {name: tensor.shape for name, tensor in source.tensors.items()} == QUICK.tensors()
    base = open_source(one)
    for layer in range(QUICK.n_layers):
        for name in QUICK.projections():
            key = f"model.layers.{layer}.{name}.weight"
            assert np.abs(source.tensor(key) - base.tensor(key)).mean() > 1e-4


def test_peers_that_are_missing_are_told_and_ours_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "installed", lambda name: name != "peft")
    result = CliRunner().invoke(main, ["bench", "export", "--quick", "--threads", "1"], env={"LLAMA_CPP_SRC": ""})
    assert result.exit_code == 0, result.output
    assert result.stdout.count("peft not installed") >= 2
    group = json.loads(result.stdout.splitlines()[-1])["groups"][0]
    ours = group["rows"][0]
    assert ours["name"] == bench.OURS and ours["median_ms"] > 0 and ours["facts"]["beyond_bytes"][0] > 1e6
    assert group["targets"] == []  # those of the full size


def test_a_wrong_source_tree_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"convert_hf_to_gguf\.py"):
        bench.run(bench.Settings(1, 1, QUICK, tmp_path))


def test_results_that_differ_end_the_benchmark(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", QUICK)
    other = write_checkpoint(tmp_path / "other", QUICK, seed=5)
    for folder in (base, other):
        export_checkpoint(folder, tmp_path / f"{folder.name}.gguf", "f16")
    assert bench._largest_difference(tmp_path / "base.gguf", tmp_path / "base.gguf") == 0
    with pytest.raises(ModelError, match="differ by rounding only"):
        bench._largest_difference(tmp_path / "base.gguf", tmp_path / "other.gguf")


def test_targets_are_twice_the_speed_a_third_of_the_memory_and_a_gigabyte() -> None:
    group = Group("export", "", "weights", 1.0)
    group.add(bench.OURS, Timing(10.0, 10.0, 1), beyond_bytes=[900_000_000])
    group.add(bench.BOTH, Timing(30.0, 30.0, 1), beyond_bytes=[2_000_000_000])
    bench._expect(group)
    assert [(round(target.figure, 2), target.state) for target in group.targets] == [
        (3.0, "met"),
        (0.45, "missed"),
        (0.9, "met"),
    ]


def test_a_full_disk_is_told_before_the_model_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=10**9)
    monkeypatch.setattr(bench.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(InputError, match=r"expected 8\.8 GB free.*found 1\.0;"):
        bench.run(bench.Settings(1, 1))


def test_ours_equals_peft_and_llama_cpps_converter() -> None:
    pytest.importorskip("peft")
    source = os.environ.get("LLAMA_CPP_SRC")
    if not source:
        pytest.skip("no llama.cpp source tree: set LLAMA_CPP_SRC")
    _, line = bench.run(bench.Settings(1, 1, QUICK, Path(source)))
    rows = json.loads(line)["groups"][0]["rows"]
    assert [row["name"] for row in rows] == [bench.OURS, bench.MERGE, bench.BOTH]
    assert rows[0]["facts"]["largest_difference"] <= 2.0**-10
