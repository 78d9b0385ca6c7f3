"""What a fitted model is to every later stage: vectors, a bias, and who they mean something for.

    score(user, item) = user_vectors[user] . item_vectors[item] + item_bias[item]

Popularity has vectors of no dimension and a bias; the random model draws its score from a hash of
(seed, user, item). Stored as `models/<model>[+users|items|both]`. Left out: how models are trained.
"""

from dataclasses import dataclass, field

import numpy as np
import scipy.sparse as sp

from ..errors import InputError
from ..kernels import native
from ..workspace import Workspace

PROFILE_CHOICES = ("none", "users", "items", "both")


@dataclass(frozen=True)
class FittedModel:
    """A model ready to rank.

    user_vectors: float32 (n_users, dim). item_vectors: float32 (n_items, dim). item_bias: float32 (n_items,) or None.
    user_ready: bool (n_users,), whether the user's vector means anything (a user without history and
    without a profile has none: such a user is ranked by bias alone).
    train_user_vectors: float32 (n_users, dim), those of the model that was selected, fitted on training alone, or None
    where `user_vectors` are these. Neighbors and so profiles are made from them, or validation could not judge profiles.
    hash_seed: set for the random model only. params: the settings that made it. metrics: validation figures.
    """

    name: str
    user_vectors: np.ndarray
    item_vectors: np.ndarray
    item_bias: np.ndarray | None
    user_ready: np.ndarray
    profiles: str = "none"
    train_user_vectors: np.ndarray | None = None
    hash_seed: int | None = None
    params: dict = field(default_factory=dict)
    metrics: dict = field(default_factory=dict)
    fingerprint: str = ""

    @property
    def n_users(self) -> int:
        return len(self.user_vectors)

    @property
    def n_items(self) -> int:
        return len(self.item_vectors)

    def scores(self, users: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        """float32 (len(users), len(candidates)); for a few users: `topk` ranks many."""
        users, candidates = np.asarray(users), np.asarray(candidates)
        if self.hash_seed is not None:
            return hash_scores(self.hash_seed, users, candidates)
        scores = self.user_vectors[users] @ self.item_vectors[candidates].T
        if self.item_bias is not None:
            scores = scores + self.item_bias[candidates]
        return scores.astype(np.float32, copy=False)

    def topk(
        self, users: np.ndarray, k: int, *, candidates: np.ndarray | None = None, seen: sp.csr_matrix | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k best items of each user: ids int32 and scores float32, both (len(users), k), best first.

        candidates: ascending item ids, or None for all. seen: CSR (n_users, n_items) of items to leave out,
        over all users. Ties go to the lower id; rows that run out end in id -1, score -inf.
        """
        users = np.asarray(users)
        if candidates is not None:
            candidates = np.ascontiguousarray(candidates, dtype=np.int32)
        rows = None if seen is None else seen[users]
        if self.hash_seed is not None:
            return _hash_topk(self, users, k, candidates, rows)
        mask = None if rows is None else native.make_csr(rows.indptr, rows.indices, None, rows.shape)
        return native.topk(
            np.ascontiguousarray(self.user_vectors[users]), self.item_vectors, k,
            item_bias=self.item_bias, candidates=candidates, seen=mask,
        )  # fmt: skip


def hash_scores(seed: int, users: np.ndarray, items: np.ndarray) -> np.ndarray:
    """Reproducible scores in [0, 1): float32 (len(users), len(items)), a function of (seed, user, item) alone."""
    user_state = _mix(np.asarray(users, dtype=np.uint64) + (np.uint64(seed & 0xFFFFFFFF) << np.uint64(32)))
    bits = _mix(user_state[:, None] ^ _mix(np.asarray(items, dtype=np.uint64) + np.uint64(1))[None, :])
    return (bits >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)


def _mix(counter: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser: uint64 -> uint64."""
    z = counter + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _hash_topk(
    fitted: FittedModel, users: np.ndarray, k: int, candidates: np.ndarray | None, rows: sp.csr_matrix | None
) -> tuple[np.ndarray, np.ndarray]:
    candidates = np.arange(fitted.n_items, dtype=np.int32) if candidates is None else candidates
    ids = np.full((len(users), k), -1, np.int32)
    best = np.full((len(users), k), -np.inf, np.float32)
    width = min(k, len(candidates))
    if width == 0:
        return ids, best
    block = max(1, 4_000_000 // len(candidates))
    for start in range(0, len(users), block):
        part = slice(start, start + block)
        scores = fitted.scores(users[part], candidates)
        if rows is not None:
            scores[rows[part][:, candidates].toarray() > 0] = -np.inf
        # Every value at or above the k-th is kept, so that the stable sort sees all ties.
        order = np.argsort(-scores, axis=1, kind="stable")[:, :width] if scores.shape[1] <= 4 * k else None
        if order is None:
            kth = -np.partition(-scores, width - 1, axis=1)[:, width - 1 : width]
            order = np.array(
                [np.flatnonzero(row >= least)[np.argsort(-row[row >= least], kind="stable")[:width]]
                 for row, least in zip(scores, kth, strict=True)]
            )  # fmt: skip
        best[part, :width] = np.take_along_axis(scores, order, axis=1)
        ids[part, :width] = np.where(np.isfinite(best[part, :width]), candidates[order], -1)
    return ids, best


def artefact_name(model: str, profiles: str = "none") -> str:
    """`models/<model>`, or `models/<model>+<profiles>`."""
    if profiles not in PROFILE_CHOICES:
        raise InputError(f"profiles: expected one of {', '.join(PROFILE_CHOICES)}, found {profiles!r}")
    return f"models/{model}" if profiles == "none" else f"models/{model}+{profiles}"


def split_name(name: str) -> tuple[str, str]:
    """The inverse of `artefact_name`: (model, profiles)."""
    model, _, profiles = name.removeprefix("models/").partition("+")
    return model, profiles or "none"


def fit_command(ws: Workspace, model: str, profiles: str = "none") -> str:
    """The command that makes a fitted model."""
    option = "" if profiles == "none" else f" --profiles {profiles}"
    return f"reclm fit {model}{option} -w {ws.argument}"


def save(fitted: FittedModel, ws: Workspace, *, inputs: dict[str, str]) -> str:
    """Store a model under its artefact name; returns the fingerprint."""
    arrays = {
        "user_vectors": fitted.user_vectors.astype(np.float32, copy=False),
        "item_vectors": fitted.item_vectors.astype(np.float32, copy=False),
        "user_ready": fitted.user_ready.astype(np.uint8),
    }
    if fitted.train_user_vectors is not None:
        arrays["train_user_vectors"] = fitted.train_user_vectors.astype(np.float32, copy=False)
    if fitted.item_bias is not None:
        arrays["item_bias"] = fitted.item_bias.astype(np.float32, copy=False)
    params = {**fitted.params, "hash_seed": fitted.hash_seed, "metrics": fitted.metrics}
    return ws.save(artefact_name(fitted.name, fitted.profiles), arrays, inputs=inputs, params=params)


def load(ws: Workspace, model: str, profiles: str = "none", *, fresh: bool = True) -> FittedModel:
    """Read a model. Raises MissingArtefactError where there is none, or (fresh) where it is stale.

    `model` may also be a whole artefact name, such as `models/lightgcn+users`.
    """
    if "/" in model or "+" in model:
        model, profiles = split_name(model)
    name, made_by = artefact_name(model, profiles), fit_command(ws, model, profiles)
    if fresh:
        ws.require_fresh(name, made_by=made_by)
    artefact = ws.load(name, made_by=made_by)
    params = dict(artefact.params)
    return FittedModel(
        name=model,
        user_vectors=artefact.arrays["user_vectors"],
        item_vectors=artefact.arrays["item_vectors"],
        item_bias=artefact.arrays.get("item_bias"),
        user_ready=artefact.arrays["user_ready"].astype(bool),
        profiles=profiles,
        train_user_vectors=artefact.arrays.get("train_user_vectors"),
        hash_seed=params.pop("hash_seed", None),
        metrics=params.pop("metrics", {}),
        params=params,
        fingerprint=artefact.fingerprint,
    )


def fitted_models(ws: Workspace) -> list[tuple[str, str]]:
    """(model, profiles) of every model stored in the workspace, sorted."""
    return sorted(split_name(path.name.removesuffix(".safetensors")) for path in (ws.root / "models").glob("*.safetensors"))


def baselines(interactions: sp.csr_matrix) -> list[FittedModel]:
    """Random and popularity, which need no stored model. interactions: CSR (n_users, n_items), all that is known."""
    from .models.popularity import fit_popularity
    from .models.random import fit_random

    return [fit_random(*interactions.shape), fit_popularity(interactions)]
