"""Reproducible chance: a score hashed from (seed, user, item). What a metric is worth shows beside it."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from ..interface import FittedModel


@dataclass(frozen=True)
class Settings:
    """Nothing can be set but the seed of `fit`."""


def fit(
    interactions: sp.csr_matrix,
    settings: Settings,
    *,
    seed: int = 0,
    n_threads: int | None = None,
    progress: Callable[..., None] | None = None,
) -> FittedModel:
    """Nothing is learned from interactions but their shape, and no matrix is kept; see `interface.hash_scores`."""
    n_users, n_items = interactions.shape
    return FittedModel(
        "random",
        np.zeros((n_users, 0), np.float32),
        np.zeros((n_items, 0), np.float32),
        None,
        np.zeros(n_users, bool),
        hash_seed=seed,
        params={"seed": seed},
    )


def estimate_bytes(n_users: int, n_items: int, nnz: int, settings: Settings) -> int:
    """Peak bytes of `fit`."""
    return n_users
