"""`reclm bench kernels`: each kernel beside its peers, in turns, in one process.

The graph has 70,839 nodes and 1.62 million entries, 64 columns (`--quick`: a small one, to see that it works).
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import scipy.sparse as sp
from threadpoolctl import threadpool_limits

from ...errors import InputError
from ...kernels import native
from .. import KERNEL_PARTS, machine
from ..comparison import Group, lines_of, to_json
from ..random_graphs import normalized_adjacency, power_law
from . import ranking_vectors as vectors
from .spmm_bench import HALF, OURS, bench_propagation, bench_spmm
from .topk_bench import INT8, OPTIONS, add_topk_targets, bench_knn, bench_topk, topk_extra_bytes
from .training_loops_bench import bench_training

# say(what is being measured)
Say = Callable[[str], None]


@dataclass(frozen=True)
class Sizes:
    """n_queries: users that topk and knn rank for."""

    n_users: int = 29_858
    n_items: int = 40_981
    n_interactions: int = 810_000
    dim: int = 64
    n_queries: int = 2048
    k: int = 20
    seed: int = 0


QUICK = Sizes(n_users=1500, n_items=2000, n_interactions=30_000, dim=32, n_queries=128)


@dataclass(frozen=True)
class Settings:
    """n_threads: of every contender. repeats: turns of each. parts: which of KERNEL_PARTS."""

    n_threads: int
    repeats: int = 9
    parts: tuple[str, ...] = KERNEL_PARTS
    sizes: Sizes = Sizes()


def run(settings: Settings, say: Say = lambda _: None) -> tuple[list[str], str]:
    """Measure; returns the lines of the table and the JSON line. Raises InputError, and KernelError if results
    differ."""
    unknown = [part for part in settings.parts if part not in KERNEL_PARTS]
    if unknown or settings.repeats < 1:
        raise InputError(
            f"expected parts among {', '.join(KERNEL_PARTS)} and at least one repeat, found {unknown}, "
            f"{settings.repeats}"
        )
    sizes = settings.sizes
    about = machine.facts(settings.n_threads)
    say("making the graph")
    matrix = power_law(sizes.n_users, sizes.n_items, sizes.n_interactions, sizes.seed)
    adjacency = normalized_adjacency(matrix)
    groups: list[Group] = []
    with threadpool_limits(settings.n_threads, user_api="blas"):
        if "spmm" in settings.parts:
            say("spmm")
            dense = native.empty((adjacency.shape[0], sizes.dim))
            dense[:] = vectors.gaussian(len(dense), sizes.dim, sizes.seed)
            groups.append(bench_spmm(adjacency, dense, settings.n_threads, settings.repeats))
            groups.append(bench_propagation(adjacency, dense, settings.n_threads, settings.repeats))
        if "topk" in settings.parts:
            groups += _topk_groups(matrix, settings, say)
        if "knn" in settings.parts:
            say("knn")
            points = vectors.gaussian(sizes.n_users, sizes.dim, sizes.seed + 2)
            groups.append(bench_knn(points, sizes.n_queries, 10, settings.n_threads, settings.repeats))
        if "training" in settings.parts:
            say("training loops")
            groups += bench_training(matrix, sizes.dim, settings.n_threads, settings.repeats)
        say("the machine's limits")
        limits = roofline(groups, settings.n_threads, quick=sizes == QUICK)
    if sizes != Sizes():  # the targets are those of the full sizes
        for group in groups:
            group.targets.clear()
    lines = [machine.sentence(about), *lines_of(groups), "", "limits: what the machine does, and what of it is used"]
    lines += [f"  {row['what']:<58} {row['per_second'] / 1e9:8.1f} {row['unit']}" for row in limits]
    shown = {**asdict(settings), "parts": list(settings.parts)}
    return lines, to_json("kernels", about, shown, groups, limits=limits)


def _topk_groups(matrix: sp.csr_matrix, settings: Settings, say: Say) -> list[Group]:
    sizes = settings.sizes
    rng = np.random.default_rng([sizes.seed, 0xB5])
    chosen = np.sort(rng.choice(sizes.n_users, min(sizes.n_queries, sizes.n_users), replace=False))
    seen = matrix[chosen].tocsr()
    seen.sort_indices()
    say("topk on Gaussian vectors")
    users, items = (
        vectors.gaussian(len(chosen), sizes.dim, sizes.seed),
        vectors.gaussian(sizes.n_items, sizes.dim, sizes.seed + 1),
    )
    gaussian = bench_topk("topk", "Gaussian vectors", users, items, seen, sizes.k, settings.n_threads, settings.repeats)
    say("memory of topk")
    extra = {
        name: topk_extra_bytes(len(chosen), sizes.n_items, sizes.dim, sizes.k, settings.n_threads, **options)
        for name, options in OPTIONS.items()
        if sizes != QUICK or name == list(OPTIONS)[0]
    }
    add_topk_targets(gaussian, extra)
    say("topk on factorized vectors")
    users, items = vectors.factorized(matrix, sizes.dim, sizes.seed)
    factorized = bench_topk(
        "topk factorized",
        "vectors of a truncated SVD",
        np.ascontiguousarray(users[chosen]),
        items,
        seen,
        sizes.k,
        settings.n_threads,
        settings.repeats,
    )
    say("topk on trained vectors")
    users, items, bias = vectors.trained(matrix, sizes.dim, settings.n_threads, sizes.seed)
    trained = bench_topk(
        "topk trained",
        "BiasMF after three epochs, with item bias",
        np.ascontiguousarray(users[chosen]),
        items,
        seen,
        sizes.k,
        settings.n_threads,
        settings.repeats,
        bias,
    )
    return [gaussian, factorized, trained]


def roofline(groups: list[Group], n_threads: int, *, quick: bool) -> list[dict]:
    """[{"what", "per_second", "unit"}]: the machine's rates beside those that the kernels reached.

    spmm's bytes count every access: a row gathered for each entry, indices and weights, the result. Most rows are
    found in a cache, so its rate may exceed that of copying memory; the cache's own rate is the nearer limit.
    """
    scale = 16 if quick else 1
    limits = [
        (
            "copy of memory, read and written counted both",
            machine.copy_bandwidth(n_threads, (256 << 20) // scale),
            "GB/s",
        ),
        ("reading 16 MiB again and again, in the last cache", machine.cache_bandwidth(n_threads), "GB/s"),
        ("float32 matrix product, 1,024 x 1,024 x 1,024", machine.product_rate(), "GFLOP/s"),
    ]
    for group in groups:
        for row in group.rows:
            if group.name == "spmm" and row.name in (OURS, HALF):
                limits.append((f"spmm, {row.name}", row.facts["bytes_per_second"], "GB/s"))
            if group.name == "topk" and row.name in (OURS, INT8):
                limits.append((f"topk, {row.name}", row.facts["flops_per_second"], "GFLOP/s"))
    return [{"what": what, "per_second": rate, "unit": unit} for what, rate, unit in limits]
