"""Training checkpoints: one file, from which an interrupted fit continues with the same bits.

A safetensors file: parameters, Adam's moments and the best parameters as tensors; the rest as JSON in the file's
metadata, with a fingerprint of what is being trained (settings, data, initial parameters) and one of the file's own
content. It is written by atomic rename. Nothing in it is executed.
"""

import dataclasses
import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from ..artefacts import fingerprint_arrays, read_arrays, write_arrays
from ..files import atomic_path, is_own_file
from .layers import Params

log = logging.getLogger(__name__)
FORMAT = "reclm-training-1"
_REPORT = [int, int, float, float, float, float, str]  # the fields of `training.EpochReport`


@dataclass
class State:
    """Everything that the next epoch depends on.

    first, second: Adam's first and second moments, with the parameters' shapes. history: a report for each finished
    epoch. best: the parameters of the best epoch, or None before there is one.
    """

    params: Params
    first: Params
    second: Params
    n_steps: int = 0
    history: list[Any] = field(default_factory=list)  # `training.EpochReport`s, lists as long as they are JSON
    best: Params | None = None
    best_epoch: int = 0
    is_done: bool = False

    @classmethod
    def start(cls, params: Params) -> "State":
        params = {name: np.ascontiguousarray(value, dtype=np.float32) for name, value in params.items()}
        first, second = ({name: np.zeros_like(value) for name, value in params.items()} for _ in range(2))
        return cls(params, first, second)


def fingerprint(
    name: str, phase: str, config: Any, interactions: sp.csr_matrix, params: Params, is_validated: bool
) -> str:
    """Fingerprint of settings, data and initial parameters `params`; a checkpoint continues only if it matches."""
    arrays = {f"first parameters: {key}": value for key, value in params.items()}
    arrays |= {"indptr": interactions.indptr.astype(np.int64), "indices": interactions.indices.astype(np.int32)}
    settings = {**dataclasses.asdict(config), "model": name, "phase": phase, "validated": is_validated}
    return fingerprint_arrays(arrays, settings | {"shape": list(interactions.shape)})


def write(path: Path, made_of: str, state: State) -> None:
    """Replace the file. Raises WorkspaceError if the disk is full; the earlier file then stays."""
    groups = {"param": state.params, "first": state.first, "second": state.second, "best": state.best or {}}
    arrays = {f"{group}/{name}": value for group, values in groups.items() for name, value in values.items()}
    about = {
        "format": FORMAT,
        "fingerprint": made_of,
        "n_steps": state.n_steps,
        "best_epoch": state.best_epoch,
        "is_done": state.is_done,
        "history": [list(report) for report in state.history],
    }
    content = fingerprint_arrays(arrays, about)
    with atomic_path(path) as temporary:
        write_arrays(temporary, arrays, {"about": json.dumps(about), "content": content})


def read(path: Path, made_of: str, start: State, epochs: int) -> State | None:
    """The stored state of the training that starts at `start` and runs at most `epochs` epochs.

    None if there is no usable checkpoint; the log says why.
    """
    from safetensors import SafetensorError, safe_open

    if not is_own_file(path):
        return None
    try:
        arrays = read_arrays(path)
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
        about = json.loads(metadata["about"])
        if metadata["content"] != fingerprint_arrays(arrays, about):
            raise ValueError("its content is not what was written")
        if about["format"] != FORMAT:
            raise ValueError(f"expected the format {FORMAT}, found {about['format']}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
        log.warning("%s: damaged checkpoint (%s): training begins anew", path, error)
        return None
    if about["fingerprint"] != made_of:
        log.warning("%s: the checkpoint is of other settings or data: training begins anew", path)
        return None
    groups: dict[str, Params] = {"param": {}, "first": {}, "second": {}, "best": {}}
    try:
        for key, value in arrays.items():
            group, _, name = key.partition("/")
            groups[group][name] = np.array(value)  # safetensors may return read-only arrays
        state = State(
            groups["param"],
            groups["first"],
            groups["second"],
            about["n_steps"],
            about["history"],
            groups["best"] or None,
            about["best_epoch"],
            about["is_done"],
        )
        _check(state, start, epochs)
    except (KeyError, TypeError, ValueError) as error:
        log.warning("%s: damaged checkpoint (%s): training begins anew", path, error)
        return None
    log.info("%s: going on after epoch %d", path, len(state.history))
    return state


def _check(state: State, start: State, epochs: int) -> None:
    """Raise ValueError unless `state` fits `start`. The file is untrusted: it may come from somebody else."""
    shapes = {name: value.shape for name, value in start.params.items()}
    for what, arrays in (("parameters", state.params), ("moments", state.first), ("moments", state.second)):
        if {name: value.shape for name, value in arrays.items()} != shapes:
            raise ValueError(f"its {what} are of other shapes")
    if state.best is not None and {name: value.shape for name, value in state.best.items()} != shapes:
        raise ValueError("its best parameters are of other shapes")
    groups = (state.params, state.first, state.second, state.best or {})
    if any(array.dtype != np.float32 for arrays in groups for array in arrays.values()):
        raise ValueError("its parameters are not float32")
    numbers = (state.n_steps, state.best_epoch)
    if not all(type(number) is int and number >= 0 for number in numbers) or type(state.is_done) is not bool:
        raise ValueError("its counts are no whole numbers")
    if not isinstance(state.history, list) or not len(state.history) <= epochs or state.best_epoch > len(state.history):
        raise ValueError(f"expected reports of at most {epochs} epochs")
    if (state.best is None) != (state.best_epoch == 0):
        raise ValueError("its best epoch and best parameters do not go together")
    for row in state.history:
        if not isinstance(row, list) or [_kind(value) for value in row] != _REPORT:
            raise ValueError("a report of an epoch is not one")


def _kind(value: Any) -> type | None:
    return next((kind for kind in (int, float, str) if type(value) is kind), None)
