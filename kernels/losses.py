"""The losses of training with their gradients: BPR, sampled softmax, InfoNCE. numba; import this module lazily.

Sums have one order whatever the number of threads: rows are computed apart, and gradients that meet in one item
are added in the batch's order, each thread owning some items.

Left out: layers and optimisers.
"""

import functools

import numba
import numpy as np
import scipy.linalg.cython_blas  # noqa: F401  numba's np.dot calls this BLAS: `_blas` has to see it loaded
from threadpoolctl import ThreadpoolController

from reclm_lite.errors import InputError
from reclm_lite.kernels._jit import REASSOCIATE, compiled, exp_at_most_zero, limited

LOSSES = ("bpr", "ssm")
_CHUNK_ROWS = 64
_CHUNK_ITEMS = 64
_BLOCK_VALUES = 4_000_000
_BLOCK_COLUMNS = 4096


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
        s   = user . item + sum over the last relu_dim columns of max(user + item, 0) instead of the product, + bias

    users, positives: int32 (n,), rows of the vectors. negatives: int32 (n, m); -1 is skipped: it adds nothing, and
    still counts in the mean. user_vectors, item_vectors: float32 (any number of rows, dim). item_bias: float32
    (n_items,) or (0,) for none. Raises InputError on an array of another dtype or shape, and on an id that has no row.
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


def _check_batch(users, positives, negatives, user_vectors, item_vectors, item_bias, relu_dim) -> None:
    """What the loops index with, and into; they would read and write anywhere."""
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


def _check_targets(pairs: tuple) -> None:
    """Gradients that are added to: float32 of the shapes of what they belong to."""
    for target, of in pairs:
        if not isinstance(target, np.ndarray):
            raise InputError(f"gradients: expected a writable float32 {of.shape}, found {type(target).__name__}")
        if target.dtype != np.float32 or target.shape != of.shape or not target.flags.writeable:
            found = f"{target.dtype} {target.shape}{'' if target.flags.writeable else ', read-only'}"
            raise InputError(f"gradients: expected a writable float32 {of.shape}, found {found}")


@compiled(fastmath=REASSOCIATE)
def _score(user, item, n_dot):
    """user . item over the first n_dot columns, plus max(user + item, 0) over the others."""
    total = np.float32(0)
    for d in range(n_dot):
        total += user[d] * item[d]
    for d in range(n_dot, len(user)):
        total += max(user[d] + item[d], np.float32(0))
    return total


@compiled()
def _add_pull(target, weight, user, item, n_dot):
    """target += weight * (gradient of the score by one vector, `user` and `item` standing for either)."""
    for d in range(n_dot):
        target[d] += weight * item[d]
    for d in range(n_dot, len(user)):
        target[d] += weight if user[d] + item[d] > 0 else np.float32(0)


@compiled()
def _weigh(margins, bits, is_bpr, scale):
    """margins s_j - s_pos -> d loss / d s_j in place; returns the row's loss, scaled. Skipped ones are -inf."""
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
def _one_row(is_bpr, scale, copy, user, positive, negatives, item_vectors, item_bias, n_dot, weights, pull, bits):
    """One row of a batch: (its loss, the sum of its weights); writes d loss / d s_j to weights, d loss / d user to
    pull, the vector to copy."""
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
    is_bpr,
    users,
    positives,
    negatives,
    user_vectors,
    item_vectors,
    item_bias,
    d_items,
    d_bias,
    n_dot,
    weights,
    taken,
    losses,
    pulls,
    mine,
):
    """Writes what each row adds to its loss, and to its user's gradient (pulls); adds to those of items and biases."""
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
def _add_rows(target, rows, values):
    for at in range(len(rows)):
        one, other = target[rows[at]], values[at]
        for d in range(len(one)):
            one[d] += other[d]


@compiled()
def _by_item(positives, negatives, weights, taken, n_items):
    """The batch's pairs sorted by item, rows ascending: starts (n_items + 1,), rows and d loss / d score (n_pairs,).

    So an item's gradient is summed where it lies, from user vectors that fit the cache, instead of scattered over the
    table.
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
def _add_pushes(first, last, starts, rows, pushes, users, item_vectors, d_items, d_bias, n_dot):
    """The gradients of items first to last: sums of pushes * (gradient of the score by the item's vector)."""
    for item in range(first, last):
        for at in range(starts[item], starts[item + 1]):
            _add_pull(d_items[item], pushes[at], item_vectors[item], users[rows[at]], n_dot)
            if len(d_bias):
                d_bias[item] += pushes[at]


def info_nce(
    z1: np.ndarray, z2: np.ndarray, positives: np.ndarray, temperature: float, *, n_threads: int | None = None
) -> tuple[float, np.ndarray, np.ndarray]:
    """InfoNCE of z1's rows against all of z2's: (loss, dz1, dz2), the gradients float32 of the inputs' shapes.

        loss = mean over rows i of  log(sum_j exp(z1_i . z2_j / t)) - z1_i . z2_positives[i] / t     (arXiv 2010.10783,
        eq. 10)

    z1: float32 (n, dim). z2: float32 (m, dim): the batch's own rows of the other view, or those of all users. Both are
    what should be compared: normalise the rows first (`layers.normalize`), and pass the gradients back through it
    (`layers.normalize_backward`). positives: int32 or int64 (n,), the row of z2 that belongs to each row of z1.
    A score block of at most 4 million values exists at a time, never n x m. No rows: loss 0.
    Raises InputError on shapes that do not fit and on a temperature that is not positive.
    """
    z1, z2 = (np.ascontiguousarray(z, dtype=np.float32) for z in (z1, z2))
    if z1.ndim != 2 or z2.ndim != 2 or z1.shape[1] != z2.shape[1]:
        raise InputError(f"z2: expected as many columns as z1 has, found {z1.shape} and {z2.shape}")
    if not temperature > 0:
        raise InputError(f"temperature: expected more than 0, found {temperature}")
    n, m = len(z1), len(z2)
    positives = np.asarray(positives)
    if (
        positives.shape != (n,)
        or positives.dtype.kind not in "iu"
        or (n and not (positives.min() >= 0 and positives.max() < m))
    ):
        raise InputError(f"positives: expected {n} rows of z2 within [0, {m}), found {positives!r:.80}")
    if n == 0:
        return 0.0, np.zeros_like(z1), np.zeros_like(z2)
    block = int(max(1, min(n, 1024, _BLOCK_VALUES // m)))
    # One thread for each product: the loop around them is parallel, and BLAS threads within it would wait for each
    # other.
    with limited(n_threads, n * m), _blas().limit(limits=1, user_api="blas"):
        loss, dz1, dz2 = _info_nce(z1 * np.float32(1 / temperature), z2, block)
    # The positives' own pull, in float64 sums of one order: rows of z2 may repeat.
    own = np.einsum("ij,ij->i", z1, z2[positives], dtype=np.float64) / temperature
    scale = np.float32(1 / (n * temperature))
    dz1 *= scale
    dz1 -= scale * z2[positives]
    dz2 *= np.float32(1 / n)
    np.subtract.at(dz2, positives, scale * z1)
    return float((loss - own.sum()) / n), dz1, dz2


@functools.cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController()


@compiled()
def _exp_rows(scores, highest, norms, bits):
    """Each row of scores becomes exp(scores - its highest); the highest and the row's sum are written out."""
    rows, width = scores.shape
    for i in range(rows):
        mine = scores[i]
        top = _highest(mine)
        for j in range(width):
            mine[j] -= top
        exp_at_most_zero(mine, bits)
        highest[i] = top
        norms[i] = _sum(mine)


@compiled(fastmath=REASSOCIATE)
def _sum(values):
    total = np.float32(0)
    for j in range(len(values)):
        total += values[j]
    return total


@compiled(fastmath=REASSOCIATE | {"nnan"})
def _highest(values):
    top = values[0]
    for j in range(len(values)):
        top = max(top, values[j])
    return top


@compiled(parallel=True)
def _info_nce(z1, z2, block):
    """Sum of log(sum_j exp(z1_i . z2_j)) and its gradients; a block of z1's rows at a time, z2's columns shared out."""
    n, dim = z1.shape
    m = len(z2)
    n_parts = (m + _BLOCK_COLUMNS - 1) // _BLOCK_COLUMNS
    dz1, dz2 = np.empty((n, dim), np.float32), np.zeros((m, dim), np.float32)
    scores = np.empty(block * m, np.float32)
    highest = np.empty((n_parts, block), np.float32)
    norms = np.empty((n_parts, block), np.float32)
    pulls = np.empty((n_parts, block, dim), np.float32)
    factors = np.empty((n_parts, block), np.float32)
    total = 0.0
    for start in range(0, n, block):
        rows = min(block, n - start)
        mine = z1[start : start + rows]
        for part in numba.prange(n_parts):
            first, last = part * _BLOCK_COLUMNS, min((part + 1) * _BLOCK_COLUMNS, m)
            piece = scores[first * rows : last * rows].reshape((rows, last - first))
            np.dot(mine, z2[first:last].T, piece)
            bits = np.empty(last - first, np.int32)
            _exp_rows(piece, highest[part], norms[part], bits)
            np.dot(piece, z2[first:last], pulls[part, :rows])
        for i in range(rows):
            top = highest[0, i]
            for part in range(n_parts):
                top = max(top, highest[part, i])
            norm = 0.0
            for part in range(n_parts):
                norm += np.exp(np.float64(highest[part, i] - top)) * norms[part, i]
            total += top + np.log(norm)
            for d in range(dim):
                dz1[start + i, d] = 0
            for part in range(n_parts):
                factor = np.float32(np.exp(np.float64(highest[part, i] - top)) / norm)
                factors[part, i] = factor
                for d in range(dim):
                    dz1[start + i, d] += factor * pulls[part, i, d]
        for part in numba.prange(n_parts):
            first, last = part * _BLOCK_COLUMNS, min((part + 1) * _BLOCK_COLUMNS, m)
            piece = scores[first * rows : last * rows].reshape((rows, last - first))
            scaled = np.empty((rows, dim), np.float32)
            for i in range(rows):
                for d in range(dim):
                    scaled[i, d] = factors[part, i] * mine[i, d]
            pushed = np.dot(piece.T, scaled)
            for j in range(last - first):
                for d in range(dim):
                    dz2[first + j, d] += pushed[j, d]
    return total, dz1, dz2
