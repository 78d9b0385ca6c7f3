"""The branchy inner loops of training, compiled by numba. Import this module lazily: numba is slow to load.

All randomness is splitmix64 over (seed, counter), so that results do not depend on numba's generators.
Everything runs on one thread: sums have one order, and equal seeds give equal bits.
"""

import numba
import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX2 = np.uint64(0x94D049BB133111EB)


@numba.njit(cache=True, inline="always")
def _splitmix(counter):
    z = counter * _GOLDEN
    z = (z ^ (z >> np.uint64(30))) * _MIX1
    z = (z ^ (z >> np.uint64(27))) * _MIX2
    return z ^ (z >> np.uint64(31))


@numba.njit(cache=True)
def sample_negatives(users, indptr, indices, pool, n_negatives, seed):
    """Items drawn uniformly from `pool` that the user has not touched: int32 (n, n_negatives).

    users: int32 (n,). indptr, indices: CSR of known positives, ascending within a row.
    A user who has touched nearly everything may get a positive after 64 draws in vain.
    """
    out = np.empty((len(users), n_negatives), np.int32)
    n_pool = np.uint64(len(pool))
    counter = _splitmix(np.uint64(seed) + np.uint64(1)) >> np.uint64(16)
    for row in range(len(users)):
        begin, end = indptr[users[row]], indptr[users[row] + 1]
        for column in range(n_negatives):
            item = np.int32(0)
            for _ in range(64):
                counter += np.uint64(1)
                item = pool[(_splitmix(counter) >> np.uint64(16)) % n_pool]
                low, high = begin, end
                while low < high:
                    middle = (low + high) // 2
                    if indices[middle] < item:
                        low = middle + 1
                    else:
                        high = middle
                if low == end or indices[low] != item:
                    break
            out[row, column] = item
    return out


@numba.njit(cache=True)
def ranking_loss(users, positives, negatives, user_vectors, item_vectors, item_bias, d_users, d_items, d_bias):
    """Sampled softmax of each positive among its negatives; with one negative this is BPR exactly.

        loss = mean over rows of  log(1 + sum_j exp(s_j - s_pos)),   s = user . item + bias

    users, positives: int32 (n,). negatives: int32 (n, m). item_bias, d_bias: float32 (n_items,) or (0,).
    Adds gradients to d_users, d_items, d_bias in place; returns the loss.
    """
    n, m = negatives.shape
    dim = user_vectors.shape[1]
    with_bias = len(item_bias) > 0
    scores = np.empty(m, np.float32)
    total = 0.0
    for row in range(n):
        user, positive = users[row], positives[row]
        vector = user_vectors[user]
        score = np.float32(0)
        for d in range(dim):
            score += vector[d] * item_vectors[positive, d]
        if with_bias:
            score += item_bias[positive]
        highest = np.float32(0)
        for j in range(m):
            other = negatives[row, j]
            margin = -score
            for d in range(dim):
                margin += vector[d] * item_vectors[other, d]
            if with_bias:
                margin += item_bias[other]
            scores[j] = margin
            highest = max(highest, margin)
        norm = np.exp(-np.float64(highest))
        for j in range(m):
            norm += np.exp(np.float64(scores[j] - highest))
        total += highest + np.log(norm)
        taken = np.float32(0)
        for j in range(m):
            other = negatives[row, j]
            weight = np.float32(np.exp(np.float64(scores[j] - highest)) / norm / n)
            taken += weight
            for d in range(dim):
                d_users[user, d] += weight * (item_vectors[other, d] - item_vectors[positive, d])
                d_items[other, d] += weight * vector[d]
            if with_bias:
                d_bias[other] += weight
        for d in range(dim):
            d_items[positive, d] -= taken * vector[d]
        if with_bias:
            d_bias[positive] -= taken
    return total / n


@numba.njit(cache=True)
def adam_step(value, grad, first, second, step, rate, l2):
    """One Adam step (betas 0.9, 0.999, eps 1e-8) over flat float32 arrays, with the gradient of l2 * value**2."""
    b1, b2 = np.float32(0.9), np.float32(0.999)
    fix1 = np.float32(1.0 / (1.0 - 0.9**step))
    fix2 = np.float32(1.0 / (1.0 - 0.999**step))
    rate, decay, eps, one = np.float32(rate), np.float32(2.0 * l2), np.float32(1e-8), np.float32(1)
    for i in range(len(value)):
        g = grad[i] + decay * value[i]
        first[i] = b1 * first[i] + (one - b1) * g
        second[i] = b2 * second[i] + (one - b2) * g * g
        value[i] -= rate * (first[i] * fix1) / (np.sqrt(second[i] * fix2) + eps)
