"""The training step of models whose scores need only the rows of a batch's users and items (BiasMF, NCF).

The gradient equals that over all rows. With `sparse_updates` Adam updates only those rows, like torch's SparseAdam;
without it, the gradient is made dense and every moment decays at every step, as published.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from .interface import Batch, Grads, RowGrad
from .layers import Params
from .objectives import ranking_loss
from .settings import TrainedSettings, setting
from .vectors import Vectors


@dataclass(frozen=True)
class RowSettings(TrainedSettings):
    """Settings of models without a graph."""

    sparse_updates: bool = setting(False, "Adam updates only the rows of users and items in the batch")


class RowModel(Protocol):
    def forward(
        self, params: Params, users: np.ndarray | None = None, items: np.ndarray | None = None
    ) -> tuple[Vectors, dict]: ...
    def backward(self, params: Params, cache: dict, d: Vectors) -> Grads: ...


def row_step(
    model: RowModel, params: Params, batch: Batch, *, sparse: bool, n_threads: int | None = None
) -> tuple[float, Grads]:
    """`Trainable.step` on the rows that the batch touches."""
    user_rows, (users,) = _compact(batch.users)
    item_rows, (positives, negatives) = _compact(batch.positives, batch.negatives)
    vectors, cache = model.forward(params, user_rows, item_rows)
    loss, d = ranking_loss(batch.loss, users, positives, negatives, vectors, n_threads=n_threads)
    grads = model.backward(params, cache, d)
    if not sparse:
        grads = {name: _dense(grad, params[name]) for name, grad in grads.items()}
    return loss, grads


def _compact(*ids: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """The distinct ids, ascending int32, and each array as positions among them; -1 (no item) stays -1."""
    present = np.zeros(max(int(array.max(initial=-1)) for array in ids) + 2, bool)
    for array in ids:
        present[array] = True  # -1 marks the last element, which is cut off
    rows = np.flatnonzero(present[:-1]).astype(np.int32)
    place = np.full(len(present), -1, np.int32)
    place[rows] = np.arange(len(rows), dtype=np.int32)
    return rows, [place[array] for array in ids]


def _dense(grad: np.ndarray | RowGrad, value: np.ndarray) -> np.ndarray:
    if not isinstance(grad, RowGrad):
        return grad
    full = np.zeros_like(value)
    full[grad.rows] = grad.values
    return full
