"""Training: Adam, BPR or sampled softmax, negatives redrawn every epoch, early stopping on validation.

Leaves out what is trained (models/) and what becomes of it (fit.py). Everything is a function of the
seed: two runs give the same bits at any number of threads of the kernels.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
import scipy.sparse as sp

from ..errors import ModelError
from .layers import Params
from .vectors import Vectors


LOSSES = ("bpr", "ssm")


@dataclass(frozen=True)
class TrainConfig:
    """loss: "bpr" (mean softplus of negative less positive) or "ssm" (sampled softmax); with one negative they are one.

    l2 counts on all parameters, l2_tables on those of IDs and biases beside it.
    patience: epochs without a better validation NDCG@20 before training stops; None never stops early.
    """

    rate: float = 1e-3
    batch_size: int = 4096
    epochs: int = 50
    loss: str = "bpr"
    n_negatives: int = 1
    l2: float = 1e-7
    l2_tables: float = 0.0
    patience: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class Batch:
    """Some training interactions and their negatives, with all the randomness that a step may use.

    users, positives: int32 (n,). negatives: int32 (n, m), -1 where a user has touched all there is.
    entries: int64 (n,), places of the interactions in the training CSR. seed: this batch's own, for dropout and noise.
    """

    users: np.ndarray
    positives: np.ndarray
    negatives: np.ndarray
    entries: np.ndarray
    seed: int
    loss: str = "ssm"


class RowGrad(NamedTuple):
    """The gradient of a table of which a batch touches few rows. rows: int32, ascending, distinct. values: (len(rows), dim).

    The optimiser moves these rows only (and their moments), as torch's SparseAdam does.
    """

    rows: np.ndarray
    values: np.ndarray


Grads = dict[str, "np.ndarray | RowGrad"]


@dataclass(frozen=True)
class EpochReport:
    """What a progress callback sees after each epoch. recall_20, ndcg_20 are NaN where nothing is validated."""

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


class Trainable(Protocol):
    """What `train` needs of a model."""

    name: str

    def init(self, rng: np.random.Generator) -> Params:
        """The first parameters, float32."""

    def step(self, params: Params, batch: Batch) -> tuple[float, Grads]:
        """The batch's loss, without L2, and the gradients of all parameters."""

    def vectors(self, params: Params) -> Vectors:
        """What validation and serving rank with."""


class VectorModel(Protocol):
    """A model that is a function from parameters to vectors; `vector_step` turns one into a Trainable."""

    def forward(
        self, params: Params, targets: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict]: ...
    def backward(
        self, params: Params, cache: dict, d_users: np.ndarray, d_items: np.ndarray, d_bias: np.ndarray
    ) -> Params: ...


def vector_step(model: VectorModel, params: Params, batch: Batch) -> tuple[float, Grads]:
    """`Trainable.step` of a model with `forward` and `backward`."""
    from . import loops

    users, items, bias, cache = model.forward(params, batch.entries)
    gradients = [np.zeros_like(array) for array in (users, items, bias)]
    loss = loops.ranking_loss(batch.users, batch.positives, batch.negatives, users, items, bias, *gradients)
    return loss, model.backward(params, cache, *gradients)


@dataclass
class Trained:
    """params: of the best epoch where there is validation, else of the last. best_epoch counts from 1."""

    params: Params
    best_epoch: int
    ndcg_20: float = float("nan")
    recall_20: float = float("nan")
    history: list[EpochReport] = field(default_factory=list)


class Adam:
    """Adam over named parameters; the state lives here, the arrays are updated in place."""

    def __init__(self, params: Params, config: TrainConfig):
        self.config, self.step_count = config, 0
        self.moments = {name: (np.zeros(v.size, np.float32), np.zeros(v.size, np.float32)) for name, v in params.items()}

    def step(self, params: Params, grads: Params) -> None:
        from .loops import adam_step

        self.step_count += 1
        for name, value in params.items():
            l2 = self.config.l2 + (self.config.l2_tables if is_table(name) else 0.0)
            grad = np.ascontiguousarray(grads[name], dtype=np.float32).reshape(-1)
            adam_step(value.reshape(-1), grad, *self.moments[name], self.step_count, self.config.rate, l2)


def is_table(name: str) -> bool:
    """Whether a parameter has a row for each user or item."""
    return name in ("user_id", "item_id", "item_bias")


def train(
    model: Trainable,
    interactions: sp.csr_matrix,
    config: TrainConfig,
    *,
    validate: Validate | None = None,
    progress: Progress | None = None,
    phase: str = "select",
) -> Trained:
    """Fit `model` on interactions: CSR (n_users, n_items), sorted. Raises ModelError when a loss is not finite."""
    from . import loops

    if interactions.nnz == 0:
        raise ModelError("expected training interactions, found none: import data with interactions and split it again")
    rng = np.random.default_rng([config.seed, 1])
    params = model.init(rng)
    optimiser = Adam(params, config)
    indptr, indices = interactions.indptr.astype(np.int64), interactions.indices.astype(np.int32)
    all_users = np.repeat(np.arange(interactions.shape[0], dtype=np.int32), np.diff(indptr))
    # Negatives come from items with training interactions: an unseen item is not a wrong answer.
    pool = np.unique(indices)
    best = Trained({}, 0, ndcg_20=-1.0)
    history: list[EpochReport] = []
    for epoch in range(1, config.epochs + 1):
        started = time.perf_counter()
        order = rng.permutation(len(indices))
        losses = []
        for number, start in enumerate(range(0, len(order), config.batch_size)):
            entries = order[start : start + config.batch_size]
            users, positives = all_users[entries], indices[entries]
            seed = (config.seed * 1_000_003 + epoch) * 1_000_003 + number
            negatives = loops.sample_negatives(users, indptr, indices, pool, config.n_negatives, seed & 0x7FFFFFFF)
            loss, gradients = model.step(params, Batch(users, positives, negatives, entries, seed, config.loss))
            if not np.isfinite(loss):
                raise ModelError(
                    f"{model.name}: the loss is {loss} in epoch {epoch}, batch {number}: training diverged; nothing was "
                    "stored. Look for extreme values in the text vectors, or use a lower learning rate"
                )
            optimiser.step(params, gradients)
            losses.append(loss)
        seconds = time.perf_counter() - started
        recall = ndcg = float("nan")
        if validate is not None:
            recall, ndcg = validate(model.vectors(params))
        report = EpochReport(epoch, config.epochs, float(np.mean(losses)), recall, ndcg, len(order) / seconds, phase)
        history.append(report)
        if progress is not None:
            progress(report)
        if validate is None:
            continue
        if ndcg > best.ndcg_20:
            best = Trained({name: value.copy() for name, value in params.items()}, epoch, ndcg, recall)
        elif config.patience is not None and epoch - best.best_epoch >= config.patience:
            break
    if validate is None:
        best = Trained(params, config.epochs)
    best.history = history
    return best
