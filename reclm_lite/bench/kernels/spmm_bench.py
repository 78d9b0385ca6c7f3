"""Sparse × dense: the propagation of graph models, beside scipy, torch and a plain loop."""

from collections.abc import Callable

import numpy as np
import scipy.sparse as sp

from ...kernels import native
from .. import machine
from ..comparison import Group
from ..harness import take_turns

OURS, HALF, HALF_BOTH = "reclm float32", "reclm bfloat16", "reclm bfloat16, result too"
SCIPY, COO, CSR, LOOP = "scipy csr @ dense", "torch COO", "torch CSR", "numba prange loop"
N_LAYERS = 3


def bench_spmm(adjacency: sp.csr_matrix, dense: np.ndarray, n_threads: int, repeats: int) -> Group:
    """One product with the normalized adjacency; every contender's result is compared with float64 first."""
    matrix = native.make_csr(adjacency.indptr, adjacency.indices, adjacency.data, adjacency.shape)
    group = Group(
        "spmm",
        f"adjacency of {adjacency.shape[0]:,} nodes, {adjacency.nnz:,} entries, times {dense.shape[1]} columns",
        "entries",
        adjacency.nnz,
    )
    half, out, half_out, loop_out = (
        native.to_bf16(dense),
        *(native.empty(dense.shape, dtype) for dtype in (np.float32, np.uint16, np.float32)),
    )
    contenders: dict[str, Callable[[], np.ndarray]] = {
        OURS: lambda: native.spmm(matrix, dense, out=out, n_threads=n_threads, check=False),
        HALF: lambda: native.spmm(matrix, half, out=out, n_threads=n_threads, check=False),
        HALF_BOTH: lambda: native.spmm(matrix, half, out=half_out, n_threads=n_threads, check=False),
        SCIPY: lambda: adjacency @ dense,
        LOOP: _loop(adjacency, dense, loop_out, n_threads),
        **_torch(adjacency, dense, n_threads),
    }
    exact = adjacency.astype(np.float64) @ dense.astype(np.float64)
    errors = {name: _error(np.asarray(function()), exact) for name, function in contenders.items()}
    for name, error in errors.items():
        # bfloat16 keeps 8 bits; float32 sums of a few thousand terms keep about 20.
        if error > (2e-2 if name in (HALF, HALF_BOTH) else 1e-5):
            raise native.KernelError(
                f"spmm: {name} differs from float64 by {error:.2g} of the largest value: not timed"
            )
    timings = take_turns(contenders, repeats)
    for name in (OURS, HALF, HALF_BOTH, LOOP, SCIPY, CSR, COO):
        if name not in timings:
            group.add_missing(name)
            continue
        n_bytes = moved_bytes(
            adjacency, dense.shape[1], 2 if name in (HALF, HALF_BOTH) else 4, 2 if name == HALF_BOTH else 4
        )
        rate = n_bytes / timings[name].median_seconds
        group.add(
            name, timings[name], f"{rate / 1e9:.1f} GB/s", bytes=n_bytes, bytes_per_second=rate, max_error=errors[name]
        )
    for ours, times, peer in (
        (OURS, 5.0, SCIPY),
        (OURS, 14.0, COO),
        (OURS, 3.5, CSR),
        (OURS, 2.0, LOOP),
        (HALF, 9.0, SCIPY),
    ):
        group.expect(ours, times, peer)
    return group


def bench_propagation(adjacency: sp.csr_matrix, dense: np.ndarray, n_threads: int, repeats: int) -> Group:
    """LightGCN's mean over its layers: the sum in the same pass, beside a pass of its own."""
    matrix = native.make_csr(adjacency.indptr, adjacency.indices, adjacency.data, adjacency.shape)
    weight = 1.0 / (N_LAYERS + 1)
    group = Group("propagation", f"mean of {N_LAYERS} layers on the same graph", "entries", N_LAYERS * adjacency.nnz)

    def fused() -> np.ndarray:
        total, layer = dense * np.float32(weight), dense
        for number in range(N_LAYERS):
            out = native.empty(dense.shape) if number < N_LAYERS - 1 else None
            native.spmm(matrix, layer, out=out, add_to=total, weight=weight, n_threads=n_threads, check=False)
            layer = out
        return total

    def unfused(product: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        total, layer = dense.copy(), dense
        for _ in range(N_LAYERS):
            layer = product(layer)
            total += layer
        return total * np.float32(weight)

    contenders = {
        "reclm, added up in the same pass": fused,
        "reclm, added up by numpy": lambda: unfused(lambda x: native.spmm(matrix, x, n_threads=n_threads, check=False)),
        "scipy, added up by numpy": lambda: unfused(lambda x: adjacency @ x),
    }
    results = [function() for function in contenders.values()]
    if any(_error(result, results[-1]) > 1e-5 for result in results):
        raise native.KernelError("propagation: the kernel's result differs from scipy's: not timed")
    for name, timing in take_turns(contenders, repeats).items():
        group.add(name, timing)
    return group


def moved_bytes(adjacency: sp.csr_matrix, dim: int, dense_size: int, out_size: int) -> int:
    """Bytes that a product asks for: a row gathered for each entry, its index and weight, row starts, the result."""
    gathered = adjacency.nnz * dim * dense_size
    return gathered + adjacency.nnz * (4 + 4) + 8 * (adjacency.shape[0] + 1) + adjacency.shape[0] * dim * out_size


def _error(result: np.ndarray, exact: np.ndarray) -> float:
    """The largest deviation, as a share of the largest value."""
    if result.dtype == np.uint16:
        result = native.from_bf16(result)
    return float(np.abs(result - exact).max() / np.abs(exact).max())


def _loop(adjacency: sp.csr_matrix, dense: np.ndarray, out: np.ndarray, n_threads: int) -> Callable[[], np.ndarray]:
    import numba

    from .numba_loop import spmm_rows

    def run() -> np.ndarray:
        spmm_rows(adjacency.indptr, adjacency.indices, adjacency.data, dense, out)
        return out

    numba.set_num_threads(min(n_threads, numba.config.NUMBA_NUM_THREADS))
    return run


def _torch(adjacency: sp.csr_matrix, dense: np.ndarray, n_threads: int) -> dict[str, Callable[[], np.ndarray]]:
    if not machine.installed("torch"):
        return {}
    import warnings

    import torch

    torch.set_num_threads(n_threads)
    entries = adjacency.tocoo()
    places = torch.from_numpy(np.stack([entries.row, entries.col]).astype(np.int64))
    coo = torch.sparse_coo_tensor(
        places, torch.from_numpy(entries.data), adjacency.shape, check_invariants=False
    ).coalesce()
    arrays = [torch.from_numpy(array) for array in (adjacency.indptr, adjacency.indices, adjacency.data)]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        csr = torch.sparse_csr_tensor(*arrays, adjacency.shape, check_invariants=False)
    values = torch.from_numpy(dense)
    return {CSR: lambda: (csr @ values).numpy(), COO: lambda: torch.sparse.mm(coo, values).numpy()}
