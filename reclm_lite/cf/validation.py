"""Model selection's only yardstick: Recall@20 and NDCG@20 of the validation interactions.

Ranks the items of training, masks training and nothing else; users without a validation interaction do not count.
The metrics are those of evaluate/metrics.py, kept apart because a model must not import its judge: a test
compares the two.
"""

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from ..data.dataset import Split
from ..kernels import native
from .interface import FittedModel
from .vectors import Vectors

K = 20


@dataclass(frozen=True)
class Validator:
    """users: int64 (n,), who has validation interactions. relevant, seen: CSR (n, n_items) for these users."""

    users: np.ndarray
    relevant: sp.csr_matrix
    seen: native.CSR
    candidates: np.ndarray

    def __call__(self, vectors: Vectors) -> tuple[float, float]:
        """(recall@20, ndcg@20) of what these vectors rank; an empty bias means none."""
        ids, _ = native.topk(
            np.ascontiguousarray(vectors.users[self.users]), vectors.items, K,
            item_bias=vectors.bias if len(vectors.bias) else None, candidates=self.candidates, seen=self.seen,
        )  # fmt: skip
        return self._metrics(ids)

    def of(self, fitted: FittedModel) -> tuple[float, float]:
        """The same of a fitted model."""
        seen = sp.csr_matrix((self.seen.data, self.seen.indices, self.seen.indptr), shape=self.seen.shape)
        n_items = self.seen.shape[1]
        rows = np.zeros(fitted.n_users + 1, np.int64)
        rows[self.users + 1] = np.diff(seen.indptr)
        everyone = sp.csr_matrix((seen.data, seen.indices, np.cumsum(rows)), shape=(fitted.n_users, n_items))
        return self._metrics(fitted.topk(self.users, K, candidates=self.candidates, seen=everyone)[0])

    def _metrics(self, ids: np.ndarray) -> tuple[float, float]:
        n, n_items = self.relevant.shape
        n_relevant = np.diff(self.relevant.indptr)
        rows = np.arange(n, dtype=np.int64)
        keys = np.where(ids >= 0, rows[:, None] * n_items + ids, -1)
        hits = np.isin(keys, np.repeat(rows, n_relevant) * n_items + self.relevant.indices)
        discounts = 1.0 / np.log2(np.arange(K) + 2.0)
        ideal = np.cumsum(discounts)[np.minimum(n_relevant, K) - 1]
        return float((hits.sum(axis=1) / n_relevant).mean()), float(((hits * discounts).sum(axis=1) / ideal).mean())


def validator(split: Split) -> Validator | None:
    """None where no validation interaction is with an item of training."""
    candidates = np.unique(split.train.indices).astype(np.int32)
    inside = np.zeros(split.n_items, np.float32)
    inside[candidates] = 1.0
    relevant = (split.valid @ sp.diags(inside, format="csr")).tocsr()
    relevant.eliminate_zeros()
    relevant.sort_indices()
    users = np.flatnonzero(np.diff(relevant.indptr))
    if len(users) == 0:
        return None
    seen = split.train[users]
    return Validator(users, relevant[users], native.make_csr(seen.indptr, seen.indices, None, seen.shape), candidates)
