"""Losses over `Vectors` with their gradients, computed by the kernels."""

import numpy as np

from . import layers
from .vectors import Vectors


def ranking_loss(
    loss: str,
    users: np.ndarray,
    positives: np.ndarray,
    negatives: np.ndarray,
    vectors: Vectors,
    *,
    n_threads: int | None = None,
) -> tuple[float, Vectors]:
    """(mean loss, its gradient as `Vectors` of the same shapes). loss: "bpr" or "ssm".

    users, positives: int32 (n,), negatives: int32 (n, m), rows of `vectors`; a negative of -1 is ignored.
    """
    from ..kernels import losses

    d_users, d_items, d_bias = (np.zeros_like(array) for array in vectors[:3])
    d = Vectors(d_users, d_items, d_bias, vectors.relu_dim)
    value = losses.ranking_loss(
        loss, users, positives, negatives, *vectors[:3], *d[:3], relu_dim=vectors.relu_dim, n_threads=n_threads
    )
    return value, d


def contrast(
    one: np.ndarray, two: np.ndarray, nodes: np.ndarray, temperature: float, *, n_threads: int | None = None
) -> tuple[float, np.ndarray, np.ndarray]:
    """InfoNCE by cosine: the positive of a node in view `one` is its row in view `two`, the negatives all other rows.

    one, two: float32 (n, dim). nodes: int32 (m,), row numbers, which may repeat. Returns the mean over nodes and the
    gradients of both views.
    """
    from ..kernels.info_nce import info_nce

    z1, length1 = layers.normalize(one[nodes])
    z2, length2 = layers.normalize(two)
    value, dz1, dz2 = info_nce(z1, z2, nodes, temperature, n_threads=n_threads)
    d_one = np.zeros_like(one)
    np.add.at(d_one, nodes, layers.normalize_backward(z1, length1, dz1))
    return value, d_one, layers.normalize_backward(z2, length2, dz2)


def contrast_within(
    one: np.ndarray, two: np.ndarray, nodes: np.ndarray, temperature: float, *, n_threads: int | None = None
) -> tuple[float, np.ndarray, np.ndarray]:
    """The same with negatives from the batch: the other rows of the distinct `nodes`."""
    rows = np.unique(nodes)
    value, d_rows_one, d_rows_two = contrast(
        one[rows], two[rows], np.arange(len(rows), dtype=np.int32), temperature, n_threads=n_threads
    )
    d_one, d_two = np.zeros_like(one), np.zeros_like(two)
    d_one[rows], d_two[rows] = d_rows_one, d_rows_two
    return value, d_one, d_two
