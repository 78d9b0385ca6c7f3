"""The settings of a model: typed fields with ranges, overridden by `name=value` strings.

A setting is a field of a frozen dataclass, declared by `setting(default, meaning, …)`. Every new object checks types
and ranges. Settings of a single model, and its presets, stand in the model's file.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import InputError
from .encoders import ENCODERS
from .training import TrainConfig


def setting(
    default: Any,
    meaning: str,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    choices: Collection[str] | None = None,
) -> Any:
    """A dataclass field with a range (None: open) or choices, and a line that says what it means."""
    about = {"meaning": meaning, "at_least": at_least, "above": above, "at_most": at_most, "choices": choices}
    return dataclasses.field(default=default, metadata=about)


@dataclass(frozen=True)
class Checked:
    """Base of settings: raises InputError where a field is out of its range."""

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):
            _check(field, hints[field.name], getattr(self, field.name))


@dataclass(frozen=True)
class TrainedSettings(Checked):
    """Settings of every trained model. The defaults are the published values (arXiv 2412.19302)."""

    dim: int = setting(32, "width of the vectors", at_least=1, at_most=4096)
    loss: Literal["bpr", "ssm"] = setting("bpr", "bpr: pairwise loss; ssm: sampled softmax")
    n_negatives: int = setting(1, "negative items sampled for each interaction", at_least=1, at_most=4096)
    lr: float = setting(1e-3, "Adam's learning rate", above=0)
    batch_size: int = setting(4096, "interactions in a training step", at_least=1)
    steps_per_epoch: int = setting(
        0,
        "minimum number of steps in an epoch: small data gets smaller batches (at least 64); 0: no minimum",
        at_least=0,
    )
    epochs: int = setting(50, "maximum number of passes over the training set", at_least=1)
    patience: int | None = setting(
        10, "stop after this many epochs without better validation NDCG@20; none: never stop early", at_least=1
    )
    l2: float = setting(1e-7, "weight of L2 regularization of all parameters", at_least=0)
    l2_tables: float = setting(0.0, "additional weight of L2 regularization of ID vectors and biases", at_least=0)
    encoder: str = setting(
        "published",
        "published: first vectors as in the paper; residual: item text plus ID residual and item bias",
        choices=ENCODERS,
    )
    min_id_interactions: int = setting(
        1, "residual: users with fewer interactions have no ID vector, only what the graph gives them", at_least=0
    )
    text_hidden: int = setting(0, "width of the hidden layer over text vectors; 0: as `dim`", at_least=0, at_most=8192)
    tower_epochs: int = setting(6, "residual: training epochs of the profile tower", at_least=1)
    tower_lr: float = setting(5e-3, "residual: learning rate of the profile tower", above=0)

    def train_config(self, seed: int) -> TrainConfig:
        """The `TrainConfig` with the values of the fields that have the same names."""
        names = {field.name for field in dataclasses.fields(TrainConfig)} & {
            field.name for field in dataclasses.fields(self)
        }
        return TrainConfig(seed=seed, **{name: getattr(self, name) for name in names})


@dataclass(frozen=True)
class GraphSettings(TrainedSettings):
    """Settings of models on the user-item graph."""

    n_layers: int = setting(2, "number of propagation layers", at_least=0, at_most=16)
    layers: Literal["sum", "mean"] = setting("sum", "how the layers are combined")
    self_loops: bool = setting(True, "add an edge from every node to itself")
    items_propagated: bool = setting(False, "score items by propagated vectors, not by their first vectors")
    drops_targets: bool = setting(False, "remove a training batch's own edges from its propagation")

    @property
    def layer_weights(self) -> tuple[float, ...]:
        n = self.n_layers + 1
        return (1.0 / n if self.layers == "mean" else 1.0,) * n


@dataclass(frozen=True)
class ContrastSettings(GraphSettings):
    """Settings of models with a contrastive loss between two views of the graph."""

    contrast_weight: float = setting(1e-2, "weight of the contrastive loss (InfoNCE)", at_least=0)
    temperature: float = setting(0.1, "temperature of InfoNCE", above=0)
    contrast_with: Literal["all", "batch"] = setting("all", "InfoNCE negatives: all nodes, or only the batch")


# The shared part of the default presets of graph models, chosen on validation: LightGCN on four data sets, the
# contrastive loss on one.
GRAPH_DEFAULT: dict[str, Any] = {
    "encoder": "residual",
    "dim": 64,
    "loss": "ssm",
    "n_negatives": 32,
    "lr": 1e-2,
    "epochs": 30,
    "patience": 5,
    "steps_per_epoch": 20,
    "min_id_interactions": 5,
    "text_hidden": 64,
    "n_layers": 3,
    "layers": "mean",
    "self_loops": False,
    "items_propagated": True,
    "drops_targets": True,
}
CONTRAST_DEFAULT: dict[str, Any] = {
    **GRAPH_DEFAULT,
    "contrast_with": "batch",
    "contrast_weight": 0.05,
    "temperature": 0.2,
}


def override(settings: Any, assignments: Iterable[str]) -> Any:
    """`settings` with `name=value` strings applied. Raises InputError for an unknown name or an invalid value."""
    known = {field.name: field for field in dataclasses.fields(settings)}
    hints = typing.get_type_hints(type(settings))
    changed = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        name = name.strip().replace("-", "_")
        if not equals:
            raise InputError(f"--set {assignment}: expected name=value, as in --set {next(iter(known), 'name')}=…")
        if name not in known:
            listed = ", ".join(known) or "none: this model has no settings"
            raise InputError(f"--set {assignment}: no such setting; the settings of this model are {listed}")
        changed[name] = _parse(name, hints[name], value.strip())
    return dataclasses.replace(settings, **changed)


def listing(settings: Any) -> list[tuple[str, str, str]]:
    """(name, value, meaning) of every field, for display."""
    return [
        (f.name, _shown(getattr(settings, f.name)), f.metadata.get("meaning", "")) for f in dataclasses.fields(settings)
    ]


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(map(_shown, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _parse(name: str, hint: Any, text: str) -> Any:
    """`text` as a value of type `hint`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if text.lower() == "none" and type(None) in arguments:
            return None
        return _parse(name, next(a for a in arguments if a is not type(None)), text)
    if origin is Literal:
        if text not in arguments:
            raise InputError(f"--set {name}={text}: expected one of {', '.join(arguments)}")
        return text
    if origin is tuple:
        return tuple(_parse(name, arguments[0], part.strip()) for part in text.split(",") if part.strip())
    if hint is bool:
        if text.lower() not in _TRUTH:
            raise InputError(f"--set {name}={text}: expected true or false")
        return _TRUTH[text.lower()]
    if hint is str:
        return text
    try:
        return hint(text)
    except ValueError as error:
        what = "a whole number" if hint is int else "a number"
        raise InputError(f"--set {name}={text}: expected {what}") from error


_TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def _check(field: dataclasses.Field, hint: Any, value: Any) -> None:
    choices = field.metadata.get("choices") or (typing.get_args(hint) if typing.get_origin(hint) is Literal else None)
    if choices is not None and value not in choices:
        raise InputError(f"{field.name}: expected one of {', '.join(choices)}, found {value!r}")
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{field.name}: expected a finite number, found {value}")
    if value is None or isinstance(value, bool | str | tuple):
        return
    at_least, above, at_most = (field.metadata.get(key) for key in ("at_least", "above", "at_most"))
    wanted = [
        text
        for holds, text in (
            (at_least is None or value >= at_least, f"at least {at_least}"),
            (above is None or value > above, f"above {above}"),
            (at_most is None or value <= at_most, f"at most {at_most}"),
        )
        if not holds
    ]
    if wanted:
        raise InputError(f"{field.name}: expected {wanted[0]}, found {value}")
