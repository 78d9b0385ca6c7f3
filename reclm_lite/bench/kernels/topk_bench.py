"""Masked top-k of users × items with its peak memory, and nearest neighbors, beside implicit, torch and numpy."""

from collections.abc import Callable

import numpy as np
import scipy.sparse as sp

from ...kernels import native
from .. import machine
from ..comparison import Group, Target
from ..harness import PeakMemory, run_in_child, take_turns

OURS, INT8, PRUNED, PRUNED_INT8 = "reclm float32", "reclm int8", "reclm float32, pruned", "reclm int8, pruned"
PRODUCT, IMPLICIT, TORCH, NUMPY = "product alone (numpy)", "implicit topk", "torch topk", "numpy argpartition"
OPTIONS: dict[str, dict] = {
    OURS: {},
    INT8: {"precision": "int8"},
    PRUNED: {"prune": True},
    PRUNED_INT8: {"precision": "int8", "prune": True},
}
BLOCK = 256


def bench_topk(
    name: str,
    what: str,
    users: np.ndarray,
    items: np.ndarray,
    seen: sp.csr_matrix,
    k: int,
    n_threads: int,
    repeats: int,
    bias: np.ndarray | None = None,
) -> Group:
    """The k best unseen items of each user. users, items: float32 (n, dim). seen: CSR (n_users, n_items).

    bias: float32 (n_items,); peers, which support none, get it as one more column.
    """
    group = Group(
        name,
        f"{len(users):,} users x {len(items):,} items x {users.shape[1]}, k {k}, masked, {what}",
        "users",
        len(users),
    )
    ours = users, items
    if bias is not None:
        users, items = np.c_[users, np.ones(len(users), np.float32)], np.c_[items, bias]
    mask = native.make_csr(seen.indptr, seen.indices, None, seen.shape)
    rows = np.repeat(np.arange(len(users)), np.diff(seen.indptr))
    product = np.empty((len(users), len(items)), np.float32)
    columns = np.ascontiguousarray(items.T)

    def numpy_topk() -> np.ndarray:
        np.matmul(users, items.T, out=product)
        product[rows, seen.indices] = -np.inf
        ids = np.empty((len(users), k), np.int64)
        for start in range(0, len(users), BLOCK):
            ids[start : start + BLOCK] = _best_of(product[start : start + BLOCK], k)
        return ids

    contenders: dict[str, Callable[[], np.ndarray]] = {
        **{
            way: lambda options=options: native.topk(
                *ours, k, item_bias=bias, seen=mask, n_threads=n_threads, **options
            )[0]
            for way, options in OPTIONS.items()
        },
        NUMPY: numpy_topk,
        **_torch(users, items, rows, seen.indices, k, n_threads),
        **_implicit(users, items, seen, k, n_threads),
    }
    exact = exact_topk(users, items, seen, k)
    equal = {}
    for peer, function in contenders.items():
        ids = function()
        equal[peer] = float((ids == exact).mean())
        right = as_good_as(ids, exact, users, items).mean()
        if right < 1 and peer not in (INT8, PRUNED_INT8):
            raise native.KernelError(
                f"{name}: {peer} is right in {right:.2%} of places, expected all of them: not timed"
            )
    contenders[PRODUCT] = lambda: np.matmul(users, columns, out=product)
    timings = take_turns(contenders, repeats)
    for peer in (*OPTIONS, PRODUCT, IMPLICIT, TORCH, NUMPY):
        if peer not in timings:
            group.add_missing(peer)
            continue
        notes, found = [], {} if peer == PRODUCT else {"equal_places": equal[peer]}
        if peer not in (PRUNED, PRUNED_INT8):  # these leave products out: that is their point
            rate = 2.0 * len(users) * len(items) * users.shape[1] / timings[peer].median_seconds
            notes, found = [f"{rate / 1e9:.0f} GFLOP/s"], found | {"flops_per_second": rate}
        if peer != PRODUCT:
            notes.append(f"{equal[peer]:.4%} of places exact")
        group.add(peer, timings[peer], ", ".join(notes), **found)
    return group


def add_topk_targets(group: Group, extra_bytes: dict[str, int]) -> None:
    """Targets for Gaussian vectors. extra_bytes: peak extra memory of each of our contenders."""
    group.expect(OURS, 4.0, IMPLICIT)
    group.expect(OURS, 1.2, PRODUCT)
    group.expect(INT8, 2.5, PRODUCT)
    int8 = next(row for row in group.rows if row.name == INT8)
    group.targets.append(Target(f"{INT8}: share of places exact", 0.999, int8.facts["equal_places"], unit=""))
    for name, n_bytes in extra_bytes.items():
        group.targets.append(Target(f"{name}: peak extra memory", 64.0, n_bytes / 2**20, at_least=False, unit=" MiB"))


def bench_knn(vectors: np.ndarray, n_queries: int, k: int, n_threads: int, repeats: int) -> Group:
    """Cosine neighbors of the first n_queries rows among all; a row is not its own neighbor."""
    n = len(vectors)
    n_queries = min(n_queries, n)
    queries, own = vectors[:n_queries], np.arange(n_queries, dtype=np.int32)
    group = Group(
        "knn", f"{n_queries:,} queries x {n:,} vectors x {vectors.shape[1]}, k {k}, cosine", "queries", n_queries
    )
    itself = sp.csr_matrix((np.ones(n_queries, np.float32), own, np.arange(n_queries + 1)), shape=(n_queries, n))

    def unit() -> np.ndarray:
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def numpy_knn() -> np.ndarray:
        among = unit()
        ids = np.empty((n_queries, k), np.int64)
        for start in range(0, n_queries, BLOCK):
            scores = among[start : min(start + BLOCK, n_queries)] @ among.T
            scores[np.arange(len(scores)), own[start : start + BLOCK]] = -np.inf
            ids[start : start + BLOCK] = _best_of(scores, k)
        return ids

    contenders = {OURS: lambda: native.knn(queries, vectors, k, own=own, n_threads=n_threads)[0], NUMPY: numpy_knn}
    if machine.installed("implicit"):
        contenders[IMPLICIT] = lambda: next(
            iter(_implicit((among := unit())[:n_queries], among, itself, k, n_threads).values())
        )()
    among = unit().astype(np.float64)
    exact = exact_topk(among[:n_queries], among, itself, k)
    for peer, function in contenders.items():
        right = as_good_as(function(), exact, among[:n_queries], among).mean()
        if right < 1:
            raise native.KernelError(f"knn: {peer} is right in {right:.2%} of places, expected all of them: not timed")
    timings = take_turns(contenders, repeats)
    for peer in (OURS, NUMPY, IMPLICIT):
        if peer in timings:
            group.add(peer, timings[peer])
        else:
            group.add_missing(peer)
    return group


def topk_extra_bytes(n_users: int, n_items: int, dim: int, k: int, n_threads: int, **options: object) -> int:
    """Resident bytes that one `native.topk` adds at its peak, its result included; measured in a child process."""
    arguments = {"n_users": n_users, "n_items": n_items, "dim": dim, "k": k, "n_threads": n_threads, "options": options}
    return run_in_child(topk_memory, arguments, what="measuring the memory of topk", error=native.KernelError).result


def topk_memory(n_users: int, n_items: int, dim: int, k: int, n_threads: int, options: dict) -> int:
    """A job: the extra bytes of one call on random vectors."""
    rng = np.random.default_rng(0)
    users = rng.standard_normal((n_users, dim), dtype=np.float32)
    items = rng.standard_normal((n_items, dim), dtype=np.float32)
    # The first call starts the threads and loads the library: neither is the kernel's working memory.
    native.topk(users[:1], items[:64].copy(), 1, n_threads=n_threads, **options)
    with PeakMemory() as memory:
        native.topk(users, items, k, n_threads=n_threads, **options)
    return memory.extra_bytes


def _best_of(scores: np.ndarray, k: int) -> np.ndarray:
    """int64 (n, k): columns of the k largest scores of each row, best first, as numpy does it."""
    part = np.argpartition(scores, -k, axis=1)[:, -k:]
    order = np.argsort(-np.take_along_axis(scores, part, 1), axis=1, kind="stable")
    return np.take_along_axis(part, order, 1)


def exact_topk(users: np.ndarray, items: np.ndarray, seen: sp.csr_matrix, k: int) -> np.ndarray:
    """int64 (n_users, k): the ranking in float64, ties to the lower id; a block of users at a time."""
    ids = np.empty((len(users), k), np.int64)
    items = items.astype(np.float64)
    for start in range(0, len(users), BLOCK):
        scores = users[start : start + BLOCK].astype(np.float64) @ items.T
        part = seen[start : start + BLOCK]
        scores[np.repeat(np.arange(len(scores)), np.diff(part.indptr)), part.indices] = -np.inf
        least = np.partition(scores, -k, axis=1)[:, -k]
        for row, (values, bound) in enumerate(zip(scores, least, strict=True)):
            among = np.flatnonzero(values >= bound)
            ids[start + row] = among[np.argsort(-values[among], kind="stable")[:k]]
    return ids


def as_good_as(ids: np.ndarray, exact: np.ndarray, users: np.ndarray, items: np.ndarray) -> np.ndarray:
    """bool (n_users, k): whether an id is the exact one, or its score equals the exact one's up to float32 rounding.

    Items whose scores float32 cannot tell apart may stand in either order.
    """
    left, right = users.astype(np.float64), items.astype(np.float64)
    score, best = (np.einsum("ud,ukd->uk", left, right[places]) for places in (ids, exact))
    of_items = np.linalg.norm(right, axis=1)
    norms = np.linalg.norm(left, axis=1, keepdims=True) * np.maximum(of_items[ids], of_items[exact])
    return (ids == exact) | (np.abs(score - best) <= (users.shape[1] + 2) * 2.0**-23 * norms)


def _torch(
    users: np.ndarray, items: np.ndarray, rows: np.ndarray, columns: np.ndarray, k: int, n_threads: int
) -> dict[str, Callable[[], np.ndarray]]:
    if not machine.installed("torch"):
        return {}
    import torch

    torch.set_num_threads(n_threads)
    left, right = torch.from_numpy(users), torch.from_numpy(items)
    masked = torch.from_numpy(rows), torch.from_numpy(columns.astype(np.int64))

    def run() -> np.ndarray:
        scores = left @ right.T
        scores[masked] = -torch.inf
        return torch.topk(scores, k, dim=1).indices.numpy()

    return {TORCH: run}


def _implicit(
    users: np.ndarray, items: np.ndarray, seen: sp.csr_matrix, k: int, n_threads: int
) -> dict[str, Callable[[], np.ndarray]]:
    if not machine.installed("implicit"):
        return {}
    from implicit.cpu.topk import topk

    return {IMPLICIT: lambda: topk(items, users, k, filter_query_items=seen, num_threads=n_threads)[0]}
