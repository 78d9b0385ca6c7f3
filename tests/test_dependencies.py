"""What pyproject.toml says of other packages is true.

Every lower bound is a version that the suite was run with: constraints-floors.txt pins exactly these for
`make test-floors`, and constraints.txt pins what `make test` takes. Every package that the source imports is declared:
for everybody, or in an extra for the modules that the extra is for. Left out: whether the suite passes with the lowest
versions, which `make test-floors` answers.
"""

import ast
import functools
import re
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
OWN = canonicalize_name(PROJECT["project"]["name"])

# Imported under another name than they are installed under.
INSTALLED_AS = {"llama_cpp": "llama-cpp-python"}
# Where an extra's packages may be imported: file or folder -> extras. Everywhere else, only what everybody has.
EXTRAS_OF = {
    "reclm_lite/tune/": ("tune", "qlora"),
    "reclm_lite/bench/": ("bench",),
    "reclm_lite/dialogue/budget.py": ("export",),
    "reclm_lite/profiles/sources/ray_cluster.py": ("ray",),
    "reclm_lite/profiles/sources/ray_worker.py": ("ray",),
    "convert/parity/": ("export", "tune"),
    "convert/vocab/differences.py": ("export",),
    "tests/fuzz/": ("dev", "fuzz"),
    "tests/": ("dev",),
}
# Only these import an extra's packages outside functions: all other modules can be imported without any extra.
MAY_IMPORT_EXTRAS_AT_ONCE = ("reclm_lite/tune/", "tests/")
# What benchmarks are timed beside, run by the Python of another environment; `conversion` is llama.cpp's own source.
PEERS = {"trl", "datasets", "sentence_transformers", "conversion"}
# Not imported here: PyTorch writes event files with the first, transformers reads tokenizer.model with the others.
NEEDED_BY_OTHERS = {"tensorboard", "sentencepiece", "protobuf"}


def requirements(lines: list[str]) -> list[Requirement]:
    return [Requirement(line) for line in lines]


@functools.cache
def core() -> list[Requirement]:
    return requirements(PROJECT["project"]["dependencies"])


@functools.cache
def extra(name: str) -> list[Requirement]:
    """An extra's packages, and those of the extras that it names in turn."""
    found = []
    for requirement in requirements(PROJECT["project"]["optional-dependencies"][name]):
        if canonicalize_name(requirement.name) == OWN:
            found += [inner for part in sorted(requirement.extras) for inner in extra(part)]
        else:
            found.append(requirement)
    return found


def direct() -> list[Requirement]:
    every = [*core(), *requirements(PROJECT["build-system"]["requires"])]
    return every + [requirement for name in PROJECT["project"]["optional-dependencies"] for requirement in extra(name)]


def names(requirements: list[Requirement]) -> set[str]:
    return {canonicalize_name(requirement.name) for requirement in requirements}


def pins(file: str) -> dict[str, Version]:
    found = {}
    for line in (ROOT / file).read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, version = line.split("==")
            assert canonicalize_name(name) not in found, f"{file} pins {name} twice"
            found[canonicalize_name(name)] = Version(version)
    return found


def floor(requirement: Requirement) -> Version:
    (lowest,) = [bound.version for bound in requirement.specifier if bound.operator == ">="]
    return Version(lowest)


@pytest.mark.parametrize("requirement", sorted(set(map(str, direct()))))
def test_every_floor_is_the_version_that_the_suite_is_run_with(requirement):
    pinned = pins("constraints-floors.txt").get(canonicalize_name(Requirement(requirement).name))
    assert pinned == floor(Requirement(requirement)), "change both, and run `make test-floors`"


def test_a_package_has_one_floor_wherever_it_is_named():
    bounds = {}
    for requirement in direct():
        bounds.setdefault(canonicalize_name(requirement.name), set()).add(str(requirement.specifier))
    assert {name: found for name, found in bounds.items() if len(found) > 1} == {}


def test_every_direct_dependency_that_make_test_installs_is_pinned_within_its_bounds():
    pinned = pins("constraints.txt")
    for requirement in [*core(), *extra("dev"), *extra("bench"), *extra("fuzz")]:
        assert pinned[canonicalize_name(requirement.name)] in requirement.specifier


@functools.cache
def imports(path: Path) -> dict[str, bool]:
    """Packages that a file imports, of other projects -> whether one import of it runs with the file's own import."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
        for node in ast.walk(function)
    }
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            modules = [node.module]
        else:
            continue
        for module in modules:
            package = module.split(".")[0]
            if package != "reclm_lite" and package not in sys.stdlib_module_names:
                found[package] = found.get(package, False) or id(node) not in inside
    return found


def files(*folders: str) -> list[str]:
    return sorted(path.relative_to(ROOT).as_posix() for folder in folders for path in (ROOT / folder).rglob("*.py"))


def installed_as(package: str) -> str:
    return canonicalize_name(INSTALLED_AS.get(package, package))


def undeclared(file: str, package: str, at_once: bool) -> str | None:
    """What is wrong with this import in this file, if anything."""
    extras = next((parts for place, parts in EXTRAS_OF.items() if file.startswith(place)), ())
    name = installed_as(package)
    if name in names(core()) or (package in PEERS and file.startswith("reclm_lite/bench/")):
        return None
    if name not in {known for part in extras for known in names(extra(part))}:
        return f"{file} imports {package}: declare it in pyproject.toml"
    if at_once and not file.startswith(MAY_IMPORT_EXTRAS_AT_ONCE):
        return f"{file} imports {package}, which not everybody has: import it in a function"
    return None


def test_every_package_that_is_imported_is_declared():
    # Tests import one another, and recipes, by bare names of files and folders.
    helpers = {Path(part).stem for file in files("tests", "recipes") for part in Path(file).parts}
    wrong = []
    for file in files("reclm_lite", "kernels", "convert", "tests"):
        for package, at_once in imports(ROOT / file).items():
            if not (file.startswith("tests/") and package in helpers):
                wrong.append(undeclared(file, package, at_once))
    assert [problem for problem in wrong if problem] == []


@pytest.mark.parametrize(
    ("file", "package", "at_once"),
    [
        ("reclm_lite/cli/info.py", "requests", False),
        ("reclm_lite/cli/info.py", "torch", False),
        ("reclm_lite/tune/base.py", "ray", False),
        ("reclm_lite/cli/tune.py", "trl", False),
        ("convert/parity/tokens.py", "tokenizers", True),
    ],
)
def test_an_import_that_is_not_declared_is_found(file, package, at_once):
    assert undeclared(file, package, at_once)


def test_every_declared_package_is_imported():
    used = {
        installed_as(package) for file in files("reclm_lite", "kernels", "convert") for package in imports(ROOT / file)
    }
    of_users = [
        *core(),
        *(requirement for name in ("tune", "qlora", "export", "ray", "bench") for requirement in extra(name)),
    ]
    assert names(of_users) - used == NEEDED_BY_OTHERS


def test_jinja_is_a_direct_dependency_with_the_sandbox_closed():
    """It would come with llama-cpp-python, which is content with 2.11: templates of foreign models are rendered with
    it."""
    (jinja,) = [requirement for requirement in core() if canonicalize_name(requirement.name) == "jinja2"]
    assert floor(jinja) >= Version("3.1.6")


def test_make_test_floors_takes_the_pins():
    recipe = re.search(
        r"^\$\(FLOORS\)/floors\.stamp:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert recipe and "PIP_CONSTRAINT=constraints-floors.txt" in recipe[1] and '".[dev,bench]"' in recipe[1]
