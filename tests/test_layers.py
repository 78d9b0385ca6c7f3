"""Imports point one way, and the command line starts light.

The table below is the design's: each part of the package and the parts it may import. It is read from the
source with `ast`, so an import inside a function counts as well; only `cli` may import everything, and what it
pulls in at start-up is checked in a process of its own.
"""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from source_modules import MODULES, PACKAGE, TREES

BASE = {
    "artefacts",
    "csv_cells",
    "printable",
    "assets",
    "errors",
    "types",
    "memory",
    "schema",
    "forget_plan",
    "staleness",
    "workspace",
    "workspace_toml",
    "writer_lock",
    "gguf_charsmap",
    "gguf_summary",
    "gguf_file",
    "runtime",
    "probe",
    "threads",
    "files",
    "own_paths",
    "chat_template",
    "__init__",
}

# part -> parts that it may import, in addition to itself.
ALLOWED = {
    "errors": set(),
    "types": set(),
    "assets": {"errors"},
    "memory": {"errors"},
    "gguf_summary": set(),
    "gguf_charsmap": set(),
    "gguf_limits": {"errors", "gguf_charsmap", "gguf_summary"},
    "gguf_file": {"errors", "gguf_limits", "gguf_summary"},
    "own_paths": {"errors"},
    "files": {"errors", "own_paths"},
    "chat_template": set(),
    "threads": {"errors"},
    "probe_child": set(),  # run as a script in a process of its own
    "probe": {"errors", "files", "gguf_file", "probe_child"},
    "runtime": {"errors", "gguf_file", "files", "probe", "threads"},
    "schema": {"errors"},
    "artefacts": {"memory"},
    "printable": set(),
    "csv_cells": set(),
    "database": {"database_known", "database_pages", "errors", "files", "schema"},
    "database_known": set(),
    "database_pages": {"database_known"},
    "writer_lock": {"database", "errors"},
    "workspace_toml": {"errors", "files"},
    "forget_plan": {"files"},
    "staleness": {"artefacts"},
    "workspace": {
        "artefacts",
        "database",
        "errors",
        "files",
        "forget_plan",
        "own_paths",
        "schema",
        "staleness",
        "workspace_toml",
        "writer_lock",
        "__init__",
    },
    "kernels": {"errors", "threads"},
    # Quantizing and proving parity go through llama.cpp, which `runtime` alone loads.
    "convert": {"errors", "files", "gguf_file", "runtime", "chat_template", "__init__"},
    "data": {"artefacts", "errors", "forget_plan", "memory", "own_paths", "types", "workspace", "__init__"},
    "text": {"artefacts", "assets", "errors", "files", "types", "workspace", "runtime", "probe", "data"},
    "metrics": {"kernels"},
    "cf": {"artefacts", "errors", "files", "own_paths", "types", "memory", "workspace", "kernels", "data", "metrics"},
    "prompts": {"errors", "types", "workspace", "text", "data", "cf"},
    "dialogue": {"errors", "files", "own_paths", "types", "workspace", "text", "data", "cf", "prompts"},
    "profiles": BASE | {"data", "text", "prompts", "dialogue", "cf", "kernels"},
    "evaluate": BASE | {"metrics", "data", "text", "prompts", "dialogue", "cf", "kernels"},
    "serve": BASE | {"metrics", "data", "text", "prompts", "dialogue", "cf", "profiles", "evaluate", "kernels"},
    "report": BASE
    | {"metrics", "data", "text", "prompts", "dialogue", "cf", "profiles", "evaluate", "kernels", "serve"},
    "status": BASE | {"data", "cf", "profiles", "evaluate"},
    "user_rows": {"artefacts"},
    "forget_summary": {"errors", "workspace"},
    "forget_files": {"data", "errors", "forget_summary", "workspace"},
    "forget": BASE | {"data", "profiles", "user_rows", "forget_files", "forget_summary"},
    # Dialogues are made before and models exported after: tuning knows neither workspaces nor GGUF.
    "tune": {"errors", "files", "own_paths", "memory", "chat_template", "prompts", "dialogue", "__init__"},
    "bench": BASE
    | {
        "metrics",
        "data",
        "text",
        "prompts",
        "dialogue",
        "cf",
        "profiles",
        "evaluate",
        "kernels",
        "serve",
        "report",
        "convert",
        "tune",
    },
}
# Of cf, sibling stages may use the interface (and what the interface is made of), not its insides.
CF_IS_PUBLIC_AS = {"fitted", "models", "names", "neighbors", "ranking", "store", "untrained"}
HEAVY = ("torch", "transformers", "numba", "llama_cpp", "scipy", "duckdb")
# Comparing a converted model with the original takes the original's software, and timing a peer takes the peer.
MAY_IMPORT_TORCH = ("convert/parity/", "bench/")
ONLY_FOR_TUNING = ("torch", "transformers", "peft")
# The extra [ray] and what comes with it: two modules may import them, and only when they are used.
OF_RAY = ("ray", "pyarrow")
MAY_IMPORT_RAY = {"profiles/sources/ray_cluster.py", "profiles/sources/ray_worker.py"}


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


def test_the_table_of_layers_names_only_parts_that_exist():
    parts = {name.split("/")[0].removesuffix(".py") for name in MODULES}
    named = set(ALLOWED).union(BASE, *ALLOWED.values())
    assert named <= parts, f"no such parts: {sorted(named - parts)}"


def test_no_module_outside_tune_imports_torch():
    found = {name: imports_of_others(TREES[name]) & set(ONLY_FOR_TUNING) for name in MODULES}
    assert not {
        name: libraries
        for name, libraries in found.items()
        if libraries and not name.startswith(("tune/", *MAY_IMPORT_TORCH))
    }


def imports_of_others(tree: ast.AST) -> set[str]:
    """The first names of absolute imports anywhere in a piece of source."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module.split(".")[0])
    return found


def test_ray_is_imported_by_its_source_only_and_in_functions_only():
    assert {name for name in MODULES if imports_of_others(TREES[name]) & set(OF_RAY)} == MAY_IMPORT_RAY
    for name in MAY_IMPORT_RAY:
        at_import = [node for node in TREES[name].body if not isinstance(node, (ast.FunctionDef, ast.ClassDef))]
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


MAX_LINES = 400


def test_no_module_is_longer_than_400_lines():
    n_lines = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in MODULES.items()}
    assert not {name: n for name, n in n_lines.items() if n > MAX_LINES}, "split them"


def module_of(names: tuple[str, ...]) -> str | None:
    """The module that a dotted import runs: `("data", "split", "run")` -> `data/split.py`."""
    for n in range(len(names), 0, -1):
        path = "/".join(names[:n])
        for name in (f"{path}.py", f"{path}/__init__.py"):
            if name in MODULES:
                return name
    return None


def circles(edges: dict[str, set[str]]) -> list[frozenset[str]]:
    """Groups of modules that reach each other (strongly connected components of more than one)."""
    reached = {}
    for start in edges:
        todo, seen = list(edges[start]), set()
        while todo:
            name = todo.pop()
            if name not in seen:
                seen.add(name)
                todo += edges.get(name, ())
        reached[start] = seen
    found = set()
    for start in edges:
        if start in reached[start]:
            found.add(frozenset(name for name in reached[start] if start in reached.get(name, ())))
    return list(found)


def test_no_modules_import_each_other_in_a_circle():
    """Imports inside functions and for types count: they only hide a circle."""
    edges = {
        name: {target for target in map(module_of, imports_of(name)) if target not in (None, name)} for name in MODULES
    }
    found = circles(edges)
    assert not found, f"circles of imports: {[sorted(c) for c in found]}: move what both need into a module below them"


def test_a_circle_is_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": {"e"}, "e": set()}) == [frozenset("abc")]


def need_cli():
    if not (PACKAGE / "cli" / "__init__.py").is_file():
        pytest.skip("there is no command line yet")


def test_importing_the_command_line_loads_nothing_heavy():
    need_cli()
    code = f"import sys, reclm_lite.cli; print([name for name in {HEAVY!r} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def help_command() -> list[str]:
    return [sys.executable, "-c", "import sys; sys.argv = ['reclm', '--help']; from reclm_lite.cli import main; main()"]


@pytest.mark.parametrize("verb", [[], ["import"], ["tune"], ["tune", "ppo"]], ids=" ".join)
def test_help_loads_nothing_heavy(verb):
    need_cli()
    code = (
        f"import sys\nsys.argv = {['reclm', *verb, '--help']!r}\nfrom reclm_lite.cli import main\n"
        f"try:\n    main()\nfinally:\n    print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0 and "Usage" in run.stdout
    assert run.stderr.strip() == "[]"


def test_help_imports_few_modules():
    """What `reclm --help` takes is what it imports: some 130 modules, of which Python itself loads 30."""
    need_cli()
    code = (
        "import sys\nsys.argv = ['reclm', '--help']\nfrom reclm_lite.cli import main\n"
        "try:\n    main()\nfinally:\n"
        "    print(len(sys.modules), file=sys.stderr)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0 and "Usage" in run.stdout
    assert int(run.stderr) < 200
