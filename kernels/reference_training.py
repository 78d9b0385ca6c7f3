"""NumPy versions of the training kernels, in float64: the oracle the tests compare with, and not a fallback."""

import numpy as np


def allowed_negatives(user: int, indptr: np.ndarray, indices: np.ndarray, pool: np.ndarray) -> np.ndarray:
    """What `sampling.sample_negatives` draws from for one user, all equally likely; empty: it answers -1."""
    return np.setdiff1d(pool, indices[indptr[user] : indptr[user + 1]])


def ranking_loss(
    loss: str,
    users: np.ndarray,
    positives: np.ndarray,
    negatives: np.ndarray,
    user_vectors: np.ndarray,
    item_vectors: np.ndarray,
    item_bias: np.ndarray,
    *,
    relu_dim: int = 0,
) -> tuple[float, np.ndarray, np.ndarray, np.ndarray]:
    """As `losses.ranking_loss`: (loss, d_users, d_items, d_bias), a row of the batch at a time."""
    n, m = negatives.shape
    u, v = user_vectors.astype(np.float64), item_vectors.astype(np.float64)
    bias = item_bias.astype(np.float64) if len(item_bias) else np.zeros(len(v))
    d_users, d_items, d_bias = np.zeros_like(u), np.zeros_like(v), np.zeros_like(bias)
    n_dot = u.shape[1] - relu_dim

    def score(user: int, item: int) -> tuple[float, np.ndarray, np.ndarray]:
        """The score and its gradients by the user's and the item's vector."""
        both = u[user] + v[item]
        active = (both > 0).astype(np.float64)
        active[:n_dot] = 0
        by_user, by_item = np.where(np.arange(len(both)) < n_dot, v[item], active), active.copy()
        by_item[:n_dot] = u[user, :n_dot]
        return u[user, :n_dot] @ v[item, :n_dot] + np.maximum(both[n_dot:], 0).sum() + bias[item], by_user, by_item

    total = 0.0
    for row in range(n):
        drawn = [item for item in negatives[row].tolist() if item >= 0]
        base, base_user, base_item = score(users[row], positives[row])
        scored = [score(users[row], item) for item in drawn]
        margins = np.array([s[0] - base for s in scored])
        if loss == "bpr":
            total += np.logaddexp(0, margins).sum() / (n * m)
            weights = 1 / (1 + np.exp(-margins)) / (n * m)
        else:
            norm = np.logaddexp.reduce([0.0, *margins])
            total += norm / n
            weights = np.exp(margins - norm) / n
        for item, weight, (_, by_user, by_item) in zip(drawn, weights, scored, strict=True):
            d_users[users[row]] += weight * (by_user - base_user)
            d_items[item] += weight * by_item
            d_items[positives[row]] -= weight * base_item
            d_bias[item] += weight
            d_bias[positives[row]] -= weight
    return total, d_users, d_items, d_bias if len(item_bias) else np.zeros(0)


def info_nce(
    z1: np.ndarray, z2: np.ndarray, positives: np.ndarray, temperature: float
) -> tuple[float, np.ndarray, np.ndarray]:
    """As `info_nce.info_nce`, with the whole n x m matrix."""
    z1, z2 = z1.astype(np.float64), z2.astype(np.float64)
    n = len(z1)
    if n == 0:
        return 0.0, np.zeros_like(z1), np.zeros_like(z2)
    scores = z1 @ z2.T / temperature
    norms = np.logaddexp.reduce(scores, axis=1)
    d_scores = np.exp(scores - norms[:, None])
    d_scores[np.arange(n), positives] -= 1
    d_scores /= n * temperature
    return float((norms - scores[np.arange(n), positives]).mean()), d_scores @ z2, d_scores.T @ z1


def adam(
    value: np.ndarray, grad: np.ndarray, first: np.ndarray, second: np.ndarray, *, step: int, lr: float, l2: float = 0.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As `optim.adam`, returning (value, first, second)."""
    value, grad, first, second = (array.astype(np.float64) for array in (value, grad, first, second))
    grad = grad + 2 * l2 * value
    first = 0.9 * first + 0.1 * grad
    second = 0.999 * second + 0.001 * grad**2
    return value - lr * first / (1 - 0.9**step) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8), first, second
