"""Exact uniform negative sampling that excludes every known positive. numba; import this module lazily.

Each draw is a function of (seed, row, column) alone, so the result does not depend on the number of threads.
"""

import numba
import numpy as np

from reclm_lite.errors import InputError
from reclm_lite.kernels._jit import below, compiled, limited, splitmix

# Rejected draws before the exact method, which costs a pass over the user's history. Rare: users with most of the pool.
N_TRIES = 16
_CHUNK_ROWS = 256


def sample_negatives(
    users: np.ndarray,
    indptr: np.ndarray,
    indices: np.ndarray,
    pool: np.ndarray,
    n_negatives: int,
    seed: int,
    *,
    n_threads: int | None = None,
) -> np.ndarray:
    """Items drawn uniformly with replacement from `pool` without the user's positives: int32 (n, n_negatives).

    users: int32 (n,). indptr int64, indices int32: CSR of known positives, ascending within a row; items outside the
    pool and duplicates are allowed. pool: int32, ascending, distinct. A user whose positives cover the pool gets -1.
    Raises InputError for an empty pool, n_negatives < 1, arrays of another dtype, or users beyond indptr.
    """
    wanted = (
        ("users", users, np.int32),
        ("indptr", indptr, np.int64),
        ("indices", indices, np.int32),
        ("pool", pool, np.int32),
    )
    for name, array, dtype in wanted:
        if not isinstance(array, np.ndarray) or array.dtype != dtype or array.ndim != 1:
            found = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
            raise InputError(f"{name}: expected a 1-dimensional array of {np.dtype(dtype)}, found {found}")
    if len(pool) == 0 or n_negatives < 1:
        raise InputError(
            f"negatives: expected a pool of items and at least 1 draw, found {len(pool)} items, {n_negatives} draws"
        )
    if len(users):
        if not 0 <= users.min() <= users.max() < len(indptr) - 1:
            raise InputError(f"users: expected ids within [0, {len(indptr) - 1}), found {users.min()} to {users.max()}")
        begins, ends = indptr[users], indptr[1:][users]
        if begins.min() < 0 or ends.max() > len(indices) or (ends < begins).any():
            raise InputError(f"indptr: expected places within the {len(indices)} indices, never decreasing")
    with limited(n_threads, 10 * len(users) * n_negatives):
        return _sample(users, indptr, indices, pool, n_negatives, np.uint64(seed % 2**64))


@compiled(inline="always")
def _place(values: np.ndarray, begin: int, end: int, wanted: int) -> int:
    """Lower bound: the first index in ascending values[begin:end] with a value >= `wanted`; end if there is none."""
    while begin < end:
        middle = (begin + end) // 2
        if values[middle] < wanted:
            begin = middle + 1
        else:
            end = middle
    return begin


@compiled(parallel=True)
def _sample(
    users: np.ndarray, indptr: np.ndarray, indices: np.ndarray, pool: np.ndarray, n_negatives: int, seed: np.uint64
) -> np.ndarray:
    n, n_pool = len(users), np.uint64(len(pool))
    out = np.empty((n, n_negatives), np.int32)
    base = splitmix(splitmix(seed + np.uint64(1)))
    for chunk in numba.prange((n + _CHUNK_ROWS - 1) // _CHUNK_ROWS):
        for row in range(chunk * _CHUNK_ROWS, min((chunk + 1) * _CHUNK_ROWS, n)):
            begin, end = indptr[users[row]], indptr[users[row] + 1]
            for column in range(n_negatives):
                counter = base + np.uint64(row * n_negatives + column) * np.uint64(N_TRIES + 1)
                found = False
                for attempt in range(N_TRIES):
                    item = pool[below(splitmix(counter + np.uint64(attempt)), n_pool)]
                    at = _place(indices, begin, end, item)
                    if at == end or indices[at] != item:
                        found = True
                        break
                if not found:
                    item = _by_rank(indices, begin, end, pool, splitmix(counter + np.uint64(N_TRIES)))
                out[row, column] = item
    return out


@compiled()
def _by_rank(indices: np.ndarray, begin: int, end: int, pool: np.ndarray, bits: np.uint64) -> np.int32:
    """A uniform draw from the pool's items that are not in indices[begin:end]; -1 if there are none."""
    left = len(pool)
    last = np.int32(-1)
    for at in range(begin, end):
        if indices[at] != last and _is_in(pool, indices[at]):
            left -= 1
        last = indices[at]
    if left == 0:
        return np.int32(-1)
    rank = np.int64(below(bits, np.uint64(left)))
    last = np.int32(-1)
    for at in range(begin, end):
        if indices[at] != last:
            place = _place(pool, 0, len(pool), indices[at])
            if place > rank:
                break
            if pool[place] == indices[at]:
                rank += 1
        last = indices[at]
    return pool[rank]


@compiled()
def _is_in(values: np.ndarray, wanted: int) -> bool:
    place = _place(values, 0, len(values), wanted)
    return place < len(values) and values[place] == wanted
