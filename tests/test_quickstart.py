"""`reclm quickstart` runs the main path on the demo data, offline, within its stated memory."""

import os
import subprocess
import sysconfig
from pathlib import Path

import pytest

from reclm_lite.data.demo import demo_user_ids_to_show
from reclm_lite.workspace import Workspace

RECLM = Path(sysconfig.get_path("scripts")) / "reclm"


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, str, int]:
    """(workspace, stdout, peak KiB) of one run."""
    ws = tmp_path_factory.mktemp("quickstart") / "ws"
    process = subprocess.Popen(
        [RECLM, "quickstart", "-w", ws], stdout=subprocess.PIPE, text=True, env={**os.environ, "COLUMNS": "100"}
    )
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    return ws, output, usage.ru_maxrss


def test_it_shows_three_users_with_profiles_and_reasons(finished):
    ws, output, _ = finished
    for user in demo_user_ids_to_show():
        assert user in output
    assert output.count("User identity: ") == 3 and output.count("User interests: ") >= 3
    assert output.count("Top 10") == 3


def test_it_compares_four_models_in_both_settings(finished):
    _, output, _ = finished
    for label in ("Random", "Popularity", "LightGCN ", "LightGCN + user profiles"):
        assert output.count(label) >= 2, label


def test_it_writes_a_report_and_stays_under_two_gigabytes(finished):
    ws, output, peak_kib = finished
    report = ws / "reports" / "report.html"
    assert str(report) in output.replace("\n", "") and report.stat().st_size > 10_000
    assert peak_kib < 2_000_000


def test_nearly_every_profile_parses(finished):
    with Workspace.open(finished[0]) as ws:
        counts = dict(ws.db.execute("SELECT status, COUNT(*) FROM profiles GROUP BY status"))
    assert counts["ok"] >= 0.95 * sum(counts.values()) and sum(counts.values()) >= 2000


def test_it_refuses_a_workspace_of_the_user(tmp_path):
    ws = tmp_path / "mine"
    Workspace.create(ws).close()
    result = subprocess.run([RECLM, "quickstart", "-w", ws], capture_output=True, text=True, timeout=60)
    assert result.returncode == 1 and "not the workspace of an earlier quickstart" in result.stderr
