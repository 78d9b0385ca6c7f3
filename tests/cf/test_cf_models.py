"""The contract of `cf/interface.py`, for every registered model and for a toy backbone that only this suite has.

A new model gets all of these tests by its row in the registry.
"""

import dataclasses

import numpy as np
import pytest
import scipy.sparse as sp
from small_splits import number, split_of

from reclm_lite.cf import store
from reclm_lite.cf.encoders import ENCODERS
from reclm_lite.cf.fit import fit, fit_arrays
from reclm_lite.cf.id_fold import IdFold
from reclm_lite.cf.inputs import Inputs
from reclm_lite.cf.interface import Batch, RowGrad
from reclm_lite.cf.models import ROWS, TRAINED, Row, module_of
from reclm_lite.cf.phases import shape_of
from reclm_lite.cf.training import train
from reclm_lite.data.dataset import Imported, save_imported
from reclm_lite.data.split import run_split
from reclm_lite.errors import ModelError
from reclm_lite.evaluate.protocol import evaluate_workspace
from reclm_lite.serve.recommend import recommend
from reclm_lite.types import ItemText
from reclm_lite.workspace import Workspace

N_USERS, N_ITEMS, N_TEXT, N_PROFILE = 37, 23, 6, 5
TOY = Row("trained", "FISM", "users are the mean of their items", module="toy_fism")
ROWS_UNDER_TEST = {**{name: ROWS[name] for name in TRAINED}, "fism": TOY}
# A case is a model and a preset, or a model and the encoder that it takes instead of its own.
CASES = [(name, preset) for name in ROWS_UNDER_TEST for preset in ("default", "paper")]
CASES += [("lightgcn", encoder) for encoder in ENCODERS]


@pytest.fixture(autouse=True)
def toy_is_registered(monkeypatch):
    monkeypatch.setitem(ROWS, "fism", TOY)


def interactions() -> sp.csr_matrix:
    rng = np.random.default_rng(5)
    dense = rng.random((N_USERS, N_ITEMS)) < np.linspace(0.05, 0.6, N_USERS)[:, None]
    dense[0], dense[:, -1] = False, False  # somebody without history, an item that nobody took
    return sp.csr_matrix(dense.astype(np.float32))


SPLIT = split_of(interactions())
RNG = np.random.default_rng(1)
INPUTS = Inputs(SPLIT, text=RNG.standard_normal((N_ITEMS, N_TEXT), dtype=np.float32))
PROFILES = np.vstack([np.zeros((3, N_PROFILE)), RNG.standard_normal((N_USERS - 3, N_PROFILE))]).astype(np.float32)


def settings_for(model: str, preset: str):
    presets, own = module_of(model).PRESETS, {"dim": 8, "epochs": 3, "batch_size": 64}
    if preset in ENCODERS:
        return dataclasses.replace(presets["default"], encoder=preset, **own)
    return dataclasses.replace(presets[preset], **own)


def trained(model: str, preset: str, inputs: Inputs = INPUTS):
    """(module, parameters after a few epochs, training set, its config)."""
    settings = settings_for(model, preset)
    config = settings.train_config(seed=2)
    module = module_of(model).build(settings, inputs, SPLIT.train, 1)
    return module, train(module, SPLIT.train, config, n_threads=1).params, SPLIT.train, config


def trained_ids(module, params) -> np.ndarray:
    """float32 (N_USERS, dim_e): the ID vectors of the fit, zero for users without one."""
    with_id = getattr(module.encoder, "id_users", np.arange(N_USERS))
    out = np.zeros((N_USERS, params["user_id"].shape[1]), np.float32)
    out[with_id] = params["user_id"]
    return out


@pytest.mark.parametrize("with_profiles", [False, True])
@pytest.mark.parametrize(("model", "preset"), CASES)
def test_fold_in_gives_the_rows_that_the_model_gives(model, preset, with_profiles):
    """Users folded in with the histories that they were trained with get the model's own rows, but for rounding: at
    once, or from their fitted ID vectors where the fold-in looks for an ID vector."""
    inputs = dataclasses.replace(INPUTS, user_profiles=PROFILES if with_profiles else None)
    module, params, known, config = trained(model, preset, inputs)
    fold, vectors = module.fold(params, known, config), module.vectors(params)
    given = PROFILES if fold.dim_profile is not None else None
    rows = fold.place(vectors, known, given, n_threads=1)
    assert rows.dtype == np.float32 and rows.shape == vectors.users.shape == (N_USERS, fold.dim)
    if isinstance(fold, IdFold):
        found = fold.id_vectors(vectors, known, given, n_threads=1)
        assert fold.rows_of(found, known, given, n_threads=1).tobytes() == rows.tobytes()
        rows = fold.rows_of(trained_ids(module, params), known, given, n_threads=1)
    np.testing.assert_allclose(rows, vectors.users, atol=2e-6, rtol=2e-5)


@pytest.mark.parametrize(("model", "preset"), CASES)
def test_a_users_row_does_not_depend_on_the_others(model, preset):
    module, params, known, config = trained(model, preset)
    fold, vectors = module.fold(params, known, config), module.vectors(params)
    together = fold.place(vectors, known, None, n_threads=2)
    alone = np.vstack([fold.place(vectors, known[user], None, n_threads=1) for user in range(N_USERS)])
    assert together.tobytes() == alone.tobytes()


@pytest.mark.parametrize(("model", "preset"), CASES)
def test_a_stored_fold_in_gives_the_same_bits_and_holds_no_row_of_a_user(model, preset):
    module, params, known, config = trained(model, preset)
    fold, vectors = module.fold(params, known, config), module.vectors(params)
    again = module_of(model).unpack_fold(fold.arrays(), fold.numbers(), N_ITEMS)
    before, after = (one.place(vectors, known, None, n_threads=1) for one in (fold, again))
    assert before.tobytes() == after.tobytes()
    assert not any(N_USERS in array.shape for array in fold.arrays().values())


@pytest.mark.parametrize(("model", "preset"), CASES)
def test_a_step_gives_a_loss_and_the_gradient_of_every_parameter(model, preset):
    """The gradient is that of the loss: along random directions, in the parameters of a trained model."""
    module, params, known, _ = trained(model, preset)
    coo = known.tocoo()
    users, positives = coo.row.astype(np.int32), coo.col.astype(np.int32)
    negatives = np.random.default_rng(3).integers(0, N_ITEMS - 1, (known.nnz, 4), dtype=np.int32)
    batch = Batch(users, positives, negatives, np.arange(known.nnz), seed=9)
    loss, grads = module.step(params, batch)
    assert np.isfinite(loss) and grads.keys() == params.keys() and set(module.tables) & params.keys()
    assert module.step(params, batch)[0] == loss, "all randomness comes from the batch's seed"
    dense = {}
    for name, grad in grads.items():
        dense[name] = np.zeros_like(params[name])
        if isinstance(grad, RowGrad):
            dense[name][grad.rows] = grad.values
        else:
            dense[name][...] = grad
    if model == "simgcl":  # its noise has the signs of the vectors, so the loss jumps; autograd: test_cf_gradients.py
        return
    for seed in range(3):
        rng, size = np.random.default_rng(seed), 4e-3
        ways = {name: rng.standard_normal(value.shape) for name, value in params.items()}
        length = np.sqrt(sum((way**2).sum() for way in ways.values()))
        ways = {name: (way / length).astype(np.float32) for name, way in ways.items()}
        ahead, behind = (
            module.step({name: value + sign * size * ways[name] for name, value in params.items()}, batch)[0]
            for sign in (np.float32(1), np.float32(-1))
        )
        slope = sum(float((dense[name] * ways[name]).sum()) for name in params)
        assert (ahead - behind) / (2 * size) == pytest.approx(slope, rel=0.02, abs=5e-4)


@pytest.mark.parametrize(("model", "preset"), CASES)
def test_memory_is_estimated_from_the_sizes(model, preset):
    estimate, settings = module_of(model).estimate_bytes, settings_for(model, preset)
    small = shape_of(INPUTS)
    large = dataclasses.replace(small, n_users=100 * N_USERS, n_items=100 * N_ITEMS, nnz=100 * small.nnz)
    assert 0 < estimate(small, settings) < estimate(large, settings)


@pytest.mark.parametrize("model", ROWS_UNDER_TEST)
def test_an_interrupted_training_continues_with_the_same_bits(model, tmp_path):
    settings = settings_for(model, "default")
    config = settings.train_config(seed=2)

    def build():
        return module_of(model).build(settings, INPUTS, SPLIT.train, 1)

    class Stopped(Exception):
        pass

    def stop(report):
        if report.epoch == 2:
            raise Stopped

    path = tmp_path / "checkpoint.safetensors"
    whole = train(build(), SPLIT.train, config, n_threads=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("reclm_lite.cf.training.CHECKPOINT_SECONDS", 0.0)
        with pytest.raises(Stopped):
            train(build(), SPLIT.train, config, n_threads=1, checkpoint=path, progress=stop)
    resumed = train(build(), SPLIT.train, config, n_threads=1, checkpoint=path)
    assert all(resumed.params[name].tobytes() == value.tobytes() for name, value in whole.params.items())


@pytest.mark.parametrize(("model", "preset"), CASES)
def test_a_fitted_model_is_stored_and_read_with_the_same_lists(model, preset, tmp_path):
    fitted = fit_arrays(INPUTS, model, settings=settings_for(model, preset), n_threads=1)
    with Workspace.create(tmp_path / "ws") as ws:
        number(ws, N_USERS, N_ITEMS)
        store.save(fitted, ws, inputs={})
        loaded = store.load(ws, model)
    for one in (lambda m: m.topk(np.arange(N_USERS), 7), lambda m: m.topk_for(SPLIT.train, 7)):
        for before, after in zip(one(fitted), one(loaded), strict=True):
            np.testing.assert_array_equal(before, after)


# -- one file and one row: the toy backbone through every stage -----------------------------


@pytest.fixture
def shop(tmp_path):
    matrix = interactions().tocoo()
    items = [f"i{n}" for n in range(N_ITEMS)]
    times = np.arange(matrix.nnz, dtype=np.int64)
    imported = Imported(
        "shop",
        [f"u{n}" for n in range(N_USERS)],
        items,
        [ItemText(f"Title of {item}", "", "", "") for item in items],
        matrix.row.astype(np.int32),
        matrix.col.astype(np.int32),
        times,
    )
    with Workspace.create(tmp_path / "shop") as ws:
        save_imported(ws, imported)
        run_split(ws, "ratio")
        yield ws


def test_a_new_backbone_is_fitted_evaluated_recommended_from_and_folded(shop, monkeypatch):
    assignments = ["dim=8", "epochs=3", "power=0.5"]
    monkeypatch.setattr("reclm_lite.cf.fit.load_inputs", lambda ws, split, profiles, used: Inputs(split))
    fitted = fit(shop, "fism", assignments=assignments)
    assert fitted.params["power"] == 0.5 and 0 <= fitted.metrics["recall@20"] <= 1
    rows = [row for row in evaluate_workspace(shop)["rows"] if row["model"] == "fism"]
    assert {row["setting"] for row in rows} == {"full", "unseen"} and rows[0]["recall@20"] > 0
    answer = recommend(shop, "u30", k=3, model="fism")
    assert answer.basis == "model" and len(answer.items) == 3
    stranger = recommend(shop, None, k=3, model="fism", history=["i1", "i2"])
    assert stranger.basis == "model" and not {"i1", "i2"} & {item.item for item in stranger.items}


def test_a_backbone_without_fold_in_is_refused_by_name(shop, monkeypatch):
    import toy_fism

    monkeypatch.delattr(toy_fism.Fism, "fold")
    monkeypatch.setattr("reclm_lite.cf.fit.load_inputs", lambda ws, split, profiles, used: Inputs(split))
    fit(shop, "fism", assignments=["dim=8", "epochs=1"])
    assert recommend(shop, "u30", k=3, model="fism").basis == "model"
    with pytest.raises(ModelError, match="models/fism cannot place new users"):
        recommend(shop, None, k=3, model="fism", history=["i1", "i2"])
