"""Reproducible chance: a score hashed from (seed, user, item). What a metric is worth shows beside it."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from ..fitted import FittedModel
from ..scorers import HashScorer


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
    """Nothing is learned from interactions but their shape, and no matrix is kept; see `scorers.hash_scores`."""
    n_users, n_items = interactions.shape
    return FittedModel("random", HashScorer(seed, n_users, n_items), np.zeros(n_users, bool), params={"seed": seed})


def estimate_bytes(n_users: int, n_items: int, nnz: int, settings: Settings) -> int:
    """Peak bytes of `fit`."""
    return n_users
