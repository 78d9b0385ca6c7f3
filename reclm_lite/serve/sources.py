"""Reads the artefacts of other stages for recommending: models, item vectors, profile vectors, neighbors, interests.

Each reader returns None (or an empty result) and logs it if an optional artefact is missing or stale. `choose_model`
explains its choice in a sentence. A missing artefact that was requested by name raises.
"""

import json
import logging
from pathlib import Path

import numpy as np

from ..artefacts import checked
from ..cf.fitted import FittedModel
from ..cf.models import MODELS
from ..cf.names import fit_command, fitted_models, split_name
from ..cf.neighbors import load_indices
from ..cf.store import load
from ..errors import InputError, MissingArtefactError, ModelError, ProfileFormatError, WorkspaceError
from ..workspace import Workspace

log = logging.getLogger(__name__)

VALID_METRIC = "ndcg@20"


def choose_model(ws: Workspace, wanted: str | None, *, allow_stale: bool = False) -> tuple[FittedModel | None, str]:
    """(the model to rank with or None, a sentence on which model and why).

    wanted: `lightgcn`, `lightgcn+users`, or None for the best up-to-date model on validation. allow_stale: also accept
    a model fitted on earlier interactions of the same users and items, if it is wanted or no other is up to date; the
    sentence says so.
    """
    stored = fitted_models(ws)
    if wanted is not None:
        model, profiles = split_name(wanted)
        if (model, profiles) not in stored:
            names = ", ".join(model_name(*pair) for pair in stored) or "none"
            if not stored:
                raise MissingArtefactError(
                    f"no model has been fitted in {ws.root}: run `reclm fit lightgcn -w {ws.argument}` first"
                )
            if model not in MODELS:
                raise InputError(f"expected one of the fitted models {names}, found {wanted!r}: give one of them")
            raise MissingArtefactError(
                f"{wanted} has not been fitted in {ws.root} (fitted: {names}): run "
                f"`{fit_command(ws, model, profiles)}` first"
            )
        fitted = load(ws, model, profiles, fresh=not allow_stale)
        return fitted, f"Ranked by {wanted}, as asked.{_staleness(ws, (model, profiles))}"
    fresh, stale, damaged, told = [], [], [], {}
    scores: dict[tuple[str, str], float | None] = {}
    for pair in stored:
        if pair[0] == "random":
            continue
        try:
            (stale if ws.stale_inputs(f"models/{model_name(*pair)}", told) else fresh).append(pair)
            scores[pair] = validation_score(ws, *pair)
        except WorkspaceError as error:
            damaged.append(pair)
            log.warning("%s is skipped: %s", model_name(*pair), error)
    # The highest score; the first in the alphabet of equals; without scores, what is more than popularity.
    usable = fresh or stale if allow_stale else fresh
    scored = sorted((pair for pair in usable if scores[pair] is not None), key=lambda pair: (-scores[pair], pair))
    unscored = sorted(
        (pair for pair in usable if scores[pair] is None), key=lambda pair: (pair[0] == "popularity", pair)
    )
    n_scored = len(scored)
    unused = [] if usable is stale else list(stale)
    for pair in [*scored, *unscored]:
        try:
            fitted = load(ws, *pair, fresh=not allow_stale)
        except WorkspaceError as error:
            (unused if isinstance(error, MissingArtefactError) else damaged).append(pair)
            log.warning("%s is skipped: %s", model_name(*pair), error)
            n_scored -= pair in scored
            continue
        if scores[pair] is None:
            said = f"Ranked by {model_name(*pair)}; no validation scores are recorded."
            return fitted, f"{said}{_staleness(ws, pair)}{_left_out(unused, damaged)}"
        best = (
            f", the best of {n_scored} fitted models on validation (NDCG@20 {scores[pair]:.4f})" if n_scored > 1 else ""
        )
        return fitted, f"Ranked by {model_name(*pair)}{best}.{_staleness(ws, pair)}{_left_out(unused, damaged)}"
    left_out = _left_out(stale, damaged)
    return (
        None,
        "No model is fitted, so items are ranked by popularity. To fit one: `reclm fit lightgcn -w "
        f"{ws.argument}`.{left_out}",
    )


def _staleness(ws: Workspace, pair: tuple[str, str]) -> str:
    """A sentence if the model in use is stale; otherwise empty."""
    changed = ws.stale_inputs(f"models/{model_name(*pair)}")
    return (
        f" It is stale ({', '.join(changed)} changed since it was fitted): `{fit_command(ws, *pair)}` updates it."
        if changed
        else ""
    )


def _left_out(stale: list[tuple[str, str]], damaged: list[tuple[str, str]]) -> str:
    """Sentences naming the models that were not considered."""
    parts = [
        f" Skipped as {why}: {', '.join(model_name(*pair) for pair in pairs)}."
        for why, pairs in (("stale", stale), ("damaged", damaged))
        if pairs
    ]
    return "".join(parts)


def model_name(model: str, profiles: str) -> str:
    """`lightgcn`, or `lightgcn+users`."""
    return model if profiles == "none" else f"{model}+{profiles}"


def validation_score(ws: Workspace, model: str, profiles: str) -> float | None:
    """The validation score stored with a model, or None."""
    params = ws.provenance(f"models/{model_name(model, profiles)}", made_by=fit_command(ws, model, profiles))["params"]
    metrics = params.get("metrics")
    value = metrics.get(VALID_METRIC) if isinstance(metrics, dict) else None
    return float(value) if isinstance(value, (int, float)) and abs(value) <= 1 else None


def is_ready(model: FittedModel, user: int) -> bool:
    """Whether the model knows this user; models that rank all users alike are always ready."""
    return not model.is_personal or bool(model.user_ready[user])


def item_vectors(ws: Workspace, n_items: int) -> np.ndarray | None:
    """float32 (n_items, dim), rows L2-normalized, zero rows for items without text; None if missing or stale."""
    arrays = _vectors(ws, "vectors/items", "reclm embed items", n_items)
    return None if arrays is None else arrays["vectors"]


def profile_arrays(ws: Workspace, n_users: int) -> dict[str, np.ndarray] | None:
    """The arrays of `vectors/user_profiles` (see `text.item_vectors`); None if missing, stale, or made with another
    encoder than the item vectors."""
    arrays = _vectors(ws, "vectors/user_profiles", "reclm embed profiles", n_users)
    if arrays is None or not ws.has("vectors/items"):
        return None
    encoders = [
        ws.provenance(name, made_by="reclm embed")["params"].get("encoder")
        for name in ("vectors/user_profiles", "vectors/items")
    ]
    if encoders[0] != encoders[1]:
        log.warning(
            "profile vectors were made with another encoder than the item vectors and are not used: run `reclm embed "
            "profiles -w %s`",
            ws.root,
        )
        return None
    return arrays


def profile_text(ws: Workspace, user: int) -> str:
    """The text of a user's profile; empty if there is no usable one."""
    from ..profiles.store import get_profile

    profile = get_profile(ws, "user", user)
    return profile.text if profile is not None and profile.status != "invalid" else ""


def profile_vector(arrays: dict[str, np.ndarray] | None, user: int, text: str) -> np.ndarray | None:
    """float32 (dim,), normalized: the vector of a user's profile; None if there is none for exactly this `text`."""
    from ..profiles.profile_vectors import profile_words
    from ..text.item_vectors import text_hash

    if arrays is None or not text or int(arrays["text_hash"][user]) != text_hash(profile_words(text)):
        return None
    vector = arrays["vectors"][user].astype(np.float32)
    return vector if vector.any() else None


def neighbor_indices(ws: Workspace, n_users: int) -> np.ndarray | None:
    """int32 (n_users, k), -1 where there are fewer; None if missing or stale."""
    if _arrays(ws, "matrices/neighbors", "reclm neighbors") is None:
        return None
    return load_indices(ws, n_users)


def interests(ws: Workspace, user: int) -> tuple[str, ...]:
    """The interest phrases of a user's profile; empty if there is no valid profile."""
    from ..prompts.answer import parse_profile

    try:
        return parse_profile(profile_text(ws, user)).interests
    except ProfileFormatError:
        return ()


def embed_words(ws: Workspace, text: str, encoder: Path | None = None) -> np.ndarray:
    """float32 (dim,), normalized: the vector of `text`.

    encoder: a GGUF file (default: the bundled one); raises ModelError unless it is the one that made the item vectors.
    """
    from ..text.encoder import TextEncoder

    made_by = ws.provenance("vectors/items", made_by=f"reclm embed items -w {ws.argument}")["params"].get("encoder")
    made_by = made_by if isinstance(made_by, dict) else {}
    with TextEncoder(encoder) as text_encoder:
        identity = json.loads(json.dumps(text_encoder.identity))
        if identity != made_by:
            raise ModelError(
                f"the item vectors were made with the encoder {made_by.get('name', '?')} "
                f"({str(made_by.get('sha256', '?'))[:12]}) but this one is {identity['name']} "
                f"({identity['sha256'][:12]}): embed the items again with `reclm embed items -w {ws.argument}`, or "
                "give the encoder that made them"
            )
        vector = np.asarray(text_encoder.encode([text]), dtype=np.float32)[0]
    if not vector.any():
        raise InputError(f"the encoder knows no token of the text {text!r}: use other words")
    return vector


def _vectors(ws: Workspace, name: str, command: str, n_rows: int) -> dict[str, np.ndarray] | None:
    """`vectors` (and `text_hash`, which those of profiles need) of an optional artefact; None (logged) if it is
    missing, stale or damaged."""
    arrays = _arrays(ws, name, command)
    if arrays is None:
        return None
    try:
        checked(arrays, "vectors", np.float32, n_rows, None)
        if "text_hash" in arrays or name != "vectors/items":
            checked(arrays, "text_hash", np.uint64, n_rows)
    except ValueError as error:
        log.warning("%s is damaged (%s) and is not used: run `%s -w %s`", name, error, command, ws.root)
        return None
    return arrays


def _arrays(ws: Workspace, name: str, command: str) -> dict[str, np.ndarray] | None:
    """The arrays of an optional artefact, or None (logged) if it is missing or stale."""
    if not ws.has(name):
        return None
    stale = ws.stale_inputs(name)
    if stale:
        log.warning(
            "%s is stale (%s has changed) and is not used: run `%s -w %s`", name, ", ".join(stale), command, ws.root
        )
        return None
    return ws.load(name, made_by=f"{command} -w {ws.argument}").arrays
