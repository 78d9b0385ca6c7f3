"""Fitted models in a workspace: `models/<model>[+profiles].safetensors`."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..artefacts import checked
from ..data.dataset import count_ids
from ..errors import WorkspaceError
from ..workspace import Workspace
from . import scorers
from .fitted import FittedModel
from .interface import UserFold
from .models import module_of
from .names import artefact_name, fit_command, split_name
from .profile_tower import TowerFold

# Errors that parsing an untrusted file can raise.
_DAMAGED = (KeyError, ValueError, TypeError, AttributeError, IndexError, OverflowError)


def save(fitted: FittedModel, ws: Workspace, *, inputs: dict[str, str]) -> str:
    """Store a model under its artefact name; returns the artefact's fingerprint."""
    arrays, numbers = scorers.pack(fitted.scorer)
    arrays["user_ready"] = fitted.user_ready.astype(np.uint8)
    if fitted.train_user_vectors is not None:
        arrays["train_user_vectors"] = fitted.train_user_vectors.astype(np.float32, copy=False)
    params = {**fitted.params, **numbers, "metrics": fitted.metrics}
    if fitted.fold is not None:
        params["fold"] = fitted.fold.numbers()
        arrays |= {f"fold.{name}": array for name, array in fitted.fold.arrays().items()}
    return ws.save(fitted.artefact, arrays, inputs=inputs, params=params)


def load(ws: Workspace, model: str, profiles: str = "none", *, fresh: bool = True) -> FittedModel:
    """Read a model.

    model: a name, or a whole artefact name such as `models/lightgcn+users`. Raises MissingArtefactError if the model
    does not exist, if its rows belong to other users or items than the workspace has now, or (fresh) if it is stale;
    WorkspaceError if its arrays are inconsistent.
    """
    if "/" in model or "+" in model:
        model, profiles = split_name(model)
    name, made_by = artefact_name(model, profiles), fit_command(ws, model, profiles)
    if fresh:
        ws.require_fresh(name, made_by=made_by)
    artefact = ws.load(name, made_by=made_by)
    params, arrays = dict(artefact.params), artefact.arrays
    shape = count_ids(ws)
    try:
        scorer = scorers.unpack(arrays, params, shape)
        checked(arrays, "user_ready", np.uint8, shape[0])
        if "train_user_vectors" in arrays:
            checked(arrays, "train_user_vectors", np.float32, shape[0], None)
        if not isinstance(params.get("metrics", {}), dict):
            raise ValueError("metrics: expected figures by name")
        fold = None if params.get("fold") is None else _unpack_fold(model, arrays, params["fold"], shape[1])
        if fold is not None and fold.dim != arrays["item_vectors"].shape[1]:
            raise ValueError(f"fold-in gives {fold.dim} columns for items of {arrays['item_vectors'].shape[1]}")
    except _DAMAGED as error:
        raise WorkspaceError(f"{name} is damaged ({error}): make it again with `{made_by}`") from error
    for taken in ("hash_seed", "relu_dim", "scorer", "fold"):
        params.pop(taken, None)
    return FittedModel(
        name=model,
        scorer=scorer,
        user_ready=arrays["user_ready"].astype(bool),
        profiles=profiles,
        train_user_vectors=arrays.get("train_user_vectors"),
        metrics=params.pop("metrics", {}),
        params=params,
        fingerprint=artefact.fingerprint,
        fold=fold,
    )


def _unpack_fold(model: str, arrays: Mapping[str, np.ndarray], numbers: Mapping[str, Any], n_items: int) -> UserFold:
    prefix = "fold."
    own = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
    return TowerFold.unpack(own, numbers, n_items, module_of(model).unpack_fold)
