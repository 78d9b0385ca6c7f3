"""Profiles beside a fitted model, never in its way: score = base + gate_u * users' part + gate_i * items' part.

    users' part    MLP(user profile) . MLP(item text)       (an ID table where items have no text)
    items' part    base user vector . MLP(item profile)

The base is exactly the model without profiles. The parts are trained beside it, with the base's item bias to
explain popularity, and the gates are chosen on validation among a few values, 0 included: on the validation
set the ranking cannot get worse. Whoever has no profile keeps the base's score.
"""

import itertools

import numpy as np

from . import layers
from .layers import Params, TextMLP
from .training import Batch, Grads, Validate, vector_step
from .vectors import Vectors

GATES = (0.0, 0.1, 0.25, 0.5, 1.0)


class ProfileTower:
    """The parts' vectors side by side. base: held fixed.

    user_profiles, item_profiles: float32 (n, n_in) or None, zero rows for none. text: float32 (n_items, n_in) or None.
    """

    name = "profiles"

    def __init__(
        self, base: Vectors, dim: int, *,
        user_profiles: np.ndarray | None = None, item_profiles: np.ndarray | None = None, text: np.ndarray | None = None,
    ):  # fmt: skip
        self.base, self.dim = base, dim
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
                    # One text space: with equal weights the first score is a similarity of texts, not chance.
                    for part in ("w1", "b1", "w2", "b2"):
                        params[f"text.{part}"] = params[f"user_profile.{part}"].copy()
            else:
                params["item_id"] = layers.init_table(rng, len(self.base[1]), self.dim)
        if self.of_items is not None:
            params |= self.of_items.init(rng, self.base[0].shape[1])
        return params

    def step(self, params: Params, batch: Batch) -> tuple[float, Grads]:
        return vector_step(self, params, batch)

    def vectors(self, params: Params) -> Vectors:
        return Vectors(*self.forward(params)[:3])

    def forward(self, params: Params, targets: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict]:
        """([users' part | base users], [their items | items' part], the base's bias, cache)."""
        cache: dict = {}
        users, items = [], []
        if self.of_users is not None:
            out, cache["user_hidden"] = self.of_users.forward(params)
            users.append(out * self.has_user)
            if self.against is not None:
                out, cache["text_hidden"] = self.against.forward(params)
            else:
                out = params["item_id"]
            items.append(out)
        if self.of_items is not None:
            out, cache["item_hidden"] = self.of_items.forward(params)
            users.append(self.base[0])
            items.append(out * self.has_item)
        return np.hstack(users), np.hstack(items), self.base[2], cache

    def backward(
        self, params: Params, cache: dict, d_users: np.ndarray, d_items: np.ndarray, d_bias: np.ndarray
    ) -> Params:
        grads: Params = {}
        at = 0
        if self.of_users is not None:
            at = self.dim
            self.of_users.backward(params, cache["user_hidden"], d_users[:, :at] * self.has_user, grads)
            if self.against is not None:
                self.against.backward(params, cache["text_hidden"], d_items[:, :at], grads)
            else:
                grads["item_id"] = d_items[:, :at]
        if self.of_items is not None:
            self.of_items.backward(params, cache["item_hidden"], d_items[:, at:] * self.has_item, grads)
        return grads

    def joined(self, parts: Vectors, gates: tuple[float, float]) -> Vectors:
        """The base with the gated parts: score of the result = base + gates . parts."""
        base_users, base_items, bias, _ = self.base
        users, items = base_users, base_items
        if self.of_items is not None and gates[1] > 0:
            items = items + np.float32(gates[1]) * parts[1][:, -base_items.shape[1] :]
        if self.of_users is not None and gates[0] > 0:
            users = np.hstack([users, np.float32(gates[0]) * parts[0][:, : self.dim]])
            items = np.hstack([items, parts[1][:, : self.dim]])
        return Vectors(np.ascontiguousarray(users), np.ascontiguousarray(items), bias)

    def best_gates(self, parts: Vectors, validate: Validate) -> tuple[tuple[float, float], float, float]:
        """(gates, recall@20, ndcg@20): the gates of highest validation NDCG@20, the smaller ones of equals."""
        of_users = GATES if self.of_users is not None else (0.0,)
        of_items = GATES if self.of_items is not None else (0.0,)
        best = ((0.0, 0.0), -1.0, -1.0)
        for gates in sorted(itertools.product(of_users, of_items), key=sum):
            recall, ndcg = validate(self.joined(parts, gates))
            if ndcg > best[2]:
                best = (gates, recall, ndcg)
        return best


def has_profile(vectors: np.ndarray) -> np.ndarray:
    """bool (n,): rows that are not zero."""
    return (vectors != 0).any(axis=1)
