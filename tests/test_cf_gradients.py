"""Hand-derived gradients against torch autograd, for every model, preset and use of profiles."""

import numpy as np
import pytest
import scipy.sparse as sp

torch = pytest.importorskip("torch")

from reclm_lite.cf.fusion import PublishedEncoder, ResidualEncoder  # noqa: E402
from reclm_lite.cf.graph import Graph  # noqa: E402
from reclm_lite.cf.models.biasmf import BiasMF  # noqa: E402
from reclm_lite.cf.models.lightgcn import LightGCN  # noqa: E402
from reclm_lite.cf.profile_tower import ProfileTower  # noqa: E402
from reclm_lite.cf.training import Batch  # noqa: E402
from reclm_lite.cf.vectors import Vectors  # noqa: E402

N_USERS, N_ITEMS, N_TEXT, DIM = 13, 9, 11, 4
TARGETS = np.array([0, 3, 4, 9])


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    dense = rng.random((N_USERS, N_ITEMS)) < 0.35
    dense[:, 5] = False  # an item without training interactions
    train = sp.csr_matrix(dense.astype(np.float32))
    train.sort_indices()
    vectors = {name: rng.standard_normal((n, N_TEXT), dtype=np.float32)
               for name, n in (("text", N_ITEMS), ("user_profiles", N_USERS), ("item_profiles", N_ITEMS))}  # fmt: skip
    vectors["user_profiles"][2] = 0
    vectors["item_profiles"][4] = 0
    users = np.repeat(np.arange(N_USERS), np.diff(train.indptr)).astype(np.int32)[TARGETS]
    positives = train.indices[TARGETS].astype(np.int32)
    return train, vectors, users, positives


def numpy_gradients(model, params, users, positives, negatives, targets):
    return model.step(params, Batch(users, positives, negatives, targets, seed=0))


def torch_loss(u, i, b, users, positives, negatives):
    users, positives, negatives = (torch.as_tensor(x, dtype=torch.long) for x in (users, positives, negatives))
    positive = (u[users] * i[positives]).sum(1) + (b[positives] if len(b) else 0)
    negative = (u[users][:, None] * i[negatives]).sum(2) + (b[negatives] if len(b) else 0)
    if negatives.shape[1] == 1:
        return -torch.nn.functional.logsigmoid(positive - negative[:, 0]).mean()
    scores = torch.cat([positive[:, None], negative], dim=1)
    return torch.nn.functional.cross_entropy(scores, torch.zeros(len(users), dtype=torch.long))


def mlp(p, name, x):
    return torch.relu(x @ p[f"{name}.w1"] + p[f"{name}.b1"]) @ p[f"{name}.w2"] + p[f"{name}.b2"]


def torch_published(p, vectors, use):
    normalize = torch.nn.functional.normalize
    items = mlp(p, "text", vectors["text"]) if "text" in use else p["item_id"]
    if "item_profiles" in use:
        joint = torch.cat([items, mlp(p, "profile", vectors["item_profiles"])], dim=1)
        items = torch.relu(joint @ p["fuse.w"] + p["fuse.b"])
    elif "text" in use:
        items = normalize(items, dim=1)
    users = p["user_id"]
    if "user_profiles" in use:
        joint = torch.cat([users, normalize(mlp(p, "profile", vectors["user_profiles"]), dim=1)], dim=1)
        users = torch.relu(joint @ p["fuse.w"] + p["fuse.b"])
    return users, items, torch.zeros(0, dtype=torch.float64)


def torch_residual(p, vectors, use, id_users):
    users = torch.zeros(N_USERS, DIM, dtype=torch.float64).index_put((torch.as_tensor(id_users),), p["user_id"])
    if "text" not in use:
        return users, p["item_id"], p["item_bias"]
    return users, mlp(p, "text", vectors["text"]) + p["item_id"], p["item_bias"] + (vectors["text"] @ p["bias_of_text"])[:, 0]


def torch_propagate(train, users, items, weights, loops_, dropped):
    """Plain matrices: D^-1/2 (A + I) D^-1/2, degrees from the whole graph."""
    a = np.zeros((N_USERS + N_ITEMS,) * 2)
    a[:N_USERS, N_USERS:] = train.toarray()
    a = a + a.T + (np.eye(len(a)) if loops_ else 0)
    scale = 1 / np.sqrt(np.maximum(a.sum(1), 1))
    a = a * scale[:, None] * scale[None, :]
    rows = np.repeat(np.arange(N_USERS), np.diff(train.indptr))
    for entry in dropped:
        u, i = rows[entry], N_USERS + train.indices[entry]
        a[u, i] = a[i, u] = 0
    a = torch.as_tensor(a)
    layer, total = torch.cat([users, items]), 0
    for weight in weights:
        total = total + weight * layer
        layer = a @ layer
    return total[:N_USERS], total[N_USERS:]


def compare(model, torch_forward, data, n_negatives, targets, seed=1):
    train, _, users, positives = data
    rng = np.random.default_rng(seed)
    negatives = rng.integers(0, N_ITEMS, (len(users), n_negatives)).astype(np.int32)
    params = {k: (v + 0.1 * rng.standard_normal(v.shape)).astype(np.float32) for k, v in model.init(rng).items()}
    loss, grads = numpy_gradients(model, params, users, positives, negatives, targets)
    tensors = {k: torch.tensor(v.astype(np.float64), requires_grad=True) for k, v in params.items()}
    expected = torch_loss(*torch_forward(tensors), users, positives, negatives)
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    assert set(grads) == set(params)
    for name, tensor in tensors.items():
        wanted = np.zeros(tensor.shape) if tensor.grad is None else tensor.grad.numpy()
        np.testing.assert_allclose(grads[name], wanted, atol=1e-4 * max(1.0, np.abs(wanted).max()), rtol=1e-4, err_msg=name)
    assert any(np.abs(grad).max() > 1e-4 for grad in grads.values())


USES = {
    "plain": (),
    "text": ("text",),
    "users": ("text", "user_profiles"),
    "items": ("text", "item_profiles"),
    "both": ("text", "user_profiles", "item_profiles"),
    "both without text": ("user_profiles", "item_profiles"),
}


@pytest.mark.parametrize("graph", [False, True], ids=["biasmf", "lightgcn"])
@pytest.mark.parametrize("use", USES.values(), ids=USES.keys())
def test_paper_preset_matches_autograd(data, use, graph):
    train, vectors, _, _ = data
    double = {k: torch.as_tensor(v.astype(np.float64)) for k, v in vectors.items()}
    encoder = PublishedEncoder(N_USERS, N_ITEMS, DIM, **{name: vectors[name] for name in use})
    if not graph:
        return compare(BiasMF(encoder), lambda p: torch_published(p, double, use), data, 1, None)

    def forward(p):
        users, items, bias = torch_published(p, double, use)
        return torch_propagate(train, users, items, (1, 1, 1), True, ())[0], items, bias

    compare(LightGCN(encoder, Graph(train, self_loops=True)), forward, data, 1, TARGETS)


@pytest.mark.parametrize("graph", [False, True], ids=["biasmf", "lightgcn"])
@pytest.mark.parametrize("use", [(), ("text",)], ids=["plain", "text"])
@pytest.mark.parametrize("items_propagated", [False, True])
def test_default_preset_matches_autograd(data, use, graph, items_propagated):
    train, vectors, _, _ = data
    double = {k: torch.as_tensor(v.astype(np.float64)) for k, v in vectors.items()}
    degree = np.diff(train.indptr)
    encoder = ResidualEncoder(
        N_USERS, N_ITEMS, DIM, user_counts=degree, item_counts=np.asarray(train.sum(0)).ravel(), n_hidden=6,
        min_id_interactions=3, **{name: vectors[name] for name in use},
    )  # fmt: skip
    assert 0 < len(encoder.id_users) < N_USERS
    if not graph:
        return compare(BiasMF(encoder), lambda p: torch_residual(p, double, use, encoder.id_users), data, 5, None)
    weights = (0.5, 0.3, 0.2)

    def forward(p):
        users, items, bias = torch_residual(p, double, use, encoder.id_users)
        final_users, final_items = torch_propagate(train, users, items, weights, False, TARGETS)
        known = torch.as_tensor(np.asarray(train.sum(0)).ravel() > 0)[:, None]
        return final_users, torch.where(known, final_items, items) if items_propagated else items, bias

    model = LightGCN(
        encoder, Graph(train), layer_weights=weights, items_propagated=items_propagated, drops_targets=True
    )
    compare(model, forward, data, 5, TARGETS)


@pytest.mark.parametrize("use", [u for u in USES.values() if "user_profiles" in u or "item_profiles" in u])
def test_default_preset_profiles_match_autograd(data, use):
    _, vectors, _, _ = data
    rng = np.random.default_rng(5)
    base = Vectors(*(rng.standard_normal(shape, dtype=np.float32) for shape in ((N_USERS, 3), (N_ITEMS, 3), (N_ITEMS,))))
    tower = ProfileTower(base, DIM, **{name: vectors[name] for name in use})
    double = {k: torch.as_tensor(v.astype(np.float64)) for k, v in vectors.items()}

    def forward(p):
        users, items = [], []
        if "user_profiles" in use:
            mask = (double["user_profiles"] != 0).any(dim=1, keepdim=True)
            users.append(mlp(p, "user_profile", double["user_profiles"]) * mask)
            items.append(mlp(p, "text", double["text"]) if "text" in use else p["item_id"])
        if "item_profiles" in use:
            mask = (double["item_profiles"] != 0).any(dim=1, keepdim=True)
            users.append(torch.as_tensor(base[0].astype(np.float64)))
            items.append(mlp(p, "item_profile", double["item_profiles"]) * mask)
        return torch.cat(users, 1), torch.cat(items, 1), torch.as_tensor(base[2].astype(np.float64))

    compare(tower, forward, data, 3, None)
