"""The three ways of ranking items for a user, behind one interface (`interface.Scorer`).

    VectorScorer    dot products of vectors (+ the ReLU part, + an item bias): trained models, popularity
    HistoryScorer   the user's history times item-item weights (item_weights.py): ease, itemknn, gfcf
    HashScorer      a hash of (seed, user, item): random

`pack` turns a scorer into arrays and numbers of a model's file, `unpack` reads them back.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import scipy.sparse as sp

from ..artefacts import checked
from ..data.dataset import csr_of
from ..kernels import native
from . import item_weights
from .interface import Scorer
from .item_weights import ItemWeights
from .ranking import rank_rows, renumber_columns, take_rows
from .vectors import Vectors

Ranked = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class VectorScorer:
    """score(user, item) = users[user] . items[item] (+ the ReLU part, see vectors.py) + bias[item]."""

    vectors: Vectors
    can_be_silent: ClassVar[bool] = False

    @property
    def is_personal(self) -> bool:
        """False for popularity, which has a bias and vectors with 0 columns."""
        return self.vectors.items.shape[1] > 0

    @property
    def n_users(self) -> int:
        return len(self.vectors.users)

    @property
    def n_items(self) -> int:
        return len(self.vectors.items)

    def scores(self, users: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        return score_vectors(self.vectors, users, candidates)

    def topk(
        self,
        users: np.ndarray,
        k: int,
        *,
        candidates: np.ndarray | None = None,
        seen: sp.csr_matrix | None = None,
        n_threads: int | None = None,
    ) -> Ranked:
        return rank_vectors(self.vectors, users, k, candidates=candidates, seen=seen, n_threads=n_threads)

    def for_histories(self, histories: sp.csr_matrix) -> "VectorScorer | None":
        if self.is_personal:
            return None
        return VectorScorer(self.vectors._replace(users=np.zeros((histories.shape[0], 0), np.float32)))


@dataclass(frozen=True)
class HistoryScorer:
    """score(user, item) = (histories @ weights)[user, item]. histories: CSR (n_users, n_items) of ones."""

    weights: ItemWeights
    histories: sp.csr_matrix
    is_personal: ClassVar[bool] = True
    can_be_silent: ClassVar[bool] = True

    @property
    def n_users(self) -> int:
        return self.histories.shape[0]

    @property
    def n_items(self) -> int:
        return self.weights.n_items

    def scores(self, users: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        return self.weights.score_rows(take_rows(self.histories, users))[:, candidates]

    def topk(
        self,
        users: np.ndarray,
        k: int,
        *,
        candidates: np.ndarray | None = None,
        seen: sp.csr_matrix | None = None,
        n_threads: int | None = None,
    ) -> Ranked:
        rows = take_rows(self.histories, users)
        return rank_rows(
            lambda start, stop: self.weights.score_rows(rows[start:stop]),
            rows.shape[0],
            self.n_items,
            k,
            candidates=candidates,
            seen=seen,
            block=self.weights.block,
            n_threads=n_threads,
        )

    def for_histories(self, histories: sp.csr_matrix) -> "HistoryScorer":
        return HistoryScorer(self.weights, histories)


@dataclass(frozen=True)
class HashScorer:
    """score(user, item) = hash of (seed, user, item): see `hash_scores`."""

    seed: int
    n_users: int
    n_items: int
    is_personal: ClassVar[bool] = False
    can_be_silent: ClassVar[bool] = False

    def scores(self, users: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        return hash_scores(self.seed, users, candidates)

    def topk(
        self,
        users: np.ndarray,
        k: int,
        *,
        candidates: np.ndarray | None = None,
        seen: sp.csr_matrix | None = None,
        n_threads: int | None = None,
    ) -> Ranked:
        """See `Scorer.topk`. Scores the candidates only, since the `unseen` setting has few."""
        candidates = np.arange(self.n_items, dtype=np.int32) if candidates is None else candidates
        if seen is not None:
            seen = renumber_columns(seen, candidates)
        ids, best = rank_rows(
            lambda start, stop: hash_scores(self.seed, users[start:stop], candidates),
            len(users),
            len(candidates),
            k,
            seen=seen,
            block=16,
            n_threads=n_threads,
        )
        return np.where(ids >= 0, candidates[ids] if len(candidates) else ids, -1).astype(np.int32), best

    def for_histories(self, histories: sp.csr_matrix) -> "HashScorer":
        return HashScorer(self.seed, histories.shape[0], self.n_items)


def pack(scorer: Scorer) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """(arrays, numbers) of a model's file. Scorers without vectors store vectors with 0 columns."""
    vectors = vectors_of(scorer)
    arrays = {
        "user_vectors": vectors.users.astype(np.float32, copy=False),
        "item_vectors": vectors.items.astype(np.float32, copy=False),
    }
    if len(vectors.bias):
        arrays["item_bias"] = vectors.bias.astype(np.float32, copy=False)
    numbers: dict[str, Any] = {"hash_seed": None, "relu_dim": vectors.relu_dim}
    if isinstance(scorer, HashScorer):
        numbers["hash_seed"] = scorer.seed
    elif isinstance(scorer, HistoryScorer):
        numbers["scorer"] = scorer.weights.kind
        arrays |= {f"scorer.{name}": array for name, array in scorer.weights.arrays().items()}
        arrays["histories.indptr"] = scorer.histories.indptr.astype(np.int64)
        arrays["histories.indices"] = scorer.histories.indices.astype(np.int32)
    return arrays, numbers


def unpack(arrays: Mapping[str, np.ndarray], numbers: Mapping[str, Any], shape: tuple[int, int]) -> Scorer:
    """The inverse of `pack`. shape: (n_users, n_items).

    Raises ValueError or KeyError if the arrays are inconsistent; kernels do not check them again.
    """
    n_users, n_items = shape
    (dim,) = checked(arrays, "user_vectors", np.float32, n_users, None).shape[1:]
    checked(arrays, "item_vectors", np.float32, n_items, dim)
    bias = checked(arrays, "item_bias", np.float32, n_items) if "item_bias" in arrays else np.zeros(0, np.float32)
    relu_dim, hash_seed = numbers.get("relu_dim", 0), numbers.get("hash_seed")
    if type(relu_dim) is not int or not 0 <= relu_dim <= dim:
        raise ValueError(f"relu_dim: expected a number from 0 to {dim}, found {str(relu_dim)[:40]!r}")
    if hash_seed is not None and type(hash_seed) is not int:
        raise ValueError(f"hash_seed: expected a number, found {str(hash_seed)[:40]!r}")
    if hash_seed is not None:
        return HashScorer(hash_seed, n_users, n_items)
    kind = numbers.get("scorer")
    if kind is not None:
        prefix = "scorer."
        own = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
        weights = item_weights.unpack(kind, own, n_items)
        return HistoryScorer(weights, csr_of(arrays["histories.indptr"], arrays["histories.indices"], shape))
    return VectorScorer(Vectors(arrays["user_vectors"], arrays["item_vectors"], bias, relu_dim))


def vectors_of(scorer: Scorer) -> Vectors:
    """The vectors of a scorer; with 0 columns if it ranks by something else."""
    if isinstance(scorer, VectorScorer):
        return scorer.vectors
    users, items = (np.zeros((n, 0), np.float32) for n in (scorer.n_users, scorer.n_items))
    return Vectors(users, items, np.zeros(0, np.float32))


def rank_vectors(
    vectors: Vectors,
    users: np.ndarray,
    k: int,
    *,
    candidates: np.ndarray | None = None,
    seen: sp.csr_matrix | native.CSR | None = None,
    n_threads: int | None = None,
) -> Ranked:
    """Top-k of some users by `Vectors`; seen: CSR (len(users), n_items), of these users. See `Scorer.topk`."""
    if seen is not None and not isinstance(seen, native.CSR):
        seen = native.make_csr(seen.indptr, seen.indices, None, seen.shape)
    return native.topk(
        np.ascontiguousarray(vectors.users[users]),
        vectors.items,
        k,
        relu_dim=vectors.relu_dim,
        item_bias=vectors.bias if len(vectors.bias) else None,
        candidates=candidates,
        seen=seen,
        n_threads=n_threads,
    )


def score_vectors(vectors: Vectors, users: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """float32 (len(users), len(candidates)): the score defined in vectors.py. Meant for a few users."""
    of_users, of_items = vectors.users[users], vectors.items[candidates]
    dot = of_users.shape[1] - vectors.relu_dim
    scores = of_users[:, :dot] @ of_items[:, :dot].T
    for h in range(dot, of_users.shape[1]):
        scores += np.maximum(of_users[:, h, None] + of_items[None, :, h], 0)
    if len(vectors.bias):
        scores = scores + vectors.bias[candidates]
    return scores.astype(np.float32, copy=False)


def hash_scores(seed: int, users: np.ndarray, items: np.ndarray) -> np.ndarray:
    """Reproducible scores in [0, 1): float32 (len(users), len(items)), a function of (seed, user, item) alone.

    Users and items are hashed by splitmix64, then mixed pair by pair in 32-bit arithmetic; the upper 24 bits are kept.
    """
    user_state = _mix(np.asarray(users, dtype=np.uint64) + (np.uint64(seed & 0xFFFFFFFF) << np.uint64(32)))
    item_state = (_mix(np.asarray(items, dtype=np.uint64) + np.uint64(1)) >> np.uint64(32)).astype(np.uint32)
    bits = item_state[None, :] ^ (user_state >> np.uint64(32)).astype(np.uint32)[:, None]
    bits *= user_state.astype(np.uint32)[:, None] | np.uint32(1)
    bits ^= bits >> np.uint32(15)
    bits *= np.uint32(0x2C1B3C6D)
    bits >>= np.uint32(8)
    scores = bits.astype(np.float32)
    scores *= np.float32(2.0**-24)
    return scores


def _mix(counter: np.ndarray) -> np.ndarray:
    """splitmix64's finalizer: uint64 -> uint64."""
    z = counter + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
