"""Bootstrap confidence intervals of a mean over users."""

import numpy as np


def bootstrap_mean(
    values: np.ndarray, *, n_resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """The percentile interval of the mean of `values` (n,) when users are drawn again with replacement.

    Draws how often each distinct value occurs (a multinomial), which is the same and needs no (n_resamples, n) array:
    a metric over users has few distinct values.
    """
    if len(values) == 0:
        return float("nan"), float("nan")
    distinct, counts = np.unique(values, return_counts=True)
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(len(values), counts / len(values), size=n_resamples)
    means = draws @ distinct / len(values)
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(means, [tail, 1.0 - tail])
    return float(low), float(high)
