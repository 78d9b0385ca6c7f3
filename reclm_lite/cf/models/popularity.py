"""Ranks items by their number of users: the baseline that every other model has to beat."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from ..fitted import FittedModel


@dataclass(frozen=True)
class Settings:
    """Nothing can be set."""


def fit(
    interactions: sp.csr_matrix,
    settings: Settings,
    *,
    seed: int = 0,
    n_threads: int | None = None,
    progress: Callable[..., None] | None = None,
) -> FittedModel:
    """interactions: CSR (n_users, n_items). The bias is the item's number of users; there are no vectors."""
    n_users, n_items = interactions.shape
    counts = np.bincount(interactions.indices, minlength=n_items).astype(np.float32)
    return FittedModel.of_vectors(
        "popularity",
        np.zeros((n_users, 0), np.float32),
        np.zeros((n_items, 0), np.float32),
        counts,
        np.zeros(n_users, bool),
    )


def estimate_bytes(n_users: int, n_items: int, nnz: int, settings: Settings) -> int:
    """Peak bytes of `fit`."""
    return 12 * n_items + n_users
