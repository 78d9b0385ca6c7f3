"""Reproducible chance: a score hashed from (seed, user, item). What a metric is worth shows beside it."""

import numpy as np

from ..interface import FittedModel


def fit_random(n_users: int, n_items: int, *, seed: int = 0) -> FittedModel:
    """Nothing is learned and no matrix is kept; see `interface.hash_scores`."""
    return FittedModel(
        "random", np.zeros((n_users, 0), np.float32), np.zeros((n_items, 0), np.float32), None,
        np.zeros(n_users, bool), hash_seed=seed, params={"seed": seed},
    )  # fmt: skip
