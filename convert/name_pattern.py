"""Regular expressions from an adapter's configuration, matched against module names in bounded time.

peft takes them as Python's `re` does, which may need exponential time: a pattern is a program from outside. Here the
same syntax, read by Python's own parser, becomes a set of states that are followed all at once (Thompson's
construction), so a name costs at most its length times the number of states. Patterns of fixed length, which nearly all
are, are compared at the name's end. Left out, and refused: what no finite automaton can do or nobody needs for a name
(look-around, references back to groups, possessive and atomic groups, flags).
"""

import functools
import re
import warnings
from re import _constants as op
from re import _parser

MAX_PATTERN_CHARS = 2_000
MAX_NAME_CHARS = 1_000  # module names in use have at most some 100
MAX_STATES = 4_000

_CATEGORIES = {
    op.CATEGORY_DIGIT: str.isdecimal,
    op.CATEGORY_NOT_DIGIT: lambda c: not c.isdecimal(),
    op.CATEGORY_SPACE: str.isspace,
    op.CATEGORY_NOT_SPACE: lambda c: not c.isspace(),
    op.CATEGORY_WORD: lambda c: c.isalnum() or c == "_",
    op.CATEGORY_NOT_WORD: lambda c: not (c.isalnum() or c == "_"),
}
_ONE_CHAR = (op.LITERAL, op.NOT_LITERAL, op.ANY, op.IN)


def is_among(char: str, items: list) -> bool:
    """Whether a character is in a class of the parser: `[a-z_\\d]`, `[^.]`."""
    negated = items[0][0] is op.NEGATE
    for kind, value in items[negated:]:
        if (kind is op.LITERAL and ord(char) == value) or (kind is op.RANGE and value[0] <= ord(char) <= value[1]):
            return not negated
        if kind is op.CATEGORY and _CATEGORIES[value](char):
            return not negated
    return negated


def takes(kind: object, value: object, char: str) -> bool:
    """Whether an element of `_ONE_CHAR` matches a character."""
    if kind is op.IN:
        return is_among(char, value)
    if kind is op.ANY:
        return char != "\n"
    return (ord(char) == value) == (kind is op.LITERAL)


def stands(kind: object, text: str, at: int) -> bool:
    """Whether an anchor holds at a place of the text."""
    if kind in (op.AT_BEGINNING, op.AT_BEGINNING_STRING):
        return at == 0
    if kind is op.AT_END:
        return at == len(text) or (at == len(text) - 1 and text[at] == "\n")
    if kind is op.AT_END_STRING:
        return at == len(text)
    is_word = _CATEGORIES[op.CATEGORY_WORD]
    is_boundary = (at > 0 and is_word(text[at - 1])) != (at < len(text) and is_word(text[at]))
    return is_boundary == (kind is op.AT_BOUNDARY)


class NamePattern:
    """A pattern as peft uses it: it matches a name, or the end of one from a dot on. Raises ValueError, saying why, for
    others."""

    def __init__(self, pattern: str):
        if len(pattern) > MAX_PATTERN_CHARS:
            raise ValueError(f"more than {MAX_PATTERN_CHARS:,} characters")
        try:
            with warnings.catch_warnings(action="ignore", category=FutureWarning):  # of what `[[` may mean some day
                tree, whole = _parser.parse(pattern), _parser.parse(rf"(.*\.)?({pattern})$")
            self._width = tree.getwidth()
        except (re.error, RecursionError, OverflowError) as error:
            raise ValueError(str(error)[:200] or type(error).__name__) from error
        if (tree.state.flags | whole.state.flags) & ~re.UNICODE:
            raise ValueError("flags")
        self.n_steps = 0  # of all names so far; none for a pattern of fixed length
        self._states: list[tuple] = []  # ("take", kind, value, next), ("at", kind, next), ("any", nexts) or ("end",)
        self._first = self._build(whole, self._state("end"))
        fixed = all(kind in _ONE_CHAR for kind, _ in tree)
        with warnings.catch_warnings(action="ignore", category=FutureWarning):
            self._own = re.compile(pattern) if fixed else None

    def matches(self, name: str) -> bool:
        """Whether `re.match(rf"(.*\\.)?({pattern})$", name)` finds anything."""
        if len(name) > MAX_NAME_CHARS:
            raise ValueError(f"a name of {len(name):,} characters")
        start = len(name) - self._width[0]
        if self._own is not None and "\n" not in name:
            return (start == 0 or (start > 0 and name[start - 1] == ".")) and self._own.fullmatch(
                name, start
            ) is not None
        return self._follow(name)

    def _state(self, *state: object) -> int:
        if len(self._states) >= MAX_STATES:
            raise ValueError(f"more than {MAX_STATES:,} states, counted repetitions written out")
        self._states.append(state)
        return len(self._states) - 1

    def _build(self, tree: object, after: int) -> int:
        """The state in which matching `tree` begins, where matching goes on in the state `after`."""
        for kind, value in reversed(list(tree)):
            if kind in _ONE_CHAR:
                after = self._state("take", kind, value, after)
            elif kind is op.AT:
                after = self._state("at", value, after)
            elif kind is op.BRANCH:
                after = self._state("any", [self._build(branch, after) for branch in value[1]])
            elif kind is op.SUBPATTERN and not value[1] and not value[2]:
                after = self._build(value[3], after)
            elif kind in (op.MAX_REPEAT, op.MIN_REPEAT):
                after = self._build_repeat(*value, after)
            else:
                raise ValueError(
                    f"{str(kind).lower().replace('_', ' ')}, which takes time without limit or is not needed for names"
                )
        return after

    def _build_repeat(self, least: int, most: int, tree: object, after: int) -> int:
        if most is op.MAXREPEAT:
            again: list[int] = [after]
            after = self._state("any", again)
            again.append(self._build(tree, after))
        else:
            end = after
            for _ in range(most - least):
                after = self._state("any", [end, self._build(tree, after)])
        for _ in range(least):
            after = self._build(tree, self._state("any", [after]))  # a state each, so that an empty tree is counted too
        return after

    def _follow(self, name: str) -> bool:
        """One step a character, in all states at once."""
        now = [self._first]
        for at in range(len(name) + 1):
            seen, todo, following = set(), now, []
            while todo:
                number = todo.pop()
                if number in seen:
                    continue
                seen.add(number)
                self.n_steps += 1
                kind, *rest = self._states[number]
                if kind == "end":
                    return True
                if kind == "any":
                    todo.extend(rest[0])
                elif kind == "at":
                    if stands(rest[0], name, at):
                        todo.append(rest[1])
                elif at < len(name) and takes(rest[0], rest[1], name[at]):
                    following.append(rest[2])
            now = following
        return False


@functools.lru_cache(maxsize=1 << 15)
def name_pattern(pattern: str) -> NamePattern:
    """The pattern, read once. Raises ValueError as `NamePattern` does."""
    return NamePattern(pattern)
