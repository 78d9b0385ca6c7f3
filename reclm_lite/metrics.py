"""The registry of ranking metrics (binary relevance) for validation, evaluation, tables and pages.

A new metric is a function below with `@metric`; everything that shows metrics finds it in `METRICS`.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from .kernels.hits import hit_places


@dataclass(frozen=True)
class Hits:
    """The positions of the relevant items in n ranked lists.

    rows: (n_pairs,), the list of each relevant item. places: (n_pairs,), its position in that list, from 0, or the
    length of the list if the item is not in it. n_relevant: (n,), at least 1. width: length of the lists.
    """

    rows: np.ndarray
    places: np.ndarray
    n_relevant: np.ndarray
    width: int

    @classmethod
    def of(cls, ids: np.ndarray, relevant: sp.csr_matrix) -> "Hits":
        """The hits of ids: int32 (n, width), best first, -1 after the end of a list.

        relevant: CSR (n, n_items), row i for row i of ids. Raises ValueError if a row of it is empty.
        """
        n_relevant = np.diff(relevant.indptr)
        if len(ids) != relevant.shape[0] or (n_relevant < 1).any():
            raise ValueError(f"expected a list and at least one relevant item for each of {relevant.shape[0]} users")
        places = hit_places(ids, relevant.indptr, relevant.indices)
        return cls(np.repeat(np.arange(len(ids)), n_relevant), places, n_relevant, ids.shape[1])


@dataclass(frozen=True)
class Metric:
    """A registered metric.

    label: its name in tables, before `@k`. short: the same for narrow columns. compute: (hits, k) -> float64 (n,).
    """

    name: str
    label: str
    short: str
    higher_is_better: bool
    compute: Callable[[Hits, int], np.ndarray]


METRICS: dict[str, Metric] = {}


def metric(label: str, short: str, *, higher_is_better: bool = True) -> Callable:
    """Registers a function (hits, k) -> float64 (n,), a value for each list, under the function's name."""

    def register(compute: Callable[[Hits, int], np.ndarray]) -> Callable[[Hits, int], np.ndarray]:
        name = compute.__name__
        METRICS[name] = Metric(name, label, short, higher_is_better, compute)
        return compute

    return register


@metric("Recall", "R")
def recall(hits: Hits, k: int) -> np.ndarray:
    """Hits in the first k positions / n_relevant."""
    return np.bincount(hits.rows[hits.places < k], minlength=len(hits.n_relevant)) / hits.n_relevant


@metric("NDCG", "N")
def ndcg(hits: Hits, k: int) -> np.ndarray:
    """DCG@k / ideal DCG@k, where DCG@k = sum over hits at position r < k of 1 / log2(r + 2).

    The ideal ranking has hits at its first min(k, n_relevant) positions.
    """
    discounts = 1.0 / np.log2(np.arange(hits.width) + 2.0)
    ideal = np.concatenate([[0.0], np.cumsum(discounts)])
    found = hits.places < k
    gain = np.bincount(hits.rows[found], weights=discounts[hits.places[found]], minlength=len(hits.n_relevant))
    return gain / ideal[np.minimum(hits.n_relevant, k)]


def metric_keys(ks: Sequence[int], names: Iterable[str] | None = None) -> list[str]:
    """`recall@20`, `recall@40`, `ndcg@20`, …: each metric at each k, in the order of `METRICS`."""
    return [f"{name}@{k}" for name in (METRICS if names is None else names) for k in ks]


def metric_label(key: str, *, short: bool = False) -> str:
    """`Recall@20` (short: `R@20`) of `recall@20`."""
    name, _, k = key.partition("@")
    return f"{METRICS[name].short if short else METRICS[name].label}@{k}"


def best_value(key: str, values: Iterable[float]) -> float:
    """The best of `values` of a metric, by its direction."""
    return max(values) if METRICS[key.partition("@")[0]].higher_is_better else min(values)


def ranking_metrics(
    ids: np.ndarray, relevant: sp.csr_matrix, ks: Sequence[int], names: Iterable[str] | None = None
) -> dict[str, np.ndarray]:
    """`{"recall@k": float64 (n,), "ndcg@k": float64 (n,), …}` for each k, of all metrics or of some.

    ids: int32 (n, >= max(ks)), best first, -1 after the end of a list. relevant: CSR (n, n_items), row i for row i of
    ids. Raises ValueError if lists are too short or a row has no relevant item.
    """
    if ids.shape[1] < max(ks):
        raise ValueError(f"expected lists of at least {max(ks)} ids, found {ids.shape[1]}")
    hits = Hits.of(ids, relevant)
    chosen = list(METRICS) if names is None else list(names)
    return {f"{name}@{k}": METRICS[name].compute(hits, k) for name in chosen for k in ks}
