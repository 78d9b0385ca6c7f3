"""What training has reached, in one file, so that an interrupted fit goes on as if nothing had happened.

A safetensors file: parameters, Adam's moments and the best parameters as tensors; the rest as JSON in the file's
metadata, with a fingerprint of what is being trained (settings, data, first parameters) and one of the file's own
content. It appears by atomic rename. Nothing in it is executed.
"""

import dataclasses
import json
import logging
from collections.abc import Sequence
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


@dataclass
class State:
    """Everything that the next epoch depends on. first, second: Adam's moments, of the parameters' shapes.

    history: a report for each finished epoch. best: the parameters of the best epoch, None before there is one.
    """

    params: Params
    first: Params
    second: Params
    n_steps: int = 0
    history: list[Sequence] = field(default_factory=list)
    best: Params | None = None
    best_epoch: int = 0
    is_done: bool = False

    @classmethod
    def start(cls, params: Params) -> "State":
        params = {name: np.ascontiguousarray(value, dtype=np.float32) for name, value in params.items()}
        zeros = [{name: np.zeros_like(value) for name, value in params.items()} for _ in range(2)]
        return cls(params, *zeros)


def fingerprint(
    name: str, phase: str, config: Any, interactions: sp.csr_matrix, params: Params, is_validated: bool
) -> str:
    """What a checkpoint must have been made from to be gone on from. params: the first parameters."""
    arrays = {f"first parameters: {key}": value for key, value in params.items()}
    arrays |= {"indptr": interactions.indptr.astype(np.int64), "indices": interactions.indices.astype(np.int32)}
    settings = {**dataclasses.asdict(config), "model": name, "phase": phase, "validated": is_validated}
    return fingerprint_arrays(arrays, settings | {"shape": list(interactions.shape)})


def write(path: Path, made_of: str, state: State) -> None:
    """Replace the file. Raises WorkspaceError where the disk is full; what was there then stays."""
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


def read(path: Path, made_of: str, like: Params | None = None) -> State | None:
    """The state, or None where there is none that can be gone on from: the log says why.

    like: the first parameters, whose names and shapes it must have.
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
    for key, value in arrays.items():
        group, _, name = key.partition("/")
        if group not in groups:
            log.warning("%s: damaged checkpoint (it holds %.40r): training begins anew", path, key)
            return None
        groups[group][name] = np.array(value)  # safetensors may lend what cannot be written to
    if fault := _fault(groups, about, like):
        log.warning("%s: damaged checkpoint (%s): training begins anew", path, fault)
        return None
    log.info("%s: going on after epoch %d", path, len(about["history"]))
    return State(
        groups["param"],
        groups["first"],
        groups["second"],
        about["n_steps"],
        about["history"],
        groups["best"] or None,
        about["best_epoch"],
        about["is_done"],
    )


def _fault(groups: dict[str, Params], about: dict[str, Any], like: Params | None) -> str:
    """What is not as `write` makes it, or an empty text: kernels and training trust the rest."""
    params = groups["param"] if like is None else like
    for name, others in groups.items():
        if not others and name == "best":
            continue
        if others.keys() != params.keys():
            return f"{name}: expected an array for each parameter"
        if any(value.dtype != np.float32 or value.shape != params[key].shape for key, value in others.items()):
            return f"{name}: expected float32 arrays of the parameters' shapes"
    if not all(type(about.get(name)) is int and 0 <= about[name] < 1 << 40 for name in ("n_steps", "best_epoch")):
        return "expected counts of steps and epochs"
    if type(about.get("is_done")) is not bool:
        return "expected whether it is done"
    history = about.get("history")
    if not isinstance(history, list) or not all(map(_is_report, history)):
        return "expected a report of each epoch"
    if about["best_epoch"] > len(history) or (about["best_epoch"] > 0) != bool(groups["best"]):
        return "expected the best epoch among those that are told of"
    return ""


def _is_report(report: object) -> bool:
    """epoch, epochs, four figures, the phase (training.EpochReport)."""
    if not isinstance(report, list) or len(report) != 7:
        return False
    return all(type(n) is int for n in report[:2]) and all(type(n) in (int, float) for n in report[2:6])
