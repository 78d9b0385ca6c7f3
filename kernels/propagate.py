"""Sparse × dense products: the forward propagation of graph models and, with a transposed CSR, the backward pass.

    out     = A @ dense
    add_to += weight * out        in the same pass: LightGCN's sum or mean over layers (arXiv 2002.02126, eq. 7)

`dense` is float32, or bfloat16 stored as uint16 (half the bytes to read; sums stay float32).
"""

from typing import overload

import numpy as np

from reclm_lite.errors import InputError
from reclm_lite.kernels._library import (
    CSR,
    F32,
    I32,
    I64,
    POINTER,
    as_csr,
    call,
    checked,
    empty,
    finite,
    function,
    pointer,
    threads,
)


@overload
def spmm(
    matrix: CSR,
    dense: np.ndarray,
    *,
    out: np.ndarray | None = None,
    add_to: None = None,
    weight: float = 1.0,
    n_threads: int | None = None,
    check: bool = True,
) -> np.ndarray: ...
@overload
def spmm(
    matrix: CSR,
    dense: np.ndarray,
    *,
    out: np.ndarray | None = None,
    add_to: np.ndarray,
    weight: float = 1.0,
    n_threads: int | None = None,
    check: bool = True,
) -> np.ndarray | None: ...
def spmm(
    matrix: CSR,
    dense: np.ndarray,
    *,
    out: np.ndarray | None = None,
    add_to: np.ndarray | None = None,
    weight: float = 1.0,
    n_threads: int | None = None,
    check: bool = True,
) -> np.ndarray | None:
    """matrix @ dense: float32 (n_rows, dim), with the same bits for any number of threads.

    dense: float32 (n_cols, dim), or uint16 with bfloat16 bits (`to_bf16`).
    out: float32 or uint16 (bfloat16) (n_rows, dim), C-contiguous, not overlapping dense. If it is None, it is
    allocated; with add_to, only add_to is written and None is returned.
    add_to: float32 (n_rows, dim), C-contiguous; weight * (matrix @ dense) is added to it.
    check: whether to look for NaN and infinity in dense; loops that check their loss can skip it.
    Raises InputError if a shape, dtype or value does not fit.
    """
    n_rows, n_cols = as_csr("matrix", matrix).shape
    if not isinstance(weight, (int, float, np.number)) or not np.isfinite(weight):
        raise InputError(f"weight: expected a finite number, found {weight!r}")
    is_bf16 = isinstance(dense, np.ndarray) and dense.dtype == np.uint16
    dense = checked("dense", dense, np.uint16 if is_bf16 else np.float32, 2)
    if dense.shape[0] != n_cols:
        raise InputError(f"dense: expected {n_cols} rows, found {dense.shape[0]}")
    if check:
        finite("dense", from_bf16(dense) if is_bf16 else dense)
    dim = dense.shape[1]
    if out is None and add_to is None:
        out = empty((n_rows, dim))
    for name, array, dtypes in (("out", out, (np.float32, np.uint16)), ("add_to", add_to, (np.float32,))):
        if array is not None:
            _check_target(name, array, dtypes, (n_rows, dim), (dense, matrix.indptr, matrix.indices, matrix.data))
    if out is not None and add_to is not None and np.may_share_memory(out, add_to):
        raise InputError("out: expected memory of its own, found memory shared with add_to")
    to_float = out if out is not None and out.dtype == np.float32 else None
    to_half = out if out is not None and out.dtype == np.uint16 else None
    call(
        function("reclm_spmm", I64, I64, *[POINTER] * 4, I32, *[POINTER] * 3, F32, I32),
        "spmm",
        n_rows,
        dim,
        pointer(matrix.indptr),
        pointer(matrix.indices),
        pointer(matrix.data),
        pointer(dense),
        is_bf16,
        pointer(to_float),
        pointer(to_half),
        pointer(add_to),
        weight,
        threads(n_threads),
    )
    return out


def _check_target(name: str, array: np.ndarray, dtypes: tuple, shape: tuple[int, int], read: tuple) -> None:
    if not isinstance(array, np.ndarray) or array.dtype not in dtypes or array.shape != shape or not array.flags.carray:
        wanted = " or ".join(np.dtype(dtype).name for dtype in dtypes)
        found = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
        raise InputError(f"{name}: expected writable, C-contiguous {wanted} {shape}, found {found}")
    if any(np.may_share_memory(array, other) for other in read):
        raise InputError(f"{name}: expected memory of its own, found memory shared with dense or the matrix")


def to_bf16(values: np.ndarray) -> np.ndarray:
    """float32 rounded to the nearest bfloat16, ties to even: uint16 of the same shape.

    Values must be finite; those beyond 3.3961776e38 round to infinity, which `spmm` then refuses.
    """
    if not isinstance(values, np.ndarray) or values.dtype != np.float32:
        raise InputError(
            f"values: expected an array of float32, found {getattr(values, 'dtype', type(values).__name__)}"
        )
    values = np.require(values, requirements=("C", "A"))
    finite("values", values)
    out = empty(values.shape, np.uint16)
    call(function("reclm_to_bf16", I64, POINTER, POINTER), "to_bf16", values.size, pointer(values), pointer(out))
    return out


def from_bf16(values: np.ndarray) -> np.ndarray:
    """uint16 with bfloat16 bits -> float32 of the same shape, exactly."""
    if not isinstance(values, np.ndarray) or values.dtype != np.uint16:
        raise InputError(
            f"values: expected an array of uint16, found {getattr(values, 'dtype', type(values).__name__)}"
        )
    return (values.astype(np.uint32) << 16).view(np.float32)
