"""Reproducible random scores, hashed from (seed, user, item): the level of chance for every metric."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from ..fitted import FittedModel
from ..scorers import HashScorer


@dataclass(frozen=True)
class Settings:
    """There is nothing to set except the seed of `fit`."""


def fit(
    interactions: sp.csr_matrix,
    settings: Settings,
    *,
    seed: int = 0,
    n_threads: int | None = None,
    progress: Callable[..., None] | None = None,
) -> FittedModel:
    """Uses only the shape of `interactions` and stores no matrix; see `scorers.hash_scores`."""
    n_users, n_items = interactions.shape
    return FittedModel("random", HashScorer(seed, n_users, n_items), np.zeros(n_users, bool), params={"seed": seed})


def estimate_bytes(n_users: int, n_items: int, nnz: int, settings: Settings) -> int:
    """Peak bytes of `fit`."""
    return n_users
