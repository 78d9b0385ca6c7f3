"""LightGCN (arXiv 2002.02126): first vectors propagated over the user-item graph.

The published RecLM configuration sums the layers, adds self-loops, and takes only the users from the
propagation: items are scored by their first vectors, so that an unseen item stands beside the others.
"""

import numpy as np

from ..fusion import PublishedEncoder, ResidualEncoder
from ..graph import Graph
from ..layers import Params
from ..training import Batch, Grads, vector_step
from ..vectors import Vectors


class LightGCN:
    """layer_weights: one for each layer, the first vectors' first. items_propagated: whether items' vectors are, too;
    an item without training interactions keeps its first vector then, which propagation would merely shrink.

    drops_targets: a training batch is propagated on the graph less the batch's own edges, so that a
    score is earned from other interactions, as it has to be at test.
    """

    name = "lightgcn"

    def __init__(
        self, encoder: PublishedEncoder | ResidualEncoder, graph: Graph, *,
        layer_weights: tuple[float, ...] = (1.0, 1.0, 1.0),
        items_propagated: bool = False,
        drops_targets: bool = False,
    ):  # fmt: skip
        self.encoder, self.graph = encoder, graph
        self.layer_weights, self.items_propagated, self.drops_targets = layer_weights, items_propagated, drops_targets

    def init(self, rng: np.random.Generator) -> Params:
        return self.encoder.init(rng)

    def step(self, params: Params, batch: Batch) -> tuple[float, Grads]:
        return vector_step(self, params, batch)

    def vectors(self, params: Params) -> Vectors:
        return Vectors(*self.forward(params)[:3])

    def forward(self, params: Params, targets: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict]:
        """(user_vectors, item_vectors, item_bias, cache). targets: places of the batch's edges in the graph, or None."""
        users, items, bias, cache = self.encoder.forward(params)
        graph = self.graph if targets is None or not self.drops_targets else self.graph.without(targets)
        final_users, final_items = graph.propagate(users, items, self.layer_weights)
        cache["graph"] = graph
        if not self.items_propagated:
            return final_users, items, bias, cache
        return final_users, np.where(self.graph.item_is_known, final_items, items), bias, cache

    def backward(
        self, params: Params, cache: dict, d_users: np.ndarray, d_items: np.ndarray, d_bias: np.ndarray
    ) -> Params:
        through = d_items * self.graph.item_is_known if self.items_propagated else np.zeros_like(d_items)
        d_first_users, d_first_items = cache["graph"].propagate(d_users, through, self.layer_weights)
        d_first_items += d_items - through
        return self.encoder.backward(params, cache, d_first_users, d_first_items, d_bias)
