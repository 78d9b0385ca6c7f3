"""Bipartite interaction graphs like real ones, from a seed: exact sizes, power-law degrees, planted communities.

Degrees follow a Lomax law above a smallest degree, cut off at the share of the other side that the busiest node
reaches. With the defaults, 29,858 users, 40,981 items and 810,128 interactions have the quantiles of a public check-in
graph of that size (users from 8 to about 800, mean 27; items of mean 20 with the first 1 % holding a sixth of all);
`NEWS` has those of the MIND split. Edges are a configuration model: every node gets exactly its degree, and stubs of
the same community are matched first, so that there is something to learn. Left out: time, text, ratings.
"""

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from ..errors import InputError


@dataclass(frozen=True)
class Shape:
    """user_tail, item_tail: exponents of the Lomax laws, smaller is heavier. user_least, item_least: the smallest
    degree as a share of the mean (at least 1). user_most, item_most: the largest degree as a share of the other side's
    size.
    n_communities: 1 plants nothing. focus: how much of a user's interactions lie in its two communities."""

    user_tail: float = 2.2
    item_tail: float = 1.8
    user_least: float = 0.3
    item_least: float = 0.1
    user_most: float = 0.02
    item_most: float = 0.05
    n_communities: int = 64
    focus: float = 0.7


PLACES = Shape()
# Short histories, and a few items that everyone read.
NEWS = Shape(
    user_tail=4.0, item_tail=0.9, item_least=0.01, user_most=0.011, item_most=0.06, n_communities=12, focus=0.8
)


def power_law(n_users: int, n_items: int, n_interactions: int, seed: int = 0, shape: Shape = PLACES) -> sp.csr_matrix:
    """CSR (n_users, n_items) of ones, float32, indices ascending, with exactly n_interactions entries.

    Every user and item has at least one where there are enough. Ids say nothing of degree or community.
    Raises InputError if so many interactions do not fit.
    """
    if min(n_users, n_items, n_interactions) < 1 or n_interactions > n_users * n_items // 4:
        raise InputError(
            f"expected at least one user, item and interaction, and at most a quarter of all {n_users} x {n_items} "
            "pairs, "
            f"found {n_interactions} interactions"
        )
    rng = np.random.default_rng([seed, 0xB1])
    sides = []
    for n, others, tail, least, most in (
        (n_users, n_items, shape.user_tail, shape.user_least, shape.user_most),
        (n_items, n_users, shape.item_tail, shape.item_least, shape.item_most),
    ):
        degree = rng.permutation(_degrees(n, n_interactions, tail, least, most, others))
        order = rng.permutation(n)
        sides.append(np.repeat(order, degree[order]))
    user_stubs, item_stubs = sides
    # A place in [0, 1) for each stub; those of one node share its community, and all stubs are matched by place.
    community_of_item = _communities(item_stubs, shape.n_communities)
    item_places = _places(community_of_item, shape.n_communities, rng)
    home = _communities(user_stubs, shape.n_communities)
    second = rng.integers(shape.n_communities, size=n_users)[user_stubs]
    draw = rng.random(n_interactions)
    anywhere = rng.integers(shape.n_communities, size=n_interactions)
    chosen = np.where(draw < 0.7 * shape.focus, home, np.where(draw < shape.focus, second, anywhere))
    user_places = _places(chosen, shape.n_communities, rng)
    users, items = user_stubs[np.argsort(user_places)], item_stubs[np.argsort(item_places)]
    items = _without_duplicates(users, items, n_items, rng)
    matrix = sp.csr_matrix((np.ones(n_interactions, np.float32), (users, items)), shape=(n_users, n_items))
    matrix.sort_indices()
    return matrix


def _degrees(n: int, total: int, tail: float, least: float, most: float, others: int) -> np.ndarray:
    """int64 (n,), descending, adding up to `total`: quantiles of a Lomax law between the smallest and largest
    degree."""
    if total <= n:
        return (np.arange(n) < total).astype(np.int64)
    low = max(1, int(least * total / n))
    # The cut-off leaves room for twice the mean, and for no more than half of the other side.
    high = min(max(int(most * others), 2 * -(-total // n), low + 1), max(others // 2, -(-total // n)))
    quantile = (np.arange(n) + 0.5) / n
    shape = quantile ** (-1.0 / tail) - 1.0

    def at(scale: float) -> np.ndarray:
        return np.minimum(low + scale * shape, high)

    below, above = 0.0, 1.0
    while at(above).sum() < total and above < 1e12:
        above *= 2.0
    for _ in range(60):
        scale = (below + above) / 2.0
        below, above = (scale, above) if at(scale).sum() < total else (below, scale)
    exact = at(above)
    degree = np.floor(exact).astype(np.int64)
    # The largest remainders are rounded up; what is still missing goes to nodes below the cut-off.
    short = int(total - degree.sum())
    up = np.argsort(degree - exact, kind="stable")
    up = up[degree[up] < high][: max(short, 0)]
    degree[up] += 1
    while (missing := int(total - degree.sum())) != 0:
        step = 1 if missing > 0 else -1
        free = np.flatnonzero(degree < high) if missing > 0 else np.flatnonzero(degree > 1)
        degree[free[: abs(missing)]] += step
    return degree


def _communities(stubs: np.ndarray, n_communities: int) -> np.ndarray:
    """The community of each stub: runs of whole nodes with about as many stubs each."""
    first = np.concatenate([[True], stubs[1:] != stubs[:-1]])
    start = np.flatnonzero(first)[np.cumsum(first) - 1]
    return start * n_communities // len(stubs)


def _places(community: np.ndarray, n_communities: int, rng: np.random.Generator) -> np.ndarray:
    return (community + rng.random(len(community))) / n_communities


def _without_duplicates(users: np.ndarray, items: np.ndarray, n_items: int, rng: np.random.Generator) -> np.ndarray:
    """`items` with some places exchanged, so that no (user, item) pair stands twice; all degrees stay."""
    items = items.copy()
    for _ in range(1000):
        keys = users.astype(np.int64) * n_items + items
        order = np.argsort(keys, kind="stable")
        repeated = order[1:][keys[order[1:]] == keys[order[:-1]]]
        if len(repeated) == 0:
            return items
        # Exchanges one after the other would be slow; each place takes part in one exchange per round.
        partners = rng.integers(len(items), size=len(repeated))
        partners, at = np.unique(partners, return_index=True)
        repeated = repeated[at]
        apart = ~np.isin(partners, repeated)
        repeated, partners = repeated[apart], partners[apart]
        items[repeated], items[partners] = items[partners], items[repeated]
    raise InputError("expected a graph sparse enough to draw without repetition; ask for fewer interactions")


def hold_out(matrix: sp.csr_matrix, share: float, seed: int = 0) -> tuple[sp.csr_matrix, sp.csr_matrix]:
    """(kept, held out): a share of each user's interactions at random, never all of them."""
    rng = np.random.default_rng([seed, 0xB2])
    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    order = np.lexsort((rng.random(matrix.nnz), rows))
    rank = np.empty(matrix.nnz, np.int64)
    rank[order] = np.arange(matrix.nnz) - np.repeat(matrix.indptr[:-1], np.diff(matrix.indptr))
    degree = np.diff(matrix.indptr)[rows]
    # What a share of a short history leaves over is drawn by chance.
    n_out = np.floor(share * degree + rng.random(matrix.shape[0])[rows])
    out = rank < np.minimum(n_out, degree - 1)
    parts = []
    for chosen in (~out, out):
        indptr = np.concatenate([[0], np.cumsum(chosen)])[matrix.indptr]
        parts.append(sp.csr_matrix((matrix.data[chosen], matrix.indices[chosen], indptr), shape=matrix.shape))
    return parts[0], parts[1]


def normalized_adjacency(matrix: sp.csr_matrix) -> sp.csr_matrix:
    """[[0, R], [R^T, 0]] with R = D_u^-1/2 A D_i^-1/2, float32 (LightGCN, arXiv 2002.02126, eq. 8)."""
    scale = [1.0 / np.sqrt(np.maximum(np.asarray(matrix.sum(axis=axis)).ravel(), 1.0)) for axis in (1, 0)]
    weighted = (sp.diags(scale[0]) @ matrix @ sp.diags(scale[1])).astype(np.float32)
    joined = sp.bmat([[None, weighted], [weighted.T, None]], format="csr", dtype=np.float32)
    joined.sort_indices()
    return joined
