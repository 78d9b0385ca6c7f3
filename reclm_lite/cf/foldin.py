"""New and changed users, placed among the fitted items without fitting again.

    scorer (ease, itemknn, gfcf)   nothing to find: the model ranks from the history itself
    graph (lightgcn, sgl, simgcl)  the history propagated through the items' kept layers
    ID vectors                     the vector that minimises the model's own loss with the items held fixed:

    ssm   sum over positives p of log(1 + m/N sum over the pool n of exp(s_n - s_p))      m negatives were drawn in
    training bpr   sum over positives p of 1/N sum over the pool n of softplus(s_n - s_p) plus  l2 |e|^2 + weight/2 (e -
    mean)' precision (e - mean)   the population of fitted users

found by Gauss-Newton steps from the mean, on the whole pool or a fixed sample of it: each user alone, the same in any
company. The prior stands for what training has besides: a random start, few epochs, early stopping. Items are not
moved, so many new users call for a fit. What a model keeps for this: foldstate.py.
"""

import dataclasses

import numpy as np
import scipy.sparse as sp
from threadpoolctl import threadpool_limits

from ..errors import InputError, ModelError
from ..kernels import native
from .foldstate import MLP, FoldState
from .interface import FittedModel, artefact_name
from .layers import normalize
from .vectors import Vectors

N_POOL = 1024
# Of 0.03, 0.1, 0.3, 1 and 3, the weight whose lists shared most with those of a refit, over five models.
PRIOR_WEIGHT = 0.3
_STEPS = 10
_TOLERANCE = 1e-4
_SMALLEST_STEP = 0.05


def fold_in(
    fitted: FittedModel, histories: sp.csr_matrix, profiles: np.ndarray | None = None, *, n_threads: int | None = None
) -> FittedModel:
    """The same model with these users in place of its own: rank them with `topk(np.arange(n), k)`.

    histories: CSR (n, n_items), any values: an entry is an interaction. profiles: float32 (n, dim_profile), zero rows
    for none; for models that take users' profiles. Who has neither is not ready and ranked by bias alone. Raises
    InputError where an argument does not fit, ModelError where the model was stored without what this takes.
    """
    histories = _checked_histories(fitted, histories)
    n = histories.shape[0]
    ready = np.diff(histories.indptr) > 0
    if fitted.fold is None and (not fitted.is_personal or fitted.scorer is not None):
        if profiles is not None:
            raise InputError(f"{fitted.name} takes no profiles: leave them out")
        kept = None if fitted.scorer is None else histories
        return dataclasses.replace(
            fitted, user_vectors=np.zeros((n, 0), np.float32), user_ready=ready, histories=kept, train_user_vectors=None
        )
    if fitted.fold is None:
        option = "" if fitted.profiles == "none" else f" --profiles {fitted.profiles}"
        raise ModelError(
            f"{artefact_name(fitted.name, fitted.profiles)} was stored by a version that kept nothing to place new "
            "users with: fit it "
            f"again with `reclm fit {fitted.name}{option}`"
        )
    profiles = _checked_profiles(fitted, profiles, n)
    rows = fold_rows(fitted.vectors, fitted.fold, histories, profiles, n_threads=n_threads)
    if profiles is not None:
        ready = ready | profiles.any(axis=1)
    return dataclasses.replace(fitted, user_vectors=rows, user_ready=ready, train_user_vectors=None)


def fold_rows(
    vectors: Vectors,
    fold: FoldState,
    histories: sp.csr_matrix,
    profiles: np.ndarray | None,
    *,
    n_threads: int | None = None,
) -> np.ndarray:
    """float32 (n, dim): the users' side of `Vectors` for histories: sorted CSR (n, n_items) of ones."""
    n = histories.shape[0]
    scale, offset = _propagated(fold, histories, n_threads)
    fused = _fused_profiles(fold, profiles, n)
    problem = _Problem(vectors, fold)
    rows = []
    # These products are small: more BLAS threads only wait for each other, and move the last bits.
    with threadpool_limits(1, user_api="blas"):
        for user in range(n):
            items = histories.indices[histories.indptr[user] : histories.indptr[user + 1]]
            place = _Place(fold, scale[user], offset[user], None if fused is None else fused[user])
            has_id = 0 < len(items) >= fold.min_id_interactions
            rows.append(place.row(problem.solve(place, items) if has_id else np.zeros_like(problem.mean)))
    dim = vectors.items.shape[1] - (0 if fold.tower_mlp is None else fold.tower_mlp["w2"].shape[1])
    out = np.array(rows, np.float32).reshape(n, dim)
    if fold.tower_mlp is not None:
        tower = np.zeros((n, fold.tower_mlp["w2"].shape[1]), np.float32)
        if profiles is not None:
            has_profile = profiles.any(axis=1)
            tower[has_profile] = np.float32(fold.gate) * _project(fold.tower_mlp, profiles[has_profile])
        at = out.shape[1] - vectors.relu_dim  # the ReLU part stays last
        out = np.hstack([out[:, :at], tower, out[:, at:]])
    return np.ascontiguousarray(out)


def _propagated(fold: FoldState, histories: sp.csr_matrix, n_threads: int | None) -> tuple[np.ndarray, np.ndarray]:
    """(scale float64 (n,), offset float64 (n, dim)): final = scale * first + offset; 1 and 0 without a graph."""
    n, dim = histories.shape[0], fold.fuse_w.shape[1] if fold.fuse_w is not None else len(fold.prior_mean)
    if fold.layer_weights is None:
        return np.ones(n), np.zeros((n, dim))
    loops = 1.0 if fold.self_loops else 0.0
    degree = np.maximum(np.diff(histories.indptr) + loops, 1.0)
    item_degree = np.maximum(fold.item_degree, 1.0)
    weights = 1.0 / np.sqrt(np.repeat(degree, np.diff(histories.indptr)) * item_degree[histories.indices])
    matrix = native.make_csr(histories.indptr, histories.indices, weights.astype(np.float32), histories.shape)
    first, layer = np.ones(n), np.zeros((n, dim))
    scale, offset = fold.layer_weights[0] * first, np.zeros((n, dim))
    for weight, items in zip(fold.layer_weights[1:], fold.item_layers, strict=True):
        first = loops * first / degree
        layer = native.spmm(matrix, np.ascontiguousarray(items), n_threads=n_threads) + loops * layer / degree[:, None]
        scale = scale + weight * first
        offset = offset + weight * layer
    return scale, offset


def _fused_profiles(fold: FoldState, profiles: np.ndarray | None, n: int) -> np.ndarray | None:
    """float64 (n, dim): the profile's part of the fused layer, before its ReLU; None where nothing is fused."""
    if fold.fuse_w is None:
        return None
    dim_e = len(fold.prior_mean)
    if profiles is None:
        profiles = np.zeros((n, fold.fuse_mlp["w1"].shape[0]), np.float32)
    # A user without a profile went through the same layers with a zero row.
    unit = normalize(_project(fold.fuse_mlp, profiles))[0]
    return np.array([row @ fold.fuse_w[dim_e:] + fold.fuse_b for row in unit]).reshape(n, len(fold.fuse_b))


def _project(mlp: MLP, profiles: np.ndarray) -> np.ndarray:
    """float32 (n, dim). Row by row: a product's last bits depend on how many rows it has."""
    rows = [np.maximum(row @ mlp["w1"] + mlp["b1"], 0) @ mlp["w2"] + mlp["b2"] for row in profiles]
    return np.array(rows, np.float32).reshape(len(profiles), len(mlp["b2"]))


class _Place:
    """How one user's row comes from the ID vector e, and its derivative."""

    def __init__(self, fold: FoldState, scale: float, offset: np.ndarray, fused: np.ndarray | None):
        self.fold, self.scale, self.offset, self.fused = fold, scale, offset, fused

    def row(self, e: np.ndarray) -> np.ndarray:
        """float64 (dim_row,), without the tower's part."""
        return self.row_and_slope(e)[0]

    def row_and_slope(self, e: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(row (dim_row,), its derivative (dim_e, dim_row)), float64."""
        first, slope = e, np.eye(len(e))
        if self.fused is not None:
            weight = self.fold.fuse_w[: len(e)].astype(np.float64)
            first = e @ weight + self.fused
            slope = weight * (first > 0)
            first = np.maximum(first, 0.0)
        final, slope = self.scale * first + self.offset, self.scale * slope
        if self.fold.readout is None:
            return final, slope
        readout = self.fold.readout.astype(np.float64)
        return final @ readout + self.fold.readout_bias, slope @ readout


class _Problem:
    """The loss of one user's positives against the pool, items held fixed."""

    def __init__(self, vectors: Vectors, fold: FoldState):
        self.fold, self.items, self.bias = fold, vectors.items, vectors.bias
        self.relu_dim = vectors.relu_dim
        self.mean, self.precision = (
            fold.prior_mean.astype(np.float64),
            PRIOR_WEIGHT * fold.prior_precision.astype(np.float64),
        )
        self.width = vectors.items.shape[1] - (0 if fold.tower_mlp is None else fold.tower_mlp["w2"].shape[1])
        self.pool = fold.pool
        if len(self.pool) > N_POOL:
            self.pool = np.sort(np.random.default_rng(7).choice(self.pool, N_POOL, replace=False))
        self.pool_items = self._of(self.pool)

    def _of(self, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        bias = self.bias[items].astype(np.float64) if len(self.bias) else np.zeros(len(items))
        dot = self.width - self.relu_dim  # the tower's columns lie behind these
        vectors = self.items[items]
        return np.hstack([vectors[:, :dot], vectors[:, vectors.shape[1] - self.relu_dim :]]).astype(np.float64), bias

    def _scores(self, items: tuple[np.ndarray, np.ndarray], row: np.ndarray) -> np.ndarray:
        """float64 (n,)."""
        vectors, bias = items
        dot = self.width - self.relu_dim
        scores = vectors[:, :dot] @ row[:dot] + bias
        return scores + np.maximum(vectors[:, dot:] + row[dot:], 0).sum(axis=1) if self.relu_dim else scores

    def _slopes(self, items: tuple[np.ndarray, np.ndarray], row: np.ndarray) -> np.ndarray:
        """The scores' derivatives by the row: float64 (n, width)."""
        vectors, dot = items[0], self.width - self.relu_dim
        return np.hstack([vectors[:, :dot], vectors[:, dot:] + row[dot:] > 0]) if self.relu_dim else vectors

    def solve(self, place: _Place, history: np.ndarray) -> np.ndarray:
        """float64 (dim_e,): the minimum, by Gauss-Newton with halved steps."""
        if not place.scale:
            return np.zeros_like(self.mean)
        positives = self._of(history)
        others = ~np.isin(self.pool, history)
        negatives = self.pool_items if others.all() else tuple(part[others] for part in self.pool_items)
        e = self.mean.copy()
        value = self._value(place, e, positives, negatives)
        for _ in range(_STEPS):
            gradient, curvature = self._derivatives(place, e, positives, negatives)
            step = np.linalg.solve(curvature, gradient)
            decrease = float(gradient @ step)
            if decrease < _TOLERANCE * (1.0 + abs(value)):
                break
            size = 1.0
            while (lower := self._value(place, e - size * step, positives, negatives)) > value - 1e-4 * size * decrease:
                size /= 2
                if size < _SMALLEST_STEP:
                    return e
            e, value = e - size * step, lower
        return e

    def _value(self, place: _Place, e: np.ndarray, positives: tuple, negatives: tuple) -> float:
        row, away = place.row(e), e - self.mean
        value = self.fold.l2 * float(e @ e) + 0.5 * float(away @ self.precision @ away)
        of_p, of_n = self._scores(positives, row), self._scores(negatives, row)
        if not len(of_n):
            return value
        if self.fold.loss == "ssm":
            return value + float(np.logaddexp(0, _softmax_margin(of_p, of_n, self.fold.n_negatives)).sum())
        return value + float(np.logaddexp(0, of_n[None, :] - of_p[:, None]).sum() / len(of_n))

    def _derivatives(
        self, place: _Place, e: np.ndarray, positives: tuple, negatives: tuple
    ) -> tuple[np.ndarray, np.ndarray]:
        """(gradient (dim_e,), Gauss-Newton curvature (dim_e, dim_e))."""
        row, slope = place.row_and_slope(e)
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
    """log of m times the mean exp(s_n), less s_p: the loss is its softplus."""
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


def _checked_histories(fitted: FittedModel, histories: sp.csr_matrix) -> sp.csr_matrix:
    if not sp.issparse(histories) or histories.shape[1] != fitted.n_items:
        found = getattr(histories, "shape", type(histories).__name__)
        raise InputError(
            f"histories: expected a sparse matrix of {fitted.n_items} columns, one for each item, found {found}"
        )
    histories = sp.csr_matrix(histories, dtype=np.float32, copy=True)
    if not np.isfinite(histories.data).all():
        raise InputError("histories: expected finite values, found NaN or infinity")
    histories.sum_duplicates()
    histories.eliminate_zeros()
    histories.data[:] = 1.0
    return histories


def _checked_profiles(fitted: FittedModel, profiles: np.ndarray | None, n: int) -> np.ndarray | None:
    if profiles is None:
        return None
    width = fitted.fold.dim_profile
    if width is None:
        raise InputError(
            f"{fitted.name} was fitted without users' profiles: leave them out, or fit it with --profiles users"
        )
    profiles = np.asarray(profiles, np.float32)
    if profiles.shape != (n, width) or not np.isfinite(profiles).all():
        raise InputError(f"profiles: expected finite float32 {(n, width)}, found {profiles.shape}")
    return profiles
