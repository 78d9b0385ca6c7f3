"""The registry of models: a new one is a file in this folder and a row below. Light: nothing is imported before it is
used.

A module of kind "trained" has `PRESETS: dict[str, Settings]`, `build(settings, inputs, interactions, n_threads)` (a
`training.Trainable`) and `estimate_bytes(shape, settings)`. One of kind "closed", which needs no training, has
`Settings`, `fit(interactions, settings, …)` and `estimate_bytes(n_users, n_items, nnz, settings)`.
"""

import importlib
from types import ModuleType

# name -> (kind, one line for people)
ROWS = {
    "popularity": ("closed", "how many users touched an item"),
    "random": ("closed", "reproducible chance"),
    "ease": ("closed", "EASE^R, a linear item-item model in closed form"),
    "itemknn": ("closed", "nearest items by cosine"),
    "gfcf": ("closed", "GF-CF, a linear filter of the graph"),
    "biasmf": ("trained", "matrix factorisation"),
    "ncf": ("trained", "matrix factorisation with a layer over both vectors"),
    "lightgcn": ("trained", "LightGCN, vectors propagated over the graph"),
    "sgl": ("trained", "LightGCN with a contrast between thinned graphs"),
    "simgcl": ("trained", "LightGCN with a contrast between noisy vectors"),
}
MODELS = tuple(ROWS)
CLOSED = tuple(name for name, (kind, _) in ROWS.items() if kind == "closed")
TRAINED = tuple(name for name, (kind, _) in ROWS.items() if kind == "trained")
PRESETS = ("default", "paper")


def module_of(model: str) -> ModuleType:
    """The module of a model that is in the registry."""
    if model not in ROWS:
        raise KeyError(model)
    return importlib.import_module(f"{__name__}.{model}")
