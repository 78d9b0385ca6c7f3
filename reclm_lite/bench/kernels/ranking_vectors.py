"""Vectors to rank with: Gaussian, or factorized or trained on a graph, whose norms differ."""

import dataclasses

import numpy as np
import scipy.sparse as sp

from ...cf.inputs import Inputs
from ...cf.models import module_of
from ...cf.phases import fit_arrays
from ...data.dataset import Split
from ..harness import quiet
from ..random_graphs import normalized_adjacency


def gaussian(n_rows: int, dim: int, seed: int) -> np.ndarray:
    """float32 (n_rows, dim), standard normal."""
    return np.random.default_rng([seed, 0xB3]).standard_normal((n_rows, dim), dtype=np.float32)


def factorized(matrix: sp.csr_matrix, dim: int, seed: int = 0, n_iterations: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """(users, items) float32: a truncated SVD of the normalized interactions, its values shared by both sides,
    items scaled by the square root of their degree as in GF-CF. Randomised subspace iteration (Halko et al. 2011).
    """
    n_users, n_items = matrix.shape
    weighted = normalized_adjacency(matrix)[:n_users, n_users:].tocsr()
    rng = np.random.default_rng([seed, 0xB4])
    basis = rng.standard_normal((n_items, min(dim + 16, n_items)), dtype=np.float32)
    for _ in range(n_iterations):
        basis = np.linalg.qr(weighted.T @ (weighted @ basis))[0]
    left, values, right = np.linalg.svd(weighted @ basis, full_matrices=False)
    kept = min(dim, len(values))
    degree = np.bincount(matrix.indices, minlength=n_items).astype(np.float32)
    users = left[:, :kept] * np.sqrt(values[:kept])
    items = (basis @ right[:kept].T) * np.sqrt(values[:kept]) * np.sqrt(degree)[:, None]
    return np.ascontiguousarray(users, np.float32), np.ascontiguousarray(items, np.float32)


def trained(
    matrix: sp.csr_matrix, dim: int, n_threads: int, seed: int = 0, epochs: int = 3
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(users, items, bias) float32 of BiasMF's default preset after a few epochs."""
    empty = sp.csr_matrix(matrix.shape, dtype=np.float32)
    every = np.arange(matrix.shape[1], dtype=np.int32)
    inputs = Inputs(Split(matrix, empty, empty, empty, every, np.zeros(0, np.int32)))
    settings = dataclasses.replace(module_of("biasmf").PRESETS["default"], dim=dim)
    with quiet(fit_arrays):
        fitted = fit_arrays(
            inputs, "biasmf", settings=settings, epochs=epochs, refit=False, n_threads=n_threads, seed=seed
        )
    bias = fitted.vectors.bias if len(fitted.vectors.bias) else np.zeros(matrix.shape[1], np.float32)
    return fitted.user_vectors, fitted.item_vectors, bias
