"""How ID vectors, text and profiles become the first vectors of users and items.

`PublishedEncoder` follows the published configuration (arXiv 2412.19302 and its repository):

    item = normalize(MLP(text))                      no ID vector
    item = ReLU(linear([MLP(text), MLP'(profile)]))  with item profiles
    user = ID                                        or, with user profiles, through *the same* layer:
    user = ReLU(linear([ID, normalize(MLP'(profile))]))

`ResidualEncoder` is this project's: item = MLP(text) + ID residual, user = ID, and a bias for each item
that its text predicts in part, so that an unseen item has one too. Profiles join it afterwards (profile_tower.py).
Without text vectors both give items plain ID vectors. Zero rows of profiles mean "has none".
"""

import numpy as np

from . import layers
from .layers import Params, TextMLP

NO_BIAS = np.zeros(0, np.float32)


class PublishedEncoder:
    """First vectors of the `paper` preset. text, profiles: float32 (n, n_in) or None."""

    def __init__(
        self, n_users: int, n_items: int, dim: int, *,
        text: np.ndarray | None = None,
        user_profiles: np.ndarray | None = None,
        item_profiles: np.ndarray | None = None,
    ):  # fmt: skip
        self.n_users, self.n_items, self.dim = n_users, n_items, dim
        self.text = None if text is None else TextMLP("text", text)
        self.user_profiles = None if user_profiles is None else TextMLP("profile", user_profiles)
        # Users' and items' profiles share the projection MLP' as they share the fusion layer.
        self.item_profiles = None if item_profiles is None else TextMLP("profile", item_profiles)

    def init(self, rng: np.random.Generator) -> Params:
        params = {"user_id": layers.init_table(rng, self.n_users, self.dim)}
        if self.text is None:
            params["item_id"] = layers.init_table(rng, self.n_items, self.dim)
        else:
            params |= self.text.init(rng, self.dim)
        profiles = self.user_profiles or self.item_profiles
        if profiles is not None:
            params |= profiles.init(rng, self.dim)
            params["fuse.w"], params["fuse.b"] = layers.init_linear(rng, 2 * self.dim, self.dim)
        return params

    def forward(self, params: Params) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict]:
        """(users (n_users, dim), items (n_items, dim), bias (0,), what backward needs)."""
        cache: dict = {}
        if self.text is None:
            items = params["item_id"]
        else:
            items, cache["text_hidden"] = self.text.forward(params)
        if self.item_profiles is not None:
            profile, cache["item_hidden"] = self.item_profiles.forward(params)
            cache["item_joint"] = np.hstack([items, profile])
            items = layers.relu(layers.linear(cache["item_joint"], params["fuse.w"], params["fuse.b"]))
        elif self.text is not None:
            items, cache["item_length"] = layers.normalize(items)
        cache["items"] = items
        users = params["user_id"]
        if self.user_profiles is not None:
            profile, cache["user_hidden"] = self.user_profiles.forward(params)
            profile, cache["user_length"] = layers.normalize(profile)
            cache["user_joint"] = np.hstack([users, profile])
            users = layers.relu(layers.linear(cache["user_joint"], params["fuse.w"], params["fuse.b"]))
        cache["users"] = users
        return users, items, NO_BIAS, cache

    def backward(
        self, params: Params, cache: dict, d_users: np.ndarray, d_items: np.ndarray, d_bias: np.ndarray
    ) -> Params:
        """Gradients of all parameters from those of the outputs."""
        grads: Params = {}
        dim = self.dim
        if self.item_profiles is not None:
            d_joint = self._fuse_backward(params, cache["item_joint"], cache["items"], d_items, grads)
            d_items = np.ascontiguousarray(d_joint[:, :dim])
            self._add(grads, self.item_profiles, params, cache["item_hidden"], d_joint[:, dim:])
        elif self.text is not None:
            d_items = layers.normalize_backward(cache["items"], cache["item_length"], d_items)
        if self.text is None:
            grads["item_id"] = d_items
        else:
            self.text.backward(params, cache["text_hidden"], d_items, grads)
        if self.user_profiles is not None:
            d_joint = self._fuse_backward(params, cache["user_joint"], cache["users"], d_users, grads)
            profile = cache["user_joint"][:, dim:]
            d_profile = layers.normalize_backward(profile, cache["user_length"], d_joint[:, dim:])
            self._add(grads, self.user_profiles, params, cache["user_hidden"], d_profile)
            d_users = np.ascontiguousarray(d_joint[:, :dim])
        grads["user_id"] = d_users
        return grads

    @staticmethod
    def _fuse_backward(params: Params, joint: np.ndarray, out: np.ndarray, d_out: np.ndarray, grads: Params) -> np.ndarray:
        d_weight, d_bias, d_joint = layers.linear_backward(joint, params["fuse.w"], layers.relu_backward(out, d_out))
        grads["fuse.w"] = grads["fuse.w"] + d_weight if "fuse.w" in grads else d_weight
        grads["fuse.b"] = grads["fuse.b"] + d_bias if "fuse.b" in grads else d_bias
        return d_joint

    @staticmethod
    def _add(grads: Params, mlp: TextMLP, params: Params, hidden: np.ndarray, dy: np.ndarray) -> None:
        """Add one use's gradients of the shared projection."""
        own: Params = {}
        mlp.backward(params, hidden, dy, own)
        for name, grad in own.items():
            grads[name] = grads[name] + grad if name in grads else grad


class ResidualEncoder:
    """First vectors of the `default` preset. text: float32 (n_items, n_in) or None.

    Users of at least `min_id_interactions` have an ID vector; others live by the graph alone, since a vector
    learned from one or two interactions repeats them and generalises worse than their neighbourhood.

    user_counts: (n_users,), item_counts: (n_items,), training interactions of each. An item's bias starts at the log of the
    count, which is what training on uniform negatives drives it to; where there is text, a ridge regression
    explains what it can, and unseen items have that part alone. ID residuals and biases move for items with
    training interactions only, as negatives are drawn among these.
    """

    def __init__(
        self, n_users: int, n_items: int, dim: int, *,
        user_counts: np.ndarray, item_counts: np.ndarray, text: np.ndarray | None = None,
        n_hidden: int = 64, min_id_interactions: int = 5,
    ):  # fmt: skip
        self.n_users, self.n_items, self.dim, self.n_hidden = n_users, n_items, dim, n_hidden
        self.item_counts = item_counts
        self.id_users = np.flatnonzero(user_counts >= min_id_interactions)
        self.text = None if text is None else TextMLP("text", text)

    def init(self, rng: np.random.Generator) -> Params:
        log_counts = np.log1p(self.item_counts).astype(np.float32)
        params = {"item_bias": log_counts}
        params["user_id"] = layers.init_table(rng, len(self.id_users), self.dim)
        if self.text is None:
            params["item_id"] = layers.init_table(rng, self.n_items, self.dim)
        else:
            params["item_id"] = np.zeros((self.n_items, self.dim), np.float32)
            params |= self.text.init(rng, self.dim, self.n_hidden)
            params["bias_of_text"], explained = text_regression(self.text.text, log_counts, self.item_counts > 0)
            params["item_bias"] = np.where(self.item_counts > 0, log_counts - explained, 0).astype(np.float32)
        return params

    def forward(self, params: Params) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict]:
        """(users (n_users, dim), items (n_items, dim), bias (n_items,), what backward needs)."""
        cache: dict = {}
        users = np.zeros((self.n_users, self.dim), params["item_bias"].dtype)
        users[self.id_users] = params["user_id"]
        if self.text is None:
            return users, params["item_id"], params["item_bias"], cache
        projected, cache["text_hidden"] = self.text.forward(params)
        bias = params["item_bias"] + (self.text.text @ params["bias_of_text"])[:, 0]
        return users, projected + params["item_id"], bias, cache

    def backward(
        self, params: Params, cache: dict, d_users: np.ndarray, d_items: np.ndarray, d_bias: np.ndarray
    ) -> Params:
        """Gradients of all parameters from those of the outputs."""
        grads = {"item_id": d_items, "item_bias": d_bias, "user_id": d_users[self.id_users]}
        if self.text is not None:
            self.text.backward(params, cache["text_hidden"], d_items, grads)
            grads["bias_of_text"] = self.text.text.T @ d_bias[:, None]
        return grads


def text_regression(text: np.ndarray, target: np.ndarray, known: np.ndarray, ridge: float = 10.0) -> tuple[np.ndarray, np.ndarray]:
    """Weights float32 (n_in, 1) and their predictions float32 (n_items,): ridge regression over the `known` items."""
    x = text[known].astype(np.float64)
    normal = x.T @ x + ridge * np.eye(x.shape[1])
    weights = np.linalg.solve(normal, x.T @ target[known].astype(np.float64))
    return weights[:, None].astype(np.float32), (text @ weights).astype(np.float32)
