"""Exact masked top-k of `users @ items.T`, fused: no users × items array ever exists."""

import numpy as np

from reclm_lite.errors import InputError
from reclm_lite.kernels._library import CSR, I32, I64, POINTER, call, checked, finite, function, pointer, threads


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
    users = checked("users", users, np.float32, 2)
    items = checked("items", items, np.float32, 2)
    (n_users, dim), n_items = users.shape, len(items)
    if items.shape[1] != dim:
        raise InputError(f"items: expected {dim} columns as users have, found {items.shape[1]}")
    if k < 1:
        raise InputError(f"k: expected at least 1, found {k}")
    finite("users", users)
    finite("items", items)
    if item_bias is not None:
        item_bias = checked("item_bias", item_bias, np.float32, 1)
        if len(item_bias) != n_items:
            raise InputError(f"item_bias: expected {n_items} values, found {len(item_bias)}")
        finite("item_bias", item_bias)
    if candidates is None:
        candidates = np.arange(n_items, dtype=np.int32)
    else:
        candidates = checked("candidates", candidates, np.int32, 1)
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
    call(
        function("reclm_topk_f32", I64, I64, I64, I64, *[POINTER] * 8, I32), "topk", n_users, len(candidates), dim, width, pointer(users), pointer(items),
        pointer(item_bias), pointer(candidates), pointer(seen_indptr), pointer(seen_indices),
        pointer(ids), pointer(scores), threads(n_threads),
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
