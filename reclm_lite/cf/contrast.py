"""LightGCN with a contrastive loss (InfoNCE) between two augmented views of the propagated vectors.

    loss = ranking + contrast_weight * (InfoNCE of the batch's users + InfoNCE of its positive items)

Each model defines its own views (models/sgl.py, models/simgcl.py).
"""

from abc import ABC, abstractmethod

import numpy as np

from .encoders import Encoder
from .graph import Graph, Sides
from .interface import Batch, Grads
from .layers import Params
from .models.lightgcn import LightGCN, graph_arguments
from .objectives import contrast, contrast_within, ranking_loss
from .settings import ContrastSettings


class ContrastGCN(LightGCN, ABC):
    """See `LightGCN` for `encoder` and `graph`."""

    def __init__(self, encoder: Encoder, graph: Graph, settings: ContrastSettings):
        super().__init__(encoder, graph, **graph_arguments(settings))
        self.settings = settings

    @abstractmethod
    def view(self, graph: Graph, first: Sides, rng: np.random.Generator) -> tuple[Sides, Graph]:
        """One augmented view of all users and items, and the graph that takes its gradient back to `first`."""

    def step(self, params: Params, batch: Batch) -> tuple[float, Grads]:
        vectors, cache = self.forward(params, batch.entries)
        graph, first, n_threads = cache["graph"], cache["first"], self.graph.n_threads
        loss, d = ranking_loss(batch.loss, batch.users, batch.positives, batch.negatives, vectors, n_threads=n_threads)
        (one, adjoint_one), (two, adjoint_two) = (
            self.view(graph, first, np.random.default_rng([batch.seed, number])) for number in (1, 2)
        )
        pull = contrast if self.settings.contrast_with == "all" else contrast_within
        weight = np.float32(self.settings.contrast_weight)
        d_one, d_two = [], []
        for side, nodes in enumerate((batch.users, batch.positives)):
            value, d_side_one, d_side_two = pull(
                one[side], two[side], nodes, self.settings.temperature, n_threads=n_threads
            )
            loss += float(weight) * value
            d_one.append(weight * d_side_one)
            d_two.append(weight * d_side_two)
        if adjoint_one is graph and adjoint_two is graph:
            # One backward propagation for the ranking loss and both views.
            return loss, self.backward(params, cache, d, propagated=(d_one[0] + d_two[0], d_one[1] + d_two[1]))
        back_one = adjoint_one.propagate(d_one[0], d_one[1], self.layer_weights)
        back_two = adjoint_two.propagate(d_two[0], d_two[1], self.layer_weights)
        return loss, self.backward(params, cache, d, first=(back_one[0] + back_two[0], back_one[1] + back_two[1]))
