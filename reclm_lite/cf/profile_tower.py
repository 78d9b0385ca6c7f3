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
from .foldstate import FoldState
from .layers import Params, TextMLP
from .rowwise import row_step
from .training import Batch, Grads, RowGrad, Validate
from .vectors import Vectors

GATES = (0.0, 0.1, 0.25, 0.5, 1.0)


class ProfileTower:
    """The parts' vectors side by side. base: held fixed.

    user_profiles, item_profiles: float32 (n, n_in) or None, zero rows for none. text: float32 (n_items, n_in) or None.
    Items' part goes with the dot product's columns of the base alone, not with those of a ReLU layer.
    """

    name = "profiles"

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
                    # One text space: with equal weights the first score is a similarity of texts, not chance.
                    for part in ("w1", "b1", "w2", "b2"):
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
        """([users' part | base users], [their items | items' part], the base's bias) of some rows or all; cache."""
        cache: dict = {"users": users, "items": items}
        of_users, of_items = [], []
        if self.of_users is not None:
            out, cache["user_hidden"] = self._mlp(self.of_users, users).forward(params)
            of_users.append(out * _take(self.has_user, users))
            if self.against is not None:
                out, cache["text_hidden"] = self._mlp(self.against, items).forward(params)
            else:
                out = _take(params["item_id"], items)
            of_items.append(out)
        if self.of_items is not None:
            out, cache["item_hidden"] = self._mlp(self.of_items, items).forward(params)
            of_users.append(_take(self.base.users, users)[:, : self.base_dim])
            of_items.append(out * _take(self.has_item, items))
        bias = self.base.bias
        return Vectors(np.hstack(of_users), np.hstack(of_items), _take(bias, items) if len(bias) else bias), cache

    def backward(self, params: Params, cache: dict, d: Vectors) -> Grads:
        """Gradients of all parameters from those of the vectors."""
        grads: Grads = {}
        users, items = cache["users"], cache["items"]
        at = 0
        if self.of_users is not None:
            at = self.dim
            d_out = d.users[:, :at] * _take(self.has_user, users)
            self._mlp(self.of_users, users).backward(params, cache["user_hidden"], d_out, grads)
            if self.against is not None:
                self._mlp(self.against, items).backward(params, cache["text_hidden"], d.items[:, :at], grads)
            else:
                d_out = np.ascontiguousarray(d.items[:, :at])
                grads["item_id"] = d_out if items is None else RowGrad(items, d_out)
        if self.of_items is not None:
            d_out = d.items[:, at:] * _take(self.has_item, items)
            self._mlp(self.of_items, items).backward(params, cache["item_hidden"], d_out, grads)
        return grads

    @staticmethod
    def _mlp(mlp: TextMLP, rows: np.ndarray | None) -> TextMLP:
        return mlp if rows is None else TextMLP(mlp.name, mlp.text[rows])

    def joined(self, parts: Vectors, gates: tuple[float, float]) -> Vectors:
        """The base with the gated parts: score of the result = base + gates . parts."""
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

    def fold(self, state: FoldState, params: Params, gates: tuple[float, float]) -> FoldState:
        """The base's fold state with the users' part, where that is open."""
        if self.of_users is None or gates[0] == 0:
            return state
        return state.with_tower({part: params[f"user_profile.{part}"] for part in ("w1", "b1", "w2", "b2")}, gates[0])

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


def _take(array: np.ndarray, rows: np.ndarray | None) -> np.ndarray:
    return array if rows is None else array[rows]


def has_profile(vectors: np.ndarray) -> np.ndarray:
    """bool (n,): rows that are not zero."""
    return (vectors != 0).any(axis=1)
