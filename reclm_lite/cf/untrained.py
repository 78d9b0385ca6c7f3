"""Fits models without gradient training: validation chooses unset settings, then the model is fitted once.

A field of `Settings` that is None is unset: the model's `choose(train, settings, score)` chooses it on training and
validation alone. Without validation interactions, `without_validation(settings)` fills in fixed values. Left out: the
models (models/).
"""

import dataclasses
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import scipy.sparse as sp

from ..data.dataset import Split
from ..errors import InputError
from .fitted import FittedModel
from .models import UNTRAINED, module_of
from .validation import Validator, validator

# Settings are compared on at most this many users with validation interactions; recorded metrics use all of them.
N_JUDGED_USERS = 4096

Progress = Callable[..., None]


def fit_untrained(
    split: Split,
    model: str,
    settings: Any = None,
    *,
    seed: int = 0,
    refit: bool = True,
    n_threads: int | None = None,
    progress: Progress | None = None,
) -> FittedModel:
    """A model of `UNTRAINED`, fitted on training and validation (refit) or training alone, with validation metrics.

    settings: the model's `Settings`, None for the defaults. progress: called as progress(done, total, note).
    The test set is not read. Raises InputError for an unknown model or settings, ModelError if the fit cannot succeed.
    """
    if model not in UNTRAINED:
        raise InputError(f"model: expected one of {', '.join(UNTRAINED)}, found {model!r}")
    module = module_of(model)
    settings = module.Settings() if settings is None else settings
    if not isinstance(settings, module.Settings):
        raise InputError(f"settings: expected {model}'s, found {type(settings).__name__}")
    notes = _Notes(progress)
    judge = validator(split)
    metrics: dict[str, float] = {}
    fitted = None
    if has_unset(settings):
        if judge is None:
            settings = module.without_validation(settings)
        else:
            settings, fitted = _choose(split, module, settings, judge, seed, n_threads, notes)
    if judge is not None:
        if fitted is None:
            fitted = module.fit(split.train, settings, seed=seed, n_threads=n_threads, progress=notes)
        recall, ndcg = judge.of(fitted, n_threads=n_threads)
        metrics = {"recall@20": recall, "ndcg@20": ndcg}
        notes(None, None, f"valid R@20 {recall:.4f} N@20 {ndcg:.4f}")
    if fitted is None or (refit and split.valid.nnz):
        fitted = None  # frees its memory: a scorer may hold n_items x n_items
        fitted = module.fit(
            split.known() if refit else split.train, settings, seed=seed, n_threads=n_threads, progress=notes
        )
    params = {**dataclasses.asdict(settings), "seed": seed, "refit": refit}
    return dataclasses.replace(fitted, params={**fitted.params, **params}, metrics=metrics)


def has_unset(settings: Any) -> bool:
    """Whether validation has to choose a setting."""
    return any(getattr(settings, field.name) is None for field in dataclasses.fields(settings))


def _choose(
    split: Split, module: ModuleType, settings: Any, judge: Validator, seed: int, n_threads: int | None, notes: "_Notes"
) -> tuple[Any, FittedModel | None]:
    """(settings with every value chosen, the model fitted on training alone if `choose` returned one)."""
    few = judge.sample(N_JUDGED_USERS, seed)

    def score(fitted: FittedModel) -> float:
        ndcg = few.of(fitted, n_threads=n_threads)[1]
        notes(None, None, f"valid N@20 {ndcg:.4f}")
        return ndcg

    return module.choose(split.train, settings, score, seed=seed, n_threads=n_threads)


def walk(values: tuple, start: int, score: Callable[[Any], float]) -> Any:
    """The best of ordered `values` by hill climbing from index `start`; ties keep the value tried first."""
    scores = {start: score(values[start])}
    at = start
    for step in (1, -1):
        while 0 <= at + step < len(values) and at + step not in scores:
            scores[at + step] = score(values[at + step])
            if scores[at + step] <= scores[at]:
                break
            at += step
    return values[at]


class _Notes:
    """Counts progress reports, since the number of fits of a choice is not known in advance."""

    def __init__(self, progress: Progress | None):
        self.progress, self.done = progress, 0

    def __call__(self, done: int | None, total: int | None, note: str) -> None:
        if self.progress is None:
            return
        if done is None:
            self.done += 1
        self.progress(self.done, None, note)


def check_interactions(interactions: Any, model: str) -> None:
    """Raise InputError unless `interactions` is a sorted CSR of finite ones, or empty."""
    if not np.isfinite(interactions.data).all():
        raise InputError(f"{model}: expected finite interactions, found NaN or infinity: import the data again")


def baselines(interactions: sp.csr_matrix) -> list[FittedModel]:
    """Random and popularity, which need no stored model. interactions: CSR (n_users, n_items) of all known pairs."""
    modules = [module_of(name) for name in ("random", "popularity")]
    return [module.fit(interactions, module.Settings()) for module in modules]
