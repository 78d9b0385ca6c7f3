"""Adam (arXiv 1412.6980) for dense arrays and for the rows that a batch touched. numba; import this module lazily.

    g     = grad + 2 l2 value
    m     = 0.9 m + 0.1 g            v = 0.999 v + 0.001 g^2
    value = value - lr * m / (1 - 0.9^t) / (sqrt(v / (1 - 0.999^t)) + 1e-8)

Elements are independent, so the bits are the same with any number of threads.
"""

import math

import numba
import numpy as np

from reclm_lite.errors import InputError
from reclm_lite.kernels._jit import compiled, limited

_CHUNK = 8192
_B1, _B2, _EPS = np.float32(0.9), np.float32(0.999), np.float32(1e-8)
_REST1, _REST2 = np.float32(0.1), np.float32(0.001)


def adam(
    value: np.ndarray,
    grad: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    *,
    step: int,
    lr: float,
    l2: float = 0.0,
    n_threads: int | None = None,
) -> None:
    """One step, in place, on C-contiguous float32 arrays of one shape. step counts from 1.

    first, second: the moments, zeros before the first step. Raises InputError for another dtype, shape or layout.
    """
    _check(value, first, second, grad)
    with limited(n_threads, value.size):
        _adam(
            value.reshape(-1),
            grad.reshape(-1),
            first.reshape(-1),
            second.reshape(-1),
            *_factors(step, lr),
            np.float32(2 * l2),
        )


def adam_rows(
    value: np.ndarray,
    rows: np.ndarray,
    grad: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    *,
    step: int,
    lr: float,
    l2: float = 0.0,
    n_threads: int | None = None,
) -> None:
    """One step on some rows of a table, like torch's SparseAdam: other rows and their moments do not change.

    value, first, second: float32 (n_rows, dim). rows: int32 (n,), ascending and distinct. grad: float32 (n, dim).
    Bias correction counts all steps, not those of a row. l2 applies to the touched rows only.
    """
    _check(value, first, second)
    _check(grad)
    if not isinstance(rows, np.ndarray) or rows.dtype != np.int32:
        raise InputError(f"rows: expected an array of int32, found {getattr(rows, 'dtype', type(rows).__name__)}")
    if rows.ndim != 1 or grad.shape != (len(rows), *value.shape[1:]):
        raise InputError(f"rows: expected one for each row of the gradient {grad.shape}, found {rows.shape}")
    if len(rows) and not (rows[0] >= 0 and rows[-1] < len(value) and (rows[1:] > rows[:-1]).all()):
        raise InputError(f"rows: expected ascending, distinct rows within [0, {len(value)}), found {rows!r:.80}")
    shape = (len(value), -1) if value.size else (0, 1)
    with limited(n_threads, grad.size):
        _adam_rows(
            value.reshape(shape),
            rows,
            grad.reshape((len(rows), -1) if grad.size else (0, 1)),
            first.reshape(shape),
            second.reshape(shape),
            *_factors(step, lr),
            np.float32(2 * l2),
        )


def _check(*arrays: np.ndarray) -> None:
    """Validate arrays (value, first, second[, grad]) of one shape; all except the gradient must be writable."""
    for number, array in enumerate(arrays):
        if not isinstance(array, np.ndarray):
            raise InputError(f"expected arrays of float32, found {type(array).__name__}")
        fits = (
            array.dtype == np.float32
            and array.flags.c_contiguous
            and array.flags.aligned
            and array.shape == arrays[0].shape
        )
        if not fits or not (array.flags.writeable or number == 3 or len(arrays) == 1):
            found = f"{array.dtype} {array.shape}{'' if array.flags.writeable else ', read-only'}"
            raise InputError(
                f"expected writable, C-contiguous float32 arrays of the shape {arrays[0].shape}, found {found}"
            )


def _factors(step: int, lr: float) -> tuple[np.float32, np.float32]:
    """lr / (1 - 0.9^t) and 1 / sqrt(1 - 0.999^t): bias correction that leaves one division per element."""
    if step < 1:
        raise InputError(f"step: expected 1 or more, found {step}")
    return np.float32(lr / (1 - 0.9**step)), np.float32(1 / math.sqrt(1 - 0.999**step))


@compiled(parallel=True)
def _adam(
    value: np.ndarray,
    grad: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    lr: np.float32,
    fix: np.float32,
    decay: np.float32,
) -> None:
    n = len(value)
    for chunk in numba.prange((n + _CHUNK - 1) // _CHUNK):
        begin, end = chunk * _CHUNK, min((chunk + 1) * _CHUNK, n)
        _move(value[begin:end], grad[begin:end], first[begin:end], second[begin:end], lr, fix, decay)


@compiled(parallel=True)
def _adam_rows(
    value: np.ndarray,
    rows: np.ndarray,
    grad: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    lr: np.float32,
    fix: np.float32,
    decay: np.float32,
) -> None:
    for at in numba.prange(len(rows)):
        row = rows[at]
        _move(value[row], grad[at], first[row], second[row], lr, fix, decay)


@compiled()
def _move(
    value: np.ndarray,
    grad: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    lr: np.float32,
    fix: np.float32,
    decay: np.float32,
) -> None:
    for i in range(len(value)):
        g = grad[i] + decay * value[i]
        m = _B1 * first[i] + _REST1 * g
        v = _B2 * second[i] + _REST2 * g * g
        first[i] = m
        second[i] = v
        value[i] -= lr * m / (np.sqrt(v) * fix + _EPS)
