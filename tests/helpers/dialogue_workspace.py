"""A small workspace with everything dialogues are made of: two groups of readers, a model by hand, its neighbors,
times."""

import random
from pathlib import Path

import numpy as np
from profile_workspace import make_workspace, matrix

from reclm_lite.cf import store
from reclm_lite.cf.fitted import FittedModel
from reclm_lite.cf.neighbors import neighbors
from reclm_lite.dialogue.build import BuildSettings, BuildSummary, build
from reclm_lite.profiles.sources.rules import RulesTeacher
from reclm_lite.prompts.inputs import load_inputs
from reclm_lite.workspace import Workspace

N_USERS, N_ITEMS = 24, 24
SINGLE = 23  # a user with one item
_RNG = random.Random(0)
# Even users have seven items below 12, odd users seven from 12 on.
TRAIN = {user: sorted(_RNG.sample(range(12 * (user % 2), 12 * (user % 2) + 12), 7)) for user in range(N_USERS - 1)} | {
    SINGLE: [13]
}
VALID = {user: [next(i for i in range(12 * (user % 2), 24) if i not in TRAIN[user])] for user in range(0, 20, 2)}
TEST = {user: [next(i for i in range(23, 0, -1) if i not in TRAIN[user])] for user in (1, 3)}


def dialogue_workspace(
    root: Path, *, train=TRAIN, valid=VALID, test=TEST, with_neighbors: bool = True, refit_vectors: bool = True
) -> Workspace:
    """refit_vectors: the model keeps vectors fitted on training alone, as one that was fitted again does."""
    train = {user: sorted(items) for user, items in train.items()}
    ws = make_workspace(root, train, n_users=N_USERS, n_items=N_ITEMS, valid=valid, test=test)
    if with_neighbors:
        add_neighbors(ws, train, refit_vectors=refit_vectors)
    return ws


def add_neighbors(ws: Workspace, train: dict[int, list[int]], *, refit_vectors: bool = True, k: int = 4) -> None:
    """A model whose vectors are noisy pictures of histories, and the neighbors that it finds."""
    rng = np.random.default_rng(0)
    items = rng.normal(size=(N_ITEMS, 8)).astype(np.float32)
    items[:12, 0] += 3
    items[12:, 1] += 3
    users = (matrix(N_USERS, N_ITEMS, train) @ items).astype(np.float32)
    model = FittedModel.of_vectors(
        "lightgcn",
        users,
        items,
        None,
        np.ones(N_USERS, bool),
        train_user_vectors=users if refit_vectors else None,
        params={"refit": True, "seed": 0},
    )
    store.save(model, ws, inputs={"matrices/split": ws.fingerprint("matrices/split")})
    neighbors(ws, k)


def make(ws: Workspace, kind: str, *, path: Path | None = None, teacher=None, budget=None, **settings) -> BuildSummary:
    """`build` by rules."""
    inputs = load_inputs(ws)
    return build(ws, inputs, teacher or RulesTeacher(inputs), BuildSettings(kind, **settings), path=path, budget=budget)
