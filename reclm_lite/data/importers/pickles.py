"""Reads the published pickles without executing anything in them.

Unpickling calls whatever a file names, and NumPy's unpickling trusts the sizes in the file. So Python's unpickler is
not used: pickle_reader.py reads the opcodes for dictionaries, lists, tuples, text, numbers, NumPy arrays and SciPy's
COO matrix, under all module names that NumPy 1 and 2 and old SciPy wrote; pickle_values.py has the placeholders for
arrays and matrices and their checks. Everything else is refused by name.

Memory is proportional to the file: an opcode creates one small object or copies its own bytes.
"""

import os
from collections.abc import Collection
from pathlib import Path

import numpy as np

from ...errors import InputError
from .pickle_reader import LIMITS, PickleLimits, read
from .pickle_values import CooMatrix, PickledDict, PickleRefused, too_large, unexpected

__all__ = ["CooMatrix", "PickleLimits", "PickledDict", "load_pickle", "parse_pickle"]

# A value takes at least a byte of the file, unless lists or dictionaries are shared: the average number of uses.
VALUES_ALWAYS_ALLOWED = 1000
VALUES_PER_BYTE = 16
_LEAVES = {int, bool, float, str, bytes, type(None), np.ndarray}


def load_pickle(path: Path, limits: PickleLimits = LIMITS) -> object:
    """The content of a pickle: plain values, arrays, `PickledDict` and `CooMatrix`.

    Raises InputError for a pickle that names any other class (nothing is executed), is damaged or exceeds the limits.
    """
    try:
        with open(path, "rb") as handle:
            # Python allocates the requested size of a read, so request no more than the file has.
            data = handle.read(min(os.fstat(handle.fileno()).st_size, limits.max_file_bytes) + 1)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error}): check its permissions") from error
    return parse_pickle(data, path, limits)


def parse_pickle(data: bytes, path: Path, limits: PickleLimits = LIMITS) -> object:
    """`load_pickle` of a file's bytes; `path` is for messages."""
    try:
        if len(data) > limits.max_file_bytes:
            raise too_large(f"{limits.max_file_bytes:,} bytes")
        return _checked(
            read(data, limits),
            limits.max_depth,
            min(limits.max_values, VALUES_ALWAYS_ALLOWED + VALUES_PER_BYTE * len(data)),
        )
    except PickleRefused as refused:
        raise InputError(f"{path} {refused}") from refused
    except MemoryError as error:
        raise InputError(
            f"{path} does not fit into this machine's memory: {len(data):,} bytes as a file, and more when read"
        ) from error


def _checked(value: object, max_depth: int, max_values: int) -> object:
    """`value`, if its values are complete, not too many and not too deep. Level by level, without recursion."""
    level, n_values = [[value]], 1
    for _ in range(max_depth + 1):
        below = []
        for values in level:
            if set(map(type, values)) <= _LEAVES:
                continue
            for one in values:
                if type(one) in _LEAVES:
                    continue
                below.append(_inside(one))
                n_values += len(below[-1])
                if n_values > max_values:
                    raise too_large(f"{max_values:,} values, shared ones counted wherever they are used")
        if not below:
            return value
        level = below
    raise unexpected(f"values nested deeper than {max_depth} levels, or one that contains itself")


def _inside(value: object) -> Collection[object]:
    if type(value) in (list, tuple, PickledDict):
        return value
    if type(value) is CooMatrix and value.state is not None:
        return value.state.values()
    raise unexpected("an array, dtype or coo_matrix that it does not finish, or the name of a class as a value")
