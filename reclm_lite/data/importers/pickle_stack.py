"""The state that the opcodes of a pickle work on: bytes, stack, marks and memo, each with checked bounds.

Left out: the opcodes (pickle_opcodes.py), and the objects that they build (pickle_values.py).
"""

import struct

from .pickle_values import NAMES, UnbuiltArray, damaged, foreign, kind

_GAP = object()


class PickleStack:
    """The stack, marks and memo of one pickle.

    memo: values by index; picklers count from 0, cPickle from 1, so an index never allocates more than one element.
    array_bytes_left: the budget of further arrays. All arrays together have at most as many bytes as the file.
    """

    __slots__ = ("array_bytes_left", "data", "marks", "memo", "position", "stack")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 0
        self.array_bytes_left = len(data)
        self.stack: list[object] = []
        self.marks: list[int] = []
        self.memo: list[object] = []

    # -- bytes ------------------------------------------------------------------

    def take(self, n_bytes: int) -> bytes:
        start = self.position
        end = start + n_bytes
        if n_bytes < 0 or end > len(self.data):
            raise damaged(f"byte {start} begins a value of {n_bytes} bytes, and {len(self.data) - start} are left")
        self.position = end
        return self.data[start:end]

    def number(self, layout: struct.Struct) -> int:
        return layout.unpack(self.take(layout.size))[0]

    def line(self, max_bytes: int) -> bytes:
        start = self.position
        end = self.data.find(b"\n", start, start + max_bytes + 1)
        if end < 0:
            raise damaged(f"byte {start} begins a line that does not end within {max_bytes} bytes")
        self.position = end + 1
        return self.data[start:end]

    # -- stack and memo ---------------------------------------------------------

    def pop(self, n: int) -> list[object]:
        start = len(self.stack) - n
        if start < (self.marks[-1] if self.marks else 0):
            raise damaged(f"the opcode at byte {self.position - 1} takes a value that is not there")
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def pop_mark(self) -> list[object]:
        if not self.marks:
            raise damaged(f"the opcode at byte {self.position - 1} takes a mark that is not there")
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def top(self, *types: type) -> object:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise damaged(f"the opcode at byte {self.position - 1} takes a value that is not there")
        value = self.stack[-1]
        if types and type(value) not in types:
            raise damaged(f"the opcode at byte {self.position - 1} adds to a {kind(value)}")
        return value

    def put(self, index: int) -> None:
        value, memo = self.top(), self.memo
        if index == 1 and not memo:
            memo.append(_GAP)
        if index != len(memo):
            raise damaged(f"it keeps value {index} where {len(memo)} comes next")
        memo.append(value)
        if type(value) is UnbuiltArray and value.memo is not None:
            value.memo.append(index)

    def get(self, index: int) -> None:
        if not 0 <= index < len(self.memo) or self.memo[index] is _GAP:
            raise damaged(f"it uses value {index}, which it has not kept")
        self.stack.append(self.memo[index])

    def name(self, module: str, name: str) -> None:
        found = NAMES.get((module, name))
        if found is None:
            raise foreign(f"{module}.{name}")
        self.stack.append(found)
