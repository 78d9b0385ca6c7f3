"""The loops of training, beside torch and numpy: negatives, the ranking loss, InfoNCE, Adam."""

import itertools
from collections.abc import Callable

import numpy as np
import scipy.sparse as sp
from threadpoolctl import threadpool_limits

from ...kernels import native
from .. import machine
from ..comparison import Group
from ..harness import take_turns
from .ranking_vectors import gaussian

OURS, TORCH, NUMPY = "reclm", "torch", "numpy"
BATCH, N_NEGATIVES, TEMPERATURE, RATE = 4096, 32, 0.2, 1e-3
Results = tuple[np.ndarray, ...]


def bench_training(matrix: sp.csr_matrix, dim: int, n_threads: int, repeats: int) -> list[Group]:
    """One group for each loop. matrix: CSR (n_users, n_items), the known positives."""
    rng = np.random.default_rng(0xB7)
    entries = np.sort(rng.choice(matrix.nnz, min(BATCH, matrix.nnz), replace=False))
    users = np.repeat(np.arange(matrix.shape[0], dtype=np.int32), np.diff(matrix.indptr))[entries]
    positives = matrix.indices[entries]
    negatives = rng.integers(0, matrix.shape[1], (len(users), N_NEGATIVES), dtype=np.int32)
    tables = [gaussian(n, dim, seed) * np.float32(0.1) for seed, n in enumerate(matrix.shape)]
    return [
        _negatives(matrix, users, n_threads, repeats),
        _ranking(users, positives, negatives, *tables, n_threads, repeats),
        _contrast(tables[0], len(users), n_threads, repeats),
        *_adam(tables[0], np.unique(users), n_threads, repeats),
    ]


def _timed(
    group: Group, contenders: dict[str, Callable[[], Results] | None], repeats: int, tolerance: float | None
) -> Group:
    """Compare each contender's arrays with the first one's, then time all. tolerance: of the largest value, None for no
    comparison."""
    able = {name: function for name, function in contenders.items() if function is not None}
    results = {name: function() for name, function in able.items()} if tolerance is not None else {}
    ours = results.get(OURS, ())
    for name, arrays in results.items():
        for mine, theirs in zip(ours, arrays, strict=True):
            error = float(np.abs(mine - theirs).max() / max(np.abs(theirs).max(), 1e-30))
            if error > tolerance:
                raise native.KernelError(
                    f"{group.name}: {name} and {OURS} differ by {error:.2g} of the largest value: not timed"
                )
    timings = take_turns(able, repeats)
    for name in contenders:
        if name in timings:
            group.add(name, timings[name])
        else:
            group.add_missing(name)
    return group


def _negatives(matrix: sp.csr_matrix, users: np.ndarray, n_threads: int, repeats: int) -> Group:
    from ...kernels.sampling import sample_negatives

    n_items = matrix.shape[1]
    indptr, indices = matrix.indptr.astype(np.int64), matrix.indices.astype(np.int32)
    pool = np.unique(indices)
    keys = np.repeat(np.arange(matrix.shape[0], dtype=np.int64), np.diff(indptr)) * n_items + indices
    known = {user: set(indices[indptr[user] : indptr[user + 1]].tolist()) for user in np.unique(users).tolist()}
    group = Group(
        "negatives",
        f"{len(users):,} x {N_NEGATIVES}, none that the user has touched",
        "negatives",
        len(users) * N_NEGATIVES,
    )
    rng = np.random.default_rng(0)

    def touched(drawn: np.ndarray) -> np.ndarray:
        wanted = (users[:, None] * np.int64(n_items) + drawn).ravel()
        at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        return (keys[at] == wanted).reshape(drawn.shape)

    def by_numpy() -> np.ndarray:
        drawn = pool[rng.integers(0, len(pool), (len(users), N_NEGATIVES))]
        while (again := touched(drawn)).any():
            drawn[again] = pool[rng.integers(0, len(pool), int(again.sum()))]
        return drawn

    def by_sets() -> np.ndarray:
        drawn = pool[rng.integers(0, len(pool), (len(users), N_NEGATIVES))].tolist()
        for user, row in zip(users.tolist(), drawn, strict=True):
            for place, item in enumerate(row):
                while item in known[user]:
                    item = row[place] = int(pool[rng.integers(0, len(pool))])
        return np.array(drawn)

    contenders = {
        OURS: lambda: sample_negatives(users, indptr, indices, pool, N_NEGATIVES, 1, n_threads=n_threads),
        NUMPY: by_numpy,
        "python sets": by_sets,
    }
    for name, function in contenders.items():
        if touched(function()).any():
            raise native.KernelError(f"negatives: {name} drew an item that its user has touched: not timed")
    return _timed(group, contenders, repeats, None)


def _ranking(
    users: np.ndarray,
    positives: np.ndarray,
    negatives: np.ndarray,
    user_vectors: np.ndarray,
    item_vectors: np.ndarray,
    n_threads: int,
    repeats: int,
) -> Group:
    from ...kernels.losses import ranking_loss

    n, m = negatives.shape
    no_bias = np.zeros(0, np.float32)
    group = Group(
        "ranking loss",
        f"sampled softmax, {n:,} x (1 + {m}), {user_vectors.shape[1]} columns, with gradients",
        "interactions",
        n,
    )

    def ours() -> Results:
        d_users, d_items = np.zeros_like(user_vectors), np.zeros_like(item_vectors)
        loss = ranking_loss(
            "ssm",
            users,
            positives,
            negatives,
            user_vectors,
            item_vectors,
            no_bias,
            d_users,
            d_items,
            no_bias,
            n_threads=n_threads,
        )
        return np.array(loss), d_users, d_items

    candidates = np.concatenate([positives[:, None], negatives], axis=1)

    def by_numpy() -> Results:
        mine, theirs = user_vectors[users], item_vectors[candidates]
        scores = np.einsum("nd,nmd->nm", mine, theirs, optimize=True)
        scores -= scores.max(axis=1, keepdims=True)
        weights = np.exp(scores)
        norms = weights.sum(axis=1, keepdims=True)
        loss = np.mean(np.log(norms[:, 0]) - scores[:, 0])
        weights /= norms
        weights[:, 0] -= 1.0
        weights /= n
        d_users, d_items = np.zeros_like(user_vectors), np.zeros_like(item_vectors)
        np.add.at(d_users, users, np.einsum("nm,nmd->nd", weights, theirs, optimize=True))
        np.add.at(d_items, candidates.ravel(), (weights[:, :, None] * mine[:, None, :]).reshape(-1, mine.shape[1]))
        return loss, d_users, d_items

    by_torch = None
    if machine.installed("torch"):
        import torch

        torch.set_num_threads(n_threads)
        left, right = (torch.from_numpy(table).requires_grad_() for table in (user_vectors, item_vectors))
        rows, columns = torch.from_numpy(users.astype(np.int64)), torch.from_numpy(candidates.astype(np.int64))
        first = torch.zeros(n, dtype=torch.int64)

        def by_torch() -> Results:
            left.grad = right.grad = None
            scores = torch.einsum("nd,nmd->nm", left[rows], right[columns])
            loss = torch.nn.functional.cross_entropy(scores, first)
            loss.backward()
            return loss.detach().numpy(), left.grad.numpy(), right.grad.numpy()

    return _timed(group, {OURS: ours, TORCH: by_torch, NUMPY: by_numpy}, repeats, 1e-4)


def _contrast(vectors: np.ndarray, n: int, n_threads: int, repeats: int) -> Group:
    from ...kernels.info_nce import info_nce

    second = vectors + np.float32(0.3) * gaussian(len(vectors), vectors.shape[1], 9) * np.float32(0.1)
    z1, z2 = (view / np.linalg.norm(view, axis=1, keepdims=True) for view in (vectors, second))
    n = min(n, len(z1))
    z1 = np.ascontiguousarray(z1[:n])
    own = np.arange(n)
    group = Group("InfoNCE", f"{n:,} rows against {len(z2):,}, {z2.shape[1]} columns, with gradients", "rows", n)

    def ours() -> Results:
        with threadpool_limits(1, user_api="blas"):  # as fitting has it: the kernel shares its blocks out itself
            return tuple(np.asarray(value) for value in info_nce(z1, z2, own, TEMPERATURE, n_threads=n_threads))

    def by_numpy() -> Results:
        scores = z1 @ z2.T
        scores /= np.float32(TEMPERATURE)
        scores -= scores.max(axis=1, keepdims=True)
        positive = scores[own, own].copy()
        np.exp(scores, out=scores)
        norms = scores.sum(axis=1, keepdims=True)
        loss = np.mean(np.log(norms[:, 0]) - positive)
        scores /= norms
        scores[own, own] -= 1.0
        scores /= np.float32(n * TEMPERATURE)
        return loss, scores @ z2, scores.T @ z1

    by_torch = None
    if machine.installed("torch"):
        import torch

        torch.set_num_threads(n_threads)
        left, right = (torch.from_numpy(z).requires_grad_() for z in (z1, z2))
        places = torch.from_numpy(own)

        def by_torch() -> Results:
            left.grad = right.grad = None
            loss = torch.nn.functional.cross_entropy(left @ right.T / TEMPERATURE, places)
            loss.backward()
            return loss.detach().numpy(), left.grad.numpy(), right.grad.numpy()

    return _timed(group, {OURS: ours, TORCH: by_torch, NUMPY: by_numpy}, repeats, 1e-3)


def _adam(table: np.ndarray, rows: np.ndarray, n_threads: int, repeats: int) -> list[Group]:
    from ...kernels.optim import adam, adam_rows

    n, dim = table.shape
    # Away from zero, where torch's SparseAdam differs: it does not correct the epsilon.
    whole = gaussian(n, dim, 10)
    whole += np.copysign(np.float32(0.1), whole)
    part = np.ascontiguousarray(whole[rows])
    groups = [
        Group("Adam", f"a table of {n:,} x {dim}, dense gradient", "values", n * dim),
        Group("Adam by rows", f"{len(rows):,} rows of a table of {n:,} x {dim}", "values", len(rows) * dim),
    ]

    def ours(step: Callable[..., None], *gradient: np.ndarray) -> Callable[[], Results]:
        value, first, second = table.copy(), np.zeros_like(table), np.zeros_like(table)
        number = itertools.count(1)

        def run() -> Results:
            step(value, *gradient, first, second, step=next(number), lr=RATE, n_threads=n_threads)
            return (value,)

        return run

    def by_numpy(touched: slice | np.ndarray, gradient: np.ndarray) -> Callable[[], Results]:
        value, first, second = table.copy(), np.zeros_like(table), np.zeros_like(table)
        number = itertools.count(1)

        def run() -> Results:
            t = next(number)
            m = np.float32(0.9) * first[touched] + np.float32(0.1) * gradient
            v = np.float32(0.999) * second[touched] + np.float32(0.001) * gradient * gradient
            first[touched], second[touched] = m, v
            corrected = np.sqrt(v / np.float32(1 - 0.999**t)) + np.float32(1e-8)
            value[touched] -= np.float32(RATE / (1 - 0.9**t)) * m / corrected
            return (value,)

        return run

    contenders = [
        {OURS: ours(adam, whole), TORCH: None, "torch, fused": None, NUMPY: by_numpy(slice(None), whole)},
        {OURS: ours(adam_rows, rows, part), "torch SparseAdam": None, NUMPY: by_numpy(rows, part)},
    ]
    if machine.installed("torch"):
        import torch

        torch.set_num_threads(n_threads)
        places = torch.from_numpy(rows.astype(np.int64))[None]
        gradients = (
            torch.from_numpy(whole),
            torch.sparse_coo_tensor(
                places, torch.from_numpy(part), table.shape, is_coalesced=True, check_invariants=False
            ),
        )

        def by_torch(kind: type, gradient: torch.Tensor, **options: object) -> Callable[[], Results]:
            value = torch.from_numpy(table.copy()).requires_grad_()
            value.grad = gradient
            optimizer = kind([value], lr=RATE, **options)

            def run() -> Results:
                optimizer.step()
                return (value.detach().numpy(),)

            return run

        contenders[0][TORCH] = by_torch(torch.optim.Adam, gradients[0])
        contenders[0]["torch, fused"] = by_torch(torch.optim.Adam, gradients[0], fused=True)
        contenders[1]["torch SparseAdam"] = by_torch(torch.optim.SparseAdam, gradients[1])
    return [_timed(group, each, repeats, 1e-5) for group, each in zip(groups, contenders, strict=True)]
