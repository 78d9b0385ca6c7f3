"""Neural collaborative filtering as in RecLM: a weighted dot product plus the sum of a ReLU layer over both vectors.

    score(u, i) = (w * u) . i + sum_h max([u; i] W + b, 0)_h

The layer is additive in u and i, so its halves are columns of the vectors (vectors.py): [w * u | u W_u + b] for users,
[i | i W_i] for items. A deeper network is not published, and would need a forward pass for every pair to rank.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

from ...artefacts import checked
from .. import layers
from ..encoders import Encoder, PublishedEncoder, make_encoder
from ..fused_profile import FusedProfile
from ..id_fold import IdFold
from ..inputs import Inputs
from ..interface import Batch, Grads
from ..layers import Params
from ..memory_estimate import Shape, trained_bytes
from ..rowwise import RowSettings, row_step
from ..settings import setting
from ..training import TrainConfig
from ..vectors import Vectors


@dataclass(frozen=True)
class Settings(RowSettings):
    """Adds `relu_width`."""

    relu_width: int = setting(0, "width of the ReLU layer over both vectors; 0: as `dim`", at_least=0, at_most=4096)


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
        l2_tables=3e-5,
        text_hidden=64,
        relu_width=8,
    ),
}


def build(settings: Settings, inputs: Inputs, interactions: sp.csr_matrix, n_threads: int | None = None) -> "NCF":
    """interactions: CSR (n_users, n_items), the training set."""
    encoder = make_encoder(settings, inputs, interactions)
    return NCF(encoder, relu_width=settings.relu_width, sparse_updates=settings.sparse_updates, n_threads=n_threads)


def estimate_bytes(shape: Shape, settings: Settings) -> int:
    return trained_bytes(shape, settings, relu_width=settings.relu_width or settings.dim)


class NCF:
    """relu_width: columns of the ReLU part, 0 for as many as the vectors have. sparse_updates: see `RowSettings`."""

    name = "ncf"

    def __init__(
        self, encoder: Encoder, *, relu_width: int = 0, sparse_updates: bool = False, n_threads: int | None = None
    ):
        self.encoder, self.relu_width, self.tables = encoder, relu_width or encoder.dim, encoder.tables
        self.sparse_updates, self.n_threads = sparse_updates, n_threads

    def init(self, rng: np.random.Generator) -> Params:
        params = self.encoder.init(rng)
        dim = self.encoder.dim
        if isinstance(self.encoder, PublishedEncoder):
            params["dot.w"] = layers.init_table(rng, 1, dim)
        else:
            # Starts as matrix factorization.
            params["dot.w"] = np.ones((1, dim), np.float32)
        params["pair.w"], params["pair.b"] = layers.init_linear(rng, 2 * dim, self.relu_width)
        return params

    def step(self, params: Params, batch: Batch) -> tuple[float, Grads]:
        return row_step(self, params, batch, sparse=self.sparse_updates, n_threads=self.n_threads)

    def vectors(self, params: Params) -> Vectors:
        return self.forward(params)[0]

    def forward(
        self, params: Params, users: np.ndarray | None = None, items: np.ndarray | None = None
    ) -> tuple[Vectors, dict]:
        """(vectors of some rows or all, cache for backward)."""
        first_users, first_items, bias, cache = self.encoder.forward(params, users, items)
        dim = self.encoder.dim
        of_users = layers.linear(first_users, params["pair.w"][:dim], params["pair.b"])
        of_items = first_items @ params["pair.w"][dim:]
        cache["first"] = first_users, first_items
        return Vectors(
            np.hstack([params["dot.w"] * first_users, of_users]),
            np.hstack([first_items, of_items]),
            bias,
            self.relu_width,
        ), cache

    def backward(self, params: Params, cache: dict, d: Vectors) -> Grads:
        """Gradients of all parameters, given the gradients of the vectors."""
        dim, weight = self.encoder.dim, params["pair.w"]
        users, items = cache["first"]
        d_dot, d_of_users = d.users[:, :dim], d.users[:, dim:]
        d_items, d_of_items = d.items[:, :dim], d.items[:, dim:]
        d_users = d_dot * params["dot.w"] + d_of_users @ weight[:dim].T
        d_items = d_items + d_of_items @ weight[dim:].T
        grads = self.encoder.backward(params, cache, d_users, d_items, d.bias)
        grads["dot.w"] = (d_dot * users).sum(axis=0, keepdims=True)
        grads["pair.w"] = np.vstack([users.T @ d_of_users, items.T @ d_of_items])
        grads["pair.b"] = d_of_users.sum(axis=0)
        return grads

    def fold(self, params: Params, interactions: sp.csr_matrix, config: TrainConfig) -> IdFold:
        dim = self.encoder.dim
        weight = np.hstack([np.diag(params["dot.w"][0]), params["pair.w"][:dim]])
        bias = np.concatenate([np.zeros(dim, np.float32), params["pair.b"]])
        return self.encoder.fold(params, interactions, config, [Readout(weight, bias)])


@dataclass(frozen=True)
class Readout:
    """A user's row from the first vector: [w * first | first W_u + b].

    weight: float32 (dim, dim + relu_width). bias: float32 (dim + relu_width,).
    """

    weight: np.ndarray
    bias: np.ndarray
    dim_profile = None
    is_constant = False

    def prepare(self, histories: sp.csr_matrix, profiles: np.ndarray | None, n_threads: int | None) -> list["Readout"]:
        return [Readout(self.weight.astype(np.float64), self.bias)] * histories.shape[0]  # the same for all

    def __call__(self, x: np.ndarray, slope: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return x @ self.weight + self.bias, slope @ self.weight

    def dim_out(self, dim_in: int) -> int:
        if len(self.weight) != dim_in:
            raise ValueError(f"readout: expected {dim_in} rows, found {len(self.weight)}")
        return self.weight.shape[1]

    def arrays(self) -> dict[str, np.ndarray]:
        return {"readout": self.weight, "readout_bias": self.bias}

    def numbers(self) -> dict:
        return {}

    @classmethod
    def unpack(cls, arrays: Mapping[str, np.ndarray], numbers: Mapping[str, Any], n_items: int) -> "Readout":
        weight = checked(arrays, "readout", np.float32, None, None)
        return cls(weight, checked(arrays, "readout_bias", np.float32, weight.shape[1]))


unpack_fold = IdFold.unpacker(FusedProfile, Readout)
