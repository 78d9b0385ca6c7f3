"""Matrix factorization in a dozen lines, and a graph of two tastes that it learns."""

import dataclasses

import numpy as np
import scipy.sparse as sp

from reclm_lite.cf.interface import RowGrad
from reclm_lite.cf.training import TrainConfig
from reclm_lite.cf.vectors import Vectors
from reclm_lite.kernels import losses

CONFIG = TrainConfig(epochs=6, batch_size=64, lr=0.05, n_negatives=3, loss="ssm", patience=None)
LONG = dataclasses.replace(CONFIG, epochs=60)


def taste_graph(n_users=40, n_items=24):
    """Even users touch even items, odd users odd ones, four of the twelve each."""
    rng = np.random.default_rng(0)
    dense = np.zeros((n_users, n_items), np.float32)
    for user in range(n_users):
        dense[user, rng.choice(np.arange(user % 2, n_items, 2), 4, replace=False)] = 1
    return sp.csr_matrix(dense)


class Factors:
    """The least of models: two tables, their product. sparse: gradients of the touched rows only."""

    name = "factors"
    tables = ("user_id", "item_id")

    def __init__(self, shape, *, sparse=False, scale=0.1):
        self.shape, self.sparse, self.scale = shape, sparse, scale

    def init(self, rng):
        return {
            name: (self.scale * rng.standard_normal((n, 4))).astype(np.float32)
            for name, n in zip(("user_id", "item_id"), self.shape, strict=True)
        }

    def vectors(self, params):
        return Vectors(params["user_id"], params["item_id"], np.zeros(0, np.float32))

    def step(self, params, batch):
        vectors = self.vectors(params)
        d = [np.zeros_like(array) for array in vectors[:3]]
        loss = losses.ranking_loss(batch.loss, batch.users, batch.positives, batch.negatives, *vectors[:3], *d)
        grads = {"user_id": d[0], "item_id": d[1]}
        if self.sparse:
            rows = np.unique(batch.users).astype(np.int32)
            grads["user_id"] = RowGrad(rows, d[0][rows])
        return loss, grads
