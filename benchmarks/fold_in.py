"""New users placed without a fit, beside a fit that knew them: Recall@20 on test, lists shared, milliseconds each.

    python benchmarks/fold_in.py -w WS --model lightgcn --model biasmf [--share 0.1] [--seed 0]

For each model three fits: with everybody; with everybody from another seed (how far two fits agree by themselves); and
without a tenth of the users, who are then folded in with their training and validation items. The last line is JSON.
"""

import argparse
import dataclasses
import json
import time
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from reclm_lite.cf.fit import fit_arrays
from reclm_lite.cf.fitted import FittedModel
from reclm_lite.cf.inputs import Inputs, load_inputs
from reclm_lite.cf.models import TRAINED
from reclm_lite.cf.scorers import HistoryScorer, VectorScorer
from reclm_lite.cf.untrained import fit_untrained
from reclm_lite.data.dataset import Split, load_split
from reclm_lite.evaluate.protocol import rank
from reclm_lite.workspace import Workspace

K = 20


def without(matrix: sp.csr_matrix, users: np.ndarray) -> sp.csr_matrix:
    """The matrix with these users' rows empty."""
    keep = np.ones(matrix.shape[0], np.float32)
    keep[users] = 0
    thinned = (sp.diags(keep, format="csr") @ matrix).tocsr().astype(np.float32)
    thinned.eliminate_zeros()
    thinned.sort_indices()
    return thinned


def fit(inputs: Inputs, split: Split, model: str, seed: int) -> FittedModel:
    if model in TRAINED:
        return fit_arrays(dataclasses.replace(inputs, split=split), model, seed=seed)
    return fit_untrained(split, model, seed=seed)


def shared(these: np.ndarray, those: np.ndarray) -> float:
    """Mean share of a list of K that the other has, too."""
    return float(np.mean([len(np.intersect1d(a, b)) / K for a, b in zip(these, those, strict=True)]))


def measure(inputs: Inputs, model: str, share: float, seed: int) -> dict:
    split = inputs.split
    known = split.known()
    rng = np.random.default_rng([seed, 7])
    able = np.flatnonzero((np.diff(split.train.indptr) > 0) & (np.diff(split.test.indptr) > 0))
    users = np.sort(rng.choice(able, max(1, int(share * len(able))), replace=False))
    seen, test = known[users], split.test[users]

    def judge(fitted: FittedModel) -> tuple[float, np.ndarray]:
        recall = rank(fitted, test, split.full_candidates, seen, (K,)).means[f"recall@{K}"]
        return recall, fitted.topk(np.arange(len(users)), K, candidates=split.full_candidates, seen=seen)[0]

    def rows_of(fitted: FittedModel) -> FittedModel:
        if isinstance(fitted.scorer, HistoryScorer):
            scorer = fitted.scorer.for_histories(fitted.scorer.histories[users])
        else:
            scorer = VectorScorer(fitted.vectors._replace(users=fitted.user_vectors[users]))
        return dataclasses.replace(fitted, scorer=scorer, user_ready=fitted.user_ready[users])

    refit, refit_lists = judge(rows_of(fit(inputs, split, model, seed)))
    _, other_lists = judge(rows_of(fit(inputs, split, model, seed + 1)))
    fewer = dataclasses.replace(split, train=without(split.train, users), valid=without(split.valid, users))
    part = fit(inputs, fewer, model, seed)
    start = time.perf_counter()
    folded = part.folded(seen)
    milliseconds = (time.perf_counter() - start) / len(users) * 1e3
    recall, lists = judge(folded)
    return {
        "model": model,
        "n_users": len(users),
        "recall_folded": recall,
        "recall_refit": refit,
        "lists_shared": shared(lists, refit_lists),
        "lists_shared_by_another_seed": shared(other_lists, refit_lists),
        "ms_per_user": milliseconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-w", "--workspace", type=Path, required=True)
    parser.add_argument("--model", action="append", required=True)
    parser.add_argument("--share", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with Workspace.open(arguments.workspace) as ws:
        inputs = load_inputs(ws, load_split(ws), "none", {})
    rows = []
    print("| model | users | R@20 folded in | R@20 refit | lists shared | by two fits | ms a user |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for model in arguments.model:
        row = measure(inputs, model, arguments.share, arguments.seed)
        rows.append(row)
        print(
            f"| {model} | {row['n_users']} | {row['recall_folded']:.4f} | {row['recall_refit']:.4f} | "
            f"{row['lists_shared']:.2f} | "
            f"{row['lists_shared_by_another_seed']:.2f} | {row['ms_per_user']:.1f} |",
            flush=True,
        )
    print(json.dumps({"benchmark": "fold_in", "rows": rows}))


if __name__ == "__main__":
    main()
