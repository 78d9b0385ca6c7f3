"""Ranking losses with their gradients: BPR and sampled softmax. numba; import this module lazily.

The order of sums does not depend on the number of threads: rows are computed independently, and the gradients of an
item are added in the batch's order, by the thread that owns the item.

Left out: layers and optimizers, and InfoNCE (info_nce.py).
"""

from collections.abc import Iterable

import numba
import numpy as np

from reclm_lite.errors import InputError
from reclm_lite.kernels._jit import REASSOCIATE, compiled, exp_at_most_zero, limited

LOSSES = ("bpr", "ssm")
_CHUNK_ROWS = 64
_CHUNK_ITEMS = 64


def ranking_loss(
    loss: str,
    users: np.ndarray,
    positives: np.ndarray,
    negatives: np.ndarray,
    user_vectors: np.ndarray,
    item_vectors: np.ndarray,
    item_bias: np.ndarray,
    d_users: np.ndarray,
    d_items: np.ndarray,
    d_bias: np.ndarray,
    *,
    relu_dim: int = 0,
    n_threads: int | None = None,
) -> float:
    """The loss of a batch; adds its gradients to d_users, d_items and d_bias in place.

        bpr = mean over rows and negatives of softplus(s_j - s_pos)      (arXiv 1205.2618)
        ssm = mean over rows of log(1 + sum_j exp(s_j - s_pos))          (sampled softmax; with one negative it is bpr)
        s   = user . item + bias, where the last relu_dim columns add max(user + item, 0) instead of the product

    users, positives: int32 (n,), rows of the vectors. negatives: int32 (n, m); -1 is skipped: it adds nothing, but
    counts in the mean. user_vectors, item_vectors: float32 (any number of rows, dim). item_bias: float32 (n_items,), or
    (0,) for none. Raises InputError if an array has another dtype or shape, or an id has no row.
    """
    if loss not in LOSSES:
        raise InputError(f"loss: expected one of {', '.join(LOSSES)}, found {loss!r}")
    _check_batch(users, positives, negatives, user_vectors, item_vectors, item_bias, relu_dim)
    _check_targets(((d_users, user_vectors), (d_items, item_vectors), (d_bias, item_bias)))
    if len(users) == 0:
        return 0.0
    n, dim = len(users), user_vectors.shape[1]
    losses, pulls = np.empty(n), np.zeros((n, dim), np.float32)
    with limited(n_threads, negatives.size * dim):
        _ranking_loss(
            loss == "bpr",
            users,
            positives,
            negatives,
            user_vectors,
            item_vectors,
            item_bias,
            d_items,
            d_bias,
            dim - relu_dim,
            np.empty(negatives.shape, np.float32),
            np.empty(n, np.float32),
            losses,
            pulls,
            np.empty((n, dim), np.float32),
        )
    _add_rows(d_users, users, pulls)
    return float(losses.sum())


def _check_batch(
    users: np.ndarray,
    positives: np.ndarray,
    negatives: np.ndarray,
    user_vectors: np.ndarray,
    item_vectors: np.ndarray,
    item_bias: np.ndarray,
    relu_dim: int,
) -> None:
    """Validate indices and shapes: the compiled loops do not check bounds."""
    wanted = (
        ("users", users, np.int32, 1),
        ("positives", positives, np.int32, 1),
        ("negatives", negatives, np.int32, 2),
        ("user_vectors", user_vectors, np.float32, 2),
        ("item_vectors", item_vectors, np.float32, 2),
        ("item_bias", item_bias, np.float32, 1),
    )
    for name, array, dtype, ndim in wanted:
        if not isinstance(array, np.ndarray) or array.dtype != dtype or array.ndim != ndim:
            found = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
            raise InputError(f"{name}: expected a {ndim}-dimensional array of {np.dtype(dtype)}, found {found}")
    n_items, dim = item_vectors.shape
    if user_vectors.shape[1] != dim or not 0 <= relu_dim <= dim or len(item_bias) not in (0, n_items):
        found = f"{user_vectors.shape}, {item_vectors.shape}, {item_bias.shape}, relu_dim {relu_dim}"
        raise InputError(
            f"vectors: expected user and item vectors of one width, a bias for each item or none, found {found}"
        )
    if len(positives) != len(users) or len(negatives) != len(users):
        found = f"{len(users)} users, {len(positives)} positives, {len(negatives)} rows of negatives"
        raise InputError(f"batch: expected as many positives and rows of negatives as users, found {found}")
    for name, ids, least, n in (
        ("users", users, 0, len(user_vectors)),
        ("positives", positives, 0, n_items),
        ("negatives", negatives, -1, n_items),
    ):
        if ids.size and not least <= ids.min() <= ids.max() < n:
            raise InputError(f"{name}: expected ids within [{least}, {n}), found {ids.min()} to {ids.max()}")


def _check_targets(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> None:
    """Validate (gradient, value) pairs: writable float32 gradients of the same shapes."""
    for target, of in pairs:
        if not isinstance(target, np.ndarray):
            raise InputError(f"gradients: expected a writable float32 {of.shape}, found {type(target).__name__}")
        if target.dtype != np.float32 or target.shape != of.shape or not target.flags.writeable:
            found = f"{target.dtype} {target.shape}{'' if target.flags.writeable else ', read-only'}"
            raise InputError(f"gradients: expected a writable float32 {of.shape}, found {found}")


@compiled(fastmath=REASSOCIATE)
def _score(user: np.ndarray, item: np.ndarray, n_dot: int) -> np.float32:
    """user . item over the first n_dot columns, plus max(user + item, 0) over the others."""
    total = np.float32(0)
    for d in range(n_dot):
        total += user[d] * item[d]
    for d in range(n_dot, len(user)):
        total += max(user[d] + item[d], np.float32(0))
    return total


@compiled()
def _add_pull(target: np.ndarray, weight: np.float32, user: np.ndarray, item: np.ndarray, n_dot: int) -> None:
    """target += weight * gradient of the score with respect to `user`; for the item, exchange `user` and `item`."""
    for d in range(n_dot):
        target[d] += weight * item[d]
    for d in range(n_dot, len(user)):
        target[d] += weight if user[d] + item[d] > 0 else np.float32(0)


@compiled()
def _weigh(margins: np.ndarray, bits: np.ndarray, is_bpr: bool, scale: float) -> float:
    """Replace margins s_j - s_pos by d loss / d s_j; returns the row's scaled loss. Skipped margins are -inf."""
    m = len(margins)
    total = 0.0
    if is_bpr:
        for j in range(m):
            x = np.float64(margins[j])
            if x == -np.inf:
                margins[j] = 0
                continue
            small = np.exp(-abs(x))
            total += max(x, 0.0) + np.log1p(small)
            margins[j] = np.float32((1.0 if x >= 0 else small) / (1.0 + small) * scale)
        return total * scale
    highest = np.float32(0)
    for j in range(m):
        highest = max(highest, margins[j])
        if np.isnan(margins[j]):
            return np.nan
    for j in range(m):
        bits[j] = margins[j] == -np.inf
        margins[j] -= highest
    skipped = 0
    for j in range(m):
        skipped += bits[j]
    if skipped:
        for j in range(m):
            margins[j] = np.float32(np.exp(np.float64(margins[j])))
    else:
        exp_at_most_zero(margins, bits)
    norm = np.exp(-np.float64(highest))
    for j in range(m):
        norm += np.float64(margins[j])
    factor = np.float32(scale / norm)
    for j in range(m):
        margins[j] *= factor
    return (np.float64(highest) + np.log(norm)) * scale


@compiled()
def _one_row(
    is_bpr: bool,
    scale: float,
    copy: np.ndarray,
    user: np.ndarray,
    positive: int,
    negatives: np.ndarray,
    item_vectors: np.ndarray,
    item_bias: np.ndarray,
    n_dot: int,
    weights: np.ndarray,
    pull: np.ndarray,
    bits: np.ndarray,
) -> tuple[float, np.float32]:
    """One row of a batch: (its loss, the sum of its weights).

    Writes d loss / d s_j to weights, d loss / d user to pull, and the user's vector to copy.
    """
    for d in range(len(user)):
        copy[d] = user[d]
    with_bias = len(item_bias) > 0
    base = _score(user, item_vectors[positive], n_dot)
    if with_bias:
        base += item_bias[positive]
    for j in range(len(negatives)):
        other = negatives[j]
        if other < 0:
            weights[j] = -np.inf
            continue
        margin = _score(user, item_vectors[other], n_dot) - base
        weights[j] = margin + item_bias[other] if with_bias else margin
    loss = _weigh(weights, bits, is_bpr, scale)
    total = np.float32(0)
    for j in range(len(negatives)):
        total += weights[j]
        if negatives[j] >= 0:
            _add_pull(pull, weights[j], user, item_vectors[negatives[j]], n_dot)
    _add_pull(pull, -total, user, item_vectors[positive], n_dot)
    return loss, total


@compiled(parallel=True)
def _ranking_loss(
    is_bpr: bool,
    users: np.ndarray,
    positives: np.ndarray,
    negatives: np.ndarray,
    user_vectors: np.ndarray,
    item_vectors: np.ndarray,
    item_bias: np.ndarray,
    d_items: np.ndarray,
    d_bias: np.ndarray,
    n_dot: int,
    weights: np.ndarray,
    taken: np.ndarray,
    losses: np.ndarray,
    pulls: np.ndarray,
    mine: np.ndarray,
) -> None:
    """Write each row's loss and user gradient (pulls); add to the gradients of items and biases."""
    n, m = negatives.shape
    scale = 1.0 / (n * m) if is_bpr else 1.0 / n
    for chunk in numba.prange((n + _CHUNK_ROWS - 1) // _CHUNK_ROWS):
        bits = np.empty(m, np.int32)
        for row in range(chunk * _CHUNK_ROWS, min((chunk + 1) * _CHUNK_ROWS, n)):
            losses[row], taken[row] = _one_row(
                is_bpr,
                scale,
                mine[row],
                user_vectors[users[row]],
                positives[row],
                negatives[row],
                item_vectors,
                item_bias,
                n_dot,
                weights[row],
                pulls[row],
                bits,
            )
    n_items = len(item_vectors)
    starts, rows, pushes = _by_item(positives, negatives, weights, taken, n_items)
    for chunk in numba.prange((n_items + _CHUNK_ITEMS - 1) // _CHUNK_ITEMS):
        first, last = chunk * _CHUNK_ITEMS, min((chunk + 1) * _CHUNK_ITEMS, n_items)
        _add_pushes(first, last, starts, rows, pushes, mine, item_vectors, d_items, d_bias, n_dot)


@compiled()
def _add_rows(target: np.ndarray, rows: np.ndarray, values: np.ndarray) -> None:
    for at in range(len(rows)):
        one, other = target[rows[at]], values[at]
        for d in range(len(one)):
            one[d] += other[d]


@compiled()
def _by_item(
    positives: np.ndarray, negatives: np.ndarray, weights: np.ndarray, taken: np.ndarray, n_items: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The batch's pairs sorted by item, rows ascending: starts (n_items + 1,), rows and d loss / d score (n_pairs,).

    Then each item's gradient is summed in one place, from user vectors that fit the cache, without scattered writes.
    """
    n, m = negatives.shape
    starts = np.zeros(n_items + 2, np.int64)
    for row in range(n):
        starts[positives[row] + 2] += 1
        for j in range(m):
            if negatives[row, j] >= 0:
                starts[negatives[row, j] + 2] += 1
    for item in range(n_items):
        starts[item + 2] += starts[item + 1]
    rows = np.empty(starts[n_items + 1], np.int32)
    pushes = np.empty(starts[n_items + 1], np.float32)
    for row in range(n):
        for j in range(m + 1):
            item = positives[row] if j == m else negatives[row, j]
            if item >= 0:
                at = starts[item + 1]
                starts[item + 1] = at + 1
                rows[at] = row
                pushes[at] = -taken[row] if j == m else weights[row, j]
    return starts[: n_items + 1], rows, pushes


@compiled()
def _add_pushes(
    first: int,
    last: int,
    starts: np.ndarray,
    rows: np.ndarray,
    pushes: np.ndarray,
    users: np.ndarray,
    item_vectors: np.ndarray,
    d_items: np.ndarray,
    d_bias: np.ndarray,
    n_dot: int,
) -> None:
    """Add the gradients of items first to last: sums of pushes * d score / d item vector."""
    for item in range(first, last):
        for at in range(starts[item], starts[item + 1]):
            _add_pull(d_items[item], pushes[at], item_vectors[item], users[rows[at]], n_dot)
            if len(d_bias):
                d_bias[item] += pushes[at]
