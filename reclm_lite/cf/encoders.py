"""How ID vectors, text and profiles become the first vectors of users and items.

`PublishedEncoder` follows the published configuration (arXiv 2412.19302 and its repository):

    item = normalize(MLP(text))                      no ID vector
    item = normalize(ReLU(linear([MLP(text), MLP'(profile)])))  with item profiles
    user = ID                                        or, with user profiles, through *the same* layer:
    user = ReLU(linear([ID, normalize(MLP'(profile))]))

`ResidualEncoder` is this project's: item = MLP(text) + ID residual, user = ID, and a bias for each item
that its text predicts in part, so that an unseen item has one too. Profiles are added by a separate model
(profile_tower.py). Without text vectors both encoders give items plain ID vectors. A zero row of profiles means that
the user or item has none.
"""

from collections.abc import Collection, Sequence
from typing import ClassVar, Protocol

import numpy as np
import scipy.sparse as sp

from ..errors import ModelError
from . import layers
from .fused_profile import FusedProfile
from .id_fold import IdFold, UserStep
from .inputs import Inputs
from .interface import Grads, RowGrad
from .layers import Params, TextMLP, take_rows
from .training import TrainConfig

NO_BIAS = np.zeros(0, np.float32)
Rows = np.ndarray | None
# (user vectors, item vectors, item bias, cache for backward)
First = tuple[np.ndarray, np.ndarray, np.ndarray, dict]


class PublishedEncoder:
    """First vectors of the `paper` preset. text, user and item profiles: float32 (n, n_in) or None."""

    tables: Collection[str] = ("user_id", "item_id")
    profiles_beside: ClassVar[bool] = False
    text_replaces_ids: ClassVar[bool] = True

    def __init__(
        self,
        n_users: int,
        n_items: int,
        dim: int,
        *,
        text: np.ndarray | None = None,
        user_profiles: np.ndarray | None = None,
        item_profiles: np.ndarray | None = None,
        n_hidden: int = 0,
    ):
        self.n_users, self.n_items, self.dim, self.n_hidden = n_users, n_items, dim, n_hidden or dim
        self.text = None if text is None else TextMLP("text", text)
        self.user_profiles = None if user_profiles is None else TextMLP("profile", user_profiles)
        # Users' and items' profiles share the projection MLP' as they share the fusion layer.
        self.item_profiles = None if item_profiles is None else TextMLP("profile", item_profiles)

    @classmethod
    def of(cls, settings: "EncoderSettings", inputs: Inputs, interactions: sp.csr_matrix) -> "PublishedEncoder":
        n_users, n_items = interactions.shape
        return cls(
            n_users,
            n_items,
            settings.dim,
            n_hidden=settings.text_hidden,
            text=inputs.text,
            user_profiles=inputs.user_profiles,
            item_profiles=inputs.item_profiles,
        )

    def init(self, rng: np.random.Generator) -> Params:
        params = {"user_id": layers.init_table(rng, self.n_users, self.dim)}
        if self.text is None:
            params["item_id"] = layers.init_table(rng, self.n_items, self.dim)
        else:
            params |= self.text.init(rng, self.dim, self.n_hidden)
        profiles = self.user_profiles or self.item_profiles
        if profiles is not None:
            params |= profiles.init(rng, self.dim, self.n_hidden)
            params["fuse.w"], params["fuse.b"] = layers.init_linear(rng, 2 * self.dim, self.dim)
        return params

    def forward(self, params: Params, users: Rows = None, items: Rows = None) -> First:
        """See `ResidualEncoder.forward`; there is no bias."""
        cache: dict = {"user_rows": users, "item_rows": items}
        if self.text is None:
            item_vectors = take_rows(params["item_id"], items)
        else:
            cache["text"] = self.text.of_rows(items)
            item_vectors, cache["text_hidden"] = cache["text"].forward(params)
        if self.item_profiles is not None:
            cache["item_profile"] = self.item_profiles.of_rows(items)
            profile, cache["item_hidden"] = cache["item_profile"].forward(params)
            cache["item_joint"] = np.hstack([item_vectors, profile])
            item_vectors = layers.relu(layers.linear(cache["item_joint"], params["fuse.w"], params["fuse.b"]))
            cache["item_fused"] = item_vectors
        if self.text is not None or self.item_profiles is not None:
            item_vectors, cache["item_length"] = layers.normalize(item_vectors)
        cache["items"] = item_vectors
        user_vectors = take_rows(params["user_id"], users)
        if self.user_profiles is not None:
            cache["user_profile"] = self.user_profiles.of_rows(users)
            profile, cache["user_hidden"] = cache["user_profile"].forward(params)
            profile, cache["user_length"] = layers.normalize(profile)
            cache["user_joint"] = np.hstack([user_vectors, profile])
            user_vectors = layers.relu(layers.linear(cache["user_joint"], params["fuse.w"], params["fuse.b"]))
        cache["users"] = user_vectors
        return user_vectors, item_vectors, NO_BIAS, cache

    def backward(
        self, params: Params, cache: dict, d_users: np.ndarray, d_items: np.ndarray, d_bias: np.ndarray
    ) -> Grads:
        """Gradients of all parameters, given the gradients of the outputs."""
        grads: Grads = {}
        dim = self.dim
        if "item_length" in cache:
            d_items = layers.normalize_backward(cache["items"], cache["item_length"], d_items)
        if self.item_profiles is not None:
            d_joint = self._fuse_backward(params, cache["item_joint"], cache["item_fused"], d_items, grads)
            d_items = np.ascontiguousarray(d_joint[:, :dim])
            self._add(grads, cache["item_profile"], params, cache["item_hidden"], d_joint[:, dim:])
        if self.text is None:
            grads["item_id"] = _table_grad(cache["item_rows"], d_items)
        else:
            cache["text"].backward(params, cache["text_hidden"], d_items, grads)
        if self.user_profiles is not None:
            d_joint = self._fuse_backward(params, cache["user_joint"], cache["users"], d_users, grads)
            profile = cache["user_joint"][:, dim:]
            d_profile = layers.normalize_backward(profile, cache["user_length"], d_joint[:, dim:])
            self._add(grads, cache["user_profile"], params, cache["user_hidden"], d_profile)
            d_users = np.ascontiguousarray(d_joint[:, :dim])
        grads["user_id"] = _table_grad(cache["user_rows"], d_users)
        return grads

    def fold(
        self, params: Params, interactions: sp.csr_matrix, config: TrainConfig, steps: Sequence[UserStep] = ()
    ) -> IdFold:
        """`Trainable.fold` for a model that applies `steps` to these first vectors."""
        if self.user_profiles is not None:
            mlp = {part: params[f"profile.{part}"] for part in layers.MLP_PARTS}
            steps = [FusedProfile(params["fuse.w"], params["fuse.b"], mlp), *steps]
        return IdFold.of_training(params["user_id"], interactions, config, steps=steps)

    @staticmethod
    def _fuse_backward(
        params: Params, joint: np.ndarray, out: np.ndarray, d_out: np.ndarray, grads: Grads
    ) -> np.ndarray:
        d_weight, d_bias, d_joint = layers.linear_backward(joint, params["fuse.w"], layers.relu_backward(out, d_out))
        grads["fuse.w"] = grads["fuse.w"] + d_weight if "fuse.w" in grads else d_weight
        grads["fuse.b"] = grads["fuse.b"] + d_bias if "fuse.b" in grads else d_bias
        return d_joint

    @staticmethod
    def _add(grads: Grads, mlp: TextMLP, params: Params, hidden: np.ndarray, dy: np.ndarray) -> None:
        """Add the gradients from one use of the shared projection."""
        own: Params = {}
        mlp.backward(params, hidden, dy, own)
        for name, grad in own.items():
            grads[name] = grads[name] + grad if name in grads else grad


class ResidualEncoder:
    """First vectors of the `default` preset. text: float32 (n_items, n_in) or None.

    Users with at least `min_id_interactions` interactions have an ID vector. The others are represented by the graph
    alone: an ID vector learned from one or two interactions overfits and generalizes worse than the neighborhood.

    user_counts: (n_users,), item_counts: (n_items,), training interactions of each. An item's bias starts at the log of
    its count, where training on uniform negatives converges. If there is text, a ridge regression predicts the bias
    from it, and unseen items get the prediction alone. Only items with training interactions have trainable ID
    residuals and biases, since negatives are drawn among these.
    """

    tables: Collection[str] = ("user_id", "item_id", "item_bias")
    profiles_beside: ClassVar[bool] = True
    text_replaces_ids: ClassVar[bool] = False

    def __init__(
        self,
        n_users: int,
        n_items: int,
        dim: int,
        *,
        user_counts: np.ndarray,
        item_counts: np.ndarray,
        text: np.ndarray | None = None,
        n_hidden: int = 64,
        min_id_interactions: int = 5,
    ):
        self.n_users, self.n_items, self.dim, self.n_hidden = n_users, n_items, dim, n_hidden or dim
        self.item_counts, self.min_id_interactions = item_counts, min_id_interactions
        self.id_users = np.flatnonzero(user_counts >= min_id_interactions)
        # The row of each user's ID vector, or -1 without one.
        self.id_row = np.full(n_users, -1, np.int32)
        self.id_row[self.id_users] = np.arange(len(self.id_users), dtype=np.int32)
        self.text = None if text is None else TextMLP("text", text)

    @classmethod
    def of(cls, settings: "EncoderSettings", inputs: Inputs, interactions: sp.csr_matrix) -> "ResidualEncoder":
        n_users, n_items = interactions.shape
        return cls(
            n_users,
            n_items,
            settings.dim,
            n_hidden=settings.text_hidden,
            min_id_interactions=settings.min_id_interactions,
            user_counts=np.diff(interactions.indptr),
            item_counts=np.bincount(interactions.indices, minlength=n_items),
            text=inputs.text,
        )

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

    def forward(self, params: Params, users: Rows = None, items: Rows = None) -> First:
        """(user vectors (n, dim), item vectors (m, dim), bias (m,), cache for backward), of some rows or all.

        users, items: int32, ascending, distinct; None for all. With rows, the gradients of the tables are `RowGrad`s.
        """
        cache: dict = {"user_rows": users, "item_rows": items}
        if users is None:
            user_vectors = np.zeros((self.n_users, self.dim), params["item_bias"].dtype)
            user_vectors[self.id_users] = params["user_id"]
        else:
            rows = self.id_row[users]
            cache["with_id"], cache["id_rows"] = rows >= 0, rows[rows >= 0]
            user_vectors = np.zeros((len(users), self.dim), params["item_bias"].dtype)
            user_vectors[cache["with_id"]] = params["user_id"][cache["id_rows"]]
        item_vectors, bias = take_rows(params["item_id"], items), take_rows(params["item_bias"], items)
        if self.text is not None:
            cache["text"] = self.text.of_rows(items)
            projected, cache["text_hidden"] = cache["text"].forward(params)
            item_vectors = projected + item_vectors
            bias = bias + (cache["text"].text @ params["bias_of_text"])[:, 0]
        return user_vectors, item_vectors, bias, cache

    def backward(
        self, params: Params, cache: dict, d_users: np.ndarray, d_items: np.ndarray, d_bias: np.ndarray
    ) -> Grads:
        """Gradients of all parameters, given the gradients of the outputs."""
        grads: Grads = {"item_id": _table_grad(cache["item_rows"], d_items)}
        grads["item_bias"] = _table_grad(cache["item_rows"], d_bias)
        if cache["user_rows"] is None:
            grads["user_id"] = d_users[self.id_users]
        else:
            grads["user_id"] = RowGrad(cache["id_rows"], d_users[cache["with_id"]])
        if self.text is not None:
            cache["text"].backward(params, cache["text_hidden"], d_items, grads)
            grads["bias_of_text"] = cache["text"].text.T @ d_bias[:, None]
        return grads

    def fold(
        self, params: Params, interactions: sp.csr_matrix, config: TrainConfig, steps: Sequence[UserStep] = ()
    ) -> IdFold:
        """`Trainable.fold` for a model that applies `steps` to these first vectors."""
        return IdFold.of_training(
            params["user_id"], interactions, config, min_id_interactions=self.min_id_interactions, steps=steps
        )


class Encoder(Protocol):
    """First vectors of users and items, with the backward pass. A new one is a class and a row in `ENCODERS`.

    dim: width of the vectors. tables: see `interface.Trainable`. profiles_beside: whether profiles join the fitted
    model afterwards (profile_tower.py); else the encoder takes them itself. text_replaces_ids: whether items have no ID
    vectors if they have text. `forward`, `backward` and `fold` are as in `ResidualEncoder`.
    """

    dim: int
    tables: Collection[str]
    profiles_beside: ClassVar[bool]
    text_replaces_ids: ClassVar[bool]

    @classmethod
    def of(cls, settings: "EncoderSettings", inputs: Inputs, interactions: sp.csr_matrix) -> "Encoder":
        """interactions: CSR (n_users, n_items), the training set."""

    def init(self, rng: np.random.Generator) -> Params: ...

    def forward(self, params: Params, users: Rows = None, items: Rows = None) -> First: ...

    def backward(
        self, params: Params, cache: dict, d_users: np.ndarray, d_items: np.ndarray, d_bias: np.ndarray
    ) -> Grads: ...

    def fold(
        self, params: Params, interactions: sp.csr_matrix, config: TrainConfig, steps: Sequence[UserStep] = ()
    ) -> IdFold: ...


class EncoderSettings(Protocol):
    """The settings that encoders read (settings.py)."""

    @property
    def encoder(self) -> str: ...
    @property
    def dim(self) -> int: ...
    @property
    def text_hidden(self) -> int: ...
    @property
    def min_id_interactions(self) -> int: ...


ENCODERS: dict[str, type[Encoder]] = {"published": PublishedEncoder, "residual": ResidualEncoder}


def make_encoder(settings: EncoderSettings, inputs: Inputs, interactions: sp.csr_matrix) -> Encoder:
    """The encoder that the settings name. interactions: CSR (n_users, n_items), the training set."""
    return ENCODERS[settings.encoder].of(settings, inputs, interactions)


def _table_grad(rows: Rows, values: np.ndarray) -> "np.ndarray | RowGrad":
    return values if rows is None else RowGrad(rows, values)


def text_regression(
    text: np.ndarray, target: np.ndarray, known: np.ndarray, ridge: float = 10.0
) -> tuple[np.ndarray, np.ndarray]:
    """Weights float32 (n_in, 1) and their predictions float32 (n_items,): ridge regression over the `known` items.

    Raises ModelError if the values of the text vectors are too large.
    """
    normal = ridge * np.eye(text.shape[1])
    moment = np.zeros(text.shape[1])
    rows = np.flatnonzero(known)
    for start in range(0, len(rows), 4096):
        part = rows[start : start + 4096]
        x = text[part].astype(np.float64)
        normal += x.T @ x
        moment += x.T @ target[part].astype(np.float64)
    try:
        weights = np.linalg.solve(normal, moment).astype(np.float32)
    except np.linalg.LinAlgError as error:
        raise ModelError(
            f"expected text vectors of ordinary size, found values up to {np.abs(text).max():g}, over which no "
            "regression can be "
            "solved: make them again with `reclm embed items`"
        ) from error
    return weights[:, None], text @ weights
