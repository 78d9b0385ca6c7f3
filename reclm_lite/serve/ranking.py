"""Ranking: from scores over all items to the top k, with known items masked and scores standardized."""

import numpy as np


def tells_apart(scores: np.ndarray) -> bool:
    """Whether the finite scores differ. A history-based model gives equal scores if the items never occur with
    others."""
    finite = scores[np.isfinite(scores)]
    return bool(len(finite)) and finite.min() < finite.max()


def standardised(values: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Standardize to mean 0 and standard deviation 1 over the items `among`; zeros if all scores are equal."""
    chosen = values[among]
    if not len(chosen) or chosen.std() < 1e-9:
        return np.zeros_like(values)
    return (values - chosen.mean()) / chosen.std()


def masked(scores: np.ndarray, history: np.ndarray) -> np.ndarray:
    """A copy in which the user's known items and all non-finite scores are minus infinity."""
    scores = np.where(np.isfinite(scores), scores, -np.inf).astype(np.float32)
    scores[history] = -np.inf
    return scores


def top(scores: np.ndarray, k: int) -> np.ndarray:
    """The indices of the k highest finite scores, best first, ties by lower index."""
    finite = np.flatnonzero(np.isfinite(scores))
    if len(finite) > k:
        threshold = np.partition(scores[finite], len(finite) - k)[len(finite) - k]
        finite = finite[scores[finite] >= threshold]
    order = np.lexsort((finite, -scores[finite]))
    return finite[order][:k]
