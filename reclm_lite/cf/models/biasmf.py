"""Matrix factorization: score = user . item + item bias, directly on the encoder's vectors.

The published BiasMF also has a bias for each user. It cancels in a pairwise loss and in any ranking of one user's
items, so it is left out. The item bias belongs to the encoder (encoders.py).
"""

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from ..encoders import Encoder, make_encoder
from ..fused_profile import FusedProfile
from ..id_fold import IdFold
from ..inputs import Inputs
from ..interface import Batch, Grads
from ..layers import Params
from ..memory_estimate import Shape, trained_bytes
from ..rowwise import RowSettings, row_step
from ..training import TrainConfig
from ..vectors import Vectors


@dataclass(frozen=True)
class Settings(RowSettings):
    """No settings of its own."""


PRESETS = {
    "paper": Settings(),
    "default": Settings(
        encoder="residual",
        dim=64,
        loss="ssm",
        n_negatives=32,
        lr=2e-3,
        epochs=60,
        patience=5,
        steps_per_epoch=20,
        l2_tables=1e-5,
        text_hidden=64,
    ),
}


def build(settings: Settings, inputs: Inputs, interactions: sp.csr_matrix, n_threads: int | None = None) -> "BiasMF":
    """interactions: CSR (n_users, n_items), the training set."""
    return BiasMF(
        make_encoder(settings, inputs, interactions), sparse_updates=settings.sparse_updates, n_threads=n_threads
    )


def estimate_bytes(shape: Shape, settings: Settings) -> int:
    return trained_bytes(shape, settings)


class BiasMF:
    """score = user . item (+ item bias). sparse_updates: see `RowSettings`."""

    name = "biasmf"

    def __init__(self, encoder: Encoder, *, sparse_updates: bool = False, n_threads: int | None = None):
        self.encoder, self.sparse_updates, self.n_threads = encoder, sparse_updates, n_threads
        self.tables = encoder.tables

    def init(self, rng: np.random.Generator) -> Params:
        return self.encoder.init(rng)

    def step(self, params: Params, batch: Batch) -> tuple[float, Grads]:
        return row_step(self, params, batch, sparse=self.sparse_updates, n_threads=self.n_threads)

    def vectors(self, params: Params) -> Vectors:
        return self.forward(params)[0]

    def forward(
        self, params: Params, users: np.ndarray | None = None, items: np.ndarray | None = None
    ) -> tuple[Vectors, dict]:
        """(vectors of some rows or all, cache for backward)."""
        of_users, of_items, bias, cache = self.encoder.forward(params, users, items)
        return Vectors(of_users, of_items, bias), cache

    def backward(self, params: Params, cache: dict, d: Vectors) -> Grads:
        """Gradients of all parameters, given the gradients of the vectors."""
        return self.encoder.backward(params, cache, d.users, d.items, d.bias)

    def fold(self, params: Params, interactions: sp.csr_matrix, config: TrainConfig) -> IdFold:
        return self.encoder.fold(params, interactions, config)


unpack_fold = IdFold.unpacker(FusedProfile)
