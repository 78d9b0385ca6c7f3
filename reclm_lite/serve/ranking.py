"""From scores over all items to the k to show: masking what is known, standardising, and the top of the list."""

import numpy as np


def tells_apart(scores: np.ndarray) -> bool:
    """Whether finite scores differ: a model that ranks from histories knows nothing of items without company."""
    finite = scores[np.isfinite(scores)]
    return bool(len(finite)) and finite.min() < finite.max()


def standardised(values: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Mean 0 and deviation 1 over the items `among`; zeros where they are all alike."""
    chosen = values[among]
    if not len(chosen) or chosen.std() < 1e-9:
        return np.zeros_like(values)
    return (values - chosen.mean()) / chosen.std()


def masked(scores: np.ndarray, history: np.ndarray) -> np.ndarray:
    """A copy with what the user knows, and every score that is not finite, set to minus infinity."""
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
