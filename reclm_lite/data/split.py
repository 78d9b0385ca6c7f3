"""Splits interactions into training, validation and test sets: six methods, one seed, all parameters recorded.

    given       the split that the data set brings
    ratio       a random share of every user's interactions
    leave-last  every user's last interaction
    temporal    everything after one moment
    cold-items  a random share of the items, wholly; then `ratio` on the rest
    none        nothing held out (a deployment)

Each method then carves a validation set from training, on which models are selected; the test
parts are for the final figure only. Left out: negative sampling, and metrics.
"""

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from ..errors import InputError
from ..workspace import Workspace
from .dataset import (
    GIVEN_TEST,
    GIVEN_TRAIN,
    GIVEN_UNSEEN,
    GIVEN_VALID,
    Interactions,
    Split,
    load_interactions,
    load_split,
    save_split,
)

METHODS = ("given", "ratio", "leave-last", "temporal", "cold-items", "none")


@dataclass(frozen=True)
class _Pairs:
    """Distinct (user, item) pairs in order of user, then item.

    users, items: int64 (n,). times: int64 (n,), of the earliest, or None.
    """

    users: np.ndarray
    items: np.ndarray
    times: np.ndarray | None
    n_users: int
    n_items: int

    def __len__(self) -> int:
        return len(self.users)

    def matrix(self, chosen: np.ndarray) -> sp.csr_matrix:
        """The chosen pairs (bool (n,)) as CSR (n_users, n_items) of ones, float32."""
        ones = np.ones(int(chosen.sum()), np.float32)
        matrix = sp.csr_matrix((ones, (self.users[chosen], self.items[chosen])), shape=(self.n_users, self.n_items))
        matrix.sort_indices()
        return matrix


def default_method(interactions: Interactions) -> tuple[str, str]:
    """(the method that suits the data, the reason in words)."""
    if interactions.given is not None:
        return "given", "the data set brings a split"
    if interactions.timestamps is None:
        return "ratio", "the data have neither a split nor times"
    times = interactions.timestamps
    share_after = float((times > _cut_time(times, 0.2)).mean()) if len(times) else 0.0
    if share_after < 0.05:
        return "ratio", "the data have times, but nearly all of them are the same"
    late = times > _cut_time(times, 0.2)
    early_users = np.zeros(interactions.n_users, bool)
    early_users[interactions.users[~late]] = True
    if early_users[interactions.users[late]].mean() >= 0.5:
        return "temporal", "the data have times, and most of the latest interactions are by users with a history"
    return (
        "leave-last",
        "the data have times, but the latest interactions are mostly by users without a history before them",
    )


def make_split(
    interactions: Interactions,
    method: str,
    *,
    seed: int = 0,
    valid_fraction: float = 0.1,
    test_fraction: float = 0.2,
    item_fraction: float = 0.1,
) -> Split:
    """Split the distinct interactions by one of METHODS.

    valid_fraction: share of each user's training interactions that goes to validation; a user with any keeps at least
    one for training. Chosen at random, for leave-last and temporal by time (the latest).
    test_fraction: held-out share, of every user's interactions for ratio and cold-items, of all interactions for
    temporal. item_fraction: share of the items that cold-items holds out.

    Candidates of the full setting are items with a training or validation interaction, unless the data set comes with
    its own list. Held-out pairs with other items go to `unseen`, whose candidates are the items without interactions in
    training. Raises InputError if the data does not allow the method.
    """
    if method not in METHODS:
        raise InputError(f"expected a method among {', '.join(METHODS)}, found {method!r}: use one of them")
    for name, value in (
        ("valid_fraction", valid_fraction),
        ("test_fraction", test_fraction),
        ("item_fraction", item_fraction),
    ):
        if not 0 < value < 1:
            raise InputError(f"expected {name} between 0 and 1, found {value}")
    if len(interactions.users) == 0:
        raise InputError("the data set has no interactions: import one that has")
    rng = np.random.default_rng(seed)
    params: dict = {"method": method, "seed": seed, "valid_fraction": valid_fraction}
    if method == "given":
        return _given(interactions, rng, params)
    pairs = _distinct(interactions, np.ones(len(interactions.users), bool))
    held_out, more = _held_out(pairs, method, rng, test_fraction, item_fraction)
    params |= more
    by_time = method in ("leave-last", "temporal")
    valid = _carve(pairs, ~held_out, valid_fraction, rng, by_time, required=method != "none")
    trained = np.zeros(pairs.n_items, bool)
    trained[pairs.items[~held_out]] = True
    unseen = held_out & ~trained[pairs.items]
    return _split(pairs, ~held_out & ~valid, valid, held_out & ~unseen, unseen, trained, params)


def run_split(ws: Workspace, method: str | None = None, **params) -> Split:
    """Split the workspace's interactions and store the result; `params` are those of make_split.

    Without a method, `default_method` chooses one; `Split.params["chosen_because"]` records why.
    """
    with ws.writing():
        interactions = load_interactions(ws)
        because = ""
        if method is None:
            method, because = default_method(interactions)
        split = make_split(interactions, method, **params)
        if because:
            split.params["chosen_because"] = because
        save_split(ws, split, inputs={"matrices/interactions": interactions.fingerprint})
        return load_split(ws)


def _held_out(
    pairs: _Pairs, method: str, rng: np.random.Generator, test_fraction: float, item_fraction: float
) -> tuple[np.ndarray, dict]:
    """(held-out pairs, bool (n,); the parameters that were used)."""
    if method == "none":
        return np.zeros(len(pairs), bool), {}
    if method == "ratio":
        return _share_of_each(pairs, np.ones(len(pairs), bool), test_fraction, rng, None), {
            "test_fraction": test_fraction
        }
    if method == "cold-items":
        used = np.unique(pairs.items)
        n_cold = min(max(round(item_fraction * len(used)), 1), len(used) - 1)
        if n_cold < 1:
            raise InputError("cold-items needs at least two items with interactions: choose another method")
        cold = np.isin(pairs.items, rng.permutation(used)[:n_cold])
        return cold | _share_of_each(pairs, ~cold, test_fraction, rng, None), {
            "test_fraction": test_fraction,
            "item_fraction": item_fraction,
            "n_cold_items": n_cold,
        }
    if pairs.times is None:
        raise InputError(
            f"the method {method} requires times, but the data have none: import with a time column, or use `ratio`"
        )
    if method == "leave-last":
        last = np.lexsort((pairs.items, pairs.times, pairs.users))
        ends = np.append(np.flatnonzero(np.diff(pairs.users[last])), len(pairs) - 1)
        held_out = np.zeros(len(pairs), bool)
        held_out[last[ends]] = True
        # A single interaction stays in training.
        counts = np.bincount(pairs.users, minlength=pairs.n_users)
        return held_out & (counts[pairs.users] >= 2), {}
    cut = _cut_time(pairs.times, test_fraction)
    held_out = pairs.times > cut
    if not held_out.any():
        raise InputError(
            f"all interactions have times up to {cut} and none is later: `temporal` cannot split them; use `ratio`"
        )
    return held_out, {"test_fraction": test_fraction, "train_until_seconds": int(cut)}


def _cut_time(times: np.ndarray, test_fraction: float) -> int:
    """The last time of training: at least a share 1 - test_fraction lies at or before it, if any lies after."""
    ordered = np.sort(times)
    cut = ordered[max(int(np.ceil(len(ordered) * (1.0 - test_fraction))) - 1, 0)]
    if cut == ordered[-1] and ordered[0] < cut:
        cut = ordered[np.searchsorted(ordered, cut) - 1]
    return int(cut)


def _distinct(interactions: Interactions, chosen: np.ndarray) -> _Pairs:
    users, items = interactions.users[chosen].astype(np.int64), interactions.items[chosen].astype(np.int64)
    keys, where = np.unique(users * interactions.n_items + items, return_inverse=True)
    times = None
    if interactions.timestamps is not None:
        times = np.full(len(keys), np.iinfo(np.int64).max)
        np.minimum.at(times, where, interactions.timestamps[chosen])
    n_items = interactions.n_items
    return _Pairs(keys // n_items, keys % n_items, times, interactions.n_users, n_items)


def _share_of_each(
    pairs: _Pairs, among: np.ndarray, fraction: float, rng: np.random.Generator, times: np.ndarray | None
) -> np.ndarray:
    """A share of each user's pairs within `among`, never all of them: bool (n,).

    The number is fraction × count, rounded randomly so that its expectation is exact. With `times` the latest pairs are
    taken (ties: higher items), otherwise random ones.
    """
    index = np.flatnonzero(among)
    users = pairs.users[index]
    counts = np.bincount(users, minlength=pairs.n_users)
    wanted = np.floor(counts * fraction + rng.random(pairs.n_users)).astype(np.int64)
    wanted = np.minimum(wanted, np.maximum(counts - 1, 0))
    key = rng.random(len(index)) if times is None else -times[index].astype(np.float64)
    order = np.lexsort((-pairs.items[index], key, users))
    starts = np.cumsum(counts) - counts
    rank = np.arange(len(index)) - starts[users[order]]
    taken = np.zeros(len(pairs), bool)
    taken[index[order[rank < wanted[users[order]]]]] = True
    return taken


def _carve(
    pairs: _Pairs, training: np.ndarray, fraction: float, rng: np.random.Generator, by_time: bool, required: bool = True
) -> np.ndarray:
    """The validation pairs among `training` (bool (n,) both); at least one, or InputError where one is `required`."""
    times = pairs.times if by_time else None
    valid = _share_of_each(pairs, training, fraction, rng, times)
    if not valid.any():
        counts = np.bincount(pairs.users[training], minlength=pairs.n_users)
        users = np.flatnonzero(counts >= 2)
        if len(users) == 0:
            if not required:
                return valid
            raise InputError(
                "no user has two training interactions, so no validation set can be made: import more interactions, "
                "or use method none, which needs no validation (models then train for all epochs)"
            )
        index = np.flatnonzero(training & (pairs.users == rng.choice(users)))
        valid[index[np.argmax(times[index])] if times is not None else rng.choice(index)] = True
    return valid


def _given(interactions: Interactions, rng: np.random.Generator, params: dict) -> Split:
    """The split by the data set's own labels. A pair may be labelled both test and unseen, as in RecLM's data."""
    given = interactions.given
    if given is None:
        raise InputError("the data set has no given split: choose ratio, leave-last, temporal or cold-items")
    if not (given == GIVEN_TRAIN).any():
        raise InputError("the given split has no training interactions: choose another method")
    pairs = _distinct(interactions, np.ones(len(given), bool))
    keys = pairs.users * pairs.n_items + pairs.items
    flags = np.zeros((4, len(pairs)), bool)
    where = np.searchsorted(keys, interactions.users.astype(np.int64) * pairs.n_items + interactions.items)
    flags[given, where] = True
    train, valid, test, unseen = flags[GIVEN_TRAIN], flags[GIVEN_VALID], flags[GIVEN_TEST], flags[GIVEN_UNSEEN]
    valid = valid & ~train
    if valid.any():
        params |= {"valid_fraction": None, "validation": "given"}
    else:
        valid = _carve(pairs, train, params["valid_fraction"], rng, by_time=False)
        train = train & ~valid
    known = train | valid
    params["n_test_pairs_in_training_dropped"] = int(((test | unseen) & known).sum())
    test, unseen = test & ~known, unseen & ~known
    trained = np.zeros(pairs.n_items, bool)
    trained[pairs.items[known]] = True
    full = trained.copy()
    if interactions.full_candidates is not None:
        full[:] = False
        full[interactions.full_candidates] = True
    moved = test & ~full[pairs.items]
    # An item with training interactions is not unseen, whatever its label.
    seen = unseen & trained[pairs.items]
    params["n_test_pairs_moved_to_unseen"] = int((moved & ~unseen).sum())
    params["n_unseen_pairs_moved_to_test"] = int((seen & ~test & full[pairs.items]).sum())
    labelled = test | unseen
    test, unseen = (test & ~moved) | (seen & full[pairs.items]), (unseen | (moved & ~trained[pairs.items])) & ~seen
    params["n_test_pairs_outside_candidates_dropped"] = int((labelled & ~test & ~unseen).sum())
    split = _split(pairs, train, valid, test, unseen, trained, params, full)
    if interactions.unseen_candidates is not None:
        allowed = np.unique(np.concatenate([interactions.unseen_candidates, pairs.items[unseen]]))
        return Split(
            split.train,
            split.valid,
            split.test,
            split.unseen,
            split.full_candidates,
            allowed[~trained[allowed]].astype(np.int32),
            params=params,
        )
    return split


def _split(
    pairs: _Pairs,
    train: np.ndarray,
    valid: np.ndarray,
    test: np.ndarray,
    unseen: np.ndarray,
    trained: np.ndarray,
    params: dict,
    full: np.ndarray | None = None,
) -> Split:
    params["n_pairs"] = {
        "train": int(train.sum()),
        "valid": int(valid.sum()),
        "test": int(test.sum()),
        "unseen": int(unseen.sum()),
    }
    return Split(
        *(pairs.matrix(part) for part in (train, valid, test, unseen)),
        full_candidates=np.flatnonzero(trained if full is None else full).astype(np.int32),
        unseen_candidates=np.flatnonzero(~trained).astype(np.int32),
        params={key: value for key, value in params.items() if value is not None},
    )
