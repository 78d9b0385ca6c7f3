"""The compiled kernels: finds the library, validates arguments, owns memory, raises.

    csr = make_csr(indptr, indices, data, shape)     validated once
    out = spmm(csr, dense)                           float32 (n_rows, dim)
    ids, scores = topk(users, items, k=20, ...)      int32, float32 (n_users, k)

The C below (kernels/src) trusts what passes here. ctypes releases the GIL around each call.
Left out: a slow path in Python. If the library is missing that is an error, never a silent
fallback; `kernels/reference.py` is the oracle of the tests.
"""

import ctypes
import functools
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from reclm_lite.errors import InputError, ReclmError

log = logging.getLogger(__name__)

ABI_VERSION = 1
LIBRARY_NAME = "libreclm_kernels.so"


class KernelError(ReclmError):
    """The compiled kernels are missing, of another version, or failed."""


# C status -> (exception, message); RECLM_OK is 0.
STATUS_ERRORS: dict[int, tuple[type[Exception], str]] = {
    1: (MemoryError, "the kernel could not allocate its buffers: free some memory, or pass fewer rows at a time"),
    2: (InputError, "expected sizes >= 0, k >= 1 and at least one thread"),
    3: (InputError, "expected indptr to start at 0, never decrease, and end at the number of stored entries"),
    4: (InputError, "expected every column index within [0, n_columns)"),
}


def raise_for_status(status: int, what: str) -> None:
    """Raise the exception that stands for a C status; 0 passes."""
    if status == 0:
        return
    if status not in STATUS_ERRORS:
        raise KernelError(f"{what}: the kernel returned the unknown status {status}")
    exception, message = STATUS_ERRORS[status]
    raise exception(f"{what}: {message}")


def find_library() -> Path:
    """The shared library, on any folder of the package `reclm_lite.kernels`.

    In an editable install the library lies in site-packages and the sources in the repository,
    so the folder of this file is not enough.
    """
    import reclm_lite.kernels

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
    i64, i32, pointer = ctypes.c_int64, ctypes.c_int32, ctypes.c_void_p
    signatures = {
        "reclm_abi_version": [],
        "reclm_check_csr": [i64, i64, i64, pointer, pointer],
        "reclm_spmm_f32": [i64, i64, pointer, pointer, pointer, pointer, pointer, i32],
        "reclm_topk_f32": [i64, i64, i64, i64] + [pointer] * 8 + [i32],
    }
    for name, argtypes in signatures.items():
        function = getattr(library, name, None)
        if function is None:
            raise KernelError(f"{path} has no function {name}: build it again with `pip install .`")
        function.argtypes = argtypes
        function.restype = i32
    found = library.reclm_abi_version()
    if found != ABI_VERSION:
        raise KernelError(f"{path}: expected kernel version {ABI_VERSION}, found {found}; run `pip install .` again")
    log.debug("kernels: %s", path)
    return library


def default_threads() -> int:
    """Threads a kernel uses unless told: OMP_NUM_THREADS, else the CPUs this process may use."""
    value = os.environ.get("OMP_NUM_THREADS", "")
    if value.isdigit() and int(value) > 0:
        return int(value)
    return len(os.sched_getaffinity(0))


def _threads(n_threads: int | None) -> int:
    n_threads = default_threads() if n_threads is None else n_threads
    if not 1 <= n_threads <= 1024:
        raise InputError(f"expected 1 to 1024 threads, found {n_threads}")
    return n_threads


def _array(name: str, array: np.ndarray, dtype: type, ndim: int) -> np.ndarray:
    """`array`, C-contiguous, of exactly this dtype and number of dimensions."""
    if not isinstance(array, np.ndarray) or array.dtype != dtype or array.ndim != ndim:
        found = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
        raise InputError(f"{name}: expected a {ndim}-dimensional array of {np.dtype(dtype)}, found {found}")
    return np.ascontiguousarray(array)


def _finite(name: str, array: np.ndarray) -> None:
    if not np.isfinite(array).all():
        at = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
        raise InputError(f"{name}: expected finite numbers, found {array[at]} at {at}")


def _call(function: Callable[..., int], what: str, *arguments) -> None:
    raise_for_status(function(*arguments), what)


def _pointer(array: np.ndarray | None) -> int | None:
    return None if array is None else array.ctypes.data


@dataclass(frozen=True)
class CSR:
    """A validated sparse matrix. Make one with `make_csr`; do not write to its arrays.

    indptr: int64 (n_rows + 1,). indices: int32 (nnz,). data: float32 (nnz,). shape: (n_rows, n_cols).
    """

    indptr: np.ndarray
    indices: np.ndarray
    data: np.ndarray
    shape: tuple[int, int]


def make_csr(indptr: np.ndarray, indices: np.ndarray, data: np.ndarray | None, shape: tuple[int, int]) -> CSR:
    """Validate a CSR matrix once, for any number of calls; `data` None means ones.

    indptr and indices may be of any integer dtype; data must be float32 and finite.
    """
    n_rows, n_cols = (int(n) for n in shape)
    for name, array in (("indptr", indptr), ("indices", indices)):
        if not isinstance(array, np.ndarray) or array.ndim != 1 or array.dtype.kind not in "iu":
            raise InputError(f"{name}: expected a one-dimensional array of integers, found {array!r:.80}")
    if min(n_rows, n_cols) < 0 or n_cols > np.iinfo(np.int32).max or len(indptr) != n_rows + 1:
        raise InputError(f"indptr: expected {n_rows + 1} entries for the shape {tuple(shape)}, found {len(indptr)}")
    if indices.dtype.itemsize > 4 and indices.size and not 0 <= indices.min() <= indices.max() < n_cols:
        raise_for_status(4, "sparse matrix")
    indptr = np.ascontiguousarray(indptr, dtype=np.int64)
    indices = np.ascontiguousarray(indices, dtype=np.int32)
    data = np.ones(len(indices), np.float32) if data is None else _array("data", data, np.float32, 1)
    if len(data) != len(indices):
        raise InputError(f"data: expected one value for each of {len(indices)} indices, found {len(data)}")
    _finite("data", data)
    _call(_library().reclm_check_csr, "sparse matrix", n_rows, n_cols, len(indices), _pointer(indptr), _pointer(indices))
    return CSR(indptr, indices, data, (n_rows, n_cols))


def spmm(
    matrix: CSR, dense: np.ndarray, *, out: np.ndarray | None = None, n_threads: int | None = None, check: bool = True
) -> np.ndarray:
    """matrix @ dense: float32 (n_rows, dim), the same bits at any number of threads.

    dense: float32 (n_cols, dim). out: float32 (n_rows, dim), C-contiguous, not overlapping dense.
    check=False leaves out the search for NaN and infinity, for loops that watch their loss.
    """
    n_rows, n_cols = matrix.shape
    dense = _array("dense", dense, np.float32, 2)
    if dense.shape[0] != n_cols:
        raise InputError(f"dense: expected {n_cols} rows, found {dense.shape[0]}")
    if check:
        _finite("dense", dense)
    dim = dense.shape[1]
    if out is None:
        out = np.empty((n_rows, dim), np.float32)
    elif out.dtype != np.float32 or out.shape != (n_rows, dim) or not out.flags.c_contiguous:
        raise InputError(f"out: expected C-contiguous float32 {(n_rows, dim)}, found {out.dtype} {out.shape}")
    elif np.may_share_memory(out, dense):
        raise InputError("out: expected memory of its own, found memory shared with dense")
    _call(
        _library().reclm_spmm_f32, "spmm", n_rows, dim, _pointer(matrix.indptr), _pointer(matrix.indices),
        _pointer(matrix.data), _pointer(dense), _pointer(out), _threads(n_threads),
    )  # fmt: skip
    return out


def topk(
    users: np.ndarray,
    items: np.ndarray,
    k: int,
    *,
    item_bias: np.ndarray | None = None,
    candidates: np.ndarray | None = None,
    seen: CSR | None = None,
    n_threads: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The k best items of each user by `users @ items.T + item_bias`; exact, ties to the lower id.

    users: float32 (n_users, dim). items: float32 (n_items, dim). item_bias: float32 (n_items,).
    candidates: int32, ascending, distinct item ids to rank; None means all.
    seen: (n_users, n_items), row i masks items for users[i]; its values do not matter.
    Returns ids int32 (n_users, k) and scores float32 (n_users, k), best first; a row with fewer
    than k rankable items ends in id -1 and score -inf.
    """
    users = _array("users", users, np.float32, 2)
    items = _array("items", items, np.float32, 2)
    (n_users, dim), n_items = users.shape, len(items)
    if items.shape[1] != dim:
        raise InputError(f"items: expected {dim} columns as users have, found {items.shape[1]}")
    if k < 1:
        raise InputError(f"k: expected at least 1, found {k}")
    _finite("users", users)
    _finite("items", items)
    if item_bias is not None:
        item_bias = _array("item_bias", item_bias, np.float32, 1)
        if len(item_bias) != n_items:
            raise InputError(f"item_bias: expected {n_items} values, found {len(item_bias)}")
        _finite("item_bias", item_bias)
    if candidates is None:
        candidates = np.arange(n_items, dtype=np.int32)
    else:
        candidates = _array("candidates", candidates, np.int32, 1)
        if candidates.size and (np.diff(candidates) <= 0).any():
            raise InputError("candidates: expected ascending ids without repetition; pass numpy.unique of them")
        if candidates.size and not 0 <= candidates[0] <= candidates[-1] < n_items:
            raise InputError(f"candidates: expected ids within [0, {n_items}), found {candidates[0]} to {candidates[-1]}")
    seen_indptr = seen_indices = None
    if seen is not None:
        if seen.shape != (n_users, n_items):
            raise InputError(f"seen: expected the shape {(n_users, n_items)}, found {seen.shape}")
        seen_indptr, seen_indices = seen.indptr, _ascending_rows(seen)
    width = max(1, min(k, len(candidates)))
    ids = np.empty((n_users, width), np.int32)
    scores = np.empty((n_users, width), np.float32)
    _call(
        _library().reclm_topk_f32, "topk", n_users, len(candidates), dim, width, _pointer(users), _pointer(items),
        _pointer(item_bias), _pointer(candidates), _pointer(seen_indptr), _pointer(seen_indices),
        _pointer(ids), _pointer(scores), _threads(n_threads),
    )  # fmt: skip
    if width < k:
        ids = np.pad(ids, ((0, 0), (0, k - width)), constant_values=-1)
        scores = np.pad(scores, ((0, 0), (0, k - width)), constant_values=-np.inf)
    return ids, scores


def _ascending_rows(matrix: CSR) -> np.ndarray:
    """The indices, ascending within each row (sorted into a copy where they are not)."""
    indices = matrix.indices
    if indices.size < 2:
        return indices
    falls = np.flatnonzero(indices[1:] < indices[:-1]) + 1
    if np.isin(falls, matrix.indptr).all():
        return indices
    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    return np.ascontiguousarray(indices[np.lexsort((indices, rows))])
