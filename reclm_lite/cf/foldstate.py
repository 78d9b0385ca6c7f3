"""What a trained model keeps, beside its vectors, to place a new user without being fitted again.

A user's row of `Vectors` is made in four steps; each model stores the ones it has (`fold_parts(params)` of its class):

    e                                             the ID vector: what folding in looks for (`cf/foldin.py`)
    first = e                                     or, where profiles are fused as published,
            relu([e, q] @ fuse_w + fuse_b)        q = normalize(MLP(profile)), zero for no profile
    final = first                                 or, on a graph, sum_l layer_weights[l] * u_l with u_0 = first and
            u_l = sum_i item_layers[l-1, i] / sqrt(d_u d_i) + (u_(l-1) / d_u with self-loops)
    row   = final                                 or final @ readout + readout_bias (NCF)
            followed by gate * MLP(profile)       where a profile tower joined the model

Left out: the items, which are held fixed and stand in the model's own vectors.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..artefacts import checked
from ..errors import InputError

MLP = dict[str, np.ndarray]


@dataclass(frozen=True)
class FoldState:
    """loss: "bpr" or "ssm", n_negatives: drawn for each positive, l2: weight of |e|^2 beside the *sum* of the losses
    of a user's positives (the training's L2 of the user table, times its batches per epoch, times its batch size).

    pool: int32, ascending, the items that negatives are drawn from.
    prior_mean: float32 (dim_e,), prior_precision: float32 (dim_e, dim_e): of the fitted users' ID vectors; `of_table`
    computes them. min_id_interactions: users with fewer have e = 0.

    layer_weights: float32 (n_layers + 1,), item_layers: float32 (n_layers, n_items, dim), the items' vectors at layers
    0 to n_layers - 1; item_degree: float32 (n_items,), d_i, with the self-loop where self_loops. None without a graph.
    fuse_w: float32 (dim_e + dim_q, dim), fuse_b: float32 (dim,). readout: float32 (dim, dim_row), readout_bias:
    (dim_row,).
    fuse_mlp, tower_mlp: {"w1", "b1", "w2", "b2"} of the profile's projection. gate: of the tower.
    """

    loss: str
    n_negatives: int
    l2: float
    pool: np.ndarray
    prior_mean: np.ndarray
    prior_precision: np.ndarray
    min_id_interactions: int = 1
    layer_weights: np.ndarray | None = None
    item_layers: np.ndarray | None = None
    item_degree: np.ndarray | None = None
    self_loops: bool = False
    fuse_w: np.ndarray | None = None
    fuse_b: np.ndarray | None = None
    fuse_mlp: MLP | None = None
    readout: np.ndarray | None = None
    readout_bias: np.ndarray | None = None
    tower_mlp: MLP | None = None
    gate: float = 0.0

    @property
    def dim_profile(self) -> int | None:
        """The width of a profile vector that the model understands, None where it takes none."""
        mlp = self.tower_mlp or self.fuse_mlp
        return None if mlp is None else mlp["w1"].shape[0]

    def with_tower(self, mlp: MLP, gate: float) -> "FoldState":
        """The same, with a profile tower's users' part behind the row."""
        return dataclasses.replace(self, tower_mlp=mlp, gate=float(gate))

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything as named arrays, for `pack` into a model's file."""
        out: dict[str, np.ndarray] = {}
        for name, value in ((f.name, getattr(self, f.name)) for f in dataclasses.fields(self)):
            if isinstance(value, dict):
                out |= {f"{name}.{part}": np.asarray(array, np.float32) for part, array in value.items()}
            elif name == "pool":
                out[name] = value.astype(np.int32)
            elif isinstance(value, np.ndarray):
                out[name] = value.astype(np.float32)
        return out

    def numbers(self) -> dict:
        """The settings that are no arrays, JSON-able."""
        return {
            "loss": self.loss,
            "n_negatives": int(self.n_negatives),
            "l2": float(self.l2),
            "gate": float(self.gate),
            "min_id_interactions": int(self.min_id_interactions),
            "self_loops": bool(self.self_loops),
        }

    def check(self, n_items: int) -> None:
        """Raise ValueError unless arrays and numbers, read from a file, fit together and to `n_items`."""
        arrays = self.arrays()
        pool = checked(arrays, "pool", np.int32, None)
        if len(pool) and not (pool[0] >= 0 and pool[-1] < n_items and (np.diff(pool) > 0).all()):
            raise ValueError(f"pool: expected ascending numbers from 0 to {n_items - 1}")
        (dim,) = checked(arrays, "prior_mean", np.float32, None).shape
        checked(arrays, "prior_precision", np.float32, dim, dim)
        if self.layer_weights is not None:
            (n_weights,) = checked(arrays, "layer_weights", np.float32, None).shape
            checked(arrays, "item_layers", np.float32, n_weights - 1, n_items, None)
            if (checked(arrays, "item_degree", np.float32, n_items) < 0).any():
                raise ValueError("item_degree: expected numbers of at least 0")
        for name, n_axes in (("fuse_w", 2), ("fuse_b", 1), ("readout", 2), ("readout_bias", 1)):
            if getattr(self, name) is not None:
                checked(arrays, name, np.float32, *[None] * n_axes)
        for name in ("fuse_mlp", "tower_mlp"):
            if getattr(self, name) is not None:
                hidden = checked(arrays, f"{name}.w1", np.float32, None, None).shape[1]
                checked(arrays, f"{name}.b1", np.float32, hidden)
                out = checked(arrays, f"{name}.w2", np.float32, hidden, None).shape[1]
                checked(arrays, f"{name}.b2", np.float32, out)
        numbers = {
            "n_negatives": self.n_negatives,
            "l2": self.l2,
            "gate": self.gate,
            "min_id_interactions": self.min_id_interactions,
        }
        for name, value in numbers.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e9:
                raise ValueError(f"{name}: expected a number, found {str(value)[:40]!r}")

    @classmethod
    def unpack(cls, arrays: Mapping[str, np.ndarray], numbers: Mapping) -> "FoldState":
        """The inverse of `arrays` and `numbers`."""
        values: dict = dict(numbers)
        for name, array in arrays.items():
            field, _, part = name.partition(".")
            if part:
                values.setdefault(field, {})[part] = array
            else:
                values[field] = array
        known = {field.name for field in dataclasses.fields(cls)}
        if not set(values) <= known:
            raise InputError(
                f"fold state: expected fields among {', '.join(sorted(known))}, found {sorted(set(values) - known)}"
            )
        return cls(**values)


def of_table(user_id: np.ndarray) -> dict[str, np.ndarray]:
    """{"prior_mean", "prior_precision"} of ID vectors float32 (n, dim_e): what a user looks like before any evidence.

    The covariance is shrunk towards its diagonal by two users' worth, so that few users still give a proper one.
    """
    n, dim = user_id.shape
    if n == 0:
        return {"prior_mean": np.zeros(dim, np.float32), "prior_precision": np.eye(dim, dtype=np.float32)}
    table = user_id.astype(np.float64)
    mean = table.mean(axis=0)
    centred = table - mean
    variance = np.maximum(centred.var(axis=0), 1e-6)
    covariance = (centred.T @ centred + 2.0 * np.diag(variance)) / (n + 2.0)
    return {"prior_mean": mean.astype(np.float32), "prior_precision": np.linalg.inv(covariance).astype(np.float32)}
