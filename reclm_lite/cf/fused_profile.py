"""Fold-in through the published fusion: how a new user's profile joins the ID vector (encoders.py has the training)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

from ..artefacts import checked
from . import layers


@dataclass(frozen=True)
class FusedProfile:
    """The user side of the published fusion: relu([e, q] @ weight + bias), q = normalize(MLP(profile)).

    weight: float32 (dim_e + dim_q, dim). bias: float32 (dim,). mlp: {"w1", "b1", "w2", "b2"} of the projection. A user
    without a profile goes through the same layers with a zero row.
    """

    weight: np.ndarray
    bias: np.ndarray
    mlp: dict[str, np.ndarray]

    @property
    def dim_profile(self) -> int:
        return self.mlp["w1"].shape[0]

    def prepare(
        self, histories: sp.csr_matrix, profiles: np.ndarray | None, n_threads: int | None
    ) -> list["_FusedRow"]:
        dim_e = len(self.weight) - self.mlp["w2"].shape[1]
        if profiles is None:
            profiles = np.zeros((histories.shape[0], self.dim_profile), np.float32)
        unit = layers.normalize(layers.mlp_rows(self.mlp, profiles))[0]
        weight = self.weight[:dim_e].astype(np.float64)
        return [_FusedRow(weight, np.asarray(row @ self.weight[dim_e:] + self.bias)) for row in unit]

    def dim_out(self, dim_in: int) -> int:
        if dim_in + self.mlp["w2"].shape[1] != len(self.weight):
            raise ValueError(f"fuse_w: expected {dim_in + self.mlp['w2'].shape[1]} rows, found {len(self.weight)}")
        return self.weight.shape[1]

    def arrays(self) -> dict[str, np.ndarray]:
        mlp = {f"fuse_mlp.{part}": array for part, array in self.mlp.items()}
        return {"fuse_w": self.weight, "fuse_b": self.bias, **mlp}

    def numbers(self) -> dict:
        return {}

    @classmethod
    def unpack(
        cls, arrays: Mapping[str, np.ndarray], numbers: Mapping[str, Any], n_items: int
    ) -> "FusedProfile | None":
        if "fuse_w" not in arrays:
            return None
        weight = checked(arrays, "fuse_w", np.float32, None, None)
        bias = checked(arrays, "fuse_b", np.float32, weight.shape[1])
        return cls(weight, bias, layers.checked_mlp(arrays, "fuse_mlp"))


@dataclass(frozen=True)
class _FusedRow:
    """`FusedProfile` of one user. weight: float64 (dim_e, dim). of_profile: (dim,), the rest of the sum."""

    weight: np.ndarray
    of_profile: np.ndarray
    is_constant = False

    def __call__(self, x: np.ndarray, slope: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        y = x @ self.weight + self.of_profile
        return np.maximum(y, 0.0), slope @ self.weight * (y > 0)
