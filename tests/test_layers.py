"""Imports point one way, and the command line starts light.

The table below is the design's: each part of the package and the parts it may import. It is read from the
source with `ast`, so an import inside a function counts as well; only `cli` may import everything, and what it
pulls in at start-up is checked in a process of its own.
"""

import ast
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

import reclm_lite

PACKAGE = Path(reclm_lite.__file__).parent
BASE = {
    "artefacts",
    "csv_cells",
    "printable",
    "assets",
    "errors",
    "types",
    "memory",
    "schema",
    "workspace",
    "provenance",
    "gguf_file",
    "runtime",
    "probe",
    "threads",
    "files",
    "chat_template",
    "__init__",
}

# part -> parts it may import, besides itself.
ALLOWED = {
    "errors": set(),
    "types": set(),
    "assets": {"errors"},
    "provenance": {"errors"},
    "memory": {"errors"},
    "gguf_limits": {"errors", "gguf_file"},  # the latter for its types alone
    "gguf_file": {"errors", "gguf_limits"},
    "files": {"errors"},
    "chat_template": set(),
    "threads": {"errors"},
    "probe_child": set(),  # run as a script in a process of its own
    "probe": {"errors", "files", "gguf_file", "probe_child"},
    "runtime": {"errors", "gguf_file", "files", "probe", "threads"},
    "schema": {"errors"},
    "artefacts": {"memory"},
    "printable": set(),
    "csv_cells": set(),
    "database": {"errors", "schema"},
    "workspace": {"artefacts", "database", "errors", "types", "schema", "provenance", "files", "__init__"},
    "kernels": {"errors", "threads"},
    # Quantizing and proving parity go through llama.cpp, which `runtime` alone loads.
    "convert": {"errors", "gguf_file", "runtime", "chat_template", "__init__"},
    "data": {"errors", "memory", "types", "workspace", "__init__"},
    "text": {"assets", "errors", "types", "workspace", "provenance", "runtime", "probe", "data"},
    "cf": {"artefacts", "errors", "files", "types", "memory", "workspace", "provenance", "kernels", "data"},
    "dialogue": {"errors", "files", "types", "workspace", "text", "data", "cf"},
    "profiles": BASE | {"data", "text", "dialogue", "cf", "kernels"},
    "evaluate": BASE | {"data", "text", "dialogue", "cf", "kernels"},
    "serve": BASE | {"data", "text", "dialogue", "cf", "profiles", "evaluate", "kernels"},
    "report": BASE | {"data", "text", "dialogue", "cf", "profiles", "evaluate", "kernels", "serve"},
    "status": BASE | {"data", "cf", "profiles", "evaluate"},
    "user_rows": set(),
    "forget": BASE | {"data", "profiles", "user_rows"},
    # Dialogues are made before and models exported after: tuning knows neither workspaces nor GGUF.
    "tune": {"errors", "files", "memory", "chat_template", "dialogue", "__init__"},
    "bench": BASE
    | {"data", "text", "dialogue", "cf", "profiles", "evaluate", "kernels", "serve", "report", "convert", "tune"},
}
# Of cf, sibling stages may use the interface (and what the interface is made of), not its insides.
CF_IS_PUBLIC_AS = {"interface", "neighbors"}
HEAVY = ("torch", "transformers", "numba", "llama_cpp", "scipy", "duckdb")
# Comparing a converted model with the original takes the original's software, and timing a peer takes the peer.
MAY_IMPORT_TORCH = ("convert/parity/", "bench/")
ONLY_FOR_TUNING = ("torch", "transformers", "peft")
# The extra [ray] and what comes with it: one module may import them, and only when it is used.
OF_RAY = ("ray", "pyarrow")
MAY_IMPORT_RAY = "profiles/sources/ray_cluster.py"


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


def imports_of(name: str) -> set[tuple[str, ...]]:
    """Every module of this package that a file imports, as tuples of names after `reclm_lite`."""
    package = ["reclm_lite", *name.split("/")[:-1]]
    found = set()
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            targets = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = base + (node.module.split(".") if node.module else [])
            targets = [stem + [alias.name] for alias in node.names]
        else:
            continue
        for target in targets:
            if target[:1] == ["reclm_lite"]:
                found.add(tuple(target[1:]) if len(target) > 1 else ("__init__",))
    return found


def part_of(names: tuple[str, ...]) -> str:
    """The part a dotted import belongs to; a name of the package itself (`__version__`) is `__init__`."""
    first = names[0]
    known = {name.split("/")[0].removesuffix(".py") for name in MODULES}
    return first if first in known else "__init__"


def test_every_module_imports_only_what_its_layer_may():
    wrong = []
    for name in MODULES:
        layer = name.split("/")[0].removesuffix(".py")
        if layer in ("cli", "__main__", "quickstart"):
            continue
        if layer == "__init__":
            assert not imports_of(name), "the package itself imports nothing"
            continue
        assert layer in ALLOWED, f"{layer} is not in the table of layers: add it to the design and to this test"
        for names in imports_of(name):
            target = part_of(names)
            if target == layer:
                continue
            if target not in ALLOWED[layer]:
                wrong.append(f"{name} ({layer}) imports {'.'.join(names)}")
            # bench measures the insides too
            if target == "cf" and layer not in ("cf", "bench") and not set(names[1:2]) & CF_IS_PUBLIC_AS:
                wrong.append(f"{name} reaches into {'.'.join(names)}")
    assert not wrong, "\n".join(wrong)


def imports_of_others(tree: ast.AST) -> set[str]:
    """The first names of absolute imports anywhere in a piece of source."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module.split(".")[0])
    return found


def test_no_module_outside_tune_imports_torch():
    found = {name: imports_of_others(TREES[name]) & set(ONLY_FOR_TUNING) for name in MODULES}
    assert not {
        name: libraries
        for name, libraries in found.items()
        if libraries and not name.startswith(("tune/", *MAY_IMPORT_TORCH))
    }


def test_ray_is_imported_by_its_source_alone_and_in_functions_alone():
    found = {name for name in MODULES if imports_of_others(TREES[name]) & set(OF_RAY)}
    assert found == {MAY_IMPORT_RAY} and set(OF_RAY) <= imports_of_others(TREES[MAY_IMPORT_RAY])
    at_import = [
        node
        for node in ast.walk(TREES[MAY_IMPORT_RAY])
        if isinstance(node, ast.stmt) and node.col_offset == 0 and not isinstance(node, (ast.FunctionDef, ast.ClassDef))
    ]
    assert not imports_of_others(ast.Module(at_import, [])) & set(OF_RAY)


def test_a_profile_run_without_ray_does_not_load_it(tmp_path):
    code = """
import sys
from pathlib import Path
from profile_workspace import make_workspace
from tiny_llama import write_tiny_llama
from reclm_lite.profiles.generate import RunSettings, run_profiles
from reclm_lite.profiles.sources import SourceSettings
root = Path(sys.argv[1])
model = write_tiny_llama(root / "tiny.gguf", n_ctx=512)
with make_workspace(root / "ws", {0: [1, 2, 3]}) as ws:
    source = SourceSettings(str(model), n_threads=1)
    assert run_profiles(ws, "users", source=source, settings=RunSettings(n_retries=0)).n_generated == 1
print(sorted({name.split(".")[0] for name in sys.modules} & set(sys.argv[2:])))
"""
    paths = os.pathsep.join([str(Path(__file__).parent / "helpers"), *filter(None, [os.environ.get("PYTHONPATH")])])
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), *OF_RAY],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "[]"


def test_no_module_is_longer_than_500_lines():
    n_lines = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in MODULES.items()}
    assert not {name: n for name, n in n_lines.items() if n > 525}


def need_cli():
    if not (PACKAGE / "cli" / "__init__.py").is_file():
        pytest.skip("there is no command line yet")


def test_importing_the_command_line_loads_nothing_heavy():
    need_cli()
    code = f"import sys, reclm_lite.cli; print([name for name in {HEAVY!r} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_help_loads_nothing_heavy_and_few_modules():
    """What `reclm --help` takes is what it imports: some 130 modules, of which Python itself loads 30."""
    need_cli()
    code = (
        "import sys\nsys.argv = ['reclm', '--help']\nfrom reclm_lite.cli import main\n"
        "try:\n    main()\nfinally:\n"
        f"    print(len(sys.modules), *[name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0 and "Usage" in run.stdout
    n_modules, *heavy = run.stderr.split()
    assert not heavy and int(n_modules) < 200
