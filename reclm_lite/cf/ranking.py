"""Top-k from scores computed block by block, for every score that is not a plain dot product.

One thread with one BLAS thread scores a block and selects from it, so the bits do not depend on the number of threads.
Memory holds a few blocks. Left out: the fused product (`native.topk`).
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import scipy.sparse as sp
from threadpoolctl import threadpool_limits

from ..kernels import native

# float32 (n_rows, n_columns) for rows [start, stop).
ScoreRows = Callable[[int, int], np.ndarray]


def rank_rows(
    score: ScoreRows,
    n_rows: int,
    n_columns: int,
    k: int,
    *,
    candidates: np.ndarray | None = None,
    seen: sp.csr_matrix | None = None,
    block: int = 64,
    n_threads: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The k best columns of each row: ids int32 and scores float32, both (n_rows, k), best first, ties to the lower id.

    candidates: ascending int32 columns, None for all. seen: CSR (n_rows, n_columns) of columns to leave out.
    Rows with fewer than k candidates end in id -1, score -inf.
    """
    ids = np.full((n_rows, k), -1, np.int32)
    best = np.full((n_rows, k), -np.inf, np.float32)
    n_threads = native.default_threads() if n_threads is None else n_threads

    def work(start: int) -> None:
        stop = min(start + block, n_rows)
        mask = None if seen is None else seen_rows(seen, start, stop)
        ids[start:stop], best[start:stop] = native.select(
            score(start, stop), k, candidates=candidates, seen=mask, n_threads=1
        )

    starts = range(0, n_rows, block)
    if n_columns == 0:
        return ids, best
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(max(1, n_threads)) as pool:
        for _ in pool.map(work, starts):
            pass
    return ids, best


def seen_rows(seen: sp.csr_matrix, start: int, stop: int) -> native.CSR:
    """Rows [start, stop) of a mask, for the kernels."""
    first, last = seen.indptr[start], seen.indptr[stop]
    return native.make_csr(
        seen.indptr[start : stop + 1] - first, seen.indices[first:last], None, (stop - start, seen.shape[1])
    )


def renumber_columns(matrix: sp.csr_matrix, columns: np.ndarray) -> sp.csr_matrix:
    """CSR (n_rows, len(columns)): matrix[:, columns] for ascending `columns`."""
    place = np.full(matrix.shape[1], -1, np.int32)
    place[columns] = np.arange(len(columns), dtype=np.int32)
    indices = place[matrix.indices]
    kept = indices >= 0
    indptr = np.concatenate([[0], np.cumsum(kept)])[matrix.indptr]
    return sp.csr_matrix((matrix.data[kept], indices[kept], indptr), shape=(matrix.shape[0], len(columns)))


def take_rows(matrix: sp.csr_matrix, rows: np.ndarray) -> sp.csr_matrix:
    """matrix[rows] with sorted indices; much faster than SciPy's for many rows."""
    starts, lengths = matrix.indptr[rows], np.diff(matrix.indptr)[rows]
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    places = np.arange(indptr[-1]) + np.repeat(starts - indptr[:-1], lengths)
    return sp.csr_matrix((matrix.data[places], matrix.indices[places], indptr), shape=(len(rows), matrix.shape[1]))
