"""Training: Adam, BPR or sampled softmax, negatives redrawn every epoch, early stopping on validation.

All randomness is a function of the seed and the epoch's number: two runs give the same bits, with any number of
threads, interrupted or not. Left out: the models (models/), the phases of a fit (phases.py), checkpoint files
(checkpoint.py).
"""

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp

from ..errors import ModelError
from . import checkpoint as checkpoints
from .checkpoint import State
from .interface import Batch, Grads, RowGrad, Trainable
from .layers import Params
from .vectors import Vectors

# A checkpoint is written after an epoch if the last one is this old, and after the last epoch.
CHECKPOINT_SECONDS = 10.0


@dataclass(frozen=True)
class TrainConfig:
    """loss: "bpr" (mean softplus of s_n - s_p) or "ssm" (sampled softmax); they are equal for one negative.

    l2: weight for all parameters. l2_tables: additional weight for ID vectors and biases.
    patience: epochs without a better validation NDCG@20 before training stops; None never stops early.
    """

    lr: float = 1e-3
    batch_size: int = 4096
    epochs: int = 50
    loss: str = "bpr"
    n_negatives: int = 1
    l2: float = 1e-7
    l2_tables: float = 0.0
    patience: int | None = None
    seed: int = 0


class EpochReport(NamedTuple):
    """The report of an epoch for progress callbacks. recall_20 and ndcg_20 are NaN without validation."""

    epoch: int
    epochs: int
    loss: float
    recall_20: float
    ndcg_20: float
    interactions_per_second: float
    phase: str = "select"


Progress = Callable[[EpochReport], None]
# Returns (recall@20, ndcg@20) on the validation set.
Validate = Callable[[Vectors], tuple[float, float]]


@dataclass
class Trained:
    """params: of the best epoch with validation, of the last epoch without. best_epoch counts from 1."""

    params: Params
    best_epoch: int
    ndcg_20: float = float("nan")
    recall_20: float = float("nan")
    history: list[EpochReport] = field(default_factory=list)


class Adam:
    """Adam over named parameters, in place: dense gradients update every row, a `RowGrad` only its rows."""

    def __init__(self, config: TrainConfig, state: State, tables: Collection[str], n_threads: int | None):
        self.config, self.state, self.tables, self.n_threads = config, state, tables, n_threads

    def step(self, grads: Grads) -> None:
        from ..kernels import optim

        state = self.state
        state.n_steps += 1
        for name, value in state.params.items():
            l2 = self.config.l2 + (self.config.l2_tables if name in self.tables else 0.0)
            how: dict[str, Any] = {"step": state.n_steps, "lr": self.config.lr, "l2": l2, "n_threads": self.n_threads}
            grad, moments = grads[name], (state.first[name], state.second[name])
            if isinstance(grad, RowGrad):
                values = np.ascontiguousarray(grad.values, dtype=np.float32)
                optim.adam_rows(value, grad.rows, values, *moments, **how)
            else:
                optim.adam(value, np.ascontiguousarray(grad, dtype=np.float32), *moments, **how)


def train(
    model: Trainable,
    interactions: sp.csr_matrix,
    config: TrainConfig,
    *,
    validate: Validate | None = None,
    progress: Progress | None = None,
    phase: str = "select",
    checkpoint: Path | None = None,
    n_threads: int | None = None,
) -> Trained:
    """Fit `model` on interactions: CSR (n_users, n_items), sorted. Raises ModelError if a loss is not finite.

    progress: called after each epoch; when a checkpoint is continued, first with the epochs that it holds.
    checkpoint: a file, written every few seconds and at the end. If it exists, training continues from it and gives the
    bits of an uninterrupted run. A damaged one, or one of other settings, data or initial parameters, is overwritten
    with a warning. The file stays: delete it once the result is stored.
    """
    if interactions.nnz == 0:
        raise ModelError("expected training interactions, found none: import data with interactions and split it again")
    state = State.start(model.init(np.random.default_rng([config.seed, 1])))
    fingerprint = checkpoints.fingerprint(model.name, phase, config, interactions, state.params, validate is not None)
    if checkpoint is not None:
        state = checkpoints.read(checkpoint, fingerprint, state, config.epochs) or state
    optimizer = Adam(config, state, model.tables, n_threads)
    epochs = _Epochs(model, interactions, config, optimizer)
    state.history = [EpochReport(*row) for row in state.history]
    if progress is not None:
        for report in state.history:
            progress(report)
    written = time.monotonic()
    while not state.is_done and len(state.history) < config.epochs:
        epoch = len(state.history) + 1
        started = time.perf_counter()
        loss = epochs.run(epoch)
        seconds = time.perf_counter() - started
        recall = ndcg = float("nan")
        if validate is not None:
            recall, ndcg = validate(model.vectors(state.params))
        report = EpochReport(epoch, config.epochs, loss, recall, ndcg, interactions.nnz / seconds, phase)
        state.history.append(report)
        state.is_done = epoch >= config.epochs
        if validate is not None:
            if state.best is None or ndcg > state.history[state.best_epoch - 1].ndcg_20:
                state.best, state.best_epoch = {name: value.copy() for name, value in state.params.items()}, epoch
            elif config.patience is not None and epoch - state.best_epoch >= config.patience:
                state.is_done = True
        if checkpoint is not None and (state.is_done or time.monotonic() - written >= CHECKPOINT_SECONDS):
            checkpoints.write(checkpoint, fingerprint, state)
            written = time.monotonic()
        if progress is not None:
            progress(report)
    if state.best is None:
        return Trained(state.params, len(state.history), history=state.history)
    best = state.history[state.best_epoch - 1]
    return Trained(state.best, state.best_epoch, best.ndcg_20, best.recall_20, state.history)


class _Epochs:
    """Passes over the training interactions in random order."""

    def __init__(self, model: Trainable, interactions: sp.csr_matrix, config: TrainConfig, optimizer: Adam):
        self.model, self.config, self.optimizer = model, config, optimizer
        self.indptr, self.indices = interactions.indptr.astype(np.int64), interactions.indices.astype(np.int32)
        self.users = np.repeat(np.arange(interactions.shape[0], dtype=np.int32), np.diff(self.indptr))
        # Negatives are items with training interactions only: an unseen item is no evidence of dislike.
        self.pool = np.unique(self.indices)

    def run(self, epoch: int) -> float:
        """One pass; returns the mean loss of its batches."""
        from ..kernels import sampling

        config, state, losses = self.config, self.optimizer.state, []
        order = np.random.default_rng([config.seed, 2, epoch]).permutation(len(self.indices))
        for number, start in enumerate(range(0, len(order), config.batch_size)):
            entries = order[start : start + config.batch_size]
            users = self.users[entries]
            seed = int(np.random.SeedSequence([config.seed, 3, epoch, number]).generate_state(1, np.uint64)[0])
            negatives = sampling.sample_negatives(
                users,
                self.indptr,
                self.indices,
                self.pool,
                config.n_negatives,
                seed,
                n_threads=self.optimizer.n_threads,
            )
            batch = Batch(users, self.indices[entries], negatives, entries, seed, config.loss)
            loss, gradients = self.model.step(state.params, batch)
            if not np.isfinite(loss):
                raise ModelError(
                    f"{self.model.name}: expected a finite loss, found {loss} in epoch {epoch}, batch {number}: "
                    "training "
                    f"diverged; nothing was stored. Use a lower learning rate, `--set lr={config.lr / 10:g}`, or "
                    "look for "
                    "extreme values in the text vectors"
                )
            self.optimizer.step(gradients)
            losses.append(loss)
        return float(np.mean(losses))
