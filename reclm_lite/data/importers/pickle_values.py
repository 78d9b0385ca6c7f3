"""The values that a pickle of this format may contain, and the checks that turn them into arrays.

A pickle builds an array in steps: an empty array, then a dtype, then the state of both. Here each step fills a plain
placeholder. Once shape, dtype and bytes are known to be consistent, NumPy gets bytes of exactly that size; before that,
no code of NumPy or SciPy sees anything from the file.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

# All allowed dtypes, with their letters in `struct`: no structures, objects, text, dates or long doubles.
_LETTERS = {
    "b1": "?",
    "i1": "b",
    "i2": "h",
    "i4": "i",
    "i8": "q",
    "u1": "B",
    "u2": "H",
    "u4": "I",
    "u8": "Q",
    "f2": "e",
    "f4": "f",
    "f8": "d",
}
# The format has vectors; similar files have at most a matrix.
MAX_NDIM = 2
# NumPy multiplies the lengths of all axes: two of this size times 8 bytes stay below 2**63. No file is that long.
MAX_AXIS = 1 << 29
# A dictionary with names as keys, such as an item's texts, has few of them. The limit bounds the work of each use.
MAX_FIELDS = 64


class PickleRefused(Exception):
    """The reason why a pickle is refused: the rest of a sentence that begins with the file's name."""


def damaged(detail: str) -> PickleRefused:
    return PickleRefused(f"is not a whole pickle ({detail}): copy it again")


def unexpected(detail: str) -> PickleRefused:
    return PickleRefused(
        f"contains {detail}, which no file of this format does: refused, nothing in it was run; download it again "
        "from its publisher"
    )


def foreign(name: str) -> PickleRefused:
    return PickleRefused(
        f"names the class {shown(name)}, which is not among those this format needs (NumPy arrays, SciPy's "
        "coo_matrix): refused, nothing in it was run; download it again from its publisher"
    )


def too_large(limit: str) -> PickleRefused:
    return PickleRefused(
        f"has more than {limit}: expected a published file of this format; import large data of your own as a table"
    )


def shown(text: str) -> str:
    """`text` from a file for a message: printable ASCII, truncated."""
    cut = text if len(text) <= 60 else text[:60] + "..."
    return cut if cut.isascii() and cut.isprintable() else ascii(cut)


def kind(value: object) -> str:
    """The type of a value, for a message."""
    names = {
        PickledDict: "dictionary",
        CooMatrix: "coo_matrix",
        np.ndarray: "array",
        UnbuiltArray: "array",
        DType: "dtype",
        Name: "class",
        int: "whole number",
        str: "text",
        type(None): "None",
    }
    return names.get(type(value), type(value).__name__)


class PickledDict(list):
    """A dictionary as a flat list key, value, key, value, …, in file order; keys are int or str and may repeat.

    Nothing is hashed: hashes of integers are predictable, so a file could choose keys that all collide.
    """

    __slots__ = ()

    def keys(self) -> list[int | str]:
        return self[::2]

    def values(self) -> list[object]:
        return self[1::2]

    def items(self) -> Iterator[tuple[int | str, object]]:
        return zip(self.keys(), self.values(), strict=True)

    def add(self, flat: list[object]) -> None:
        if len(flat) % 2:
            raise damaged("a key without a value")
        if not set(map(type, flat[::2])) <= {int, str}:
            found = next(key for key in flat[::2] if type(key) not in (int, str))
            raise unexpected(f"a dictionary whose key is a {kind(found)}, not a whole number or text")
        self.extend(flat)

    def fields(self) -> dict[str, object] | None:
        """The dictionary if its keys are few distinct strings; else None."""
        if len(self) > 2 * MAX_FIELDS or not set(map(type, self.keys())) <= {str}:
            return None
        fields = dict(self.items())
        return fields if 2 * len(fields) == len(self) else None


class Name:
    """One of the names that a pickle may call. The file only gets this object, never the callable itself."""

    __slots__ = ()


NDARRAY, DTYPE, RECONSTRUCT, SCALAR, COO_MATRIX = (Name() for _ in range(5))
NAMES = {("numpy", "ndarray"): NDARRAY, ("numpy", "dtype"): DTYPE}
for _core in ("numpy.core", "numpy._core"):
    NAMES[(f"{_core}.multiarray", "_reconstruct")] = RECONSTRUCT
    NAMES[(f"{_core}.multiarray", "scalar")] = SCALAR
for _module in ("coo", "_coo"):
    NAMES[(f"scipy.sparse.{_module}", "coo_matrix")] = COO_MATRIX


class UnbuiltArray:
    """The result of `_reconstruct`: an array without state. memo: the memo indices that hold it; None after BUILD."""

    __slots__ = ("memo",)

    def __init__(self) -> None:
        self.memo: list[int] | None = []


@dataclass(slots=True)
class DType:
    """A dtype. code: a key of _LETTERS. order: "<" or ">"; None (native) before BUILD."""

    code: str
    order: str | None = None

    @property
    def itemsize(self) -> int:
        return int(self.code[1])

    @property
    def text(self) -> str:
        return (self.order or "=") + self.code


class CooMatrix:
    """A pickled coo_matrix: its state by name, with unchecked values; None before BUILD."""

    __slots__ = ("state",)

    def __init__(self) -> None:
        self.state: dict[str, object] | None = None


def call(name: object, args: object) -> object:
    """REDUCE: the placeholder for the result of calling `name` with `args`."""
    if name is RECONSTRUCT:
        if not (
            _are(args, Name, tuple, (bytes, str))
            and args[0] is NDARRAY
            and args[2] in (b"b", "b")
            and _ints(args[1]) == (0,)
        ):
            raise unexpected("an array that is not built as NumPy builds it")
        return UnbuiltArray()
    if name is DTYPE:
        # Flags are (False, True), which old NumPy wrote as (0, 1).
        if not _are(args, str, (bool, int), (bool, int)) or args[1:] != (0, 1) or args[0] not in _LETTERS:
            code = f" {shown(args[0])}" if type(args) is tuple and args and type(args[0]) is str else ""
            raise unexpected(f"a dtype{code} that is not a number's or not written as NumPy writes it")
        return DType(args[0])
    if name is SCALAR:
        if not _are(args, DType, (bytes, str)):
            raise unexpected("a NumPy scalar that is not built as NumPy builds it")
        dtype, data = args[0], _bytes(args[1])
        if len(data) != dtype.itemsize:
            raise unexpected(f"a NumPy scalar of {dtype.itemsize} bytes with {len(data)}")
        return struct.unpack((dtype.order or "=") + _LETTERS[dtype.code], data)[0]
    if name is COO_MATRIX and type(args) is tuple and not args:
        return CooMatrix()
    raise unexpected("a call of what is no function of NumPy's arrays")


def new(name: object, args: object) -> CooMatrix:
    """NEWOBJ: creates a coo_matrix, and nothing else."""
    if name is COO_MATRIX and type(args) is tuple and not args:
        return CooMatrix()
    raise unexpected("an object other than a coo_matrix built by NEWOBJ")


def build(target: object, state: object, max_bytes: int) -> object:
    """BUILD: set the state of `target`; the placeholder of an array becomes an array of at most `max_bytes`.

    Arrays have native byte order, and are read-only if they share the file's bytes.
    """
    if type(target) is UnbuiltArray and target.memo is not None:
        return _array(state, max_bytes)
    if type(target) is DType and target.order is None:
        if not _are(state, int, str, *(type(None),) * 3, int, int, int) or state[0] != 3 or state[5:] != (-1, -1, 0):
            raise unexpected("a dtype whose state is not that of a plain number")
        target.order = _order(target, state[1])
        return target
    if type(target) is CooMatrix and target.state is None:
        fields = state.fields() if type(state) is PickledDict else None
        if fields is None:
            raise unexpected(f"a coo_matrix whose state is no dictionary of at most {MAX_FIELDS} names")
        target.state = fields
        return target
    raise unexpected("a state (BUILD) for something other than an array, a dtype or a coo_matrix, or a second one")


def _order(dtype: DType, order: str) -> str:
    if order in ("<", ">", "="):
        return order
    if order == "|" and dtype.itemsize == 1:
        return "="
    raise unexpected(f"a dtype of the byte order {shown(order)}")


def _array(state: object, max_bytes: int) -> np.ndarray:
    if not _are(state, int, tuple, DType, bool, (bytes, str)) or state[0] != 1:
        raise unexpected("an array whose state is not written as NumPy writes it")
    _, shape, dtype, fortran, data = state
    data = _bytes(data)
    if len(shape) > MAX_NDIM or _ints(shape) is None or not all(0 <= length <= MAX_AXIS for length in shape):
        raise unexpected(f"an array whose shape is not at most {MAX_NDIM} whole numbers from 0 to {MAX_AXIS}")
    n_values = 1
    for length in shape:
        n_values *= length
    if len(data) != n_values * dtype.itemsize:
        raise unexpected(f"an array of {n_values * dtype.itemsize} bytes by its shape with {len(data)} bytes of data")
    if len(data) > max_bytes:
        raise unexpected("arrays with more bytes than the file, because they share them")
    if not n_values:
        return np.zeros(shape, dtype.code)
    if dtype.code == "b1" and data.translate(None, b"\0\1"):
        raise unexpected("an array of booleans with bytes other than 0 and 1")
    values = np.frombuffer(data, dtype.text, n_values).reshape(shape, order="F" if fortran else "C")
    return values if values.dtype.isnative else values.astype(values.dtype.newbyteorder("="))


def _are(values: object, *types: type | tuple[type, ...]) -> bool:
    """Whether it is a tuple of values of exactly these types; a bool does not count as an int."""
    return (
        type(values) is tuple
        and len(values) == len(types)
        and all(
            type(value) in allowed if type(allowed) is tuple else type(value) is allowed
            for value, allowed in zip(values, types, strict=True)
        )
    )


def _ints(values: tuple) -> tuple[int, ...] | None:
    return values if all(type(value) is int for value in values) else None


def _bytes(data: bytes | str) -> bytes:
    """`data` as bytes: Python 2 had one type for text and bytes."""
    if type(data) is str:
        if not data.isascii():
            raise unexpected("text where an array has its bytes")
        return data.encode("ascii")
    return data
