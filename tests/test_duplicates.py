"""No function is written twice: functions that are equal but for their names are found and must be merged.

Two functions are duplicates if their bodies are the same syntax tree once variables and parameters are numbered in the
order in which they appear, and docstrings, comments, annotations and defaults are left out. Attributes, constants and
keyword arguments must be equal. Of classes, the fields' names must be equal too. Functions and classes of at most
MAX_LINES lines are free.
"""

import ast
import copy
from collections import defaultdict

import pytest
from source_modules import MODULES

MAX_LINES = 6  # of a body as ruff formats it, without its docstring

# Pairs that may stay, each with the reason.
EXCEPTIONS: dict[frozenset[str], str] = {}


class _Numbered(ast.NodeTransformer):
    """Names of variables and parameters become numbers; annotations and defaults go."""

    def __init__(self) -> None:
        self.numbers: dict[str, str] = {}

    def _number(self, name: str) -> str:
        return self.numbers.setdefault(name, f"v{len(self.numbers)}")

    def visit_Name(self, node: ast.Name) -> ast.Name:
        return ast.Name(self._number(node.id), node.ctx)

    def visit_arg(self, node: ast.arg) -> ast.arg:
        return ast.arg(self._number(node.arg))

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        if node.value is None:
            return ast.Pass()
        return self.visit(ast.Assign([node.target], node.value))

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> ast.AST:
        self.generic_visit(node)
        node.name = node.name and self._number(node.name)
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        return ast.FunctionDef(
            self._number(node.name),
            self.visit(
                ast.arguments(
                    node.args.posonlyargs,
                    node.args.args,
                    node.args.vararg,
                    node.args.kwonlyargs,
                    [],
                    node.args.kwarg,
                    [],
                )
            ),
            [self.visit(statement) for statement in _body(node)],
            [],
        )


def _body(node: ast.FunctionDef | ast.ClassDef) -> list[ast.stmt]:
    """The statements of a function or class without its docstring."""
    return node.body[1:] if ast.get_docstring(node, clean=False) is not None else node.body


def _key(node: ast.FunctionDef | ast.ClassDef) -> str:
    if isinstance(node, ast.ClassDef):
        return ast.dump(ast.Module(_body(node), []))
    return ast.dump(_Numbered().visit(copy.deepcopy(node)))


def definitions(source: str) -> dict[str, ast.FunctionDef | ast.ClassDef]:
    """Qualified name -> definition, for every function and class that is long enough."""
    found = {}

    def walk(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            name = prefix
            if isinstance(child, (ast.FunctionDef, ast.ClassDef)):
                name = f"{prefix}{child.name}."
                body = _body(child)
                if body and body[-1].end_lineno - body[0].lineno + 1 > MAX_LINES:
                    found[name[:-1]] = child
            walk(child, name)

    walk(ast.parse(source), "")
    return found


def duplicates(sources: dict[str, str]) -> list[frozenset[str]]:
    """Groups of functions and classes, as `module:name`, that are equal but for their names."""
    alike = defaultdict(list)  # by the types of their nodes, which is quick and tells most apart
    for module, source in sources.items():
        for name, node in definitions(source).items():
            body = ast.Module(_body(node), [])
            alike[tuple(type(one) for one in ast.walk(body) if isinstance(one, (ast.stmt, ast.Call)))].append(
                (f"{module}:{name}", node)
            )
    groups = defaultdict(list)
    for several in alike.values():
        for name, node in several if len(several) > 1 else ():
            groups[_key(node)].append(name)
    return [frozenset(group) for group in groups.values() if len(group) > 1]


def test_no_function_and_no_class_is_written_twice():
    found = duplicates({name: path.read_text(encoding="utf-8") for name, path in MODULES.items()})
    unknown = [sorted(group) for group in found if group not in EXCEPTIONS]
    assert not unknown, f"written more than once: {unknown}: keep one"
    gone = [sorted(group) for group in EXCEPTIONS if group not in found]
    assert not gone, f"no duplicates any more: {gone}: take them off the lists"


LONG = """
def first(a, b):
    total = 0
    for x in a:
        if x > b:
            total += x
        else:
            total -= x.size
    return total
"""


@pytest.mark.parametrize(
    ("change", "equal"),
    [
        ({}, True),
        ({"total": "kept", "first": "second", "a": "rows"}, True),
        ({"(a, b)": "(a: int, b: int = 3)"}, True),
        ({"> b": ">= b"}, False),
        ({"x.size": "x.shape"}, False),
        ({"total = 0": "total = 1"}, False),
    ],
)
def test_the_finder_sees_through_names_and_nothing_else(change, equal):
    other = LONG
    for old, new in change.items():
        other = other.replace(old, new)
    assert bool(duplicates({"one.py": LONG, "two.py": other})) is equal
