"""What a fitted model is to every later stage: something that scores items for users, and who that means something for.

    score(user, item) = user_vectors[user] . item_vectors[item] (+ the ReLU part, see vectors.py) + item_bias[item]

Popularity has vectors of no dimension and a bias; the random model draws its score from a hash of
(seed, user, item); a model that ranks from a history has a `scorer` and the histories (history.py).
Stored as `models/<model>[+users|items|both]`. Left out: how models are trained, and new users (foldin.py).
"""

from dataclasses import dataclass, field

import numpy as np
import scipy.sparse as sp

from ..artefacts import checked
from ..data.dataset import count_ids, csr_of
from ..errors import InputError, WorkspaceError, shell_word
from ..kernels import native
from ..workspace import Workspace
from . import history
from .foldstate import FoldState
from .models import MODELS as MODELS
from .ranking import rank_rows, renumber_columns, take_rows
from .vectors import Vectors

PROFILE_CHOICES = ("none", "users", "items", "both")


@dataclass(frozen=True)
class FittedModel:
    """A model ready to rank.

    user_vectors: float32 (n_users, dim). item_vectors: float32 (n_items, dim). item_bias: float32 (n_items,) or None.
    relu_dim: how many of the last columns are the additive ReLU part.
    user_ready: bool (n_users,), whether the model knows the user (without history and without a
    profile it does not: such a user is ranked by bias alone).
    train_user_vectors: float32 (n_users, dim), those of the model that was selected, fitted on training alone, or None
    where `user_vectors` are these. Neighbors and so profiles are made from them, or validation could not judge
    profiles.
    hash_seed: set for the random model only. params: the settings that made it. metrics: validation figures.
    scorer, histories: of a model that ranks from a history, and CSR (n_users, n_items) of ones to rank its users from.
    fold: what placing a new user takes, or None where that is not possible (or needs nothing).
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
    relu_dim: int = 0
    scorer: history.Scorer | None = None
    histories: sp.csr_matrix | None = None
    fold: FoldState | None = None

    @property
    def n_users(self) -> int:
        return len(self.user_vectors)

    @property
    def n_items(self) -> int:
        return len(self.item_vectors)

    @property
    def is_personal(self) -> bool:
        """Whether what is known of a user moves the scores: not so for popularity and random."""
        return self.scorer is not None or self.item_vectors.shape[1] > 0

    @property
    def vectors(self) -> Vectors:
        """The same as `Vectors`; an empty bias for none."""
        bias = np.zeros(0, np.float32) if self.item_bias is None else self.item_bias
        return Vectors(self.user_vectors, self.item_vectors, bias, self.relu_dim)

    def scores(self, users: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        """float32 (len(users), len(candidates)); for a few users: `topk` ranks many."""
        users, candidates = np.asarray(users), np.asarray(candidates)
        if self.hash_seed is not None:
            return hash_scores(self.hash_seed, users, candidates)
        if self.scorer is not None:
            return self.scorer.score_rows(take_rows(self.histories, users))[:, candidates]
        return score_vectors(self.vectors, users, candidates)

    def topk(
        self,
        users: np.ndarray,
        k: int,
        *,
        candidates: np.ndarray | None = None,
        seen: sp.csr_matrix | None = None,
        n_threads: int | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k best items of each user: ids int32 and scores float32, both (len(users), k), best first.

        candidates: ascending item ids, or None for all. seen: CSR (n_users, n_items) of items to leave out,
        over all users. Ties go to the lower id; rows that run out end in id -1, score -inf.
        """
        users = np.asarray(users)
        if candidates is not None:
            candidates = np.ascontiguousarray(candidates, dtype=np.int32)
        rows = None if seen is None else take_rows(seen, users)
        if self.scorer is not None:
            return rank_histories(
                self.scorer, take_rows(self.histories, users), k, candidates=candidates, seen=rows, n_threads=n_threads
            )
        if self.hash_seed is not None:
            return _hash_topk(self, users, k, candidates, rows, n_threads)
        return rank_vectors(self.vectors, users, k, candidates=candidates, seen=rows, n_threads=n_threads)

    def folded(
        self, histories: sp.csr_matrix, profiles: np.ndarray | None = None, *, n_threads: int | None = None
    ) -> "FittedModel":
        """This model with other users, placed by their histories without fitting again: see `foldin.fold_in`."""
        from .foldin import fold_in

        return fold_in(self, histories, profiles, n_threads=n_threads)

    def topk_for(
        self,
        histories: sp.csr_matrix,
        k: int,
        *,
        profiles: np.ndarray | None = None,
        candidates: np.ndarray | None = None,
        n_threads: int | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k best items for histories of anybody: CSR (n, n_items); their own items are left out. See `folded`."""
        folded = self.folded(histories, profiles, n_threads=n_threads)
        return folded.topk(
            np.arange(folded.n_users), k, candidates=candidates, seen=sp.csr_matrix(histories), n_threads=n_threads
        )


def rank_vectors(
    vectors: Vectors,
    users: np.ndarray,
    k: int,
    *,
    candidates: np.ndarray | None = None,
    seen: sp.csr_matrix | native.CSR | None = None,
    n_threads: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Top-k of some users by `Vectors`; seen: CSR (len(users), n_items), of these users. See `FittedModel.topk`."""
    mask = (
        seen
        if seen is None or isinstance(seen, native.CSR)
        else native.make_csr(seen.indptr, seen.indices, None, seen.shape)
    )
    return native.topk(
        np.ascontiguousarray(vectors.users[users]),
        vectors.items,
        k,
        relu_dim=vectors.relu_dim,
        item_bias=vectors.bias if len(vectors.bias) else None,
        candidates=candidates,
        seen=mask,
        n_threads=n_threads,
    )


def rank_histories(
    scorer: history.Scorer,
    rows: sp.csr_matrix,
    k: int,
    *,
    candidates: np.ndarray | None = None,
    seen: sp.csr_matrix | None = None,
    n_threads: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Top-k for histories: CSR (n, n_items); seen: CSR of the same shape. See `FittedModel.topk`."""
    return rank_rows(
        lambda start, stop: scorer.score_rows(rows[start:stop]),
        rows.shape[0],
        scorer.n_items,
        k,
        candidates=candidates,
        seen=seen,
        block=scorer.block,
        n_threads=n_threads,
    )


def score_vectors(vectors: Vectors, users: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """float32 (len(users), len(candidates)): the score of vectors.py, for a few users."""
    of_users, of_items = vectors.users[users], vectors.items[candidates]
    dot = of_users.shape[1] - vectors.relu_dim
    scores = of_users[:, :dot] @ of_items[:, :dot].T
    for h in range(dot, of_users.shape[1]):
        scores += np.maximum(of_users[:, h, None] + of_items[None, :, h], 0)
    if len(vectors.bias):
        scores = scores + vectors.bias[candidates]
    return scores.astype(np.float32, copy=False)


def hash_scores(seed: int, users: np.ndarray, items: np.ndarray) -> np.ndarray:
    """Reproducible scores in [0, 1): float32 (len(users), len(items)), a function of (seed, user, item) alone.

    Users and items are hashed well, each pair by one multiplication more (both 32 bits, upper 24 kept).
    """
    user_state = _mix(np.asarray(users, dtype=np.uint64) + (np.uint64(seed & 0xFFFFFFFF) << np.uint64(32)))
    item_state = (_mix(np.asarray(items, dtype=np.uint64) + np.uint64(1)) >> np.uint64(32)).astype(np.uint32)
    bits = item_state[None, :] ^ (user_state >> np.uint64(32)).astype(np.uint32)[:, None]
    bits *= user_state.astype(np.uint32)[:, None] | np.uint32(1)
    bits ^= bits >> np.uint32(15)
    bits *= np.uint32(0x2C1B3C6D)
    bits >>= np.uint32(8)
    scores = bits.astype(np.float32)
    scores *= np.float32(2.0**-24)
    return scores


def _mix(counter: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser: uint64 -> uint64."""
    z = counter + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _hash_topk(
    fitted: FittedModel,
    users: np.ndarray,
    k: int,
    candidates: np.ndarray | None,
    rows: sp.csr_matrix | None,
    n_threads: int | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Scores candidates alone, which are few in the `unseen` setting."""
    candidates = np.arange(fitted.n_items, dtype=np.int32) if candidates is None else candidates
    if rows is not None:
        rows = renumber_columns(rows, candidates)
    ids, best = rank_rows(
        lambda start, stop: hash_scores(fitted.hash_seed, users[start:stop], candidates),
        len(users),
        len(candidates),
        k,
        seen=rows,
        block=16,
        n_threads=n_threads,
    )
    return np.where(ids >= 0, candidates[ids] if len(candidates) else ids, -1).astype(np.int32), best


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
    option = "" if profiles == "none" else f" --profiles {shell_word(profiles)}"
    return f"reclm fit {shell_word(model)}{option} -w {ws.argument}"


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
    params = {**fitted.params, "hash_seed": fitted.hash_seed, "metrics": fitted.metrics, "relu_dim": fitted.relu_dim}
    if fitted.scorer is not None:
        params["scorer"] = fitted.scorer.kind
        arrays |= {f"scorer.{name}": array for name, array in fitted.scorer.arrays().items()}
        arrays["histories.indptr"] = fitted.histories.indptr.astype(np.int64)
        arrays["histories.indices"] = fitted.histories.indices.astype(np.int32)
    if fitted.fold is not None:
        params["fold"] = fitted.fold.numbers()
        arrays |= {f"fold.{name}": array for name, array in fitted.fold.arrays().items()}
    return ws.save(artefact_name(fitted.name, fitted.profiles), arrays, inputs=inputs, params=params)


def load(ws: Workspace, model: str, profiles: str = "none", *, fresh: bool = True) -> FittedModel:
    """Read a model. Raises MissingArtefactError where there is none, where its rows are of other users or items than
    the workspace has now, or (fresh) where it is stale; WorkspaceError where its arrays do not fit together.

    `model` may also be a whole artefact name, such as `models/lightgcn+users`.
    """
    if "/" in model or "+" in model:
        model, profiles = split_name(model)
    name, made_by = artefact_name(model, profiles), fit_command(ws, model, profiles)
    if fresh:
        ws.require_fresh(name, made_by=made_by)
    artefact = ws.load(name, made_by=made_by)
    params, arrays = dict(artefact.params), artefact.arrays
    shape = count_ids(ws)
    wrong = _misshapen(arrays, params, shape)
    if wrong:
        raise WorkspaceError(f"{name} is damaged ({wrong}): make it again with `{made_by}`")
    kind, numbers, scorer, histories, fold = params.pop("scorer", None), params.pop("fold", None), None, None, None
    try:
        if kind is not None:
            scorer = history.unpack(kind, _under(arrays, "scorer."), shape[1])
            histories = csr_of(arrays["histories.indptr"], arrays["histories.indices"], shape)
        if numbers is not None:
            fold = FoldState.unpack(_under(arrays, "fold."), numbers)
            fold.check(shape[1])
    except (KeyError, ValueError, TypeError, AttributeError, IndexError, OverflowError) as error:
        raise WorkspaceError(f"{name} is not whole ({error}): make it again with `{made_by}`") from error
    return FittedModel(
        name=model,
        user_vectors=arrays["user_vectors"],
        item_vectors=arrays["item_vectors"],
        item_bias=arrays.get("item_bias"),
        user_ready=arrays["user_ready"].astype(bool),
        profiles=profiles,
        train_user_vectors=arrays.get("train_user_vectors"),
        hash_seed=params.pop("hash_seed", None),
        metrics=params.pop("metrics", {}),
        relu_dim=params.pop("relu_dim", 0),
        params=params,
        fingerprint=artefact.fingerprint,
        scorer=scorer,
        histories=histories,
        fold=fold,
    )


def _misshapen(arrays: dict[str, np.ndarray], params: dict, shape: tuple[int, int]) -> str:
    """What is wrong with the vectors and settings of a stored model for (n_users, n_items), in words; empty if nothing
    is."""
    n_users, n_items = shape
    try:
        (dim,) = checked(arrays, "user_vectors", np.float32, n_users, None).shape[1:]
        checked(arrays, "item_vectors", np.float32, n_items, dim)
        checked(arrays, "user_ready", np.uint8, n_users)
        if "train_user_vectors" in arrays:
            checked(arrays, "train_user_vectors", np.float32, n_users, None)
        if "item_bias" in arrays:
            checked(arrays, "item_bias", np.float32, n_items)
    except ValueError as error:
        return str(error)
    relu_dim, hash_seed = params.get("relu_dim", 0), params.get("hash_seed")
    if type(relu_dim) is not int or not 0 <= relu_dim <= dim:
        return f"relu_dim: expected a number from 0 to {dim}, found {str(relu_dim)[:40]!r}"
    if hash_seed is not None and type(hash_seed) is not int:
        return f"hash_seed: expected a number, found {str(hash_seed)[:40]!r}"
    if not isinstance(params.get("metrics", {}), dict):
        return "metrics: expected figures by name"
    return ""


def _under(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The arrays whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def fitted_models(ws: Workspace) -> list[tuple[str, str]]:
    """(model, profiles) of every model stored in the workspace, sorted."""
    return sorted(
        split_name(path.name.removesuffix(".safetensors")) for path in (ws.root / "models").glob("*.safetensors")
    )


def baselines(interactions: sp.csr_matrix) -> list[FittedModel]:
    """Random and popularity, which need no stored model. interactions: CSR (n_users, n_items), all that is known."""
    from .models import popularity, random

    return [random.fit(interactions, random.Settings()), popularity.fit(interactions, popularity.Settings())]
