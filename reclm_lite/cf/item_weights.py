"""Item-item weights of models that rank from a history: score = x @ W, x: the row of a user's items.

    dense     W float32 (n_items, n_items)                               ease
    sparse    W CSR (n_items, n_items)                                   itemknn
    filter    W = R^T R + alpha D^-1/2 V V^T D^1/2                       gfcf: R normalized CSR (n_users, n_items),
              written out only for small catalogues                      V float32 (n_items, rank)

Left out: how W is found (models/).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Protocol

import numpy as np
import scipy.sparse as sp

from ..artefacts import checked
from ..data.dataset import csr_of
from ..errors import InputError
from ..kernels import native

# A filter over at most this many items is stored as a dense matrix: 64 MB.
WRITTEN_OUT_ITEMS = 4096


class ItemWeights(Protocol):
    """score_rows: float32 (n, n_items) for CSR rows (n, n_items).

    Deterministic and single-threaded: `ranking.rank_rows` calls it from several threads, a block each.
    """

    kind: ClassVar[str]
    block: ClassVar[int]

    @property
    def n_items(self) -> int: ...
    def score_rows(self, rows: sp.csr_matrix) -> np.ndarray: ...
    def arrays(self) -> dict[str, np.ndarray]: ...


@dataclass(frozen=True)
class DenseWeights:
    """weights: float32 (n_items, n_items), C-contiguous."""

    weights: np.ndarray
    kind: ClassVar[str] = "dense"
    block: ClassVar[int] = 32

    @property
    def n_items(self) -> int:
        return len(self.weights)

    def score_rows(self, rows: sp.csr_matrix) -> np.ndarray:
        return native.spmm(_kernel_csr(rows), self.weights, n_threads=1, check=False)

    def arrays(self) -> dict[str, np.ndarray]:
        return {"weights": self.weights}

    @classmethod
    def unpack(cls, arrays: Mapping[str, np.ndarray], n_items: int) -> "DenseWeights":
        return cls(checked(arrays, "weights", np.float32, n_items, n_items))


@dataclass(frozen=True)
class SparseWeights:
    """weights: CSR float32 (n_items, n_items), sorted; W[j, i] is what item j in the history adds to item i's score."""

    weights: sp.csr_matrix
    kind: ClassVar[str] = "sparse"
    block: ClassVar[int] = 64

    @property
    def n_items(self) -> int:
        return self.weights.shape[0]

    def score_rows(self, rows: sp.csr_matrix) -> np.ndarray:
        return np.ascontiguousarray((rows @ self.weights).toarray(), dtype=np.float32)

    def arrays(self) -> dict[str, np.ndarray]:
        w = self.weights
        return {"indptr": w.indptr.astype(np.int64), "indices": w.indices.astype(np.int32), "data": w.data}

    @classmethod
    def unpack(cls, arrays: Mapping[str, np.ndarray], n_items: int) -> "SparseWeights":
        return cls(_stored_csr(arrays, (n_items, n_items)))


@dataclass(frozen=True)
class FilterWeights:
    """GF-CF's filter, kept in factored form.

    graph: normalized interactions, CSR float32 (n_users, n_items). factors: float32 (n_items, rank), orthonormal
    columns. root_degree: float32 (n_items,), sqrt of each item's number of users (at least 1). alpha: weight of the
    low-pass part.
    """

    graph: sp.csr_matrix
    factors: np.ndarray
    root_degree: np.ndarray
    alpha: float
    kind: ClassVar[str] = "filter"
    # As many columns as the sparse kernel holds in registers.
    block: ClassVar[int] = 64

    @property
    def n_items(self) -> int:
        return self.graph.shape[1]

    @cached_property
    def _forward(self) -> native.CSR:
        return _kernel_csr(self.graph)

    @cached_property
    def _backward(self) -> native.CSR:
        return _kernel_csr(self.graph.T.tocsr())

    @cached_property
    def _spread(self) -> np.ndarray:
        """float32 (rank, n_items): alpha * V^T D^1/2."""
        return np.ascontiguousarray((np.float32(self.alpha) * self.factors * self.root_degree[:, None]).T)

    @cached_property
    def _written_out(self) -> np.ndarray | None:
        """W float32 (n_items, n_items) for a small catalogue, where it is many times faster; else None."""
        if self.n_items > WRITTEN_OUT_ITEMS:
            return None
        weights = (self.graph.T.tocsr() @ self.graph).toarray()
        if self.alpha:
            weights += (self.factors / self.root_degree[:, None]) @ self._spread
        return weights

    def score_rows(self, rows: sp.csr_matrix) -> np.ndarray:
        if self._written_out is not None:
            return native.spmm(_kernel_csr(rows), self._written_out, n_threads=1, check=False)
        columns = rows.T.toarray(order="C").astype(np.float32, copy=False)
        smooth = native.spmm(self._forward, columns, n_threads=1, check=False)
        smooth = native.spmm(self._backward, smooth, n_threads=1, check=False)
        scores = np.ascontiguousarray(smooth.T)
        if self.alpha:
            scaled = sp.csr_matrix(
                (rows.data / self.root_degree[rows.indices], rows.indices, rows.indptr), shape=rows.shape
            )
            scores += native.spmm(_kernel_csr(scaled), self.factors, n_threads=1, check=False) @ self._spread
        return scores

    def arrays(self) -> dict[str, np.ndarray]:
        g = self.graph
        return {
            "indptr": g.indptr.astype(np.int64),
            "indices": g.indices.astype(np.int32),
            "data": g.data,
            "factors": self.factors,
            "root_degree": self.root_degree,
            "alpha": np.array([self.alpha], np.float32),
        }

    @classmethod
    def unpack(cls, arrays: Mapping[str, np.ndarray], n_items: int) -> "FilterWeights":
        graph = _stored_csr(arrays, (len(checked(arrays, "indptr", np.int64, None)) - 1, n_items))
        root_degree = checked(arrays, "root_degree", np.float32, n_items)
        if (root_degree < 1).any():
            raise ValueError("root_degree: expected numbers of at least 1")
        return cls(
            graph,
            checked(arrays, "factors", np.float32, n_items, None),
            root_degree,
            float(checked(arrays, "alpha", np.float32, 1)[0]),
        )


KINDS = {weights.kind: weights for weights in (DenseWeights, SparseWeights, FilterWeights)}


def unpack(kind: str, arrays: Mapping[str, np.ndarray], n_items: int) -> ItemWeights:
    """The weights of a stored model. Raises ValueError if the arrays are inconsistent; kernels do not check again."""
    if kind not in KINDS:
        raise InputError(
            f"scorer: expected one of {', '.join(KINDS)}, found {kind!r}; fit the model again with this version"
        )
    return KINDS[kind].unpack(arrays, n_items)


def _stored_csr(arrays: Mapping[str, np.ndarray], shape: tuple[int, int]) -> sp.csr_matrix:
    """CSR of `shape` from a file's arrays: indptr int64, indices int32, data float32."""
    indptr = checked(arrays, "indptr", np.int64, shape[0] + 1)
    indices = checked(arrays, "indices", np.int32, None)
    data = checked(arrays, "data", np.float32, len(indices))
    return csr_of(indptr, indices, shape, data)


def _kernel_csr(matrix: sp.csr_matrix) -> native.CSR:
    return native.make_csr(matrix.indptr, matrix.indices, matrix.data.astype(np.float32, copy=False), matrix.shape)
