"""Ranking by how many users touched an item: the model every other one has to beat."""

import numpy as np
import scipy.sparse as sp

from ..interface import FittedModel


def fit_popularity(interactions: sp.csr_matrix) -> FittedModel:
    """interactions: CSR (n_users, n_items). The bias is the item's number of users; nobody has a vector."""
    n_users, n_items = interactions.shape
    counts = np.bincount(interactions.indices, minlength=n_items).astype(np.float32)
    return FittedModel(
        "popularity", np.zeros((n_users, 0), np.float32), np.zeros((n_items, 0), np.float32), counts,
        np.zeros(n_users, bool),
    )  # fmt: skip
