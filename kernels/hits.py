"""Positions of relevant items in ranked lists. Plain NumPy: each relevant entry is compared with its row's list."""

import numpy as np

_BLOCK_VALUES = 4_000_000


def hit_places(ids: np.ndarray, indptr: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """int32 (nnz,): the position (from 0) of each entry of a CSR matrix in its row's list, or `width` if it is absent.

    ids: int32 (n_rows, width), distinct within a row except -1. indptr: int64 (n_rows + 1,). indices: int32 (nnz,),
    not negative.
    """
    n_rows, width = ids.shape
    rows = np.repeat(np.arange(n_rows), np.diff(indptr))
    places = np.full(len(indices), width, np.int32)
    step = max(1, _BLOCK_VALUES // max(width, 1))
    for start in range(0, len(indices), step):
        part = slice(start, start + step)
        entry, place = np.nonzero(ids[rows[part]] == indices[part, None])
        places[start + entry] = place
    return places
