"""SimGCL (arXiv 2112.08679): LightGCN with a contrastive loss between two views with noise in every layer.

After each propagation a view's vectors get uniform noise of length `eps` with the signs of the vectors, so that no
vector leaves its orthant:
    e_l = A e_(l-1) + eps * normalize(u) * sign(A e_(l-1)),   u ~ U(0, 1)^dim
The gradient treats the noise as a constant, so the views share one backward propagation with the ranking loss.
As published in RecLM, a view's layer sum includes the first vectors, without noise.
"""

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from .. import layers
from ..contrast import ContrastGCN
from ..encoders import make_encoder
from ..graph import Graph, Sides
from ..inputs import Inputs
from ..memory_estimate import Shape, trained_bytes
from ..settings import CONTRAST_DEFAULT, ContrastSettings, setting
from .lightgcn import unpack_fold as unpack_fold


@dataclass(frozen=True)
class Settings(ContrastSettings):
    """Adds `eps`."""

    eps: float = setting(0.9, "length of the noise in every layer of a view", at_least=0)


PRESETS = {"paper": Settings(l2=1e-5), "default": Settings(**CONTRAST_DEFAULT, eps=0.1)}


def build(settings: Settings, inputs: Inputs, interactions: sp.csr_matrix, n_threads: int | None = None) -> "SimGCL":
    """interactions: CSR (n_users, n_items), the training set."""
    graph = Graph(interactions, self_loops=settings.self_loops, n_threads=n_threads)
    return SimGCL(make_encoder(settings, inputs, interactions), graph, settings)


def estimate_bytes(shape: Shape, settings: Settings) -> int:
    return trained_bytes(shape, settings)


class SimGCL(ContrastGCN):
    """LightGCN with noisy views. settings: this module's `Settings`."""

    name = "simgcl"
    settings: Settings

    def view(self, graph: Graph, first: Sides, rng: np.random.Generator) -> tuple[Sides, Graph]:
        users, items = first
        weights = self.layer_weights
        sum_users, sum_items = np.float32(weights[0]) * users, np.float32(weights[0]) * items
        for weight in weights[1:]:
            users, items = graph.step(users, items)
            users += self._noise(users, rng)
            items += self._noise(items, rng)
            sum_users += np.float32(weight) * users
            sum_items += np.float32(weight) * items
        return (sum_users, sum_items), graph

    def _noise(self, vectors: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        noise, _ = layers.normalize(rng.random(vectors.shape, dtype=np.float32))
        return np.float32(self.settings.eps) * noise * np.sign(vectors)
