"""The top-level folder `kernels/` does not pass for the package `kernels` that transformers looks for."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("folder", ["kernels", "tests/kernels"])
def test_folder_that_could_shadow_a_package_has_no_init(folder):
    assert not (REPO / folder / "__init__.py").exists()


def test_kernels_modules_import_nothing_relatively():
    import ast

    for path in sorted((REPO / "kernels").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            assert not (isinstance(node, ast.ImportFrom) and node.level), f"{path.relative_to(REPO)} imports relatively"


def is_kernels_available(folder: Path) -> str:
    """What transformers says with `folder` first on sys.path, as `python -c` puts it there."""
    code = "import transformers; print(transformers.utils.is_kernels_available())"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    run = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr[-2000:]
    return run.stdout.strip().splitlines()[-1]


def test_transformers_sees_the_same_from_the_repo_root_as_from_elsewhere(tmp_path):
    if importlib.util.find_spec("transformers") is None:
        pytest.skip("transformers is not installed")
    assert is_kernels_available(REPO) == is_kernels_available(tmp_path)
