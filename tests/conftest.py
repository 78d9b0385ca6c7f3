"""Fixtures that the whole suite shares."""

import os
from pathlib import Path

import pytest

# A child started by `python -c` in the repository must find the installed package, not this folder without its kernels.
os.environ.setdefault("PYTHONSAFEPATH", "1")
# Threads of OpenMP that wait for each other sleep instead of spinning: with a worker for each core, spinning takes the
# time of the threads that are waited for. Read when the library is loaded; children inherit it. Results are the same.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# The suite says what holds on a CPU, wherever it runs; `make test-gpu` is for what holds on a GPU.
if not os.environ.get("RECLM_TEST_GPU"):
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of third-party data sets; tests that need it are skipped where it is absent."""
    root = os.environ.get("RECLM_TEST_DATA")
    path = Path(root) if root else Path(__file__).resolve().parents[1].parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip(f"no data sets at {path} (set RECLM_TEST_DATA)")
    return path
