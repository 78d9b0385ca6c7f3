"""The registry of models: a new one is a file in this folder and a row in `ROWS`.

`cf/interface.py` has the contract of a model's file. Nothing is imported before it is used.
"""

import importlib
from types import ModuleType
from typing import NamedTuple


class Row(NamedTuple):
    """kind: "trained" or "untrained". label: in tables. meaning: one line for people."""

    kind: str
    label: str
    meaning: str


ROWS = {
    "popularity": Row("untrained", "Popularity", "how many users touched an item"),
    "random": Row("untrained", "Random", "reproducible random scores"),
    "ease": Row("untrained", "EASE", "EASE^R, a linear item-item model in closed form"),
    "itemknn": Row("untrained", "ItemKNN", "nearest items by cosine"),
    "gfcf": Row("untrained", "GF-CF", "GF-CF, a linear filter of the graph"),
    "biasmf": Row("trained", "BiasMF", "matrix factorization"),
    "ncf": Row("trained", "NCF", "matrix factorization with a layer over both vectors"),
    "lightgcn": Row("trained", "LightGCN", "LightGCN, vectors propagated over the graph"),
    "sgl": Row("trained", "SGL", "LightGCN with a contrast between thinned graphs"),
    "simgcl": Row("trained", "SimGCL", "LightGCN with a contrast between noisy vectors"),
}
MODELS = tuple(ROWS)
UNTRAINED = tuple(name for name, row in ROWS.items() if row.kind == "untrained")
TRAINED = tuple(name for name, row in ROWS.items() if row.kind == "trained")
PRESETS = ("default", "paper")


def module_of(model: str) -> ModuleType:
    """The module of a model that is in the registry."""
    if model not in ROWS:
        raise KeyError(model)
    return importlib.import_module(f"{__name__}.{model}")
