"""SGL (arXiv 2010.10783), edge dropout: LightGCN with a contrastive loss between two graphs with dropped edges.

As published in RecLM: both views are drawn again for every batch. Every entry of the adjacency (each direction of an
edge, each self-loop) is kept independently with probability `keep` and divided by it. Degrees are those of the whole
graph.
"""

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from ..contrast import ContrastGCN
from ..encoders import make_encoder
from ..graph import Graph, Sides
from ..inputs import Inputs
from ..memory_estimate import Shape, trained_bytes
from ..settings import CONTRAST_DEFAULT, ContrastSettings, setting
from .lightgcn import unpack_fold as unpack_fold


@dataclass(frozen=True)
class Settings(ContrastSettings):
    """Adds `keep`."""

    keep: float = setting(0.5, "probability that a view keeps an entry of the adjacency", above=0, at_most=1)


PRESETS = {"paper": Settings(l2=1e-5), "default": Settings(**CONTRAST_DEFAULT, keep=0.8)}


def build(settings: Settings, inputs: Inputs, interactions: sp.csr_matrix, n_threads: int | None = None) -> "SGL":
    """interactions: CSR (n_users, n_items), the training set."""
    graph = Graph(interactions, self_loops=settings.self_loops, n_threads=n_threads)
    return SGL(make_encoder(settings, inputs, interactions), graph, settings)


def estimate_bytes(shape: Shape, settings: Settings) -> int:
    # Masks, and the weights of both views and their adjoints in both directions.
    return trained_bytes(shape, settings, view_bytes=shape.nnz * 4 * 12)


class SGL(ContrastGCN):
    """LightGCN with edge dropout views. settings: this module's `Settings`."""

    name = "sgl"
    settings: Settings

    def view(self, graph: Graph, first: Sides, rng: np.random.Generator) -> tuple[Sides, Graph]:
        keep = self.settings.keep

        def factors(*shape: int) -> np.ndarray:
            return (rng.random(shape, dtype=np.float32) < keep).astype(np.float32) / np.float32(keep)

        nnz = len(graph.user_items.data)
        to_users, to_items = factors(nnz), factors(nnz)
        loop_u, loop_i = graph.loop_u, graph.loop_i
        loops = None if loop_u is None or loop_i is None else (factors(len(loop_u), 1), factors(len(loop_i), 1))
        thinned, adjoint = graph.reweighted(to_users, to_items, loops), graph.reweighted(to_items, to_users, loops)
        return thinned.propagate(*first, self.layer_weights), adjoint
