"""The result of every trained model: vectors that rank by

    score(u, i) = users[u, :d] . items[i, :d] + sum_h max(users[u, d+h] + items[i, d+h], 0) + bias[i]

where the last `relu_dim` columns are the additive ReLU part (NCF; 0 for the others) and d is the rest.
"""

from typing import NamedTuple

import numpy as np


class Vectors(NamedTuple):
    """users: float32 (n_users, dim). items: float32 (n_items, dim). bias: float32 (n_items,), or (0,) for none."""

    users: np.ndarray
    items: np.ndarray
    bias: np.ndarray
    relu_dim: int = 0
