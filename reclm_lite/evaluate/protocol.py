"""The two evaluation settings, and the validation used for model selection.

    full     candidates: the split's full list; masked: what the user had in training and validation
    unseen   candidates: items nobody touched in training; nothing masked

Each averages over the users who have a held-out interaction in that setting.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from ..cf.fitted import FittedModel
from ..cf.names import artefact_name, fit_command, fitted_models
from ..cf.ranking import take_rows
from ..cf.store import load
from ..cf.untrained import baselines
from ..data.dataset import Split, load_interactions, load_split
from ..errors import InputError, WorkspaceError
from ..metrics import metric_keys, ranking_metrics
from ..workspace import Workspace
from .intervals import bootstrap_mean

SETTINGS = ("full", "unseen")
KS = (20, 40)


@dataclass(frozen=True)
class Evaluation:
    """users: int32 (n,), who was ranked. per_user: float64 (n,) for each metric. means: their averages (NaN for no
    users)."""

    setting: str
    users: np.ndarray
    per_user: dict[str, np.ndarray]

    @property
    def n_users(self) -> int:
        return len(self.users)

    @property
    def means(self) -> dict[str, float]:
        return {name: float(values.mean()) if len(values) else float("nan") for name, values in self.per_user.items()}


def evaluate(
    source: Workspace | Split,
    fitted: FittedModel,
    setting: str,
    ks: Sequence[int] = KS,
    *,
    n_threads: int | None = None,
) -> Evaluation:
    """Rank every user of a setting. `setting` is "full" or "unseen"."""
    split = load_split(source) if isinstance(source, Workspace) else source
    if setting not in SETTINGS:
        raise InputError(f"setting: expected one of {', '.join(SETTINGS)}, found {setting!r}")
    if (fitted.n_users, fitted.n_items) != (split.n_users, split.n_items):
        raise InputError(
            f"{fitted.name}: expected vectors of {split.n_users} users and {split.n_items} items, "
            f"found {fitted.n_users} and {fitted.n_items}; fit the model again"
        )
    if setting == "full":
        return rank(fitted, split.test, split.full_candidates, split.known(), ks, setting, n_threads=n_threads)
    return rank(fitted, split.unseen, split.unseen_candidates, None, ks, setting, n_threads=n_threads)


def evaluate_validation(split: Split, fitted: FittedModel, ks: Sequence[int] = KS) -> Evaluation:
    """Rank the validation interactions among the items of training, with training masked; test interactions are not
    used."""
    candidates = np.unique(split.train.indices).astype(np.int32)
    return rank(fitted, split.valid, candidates, split.train, ks, "valid")


def rank(
    fitted: FittedModel,
    relevant: sp.csr_matrix,
    candidates: np.ndarray,
    seen: sp.csr_matrix | None,
    ks: Sequence[int] = KS,
    setting: str = "",
    *,
    n_threads: int | None = None,
) -> Evaluation:
    """Metrics of ranking `candidates` against `relevant`: CSR (n_users, n_items); only candidates count as relevant."""
    relevant = keep_columns(relevant, candidates)
    users = np.flatnonzero(np.diff(relevant.indptr)).astype(np.int32)
    if len(users) == 0:
        return Evaluation(setting, users, {key: np.zeros(0) for key in metric_keys(ks)})
    ids, _ = fitted.topk(users, max(ks), candidates=candidates, seen=seen, n_threads=n_threads)
    return Evaluation(setting, users, ranking_metrics(ids, take_rows(relevant, users), ks))


def keep_columns(matrix: sp.csr_matrix, columns: np.ndarray) -> sp.csr_matrix:
    """The matrix with entries outside `columns` left out; same shape."""
    keep = np.zeros(matrix.shape[1], bool)
    keep[columns] = True
    kept = keep[matrix.indices]
    indptr = np.concatenate([[0], np.cumsum(kept)])[matrix.indptr]
    return sp.csr_matrix((matrix.data[kept], matrix.indices[kept], indptr), shape=matrix.shape)


def evaluate_workspace(
    ws: Workspace, ks: Sequence[int] = KS, *, ci95: bool = False, progress: Callable[..., None] | None = None
) -> dict:
    """Evaluate every fitted model in both settings, always with popularity and random as baselines.

    {"dataset", "split", "rows": [{"model", "profiles", "setting", "selection", "recall@20", …, "n_users"}], "stale"}.
    A metric over no users is None. Models that are stale or damaged are not ranked: "stale" lists {"model", "reason"}.
    ci95: adds {"recall@20": [low, high], …} to each row, a bootstrap over users.
    """
    split = load_split(ws)
    models = baselines(split.known())
    stale, told = [], {}
    for model, profiles in fitted_models(ws):
        if model in ("random", "popularity"):
            continue
        name = artefact_name(model, profiles)
        try:
            changed = ws.stale_inputs(name, told)
            reason = (
                f"{', '.join(changed)} has changed since the fit: run `{fit_command(ws, model, profiles)}`"
                if changed
                else ""
            )
            if not changed:
                models.append(load(ws, model, profiles))
        except WorkspaceError as error:
            reason = f"damaged: {error}"
        if reason:
            stale.append({"model": name.removeprefix("models/"), "reason": reason})
    rows = []
    for setting in SETTINGS:
        for fitted in models:
            result = evaluate(split, fitted, setting, ks)
            rows.append(_row(fitted, result, ci95))
            if progress is not None:
                progress(len(rows), len(models) * len(SETTINGS), f"{fitted.name} {setting}")
    return {"dataset": load_interactions(ws).name, "split": split.params, "rows": rows, "stale": stale}


def _row(fitted: FittedModel, result: Evaluation, ci95: bool) -> dict:
    row: dict = {"model": fitted.name, "profiles": fitted.profiles, "setting": result.setting, "selection": "valid"}
    for metric, mean in result.means.items():
        row[metric] = mean if result.n_users else None
    row["n_users"] = result.n_users
    if ci95:
        row["ci95"] = {
            metric: list(bootstrap_mean(values)) if result.n_users else None
            for metric, values in result.per_user.items()
        }
    return row
