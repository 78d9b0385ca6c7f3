"""LightGCN (arXiv 2002.02126): first vectors propagated over the user-item graph.

The published RecLM configuration sums the layers, adds self-loops and uses only the propagated users: items are
scored by their first vectors, so that unseen and seen items are comparable.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import scipy.sparse as sp

from ...artefacts import checked
from ...kernels import native
from ..encoders import Encoder, make_encoder
from ..fused_profile import FusedProfile
from ..graph import Graph, Sides
from ..id_fold import IdFold
from ..inputs import Inputs
from ..interface import Batch, Grads
from ..layers import Params
from ..memory_estimate import Shape, trained_bytes
from ..objectives import ranking_loss
from ..settings import GRAPH_DEFAULT, GraphSettings
from ..training import TrainConfig
from ..vectors import Vectors


@dataclass(frozen=True)
class Settings(GraphSettings):
    """No settings of its own."""


PRESETS = {"paper": Settings(), "default": Settings(**GRAPH_DEFAULT)}


def build(settings: Settings, inputs: Inputs, interactions: sp.csr_matrix, n_threads: int | None = None) -> "LightGCN":
    """interactions: CSR (n_users, n_items), the training set."""
    graph = Graph(interactions, self_loops=settings.self_loops, n_threads=n_threads)
    return LightGCN(make_encoder(settings, inputs, interactions), graph, **graph_arguments(settings))


def graph_arguments(settings: GraphSettings) -> dict:
    """The arguments of `LightGCN` that come from settings."""
    return {
        "layer_weights": settings.layer_weights,
        "items_propagated": settings.items_propagated,
        "drops_targets": settings.drops_targets,
    }


def estimate_bytes(shape: Shape, settings: Settings) -> int:
    return trained_bytes(shape, settings)


class LightGCN:
    """layer_weights: one for each layer, starting with the first vectors.

    items_propagated: whether items are scored by propagated vectors. An item without training interactions then keeps
    its first vector, which propagation would only scale down.
    drops_targets: propagate a training batch on the graph without the batch's own edges, so that the model predicts an
    interaction from others, as it must at test time.
    """

    name = "lightgcn"

    def __init__(
        self,
        encoder: Encoder,
        graph: Graph,
        *,
        layer_weights: tuple[float, ...] = (1.0, 1.0, 1.0),
        items_propagated: bool = False,
        drops_targets: bool = False,
    ):
        self.encoder, self.graph, self.tables = encoder, graph, encoder.tables
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
        """(vectors, cache for backward). targets: positions of the batch's edges in the training CSR, or None."""
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
        """Gradients of all parameters, given those of the vectors.

        propagated, first: further gradients, of vectors propagated on the same graph and of the first vectors.
        """
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

    def fold(self, params: Params, interactions: sp.csr_matrix, config: TrainConfig) -> IdFold:
        users, items, _, _ = self.encoder.forward(params)
        layers = []
        for _ in self.layer_weights[1:]:
            layers.append(items)
            users, items = self.graph.step(users, items)
        propagation = Propagation(
            np.array(self.layer_weights, np.float32),
            np.stack(layers) if layers else np.zeros((0, *items.shape), np.float32),
            self.graph.degree_i.astype(np.float32),
            self.graph.loop_u is not None,
        )
        return self.encoder.fold(params, interactions, config, [propagation])


@dataclass(frozen=True)
class Propagation:
    """A new user's row on the fitted graph: sum_l layer_weights[l] * u_l, where u_0 is the first vector and

        u_l = sum_i item_layers[l-1, i] / sqrt(d_u d_i)  (+ u_(l-1) / d_u with self-loops)

    layer_weights: float32 (n_layers + 1,). item_layers: float32 (n_layers, n_items, dim), the items' vectors at layers
    0 to n_layers - 1. item_degree: float32 (n_items,), d_i, with the self-loop if there is one.
    """

    layer_weights: np.ndarray
    item_layers: np.ndarray
    item_degree: np.ndarray
    self_loops: bool
    dim_profile: ClassVar[int | None] = None

    def prepare(
        self, histories: sp.csr_matrix, profiles: np.ndarray | None, n_threads: int | None
    ) -> list["_PropagatedRow"]:
        n, dim = histories.shape[0], self.item_layers.shape[2]
        loops = 1.0 if self.self_loops else 0.0
        degree = np.maximum(np.diff(histories.indptr) + loops, 1.0)
        item_degree = np.maximum(self.item_degree, 1.0)
        weights = 1.0 / np.sqrt(np.repeat(degree, np.diff(histories.indptr)) * item_degree[histories.indices])
        matrix = native.make_csr(histories.indptr, histories.indices, weights.astype(np.float32), histories.shape)
        first, layer = np.ones(n), np.zeros((n, dim))
        scale, offset = self.layer_weights[0] * first, np.zeros((n, dim))
        for weight, items in zip(self.layer_weights[1:], self.item_layers, strict=True):
            first = loops * first / degree
            received = native.spmm(matrix, np.ascontiguousarray(items), n_threads=n_threads)
            layer = received + loops * layer / degree[:, None]
            scale = scale + weight * first
            offset = offset + weight * layer
        return [_PropagatedRow(*row) for row in zip(scale, offset, strict=True)]

    def dim_out(self, dim_in: int) -> int:
        if self.item_layers.shape[2] != dim_in:
            raise ValueError(f"item_layers: expected {dim_in} columns, found {self.item_layers.shape[2]}")
        return dim_in

    def arrays(self) -> dict[str, np.ndarray]:
        return {"layer_weights": self.layer_weights, "item_layers": self.item_layers, "item_degree": self.item_degree}

    def numbers(self) -> dict:
        return {"self_loops": bool(self.self_loops)}

    @classmethod
    def unpack(cls, arrays: Mapping[str, np.ndarray], numbers: Mapping[str, Any], n_items: int) -> "Propagation":
        weights = checked(arrays, "layer_weights", np.float32, None)
        if not len(weights):
            raise ValueError("layer_weights: expected at least one")
        layers = checked(arrays, "item_layers", np.float32, len(weights) - 1, n_items, None)
        degree = checked(arrays, "item_degree", np.float32, n_items)
        if (degree < 0).any():
            raise ValueError("item_degree: expected numbers of at least 0")
        return cls(weights, layers, degree, bool(numbers["self_loops"]))


@dataclass(frozen=True)
class _PropagatedRow:
    """`Propagation` of one user: final = scale * first + offset (dim,)."""

    scale: float
    offset: np.ndarray

    @property
    def is_constant(self) -> bool:
        return not self.scale

    def __call__(self, x: np.ndarray, slope: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.scale * x + self.offset, self.scale * slope


unpack_fold = IdFold.unpacker(FusedProfile, Propagation)
