"""Recall@20 and NDCG@20 on the validation interactions; every selection uses these.

Ranks the items of training and masks training interactions only; users without validation interactions are skipped.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.sparse as sp

from ..data.dataset import Split
from ..kernels import native
from ..metrics import ranking_metrics
from .fitted import FittedModel
from .ranking import take_rows
from .scorers import rank_vectors
from .vectors import Vectors

K = 20


@dataclass(frozen=True)
class Validator:
    """users: int64 (n,), those with validation interactions. relevant, seen: CSR (n, n_items) for these users."""

    users: np.ndarray
    relevant: sp.csr_matrix
    seen: sp.csr_matrix
    candidates: np.ndarray

    def __call__(self, vectors: Vectors) -> tuple[float, float]:
        """(recall@20, ndcg@20) of ranking by these vectors; an empty bias means none."""
        ids, _ = rank_vectors(vectors, self.users, K, candidates=self.candidates, seen=self._mask)
        return self._metrics(ids)

    def of(self, fitted: FittedModel, *, n_threads: int | None = None) -> tuple[float, float]:
        """(recall@20, ndcg@20) of a fitted model."""
        n_users, n_items = fitted.n_users, self.seen.shape[1]
        rows = np.zeros(n_users + 1, np.int64)
        rows[self.users + 1] = np.diff(self.seen.indptr)
        everyone = sp.csr_matrix((self.seen.data, self.seen.indices, np.cumsum(rows)), shape=(n_users, n_items))
        return self._metrics(
            fitted.topk(self.users, K, candidates=self.candidates, seen=everyone, n_threads=n_threads)[0]
        )

    def sample(self, n: int, seed: int) -> "Validator":
        """A validator of `n` users sampled without replacement; `self` if there are no more than `n`."""
        if n >= len(self.users):
            return self
        rows = np.sort(np.random.default_rng([seed, 3]).choice(len(self.users), n, replace=False))
        return Validator(self.users[rows], take_rows(self.relevant, rows), take_rows(self.seen, rows), self.candidates)

    @cached_property
    def _mask(self) -> native.CSR:
        return native.make_csr(self.seen.indptr, self.seen.indices, None, self.seen.shape)

    def _metrics(self, ids: np.ndarray) -> tuple[float, float]:
        values = ranking_metrics(ids, self.relevant, [K], ("recall", "ndcg"))
        return float(values[f"recall@{K}"].mean()), float(values[f"ndcg@{K}"].mean())


def validator(split: Split) -> Validator | None:
    """The validator of a split; None if no validation interaction is with an item of training."""
    candidates = np.unique(split.train.indices).astype(np.int32)
    inside = np.zeros(split.n_items, np.float32)
    inside[candidates] = 1.0
    relevant = (split.valid @ sp.diags(inside, format="csr")).tocsr()
    relevant.eliminate_zeros()
    relevant.sort_indices()
    users = np.flatnonzero(np.diff(relevant.indptr))
    if len(users) == 0:
        return None
    return Validator(users, take_rows(relevant, users), take_rows(split.train, users), candidates)
