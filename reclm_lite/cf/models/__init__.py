"""The registry of models: a new one is a file in this folder and a row in `ROWS`.

`cf/interface.py` has the contract of a model's file. Nothing is imported before it is used.
"""

import importlib
from collections.abc import Collection, Iterator
from types import ModuleType
from typing import NamedTuple


class Row(NamedTuple):
    """A row of the registry.

    kind: "trained" or "untrained". label: the name in tables. meaning: one line for help texts. module: of the model's
    file; by default the file in this folder that has the model's name.
    """

    kind: str
    label: str
    meaning: str
    module: str = ""


ROWS = {
    "popularity": Row("untrained", "Popularity", "the number of users who interacted with an item"),
    "random": Row("untrained", "Random", "reproducible random scores"),
    "ease": Row("untrained", "EASE", "EASE^R, a linear item-item model in closed form"),
    "itemknn": Row("untrained", "ItemKNN", "nearest items by cosine"),
    "gfcf": Row("untrained", "GF-CF", "GF-CF, a linear filter of the graph"),
    "biasmf": Row("trained", "BiasMF", "matrix factorization"),
    "ncf": Row("trained", "NCF", "matrix factorization with a layer over both vectors"),
    "lightgcn": Row("trained", "LightGCN", "LightGCN, vectors propagated over the graph"),
    "sgl": Row("trained", "SGL", "LightGCN with a contrastive loss between graphs with dropped edges"),
    "simgcl": Row("trained", "SimGCL", "LightGCN with a contrastive loss between vectors with added noise"),
}


class _OfKind(Collection):
    """The models of one kind, in the order of `ROWS`."""

    def __init__(self, kind: str):
        self.kind = kind

    def __contains__(self, name: object) -> bool:
        return name in ROWS and ROWS[name].kind == self.kind

    def __iter__(self) -> Iterator[str]:
        return (name for name, row in ROWS.items() if row.kind == self.kind)

    def __len__(self) -> int:
        return sum(1 for _ in self)


MODELS = ROWS.keys()
TRAINED, UNTRAINED = _OfKind("trained"), _OfKind("untrained")
PRESETS = ("default", "paper")


def module_of(model: str) -> ModuleType:
    """The module of a model that is in the registry."""
    return importlib.import_module(ROWS[model].module or f"{__name__}.{model}")
