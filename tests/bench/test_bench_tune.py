"""`reclm bench tune`: both algorithms in child processes; a missing peer is reported."""

import pytest
from bench_command import bench
from click.testing import CliRunner

from reclm_lite.cli import main


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
