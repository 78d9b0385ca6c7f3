"""An interrupted fit continues in its phase and gives the same bits as an uninterrupted one."""

import numpy as np
import pytest
from taste_workspace import N_ITEMS, N_USERS, add_vectors, ws  # noqa: F401

from reclm_lite.cf import training
from reclm_lite.cf.fit import fit
from reclm_lite.errors import WorkspaceError


class Interrupted(Exception):
    """Stands for Ctrl-C or a kill: no error of the package's own."""


@pytest.fixture(autouse=True)
def every_epoch_is_kept(monkeypatch):
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)


@pytest.fixture
def full(ws):
    for name, n in (("vectors/items", N_ITEMS), ("vectors/user_profiles", N_USERS)):
        add_vectors(ws, name, n)
    return ws


ARGUMENTS = dict(profiles="users", assignments=["tower_epochs=2", "patience=none"], epochs=3, n_threads=1)


def interrupted_at(ws, at, model="lightgcn", **arguments):
    def progress(done, total, note):
        if done == at:
            raise Interrupted

    with pytest.raises(Interrupted):
        fit(ws, model, progress=progress, **ARGUMENTS | arguments)


def folder(ws):
    return ws.root / "models" / ".lightgcn+users.checkpoint"


@pytest.mark.parametrize("at", [1, 3, 4, 5, 6])
def test_an_interrupted_fit_goes_on_with_the_same_bits(full, at):
    """3 epochs are selected from, 2 of profiles, then both parts are fitted again."""
    whole = fit(full, "lightgcn", **ARGUMENTS)
    assert not folder(full).exists()
    interrupted_at(full, at)
    assert folder(full).is_dir()
    told, notes = [], []
    again = fit(
        full, "lightgcn", notice=told.append, progress=lambda done, total, note: notes.append(note), **ARGUMENTS
    )
    assert len(told) == 1 and "Going on with the interrupted fit of lightgcn" in told[0]
    assert np.array_equal(whole.user_vectors, again.user_vectors) and np.array_equal(
        whole.item_vectors, again.item_vectors
    )
    assert whole.metrics == again.metrics
    assert whole.params == again.params and whole.fingerprint == again.fingerprint
    assert not folder(full).exists()


def test_finished_epochs_are_not_trained_again(full, monkeypatch):
    interrupted_at(full, 3)
    trained = []
    run = training._Epochs.run
    monkeypatch.setattr(
        training._Epochs, "run", lambda self, epoch: trained.append(self.model.name) or run(self, epoch)
    )
    fit(full, "lightgcn", **ARGUMENTS)
    assert trained[:2] == ["profiles", "profiles"], "the epochs of selection were finished"
    assert 1 <= trained.count("lightgcn") <= 3, "those of the refit were not"


@pytest.mark.parametrize(
    "change", [dict(seed=1), dict(epochs=4), dict(assignments=["dim=8", "tower_epochs=2"]), dict(refit=False)], ids=str
)
def test_other_settings_begin_anew_and_say_so(full, change):
    interrupted_at(full, 2)
    told = []
    fitted = fit(full, "lightgcn", notice=told.append, **ARGUMENTS | change)
    assert told == ["An interrupted fit of lightgcn had other settings or data: starting anew."]
    assert fitted.fingerprint == fit(full, "lightgcn", **ARGUMENTS | change).fingerprint


def test_other_data_begins_anew(full):
    interrupted_at(full, 2)
    full.save("vectors/user_profiles", {"vectors": np.ones((N_USERS, 8), np.float32)}, inputs={}, params={})
    told = []
    fit(full, "lightgcn", notice=told.append, **ARGUMENTS)
    assert "starting anew" in told[0]


def test_restart_ignores_what_was_kept(full):
    interrupted_at(full, 2)
    told, notes = [], []
    fit(full, "lightgcn", restart=True, notice=told.append, progress=lambda *a: notes.append(a), **ARGUMENTS)
    assert told == [] and not folder(full).exists()


def test_a_failed_fit_leaves_nothing_to_go_on_from(full):
    with np.errstate(all="ignore"), pytest.raises(Exception, match="diverged"):
        fit(full, "lightgcn", profiles="users", assignments=["lr=1e38"], epochs=3)
    assert not folder(full).exists()


def test_a_checkpoint_is_no_model(full):
    from reclm_lite.cf.names import fitted_models

    interrupted_at(full, 2)
    assert fitted_models(full) == []


def test_a_full_disk_is_told_and_the_fit_goes_on_when_there_is_room(full, monkeypatch):
    import safetensors.numpy
    from safetensors import SafetensorError

    whole = fit(full, "lightgcn", **ARGUMENTS)
    write, written = safetensors.numpy.save_file, []

    def save_file(arrays, path, metadata=None):
        written.append(path)
        if len(written) > 2:
            path.write_bytes(b"half of it")
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        write(arrays, path, metadata=metadata)

    monkeypatch.setattr(safetensors.numpy, "save_file", save_file)
    with pytest.raises(WorkspaceError, match="no space left on the disk while writing .*select.*free some space"):
        fit(full, "lightgcn", **ARGUMENTS)
    assert sorted(path.name for path in folder(full).iterdir()) == ["identity.json", "select.safetensors"]
    monkeypatch.undo()
    told = []
    again = fit(full, "lightgcn", notice=told.append, **ARGUMENTS)
    assert "Going on with the interrupted fit" in told[0] and again.fingerprint == whole.fingerprint
