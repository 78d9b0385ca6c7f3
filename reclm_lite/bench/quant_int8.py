"""Item vectors in int8 beside float32 in `topk`: the same lists, or not, of a fitted backbone; and the time and bytes
of each.

`topk` finds candidates with int8 and ranks them again in float32, so lists should be equal: this shows whether they are
on the user's own model, and whether int8 is worth it for a catalogue of this size.
"""

import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..cf.fitted import FittedModel
from ..cf.ranking import take_rows
from ..cf.scorers import VectorScorer
from ..data.dataset import Split
from ..evaluate.protocol import keep_columns
from ..kernels import native
from ..kernels.topk import PRECISIONS
from ..metrics import ranking_metrics
from .quant_intervals import paired

_TURNS = 3


def measure(fitted: FittedModel, split: Split, k: int, n_threads: int) -> dict[str, Any] | None:
    """Of all users with something held out; None for a model that `topk` cannot rank in int8, and where nobody is.

    {"n_users", "n_items", "dim", "equal_places", "bytes": {…}, "seconds": {…}, "recall": {precision: […]}}; `bytes` are
    of the
    item vectors: of int8, a byte a column and a float32 scale a row.
    """
    vectors, candidates = fitted.vectors, np.ascontiguousarray(split.full_candidates, np.int32)
    relevant = keep_columns(split.test, candidates)
    users = np.flatnonzero(np.diff(relevant.indptr)).astype(np.int32)
    if vectors.relu_dim or not fitted.is_personal or not isinstance(fitted.scorer, VectorScorer) or not len(users):
        return None
    rows, seen = take_rows(relevant, users), take_rows(split.known(), users)
    mask = native.make_csr(seen.indptr, seen.indices, None, seen.shape)
    of_users, bias = np.ascontiguousarray(vectors.users[users]), vectors.bias if len(vectors.bias) else None
    ids: dict[str, np.ndarray] = {}
    seconds: dict[str, list[float]] = {precision: [] for precision in PRECISIONS}
    for _ in range(_TURNS):
        for precision in PRECISIONS:
            started = time.perf_counter()
            ids[precision], _ = native.topk(
                of_users,
                vectors.items,
                k,
                item_bias=bias,
                candidates=candidates,
                seen=mask,
                n_threads=n_threads,
                precision=precision,
            )
            seconds[precision].append(time.perf_counter() - started)
    n_items, dim = vectors.items.shape
    return {
        "n_users": len(users),
        "n_items": len(candidates),
        "dim": dim,
        "equal_places": float((ids["int8"] == ids["float32"]).mean()),
        "bytes": {"float32": 4 * n_items * dim, "int8": n_items * (dim + 4)},
        "seconds": {precision: statistics.median(spent) for precision, spent in seconds.items()},
        "recall": {
            precision: ranking_metrics(found, rows, (k,))[f"recall@{k}"].round(8).tolist()
            for precision, found in ids.items()
        },
    }


def summary(by_seed: Sequence[dict[str, Any] | None], k: int) -> dict[str, Any] | None:
    """All seeds together, with the paired difference of recall; None where `topk` cannot rank the model in int8."""
    found = [one for one in by_seed if one is not None]
    if not found:
        return None
    ours, theirs = (
        np.array([one["recall"][precision] for one in found], np.float64) for precision in ("int8", "float32")
    )
    pair = paired(ours, theirs)
    first = found[0]
    return {
        **{name: first[name] for name in ("n_users", "n_items", "dim", "bytes")},
        "equal_places": statistics.fmean(one["equal_places"] for one in found),
        "seconds": {
            precision: statistics.median(one["seconds"][precision] for one in found) for precision in PRECISIONS
        },
        f"recall@{k}": {
            "float32": pair.reference,
            "int8": pair.value,
            "difference": pair.difference,
            "interval": pair.as_dict()["interval"],
        },
    }


def sentence(told: dict[str, Any] | None, k: int) -> str:
    """The summary in words."""
    if told is None:
        return "Item vectors in int8: topk ranks this backbone in float32 alone."
    recall, seconds, n_bytes = told[f"recall@{k}"], told["seconds"], told["bytes"]
    interval = (
        f", 95 % interval {recall['interval'][0]:+.4f} to {recall['interval'][1]:+.4f}" if recall["interval"] else ""
    )
    return (
        f"Item vectors in int8 beside float32 in topk: {100 * told['equal_places']:.3f} % of places equal, "
        f"Recall@{k} {recall['int8']:.4f} against "
        f"{recall['float32']:.4f} ({recall['difference']:+.4f}{interval}); {told['n_users']:,} users, "
        f"{told['n_items']:,} items of {told['dim']} columns: "
        f"{1e3 * seconds['int8']:.1f} against {1e3 * seconds['float32']:.1f} ms, {n_bytes['int8'] / 1e6:.2f} "
        f"against {n_bytes['float32'] / 1e6:.2f} MB."
    )
