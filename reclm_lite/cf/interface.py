"""The contract of a model: what its file in `models/` provides to training, ranking and folding in.

A trained model's module has

    PRESETS          dict of preset name to Settings (a `settings.TrainedSettings`)
    build            (settings, inputs, interactions, n_threads) -> a `Trainable`
    estimate_bytes   (memory_estimate.Shape, settings) -> peak bytes of training
    unpack_fold      (arrays, numbers, n_items) -> a `UserFold`; only if the `Trainable` has `fold`

An untrained model's module has

    Settings             a `settings.Checked`; a field that is None is chosen on validation
    fit                  (interactions, settings, *, seed, n_threads, progress) -> a `fitted.FittedModel`
    estimate_bytes       (n_users, n_items, nnz, settings) -> peak bytes of `fit`
    choose               (train, settings, score, *, seed, n_threads) -> (settings, FittedModel or None), and
    without_validation   (settings) -> settings with fixed values; both only if a field of `Settings` can be None

A row in `models/__init__.py` registers the model for every command. Left out: the training loop (training.py), the
phases of a fit (phases.py, untrained.py) and storage (store.py).
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
import scipy.sparse as sp

from .layers import Params
from .vectors import Vectors


@dataclass(frozen=True)
class Batch:
    """Training interactions with their negatives, and the only seed that a step may use.

    users, positives: int32 (n,). negatives: int32 (n, m), -1 if a user has interacted with every item.
    entries: int64 (n,), positions of the interactions in the training CSR. seed: of this batch, for dropout and noise.
    loss: "bpr" or "ssm".
    """

    users: np.ndarray
    positives: np.ndarray
    negatives: np.ndarray
    entries: np.ndarray
    seed: int
    loss: str = "ssm"


class RowGrad(NamedTuple):
    """A sparse gradient: the rows of a table that a batch touches.

    rows: int32, ascending, distinct. values: (len(rows), dim). The optimizer updates only these rows and their moments,
    like torch's SparseAdam.
    """

    rows: np.ndarray
    values: np.ndarray


Grads = dict[str, "np.ndarray | RowGrad"]


class Trainable(Protocol):
    """A model in training. Its parameters are a dict of float32 arrays, which the trainer owns and passes in.

    tables: the parameters with a row for each user or item; `l2_tables` applies to them.

    A model that can place new users without a new fit also has

        fold(params, interactions, config) -> UserFold

    interactions: CSR (n_users, n_items), the training set. config: a `training.TrainConfig`. Without this method,
    placing a new user raises an error that names the model.
    """

    @property
    def name(self) -> str: ...

    @property
    def tables(self) -> Collection[str]: ...

    def init(self, rng: np.random.Generator) -> Params:
        """The initial parameters, float32."""

    def step(self, params: Params, batch: Batch) -> tuple[float, Grads]:
        """The loss of the batch, without L2, and the gradients of all parameters."""

    def vectors(self, params: Params) -> Vectors:
        """The vectors to rank with, for validation and serving."""


class UserFold(Protocol):
    """Folds users into a fitted model by their histories; the items stay fixed.

    dim: columns of the rows that `place` returns. dim_profile: width of the profile vectors that it takes, None if it
    takes none.
    """

    @property
    def dim(self) -> int: ...

    @property
    def dim_profile(self) -> int | None: ...

    def place(
        self, vectors: Vectors, histories: sp.csr_matrix, profiles: np.ndarray | None, *, n_threads: int | None = None
    ) -> np.ndarray:
        """float32 (n, dim): rows that replace `vectors.users`. A user's row must not depend on the other users.

        histories: sorted CSR (n, n_items) of ones. profiles: float32 (n, dim_profile), zero rows for none.
        """

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays to store; the module's `unpack_fold` receives them again.

        No row may belong to a user: `reclm forget` does not change these arrays.
        """

    def numbers(self) -> dict[str, Any]:
        """The other values to store, JSON-able."""


class UnpackFold(Protocol):
    def __call__(self, arrays: Mapping[str, np.ndarray], numbers: Mapping[str, Any], n_items: int) -> UserFold:
        """The inverse of `UserFold.arrays` and `numbers`.

        Raises ValueError if they do not fit together: the file may come from somebody else.
        """


class Scorer(Protocol):
    """Scores and ranks all items for the users of a fitted model (scorers.py).

    is_personal: whether the scores depend on the user's history. can_be_silent: whether all items may get the same
    score, for a user whose history relates to no other item.
    """

    can_be_silent: ClassVar[bool]

    @property
    def is_personal(self) -> bool: ...

    @property
    def n_users(self) -> int: ...

    @property
    def n_items(self) -> int: ...

    def scores(self, users: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        """float32 (len(users), len(candidates)). Meant for a few users."""

    def topk(
        self,
        users: np.ndarray,
        k: int,
        *,
        candidates: np.ndarray | None = None,
        seen: sp.csr_matrix | None = None,
        n_threads: int | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Ids int32 and scores float32, both (len(users), k). seen: CSR (len(users), n_items) of items to leave out."""

    def for_histories(self, histories: sp.csr_matrix) -> "Scorer | None":
        """The same scorer for other users if it needs only their histories; None if it needs a `UserFold`."""
