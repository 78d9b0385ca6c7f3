"""Exact masked top-k, fused with the product that scores, so that no users × items array is needed.

    ids, scores = topk(users, items, k=20, item_bias=bias, seen=seen)     int32, float32 (n_users, k)
    ids, scores = select(scores, k=20, seen=seen)                         from rows of scores that exist already
    ids, scores = knn(queries, vectors, k=10, own=rows)                   cosine neighbors

All break ties by lower id and give the same bits with any number of threads. A row with fewer than k rankable items
ends in id -1, score -inf. Scores of different instruction sets differ in their last bits.
"""

import logging

import numpy as np

from reclm_lite.errors import InputError
from reclm_lite.kernels._library import (
    CSR,
    I32,
    I64,
    POINTER,
    as_csr,
    call,
    checked,
    finite,
    function,
    integer,
    pointer,
    threads,
)

log = logging.getLogger(__name__)

PRECISIONS = ("float32", "int8")
# RECLM_TOPK_INT8_MAX_DIM: beyond it the 32-bit sums of int8 products could overflow.
INT8_MAX_DIM = 65536
# Up to this value, k may exceed the number of items.
MAX_PADDED_K = 1_000_000


def topk(
    users: np.ndarray,
    items: np.ndarray,
    k: int,
    *,
    item_bias: np.ndarray | None = None,
    candidates: np.ndarray | None = None,
    seen: CSR | None = None,
    n_threads: int | None = None,
    relu_dim: int = 0,
    precision: str = "float32",
    prune: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """The k best items of each user by `users @ items.T + item_bias`, ties to the lower id.

    users: float32 (n_users, dim). items: float32 (n_items, dim). item_bias: float32 (n_items,).
    candidates: int32, ascending, distinct item ids to rank; None means all.
    seen: (n_users, n_items), row i masks items for users[i]; its values do not matter.
    relu_dim: the last relu_dim columns h add max(users[u, h] + items[i, h], 0) in place of their product.
    precision: "float32" is exact. "int8" finds candidates with vectors rounded to int8 (a scale per row), scores these
    in float32, and ranks a user again in float32 if rounding may have lost one of the k. The result equals "float32":
    provably up to 16 columns, beyond that unless the rounding error exceeds four standard deviations. Not with
    relu_dim.
    prune: skip items that cannot reach the k best by the norm bound |user| * |item| + bias. The result is the same;
    faster if norms or biases are long-tailed.
    Returns ids int32 (n_users, k) and scores float32 (n_users, k), best first. A score that overflows float32 to
    -inf or NaN is never ranked. Raises InputError if a shape, dtype, value or combination does not fit.
    """
    users = checked("users", users, np.float32, 2)
    items = checked("items", items, np.float32, 2)
    (n_users, width), n_items = users.shape, len(items)
    if items.shape[1] != width:
        raise InputError(f"items: expected {width} columns as users have, found {items.shape[1]}")
    relu_dim = integer("relu_dim", relu_dim, 0, width, ", the number of columns")
    if precision not in PRECISIONS:
        raise InputError(f"precision: expected one of {', '.join(PRECISIONS)}, found {precision!r}")
    if precision == "int8" and (relu_dim or width > INT8_MAX_DIM):
        raise InputError(
            f"precision: expected float32 for vectors with a ReLU part or more than {INT8_MAX_DIM} columns, "
            f"found int8 with {width} columns, {relu_dim} of them ReLU"
        )
    finite("users", users)
    finite("items", items)
    if item_bias is not None:
        item_bias = checked("item_bias", item_bias, np.float32, 1)
        if len(item_bias) != n_items:
            raise InputError(f"item_bias: expected {n_items} values, found {len(item_bias)}")
        finite("item_bias", item_bias)
    candidates = np.arange(n_items, dtype=np.int32) if candidates is None else _candidates(candidates, n_items)
    seen_indptr, seen_indices = _masked(seen, (n_users, n_items))
    if prune:
        candidates = _by_bound(users, items, item_bias, candidates, relu_dim)
    k = _k(k, n_items)
    width_k = max(1, min(k, len(candidates)))
    ids, scores = np.empty((n_users, width_k), np.int32), np.empty((n_users, width_k), np.float32)
    n_threads = threads(n_threads)

    def run(
        users: np.ndarray,
        seen_indptr: np.ndarray | None,
        seen_indices: np.ndarray | None,
        ids: np.ndarray,
        scores: np.ndarray,
        n_kept: int,
        unsure: np.ndarray | None,
    ) -> None:
        call(
            function("reclm_topk", *[I64] * 6, I32, *[POINTER] * 9, I32),
            "topk",
            len(users),
            len(candidates),
            width - relu_dim,
            relu_dim,
            width_k,
            n_kept,
            bool(prune),
            pointer(users),
            pointer(items),
            pointer(item_bias),
            pointer(candidates),
            pointer(seen_indptr),
            pointer(seen_indices),
            pointer(ids),
            pointer(scores),
            pointer(unsure),
            n_threads,
        )

    if precision == "float32":
        run(users, seen_indptr, seen_indices, ids, scores, 0, None)
        return _padded(ids, scores, k)
    unsure = np.zeros(n_users, np.uint8)
    run(users, seen_indptr, seen_indices, ids, scores, _kept(width_k), unsure)
    rows = np.flatnonzero(unsure)
    log.debug("topk: int8 left %d of %d users to float32", rows.size, n_users)
    if rows.size:
        again = np.empty((rows.size, width_k), np.int32), np.empty((rows.size, width_k), np.float32)
        run(users[rows], *_rows(seen_indptr, seen_indices, rows), *again, 0, None)
        ids[rows], scores[rows] = again
    return _padded(ids, scores, k)


def select(
    scores: np.ndarray,
    k: int,
    *,
    candidates: np.ndarray | None = None,
    seen: CSR | None = None,
    n_threads: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The k best items of each row of a block of scores, ties to the lower id.

    scores: float32 (n_rows, n_items); -inf is never ranked, NaN among the candidates raises InputError.
    candidates, seen: as in `topk`. Returns ids int32 (n_rows, k) and scores float32 (n_rows, k), best first.
    """
    scores = checked("scores", scores, np.float32, 2)
    n_rows, n_items = scores.shape
    if n_items > np.iinfo(np.int32).max:
        raise InputError(f"scores: expected at most {np.iinfo(np.int32).max} columns, found {n_items}")
    if candidates is not None:
        candidates = _candidates(candidates, n_items)
    n_candidates = n_items if candidates is None else len(candidates)
    seen_indptr, seen_indices = _masked(seen, (n_rows, n_items))
    k = _k(k, n_items)
    width_k = max(1, min(k, n_candidates))
    ids, best = np.empty((n_rows, width_k), np.int32), np.empty((n_rows, width_k), np.float32)
    call(
        function("reclm_select", *[I64] * 4, *[POINTER] * 6, I32),
        "scores",
        n_rows,
        n_items,
        n_candidates,
        width_k,
        pointer(scores),
        pointer(candidates),
        pointer(seen_indptr),
        pointer(seen_indices),
        pointer(ids),
        pointer(best),
        threads(n_threads),
    )
    return _padded(ids, best, k)


def knn(
    queries: np.ndarray, vectors: np.ndarray, k: int, *, own: np.ndarray | None = None, n_threads: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest rows of `vectors` to each query by cosine, ties to the lower row.

    queries: float32 (n_queries, dim). vectors: float32 (n_vectors, dim).
    own: int32 or int64 (n_queries,), the row of `vectors` that a query must not find (itself); -1 for none.
    Returns rows int32 (n_queries, k) and cosines float32 (n_queries, k), best first. A zero row has no direction: it
    has no neighbors and is nobody's neighbor.
    """
    queries = checked("queries", queries, np.float32, 2)
    vectors = checked("vectors", vectors, np.float32, 2)
    if queries.shape[1] != vectors.shape[1]:
        raise InputError(f"vectors: expected {queries.shape[1]} columns as queries have, found {vectors.shape[1]}")
    finite("queries", queries)
    finite("vectors", vectors)
    n_queries, n_vectors = len(queries), len(vectors)
    skip = None
    if own is not None:
        if not isinstance(own, np.ndarray) or own.dtype not in (np.int32, np.int64) or own.shape != (n_queries,):
            found = f"{own.dtype} {own.shape}" if isinstance(own, np.ndarray) else type(own).__name__
            raise InputError(f"own: expected int32 or int64 ({n_queries},), found {found}")
        if own.size and not -1 <= own.min() <= own.max() < n_vectors:
            raise InputError(f"own: expected rows within [0, {n_vectors}) or -1, found {own.min()} to {own.max()}")
        indptr = np.concatenate(([0], np.cumsum(own >= 0, dtype=np.int64)))
        indices = own[own >= 0].astype(np.int32)
        skip = CSR(indptr, indices, np.ones(len(indices), np.float32), (n_queries, n_vectors))
    directed = np.flatnonzero(vectors.any(axis=1)).astype(np.int32)
    ids, cosines = topk(_unit(queries), _unit(vectors), k, candidates=directed, seen=skip, n_threads=n_threads)
    aimless = ~queries.any(axis=1)
    ids[aimless], cosines[aimless] = -1, -np.inf
    return ids, cosines


def _unit(vectors: np.ndarray) -> np.ndarray:
    """L2-normalized rows (zeros stay zeros), scaled so that squares neither overflow nor underflow."""
    largest = np.abs(vectors).max(axis=1, initial=0.0, keepdims=True)
    scaled = vectors / np.where(largest > 0, largest, 1)
    norms = np.sqrt(np.einsum("ij,ij->i", scaled, scaled))[:, None]
    return scaled / np.where(norms > 0, norms, 1)


def _k(k: int, n_items: int) -> int:
    """A checked k. Positions beyond n_items are padding, so the excess is bounded: a wrong k could exhaust memory."""
    if not isinstance(k, (int, np.integer)) or k < 1:
        raise InputError(f"k: expected an integer of at least 1, found {k!r}")
    return integer("k", k, 1, max(n_items, MAX_PADDED_K))


def _kept(k: int) -> int:
    """Number of candidates that int8 keeps to find k: enough that few users need a second pass."""
    return k + 10 + k // 2


def _rows(
    indptr: np.ndarray | None, indices: np.ndarray | None, rows: np.ndarray
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """indptr and indices of some rows of a CSR matrix."""
    if indptr is None or indices is None:
        return None, None
    parts = [indices[indptr[row] : indptr[row + 1]] for row in rows]
    return np.concatenate(([0], np.cumsum([len(part) for part in parts]))), np.concatenate(parts)


def _candidates(candidates: np.ndarray, n_items: int) -> np.ndarray:
    candidates = checked("candidates", candidates, np.int32, 1)
    if candidates.size and (candidates[1:] <= candidates[:-1]).any():
        raise InputError("candidates: expected ascending ids without repetition; pass numpy.unique of them")
    if candidates.size and not 0 <= candidates[0] <= candidates[-1] < n_items:
        raise InputError(f"candidates: expected ids within [0, {n_items}), found {candidates[0]} to {candidates[-1]}")
    return candidates


def _masked(seen: CSR | None, shape: tuple[int, int]) -> tuple[np.ndarray | None, np.ndarray | None]:
    """indptr and indices, ascending within each row; None if nothing is masked."""
    if seen is None:
        return None, None
    if as_csr("seen", seen).shape != shape:
        raise InputError(f"seen: expected the shape {shape}, found {seen.shape}")
    return seen.indptr, _ascending_rows(seen)


def _by_bound(
    users: np.ndarray, items: np.ndarray, item_bias: np.ndarray | None, candidates: np.ndarray, relu_dim: int
) -> np.ndarray:
    """The candidates sorted by their bound for a user of typical norm, highest first; affects speed only."""
    dim = users.shape[1] - relu_dim
    with np.errstate(over="ignore", invalid="ignore"):
        user_norms, norms = (np.sqrt(np.einsum("ij,ij->i", part[:, :dim], part[:, :dim])) for part in (users, items))
        bound = norms * (user_norms.mean() if len(users) else 0)
        if relu_dim:
            bound += np.maximum(items[:, dim:], 0).sum(axis=1)
        if item_bias is not None:
            bound += item_bias
    return np.ascontiguousarray(candidates[np.argsort(-bound[candidates])])


def _padded(ids: np.ndarray, scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    missing = ((0, 0), (0, k - ids.shape[1]))
    if missing[1][1] == 0:
        return ids, scores
    return np.pad(ids, missing, constant_values=-1), np.pad(scores, missing, constant_values=-np.inf)


def _ascending_rows(matrix: CSR) -> np.ndarray:
    """The indices, ascending within each row (a sorted copy if they are not)."""
    indices = matrix.indices
    if indices.size < 2:
        return indices
    falls = np.flatnonzero(indices[1:] < indices[:-1]) + 1
    if np.isin(falls, matrix.indptr).all():
        return indices
    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    return np.ascontiguousarray(indices[np.lexsort((indices, rows))])
