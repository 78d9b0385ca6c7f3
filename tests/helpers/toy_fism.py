"""A backbone that is not in the package: FISM (Kabbur et al. 2013), whose users are the mean of their items' vectors.

    score(u, i) = |history|^-1/2 * (sum of P_j over u's items j) . Q_i + bias_i

It is what somebody writes who adds a model: this file and a row in `ROWS`. Its fold-in is exact, and its own.
"""

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from reclm_lite.artefacts import checked
from reclm_lite.cf import layers
from reclm_lite.cf.memory_estimate import trained_bytes
from reclm_lite.cf.objectives import ranking_loss
from reclm_lite.cf.settings import TrainedSettings, setting
from reclm_lite.cf.vectors import Vectors


@dataclass(frozen=True)
class Settings(TrainedSettings):
    """Adds `power`."""

    power: float = setting(0.5, "a user's sum is divided by the number of items to this power", at_least=0, at_most=1)


PRESETS = {"paper": Settings(), "default": Settings(dim=16, loss="ssm", n_negatives=8, lr=1e-2, epochs=20)}


def build(settings, inputs, interactions, n_threads=None):
    return Fism(interactions, settings, n_threads)


def estimate_bytes(shape, settings):
    return trained_bytes(shape, settings)


def averaged(histories: sp.csr_matrix, power: float) -> sp.csr_matrix:
    """Rows of ones, divided by their lengths to the power."""
    lengths = np.maximum(np.diff(histories.indptr), 1).astype(np.float32)
    data = np.repeat(lengths ** np.float32(-power), np.diff(histories.indptr)).astype(np.float32)
    return sp.csr_matrix((data, histories.indices, histories.indptr), shape=histories.shape)


class Fism:
    name = "fism"
    tables = ("source", "target", "bias")

    def __init__(self, interactions, settings, n_threads):
        self.mean, self.dim, self.power = averaged(interactions, settings.power), settings.dim, settings.power
        self.n_threads = n_threads

    def init(self, rng):
        n_items = self.mean.shape[1]
        source, target = (layers.init_table(rng, n_items, self.dim) for _ in range(2))
        return {"source": source, "target": target, "bias": np.zeros(n_items, np.float32)}

    def vectors(self, params):
        users = np.ascontiguousarray(self.mean @ params["source"], np.float32)
        return Vectors(users, params["target"], params["bias"])

    def step(self, params, batch):
        loss, d = ranking_loss(
            batch.loss, batch.users, batch.positives, batch.negatives, self.vectors(params), n_threads=self.n_threads
        )
        return loss, {"source": self.mean.T @ d.users, "target": d.items, "bias": d.bias}

    def fold(self, params, interactions, config):
        return MeanFold(params["source"], self.power)


@dataclass(frozen=True)
class MeanFold:
    source: np.ndarray
    power: float
    dim_profile = None

    @property
    def dim(self):
        return self.source.shape[1]

    def place(self, vectors, histories, profiles, *, n_threads=None):
        return np.ascontiguousarray(averaged(histories, self.power) @ self.source, np.float32)

    def arrays(self):
        return {"source": self.source}

    def numbers(self):
        return {"power": self.power}


def unpack_fold(arrays, numbers, n_items):
    return MeanFold(checked(arrays, "source", np.float32, n_items, None), float(numbers["power"]))
