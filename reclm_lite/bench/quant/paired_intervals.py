"""95 % intervals of what `reclm bench quant` measures: shares, ratios over prompts, paired differences over users and
seeds.

    share     Wilson's score interval
    ratio     sum(a) / sum(b) over prompts, prompts drawn again with replacement
    paired    mean over users and seeds of (file - reference). Users and seeds both are samples: another seed would give
              another difference to everybody. half = sqrt((z * se_users)^2 + (t * se_seeds)^2), se_users of the users'
              means over seeds, se_seeds of the seeds' means over users with Student's t. The variance that belongs to
              neither alone counts in both, which makes the interval wider rather than narrower.
    pooled    the same with one se_seeds for all files of a run, the root of their mean variance: the seeds' variance is
              the backbone's, and three to five seeds of one file hardly estimate it.
    choice    one-sided tests of all files' losses against the bound, together (Holm)

The relative loss is 1 - file / reference, a ratio of means: its interval is that of its linear part, (loss_u - r *
ref_u). Intervals are for one file each; only the choice is corrected for how many there are.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from scipy import stats
from scipy.optimize import brentq

_LEAST = 1e-9  # probabilities below it count as zero
MIN_UNITS = 30  # users or prompts; fewer give no interval
Interval = tuple[float, float] | None


def students_t(n: int) -> float:
    """The two-sided 95 % quantile for the mean of `n` values; infinite for one."""
    return float(stats.t.ppf(0.975, n - 1)) if n > 1 else math.inf


def wilson(n_hits: int, n: int) -> Interval:
    """Of a share, (low, high); None if n is 0."""
    if n == 0:
        return None
    found = stats.binomtest(n_hits, n).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


def ratio(
    sums: Sequence[float], counts: Sequence[float], *, n_resamples: int = 1000, seed: int = 0
) -> tuple[float, Interval]:
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
class Errors:
    """Standard errors of a mean over users and seeds: of users, of seeds, and the degrees of freedom of the latter."""

    users: float
    seeds: float
    df: int

    def half(self, level: float = 0.975) -> float:
        """Half the width of the interval whose ends each are passed with a chance of 1 - level."""
        of_seeds = float(stats.t.ppf(level, self.df)) * self.seeds if self.df else 0.0
        return math.hypot(float(stats.norm.ppf(level)) * self.users, of_seeds)


def chance_beyond(value: float, errors: Errors, bound: float) -> float:
    """The one-sided p-value: the probability of finding `value` or less if the mean is `bound`. 0 if nothing varies."""
    if value >= bound:
        return 1.0
    if errors.half() == 0 or value + errors.half(1 - _LEAST) < bound:
        return 0.0
    return 1 - float(brentq(lambda level: value + errors.half(level) - bound, 0.5, 1 - _LEAST, xtol=1e-9))


def holm(chances: Sequence[float], level: float = 0.025) -> list[bool]:
    """Which of several hypotheses are rejected, with a probability of at most `level` that a true one is among them
    (Holm, 1979)."""
    order = np.argsort(chances, kind="stable")
    out = [False] * len(chances)
    for rank, at in enumerate(order.tolist()):
        if chances[at] > level / (len(chances) - rank):
            break
        out[at] = True
    return out


@dataclass(frozen=True)
class Paired:
    """A metric of a file beside the reference's, over the same users and seeds.

    interval: of `difference`; loss: relative, 1 - value / reference (None if the reference is 0).
    Intervals are None for fewer than MIN_UNITS users or 2 seeds.
    """

    value: float
    reference: float
    difference: float
    loss: float | None
    n_users: int
    n_seeds: int
    of_difference: Errors
    of_loss: Errors | None

    @property
    def has_intervals(self) -> bool:
        return self.n_users >= MIN_UNITS and self.n_seeds > 1

    def as_dict(self) -> dict[str, Any]:
        """With "interval" and "loss_interval" as [low, high] or None."""
        spans = {"interval": (self.difference, self.of_difference), "loss_interval": (self.loss, self.of_loss)}
        found = asdict(self)
        for name, (value, errors) in spans.items():
            known = self.has_intervals and value is not None and errors is not None
            found[name] = [value - errors.half(), value + errors.half()] if known else None
        return found


def paired(found: np.ndarray, reference: np.ndarray) -> Paired:
    """found, reference: float64 (n_seeds, n_users), the same users in the same order, row for row the same seed."""
    n_seeds, n_users = found.shape
    if found.shape != reference.shape or n_users == 0:
        raise ValueError(
            f"expected metrics of the same users and seeds, found shapes {found.shape} and {reference.shape}"
        )
    value, base = float(found.mean()), float(reference.mean())
    loss = 1 - value / base if base > 0 else None
    of_loss = None if loss is None else _errors((reference - found - loss * reference) / base)
    return Paired(value, base, value - base, loss, n_users, n_seeds, _errors(found - reference), of_loss)


def pooled(pairs: Sequence[Paired]) -> list[Paired]:
    """The same pairs with the seeds' variance pooled; all of one metric, seeds and users. A single one stays as it
    is."""

    def together(errors: Sequence[Errors]) -> tuple[float, int]:
        return math.sqrt(sum(each.seeds**2 for each in errors) / len(errors)), sum(each.df for each in errors)

    differing = [
        pair for pair in pairs if pair.of_difference.users or pair.of_difference.seeds
    ]  # the others are the reference over again
    if len(differing) < 2:
        return list(pairs)
    seeds, df = together([pair.of_difference for pair in differing])
    losses = [pair.of_loss for pair in differing if pair.of_loss is not None]
    of_losses = together(losses) if losses else (0.0, 0)
    out = []
    for pair in pairs:
        if pair in differing:
            of_loss = pair.of_loss and Errors(pair.of_loss.users, *of_losses)
            pair = replace(pair, of_difference=Errors(pair.of_difference.users, seeds, df), of_loss=of_loss)
        out.append(pair)
    return out


def _errors(values: np.ndarray) -> Errors:
    """Of the mean of values (n_seeds, n_users); 0 if there is only one user or seed."""
    n_seeds, n_users = values.shape
    users = float(values.mean(axis=0).std(ddof=1)) / math.sqrt(n_users) if n_users > 1 else 0.0
    seeds = float(values.mean(axis=1).std(ddof=1)) / math.sqrt(n_seeds) if n_seeds > 1 else 0.0
    return Errors(users, seeds, n_seeds - 1)
