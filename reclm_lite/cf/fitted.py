"""A fitted model, as every later stage sees it: a scorer for its users, and fold-in for new users."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.sparse as sp

from ..errors import InputError, ModelError
from .interface import Scorer, UserFold
from .names import artefact_name
from .ranking import take_rows
from .scorers import VectorScorer, vectors_of
from .vectors import Vectors


@dataclass(frozen=True)
class FittedModel:
    """A model ready to rank.

    user_ready: bool (n_users,), whether the model knows the user; a user without history and without a profile is
    ranked by the item bias alone.
    train_user_vectors: float32 (n_users, dim), user vectors fitted on training alone; None if the model's own vectors
    already are. Neighbors, and so profiles, are made from these, so that validation data does not leak into profiles.
    params: the settings of the fit. metrics: validation metrics.
    fold: computes vectors for new users; None if the scorer does not need one or the model does not support it.
    """

    name: str
    scorer: Scorer
    user_ready: np.ndarray
    profiles: str = "none"
    train_user_vectors: np.ndarray | None = None
    params: dict = field(default_factory=dict)
    metrics: dict = field(default_factory=dict)
    fingerprint: str = ""
    fold: UserFold | None = None

    @classmethod
    def of_vectors(
        cls,
        name: str,
        users: np.ndarray,
        items: np.ndarray,
        bias: np.ndarray | None,
        user_ready: np.ndarray,
        *,
        relu_dim: int = 0,
        **more: Any,
    ) -> "FittedModel":
        """A model that ranks by vectors.

        users: float32 (n_users, dim). items: float32 (n_items, dim). bias: (n_items,) or None. relu_dim: width of the
        ReLU part, the last columns (vectors.py).
        """
        bias = np.zeros(0, np.float32) if bias is None else bias
        return cls(name, VectorScorer(Vectors(users, items, bias, relu_dim)), user_ready, **more)

    @property
    def artefact(self) -> str:
        """The name of the artefact that stores the model."""
        return artefact_name(self.name, self.profiles)

    @property
    def n_users(self) -> int:
        return self.scorer.n_users

    @property
    def n_items(self) -> int:
        return self.scorer.n_items

    @property
    def is_personal(self) -> bool:
        """Whether a user's history changes the scores; False for popularity and random."""
        return self.scorer.is_personal

    @property
    def vectors(self) -> Vectors:
        """The vectors that the model ranks by; with 0 columns if it ranks by something else."""
        return vectors_of(self.scorer)

    @property
    def user_vectors(self) -> np.ndarray:
        return self.vectors.users

    @property
    def item_vectors(self) -> np.ndarray:
        return self.vectors.items

    def scores(self, users: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        """float32 (len(users), len(candidates)). Meant for a few users; `topk` ranks many."""
        return self.scorer.scores(np.asarray(users), np.asarray(candidates))

    def topk(
        self,
        users: np.ndarray,
        k: int,
        *,
        candidates: np.ndarray | None = None,
        seen: sp.csr_matrix | None = None,
        n_threads: int | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k best items of each user: ids int32 and scores float32, both (len(users), k), best first.

        candidates: ascending item ids, or None for all. seen: CSR (n_users, n_items) of items to leave out, a row for
        every user of the model. Ties go to the lower id; rows with fewer than k items end in id -1, score -inf.
        """
        users = np.asarray(users)
        if candidates is not None:
            candidates = np.ascontiguousarray(candidates, dtype=np.int32)
        rows = None if seen is None else take_rows(seen, users)
        return self.scorer.topk(users, k, candidates=candidates, seen=rows, n_threads=n_threads)

    def folded(
        self, histories: sp.csr_matrix, profiles: np.ndarray | None = None, *, n_threads: int | None = None
    ) -> "FittedModel":
        """The same model with other users, folded in without a new fit: rank them with `topk(np.arange(n), k)`.

        histories: CSR (n, n_items), any values: an entry is an interaction. profiles: float32 (n, dim_profile), zero
        rows for none; for models that take user profiles. A user with neither is not ready and is ranked by bias alone.
        Raises InputError if an argument does not fit, ModelError if the model cannot place new users.
        """
        histories = self._checked_histories(histories)
        n = histories.shape[0]
        ready = np.diff(histories.indptr) > 0
        scorer = self.scorer.for_histories(histories)
        if scorer is not None:
            if profiles is not None:
                raise InputError(f"{self.name} takes no profiles: leave them out")
            return dataclasses.replace(self, scorer=scorer, user_ready=ready, train_user_vectors=None)
        if self.fold is None:
            option = "" if self.profiles == "none" else f" --profiles {self.profiles}"
            raise ModelError(
                f"{self.artefact} cannot place new users: it was stored without fold-in data. Import their "
                f"interactions and fit it again with `reclm fit {self.name}{option}`"
            )
        profiles = self._checked_profiles(self.fold, profiles, n)
        rows = self.fold.place(self.vectors, histories, profiles, n_threads=n_threads)
        if profiles is not None:
            ready = ready | profiles.any(axis=1)
        placed = VectorScorer(self.vectors._replace(users=rows))
        return dataclasses.replace(self, scorer=placed, user_ready=ready, train_user_vectors=None)

    def topk_for(
        self,
        histories: sp.csr_matrix,
        k: int,
        *,
        profiles: np.ndarray | None = None,
        candidates: np.ndarray | None = None,
        n_threads: int | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k best items for histories: CSR (n, n_items), without the items of the history. See `folded`."""
        folded = self.folded(histories, profiles, n_threads=n_threads)
        return folded.topk(
            np.arange(folded.n_users), k, candidates=candidates, seen=sp.csr_matrix(histories), n_threads=n_threads
        )

    def _checked_histories(self, histories: sp.csr_matrix) -> sp.csr_matrix:
        if not sp.issparse(histories) or histories.shape[1] != self.n_items:
            found = getattr(histories, "shape", type(histories).__name__)
            raise InputError(
                f"histories: expected a sparse matrix of {self.n_items} columns, one for each item, found {found}"
            )
        histories = sp.csr_matrix(histories, dtype=np.float32, copy=True)
        if not np.isfinite(histories.data).all():
            raise InputError("histories: expected finite values, found NaN or infinity")
        histories.sum_duplicates()
        histories.eliminate_zeros()
        histories.data[:] = 1.0
        return histories

    def _checked_profiles(self, fold: UserFold, profiles: np.ndarray | None, n: int) -> np.ndarray | None:
        if profiles is None:
            return None
        width = fold.dim_profile
        if width is None:
            raise InputError(
                f"{self.name} was fitted without user profiles: leave them out, or fit it with --profiles users"
            )
        profiles = np.asarray(profiles, np.float32)
        if profiles.shape != (n, width) or not np.isfinite(profiles).all():
            raise InputError(f"profiles: expected finite float32 {(n, width)}, found {profiles.shape}")
        return profiles
