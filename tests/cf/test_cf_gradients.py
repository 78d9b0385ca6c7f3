"""Hand-derived gradients against torch autograd: every model × preset × use of profiles × loss."""

import dataclasses

import numpy as np
import pytest
import scipy.sparse as sp
from published_models import PUBLISHED

torch = pytest.importorskip("torch")

from reclm_lite.cf.inputs import Inputs
from reclm_lite.cf.models import module_of
from reclm_lite.cf.profile_tower import ProfileTower
from reclm_lite.cf.settings import ContrastSettings, GraphSettings
from reclm_lite.cf.training import Batch, RowGrad
from reclm_lite.cf.vectors import Vectors
from reclm_lite.data.dataset import Split

N_USERS, N_ITEMS, N_TEXT, DIM = 13, 9, 11, 4
TARGETS = np.array([0, 3, 4, 9])
SEED = 77

PLAIN = ((), ("text",))
PROFILES = (
    ("text", "user_profiles"),
    ("text", "item_profiles"),
    ("text", "user_profiles", "item_profiles"),
    ("user_profiles", "item_profiles"),
)
# With the default preset, profiles go into the profile tower and are tested there.
CASES = [("paper", use) for use in PLAIN + PROFILES] + [("default", use) for use in PLAIN]


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    dense = rng.random((N_USERS, N_ITEMS)) < 0.35
    dense[:, 5] = False  # an item without training interactions
    train = sp.csr_matrix(dense.astype(np.float32))
    train.sort_indices()
    vectors = {
        name: rng.standard_normal((n, N_TEXT), dtype=np.float32)
        for name, n in (("text", N_ITEMS), ("user_profiles", N_USERS), ("item_profiles", N_ITEMS))
    }
    vectors["user_profiles"][2] = 0
    vectors["item_profiles"][4] = 0
    return train, vectors


def inputs_of(data, use) -> Inputs:
    train, vectors = data
    nothing = sp.csr_matrix(train.shape, dtype=np.float32)
    everything = np.arange(N_ITEMS, dtype=np.int32)
    split = Split(
        train, nothing, nothing, nothing, full_candidates=everything, unseen_candidates=everything[:0], params={}
    )
    return Inputs(split, **{name: vectors[name] for name in use})


def batch_of(train, loss, n_negatives, rng) -> Batch:
    users = np.repeat(np.arange(N_USERS), np.diff(train.indptr)).astype(np.int32)[TARGETS]
    negatives = rng.integers(0, N_ITEMS, (len(users), n_negatives)).astype(np.int32)
    if n_negatives > 1:
        negatives[1, 1] = -1  # none was to be had
    return Batch(users, train.indices[TARGETS].astype(np.int32), negatives, TARGETS, SEED, loss)


# -- the same models in torch, over dense float64 matrices ---------------------------------


def torch_loss(users, items, bias, relu_dim, batch):
    at = users.shape[1] - relu_dim
    scores = users[:, :at] @ items[:, :at].T + torch.relu(users[:, None, at:] + items[None, :, at:]).sum(2)
    scores = scores + bias[None] if len(bias) else scores
    rows = torch.as_tensor(batch.users, dtype=torch.long)
    positive = scores[rows, torch.as_tensor(batch.positives, dtype=torch.long)]
    drawn = torch.as_tensor(batch.negatives, dtype=torch.long)
    margins = scores[rows[:, None], drawn.clamp(min=0)] - positive[:, None]
    margins = margins.masked_fill(drawn < 0, -torch.inf)
    if batch.loss == "bpr":
        return torch.nn.functional.softplus(margins).mean()
    return torch.logsumexp(torch.cat([torch.zeros(len(rows), 1, dtype=torch.float64), margins], dim=1), dim=1).mean()


def mlp(p, name, x):
    return torch.relu(x @ p[f"{name}.w1"] + p[f"{name}.b1"]) @ p[f"{name}.w2"] + p[f"{name}.b2"]


def torch_published(p, vectors, use):
    normalize = torch.nn.functional.normalize
    items = mlp(p, "text", vectors["text"]) if "text" in use else p["item_id"]
    if "item_profiles" in use:
        joint = torch.cat([items, mlp(p, "profile", vectors["item_profiles"])], dim=1)
        items = torch.relu(joint @ p["fuse.w"] + p["fuse.b"])
    if "text" in use or "item_profiles" in use:
        items = normalize(items, dim=1)
    users = p["user_id"]
    if "user_profiles" in use:
        joint = torch.cat([users, normalize(mlp(p, "profile", vectors["user_profiles"]), dim=1)], dim=1)
        users = torch.relu(joint @ p["fuse.w"] + p["fuse.b"])
    return users, items, torch.zeros(0, dtype=torch.float64)


def torch_residual(p, vectors, use, train, min_id_interactions):
    id_users = np.flatnonzero(np.diff(train.indptr) >= min_id_interactions)
    users = torch.zeros(N_USERS, DIM, dtype=torch.float64).index_put((torch.as_tensor(id_users),), p["user_id"])
    if "text" not in use:
        return users, p["item_id"], p["item_bias"]
    return (
        users,
        mlp(p, "text", vectors["text"]) + p["item_id"],
        p["item_bias"] + (vectors["text"] @ p["bias_of_text"])[:, 0],
    )


def adjacency(train, self_loops, dropped):
    """D^-1/2 (A + I) D^-1/2, degrees from the whole graph."""
    a = np.zeros((N_USERS + N_ITEMS,) * 2)
    a[:N_USERS, N_USERS:] = train.toarray()
    a = a + a.T + (np.eye(len(a)) if self_loops else 0)
    scale = 1 / np.sqrt(np.maximum(a.sum(1), 1))
    a = a * scale[:, None] * scale[None, :]
    rows = np.repeat(np.arange(N_USERS), np.diff(train.indptr))
    for entry in dropped:
        u, i = rows[entry], N_USERS + train.indices[entry]
        a[u, i] = a[i, u] = 0
    return a


def propagate(a, first, weights, noise=None):
    a = torch.as_tensor(a)
    layer, total = first, weights[0] * first
    for number, weight in enumerate(weights[1:]):
        layer = a @ layer
        if noise is not None:
            layer = layer + noise[number] * torch.sign(layer.detach())
        total = total + weight * layer
    return total


def sgl_view(a, train, settings, number):
    """The adjacency thinned by the same draws, in the order in which the model makes them."""
    rng = np.random.default_rng([SEED, number])

    def factors(n):
        return (rng.random(n, dtype=np.float32) < settings.keep) / settings.keep

    thinned = a.copy()
    rows = np.repeat(np.arange(N_USERS), np.diff(train.indptr))
    thinned[rows, N_USERS + train.indices] *= factors(train.nnz)
    thinned[N_USERS + train.indices, rows] *= factors(train.nnz)
    if settings.self_loops:
        thinned[np.arange(len(a)), np.arange(len(a))] *= np.concatenate([factors(N_USERS), factors(N_ITEMS)])
    return thinned


def simgcl_noise(settings, number):
    rng = np.random.default_rng([SEED, number])
    layers = []
    for _ in range(settings.n_layers):
        parts = [rng.random((n, settings.dim), dtype=np.float32).astype(np.float64) for n in (N_USERS, N_ITEMS)]
        layers.append(
            torch.as_tensor(np.vstack([settings.eps * x / np.linalg.norm(x, axis=1, keepdims=True) for x in parts]))
        )
    return layers


def torch_contrast(one, two, nodes, settings):
    normalize = torch.nn.functional.normalize
    nodes = torch.as_tensor(nodes, dtype=torch.long)
    if settings.contrast_with == "batch":
        nodes = torch.unique(nodes)
        one, two, nodes = one[nodes], two[nodes], torch.arange(len(nodes))
    scores = normalize(one, dim=1)[nodes] @ normalize(two, dim=1).T / settings.temperature
    return torch.nn.functional.cross_entropy(scores, nodes)


def torch_total(name, settings, data, use, p, batch):
    """The whole loss of a model on a batch."""
    train, vectors = data
    double = {k: torch.as_tensor(v.astype(np.float64)) for k, v in vectors.items()}
    if settings.encoder == "published":
        users, items, bias = torch_published(p, double, use)
    else:
        users, items, bias = torch_residual(p, double, use, train, settings.min_id_interactions)
    if name == "ncf":
        right_users = users @ p["pair.w"][:DIM] + p["pair.b"]
        right_items = items @ p["pair.w"][DIM:]
        users, items = torch.cat([p["dot.w"] * users, right_users], 1), torch.cat([items, right_items], 1)
        return torch_loss(users, items, bias, right_users.shape[1], batch)
    if not isinstance(settings, GraphSettings):
        return torch_loss(users, items, bias, 0, batch)
    a = adjacency(train, settings.self_loops, TARGETS if settings.drops_targets else ())
    first = torch.cat([users, items])
    final = propagate(a, first, settings.layer_weights)
    if settings.items_propagated:
        known = torch.as_tensor(np.asarray(train.sum(0)).ravel() > 0)[:, None]
        items = torch.where(known, final[N_USERS:], items)
    loss = torch_loss(final[:N_USERS], items, bias, 0, batch)
    if not isinstance(settings, ContrastSettings):
        return loss
    if name == "sgl":
        one, two = (propagate(sgl_view(a, train, settings, n), first, settings.layer_weights) for n in (1, 2))
    else:
        one, two = (propagate(a, first, settings.layer_weights, simgcl_noise(settings, n)) for n in (1, 2))
    both = torch_contrast(one[:N_USERS], two[:N_USERS], batch.users, settings)
    both = both + torch_contrast(one[N_USERS:], two[N_USERS:], batch.positives, settings)
    return loss + settings.contrast_weight * both


# -- comparison ---------------------------------------------------------------------------


def dense(grad, like):
    if not isinstance(grad, RowGrad):
        return grad
    assert (np.diff(grad.rows) > 0).all()
    full = np.zeros_like(like)
    full[grad.rows] = grad.values
    return full


def compare(model, torch_of, batch):
    rng = np.random.default_rng(1)
    params = {k: (v + 0.1 * rng.standard_normal(v.shape)).astype(np.float32) for k, v in model.init(rng).items()}
    loss, grads = model.step(params, batch)
    tensors = {k: torch.tensor(v.astype(np.float64), requires_grad=True) for k, v in params.items()}
    expected = torch_of(tensors)
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    assert set(grads) == set(params)
    for name, tensor in tensors.items():
        wanted = np.zeros(tensor.shape) if tensor.grad is None else tensor.grad.numpy()
        found = dense(grads[name], params[name])
        np.testing.assert_allclose(found, wanted, atol=1e-4 * max(1.0, np.abs(wanted).max()), rtol=1e-4, err_msg=name)
    assert any(np.abs(dense(grads[name], params[name])).max() > 1e-4 for name in grads)


LOSSES = {"bpr": ("bpr", 1), "bpr of several": ("bpr", 3), "ssm": ("ssm", 5)}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize(
    "preset, use", CASES, ids=lambda part: part if isinstance(part, str) else "+".join(part) or "plain"
)
@pytest.mark.parametrize("name", PUBLISHED)
def test_every_model_matches_autograd(data, name, preset, use, loss):
    module = module_of(name)
    settings = dataclasses.replace(module.PRESETS[preset], dim=DIM, text_hidden=6, min_id_interactions=3)
    if preset == "default" and isinstance(settings, GraphSettings):
        settings = dataclasses.replace(settings, n_layers=3)
    if isinstance(settings, ContrastSettings):
        # Weighty enough to show.
        settings = dataclasses.replace(settings, contrast_weight=0.5)
    model = module.build(settings, inputs_of(data, use), data[0], 1)
    batch = batch_of(data[0], *loss, np.random.default_rng(2))
    compare(model, lambda p: torch_total(name, settings, data, use, p, batch), batch)


@pytest.mark.parametrize(
    "changes",
    [
        dict(items_propagated=False),
        dict(drops_targets=False),
        dict(self_loops=True),
        dict(n_layers=0),
        dict(layers="sum"),
        dict(contrast_with="all"),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["lightgcn", "sgl", "simgcl"])
def test_every_graph_setting_matches_autograd(data, name, changes):
    module = module_of(name)
    settings = dataclasses.replace(module.PRESETS["default"], dim=DIM, text_hidden=6, min_id_interactions=3)
    if not set(changes) <= {field.name for field in dataclasses.fields(settings)}:
        pytest.skip("not a setting of this model")
    settings = dataclasses.replace(settings, **changes)
    model = module.build(settings, inputs_of(data, ("text",)), data[0], 1)
    batch = batch_of(data[0], "ssm", 5, np.random.default_rng(2))
    compare(model, lambda p: torch_total(name, settings, data, ("text",), p, batch), batch)


@pytest.mark.parametrize("name", ["biasmf", "ncf"])
def test_sparse_updates_have_the_same_gradient(data, name):
    module = module_of(name)
    settings = dataclasses.replace(module.PRESETS["default"], dim=DIM, min_id_interactions=3, sparse_updates=True)
    model = module.build(settings, inputs_of(data, ("text",)), data[0], 1)
    batch = batch_of(data[0], "ssm", 5, np.random.default_rng(2))
    compare(model, lambda p: torch_total(name, settings, data, ("text",), p, batch), batch)
    grads = model.step(model.init(np.random.default_rng(0)), batch)[1]
    assert isinstance(grads["user_id"], RowGrad) and len(grads["user_id"].rows) <= len(TARGETS)


@pytest.mark.parametrize("relu_dim", [0, 2])
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("use", PROFILES, ids="+".join)
def test_profiles_beside_a_model_match_autograd(data, use, loss, relu_dim):
    train, vectors = data
    rng = np.random.default_rng(5)
    base = Vectors(
        *(rng.standard_normal(shape, dtype=np.float32) for shape in ((N_USERS, 5), (N_ITEMS, 5), (N_ITEMS,))), relu_dim
    )
    tower = ProfileTower(base, DIM, **{name: vectors[name] for name in use})
    double = {k: torch.as_tensor(v.astype(np.float64)) for k, v in vectors.items()}
    batch = batch_of(train, *loss, rng)

    def total(p):
        users, items = [], []
        if "user_profiles" in use:
            mask = (double["user_profiles"] != 0).any(dim=1, keepdim=True)
            users.append(mlp(p, "user_profile", double["user_profiles"]) * mask)
            items.append(mlp(p, "text", double["text"]) if "text" in use else p["item_id"])
        if "item_profiles" in use:
            mask = (double["item_profiles"] != 0).any(dim=1, keepdim=True)
            users.append(torch.as_tensor(base.users[:, : 5 - relu_dim].astype(np.float64)))
            items.append(mlp(p, "item_profile", double["item_profiles"]) * mask)
        return torch_loss(
            torch.cat(users, 1), torch.cat(items, 1), torch.as_tensor(base.bias.astype(np.float64)), 0, batch
        )

    compare(tower, total, batch)
