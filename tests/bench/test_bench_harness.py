"""What all benchmarks share: child processes, turns, peak memory, targets and tables."""

import os
import sys
from pathlib import Path

import pytest
from bench_command import allocate

from reclm_lite.bench import harness
from reclm_lite.bench.comparison import Group, Target, lines_of
from reclm_lite.bench.exporting import export_jobs
from reclm_lite.bench.harness import Timing, call_job, run_command, run_in_child, take_turns
from reclm_lite.errors import ModelError


def job_of(function, **arguments):
    return {"module": function.__module__, "function": function.__name__, "arguments": arguments}


def echo(value):
    return {"value": value, "name": __name__}


def test_a_job_is_a_function_of_a_module_with_json_able_arguments_and_result():
    answer = call_job(job_of(echo, value=[1, "a"]))
    assert answer["result"] == {"value": [1, "a"], "name": __name__} and answer["peak_bytes"] > 5e6


def test_a_child_reports_its_time_and_memory_and_finds_the_package_in_the_repository(monkeypatch):
    """A child's working directory must not stand for the installed package."""
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    monkeypatch.chdir(Path(__file__).parents[2])
    bare = run_in_child(export_jobs.nothing, {})
    assert bare.result is None and 5e6 < bare.peak_bytes < 60e6 and 0 < bare.seconds < 30


def test_a_child_that_fails_gives_the_last_line_it_wrote_and_the_remedy(tmp_path):
    job = {"base": tmp_path / "none", "adapter": tmp_path, "out": tmp_path / "out", "quant": "f16"}
    with pytest.raises(ModelError, match="'export' failed with exit code 1.*folder of a checkpoint at.*; try that$"):
        run_in_child(export_jobs.export, job, remedy="; try that")


def test_a_foreign_program_gets_json_and_variables_and_answers_in_its_last_line(monkeypatch):
    code = "import json, os, sys; print('noise'); print(json.dumps([json.load(sys.stdin), os.environ['OF_BENCH']]))"
    answer = run_command([sys.executable, "-c", code], {"path": Path("a")}, "it", environment={"OF_BENCH": "x"})
    assert answer == [{"path": "a"}, "x"]
    with pytest.raises(KeyError, match="it failed with exit code 3: no message"):
        run_command([sys.executable, "-c", "raise SystemExit(3)"], {}, "it", error=KeyError)


def test_contenders_take_turns(monkeypatch):
    monkeypatch.setattr(harness, "PAUSE_SECONDS", 0.0)
    calls = []
    result = take_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3, turn_seconds=0.0)
    # Each once, then in every turn one call that does not count and one that does.
    assert "".join(calls) == "ab" + "aabb" * 3
    assert result["a"].n_calls == result["b"].n_calls == 3
    assert result["a"].min_seconds <= result["a"].median_seconds


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux resets the peak of a process")
def test_peak_memory_sees_an_array_that_is_gone_again(monkeypatch):
    """In a child: memory that an earlier test has freed would be used again."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1] / "helpers"), prepend=os.pathsep)
    seen, nothing = run_in_child(allocate, {"sizes": [40 << 20, 1]}).result
    assert 36 << 20 < seen < 60 << 20 and nothing < 10 << 20


def test_a_target_says_met_missed_or_not_measured():
    assert [Target("", 2.0, figure).state for figure in (2.0, 1.9, None)] == ["met", "missed", "not measured"]
    assert [Target("", 2.0, figure, at_least=False).state for figure in (2.0, 2.1)] == ["met", "missed"]


def test_a_ratio_is_that_of_medians_and_a_missing_peer_is_reported():
    group = Group("g", "a group", "things", 1000)
    group.add("fast", Timing(0.001, 0.0005, 3))
    group.add("slow", Timing(0.004, 0.0005, 3))
    group.add_missing("absent")
    group.expect("fast", 3.0, "slow")
    group.expect("fast", 3.0, "absent")
    assert [(target.figure, target.state) for target in group.targets] == [(4.0, "met"), (None, "not measured")]
    text = "\n".join(lines_of([group]))
    assert "absent  not installed" in text and "met  fast against slow >= 3x: 4x" in text and "1 M things/s" in text
