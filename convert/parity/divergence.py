"""How far a file's logits are from the reference's, position by position, with the reference kept on disk.

The reference's logits lie in one memory-mapped file of float32 (n_positions, n_vocab); a file's own are compared as
they come out of llama.cpp and never kept. All divergences are in nats, of the next-token distributions.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from reclm_lite.convert.parity.plan import Plan
from reclm_lite.errors import ModelError

_PIECE_ROWS = 32  # positions compared at a time
_CLUSTER = 64  # neighboring positions of one sequence that count as one draw for the standard error
TOP = 8  # most likely tokens kept of every position


@dataclass(frozen=True)
class Stored:
    """The reference's side. `logits`: float32 memmap (n_stored, n_vocab); top_ids, top_logits: (n_wanted, TOP) a
    sequence."""

    logits: np.memmap
    top_ids: list[np.ndarray]
    top_logits: list[np.ndarray]


def store(plan: Plan, pieces: Iterable[tuple[int, np.ndarray]], path: Path, n_vocab: int) -> Stored:
    """Writes the reference's logits of the plan's positions to `path`; raises ModelError for other widths or NaN."""
    n = len(plan.sequences)
    top_ids: list[np.ndarray] = [np.empty(0, np.int64)] * n
    top_logits: list[np.ndarray] = [np.empty(0, np.float32)] * n
    try:
        with path.open("wb") as stream:
            for expected, (i, rows) in enumerate(pieces):
                if i != expected or rows.shape != (len(plan.wanted[i]), n_vocab):
                    raise ModelError(f"expected logits of {n_vocab} tokens from the reference, found {rows.shape[1]}")
                if not np.isfinite(rows).all():
                    raise ModelError(
                        "expected finite logits from the reference, found NaN or infinity; check its weights"
                    )
                top_ids[i], top_logits[i] = _top(rows)
                stream.write(rows[plan.stored[i]].astype(np.float32).tobytes())
    except OSError as error:
        raise ModelError(
            f"expected room for {4 * plan.n_stored * n_vocab / 1e6:.0f} MB of reference logits at {path}, found: "
            f"{error.strerror or error}; free some space"
        ) from error
    return Stored(np.memmap(path, np.float32, "r", shape=(plan.n_stored, n_vocab)), top_ids, top_logits)


def _top(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ids and logits of the TOP most likely tokens of each row, best first, the lower id first where equal."""
    k = min(TOP, rows.shape[1])
    best = np.argpartition(-rows, k - 1, axis=1)[:, :k]
    values = np.take_along_axis(rows, best, axis=1)
    order = np.lexsort((best, -values), axis=1)
    return np.take_along_axis(best, order, 1), np.take_along_axis(values, order, 1)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Of float64 rows (n, n_vocab), in nats."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def kl_of(log_p: np.ndarray, log_q: np.ndarray) -> np.ndarray:
    """float64 (n,): KL(p | q) of each row, in nats; at least 0, which rounding may miss."""
    return np.maximum(np.einsum("ij,ij->i", np.exp(log_p), log_p - log_q), 0.0)


@dataclass
class Divergence:
    """What `measure` found over all positions; `spread` is the reference's standard deviation of logits, their scale.

    relative_error: root mean square of the logit error over that of the reference, both after taking away each
    position's mean, which softmax does not see. Cosines are of the same. argmax[i]: the file's own most likely tokens;
    errors[i]: root mean square of the logit error in each wanted position, NaN where the reference's are not stored.
    """

    n_positions: int
    n_compared: int
    max_abs_difference: float
    relative_error: float
    min_cosine: float
    mean_cosine: float
    mean_kl: float
    mean_kl_error: float
    kl_999: float
    max_kl: float
    top1_agreement: float
    spread: float
    argmax: list[np.ndarray]
    errors: list[np.ndarray]

    def as_dict(self) -> dict[str, Any]:
        names = (
            "n_positions",
            "n_compared",
            "max_abs_difference",
            "relative_error",
            "min_cosine",
            "mean_cosine",
            "mean_kl",
            "mean_kl_error",
            "kl_999",
            "max_kl",
            "top1_agreement",
        )
        return {name: getattr(self, name) for name in names}


def measure(plan: Plan, stored: Stored, pieces: Iterable[tuple[int, np.ndarray]]) -> Divergence:
    """Compares logits, as `sequence_logits` yields them for the plan, with the reference's."""
    starts = np.cumsum([0, *(int(mask.sum()) for mask in plan.stored)])
    per_position: dict[str, list[np.ndarray]] = {name: [] for name in ("cosine", "kl", "error", "power", "largest")}
    clusters: list[tuple[float, int]] = []
    argmax: list[np.ndarray] = [np.empty(0, np.int64)] * len(plan.sequences)
    errors = [np.full(len(positions), np.nan) for positions in plan.wanted]
    n_wanted = n_agree = 0
    for i, rows in pieces:
        argmax[i] = rows.argmax(axis=1)
        n_wanted += len(rows)
        n_agree += int((argmax[i] == stored.top_ids[i][:, 0]).sum())
        chosen = np.flatnonzero(plan.stored[i])
        kls = []
        for at in range(0, len(chosen), _PIECE_ROWS):
            part = chosen[at : at + _PIECE_ROWS]
            first = int(starts[i]) + at
            found, expected = rows[part].astype(np.float64), stored.logits[first : first + len(part)].astype(np.float64)
            for name, values in _compare(found, expected).items():
                per_position[name].append(values)
            kls.append(per_position["kl"][-1])
            errors[i][part] = np.sqrt(per_position["error"][-1])
        if kls:
            kl = np.concatenate(kls)
            clusters += [
                (float(kl[j : j + _CLUSTER].sum()), len(kl[j : j + _CLUSTER])) for j in range(0, len(kl), _CLUSTER)
            ]
    joined = {name: np.concatenate(values) for name, values in per_position.items()}
    kl = joined["kl"]
    mean_kl = float(kl.mean())
    scatter = sum((total - mean_kl * n) ** 2 for total, n in clusters)
    power = float(joined["power"].mean())
    return Divergence(
        n_positions=n_wanted,
        n_compared=len(kl),
        max_abs_difference=float(joined["largest"].max()),
        relative_error=math.sqrt(float(joined["error"].mean()) / power) if power > 0 else math.inf,
        min_cosine=float(joined["cosine"].min()),
        mean_cosine=float(joined["cosine"].mean()),
        mean_kl=mean_kl,
        mean_kl_error=math.sqrt(scatter) / len(kl),
        kl_999=float(np.quantile(kl, 0.999)),
        max_kl=float(kl.max()),
        top1_agreement=n_agree / n_wanted,
        spread=math.sqrt(power),
        argmax=argmax,
        errors=errors,
    )


def _compare(found: np.ndarray, expected: np.ndarray) -> dict[str, np.ndarray]:
    """Per-position figures of float64 logits (n, n_vocab)."""
    log_p, log_q = log_softmax(expected), log_softmax(found)
    a, b = expected - expected.mean(axis=1, keepdims=True), found - found.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return {
        "kl": kl_of(log_p, log_q),
        "cosine": np.einsum("ij,ij->i", a, b) / np.where(norms > 0, norms, 1.0),
        "error": np.square(b - a).mean(axis=1),
        "power": np.square(a).mean(axis=1),
        "largest": np.abs(found - expected).max(axis=1),
    }


def kl_of_strangers(stored: Stored, n_pairs: int = 128) -> float:
    """The mean KL divergence (nats) between the reference's distributions in positions far from each other."""
    n = len(stored.logits)
    chosen = np.linspace(0, n - 1, min(n, n_pairs), dtype=np.int64)
    kls = []
    for at in range(0, len(chosen), _PIECE_ROWS):
        part = chosen[at : at + _PIECE_ROWS]
        a, b = stored.logits[part], stored.logits[(part + n // 2) % n]
        kls.append(_compare(b.astype(np.float64), a.astype(np.float64))["kl"])
    return float(np.concatenate(kls).mean())
