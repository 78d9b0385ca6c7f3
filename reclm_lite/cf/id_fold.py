"""Folding in for models that look a user up in an ID table: find the ID vector that the training loss would give.

With the items held fixed, a new user's ID vector e minimizes

    ssm   sum over positives p of log(1 + m/N sum over the pool n of exp(s_n - s_p))    m: negatives per positive
    bpr   sum over positives p of 1/N sum over the pool n of softplus(s_n - s_p)
    plus  l2 |e|^2 + weight/2 (e - mean)' precision (e - mean)                          the fitted users' ID vectors

by Gauss-Newton steps from the mean, over the whole pool of N items or a fixed sample of it. Each user is solved alone,
so the result does not depend on the others. The prior replaces the regularization that training has from its random
start, few epochs and early stopping. Items stay fixed, so fit again after many new users.

The scores s come from a row of `Vectors.users`, which the model computes from e by its own `UserStep`s: none
(biasmf), a fused profile (encoders.py), propagation over the graph (models/lightgcn.py), a readout (models/ncf.py).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import scipy.sparse as sp
from threadpoolctl import threadpool_limits

from ..artefacts import checked
from .interface import UnpackFold
from .training import TrainConfig
from .vectors import Vectors

N_POOL = 1024
# Of 0.03, 0.1, 0.3, 1 and 3, the weight whose top-k lists overlapped most with those of a refit, over five models.
PRIOR_WEIGHT = 0.3
_STEPS = 10
_TOLERANCE = 1e-4
_SMALLEST_STEP = 0.05


class StepOfUser(Protocol):
    """One user's step: a differentiable map from float64 (dim_in,) to (dim_out,).

    is_constant: whether the result does not depend on the input.
    """

    @property
    def is_constant(self) -> bool: ...

    def __call__(self, x: np.ndarray, slope: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(y (dim_out,), dy/de (dim_e, dim_out)) from x (dim_in,) and slope = dx/de (dim_e, dim_in)."""


class UserStep(Protocol):
    """A step from an ID vector to a user's row of `Vectors`, with the arrays that it needs.

    dim_profile: width of the profile vectors that it takes, None if it takes none.
    """

    @property
    def dim_profile(self) -> int | None: ...

    def prepare(
        self, histories: sp.csr_matrix, profiles: np.ndarray | None, n_threads: int | None
    ) -> Sequence[StepOfUser]:
        """The step of each user. histories: sorted CSR (n, n_items) of ones. profiles: float32 (n, dim_profile)."""

    def dim_out(self, dim_in: int) -> int:
        """The width after the step. Raises ValueError if the step does not take `dim_in` columns."""

    def arrays(self) -> dict[str, np.ndarray]: ...

    def numbers(self) -> dict[str, Any]: ...

    @classmethod
    def unpack(cls, arrays: Mapping[str, np.ndarray], numbers: Mapping[str, Any], n_items: int) -> "UserStep | None":
        """The inverse of `arrays` and `numbers`; None if they are missing. Raises ValueError for wrong shapes."""


@dataclass(frozen=True)
class IdFold:
    """See the module docstring and `interface.UserFold`.

    loss: "bpr" or "ssm". n_negatives: negatives for each positive in training. l2: weight of |e|^2, relative to the
    *sum* of the losses of a user's positives. pool: int32, ascending, the items that negatives are drawn from.
    prior_mean: float32 (dim_e,), prior_precision: float32 (dim_e, dim_e): of the fitted users' ID vectors.
    min_id_interactions: users with fewer have e = 0. steps: from e to the user's row, in order.
    """

    loss: str
    n_negatives: int
    l2: float
    pool: np.ndarray
    prior_mean: np.ndarray
    prior_precision: np.ndarray
    min_id_interactions: int = 1
    steps: tuple[UserStep, ...] = ()

    @classmethod
    def of_training(
        cls,
        user_id: np.ndarray,
        interactions: sp.csr_matrix,
        config: TrainConfig,
        *,
        min_id_interactions: int = 1,
        steps: Sequence[UserStep] = (),
    ) -> "IdFold":
        """The fold-in of a trained model.

        user_id: float32 (n, dim_e), the fitted ID vectors. interactions: CSR (n_users, n_items), the training set.
        """
        n_batches = -(-interactions.nnz // config.batch_size)
        mean, precision = population(user_id)
        return cls(
            loss=config.loss,
            n_negatives=config.n_negatives,
            # Training adds L2 to the mean loss of every batch.
            l2=(config.l2 + config.l2_tables) * n_batches * config.batch_size,
            pool=np.unique(interactions.indices).astype(np.int32),
            prior_mean=mean,
            prior_precision=precision,
            min_id_interactions=min_id_interactions,
            steps=tuple(steps),
        )

    @property
    def dim(self) -> int:
        """Columns of the rows. Raises ValueError if a step does not accept the output width of the one before it."""
        width = len(self.prior_mean)
        for step in self.steps:
            width = step.dim_out(width)
        return width

    @property
    def dim_profile(self) -> int | None:
        return next((step.dim_profile for step in self.steps if step.dim_profile is not None), None)

    def place(
        self, vectors: Vectors, histories: sp.csr_matrix, profiles: np.ndarray | None, *, n_threads: int | None = None
    ) -> np.ndarray:
        rows = [user.row(e) for user, e in self._solutions(vectors, histories, profiles, n_threads)]
        return np.ascontiguousarray(np.array(rows, np.float32).reshape(len(rows), vectors.items.shape[1]))

    def rows_of(
        self,
        id_vectors: np.ndarray,
        histories: sp.csr_matrix,
        profiles: np.ndarray | None,
        *,
        n_threads: int | None = None,
    ) -> np.ndarray:
        """float32 (n, dim): the rows computed from ID vectors (n, dim_e). Fitted ID vectors give the model's rows."""
        prepared = [step.prepare(histories, profiles, n_threads) for step in self.steps]
        rows = [_User([steps[n] for steps in prepared]).row(e.astype(np.float64)) for n, e in enumerate(id_vectors)]
        return np.array(rows, np.float32).reshape(len(rows), self.dim)

    def id_vectors(
        self, vectors: Vectors, histories: sp.csr_matrix, profiles: np.ndarray | None, *, n_threads: int | None = None
    ) -> np.ndarray:
        """float64 (n, dim_e): the ID vectors behind the rows of `place`."""
        found = [e for _, e in self._solutions(vectors, histories, profiles, n_threads)]
        return np.array(found).reshape(len(found), len(self.prior_mean))

    def _solutions(
        self, vectors: Vectors, histories: sp.csr_matrix, profiles: np.ndarray | None, n_threads: int | None
    ) -> Iterator[tuple["_User", np.ndarray]]:
        prepared = [step.prepare(histories, profiles, n_threads) for step in self.steps]
        problem = _Problem(vectors, self)
        # These products are small: more BLAS threads would be slower, and would change the last bits.
        with threadpool_limits(1, user_api="blas"):
            for number in range(histories.shape[0]):
                items = histories.indices[histories.indptr[number] : histories.indptr[number + 1]]
                user = _User([steps[number] for steps in prepared])
                has_id = 0 < len(items) >= self.min_id_interactions
                yield user, problem.solve(user, items) if has_id else np.zeros_like(problem.mean)

    def arrays(self) -> dict[str, np.ndarray]:
        out = {
            "pool": self.pool.astype(np.int32),
            "prior_mean": self.prior_mean.astype(np.float32),
            "prior_precision": self.prior_precision.astype(np.float32),
        }
        for step in self.steps:
            out |= {name: np.asarray(array, np.float32) for name, array in step.arrays().items()}
        return out

    def numbers(self) -> dict[str, Any]:
        out: dict[str, Any] = {
            "loss": self.loss,
            "n_negatives": int(self.n_negatives),
            "l2": float(self.l2),
            "min_id_interactions": int(self.min_id_interactions),
        }
        for step in self.steps:
            out |= step.numbers()
        return out

    @classmethod
    def unpacker(cls, *kinds: type[UserStep]) -> UnpackFold:
        """`unpack_fold` for a model whose user rows go through steps of these kinds, in this order."""

        def unpack_fold(arrays: Mapping[str, np.ndarray], numbers: Mapping[str, Any], n_items: int) -> "IdFold":
            steps = tuple(step for kind in kinds if (step := kind.unpack(arrays, numbers, n_items)) is not None)
            fold = cls(
                loss=numbers["loss"],
                n_negatives=_number(numbers, "n_negatives"),
                l2=_number(numbers, "l2"),
                pool=_ascending(checked(arrays, "pool", np.int32, None), n_items),
                prior_mean=checked(arrays, "prior_mean", np.float32, None),
                prior_precision=checked(arrays, "prior_precision", np.float32, *[len(arrays["prior_mean"])] * 2),
                min_id_interactions=_number(numbers, "min_id_interactions"),
                steps=steps,
            )
            if fold.loss not in ("bpr", "ssm"):
                raise ValueError(f"loss: expected bpr or ssm, found {str(fold.loss)[:40]!r}")
            _ = fold.dim
            unknown = set(arrays) - set(fold.arrays())
            if unknown:
                raise ValueError(f"unexpected arrays {', '.join(sorted(unknown))[:80]}")
            return fold

        return unpack_fold


def population(user_id: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The prior of new ID vectors: float32 mean (dim_e,) and precision (dim_e, dim_e) of user_id, float32 (n, dim_e).

    The covariance is shrunk towards its diagonal with the weight of two users, so that it is invertible for few users.
    """
    n, dim = user_id.shape
    if n == 0:
        return np.zeros(dim, np.float32), np.eye(dim, dtype=np.float32)
    table = user_id.astype(np.float64)
    mean = table.mean(axis=0)
    centered = table - mean
    variance = np.maximum(centered.var(axis=0), 1e-6)
    covariance = (centered.T @ centered + 2.0 * np.diag(variance)) / (n + 2.0)
    return mean.astype(np.float32), np.linalg.inv(covariance).astype(np.float32)


def _number(numbers: Mapping[str, Any], name: str) -> Any:
    value = numbers[name]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e9:
        raise ValueError(f"{name}: expected a number, found {str(value)[:40]!r}")
    return value


def _ascending(pool: np.ndarray, n_items: int) -> np.ndarray:
    # Compared, not subtracted: differences wrap.
    if len(pool) and not (pool.min() >= 0 and pool.max() < n_items and (pool[1:] > pool[:-1]).all()):
        raise ValueError(f"pool: expected ascending numbers from 0 to {n_items - 1}")
    return pool


class _User:
    """Computes one user's row, and its derivative, from the ID vector e."""

    def __init__(self, steps: Sequence[StepOfUser]):
        self.steps = steps
        self.is_constant = any(step.is_constant for step in steps)

    def row(self, e: np.ndarray) -> np.ndarray:
        """float64 (dim_row,)."""
        return self.row_and_slope(e)[0]

    def row_and_slope(self, e: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(row (dim_row,), d row/de (dim_e, dim_row)), float64."""
        x, slope = e, np.eye(len(e))
        for step in self.steps:
            x, slope = step(x, slope)
        return x, slope


class _Problem:
    """The loss of one user's positives against the pool, with fixed items."""

    def __init__(self, vectors: Vectors, fold: "IdFold"):
        self.fold, self.items, self.bias = fold, vectors.items, vectors.bias
        self.relu_dim = vectors.relu_dim
        self.mean, self.precision = (
            fold.prior_mean.astype(np.float64),
            PRIOR_WEIGHT * fold.prior_precision.astype(np.float64),
        )
        self.dot = vectors.items.shape[1] - vectors.relu_dim
        self.pool = fold.pool
        if len(self.pool) > N_POOL:
            self.pool = np.sort(np.random.default_rng(7).choice(self.pool, N_POOL, replace=False))
        self.pool_items = self._of(self.pool)

    def _of(self, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        bias = self.bias[items].astype(np.float64) if len(self.bias) else np.zeros(len(items))
        return self.items[items].astype(np.float64), bias

    def _scores(self, items: tuple[np.ndarray, np.ndarray], row: np.ndarray) -> np.ndarray:
        """float64 (n,)."""
        vectors, bias = items
        dot = self.dot
        scores = vectors[:, :dot] @ row[:dot] + bias
        return scores + np.maximum(vectors[:, dot:] + row[dot:], 0).sum(axis=1) if self.relu_dim else scores

    def _slopes(self, items: tuple[np.ndarray, np.ndarray], row: np.ndarray) -> np.ndarray:
        """Derivatives of the scores with respect to the row: float64 (n, width)."""
        vectors, dot = items[0], self.dot
        return np.hstack([vectors[:, :dot], vectors[:, dot:] + row[dot:] > 0]) if self.relu_dim else vectors

    def solve(self, user: _User, history: np.ndarray) -> np.ndarray:
        """float64 (dim_e,): the minimum, by Gauss-Newton with step halving."""
        if user.is_constant:
            return np.zeros_like(self.mean)
        positives = self._of(history)
        others = ~np.isin(self.pool, history)
        negatives = self.pool_items if others.all() else tuple(part[others] for part in self.pool_items)
        e = self.mean.copy()
        value = self._value(user, e, positives, negatives)
        for _ in range(_STEPS):
            gradient, curvature = self._derivatives(user, e, positives, negatives)
            step = np.linalg.solve(curvature, gradient)
            decrease = float(gradient @ step)
            if decrease < _TOLERANCE * (1.0 + abs(value)):
                break
            size = 1.0
            while (lower := self._value(user, e - size * step, positives, negatives)) > value - 1e-4 * size * decrease:
                size /= 2
                if size < _SMALLEST_STEP:
                    return e
            e, value = e - size * step, lower
        return e

    def _value(self, user: _User, e: np.ndarray, positives: tuple, negatives: tuple) -> float:
        row, away = user.row(e), e - self.mean
        value = self.fold.l2 * float(e @ e) + 0.5 * float(away @ self.precision @ away)
        of_p, of_n = self._scores(positives, row), self._scores(negatives, row)
        if not len(of_n):
            return value
        if self.fold.loss == "ssm":
            return value + float(np.logaddexp(0, _softmax_margin(of_p, of_n, self.fold.n_negatives)).sum())
        return value + float(np.logaddexp(0, of_n[None, :] - of_p[:, None]).sum() / len(of_n))

    def _derivatives(
        self, user: _User, e: np.ndarray, positives: tuple, negatives: tuple
    ) -> tuple[np.ndarray, np.ndarray]:
        """(gradient (dim_e,), Gauss-Newton curvature (dim_e, dim_e))."""
        row, slope = user.row_and_slope(e)
        gradient = 2 * self.fold.l2 * e + self.precision @ (e - self.mean)
        curvature = 2 * self.fold.l2 * np.eye(len(e)) + self.precision
        of_p, of_n = self._scores(positives, row), self._scores(negatives, row)
        if not len(of_n):
            return gradient, curvature
        by_p, by_n = self._slopes(positives, row) @ slope.T, self._slopes(negatives, row) @ slope.T
        parts = _sampled_softmax if self.fold.loss == "ssm" else _pairs
        first, second = parts(of_p, by_p, of_n, by_n, self.fold.n_negatives)
        return gradient + first, curvature + second


def _softmax_margin(of_p: np.ndarray, of_n: np.ndarray, m: int) -> np.ndarray:
    """log(m * mean over n of exp(s_n)) - s_p; the loss is its softplus."""
    top = of_n.max()
    return top + np.log(np.exp(of_n - top).mean() * m) - of_p


def _sampled_softmax(
    of_p: np.ndarray, by_p: np.ndarray, of_n: np.ndarray, by_n: np.ndarray, m: int
) -> tuple[np.ndarray, np.ndarray]:
    taken = 1.0 / (1.0 + np.exp(-_softmax_margin(of_p, of_n, m)))
    weight = np.exp(of_n - of_n.max())
    weight /= weight.sum()
    mean = weight @ by_n
    apart = mean - by_p
    spread = (by_n * weight[:, None]).T @ by_n - np.outer(mean, mean)
    return taken @ apart, (apart * (taken * (1 - taken))[:, None]).T @ apart + taken.sum() * spread


def _pairs(
    of_p: np.ndarray, by_p: np.ndarray, of_n: np.ndarray, by_n: np.ndarray, m: int
) -> tuple[np.ndarray, np.ndarray]:
    taken = 1.0 / (1.0 + np.exp(of_p[:, None] - of_n[None, :])) / len(of_n)
    bent = taken * (1.0 - taken * len(of_n))
    across = by_p.T @ (bent @ by_n)
    second = (
        (by_n * bent.sum(axis=0)[:, None]).T @ by_n + (by_p * bent.sum(axis=1)[:, None]).T @ by_p - across - across.T
    )
    return taken.sum(axis=0) @ by_n - taken.sum(axis=1) @ by_p, second
