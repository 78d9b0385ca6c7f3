"""Matrix factorisation: the first vectors are the last.

The published BiasMF adds a bias for each user. It cancels in a pairwise loss and in any ranking of
one user's items, so it is left out; what counts, the item's bias, comes with the encoder.
"""

import numpy as np

from ..fusion import PublishedEncoder, ResidualEncoder
from ..layers import Params
from ..training import Batch, Grads, vector_step
from ..vectors import Vectors


class BiasMF:
    """score = user . item (+ item bias)."""

    name = "biasmf"
    drops_targets = False

    def __init__(self, encoder: PublishedEncoder | ResidualEncoder):
        self.encoder = encoder

    def init(self, rng: np.random.Generator) -> Params:
        return self.encoder.init(rng)

    def step(self, params: Params, batch: Batch) -> tuple[float, Grads]:
        return vector_step(self, params, batch)

    def vectors(self, params: Params) -> Vectors:
        return Vectors(*self.forward(params)[:3])

    def forward(self, params: Params, targets: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict]:
        """(user_vectors, item_vectors, item_bias, cache); `targets` is for models with a graph."""
        return self.encoder.forward(params)

    def backward(
        self, params: Params, cache: dict, d_users: np.ndarray, d_items: np.ndarray, d_bias: np.ndarray
    ) -> Params:
        return self.encoder.backward(params, cache, d_users, d_items, d_bias)
