"""The numba kernels of training against their NumPy references, and the bits at one and at two threads."""

import numpy as np
import pytest

from reclm_lite.errors import InputError
from reclm_lite.kernels import info_nce, losses, optim, reference_training, sampling

SIZES = (0, 1, 3, 97, 4096)
N_USERS, N_ITEMS = 30, 50


def problem(n, m, dim, seed=0, with_bias=True):
    """A batch with repeated users and items, and negatives of which some are -1."""
    rng = np.random.default_rng(seed)
    negatives = rng.integers(-1, N_ITEMS, (n, m)).astype(np.int32)
    if n:
        negatives[0] = -1  # a user who has touched everything
    return (
        rng.integers(0, N_USERS, n).astype(np.int32),
        rng.integers(0, N_ITEMS, n).astype(np.int32),
        negatives,
        rng.standard_normal((N_USERS, dim), dtype=np.float32),
        rng.standard_normal((N_ITEMS, dim), dtype=np.float32),
        rng.standard_normal(N_ITEMS if with_bias else 0, dtype=np.float32),
    )


def gradients(loss, batch, **options):
    d = [np.zeros_like(array) for array in batch[3:]]
    return losses.ranking_loss(loss, *batch, *d, **options), *d


# -- ranking losses -------------------------------------------------------------


@pytest.mark.parametrize("loss", ["bpr", "ssm"])
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize(
    ("m", "dim", "relu_dim", "with_bias"), [(1, 4, 0, False), (5, 33, 0, True), (3, 21, 9, True), (2, 3, 3, False)]
)
def test_ranking_losses_agree_with_the_reference(loss, n, m, dim, relu_dim, with_bias):
    batch = problem(n, m, dim, with_bias=with_bias)
    found, wanted = (
        gradients(loss, batch, relu_dim=relu_dim),
        reference_training.ranking_loss(loss, *batch, relu_dim=relu_dim),
    )
    assert found[0] == pytest.approx(wanted[0], rel=1e-5, abs=1e-7)
    for one, two in zip(found[1:], wanted[1:], strict=True):
        np.testing.assert_allclose(one, two, atol=2e-5, rtol=1e-4)


def test_one_negative_makes_the_two_losses_one():
    batch = problem(97, 1, 8)
    one, two = gradients("bpr", batch), gradients("ssm", batch)
    assert one[0] == pytest.approx(two[0], rel=1e-5)
    np.testing.assert_allclose(one[1], two[1], atol=1e-6)


@pytest.mark.parametrize("loss", ["bpr", "ssm"])
def test_threads_do_not_change_a_bit_of_a_loss(loss):
    batch = problem(4096, 7, 40)
    for one, two in zip(gradients(loss, batch, n_threads=1), gradients(loss, batch, n_threads=2), strict=True):
        assert np.array_equal(one, two)


def test_gradients_are_added_to_what_is_there():
    batch = problem(9, 2, 8)
    d = [np.ones_like(array) for array in batch[3:]]
    losses.ranking_loss("ssm", *batch, *d)
    for one, two in zip(d, gradients("ssm", batch)[1:], strict=True):
        np.testing.assert_allclose(one, two + 1, atol=1e-6)


@pytest.mark.parametrize("loss", ["bpr", "ssm"])
def test_a_margin_of_a_thousand_is_finite_and_nan_is_not_hidden(loss):
    batch = problem(3, 2, 4)
    batch[2][:] = [[1, 2], [3, 4], [5, 6]]
    for factor, is_finite in ((1e3, True), (np.nan, False)):
        scaled = (*batch[:3], batch[3] * np.float32(factor), *batch[4:])
        value, d_users, *_ = gradients(loss, scaled)
        assert np.isfinite(value) == is_finite and np.isfinite(d_users).all() == is_finite


def test_an_unknown_loss_is_refused():
    with pytest.raises(InputError, match="expected one of bpr, ssm, found 'hinge'"):
        gradients("hinge", problem(1, 1, 1))


# -- InfoNCE --------------------------------------------------------------------


def views(n, m, dim, seed=0):
    rng = np.random.default_rng(seed)
    z1, z2 = (rng.standard_normal((rows, dim), dtype=np.float32) for rows in (n, m))
    z1, z2 = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (z1, z2))
    return z1, z2, rng.integers(0, max(m, 1), n)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize(("m", "dim", "temperature"), [(1, 3, 1.0), (97, 16, 0.1), (4099, 8, 0.2), (3, 4, 0.005)])
def test_info_nce_agrees_with_the_reference(n, m, dim, temperature):
    batch = views(n, m, dim)
    found, wanted = (module.info_nce(*batch, temperature) for module in (info_nce, reference_training))
    assert found[0] == pytest.approx(wanted[0], rel=1e-5, abs=1e-6)
    scale = 1 / (max(n, 1) * temperature)
    np.testing.assert_allclose(found[1], wanted[1], atol=1e-5 * scale, rtol=1e-3)
    np.testing.assert_allclose(found[2], wanted[2], atol=1e-5 * scale * max(1, n // 100), rtol=1e-3)


def test_info_nce_in_small_blocks_is_the_same_and_threads_change_no_bit(monkeypatch):
    batch = views(97, 4500, 8)
    whole = info_nce.info_nce(*batch, 0.1, n_threads=1)
    for one, two in zip(whole, info_nce.info_nce(*batch, 0.1, n_threads=2), strict=True):
        assert np.array_equal(one, two)
    monkeypatch.setattr(info_nce, "_BLOCK_VALUES", 50_000)
    for one, two in zip(whole, info_nce.info_nce(*batch, 0.1), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-7)


def test_info_nce_refuses_what_does_not_fit():
    z1, z2, positives = views(4, 5, 3)
    for arguments, message in (
        ((z1, z2[:, :2], positives, 0.1), "columns"),
        ((z1, z2, positives, 0.0), "temperature"),
        ((z1, z2, np.array([0, 1, 2, 5]), 0.1), "positives"),
        ((z1, z2, positives[:2], 0.1), "positives"),
    ):
        with pytest.raises(InputError, match=message):
            info_nce.info_nce(*arguments)


# -- Adam -----------------------------------------------------------------------


@pytest.mark.parametrize("n", [*SIZES, 20_000])
@pytest.mark.parametrize("l2", [0.0, 0.01])
def test_adam_agrees_with_the_reference_over_steps(n, l2):
    rng = np.random.default_rng(0)
    value = rng.standard_normal((n, 3), dtype=np.float32)
    moments = np.zeros_like(value), np.zeros_like(value)
    wanted = value, *moments
    for step in (1, 2, 3):
        grad = rng.standard_normal((n, 3), dtype=np.float32)
        wanted = reference_training.adam(wanted[0], grad, *wanted[1:], step=step, lr=0.01, l2=l2)
        optim.adam(value, grad, *moments, step=step, lr=0.01, l2=l2, n_threads=1 + step % 2)
    np.testing.assert_allclose(value, wanted[0], atol=1e-5)
    np.testing.assert_allclose(moments[1], wanted[2], atol=1e-6)


@pytest.mark.parametrize("n", SIZES)
def test_adam_of_rows_moves_these_rows_as_adam_would_and_no_others(n):
    rng = np.random.default_rng(0)
    value = rng.standard_normal((n + 5, 4), dtype=np.float32)
    first, second = (rng.random((n + 5, 4), dtype=np.float32) for _ in range(2))
    rows = np.sort(rng.choice(n + 5, n, replace=False)).astype(np.int32)
    grad = rng.standard_normal((n, 4), dtype=np.float32)
    before = value.copy(), first.copy(), second.copy()
    optim.adam_rows(value, rows, grad, first, second, step=3, lr=0.1, l2=0.01)
    wanted = reference_training.adam(before[0][rows], grad, before[1][rows], before[2][rows], step=3, lr=0.1, l2=0.01)
    others = np.setdiff1d(np.arange(n + 5), rows)
    for now, was, expected in zip((value, first, second), before, wanted, strict=True):
        np.testing.assert_allclose(now[rows], expected, atol=1e-5)
        assert np.array_equal(now[others], was[others])


def test_adam_of_rows_is_torchs_sparse_adam():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    value = rng.standard_normal((6, 2)).astype(np.float32)
    parameter = torch.nn.Parameter(torch.tensor(value))
    optimizer = torch.optim.SparseAdam([parameter], lr=0.1)
    moments = np.zeros_like(value), np.zeros_like(value)
    for step, rows in enumerate(([0, 3], [3, 5], [1, 3]), 1):
        grad = rng.standard_normal((2, 2)).astype(np.float32)
        parameter.grad = torch.sparse_coo_tensor(torch.tensor([rows]), torch.tensor(grad), (6, 2))
        optimizer.step()
        optim.adam_rows(value, np.array(rows, np.int32), grad, *moments, step=step, lr=0.1)
    np.testing.assert_allclose(value, parameter.detach().numpy(), atol=1e-5)


def test_adam_refuses_arrays_of_another_kind():
    value, rows = np.zeros((4, 2), np.float32), np.array([1, 0], np.int32)
    with pytest.raises(InputError, match="float32"):
        optim.adam(value, value.astype(np.float64), value, value, step=1, lr=0.1)
    with pytest.raises(InputError, match="ascending"):
        optim.adam_rows(value, rows, value[:2], value, value, step=1, lr=0.1)


# -- negatives ------------------------------------------------------------------


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("share", [0.0, 0.1, 0.97, 1.0])
def test_negatives_are_never_known_positives(n, share):
    rng = np.random.default_rng(0)
    known = rng.random((N_USERS, N_ITEMS)) < share
    indptr = np.concatenate([[0], np.cumsum(known.sum(1))])
    indices = np.nonzero(known)[1].astype(np.int32)
    users = rng.integers(0, N_USERS, n).astype(np.int32)
    pool = np.arange(3, N_ITEMS, dtype=np.int32)
    drawn = sampling.sample_negatives(users, indptr, indices, pool, 4, seed=5)
    assert drawn.shape == (n, 4) and drawn.dtype == np.int32
    for user, row in zip(users, drawn, strict=True):
        allowed = reference_training.allowed_negatives(user, indptr, indices, pool)
        assert set(row.tolist()) <= (set(allowed.tolist()) if len(allowed) else {-1})


@pytest.mark.parametrize("n_known", [2, 45])
def test_negatives_are_uniform_over_what_is_left(n_known):
    """Of few known items, by rejection; of many, by rank among the rest."""
    rng = np.random.default_rng(1)
    pool = np.sort(rng.choice(100, 50, replace=False)).astype(np.int32)
    indices = np.sort(np.concatenate([rng.choice(pool, n_known, replace=False), [pool[0], 200]])).astype(np.int32)
    indptr = np.array([0, len(indices)])
    drawn = sampling.sample_negatives(np.zeros(60_000, np.int32), indptr, indices, pool, 1, seed=7)
    allowed = reference_training.allowed_negatives(0, indptr, indices, pool)
    counts = np.bincount(drawn.ravel(), minlength=101)
    assert counts.sum() == counts[allowed].sum()
    expected = drawn.size / len(allowed)
    chi_squared = ((counts[allowed] - expected) ** 2 / expected).sum()
    assert chi_squared < len(allowed) + 5 * np.sqrt(2 * len(allowed))


def test_draws_depend_on_the_seed_and_not_on_the_threads():
    indptr, indices, users = np.array([0, 1]), np.array([3], np.int32), np.zeros(4096, np.int32)
    pool = np.arange(1000, dtype=np.int32)
    one, two = (sampling.sample_negatives(users, indptr, indices, pool, 3, 1, n_threads=n) for n in (1, 2))
    assert np.array_equal(one, two)
    other = sampling.sample_negatives(users, indptr, indices, pool, 3, 2)
    assert (one == other).mean() < 0.02


def test_an_empty_pool_is_refused():
    with pytest.raises(InputError, match="pool"):
        sampling.sample_negatives(
            np.zeros(1, np.int32), np.array([0, 0]), np.zeros(0, np.int32), np.zeros(0, np.int32), 1, 0
        )


def batch_of_two(**change):
    """Arguments of ranking_loss, some of them changed."""
    vectors = np.ones((3, 4), np.float32)
    ids = np.array([0, 2], np.int32)
    arguments = {
        "users": ids,
        "positives": ids,
        "negatives": np.array([[1], [-1]], np.int32),
        "user_vectors": vectors,
        "item_vectors": vectors,
        "item_bias": np.zeros(0, np.float32),
        "d_users": np.zeros((3, 4), np.float32),
        "d_items": np.zeros((3, 4), np.float32),
        "d_bias": np.zeros(0, np.float32),
        "relu_dim": 0,
    }
    return arguments | change


@pytest.mark.parametrize(
    "change,message",
    [
        ({"users": np.array([0, 3], np.int32)}, r"users: expected ids within \[0, 3\), found 0 to 3"),
        ({"users": np.array([-1, 0], np.int32)}, "users: expected ids"),
        ({"positives": np.array([0, 3], np.int32)}, "positives: expected ids"),
        ({"positives": np.array([-1, 2], np.int32)}, "positives: expected ids"),
        ({"negatives": np.array([[3], [0]], np.int32)}, "negatives: expected ids"),
        ({"negatives": np.array([[-2], [0]], np.int32)}, "negatives: expected ids"),
        ({"negatives": np.zeros((1, 1), np.int32)}, "2 users, 2 positives, 1 rows of negatives"),
        ({"users": np.array([0, 2])}, "users: expected a 1-dimensional array of int32, found int64"),
        ({"item_vectors": np.ones((3, 4))}, "item_vectors: expected a 2-dimensional array of float32, found float64"),
        ({"item_vectors": np.ones((3, 5), np.float32)}, "of one width"),
        ({"item_bias": np.zeros(2, np.float32)}, "a bias for each item or none"),
        ({"relu_dim": 5}, "relu_dim 5"),
        ({"d_items": np.zeros((2, 4), np.float32)}, r"gradients: expected a writable float32 \(3, 4\)"),
        ({"d_users": np.broadcast_to(np.float32(0), (3, 4))}, "gradients: expected a writable"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused_and_nothing_is_written(change, message):
    arguments = batch_of_two(**change)
    with pytest.raises(InputError, match=message):
        losses.ranking_loss("ssm", **arguments)
    assert not any(arguments[name].any() for name in ("d_users", "d_items", "d_bias"))


@pytest.mark.parametrize(
    "change,message",
    [
        ({"users": np.array([2], np.int32)}, r"users: expected ids within \[0, 2\), found 2 to 2"),
        ({"users": np.array([-1], np.int32)}, "users: expected ids"),
        ({"users": np.array([0])}, "users: expected a 1-dimensional array of int32"),
        ({"indptr": np.array([0, 1, 3])}, "places within the 2 indices"),
        ({"indptr": np.array([-1, 1, 2])}, "places within the 2 indices"),
        ({"indptr": np.array([2, 0, 2])}, "places within the 2 indices"),
        ({"pool": np.arange(3)}, "pool: expected a 1-dimensional array of int32"),
    ],
)
def test_histories_that_cannot_be_read_are_refused(change, message):
    arguments = {
        "users": np.array([0, 1], np.int32),
        "indptr": np.array([0, 1, 2]),
        "indices": np.array([0, 1], np.int32),
        "pool": np.arange(3, dtype=np.int32),
    } | change
    with pytest.raises(InputError, match=message):
        sampling.sample_negatives(**arguments, n_negatives=1, seed=0)


def test_adam_refuses_what_it_cannot_write_and_a_step_of_zero():
    array = np.ones(3, np.float32)
    frozen = array.copy()
    frozen.flags.writeable = False
    optim.adam(array.copy(), frozen, array.copy(), array.copy(), step=1, lr=0.1)
    with pytest.raises(InputError, match="read-only"):
        optim.adam(frozen, array, array.copy(), array.copy(), step=1, lr=0.1)
    with pytest.raises(InputError, match="step: expected 1 or more, found 0"):
        optim.adam(array, array, array.copy(), array.copy(), step=0, lr=0.1)
    table = np.ones((3, 1), np.float32)
    with pytest.raises(InputError, match="rows: expected an array of int32, found float64"):
        optim.adam_rows(table, np.array([0.0]), table[:1], table.copy(), table.copy(), step=1, lr=0.1)


def test_loops_are_compiled_without_a_cache_where_none_can_be_written(monkeypatch, caplog):
    import numba

    from reclm_lite.kernels import _jit

    with_cache = numba.njit

    def njit(*arguments, cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function 'f': no locator available for file 'f.py'")
        return with_cache(*arguments, **options)

    monkeypatch.setattr(_jit.numba, "njit", njit)
    _jit._tell_of_cache.cache_clear()
    assert _jit.compiled()(lambda x: x + 1)(1) == 2
    assert "NUMBA_CACHE_DIR" in caplog.text
