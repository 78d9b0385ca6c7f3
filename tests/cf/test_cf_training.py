"""Training: early stopping, resuming with the same bits, and the checkpoints that resuming accepts."""

import dataclasses
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
from factors_model import CONFIG, LONG, Factors, taste_graph

from reclm_lite.cf import checkpoint, training
from reclm_lite.cf.training import train
from reclm_lite.errors import ModelError


def same(one, two):
    return all(np.array_equal(one.params[name], two.params[name]) for name in one.params)


def validation(figures):
    """A validator that answers these NDCGs, one a call."""
    figures = iter(figures)
    return lambda vectors: (0.5, next(figures))


# -- training -------------------------------------------------------------------


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "rows"])
@pytest.mark.parametrize("loss", ["bpr", "ssm"])
def test_training_learns_two_tastes(sparse, loss):
    graph = taste_graph()
    model = Factors(graph.shape, sparse=sparse)
    trained = train(model, graph, dataclasses.replace(CONFIG, epochs=40, loss=loss))
    scores = trained.params["user_id"] @ trained.params["item_id"].T
    own = (np.arange(40)[:, None] - np.arange(24)[None, :]) % 2 == 0
    assert scores[own].mean() > scores[~own].mean() + 1
    assert trained.history[-1].loss < 0.6 * trained.history[0].loss


def test_threads_do_not_change_a_bit_of_training():
    graph = taste_graph()
    one, two = (train(Factors(graph.shape), graph, CONFIG, n_threads=n) for n in (1, 2))
    assert same(one, two)


def test_epochs_differ_in_order_and_negatives():
    graph, seen = taste_graph(), []
    model = Factors(graph.shape)
    step = model.step
    model.step = lambda params, batch: (seen.append(batch), step(params, batch))[1]
    train(model, graph, dataclasses.replace(CONFIG, epochs=2, batch_size=graph.nnz))
    one, two = seen
    assert (one.entries != two.entries).mean() > 0.9 and one.seed != two.seed
    assert sorted(one.entries) == sorted(two.entries) == list(range(graph.nnz))
    assert (one.negatives[np.argsort(one.entries)] != two.negatives[np.argsort(two.entries)]).mean() > 0.8


def test_a_user_of_everything_is_trained_on_nothing():
    graph = taste_graph().tolil()
    graph[0] = 1
    graph = graph.tocsr()
    model = Factors(graph.shape, sparse=True)
    first = model.init(np.random.default_rng([CONFIG.seed, 1]))
    trained = train(model, graph, dataclasses.replace(CONFIG, l2=0.0))
    assert np.array_equal(trained.params["user_id"][0], first["user_id"][0])
    assert not np.array_equal(trained.params["user_id"][1], first["user_id"][1])


def test_early_stopping_keeps_the_best_epoch():
    graph = taste_graph()
    config = dataclasses.replace(CONFIG, patience=2)
    stopped = train(Factors(graph.shape), graph, config, validate=validation([0.1, 0.3, 0.2, 0.3, 0.4]))
    assert stopped.best_epoch == 2 and stopped.ndcg_20 == 0.3 and len(stopped.history) == 4
    assert same(stopped, train(Factors(graph.shape), graph, dataclasses.replace(CONFIG, epochs=2)))


def test_divergence_names_the_setting_to_change():
    graph = taste_graph()
    with np.errstate(all="ignore"), pytest.raises(ModelError, match=r"diverged.*--set lr=1e\+37"):
        train(Factors(graph.shape), graph, dataclasses.replace(CONFIG, lr=1e38))


def test_training_on_nothing_is_refused():
    with pytest.raises(ModelError, match="found none"):
        train(Factors((3, 3)), sp.csr_matrix((3, 3), dtype=np.float32), CONFIG)


# -- checkpoints ----------------------------------------------------------------


class Stop(Exception):
    pass


def stop_at(epoch):
    def progress(report):
        if report.epoch == epoch:
            raise Stop

    return progress


@pytest.fixture
def interrupted(tmp_path, monkeypatch):
    """A checkpoint of `Factors` stopped after epoch 3 of 6."""
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    graph, path = taste_graph(), tmp_path / "select.safetensors"
    with pytest.raises(Stop):
        train(Factors(graph.shape), graph, CONFIG, progress=stop_at(3), checkpoint=path)
    return graph, path


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "rows"])
@pytest.mark.parametrize("figures", [None, [0.1, 0.4, 0.3, 0.2, 0.5, 0.1]], ids=["plain", "validated"])
def test_an_interrupted_training_ends_in_the_same_bits(tmp_path, monkeypatch, sparse, figures):
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    graph, path = taste_graph(), tmp_path / "a"

    def run(figures, **options):
        validate = None if figures is None else validation(figures)
        return train(Factors(graph.shape, sparse=sparse), graph, CONFIG, validate=validate, **options)

    whole = run(figures)
    with pytest.raises(Stop):
        run(figures, progress=stop_at(3), checkpoint=path)
    reports = []
    resumed = run(None if figures is None else figures[3:], progress=reports.append, checkpoint=path)
    assert same(whole, resumed) and whole.best_epoch == resumed.best_epoch
    assert [report.epoch for report in reports] == [1, 2, 3, 4, 5, 6]
    assert [report.loss for report in whole.history] == [report.loss for report in reports]


def test_a_finished_training_is_not_done_again(interrupted, monkeypatch):
    graph, path = interrupted
    finished = train(Factors(graph.shape), graph, CONFIG, checkpoint=path)
    model = Factors(graph.shape)
    model.step = None
    assert same(finished, train(model, graph, CONFIG, checkpoint=path))


def test_a_checkpoint_is_written_now_and_then_and_always_at_the_end(tmp_path, monkeypatch):
    graph, path, written = taste_graph(), tmp_path / "a", []
    write = checkpoint.write
    monkeypatch.setattr(checkpoint, "write", lambda *a: (written.append(len(a[2].history)), write(*a)))
    train(Factors(graph.shape), graph, CONFIG, checkpoint=path)
    assert written == [6] and path.exists()


@pytest.mark.parametrize("change", ["lr", "seed", "data", "model", "phase"])
def test_a_checkpoint_of_something_else_is_not_gone_on_from(interrupted, caplog, change):
    graph, path = interrupted
    model, config, phase = Factors(graph.shape), CONFIG, "select"
    if change in ("lr", "seed"):
        config = dataclasses.replace(CONFIG, **{change: 1})
    elif change == "data":
        graph = graph[::-1].tocsr()
    elif change == "model":
        model = Factors(graph.shape, scale=0.2)
    else:
        phase = "refit"
    with caplog.at_level(logging.WARNING):
        resumed = train(model, graph, config, checkpoint=path, phase=phase)
    assert "other settings or data" in caplog.text
    assert same(resumed, train(model, graph, config, phase=phase))


@pytest.mark.parametrize("damage", ["truncated", "flipped", "emptied", "foreign"])
def test_a_damaged_checkpoint_is_not_gone_on_from(interrupted, caplog, damage):
    graph, path = interrupted
    data = bytearray(path.read_bytes())
    if damage == "flipped":
        data[-40] ^= 1
    elif damage == "foreign":
        from safetensors.numpy import save

        data = save({"a": np.zeros(3)})
    path.write_bytes({"truncated": data[:-7], "emptied": b""}.get(damage, data))
    with caplog.at_level(logging.WARNING):
        resumed = train(Factors(graph.shape), graph, CONFIG, checkpoint=path)
    assert "damaged checkpoint" in caplog.text
    assert same(resumed, train(Factors(graph.shape), graph, CONFIG))


HELPERS = str(Path(__file__).parents[1] / "helpers")
CHILD = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from factors_model import LONG, Factors, taste_graph
from reclm_lite.cf import training

def progress(report):
    print(report.epoch, flush=True)
    time.sleep(0.05)

training.CHECKPOINT_SECONDS = 0.0
training.train(Factors(taste_graph().shape), taste_graph(), LONG, checkpoint=Path(sys.argv[2]), progress=progress)
"""


def test_a_kill_costs_no_bit(tmp_path, caplog):
    path, graph = tmp_path / "killed", taste_graph()
    child = subprocess.Popen([sys.executable, "-c", CHILD, HELPERS, str(path)], stdout=subprocess.PIPE, text=True)
    while int(child.stdout.readline()) < 5:
        pass
    child.kill()
    child.wait()
    child.stdout.close()
    with caplog.at_level(logging.INFO, logger="reclm_lite"):
        resumed = train(Factors(graph.shape), graph, LONG, checkpoint=path)
    assert "going on after epoch" in caplog.text
    assert same(resumed, train(Factors(graph.shape), graph, LONG))
