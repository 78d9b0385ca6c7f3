"""Settings, the registry, and the checks before a fit: names, types, ranges, memory."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
from click.testing import CliRunner
from published_models import PUBLISHED

from reclm_lite import memory as machine_memory
from reclm_lite.cf import memory_estimate as memory
from reclm_lite.cf.fit import fit_arrays, settings_of
from reclm_lite.cf.inputs import Inputs
from reclm_lite.cf.models import MODELS, PRESETS, TRAINED, UNTRAINED, module_of
from reclm_lite.cf.phases import MIN_BATCH, fit_to_data, require_memory, shape_of
from reclm_lite.cf.settings import TrainedSettings, listing, override
from reclm_lite.cli.fit import command
from reclm_lite.data.dataset import Split
from reclm_lite.errors import InputError, ModelError


def inputs_of(dense, valid=None, **vectors) -> Inputs:
    train = sp.csr_matrix(np.asarray(dense, np.float32))
    nothing = sp.csr_matrix(train.shape, dtype=np.float32)
    everything = np.arange(train.shape[1], dtype=np.int32)
    split = Split(
        train,
        nothing if valid is None else sp.csr_matrix(np.asarray(valid, np.float32)),
        nothing,
        nothing,
        full_candidates=everything,
        unseen_candidates=everything[:0],
        params={},
    )
    return Inputs(split, **vectors)


def random_inputs(n_users=60, n_items=30, share=0.2, seed=0) -> Inputs:
    rng = np.random.default_rng(seed)
    drawn = rng.random((n_users, n_items))
    return inputs_of(drawn < share, (drawn >= share) & (drawn < share + 0.03))


# -- the registry -----------------------------------------------------------------


def test_the_registry_is_complete():
    folder = Path(module_of("random").__file__).parent
    assert {path.stem for path in folder.glob("*.py")} - {"__init__"} == set(MODELS)
    assert set(TRAINED) | set(UNTRAINED) == set(MODELS) and not set(TRAINED) & set(UNTRAINED)


@pytest.mark.parametrize("model", MODELS)
def test_every_model_keeps_the_registrys_promises(model):
    module = module_of(model)
    assert module.__doc__
    if model in UNTRAINED:
        assert module.estimate_bytes(100, 50, 500, module.Settings()) >= 0 and callable(module.fit)
        return
    assert set(module.PRESETS) == set(PRESETS)
    for settings in module.PRESETS.values():
        assert isinstance(settings, module.Settings) and isinstance(settings, TrainedSettings)
        assert module.estimate_bytes(memory.Shape(100, 50, 500), settings) > 0
        trainable = module.build(settings, random_inputs(), random_inputs().split.train, 1)
        assert trainable.name == model
        params = trainable.init(np.random.default_rng(0))
        assert all(value.dtype == np.float32 for value in params.values())


# -- settings ---------------------------------------------------------------------


def test_assignments_take_the_fields_types():
    changed = override(
        settings_of("simgcl"),
        ["dim=64", "lr=2e-3", "patience=none", "drops_targets=no", "loss=bpr", "n-layers=3", "contrast_with=all"],
    )
    assert (changed.dim, changed.lr, changed.patience, changed.drops_targets) == (64, 2e-3, None, False)
    assert (changed.loss, changed.n_layers, changed.contrast_with) == ("bpr", 3, "all")
    assert isinstance(changed.dim, int) and isinstance(changed.lr, float)
    assert changed.layer_weights == (0.25,) * 4


@pytest.mark.parametrize(
    "model, assignment, message",
    [
        ("lightgcn", "dims=64", "no such setting; the settings of this model are dim, loss"),
        ("biasmf", "n_layers=2", "no such setting"),
        ("lightgcn", "keep=0.5", "no such setting"),
        ("popularity", "dim=8", "no settings"),
        ("lightgcn", "dim", "expected name=value"),
        ("lightgcn", "dim=many", "expected a whole number"),
        ("lightgcn", "dim=1.5", "expected a whole number"),
        ("lightgcn", "lr=fast", "expected a number"),
        ("lightgcn", "drops_targets=perhaps", "expected true or false"),
        ("lightgcn", "loss=mse", "expected one of bpr, ssm"),
        ("lightgcn", "dim=0", "dim: expected at least 1, found 0"),
        ("lightgcn", "lr=0", "lr: expected above 0"),
        ("lightgcn", "lr=nan", "lr: expected a finite number"),
        ("lightgcn", "n_negatives=0", "n_negatives: expected at least 1"),
        ("sgl", "keep=0", "keep: expected above 0"),
        ("sgl", "keep=1.1", "keep: expected at most 1"),
        ("simgcl", "temperature=0", "temperature: expected above 0"),
        ("simgcl", "eps=-1", "eps: expected at least 0"),
        ("lightgcn", "patience=0", "patience: expected at least 1"),
    ],
)
def test_bad_assignments_say_what_is_expected(model, assignment, message):
    with pytest.raises(InputError, match=message):
        override(settings_of(model), [assignment])


@pytest.mark.parametrize("model", MODELS)
def test_a_listing_reads_back_as_it_was(model):
    for preset in PRESETS if model in TRAINED else ("default",):
        settings = settings_of(model, preset)
        rows = listing(settings)
        assert all(meaning for _, _, meaning in rows)
        assert override(settings, [f"{name}={value}" for name, value, _ in rows]) == settings


CHANGES = {
    "dim": 6,
    "loss": "bpr",
    "n_negatives": 3,
    "lr": 0.1,
    "batch_size": 64,
    "steps_per_epoch": 5,
    "epochs": 2,
    "l2": 1e-2,
    "l2_tables": 1e-2,
    "encoder": "published",
    "min_id_interactions": 6,
    "text_hidden": 7,
    "relu_width": 3,
    "n_layers": 1,
    "layers": "sum",
    "self_loops": True,
    "items_propagated": False,
    "drops_targets": False,
    "contrast_weight": 0.1,
    "temperature": 1.0,
    "contrast_with": "all",
    "keep": 0.3,
    "eps": 0.5,
    "sparse_updates": True,
}
# These need validation, or profiles: tests/cf/test_cf_fit.py.
ELSEWHERE = {"patience", "tower_epochs", "tower_lr"}


@pytest.mark.parametrize("model", TRAINED)
def test_every_setting_changes_what_is_learned(model):
    rng = np.random.default_rng(0)
    inputs = inputs_of(rng.random((60, 30)) < 0.2, text=rng.standard_normal((30, 5), dtype=np.float32))
    base = dataclasses.replace(
        settings_of(model), epochs=1, text_hidden=4, dim=4, batch_size=128, steps_per_epoch=0, min_id_interactions=1
    )
    if model in ("sgl", "simgcl"):
        base = dataclasses.replace(base, contrast_weight=0.5)
    names = {field.name for field in dataclasses.fields(base)} - ELSEWHERE
    if model not in PUBLISHED:  # others may take no encoder, and so nothing of what it is set to
        names -= {field.name for field in dataclasses.fields(TrainedSettings)}

    def vectors(settings):
        fitted = fit_arrays(inputs, model, settings=settings, n_threads=1)
        return fitted.user_vectors.tobytes() + fitted.item_vectors.tobytes()

    first = vectors(base)
    for name in sorted(names):
        value = CHANGES[name] if name in CHANGES else other(getattr(base, name))
        assert vectors(dataclasses.replace(base, **{name: value})) != first, f"{name} changes nothing"


def other(value):
    """Another value of a setting that this file does not know."""
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, int) else value / 2


# -- fits that cannot succeed -------------------------------------------------------


@pytest.mark.parametrize(
    "dense, message",
    [
        (np.zeros((4, 3)), "expected training interactions, found none"),
        (np.zeros((0, 3)), "expected users and items, found 0 and 3"),
        (np.zeros((4, 0)), "expected users and items, found 4 and 0"),
        (np.eye(4, 3)[:, [0, 0, 0]] * [1, 0, 0], "expected two items with training interactions at least.*found 1"),
    ],
    ids=["no interactions", "no users", "no items", "one item"],
)
def test_data_that_teaches_nothing_is_refused(dense, message):
    with pytest.raises(ModelError, match=message):
        fit_arrays(inputs_of(dense), "biasmf")


def test_a_batch_never_exceeds_the_data():
    inputs = random_inputs()
    nnz = inputs.split.train.nnz
    paper, default = settings_of("lightgcn", "paper"), settings_of("lightgcn")
    assert fit_to_data(paper, inputs).batch_size == nnz
    assert fit_to_data(default, inputs).batch_size == MIN_BATCH < nnz
    assert fit_to_data(dataclasses.replace(default, batch_size=8), inputs).batch_size == 8


@pytest.mark.parametrize("model", TRAINED)
def test_a_tiny_graph_is_fitted_without_validation(model, caplog):
    """Two users, two items: everything is touched or the only negative. No selection, all epochs, and a warning."""
    fitted = fit_arrays(inputs_of([[1, 0], [0, 1]]), model, epochs=2, n_threads=1)
    assert fitted.metrics == {} and fitted.params["epochs"] == 2
    assert "nothing is selected, all 2 epochs" in caplog.text
    everything = fit_arrays(inputs_of([[1, 1], [1, 1]]), model, epochs=1, n_threads=1)
    assert np.isfinite(everything.user_vectors).all()


# -- memory -----------------------------------------------------------------------


def test_too_little_memory_names_the_setting_that_helps():
    inputs = random_inputs(400, 300)
    settings = dataclasses.replace(settings_of("lightgcn"), dim=128)
    need = module_of("lightgcn").estimate_bytes(shape_of(inputs), settings)
    assert "takes about" in require_memory(inputs, "lightgcn", settings, available=need)
    with pytest.raises(
        ModelError, match=r"needs about .* are available: nothing was started. Use `--set (batch_size|dim)=\d+`"
    ):
        require_memory(inputs, "lightgcn", settings, available=need - 1)
    with pytest.raises(ModelError, match="more memory, or a smaller data set"):
        require_memory(inputs, "lightgcn", settings, available=1000)
    for change in ("--set dim=64", "--set dim=32"):
        name, value = change.split()[1].split("=")
        smaller = dataclasses.replace(settings, **{name: int(value)})
        assert module_of("lightgcn").estimate_bytes(shape_of(inputs), smaller) < need


def test_estimates_grow_with_what_takes_memory():
    shape = memory.Shape(1000, 500, 9000, 32)
    for model in TRAINED:
        settings = settings_of(model)
        estimate = module_of(model).estimate_bytes
        for more in (dict(n_users=4000), dict(n_items=4000), dict(nnz=90_000), dict(n_text=900)):
            assert estimate(dataclasses.replace(shape, **more), settings) > estimate(shape, settings), (model, more)
        assert estimate(shape, dataclasses.replace(settings, dim=256)) > estimate(shape, settings)


def test_the_address_space_limit_counts():
    code = (
        "import resource\nfrom reclm_lite.cf import memory_estimate as memory\nbefore = memory.available_bytes()\n"
        "pages = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "hard = resource.getrlimit(resource.RLIMIT_AS)[1]\n"
        "resource.setrlimit(resource.RLIMIT_AS, (pages + 50_000_000, hard))\n"
        "print(before, memory.available_bytes())"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert int(out[1]) <= min(50_000_000, int(out[0]))


@pytest.mark.parametrize(
    ("line", "folder", "names"),
    [
        ("0::/user.slice/fit.scope", "user.slice/fit.scope", ("memory.max", "memory.current", "inactive_file")),
        ("0::/user.slice/fit.scope/deeper", "user.slice", ("memory.max", "memory.current", "inactive_file")),
        ("0::/", "", ("memory.max", "memory.current", "inactive_file")),
        (
            "4:cpu,memory:/docker/x",
            "memory/docker/x",
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ),
        # Inside a container its own group is the root, whatever its name outside.
        ("4:memory:/docker/x", "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")),
    ],
)
def test_the_limit_of_the_control_group_counts_wherever_it_stands(tmp_path, line, folder, names):
    root = tmp_path / "cgroup"
    (root / folder).mkdir(parents=True)
    for name, text in ((names[0], "1000"), (names[1], "700"), ("memory.stat", f"anon 500\n{names[2]} 150\n")):
        (root / folder / name).write_text(text)
    (tmp_path / "own").write_text(f"9:pids:/\n{line}\n")
    assert machine_memory._cgroup(root, tmp_path / "own") == [450]


def test_ease_over_too_many_items_is_refused_before_it_starts():
    """A million items would be a matrix of 4 TB."""
    module = module_of("ease")
    need = module.estimate_bytes(10, 1_000_000, 10, module.Settings())
    assert need > 4e12
    with pytest.raises(ModelError, match="nothing was started. Use itemknn"):
        memory.require(need, "fitting ease on 1,000,000 items", "Use itemknn instead")


MEASURE = """
import dataclasses, json, sys
import numpy as np, scipy.sparse as sp
from reclm_lite.cf.inputs import Inputs
from reclm_lite.cf.models import module_of
from reclm_lite.cf.phases import fit_arrays, fit_to_data, shape_of
from reclm_lite.data.dataset import Split

def inputs(n_users, n_items, per_user):
    rng = np.random.default_rng(0)
    rows, cols = np.repeat(np.arange(n_users), per_user), rng.integers(0, n_items, n_users * per_user)
    train = sp.csr_matrix((np.ones(len(rows), np.float32), (rows, cols)), shape=(n_users, n_items))
    train.sum_duplicates()
    train.data[:] = 1
    nothing = sp.csr_matrix(train.shape, dtype=np.float32)
    split = Split(train, nothing, nothing, nothing, np.arange(n_items, dtype=np.int32), np.zeros(0, np.int32), {})
    return Inputs(split, text=rng.standard_normal((n_items, 96), dtype=np.float32))

def status(name):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(name))

model = sys.argv[1]
settings = dataclasses.replace(module_of(model).PRESETS["default"], epochs=1, n_negatives=4, steps_per_epoch=0, dim=64)
fit_arrays(inputs(300, 200, 5), model, settings=settings, n_threads=1)   # what is compiled and loaded does not count
large = inputs(30_000, 20_000, 1)
open("/proc/self/clear_refs", "w").write("5")   # the peak so far is forgotten
before = status("VmRSS")
fit_arrays(large, model, settings=settings, n_threads=1)
estimate = module_of(model).estimate_bytes(shape_of(large), fit_to_data(settings, large))
print(json.dumps([estimate, status("VmHWM") - before]))
"""


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the peak cannot be reset here")
@pytest.mark.parametrize("model", ["biasmf", "lightgcn", "simgcl"])
def test_estimates_are_near_the_measured_peak(model):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    run = subprocess.run([sys.executable, "-c", MEASURE, model], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    estimate, measured = json.loads(run.stdout)
    assert measured / 1.25 < estimate < 1.6 * measured, (
        f"estimated {estimate / 1e6:.0f} MB, measured {measured / 1e6:.0f} MB"
    )


# -- the command ------------------------------------------------------------------


def test_a_model_without_training_has_no_other_preset(tmp_path):
    out = CliRunner().invoke(command, ["ease", "-w", str(tmp_path), "--preset", "paper", "--show-settings"])
    assert out.exit_code and "ease has one set of settings" in str(out.exception or out.output)


def test_show_settings_prints_what_would_be_used(tmp_path):
    out = CliRunner().invoke(
        command, ["sgl", "-w", str(tmp_path), "--dim", "16", "--set", "keep=0.9", "--show-settings"]
    )
    assert out.exit_code == 0, out.output
    lines = {line.split()[0] for line in out.stdout.splitlines()}
    assert {"dim=16", "keep=0.9", "loss=ssm"} <= lines


def test_the_command_offers_every_model():
    help_text = CliRunner().invoke(command, ["--help"]).output
    assert all(model in help_text for model in MODELS)
    assert CliRunner().invoke(command, ["bert", "-w", "."]).exit_code == 2
