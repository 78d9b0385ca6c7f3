"""95 % intervals of what `reclm bench quant` measures: shares, ratios over prompts, paired differences over users and seeds.

    share     Wilson's score interval
    ratio     sum(a) / sum(b) over prompts, prompts drawn again with replacement
    paired    mean over users and seeds of (file - reference). Users and seeds both are a sample: the fit of another seed would
              give another difference to everybody. half = sqrt((z * se_users)^2 + (t * se_seeds)^2), se_users of the users'
              means over seeds, se_seeds of the seeds' means over users with Student's t. What is neither a user's nor a
              seed's own is counted in both, which makes the interval wider rather than narrower.

The relative loss is 1 - file / reference, a ratio of means: its interval is that of its linear part, (loss_u - r * ref_u).
Left out: corrections for looking at several files.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

Z = 1.959964
MIN_UNITS = 30  # users or prompts; fewer give no interval
Interval = tuple[float, float] | None


def students_t(n: int) -> float:
    """The two-sided 95 % quantile for the mean of `n` values; infinite for one."""
    return float(stats.t.ppf(0.975, n - 1)) if n > 1 else math.inf


def wilson(n_hits: int, n: int) -> Interval:
    """Of a share, (low, high); None where there is nothing."""
    if n == 0:
        return None
    found = stats.binomtest(n_hits, n).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


def ratio(sums: Sequence[float], counts: Sequence[float], *, n_resamples: int = 1000, seed: int = 0) -> tuple[float, Interval]:
    """(sum(sums) / sum(counts), its interval over prompts); no interval for fewer than MIN_UNITS of them."""
    top, bottom = np.asarray(sums, np.float64), np.asarray(counts, np.float64)
    value = float(top.sum() / bottom.sum())
    n = len(top)
    if n < MIN_UNITS:
        return value, None
    draws = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=n_resamples)
    low, high = np.quantile((draws @ top) / (draws @ bottom), [0.025, 0.975])
    return value, (float(low), float(high))


@dataclass(frozen=True)
class Paired:
    """A metric of a file beside the reference's, over the same users and seeds.

    interval: of `difference`; loss: relative, 1 - value / reference (None where the reference has none of it); half widths
    `users_half`, `seeds_half`: the loss's, of users and of seeds alone, in the same unit.
    """

    value: float
    reference: float
    difference: float
    interval: Interval
    loss: float | None
    loss_interval: Interval
    users_half: float | None
    seeds_half: float | None
    n_users: int
    n_seeds: int


def paired(found: np.ndarray, reference: np.ndarray) -> Paired:
    """found, reference: float64 (n_seeds, n_users), the same users in the same order, row for row the same seed."""
    n_seeds, n_users = found.shape
    if found.shape != reference.shape or n_users == 0:
        raise ValueError(f"expected metrics of the same users and seeds, found shapes {found.shape} and {reference.shape}")
    value, base = float(found.mean()), float(reference.mean())
    enough = n_users >= MIN_UNITS and n_seeds > 1
    users, seeds = _halves(found - reference)
    half = math.hypot(users, seeds)
    interval = (value - base - half, value - base + half) if enough else None
    loss = loss_interval = users_half = seeds_half = None
    if base > 0:
        loss = 1 - value / base
        users, seeds = _halves((reference - found - loss * reference) / base)
        half = math.hypot(users, seeds)
        if enough:
            loss_interval, users_half, seeds_half = (loss - half, loss + half), users, seeds
    return Paired(value, base, value - base, interval, loss, loss_interval, users_half, seeds_half, n_users, n_seeds)


def _halves(values: np.ndarray) -> tuple[float, float]:
    """Half widths of the mean of values (n_seeds, n_users), of users and of seeds; 0 where there is one alone."""
    n_seeds, n_users = values.shape
    users = Z * float(values.mean(axis=0).std(ddof=1)) / math.sqrt(n_users) if n_users > 1 else 0.0
    seeds = students_t(n_seeds) * float(values.mean(axis=1).std(ddof=1)) / math.sqrt(n_seeds) if n_seeds > 1 else 0.0
    return users, seeds
