"""The modules of the package, wherever their folders lie, for tests that read its source."""

import ast
import importlib.util
from pathlib import Path

import reclm_lite

PACKAGE = Path(reclm_lite.__file__).parent
# These two lie outside the package's folder in the repository and in an editable install.
ELSEWHERE = ("kernels", "convert")


def modules() -> dict[str, Path]:
    """`data/split.py` -> its file, for every module of the package, wherever its folder lies."""
    folders = {"": [PACKAGE]}
    for part in ELSEWHERE:
        spec = importlib.util.find_spec(f"reclm_lite.{part}")
        folders[part] = [Path(folder) for folder in spec.submodule_search_locations] if spec else []
    found = {}
    for part, roots in folders.items():
        for root in roots:
            for path in root.rglob("*.py"):
                name = (Path(part) / path.relative_to(root)).as_posix()
                if part or name.split("/")[0] not in ELSEWHERE:
                    found[name] = path
    return dict(sorted(found.items()))


MODULES = modules()
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}
