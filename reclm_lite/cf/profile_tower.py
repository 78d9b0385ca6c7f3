"""The profile tower adds profiles to a fitted model: score = base + gate_u * users' part + gate_i * items' part.

    users' part    MLP(user profile) . MLP(item text)       (an ID table if items have no text)
    items' part    base user vector . MLP(item profile)

The base is exactly the model without profiles and stays fixed. The parts are trained separately, with the base's item
bias to explain popularity. The gates are chosen on validation among a few values including 0, so profiles never lower
validation NDCG@20. Users and items without a profile keep the base's score.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

from . import layers
from .interface import Batch, Grads, RowGrad, UnpackFold, UserFold
from .layers import Params, TextMLP, take_rows
from .rowwise import row_step
from .training import Validate
from .vectors import Vectors

GATES = (0.0, 0.1, 0.25, 0.5, 1.0)


class ProfileTower:
    """The vectors of both parts, concatenated. base: vectors of the fitted model, fixed.

    user_profiles, item_profiles: float32 (n, n_in) or None, zero rows for none. text: float32 (n_items, n_in) or None.
    The items' part uses the base's dot-product columns, not those of a ReLU part.
    """

    name = "profiles"
    tables = ("item_id",)

    def __init__(
        self,
        base: Vectors,
        dim: int,
        *,
        user_profiles: np.ndarray | None = None,
        item_profiles: np.ndarray | None = None,
        text: np.ndarray | None = None,
        n_threads: int | None = None,
    ):
        self.base, self.dim, self.n_threads = base, dim, n_threads
        self.base_dim = base.users.shape[1] - base.relu_dim
        self.of_users = None if user_profiles is None else TextMLP("user_profile", user_profiles)
        self.against = None if text is None else TextMLP("text", text)
        self.of_items = None if item_profiles is None else TextMLP("item_profile", item_profiles)
        self.has_user = None if user_profiles is None else has_profile(user_profiles)[:, None]
        self.has_item = None if item_profiles is None else has_profile(item_profiles)[:, None]

    def init(self, rng: np.random.Generator) -> Params:
        params: Params = {}
        if self.of_users is not None:
            params |= self.of_users.init(rng, self.dim)
            if self.against is not None:
                params |= self.against.init(rng, self.dim)
                if self.against.text.shape[1] == self.of_users.text.shape[1]:
                    # Profiles and texts share one space: with equal weights, the initial score is a text similarity.
                    for part in layers.MLP_PARTS:
                        params[f"text.{part}"] = params[f"user_profile.{part}"].copy()
            else:
                params["item_id"] = layers.init_table(rng, len(self.base.items), self.dim)
        if self.of_items is not None:
            params |= self.of_items.init(rng, self.base_dim)
        return params

    def step(self, params: Params, batch: Batch) -> tuple[float, Grads]:
        return row_step(self, params, batch, sparse=False, n_threads=self.n_threads)

    def vectors(self, params: Params) -> Vectors:
        return self.forward(params)[0]

    def forward(
        self, params: Params, users: np.ndarray | None = None, items: np.ndarray | None = None
    ) -> tuple[Vectors, dict]:
        """(([users' part | base users], [their items | items' part], the base's bias) of some rows or all, cache)."""
        cache: dict = {"users": users, "items": items}
        of_users, of_items = [], []
        if self.of_users is not None and self.has_user is not None:
            out, cache["user_hidden"] = self.of_users.of_rows(users).forward(params)
            of_users.append(out * take_rows(self.has_user, users))
            if self.against is not None:
                out, cache["text_hidden"] = self.against.of_rows(items).forward(params)
            else:
                out = take_rows(params["item_id"], items)
            of_items.append(out)
        if self.of_items is not None and self.has_item is not None:
            out, cache["item_hidden"] = self.of_items.of_rows(items).forward(params)
            of_users.append(take_rows(self.base.users, users)[:, : self.base_dim])
            of_items.append(out * take_rows(self.has_item, items))
        bias = self.base.bias
        return Vectors(np.hstack(of_users), np.hstack(of_items), take_rows(bias, items) if len(bias) else bias), cache

    def backward(self, params: Params, cache: dict, d: Vectors) -> Grads:
        """Gradients of all parameters, given the gradients of the vectors."""
        grads: Grads = {}
        users, items = cache["users"], cache["items"]
        at = 0
        if self.of_users is not None and self.has_user is not None:
            at = self.dim
            d_out = d.users[:, :at] * take_rows(self.has_user, users)
            self.of_users.of_rows(users).backward(params, cache["user_hidden"], d_out, grads)
            if self.against is not None:
                self.against.of_rows(items).backward(params, cache["text_hidden"], d.items[:, :at], grads)
            else:
                d_out = np.ascontiguousarray(d.items[:, :at])
                grads["item_id"] = d_out if items is None else RowGrad(items, d_out)
        if self.of_items is not None and self.has_item is not None:
            d_out = d.items[:, at:] * take_rows(self.has_item, items)
            self.of_items.of_rows(items).backward(params, cache["item_hidden"], d_out, grads)
        return grads

    def joined(self, parts: Vectors, gates: tuple[float, float]) -> Vectors:
        """The base joined with the gated parts: score = base + gates . parts."""
        at = self.base_dim
        users, items = [self.base.users[:, :at]], [self.base.items[:, :at]]
        if self.of_items is not None and gates[1] > 0:
            items[0] = items[0] + np.float32(gates[1]) * parts.items[:, -at:]
        if self.of_users is not None and gates[0] > 0:
            users.append(np.float32(gates[0]) * parts.users[:, : self.dim])
            items.append(parts.items[:, : self.dim])
        # The ReLU columns stay last.
        users.append(self.base.users[:, at:])
        items.append(self.base.items[:, at:])
        return Vectors(np.hstack(users), np.hstack(items), self.base.bias, self.base.relu_dim)

    def fold(self, base: UserFold | None, params: Params, gates: tuple[float, float]) -> UserFold | None:
        """The base's fold-in, with the users' part if its gate is not 0; None if the base has no fold-in."""
        if base is None or self.of_users is None or gates[0] == 0:
            return base
        mlp = {part: params[f"user_profile.{part}"] for part in layers.MLP_PARTS}
        return TowerFold(base, mlp, float(gates[0]))

    def best_gates(self, parts: Vectors, validate: Validate) -> tuple[tuple[float, float], float, float]:
        """(gates, recall@20, ndcg@20): the gates of highest validation NDCG@20; ties go to the smaller gates."""
        of_users = GATES if self.of_users is not None else (0.0,)
        of_items = GATES if self.of_items is not None else (0.0,)
        best = ((0.0, 0.0), -1.0, -1.0)
        for gates in sorted(itertools.product(of_users, of_items), key=sum):
            recall, ndcg = validate(self.joined(parts, gates))
            if ndcg > best[2]:
                best = (gates, recall, ndcg)
        return best


def has_profile(vectors: np.ndarray) -> np.ndarray:
    """bool (n,): whether each row is non-zero."""
    return (vectors != 0).any(axis=1)


@dataclass(frozen=True)
class TowerFold:
    """Fold-in for a model with a profile tower: the base's row, then gate * MLP(profile), then the base's ReLU part.

    mlp: {"w1", "b1", "w2", "b2"} of the users' part. A user without a profile gets zeros there.
    """

    base: UserFold
    mlp: Params
    gate: float

    @property
    def dim(self) -> int:
        return self.base.dim + self.mlp["w2"].shape[1]

    @property
    def dim_profile(self) -> int:
        return self.mlp["w1"].shape[0]

    def place(
        self, vectors: Vectors, histories: sp.csr_matrix, profiles: np.ndarray | None, *, n_threads: int | None = None
    ) -> np.ndarray:
        n, width = histories.shape[0], self.mlp["w2"].shape[1]
        end = vectors.items.shape[1] - vectors.relu_dim  # the tower's columns end here
        of_base = np.delete(vectors.items, np.s_[end - width : end], axis=1)
        rows = self.base.place(vectors._replace(items=of_base), histories, None, n_threads=n_threads)
        tower = np.zeros((n, width), np.float32)
        if profiles is not None:
            given = has_profile(profiles)
            tower[given] = np.float32(self.gate) * layers.mlp_rows(self.mlp, profiles[given])
        return np.ascontiguousarray(np.hstack([rows[:, : end - width], tower, rows[:, end - width :]]))

    def arrays(self) -> dict[str, np.ndarray]:
        mlp = {f"tower_mlp.{part}": np.asarray(array, np.float32) for part, array in self.mlp.items()}
        return {**self.base.arrays(), **mlp}

    def numbers(self) -> dict[str, Any]:
        return {**self.base.numbers(), "gate": float(self.gate)}

    @staticmethod
    def unpack(
        arrays: Mapping[str, np.ndarray], numbers: Mapping[str, Any], n_items: int, unpack_base: UnpackFold
    ) -> UserFold:
        """The fold-in stored with a model: a `TowerFold` if its arrays are there, else the base's.

        Raises ValueError if the arrays do not fit together.
        """
        own = {name: array for name, array in arrays.items() if name.startswith("tower_mlp.")}
        base = unpack_base({name: array for name, array in arrays.items() if name not in own}, numbers, n_items)
        if not own:
            return base
        gate = numbers["gate"]
        if isinstance(gate, bool) or not isinstance(gate, (int, float)) or not 0 < gate <= 1e3:
            raise ValueError(f"gate: expected a positive number, found {str(gate)[:40]!r}")
        return TowerFold(base, layers.checked_mlp(own, "tower_mlp"), float(gate))
