"""The phases of a trained model's fit, on arrays alone.

    select            train on the training set; validation selects the epoch
    profiles          train the profile tower (profile_tower.py); validation selects its epoch and gates
    refit             train on training and validation together, for the selected number of epochs
    refit profiles    the same for the profile tower

Each phase has its own checkpoint, so that an interrupted fit continues within its phase. The test set is not read.
Left out: the workspace (fit.py), evaluation (evaluate/).
"""

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
from threadpoolctl import threadpool_limits

from ..errors import InputError, ModelError
from ..kernels import native
from . import memory_estimate as memory
from .encoders import ENCODERS
from .fitted import FittedModel
from .inputs import Inputs
from .interface import Trainable, UserFold
from .models import TRAINED, module_of
from .profile_tower import ProfileTower, has_profile
from .scorers import VectorScorer
from .settings import TrainedSettings
from .training import EpochReport, TrainConfig, Trained, Validate, train
from .validation import validator
from .vectors import Vectors

log = logging.getLogger(__name__)
MIN_BATCH = 64
# With the residual encoder only these phases read profiles; the others give the same bits with and without them.
PROFILE_PHASES = ("profiles", "refit profiles")

# progress(done, total, note)
Progress = Callable[..., None]


def checkpoint_path(folder: Path, phase: str) -> Path:
    """The checkpoint file of one phase of a fit."""
    return folder / f"{phase.replace(' ', '-')}.safetensors"


def fit_arrays(
    inputs: Inputs,
    model: str,
    *,
    preset: str = "default",
    settings: TrainedSettings | None = None,
    seed: int = 0,
    epochs: int | None = None,
    refit: bool = True,
    n_threads: int | None = None,
    progress: Progress | None = None,
    checkpoint: Path | None = None,
) -> FittedModel:
    """Train a model on arrays alone: select on validation, then fit on training and validation together.

    settings: the model's, None for the preset's. epochs: replaces the settings' own. checkpoint: a folder of
    checkpoints, from which an interrupted fit continues; the caller ensures that they belong to these inputs and
    settings. Raises ModelError, before training starts, if the fit cannot succeed.

    BLAS gets one thread: the products are small, and on a busy machine its threads wait for each other (measured on the
    demo: 32 s of processor time with two, 6 s with one). The kernels use `n_threads`.
    """
    if model not in TRAINED:
        raise InputError(f"model: expected one of {', '.join(TRAINED)}, found {model!r}")
    settings = module_of(model).PRESETS[preset] if settings is None else settings
    if epochs is not None:
        settings = dataclasses.replace(settings, epochs=epochs)
    settings = fit_to_data(settings, inputs)
    log.info("%s", require_memory(inputs, model, settings))
    with threadpool_limits(limits=1, user_api="blas"):
        return _Fit(inputs, model, settings, seed, refit, n_threads, progress, checkpoint).run()


def fit_to_data(settings: TrainedSettings, inputs: Inputs) -> TrainedSettings:
    """`settings` with a batch size that fits the data. Raises ModelError, saying what to change, if no fit can work."""
    train_set = inputs.split.train
    n_users, n_items = train_set.shape
    if min(n_users, n_items) == 0:
        raise ModelError(
            f"expected users and items, found {n_users} and {n_items}: import data with interactions and split it again"
        )
    if train_set.nnz == 0:
        raise ModelError("expected training interactions, found none: import data with interactions and split it again")
    n_pool = len(np.unique(train_set.indices))
    if n_pool < 2:
        raise ModelError(
            f"expected two items with training interactions at least, to tell them apart, found {n_pool}: import more "
            "data"
        )
    batch = min(settings.batch_size, train_set.nnz)
    if settings.steps_per_epoch:
        # A small data set needs as many steps as a large one, hence smaller batches.
        batch = min(batch, max(train_set.nnz // settings.steps_per_epoch, min(MIN_BATCH, train_set.nnz)))
    return dataclasses.replace(settings, batch_size=batch)


def shape_of(inputs: Inputs) -> memory.Shape:
    """The sizes that memory depends on, for training and validation together, as in the refit."""

    def width(vectors: np.ndarray | None) -> int:
        return 0 if vectors is None else vectors.shape[1]

    split = inputs.split
    n_users, n_items = split.train.shape
    return memory.Shape(
        n_users,
        n_items,
        split.train.nnz + split.valid.nnz,
        width(inputs.text),
        width(inputs.user_profiles),
        width(inputs.item_profiles),
        int(np.count_nonzero(np.diff(split.valid.indptr))),
    )


def require_memory(inputs: Inputs, model: str, settings: TrainedSettings, *, available: int | None = None) -> str:
    """A log line about memory. Raises ModelError, naming the setting to change, if there is not enough."""
    shape, estimate = shape_of(inputs), module_of(model).estimate_bytes
    need = estimate(shape, settings)
    have = memory.available_bytes() if available is None else available
    remedy = "Use a machine with more memory, or a smaller data set"
    if need > have:
        # The smallest sufficient change, else the largest possible one.
        tries = [("batch_size", size) for size in (1024, 256)] + [("dim", dim) for dim in (64, 32, 16, 8)]
        tries = [(name, value) for name, value in tries if value < getattr(settings, name)]
        for name, value in tries:
            change: dict[str, Any] = {name: value}
            if estimate(shape, dataclasses.replace(settings, **change)) <= have:
                remedy = f"Use `--set {name}={value}`"
                break
    return memory.require(need, f"fitting {model} with dim {settings.dim}", remedy, available=have)


class _Fit:
    """One fit: runs the phases in order."""

    def __init__(
        self,
        inputs: Inputs,
        model: str,
        settings: TrainedSettings,
        seed: int,
        refit: bool,
        n_threads: int | None,
        progress: Progress | None,
        checkpoint: Path | None,
    ):
        self.inputs, self.model, self.settings, self.refit, self.checkpoint = inputs, model, settings, refit, checkpoint
        self.n_threads = native.default_threads() if n_threads is None else n_threads
        self.config = settings.train_config(seed)
        self.report = _Reporter(progress, self.config.epochs)
        self.validate: Validate | None = validator(inputs.split)
        with_profiles = inputs.user_profiles is not None or inputs.item_profiles is not None
        self.with_tower = with_profiles and ENCODERS[settings.encoder].profiles_beside

    def run(self) -> FittedModel:
        split, config = self.inputs.split, self.config
        if self.validate is None:
            log.warning(
                "no validation interactions with items of training: nothing is selected, all %d epochs are trained "
                "(--epochs)",
                config.epochs,
            )
        module, trained = self._train_base("select", split.train, config, self.validate)
        vectors, n_epochs, figures = (
            module.vectors(trained.params),
            trained.best_epoch,
            (trained.recall_20, trained.ndcg_20),
        )
        fold = self._fold(module, trained, split.train)
        gates, tower_epochs = (0.0, 0.0), 0
        base = vectors
        if self.with_tower:
            vectors, fold, gates, tower_epochs, figures = self._select_tower(base, fold, figures)
        train_user_vectors = None
        if self.refit and split.valid.nnz:
            train_user_vectors, known = vectors.users, split.known()
            del module, trained, base
            self.report.begin(n_epochs + tower_epochs)
            again = dataclasses.replace(config, epochs=n_epochs, patience=None)
            module, trained = self._train_base("refit", known, again, None)
            vectors = module.vectors(trained.params)
            fold = self._fold(module, trained, known)
            if tower_epochs:
                vectors, fold = self._refit_tower(vectors, fold, known, gates, tower_epochs)
        self._check_finite(vectors)
        return self._fitted(vectors, fold, train_user_vectors, n_epochs, gates, tower_epochs, figures)

    def _train_base(
        self, phase: str, interactions: sp.csr_matrix, config: TrainConfig, validate: Validate | None
    ) -> tuple[Trainable, Trained]:
        module = module_of(self.model).build(self.settings, self.inputs, interactions, self.n_threads)
        return module, self._train(phase, module, interactions, config, validate)

    def _train(
        self, phase: str, module: Trainable, interactions: sp.csr_matrix, config: TrainConfig, validate: Validate | None
    ) -> Trained:
        checkpoint = None if self.checkpoint is None else checkpoint_path(self.checkpoint, phase)
        return train(
            module,
            interactions,
            config,
            validate=validate,
            progress=self.report,
            phase=phase,
            checkpoint=checkpoint,
            n_threads=self.n_threads,
        )

    def _fold(self, module: Trainable, trained: Trained, interactions: sp.csr_matrix) -> UserFold | None:
        """The model's fold-in object, or None if the model has none."""
        if not hasattr(module, "fold"):
            log.info("%s cannot place new users: it has no fold-in", self.model)
            return None
        fold = module.fold(trained.params, interactions, self.config)
        width = module.vectors(trained.params).users.shape[1]
        if fold.dim != width:
            raise ModelError(f"{self.model}: its fold-in gives rows of {fold.dim} columns for vectors of {width}")
        return fold

    # -- profiles beside the model ------------------------------------------------

    def _tower(self, base: Vectors) -> ProfileTower:
        inputs = self.inputs
        return ProfileTower(
            base,
            self.settings.dim,
            user_profiles=inputs.user_profiles,
            item_profiles=inputs.item_profiles,
            text=inputs.text,
            n_threads=self.n_threads,
        )

    def _tower_config(self, epochs: int) -> TrainConfig:
        return dataclasses.replace(self.config, lr=self.settings.tower_lr, epochs=epochs, patience=None, l2_tables=0.0)

    def _select_tower(
        self, base: Vectors, fold: UserFold | None, figures: tuple[float, float]
    ) -> tuple[Vectors, UserFold | None, tuple[float, float], int, tuple[float, float]]:
        """(vectors, fold-in, gates, epochs, (recall, ndcg)) of the best epoch and gates; gates 0 if the base wins."""
        validate = self.validate
        if validate is None:
            log.warning("no validation interactions: profiles are left out, since nothing could show that they help")
            return base, fold, (0.0, 0.0), 0, figures
        tower = self._tower(base)
        self.report.begin(self.settings.tower_epochs)
        trained = self._train(
            PROFILE_PHASES[0],
            tower,
            self.inputs.split.train,
            self._tower_config(self.settings.tower_epochs),
            lambda parts: tower.best_gates(parts, validate)[1:],
        )
        if not trained.ndcg_20 > figures[1]:
            return base, fold, (0.0, 0.0), 0, figures
        parts = tower.vectors(trained.params)
        gates, recall, ndcg = tower.best_gates(parts, validate)
        return (
            tower.joined(parts, gates),
            tower.fold(fold, trained.params, gates),
            gates,
            trained.best_epoch,
            (recall, ndcg),
        )

    def _refit_tower(
        self, base: Vectors, fold: UserFold | None, interactions: sp.csr_matrix, gates: tuple[float, float], epochs: int
    ) -> tuple[Vectors, UserFold | None]:
        tower = self._tower(base)
        trained = self._train(PROFILE_PHASES[1], tower, interactions, self._tower_config(epochs), None)
        return tower.joined(tower.vectors(trained.params), gates), tower.fold(fold, trained.params, gates)

    # -- the result -----------------------------------------------------------------

    def _check_finite(self, vectors: Vectors) -> None:
        for name, array in zip(("user vectors", "item vectors", "item bias"), vectors[:3], strict=True):
            if not np.isfinite(array).all():
                raise ModelError(
                    f"{self.model}: expected finite {name}, found NaN or infinity: training diverged; nothing was "
                    "stored. "
                    f"Use a lower learning rate: `--set lr={self.config.lr / 10:g}`"
                )

    def _fitted(
        self,
        vectors: Vectors,
        fold: UserFold | None,
        train_user_vectors: np.ndarray | None,
        n_epochs: int,
        gates: tuple[float, float],
        tower_epochs: int,
        figures: tuple[float, float],
    ) -> FittedModel:
        inputs, split = self.inputs, self.inputs.split
        user_ready = np.diff((split.known() if self.refit else split.train).indptr) > 0
        if inputs.user_profiles is not None and (not self.with_tower or gates[0] > 0):
            user_ready |= has_profile(inputs.user_profiles)
        params = {
            **dataclasses.asdict(self.settings),
            "seed": self.config.seed,
            "refit": self.refit,
            "text": inputs.text is not None,
            "epochs": n_epochs,
        }
        if self.with_tower:
            params |= {"gate_users": gates[0], "gate_items": gates[1], "tower_epochs": tower_epochs}
            log.info("profiles: gates %.2f (users), %.2f (items), chosen on validation", *gates)
        return FittedModel(
            self.model,
            VectorScorer(vectors),
            user_ready,
            fold=fold,
            train_user_vectors=train_user_vectors,
            params=params,
            metrics={} if self.validate is None else {"recall@20": figures[0], "ndcg@20": figures[1]},
        )


class _Reporter:
    """Turns the epoch reports of all phases into one progress line."""

    def __init__(self, progress: Progress | None, total: int):
        self.progress, self.done, self.total = progress, 0, total

    def begin(self, n_epochs: int) -> None:
        """Start a phase of `n_epochs`; the previous one may have stopped early."""
        self.total = self.done + n_epochs

    def __call__(self, report: EpochReport) -> None:
        self.done += 1
        note = f"{report.phase}: loss {report.loss:.4f}"
        if np.isfinite(report.ndcg_20):
            note += f", valid R@20 {report.recall_20:.4f} N@20 {report.ndcg_20:.4f}"
        note += f", {report.interactions_per_second:,.0f} interactions/s"
        log.debug("%s", note)
        if self.progress is not None:
            self.progress(self.done, self.total, note)
