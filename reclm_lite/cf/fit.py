"""`fit`: from a workspace's split and vectors to a stored model.

Settings (and epochs, and the gates of profiles) are selected on the validation set; then the model is fitted again on
training and validation together. The test set is not read. Fitting again continues an interrupted fit.
Left out: the phases of training (phases.py), models without training (untrained.py), evaluation (evaluate/).
"""

import dataclasses
import json
import logging
from collections.abc import Callable, Iterable

from ..data.dataset import load_split
from ..errors import InputError
from ..workspace import Workspace, now
from . import memory_estimate as memory
from . import store
from .fitted import FittedModel
from .inputs import Inputs, load_inputs
from .models import MODELS, PRESETS, TRAINED, module_of
from .names import PROFILE_CHOICES
from .phases import Progress, fit_arrays
from .resume import checkpoint_folder
from .settings import Checked, override
from .untrained import fit_untrained

log = logging.getLogger(__name__)


def fit(
    ws: Workspace,
    model: str,
    *,
    profiles: str = "none",
    preset: str = "default",
    assignments: Iterable[str] = (),
    seed: int = 0,
    epochs: int | None = None,
    refit: bool = True,
    restart: bool = False,
    n_threads: int | None = None,
    progress: Progress | None = None,
    notice: Callable[[str], None] = log.warning,
) -> FittedModel:
    """Fit `model` on the workspace's split and store it as `models/<model>[+profiles]`.

    profiles: "none", "users", "items" or "both". assignments: `name=value`, settings that replace the preset's.
    epochs: the maximum, None for the settings' own. refit: fit again on training and validation together; without it
    the model of the best epoch is kept. restart: ignore an interrupted fit. progress: called as progress(done, total,
    note) after each epoch. notice: called with a line that says whether an interrupted fit is continued.
    Raises MissingArtefactError, naming the command, if an input is missing or stale; InputError for unknown settings
    or values out of range; ModelError, before training starts, if the fit cannot succeed.
    """
    _check_choice("model", model, MODELS)
    _check_choice("preset", preset, PRESETS)
    _check_choice("profiles", profiles, PROFILE_CHOICES)
    if profiles != "none" and model not in TRAINED:
        raise InputError(f"{model} takes no profiles: leave out --profiles, or fit one of {', '.join(TRAINED)}")
    assignments = list(assignments)
    if epochs is not None:
        if model not in TRAINED:
            raise InputError(f"{model} is not trained in epochs: leave out --epochs")
        if epochs < 1:
            raise InputError(f"epochs: expected at least 1, found {epochs}")
        assignments.append(f"epochs={epochs}")
    settings = override(settings_of(model, preset), assignments)
    with ws.writing():
        split = load_split(ws)
        used = {"matrices/split": split.fingerprint}
        if model in TRAINED:
            inputs = load_inputs(ws, split, profiles, used)
            identity = {"seed": seed, "refit": refit, "inputs": used}
            with checkpoint_folder(ws, model, profiles, settings, identity, restart=restart, notice=notice) as folder:
                fitted = fit_arrays(
                    inputs,
                    model,
                    settings=settings,
                    seed=seed,
                    refit=refit,
                    n_threads=n_threads,
                    progress=progress,
                    checkpoint=folder,
                )
                fitted = _store(ws, fitted, profiles, preset, assignments, used)
        else:
            n_users, n_items = split.train.shape
            need = module_of(model).estimate_bytes(n_users, n_items, split.train.nnz + split.valid.nnz, settings)
            log.info(
                "%s", memory.require(need, f"fitting {model} on {n_items:,} items", "Use itemknn or popularity instead")
            )
            fitted = fit_untrained(
                split, model, settings, seed=seed, refit=refit, n_threads=n_threads, progress=progress
            )
            fitted = _store(ws, fitted, profiles, preset, assignments, used)
    return fitted


def settings_of(model: str, preset: str = "default") -> Checked:
    """The settings of a preset. Raises InputError for an unknown preset; untrained models have "default" only."""
    module = module_of(model)
    if model not in TRAINED and preset != "default":
        raise InputError(f"{model} has one set of settings and no preset {preset!r}: leave out --preset")
    return module.PRESETS[preset] if model in TRAINED else module.Settings()


def _check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    if value not in choices:
        raise InputError(f"{name}: expected one of {', '.join(choices)}, found {value!r}")


def _store(
    ws: Workspace, fitted: FittedModel, profiles: str, preset: str, assignments: list[str], used: dict[str, str]
) -> FittedModel:
    """Write the model and a row of the table of runs. A preset that was overridden is marked with a star."""
    label = {"preset": preset + "*" if assignments else preset, "overridden": assignments}
    fitted = dataclasses.replace(fitted, profiles=profiles, params={**label, **fitted.params})
    fingerprint = store.save(fitted, ws, inputs=used)
    with ws.db:
        ws.db.execute(
            "INSERT INTO runs (model, profiles, created, params, metrics) VALUES (?, ?, ?, ?, ?)",
            (fitted.name, profiles, now(), json.dumps(fitted.params), json.dumps(fitted.metrics)),
        )
    return dataclasses.replace(fitted, fingerprint=fingerprint)


__all__ = ["MODELS", "PRESETS", "TRAINED", "Inputs", "fit", "fit_arrays", "settings_of"]
