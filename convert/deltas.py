"""The arithmetic of merging: one tensor of the base and what an adapter makes of it, by blocks of rows.

    LoRA        W + scale · B A                                        W (out, in), A (rank, in), B (out, rank)
    embedding   W + scale · (B A)ᵀ                                     W (vocab, dim), A (rank, vocab), B (dim, rank)
    DoRA        m / ‖W + scale · B A‖ · (W + scale · B A)               norms of rows; of an embedding, of columns
    bias        b + scale · b_B
    tokens      the trained rows in place of W's

All in float32, as peft's `merge_and_unload` of a float32 model computes it: the two agree up to the order in which a
product of matrices is summed. Only A and m are held whole; W and B are read by blocks.

Sources: Hu et al., LoRA (arXiv 2106.09685); Liu et al., DoRA (arXiv 2402.09353); peft 0.21.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from reclm_lite.convert.adapter import Part, finite
from reclm_lite.convert.stored import half_to_single, read_blocks, read_rows, row_ranges
from reclm_lite.errors import ModelError

# A block of W is held as it is stored and beside the float32 sum; two more are left for what reads and encodes it.
_BLOCKS_HELD = 4
_CHUNK_ITEMS = 1 << 17  # so that a product, once made, is still in the cache when it is scaled and added


@dataclass(frozen=True)
class Factors:
    """Low-rank factors of one matrix; `magnitude` of DoRA has one value a row, or a column of an embedding."""

    a: Part
    b: Part
    scale: float
    of_embedding: bool
    magnitude: Part | None = None


@dataclass(frozen=True)
class Recipe:
    """How one merged tensor is made: `weight`, as stored, and at most one change to it."""

    weight: Part
    factors: Factors | None = None
    added: tuple[Part, float] | None = None  # a vector and its scale
    rows: tuple[np.ndarray, Part] | None = None  # int64 (n,) and the rows (n, dim)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the merged tensor, row-major."""
        return self.weight.stored.shape

    @property
    def changes(self) -> bool:
        """Whether the tensor is computed rather than copied."""
        return self.factors is not None or self.added is not None or self.rows is not None

    def parts(self) -> list[Part]:
        """Every tensor that takes part, the base's first."""
        found: list[Part | None] = [self.weight]
        if self.factors:
            found += [self.factors.a, self.factors.b, self.factors.magnitude]
        if self.added:
            found.append(self.added[0])
        if self.rows:
            found.append(self.rows[1])
        return [part for part in found if part is not None]

    def blocks(self, max_bytes: int) -> Iterator[np.ndarray]:
        """The merged tensor by blocks of rows: float32, or as `read_blocks` yields it where nothing changes.

        Raises ModelError for a NaN in the adapter, naming the tensor, and what `read_blocks` raises.
        """
        if not self.changes:
            yield from read_blocks(self.weight.name, self.weight.stored, max_bytes)
            return
        if self.factors:
            yield from self._with_factors(self.factors, max_bytes // _BLOCKS_HELD)
            return
        vector = self.added[0].read() * np.float32(self.added[1]) if self.added else None
        indices, rows = (self.rows[0], self.rows[1].read()) if self.rows else (None, None)
        for first, count in row_ranges(self.weight.name, self.weight.stored, max_bytes // _BLOCKS_HELD):
            block = read_rows(self.weight.name, self.weight.stored, first, count).astype(np.float32, copy=False)
            if vector is not None:
                block += vector[first : first + count]
            if indices is not None:
                here = np.flatnonzero((indices >= first) & (indices < first + count))
                block[indices[here] - first] = rows[here]
            yield block

    def _with_factors(self, factors: Factors, max_bytes: int) -> Iterator[np.ndarray]:
        a = factors.a.read()
        if factors.magnitude is None:
            yield from self._sums(factors, a, max_bytes)
            return
        magnitude = factors.magnitude.read().reshape(-1)
        if factors.of_embedding:
            squares = np.zeros(len(magnitude), np.float64)
            for block in self._sums(factors, a, max_bytes):
                squares += np.einsum("ij,ij->j", block, block, dtype=np.float64)
            ratio = self._ratio(magnitude, squares)
            for block in self._sums(factors, a, max_bytes):
                block *= ratio
                yield block
            return
        first = 0
        for block in self._sums(factors, a, max_bytes):
            squares = np.einsum("ij,ij->i", block, block, dtype=np.float64)
            block *= self._ratio(magnitude[first : first + len(block)], squares)[:, None]
            first += len(block)
            yield block

    def _ratio(self, magnitude: np.ndarray, squares: np.ndarray) -> np.ndarray:
        """DoRA's factor, float32: a magnitude over the norm whose square is given in float64."""
        if not squares.all():
            raise ModelError(
                f"expected rows that are not all zero in {self.weight} with its LoRA, found some: "
                "DoRA divides by their norm; the adapter is of another base"
            )
        return magnitude / np.sqrt(squares).astype(np.float32)

    def _sums(self, factors: Factors, a: np.ndarray, max_bytes: int) -> Iterator[np.ndarray]:
        """W plus its scaled low-rank product, float32, by blocks of rows; `a` is factors.a whole."""
        weight, scale = self.weight, np.float32(factors.scale)
        whole_b = factors.b.read() if factors.of_embedding else None
        n_columns = weight.stored.shape[1]
        step = max(1, _CHUNK_ITEMS // n_columns)
        scratch = np.empty((step, n_columns), np.float32)
        for first, count in row_ranges(weight.name, weight.stored, max_bytes):
            stored = read_rows(weight.name, weight.stored, first, count)
            total = np.empty(stored.shape, np.float32)
            if whole_b is None:
                left = finite(read_rows(factors.b.name, factors.b.stored, first, count), factors.b)
                left, right = left.astype(np.float32, copy=False), a
            else:
                left, right = np.ascontiguousarray(a[:, first : first + count].T), whole_b.T
            # Threads of BLAS wait for each other at every small product. What overflows is found by who reads it.
            with _threadpools().limit(limits=1, user_api="blas"), np.errstate(over="ignore", invalid="ignore"):
                for row in range(0, count, step):
                    rows = slice(row, min(row + step, count))
                    chunk, widened = total[rows], scratch[: min(step, count - row)]
                    np.matmul(left[rows], right, out=chunk)
                    chunk *= scale
                    if stored.dtype == np.float16:
                        half_to_single(stored[rows], widened)
                        chunk += widened
                    else:
                        chunk += stored[rows]
            yield total


@functools.cache
def _threadpools() -> Any:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()
