"""LightGCN (arXiv 2002.02126): first vectors propagated over the user-item graph.

The published RecLM configuration sums the layers, adds self-loops, and takes only the users from the
propagation: items are scored by their first vectors, so that an unseen item stands beside the others.
"""

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from ..fusion import PublishedEncoder, ResidualEncoder, make_encoder
from ..graph import Graph
from ..inputs import Inputs
from ..layers import Params
from ..memory import Shape, trained_bytes
from ..objectives import ranking_loss
from ..settings import GRAPH_DEFAULT, GraphSettings
from ..training import Batch, Grads
from ..vectors import Vectors

Sides = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Settings(GraphSettings):
    """No settings of its own."""


PRESETS = {"paper": Settings(), "default": Settings(**GRAPH_DEFAULT)}


def build(settings: Settings, inputs: Inputs, interactions: sp.csr_matrix, n_threads: int | None = None) -> "LightGCN":
    """interactions: CSR (n_users, n_items), what is trained on."""
    graph = Graph(interactions, self_loops=settings.self_loops, n_threads=n_threads)
    return LightGCN(make_encoder(settings, inputs, interactions), graph, **graph_arguments(settings))


def graph_arguments(settings: GraphSettings) -> dict:
    """The arguments of `LightGCN` that are settings."""
    return {
        "layer_weights": settings.layer_weights,
        "items_propagated": settings.items_propagated,
        "drops_targets": settings.drops_targets,
    }


def estimate_bytes(shape: Shape, settings: Settings) -> int:
    return trained_bytes(shape, settings)


class LightGCN:
    """layer_weights: one for each layer, the first vectors' first. items_propagated: whether items' vectors are, too;
    an item without training interactions keeps its first vector then, which propagation would merely shrink.

    drops_targets: a training batch is propagated on the graph less the batch's own edges, so that a
    score is earned from other interactions, as it has to be at test.
    """

    name = "lightgcn"

    def __init__(
        self,
        encoder: PublishedEncoder | ResidualEncoder,
        graph: Graph,
        *,
        layer_weights: tuple[float, ...] = (1.0, 1.0, 1.0),
        items_propagated: bool = False,
        drops_targets: bool = False,
    ):
        self.encoder, self.graph = encoder, graph
        self.layer_weights, self.items_propagated, self.drops_targets = layer_weights, items_propagated, drops_targets

    def init(self, rng: np.random.Generator) -> Params:
        return self.encoder.init(rng)

    def step(self, params: Params, batch: Batch) -> tuple[float, Grads]:
        vectors, cache = self.forward(params, batch.entries)
        loss, d = ranking_loss(
            batch.loss, batch.users, batch.positives, batch.negatives, vectors, n_threads=self.graph.n_threads
        )
        return loss, self.backward(params, cache, d)

    def vectors(self, params: Params) -> Vectors:
        return self.forward(params)[0]

    def forward(self, params: Params, targets: np.ndarray | None = None) -> tuple[Vectors, dict]:
        """(vectors, what backward needs). targets: places of the batch's edges in the training CSR, or None."""
        users, items, bias, cache = self.encoder.forward(params)
        cache["graph"] = self.graph if targets is None or not self.drops_targets else self.graph.without(targets)
        cache["first"] = users, items
        final_users, final_items = cache["graph"].propagate(users, items, self.layer_weights)
        if not self.items_propagated:
            return Vectors(final_users, items, bias), cache
        unknown = self.graph.unknown_items
        final_items[unknown] = items[unknown]
        return Vectors(final_users, final_items, bias), cache

    def backward(
        self, params: Params, cache: dict, d: Vectors, *, propagated: Sides | None = None, first: Sides | None = None
    ) -> Grads:
        """Gradients of all parameters from those of the vectors; and, beside them, of vectors propagated on the same
        graph, and of first vectors."""
        unknown, d_users = self.graph.unknown_items, d.users
        if self.items_propagated:
            through = d.items
            if len(unknown):
                through = through.copy()
                through[unknown] = 0
        else:
            through = np.zeros_like(d.items)
        if propagated is not None:
            d_users, through = d_users + propagated[0], through + propagated[1]
        d_first_users, d_first_items = cache["graph"].propagate(d_users, through, self.layer_weights)
        if self.items_propagated:
            d_first_items[unknown] += d.items[unknown]
        else:
            d_first_items += d.items
        if first is not None:
            d_first_users += first[0]
            d_first_items += first[1]
        return self.encoder.backward(params, cache, d_first_users, d_first_items, d.bias)

    def fold_parts(self, params: Params) -> dict:
        """What `foldstate.FoldState` wants to know beside the training settings."""
        users, items, _, _ = self.encoder.forward(params)
        layers = []
        for _ in self.layer_weights[1:]:
            layers.append(items)
            users, items = self.graph.step(users, items)
        return self.encoder.fold_parts(params) | {
            "layer_weights": np.array(self.layer_weights, np.float32),
            "item_layers": np.stack(layers) if layers else np.zeros((0, *items.shape), np.float32),
            "item_degree": self.graph.degree_i.astype(np.float32),
            "self_loops": self.graph.loop_u is not None,
        }
