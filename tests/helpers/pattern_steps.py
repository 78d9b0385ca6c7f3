"""Counts what backtracking costs: Python's own syntax tree of a pattern, walked as `re` walks it, one count a step.

`patterns_of` finds every pattern of a package in its source, so that a new one cannot be forgotten. `texts_against`
makes texts that fit a pattern up to a place and then repeat one character or word. Left out: optimizations of `re`,
which only save steps.
"""

import ast
import importlib
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from re import _constants as op
from re import _parser

from reclm_lite.convert.name_pattern import stands, takes

MODES = {"compile", "match", "fullmatch", "search", "sub", "subn", "split", "findall", "finditer"}
_REPEATS = (op.MAX_REPEAT, op.MIN_REPEAT, op.POSSESSIVE_REPEAT)
_ONE_CHAR = (op.LITERAL, op.NOT_LITERAL, op.ANY, op.IN)


class TooMany(Exception):
    """More steps than asked for."""


class Steps:
    """The matching of one pattern (`tree`) against one text."""

    def __init__(self, pattern: re.Pattern, text: str, limit: int):
        self.tree, self.flags = _parser.parse(pattern.pattern, pattern.flags & ~re.DEBUG), pattern.flags
        self.text, self.limit, self.n, self.groups = text, limit, 0, {}

    def count(self, mode: str) -> int:
        """Steps of `pattern.mode(text)`. Raises TooMany."""
        at, text = 0, self.text
        while at <= len(text):
            end = next((end for end in self.ends(self.tree, 0, at) if mode != "fullmatch" or end == len(text)), None)
            if mode in ("match", "fullmatch") or (mode == "search" and end is not None):
                break
            at = at + 1 if end is None else max(end, at + 1)
        return self.n

    def step(self, n: int = 1) -> None:
        self.n += n
        if self.n > self.limit:
            raise TooMany

    def takes(self, kind: object, value: object, at: int) -> bool:
        self.step()
        if at >= len(self.text):
            return False
        if kind is op.ANY and self.flags & re.DOTALL:
            return True
        char = self.text[at]
        return takes(kind, value, char) or (
            bool(self.flags & re.I) and any(takes(kind, value, c) for c in (char.lower(), char.upper()) if len(c) == 1)
        )

    def ends(self, tree: object, number: int, at: int) -> Iterator[int]:
        """Where matching the elements from `number` on may end, in the order of backtracking."""
        if number == len(tree):
            yield at
            return
        for middle in self.one(*tree[number], at):
            yield from self.ends(tree, number + 1, middle)

    def one(self, kind: object, value: object, at: int) -> Iterator[int]:
        if kind in _ONE_CHAR:
            if self.takes(kind, value, at):
                yield at + 1
        elif kind is op.AT:
            self.step()
            if stands(value, self.text, at):
                yield at
        elif kind is op.BRANCH:
            for branch in value[1]:
                self.step()
                yield from self.ends(branch, 0, at)
        elif kind is op.SUBPATTERN:
            for end in self.ends(value[3], 0, at):
                self.groups[value[0]] = self.text[at:end]
                yield end
        elif kind in (op.ASSERT, op.ASSERT_NOT):
            direction, tree = value
            start = at if direction > 0 else at - tree.getwidth()[0]
            found = start >= 0 and next(self.ends(tree, 0, start), None) is not None
            if found == (kind is op.ASSERT):
                yield at
        elif kind is op.GROUPREF:
            self.step()
            said = self.groups.get(value, "")
            if self.text.startswith(said, at):
                yield at + len(said)
        elif kind in _REPEATS and len(value[2]) == 1 and value[2][0][0] in _ONE_CHAR:
            yield from self.run(kind, *value, at)
        elif kind in _REPEATS:
            yield from self.repeat(kind, *value, 0, at)
        else:
            raise NotImplementedError(f"{kind}: teach this counter to count it")

    def run(self, kind: object, least: int, most: int, tree: object, at: int) -> Iterator[int]:
        ends = [at]
        while (
            ends[-1] - at < most
            and (kind is not op.MIN_REPEAT or len(ends) <= least)
            and self.takes(*tree[0], ends[-1])
        ):
            ends.append(ends[-1] + 1)
        if kind is op.MIN_REPEAT:
            end = ends[-1]
            while end - at >= least:
                self.step()
                yield end
                if end - at >= most or not self.takes(*tree[0], end):
                    return
                end += 1
            return
        for end in reversed(ends[least:]):
            self.step()
            yield end

    def repeat(self, kind: object, least: int, most: int, tree: object, n: int, at: int) -> Iterator[int]:
        self.step()
        if kind is op.MIN_REPEAT and n >= least:
            yield at
        if n < most:
            for end in self.ends(tree, 0, at):
                if end > at or n < least:
                    yield from self.repeat(kind, least, most, tree, n + 1, end)
        if kind is not op.MIN_REPEAT and n >= least:
            yield at


# -- texts ----------------------------------------------------------------------------


def _samples(tree: object) -> Iterator[str]:
    """A character or more for each element, such that together they match."""
    for kind, value in tree:
        if kind is op.SUBPATTERN:
            yield from _samples(value[3])
        elif kind is op.BRANCH:
            yield from _samples(value[1][0])
        elif kind in _REPEATS:
            yield "".join(_samples(value[2])) * max(1, min(value[0], 64))
        elif kind in _ONE_CHAR:
            yield next((c for c in _chars(kind, value) if takes(kind, value, c)), "a")


def _chars(kind: object, value: object) -> list[str]:
    chars = []
    for one, inner in value if kind is op.IN else [(kind, value)]:
        chars += [chr(inner)] if one in (op.LITERAL, op.NOT_LITERAL) else [chr(inner[0])] if one is op.RANGE else []
    return chars + list("a1 .,;-x\u0301")


def _literals(tree: object) -> Iterator[str]:
    for kind, value in tree:
        if kind in _ONE_CHAR:
            yield from _chars(kind, value)[:3]
        elif kind is op.SUBPATTERN:
            yield from _literals(value[3])
        elif kind is op.BRANCH:
            yield from itertools.chain.from_iterable(_literals(branch) for branch in value[1])
        elif kind in _REPEATS:
            yield from _literals(value[2])


def texts_against(pattern: re.Pattern, length: int, n_units: int = 16) -> Iterator[str]:
    """What matches up to a place, then one character or word again and again, then what cannot match, or nothing."""
    tree = _parser.parse(pattern.pattern, pattern.flags & ~re.DEBUG)
    samples = list(_samples(tree))
    whole = "".join(samples)
    own = list(dict.fromkeys(_literals(tree)))
    starts = list(dict.fromkeys("".join(samples[:n]) for n in range(len(samples) + 1)))
    begun = [
        start[:40] for start in starts[len(starts) // 3 : -1 : max(1, len(starts) // 5)]
    ]  # begins to match, and begins again
    units = list(
        dict.fromkeys([" ", *own[:: max(1, len(own) // 6)], "1", "a", *begun, "a ", whole[:40], "\u0301\u0323", "("])
    )[:n_units]
    for start, unit in itertools.product(starts[:: max(1, len(starts) // 10)], filter(None, units)):
        for end in ("", "\x01"):
            text = start + unit * (length // len(unit)) + end
            if not isinstance(pattern.pattern, bytes) or text.isascii():
                yield text


# -- patterns ---------------------------------------------------------------------------


def patterns_of(package: Path, name: str) -> Iterator[tuple[str, re.Pattern | None, str]]:
    """(where, pattern, mode) of every pattern in the sources of a package; None for one that no constant and no module
    holds."""
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(package.rglob("*.py"))}
    used: dict[str, set[str]] = {}
    for node in itertools.chain.from_iterable(map(ast.walk, trees.values())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.attr in MODES:
            used.setdefault(node.value.id, set()).add(node.attr)
    for path, tree in trees.items():
        inside = path.relative_to(package)
        held = {
            id(node.value): node.targets[0].id
            for node in tree.body
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
        }
        for node in ast.walk(tree):
            func = node.func if isinstance(node, ast.Call) else None
            if not (
                isinstance(func, ast.Attribute)
                and isinstance(func.value, ast.Name)
                and func.value.id == "re"
                and func.attr in MODES
            ):
                continue
            where = f"{inside}:{node.lineno}"
            if id(node) in held:
                module = importlib.import_module(".".join([name, *inside.with_suffix("").parts]))
                for mode in sorted(used.get(held[id(node)], {"search"})):
                    yield where, getattr(module, held[id(node)]), mode
            elif isinstance(node.args[0], ast.Constant):
                yield where, re.compile(node.args[0].value), "search" if func.attr == "compile" else func.attr
            else:
                yield where, None, func.attr
