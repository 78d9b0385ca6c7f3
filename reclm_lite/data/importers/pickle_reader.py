"""Reads a pickle without Python's own unpickler: nothing in it is executed, and its content is bounded.

pickle_opcodes.py has the supported opcodes, pickle_stack.py the state that they work on.
"""

from dataclasses import dataclass

from .pickle_opcodes import HANDLERS, STOP
from .pickle_stack import PickleStack
from .pickle_values import damaged, too_large


@dataclass(frozen=True)
class PickleLimits:
    """Limits on a pickle. The largest published file has 1.7 million bytes, 340,000 opcodes and three levels.

    An opcode creates an object of at most about 90 bytes in addition to copies of its own bytes, so max_opcodes bounds
    these at 450 MB. max_values counts a shared value at every use, so that traversing a value is bounded too.
    """

    max_file_bytes: int = 256 << 20
    max_opcodes: int = 5_000_000
    max_values: int = 5_000_000
    max_depth: int = 8


LIMITS = PickleLimits()


def read(data: bytes, limits: PickleLimits) -> object:
    """The value of a pickle, unchecked: it may contain placeholders and cycles. Raises PickleRefused."""
    reader = _Reader(data, limits)
    reader.run()
    return reader.result()


class _Reader(PickleStack):
    """One pickle, read from its first opcode to its last."""

    __slots__ = ("limits",)

    def __init__(self, data: bytes, limits: PickleLimits) -> None:
        super().__init__(data)
        self.limits = limits

    def run(self) -> None:
        data, end, handlers = self.data, len(self.data), HANDLERS
        for _ in range(self.limits.max_opcodes):
            if self.position >= end:
                raise damaged("it ends without the opcode STOP" if end else "it is empty")
            code = data[self.position]
            self.position += 1
            if code == STOP:
                return
            handlers[code](self)
        raise too_large(f"{self.limits.max_opcodes:,} opcodes")

    def result(self) -> object:
        if len(self.stack) != 1 or self.marks:
            raise damaged(f"it ends with {len(self.stack)} values and {len(self.marks)} open marks, not with one value")
        if self.position != len(self.data):
            raise damaged(f"{len(self.data) - self.position} bytes follow its end")
        return self.stack[0]
