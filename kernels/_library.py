"""Finds, loads and checks the library of compiled kernels, and validates arguments for all bindings.

The C code (kernels/src) trusts what the bindings (propagate.py, topk.py) pass. ctypes releases the GIL around each
call. Left out: a slow path in Python. A missing library is an error, never a silent fallback; `kernels/reference.py` is
the oracle of the tests.
"""

import ctypes
import functools
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from reclm_lite.errors import InputError, ReclmError
from reclm_lite.threads import check_threads, prove_threads

log = logging.getLogger(__name__)

ABI_VERSION = 2
LIBRARY_NAME = "libreclm_kernels.dylib" if sys.platform == "darwin" else "libreclm_kernels.so"
# In the order of the RECLM_ISA_ numbers of src/isa.h.
ISAS = ("base", "avx2", "avx512", "avx512vnni")
I32, I64, F32, POINTER = ctypes.c_int32, ctypes.c_int64, ctypes.c_float, ctypes.c_void_p


class KernelError(ReclmError):
    """The compiled kernels are missing, have another version, or failed."""


# C status -> (exception, message); RECLM_OK is 0.
STATUS_ERRORS: dict[int, tuple[type[Exception], str]] = {
    1: (MemoryError, "the kernel could not allocate its buffers: free some memory, or pass fewer rows at a time"),
    2: (InputError, "expected sizes >= 0, k >= 1 and at least one thread"),
    3: (InputError, "expected indptr to start at 0, never decrease, and end at the number of stored entries"),
    4: (InputError, "expected every column index within [0, n_columns)"),
    5: (KernelError, "this processor lacks the instruction set that was asked for"),
    6: (InputError, "expected scores without NaN, found one"),
}


def raise_for_status(status: int, what: str) -> None:
    """Raise the exception of a C status; 0 means success."""
    if status == 0:
        return
    if status not in STATUS_ERRORS:
        raise KernelError(f"{what}: the kernel returned the unknown status {status}")
    exception, message = STATUS_ERRORS[status]
    raise exception(f"{what}: {message}")


def find_library() -> Path:
    """The path of the shared library, searched in all folders of the package `reclm_lite.kernels`.

    An editable install has the library in site-packages and the sources in the repository, so the folder of this file
    is not enough. The environment variable RECLM_KERNELS names another build, such as one with sanitizers.
    """
    import reclm_lite.kernels

    if os.environ.get("RECLM_KERNELS"):
        return Path(os.environ["RECLM_KERNELS"])

    folders = [Path(folder) for folder in reclm_lite.kernels.__path__]
    for folder in folders:
        if (folder / LIBRARY_NAME).is_file():
            return folder / LIBRARY_NAME
    raise KernelError(
        f"expected the compiled kernels {LIBRARY_NAME} in one of {', '.join(map(str, folders))}, found none: "
        "install the package with `pip install .`, or build them with `cmake -B build . && cmake --build build`"
    )


@functools.cache
def _library() -> ctypes.CDLL:
    path = find_library()
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise KernelError(f"{path} cannot be loaded ({error}): build it again with `pip install .`") from error
    version = getattr(library, "reclm_abi_version", None)
    found = version() if version else "none"
    if found != ABI_VERSION:
        raise KernelError(f"{path}: expected kernel version {ABI_VERSION}, found {found}; run `pip install .` again")
    _choose_isa(library, os.environ.get("RECLM_ISA", ""))
    log.debug("kernels: %s, instruction set %s", path, ISAS[library.reclm_isa()])
    return library


def _choose_isa(library: ctypes.CDLL, wanted: str) -> None:
    """Choose the best instruction set of the processor, or the one named by RECLM_ISA."""
    usable = [name for number, name in enumerate(ISAS) if library.reclm_isa_supported(number)]
    if wanted and wanted not in usable:
        raise KernelError(
            f"RECLM_ISA: expected one of {', '.join(usable)} on this processor, found {wanted!r}; unset it to have "
            "the best"
        )
    library.reclm_use_isa(ISAS.index(wanted or usable[-1]))


@functools.cache
def function(name: str, *argtypes: type) -> Callable[..., int]:
    """A function of the library that returns a status, with its argument types declared."""
    found = getattr(_library(), name, None)
    if found is None:
        raise KernelError(f"{find_library()} has no function {name}: build it again with `pip install .`")
    # A separate prototype: the library's ctypes function object is shared by all callers.
    return ctypes.CFUNCTYPE(I32, *argtypes)((name, _library()))


def isas() -> list[str]:
    """Names of the instruction sets that this processor supports, best last."""
    supported = function("reclm_isa_supported", I32)
    return [name for number, name in enumerate(ISAS) if supported(number)]


def isa() -> str:
    """The instruction set in use: the best one, or the one named by the environment variable RECLM_ISA."""
    return ISAS[function("reclm_isa")()]


def use_isa(name: str) -> None:
    """Use another instruction set from now on, in the whole process. Must not be called while a kernel runs."""
    if name not in isas():
        raise InputError(f"instruction set: expected one of {', '.join(isas())} on this processor, found {name!r}")
    raise_for_status(function("reclm_use_isa", I32)(ISAS.index(name)), name)


def default_threads() -> int:
    """The default number of threads: OMP_NUM_THREADS (the first of a list), else the CPUs this process may use.

    Raises InputError if OMP_NUM_THREADS is above the supported maximum.
    """
    value = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if value.isascii() and value.isdigit() and value.strip("0"):
        return check_threads(int(value[:20]), InputError, "OMP_NUM_THREADS")
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def integer(name: str, value: int, least: int, most: int, of: str = "") -> int:
    """`value` as a Python int; raises InputError unless in [least, most]. of: explains `most` in the message."""
    if not isinstance(value, (int, np.integer)) or not least <= value <= most:
        raise InputError(f"{name}: expected an integer of {least} to {most}{of}, found {value!r}")
    return int(value)


def threads(n_threads: int | None) -> int:
    """A checked number of threads; 1 in a process forked from one that has used several.

    Raises InputError for more than the supported maximum, or more than the system lets this process start.
    """
    n_threads = default_threads() if n_threads is None else check_threads(n_threads, InputError)
    if n_threads > 1 and _process_of_threads() != os.getpid():
        # OpenMP's threads do not survive a fork, and its barriers would wait for them forever.
        _tell_of_fork(os.getpid())
        return 1
    prove_threads(n_threads, InputError)
    return n_threads


@functools.cache
def _process_of_threads() -> int:
    """Id of the process in which a kernel first got several threads; a forked child finds its parent's id."""
    return os.getpid()


@functools.cache
def _tell_of_fork(process: int) -> None:
    log.warning(
        "process %d was forked after kernels had used threads: kernels use one thread here; spawn it for more", process
    )


def checked(name: str, array: np.ndarray, dtype: type, ndim: int) -> np.ndarray:
    """`array` as C-contiguous and aligned; raises InputError unless it has exactly this dtype and ndim."""
    if not isinstance(array, np.ndarray) or np.ma.isMaskedArray(array) or array.dtype != dtype or array.ndim != ndim:
        plain = isinstance(array, np.ndarray) and not np.ma.isMaskedArray(array)
        found = f"{array.dtype} {array.shape}" if plain else type(array).__name__
        raise InputError(f"{name}: expected a {ndim}-dimensional array of {np.dtype(dtype)}, found {found}")
    array = np.ascontiguousarray(array)
    return array if array.flags.aligned else array.copy()


def empty(shape: tuple[int, ...], dtype: type = np.float32) -> np.ndarray:
    """An uninitialized array aligned to 64 bytes, a cache line: spmm and topk are fastest on those."""
    n_bytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    buffer = np.empty(n_bytes + 64, np.uint8)
    start = -buffer.ctypes.data % 64
    return buffer[start : start + n_bytes].view(dtype).reshape(shape)


def finite(name: str, array: np.ndarray) -> None:
    """Raise InputError, naming the first index, if `array` contains NaN or infinity."""
    if not np.isfinite(array).all():
        at = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
        raise InputError(f"{name}: expected finite numbers, found {array[at]} at {at}")


def call(function: Callable[..., int], what: str, *arguments: int | float | None) -> None:
    """Call a function of the library and raise the exception of its status."""
    raise_for_status(function(*arguments), what)


def pointer(array: np.ndarray | None) -> int | None:
    """The address for C, NULL for None. The caller must keep the array referenced."""
    return None if array is None else array.ctypes.data


@dataclass(frozen=True)
class CSR:
    """A validated sparse matrix. Create it with `make_csr`; do not write to its arrays.

    indptr: int64 (n_rows + 1,). indices: int32 (nnz,). data: float32 (nnz,). shape: (n_rows, n_cols).
    This class checks types and lengths, also for `dataclasses.replace`; `make_csr` checks the values.
    """

    indptr: np.ndarray
    indices: np.ndarray
    data: np.ndarray
    shape: tuple[int, int]

    def __post_init__(self) -> None:
        nnz = len(self.indices)
        wanted = ("indptr", np.int64, self.shape[0] + 1), ("indices", np.int32, nnz), ("data", np.float32, nnz)
        for name, dtype, length in wanted:
            array = getattr(self, name)
            if (
                array.dtype != dtype
                or array.shape != (length,)
                or not (array.flags.c_contiguous and array.flags.aligned)
            ):
                raise InputError(
                    f"{name}: expected {np.dtype(dtype)} ({length},) in one piece, found {array.dtype} {array.shape}"
                )


def as_csr(name: str, matrix: CSR) -> CSR:
    """`matrix`; raises InputError unless it is a `CSR`. SciPy's has the same attributes with other types."""
    if not isinstance(matrix, CSR):
        raise InputError(
            f"{name}: expected what make_csr(indptr, indices, data, shape) returns, found {type(matrix).__name__}"
        )
    return matrix


def make_csr(indptr: np.ndarray, indices: np.ndarray, data: np.ndarray | None, shape: tuple[int, int]) -> CSR:
    """Validate a CSR matrix once, for any number of calls; `data` None means ones.

    indptr and indices may be of any integer dtype; data must be float32 and finite.
    """
    if (
        not isinstance(shape, (tuple, list))
        or len(shape) != 2
        or not all(isinstance(n, (int, np.integer)) for n in shape)
    ):
        raise InputError(f"shape: expected two integers (n_rows, n_cols), found {shape!r}")
    n_rows, n_cols = (int(n) for n in shape)
    for name, array in (("indptr", indptr), ("indices", indices)):
        if not isinstance(array, np.ndarray) or array.ndim != 1 or array.dtype.kind not in "iu":
            raise InputError(f"{name}: expected a one-dimensional array of integers, found {array!r:.80}")
    if min(n_rows, n_cols) < 0 or n_cols > np.iinfo(np.int32).max:
        raise InputError(f"shape: expected 0 rows or more and 0 to {np.iinfo(np.int32).max} columns, found {shape}")
    if len(indptr) != n_rows + 1:
        raise InputError(f"indptr: expected {n_rows + 1} entries for the shape {tuple(shape)}, found {len(indptr)}")
    if indices.dtype.itemsize > 4 and indices.size and not 0 <= indices.min() <= indices.max() < n_cols:
        raise_for_status(4, "sparse matrix")
    indptr, indices = (
        np.require(array, dtype, ("C", "A")) for array, dtype in ((indptr, np.int64), (indices, np.int32))
    )
    data = np.ones(len(indices), np.float32) if data is None else checked("data", data, np.float32, 1)
    if len(data) != len(indices):
        raise InputError(f"data: expected one value for each of {len(indices)} indices, found {len(data)}")
    finite("data", data)
    check = function("reclm_check_csr", I64, I64, I64, POINTER, POINTER)
    call(check, "sparse matrix", n_rows, n_cols, len(indices), pointer(indptr), pointer(indices))
    return CSR(indptr, indices, data, (n_rows, n_cols))
