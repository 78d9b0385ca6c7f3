"""Reading the published pickles without running anything.

Unpickling calls whatever a file names. Here the only names that resolve are those of NumPy arrays
and of SciPy's COO matrix, under every spelling that NumPy 1 and 2 and old SciPy wrote; the matrix
itself is a plain stand-in, so not even SciPy's own code runs on the file's data. All else is refused.
"""

import pickle
from pathlib import Path

import numpy as np

from ...errors import InputError


class CooMatrix:
    """What a pickled coo_matrix holds: its state, unchecked."""

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, dict):
            raise pickle.UnpicklingError("a coo_matrix whose state is no dictionary")
        self.state = state


def _reconstruct(subtype: type, shape: tuple, typecode: bytes) -> np.ndarray:
    if subtype is not np.ndarray or typecode not in (b"b", "b") or tuple(shape) != (0,):
        raise pickle.UnpicklingError("an array that is not built as NumPy builds it")
    return np.ndarray.__new__(np.ndarray, shape, np.int8)


def _dtype(code: str, align: bool = False, copy: bool = False) -> np.dtype:
    if not isinstance(code, str) or code[:1] not in "biuf":
        raise pickle.UnpicklingError(f"a dtype {code!r}, not a number's")
    return np.dtype(code, align=align, copy=copy)


def _scalar(dtype: np.dtype, data: bytes) -> object:
    return np.frombuffer(data, dtype=dtype, count=1)[0].item()


_ALLOWED = {("numpy", "ndarray"): np.ndarray, ("numpy", "dtype"): _dtype}
for _core in ("numpy.core", "numpy._core"):
    _ALLOWED[(f"{_core}.multiarray", "_reconstruct")] = _reconstruct
    _ALLOWED[(f"{_core}.multiarray", "scalar")] = _scalar
for _module in ("coo", "_coo"):
    _ALLOWED[(f"scipy.sparse.{_module}", "coo_matrix")] = CooMatrix


class _Restricted(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in _ALLOWED:
            raise _ForeignClass(f"{module}.{name}")
        return _ALLOWED[module, name]


class _ForeignClass(pickle.UnpicklingError):
    pass


def load_pickle(path: Path) -> object:
    """The plain objects, arrays and CooMatrix that a pickle holds.

    Raises InputError for a pickle that names any other class (nothing of it is run) or is damaged.
    """
    try:
        with open(path, "rb") as handle:
            return _Restricted(handle).load()
    except _ForeignClass as error:
        raise InputError(
            f"{path} names the class {error}, which is not among those this format needs (NumPy arrays, SciPy's coo_matrix): "
            "refused, nothing in it was run; get the file from its publisher again"
        ) from error
    except (
        pickle.UnpicklingError, EOFError, ValueError, TypeError, IndexError, KeyError, AttributeError,
        UnicodeDecodeError, OverflowError, MemoryError,
    ) as error:  # fmt: skip
        raise InputError(f"{path} is not a whole pickle ({error}): copy it again") from error
