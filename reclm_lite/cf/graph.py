"""The user-item graph that LightGCN propagates on (arXiv 2002.02126), through the sparse kernel.

The normalized adjacency is symmetric, [[S_u, R], [R^T, S_i]] with R = D_u^-1/2 A D_i^-1/2 and the diagonal
S = D^-1 of self-loops (or nothing). So the backward pass is the forward pass, and only R and R^T are stored.
"""

import dataclasses

import numpy as np
import scipy.sparse as sp

from ..kernels import native

# Vectors of users and of items, or their gradients.
Sides = tuple[np.ndarray, np.ndarray]


class Graph:
    """Normalized bipartite adjacency of interactions: CSR (n_users, n_items) of ones, float32.

    unknown_items: int64, items without an edge. degree_i: (n_items,), edges of each item, its self-loop included.
    """

    def __init__(self, interactions: sp.csr_matrix, *, self_loops: bool = False, n_threads: int | None = None):
        n_users, n_items = interactions.shape
        loops = 1.0 if self_loops else 0.0
        degree_u = np.diff(interactions.indptr) + loops
        degree_i = np.bincount(interactions.indices, minlength=n_items) + loops
        self.degree_i = degree_i
        self.unknown_items = np.flatnonzero(degree_i <= loops)
        scale_u = 1.0 / np.sqrt(np.maximum(degree_u, 1.0))
        scale_i = 1.0 / np.sqrt(np.maximum(degree_i, 1.0))
        rows = np.repeat(np.arange(n_users), np.diff(interactions.indptr))
        weights = (scale_u[rows] * scale_i[interactions.indices]).astype(np.float32)
        self.n_threads = n_threads
        self._buffers: dict[tuple[int, int], np.ndarray] = {}  # shared with graphs derived from this one
        self.user_items = native.make_csr(interactions.indptr, interactions.indices, weights, (n_users, n_items))
        # transposed[t] is the position in user_items of entry t of item_users.
        transposed = np.lexsort((rows, interactions.indices))
        indptr = np.concatenate([[0], np.cumsum(np.bincount(interactions.indices, minlength=n_items))])
        self.item_users = native.make_csr(
            indptr, rows[transposed].astype(np.int32), weights[transposed], (n_items, n_users)
        )
        self._place = np.empty(len(transposed), np.int64)
        self._place[transposed] = np.arange(len(transposed))
        self.loop_u = (loops * scale_u**2).astype(np.float32)[:, None] if self_loops else None
        self.loop_i = (loops * scale_i**2).astype(np.float32)[:, None] if self_loops else None

    def without(self, entries: np.ndarray) -> "Graph":
        """This graph without some edges, degrees unchanged. entries: positions in the CSR of interactions."""
        thinned = object.__new__(Graph)
        thinned.__dict__.update(self.__dict__)
        for name, places in (("user_items", entries), ("item_users", self._place[entries])):
            matrix = getattr(self, name)
            weights = matrix.data.copy()
            weights[places] = 0.0
            setattr(thinned, name, dataclasses.replace(matrix, data=weights))
        return thinned

    def reweighted(
        self, to_users: np.ndarray, to_items: np.ndarray, loops: tuple[np.ndarray, np.ndarray] | None
    ) -> "Graph":
        """This graph with every weight multiplied by a factor, one for each direction of an edge.

        The result is not symmetric; its adjoint is `reweighted` with `to_users` and `to_items` exchanged.

        to_users, to_items: float32 (nnz,), in the order of the CSR of interactions. loops: factors of the self-loops
        of users (n_users, 1) and items (n_items, 1), or None without self-loops.
        """
        other = object.__new__(Graph)
        other.__dict__.update(self.__dict__)
        by_item = np.empty_like(to_items)
        by_item[self._place] = to_items
        other.user_items = dataclasses.replace(self.user_items, data=self.user_items.data * to_users)
        other.item_users = dataclasses.replace(self.item_users, data=self.item_users.data * by_item)
        if loops is not None:
            other.loop_u, other.loop_i = self.loop_u * loops[0], self.loop_i * loops[1]
        return other

    def step(self, users: np.ndarray, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """One product with the normalized adjacency: float32 (n_users, dim) and (n_items, dim)."""
        next_users = native.spmm(self.user_items, items, check=False, n_threads=self.n_threads)
        next_items = native.spmm(self.item_users, users, check=False, n_threads=self.n_threads)
        if self.loop_u is not None:
            next_users += self.loop_u * users
            next_items += self.loop_i * items
        return next_users, next_items

    def propagate(
        self, users: np.ndarray, items: np.ndarray, weights: tuple[float, ...]
    ) -> tuple[np.ndarray, np.ndarray]:
        """sum_l weights[l] * adjacency^l [users; items]; its own adjoint.

        The pass that computes a layer adds it to the sum, and the last layer is never stored. Intermediate layers lie
        in buffers that the next call overwrites, so calls must not run concurrently.
        """
        total = np.multiply(users, np.float32(weights[0])), np.multiply(items, np.float32(weights[0]))
        layer = users, items
        for number, weight in enumerate(weights[1:], 1):
            following: Sides | None = None
            if number < len(weights) - 1:
                parity = number % 2
                following = self._buffer(0, parity, total[0].shape), self._buffer(1, parity, total[1].shape)
            for side in (0, 1):
                self._add_layer(side, layer, total[side], weight, None if following is None else following[side])
            if following is not None:
                layer = following
        return total

    def _add_layer(
        self, side: int, layer: tuple[np.ndarray, np.ndarray], total: np.ndarray, weight: float, out: np.ndarray | None
    ) -> None:
        """The next layer of one side (0: users, 1: items), added to `total`, and written to `out` unless it is None."""
        matrix, loop = ((self.user_items, self.loop_u), (self.item_users, self.loop_i))[side]
        if loop is None:
            native.spmm(
                matrix, layer[1 - side], out=out, add_to=total, weight=weight, check=False, n_threads=self.n_threads
            )
            return
        from ..kernels import rows

        out = native.spmm(matrix, layer[1 - side], out=out, check=False, n_threads=self.n_threads)
        rows.add_scaled_rows(out, loop, layer[side], total, weight, n_threads=self.n_threads)

    def _buffer(self, side: int, parity: int, shape: tuple[int, int]) -> np.ndarray:
        buffer = self._buffers.get((side, parity))
        if buffer is None or buffer.shape != shape:
            buffer = self._buffers[side, parity] = native.empty(shape)
        return buffer
