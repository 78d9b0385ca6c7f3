"""Whose history does a profile describe? The stored profiles of a workspace beside the rule-based teacher's.

    python benchmarks/profile_quality.py -w WS --users 2000

For sampled users with a profile: how often the profile's text vector is nearer (cosine) to the mean item vector of its
user's training history than to that of another random user with another history; ties count half. `plain`: vectors as
they are. `centered`: less the mean item vector, and the mean profile vector. `shuffled`: profiles dealt to other users,
which must give one half. Prints one JSON line last. Needs `reclm embed items`, `profile users` and `embed profiles`.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from reclm_lite.data.dataset import load_split
from reclm_lite.profiles.profile_vectors import profile_words
from reclm_lite.profiles.sources.rules import RuleTeacher
from reclm_lite.profiles.store import profile_counts
from reclm_lite.prompts.answer import format_profile
from reclm_lite.prompts.inputs import load_inputs
from reclm_lite.text.encoder import TextEncoder
from reclm_lite.workspace import Workspace


def wins(profiles: np.ndarray, own: np.ndarray, other: np.ndarray) -> float:
    """The share of rows whose profile is nearer to `own` than to `other`; all float32 (n, dim)."""
    unit = [rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12) for rows in (own, other)]
    a, b = (np.einsum("ij,ij->i", profiles, rows) for rows in unit)
    return float((a > b).mean() + 0.5 * (a == b).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-w", "--workspace", type=Path, required=True)
    parser.add_argument("--users", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    with Workspace.open(options.workspace) as ws, TextEncoder() as encoder:
        train = load_split(ws).train
        items = ws.load("vectors/items", made_by="reclm embed items").arrays["vectors"]
        stored = ws.load("vectors/user_profiles", made_by="reclm embed profiles").arrays["vectors"]
        inputs, counts = load_inputs(ws), profile_counts(ws, "user")
        length = np.diff(train.indptr)
        able = np.flatnonzero((length > 0) & np.any(stored != 0, axis=1))
        users = np.sort(rng.choice(able, min(options.users, len(able)), replace=False))
        histories = [tuple(train[user].indices) for user in users]
        others = np.array([_another(i, histories, rng) for i in range(len(users))])
        teacher = RuleTeacher(inputs.stats)
        ruled = [
            format_profile(
                teacher.profile(inputs.show(inputs.items_of(u)), [inputs.show(n) for n in inputs.neighbors_of(u)])
            )
            for u in users
        ]
        taught = encoder.encode([profile_words(text) for text in ruled])
    averaging = train[users].multiply(1.0 / length[users][:, None]).tocsr()
    result = {"users": len(users), "statuses": counts}
    for kind, shift in (("plain", 0.0), ("centered", items.mean(axis=0))):
        means = np.asarray(averaging @ items) - shift
        for name, profiles in (
            ("model", stored[users]),
            ("rules", taught),
            ("shuffled", stored[rng.permutation(users)]),
        ):
            centre = profiles.mean(axis=0) if kind == "centered" else 0.0
            result[f"{name}_{kind}"] = round(wins(profiles - centre, means, means[others]), 4)
    print(json.dumps(result))


def _another(i: int, histories: list[tuple], rng: np.random.Generator) -> int:
    """A random other user whose history differs."""
    while True:
        j = int(rng.integers(len(histories)))
        if histories[j] != histories[i]:
            return j


if __name__ == "__main__":
    main()
