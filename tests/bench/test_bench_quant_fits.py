"""The fits of `reclm bench quant`: equal to those of `reclm fit`, though files share the part that knows nothing of
profiles."""

import json

import numpy as np
import pytest
from profile_workspace import HashEncoder, make_workspace

from reclm_lite.bench.quant.file_jobs import merged
from reclm_lite.bench.quant.recommendations import PROFILE_PHASES, Fits, vectors_key
from reclm_lite.bench.quant.resumable import State
from reclm_lite.cf import phases
from reclm_lite.cf.fit import fit
from reclm_lite.evaluate.protocol import SETTINGS, evaluate
from reclm_lite.text.item_vectors import embed_items
from reclm_lite.workspace import Workspace

N_USERS, N_ITEMS = 60, 24
EPOCHS = 3


@pytest.fixture
def root(tmp_path):
    rng = np.random.default_rng(0)
    rows = [rng.permutation(N_ITEMS)[:6].tolist() for _ in range(N_USERS)]
    train, valid, test = ({u: row[part] for u, row in enumerate(rows)} for part in (slice(3), slice(3, 4), slice(4, 6)))
    with make_workspace(tmp_path / "ws", train, valid=valid, test=test, n_items=N_ITEMS) as ws:
        embed_items(ws, HashEncoder())
        ws.db.execute(
            "INSERT INTO profiles (side, idx, status, text, source, created) VALUES ('user', 0, 'ok', 'x', 'x', 'now')"
        )
        ws.db.commit()
    return tmp_path / "ws"


def profiles(seed):
    vectors = np.random.default_rng(seed).normal(size=(N_USERS, HashEncoder.dim)).astype(np.float32)
    vectors[:5] = 0
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)


def of_the_command(root, model, vectors, seed):
    """What `reclm fit` and `reclm evaluate` give."""
    with Workspace.open(root) as ws:
        if vectors is not None:
            with ws.writing():
                ws.save("vectors/user_profiles", {"vectors": vectors}, inputs={}, params={})
        fitted = fit(
            ws,
            model,
            profiles="none" if vectors is None else "users",
            seed=seed,
            epochs=EPOCHS,
            restart=True,
            n_threads=1,
        )
        from reclm_lite.data.dataset import load_split

        split = load_split(ws)
        return {
            setting: evaluate(split, fitted, setting, (20,), n_threads=1).per_user["ndcg@20"].round(8).tolist()
            for setting in SETTINGS
        }


@pytest.mark.parametrize("model", ["lightgcn", "ncf"])
def test_a_fit_beside_others_is_that_of_the_command_to_the_last_bit(root, tmp_path, model, monkeypatch):
    trained = []
    real = phases.train
    monkeypatch.setattr(phases, "train", lambda *args, **more: trained.append(more["phase"]) or real(*args, **more))
    fits = Fits(root, tmp_path / "fits", State(tmp_path / "state"), model, EPOCHS, 1)
    for seed in (0, 1):
        for vectors in (profiles(1), None, profiles(2)):
            found = fits.figures(vectors, vectors_key(vectors), seed)
            expected = of_the_command(root, model, vectors, seed)
            assert {setting: found[setting]["ndcg@20"] for setting in SETTINGS} == expected
    folder = tmp_path / "fits" / "seed-0"
    assert {path.name for path in folder.iterdir()} == {"select.safetensors", "refit.safetensors"}
    assert not any(phases.checkpoint_path(folder, phase).exists() for phase in PROFILE_PHASES)


def test_the_part_without_profiles_is_trained_once_for_all_files_of_a_seed(root, tmp_path, monkeypatch):
    steps = []
    real = phases.ProfileTower.step
    from reclm_lite.cf.models.lightgcn import LightGCN

    base = LightGCN.step
    monkeypatch.setattr(LightGCN, "step", lambda self, *args: steps.append("base") or base(self, *args))
    monkeypatch.setattr(phases.ProfileTower, "step", lambda self, *args: steps.append("profiles") or real(self, *args))
    fits = Fits(root, tmp_path / "fits", State(tmp_path / "state"), "lightgcn", EPOCHS, 1)
    fits.figures(profiles(1), "one", 0)
    once = steps.count("base")
    assert once and "profiles" in steps
    steps.clear()
    fits.figures(profiles(2), "two", 0)
    assert "base" not in steps and "profiles" in steps
    fits.figures(profiles(2), "two", 1)
    assert steps.count("base") >= once / 2


def test_other_texts_of_items_are_another_fit(root, tmp_path):
    fits = Fits(root, tmp_path / "fits", State(tmp_path / "state"), "lightgcn", EPOCHS, 1)
    text = np.random.default_rng(5).normal(size=(N_ITEMS, HashEncoder.dim)).astype(np.float32)
    plain, other = fits.figures(None, "none", 0), fits.figures(None, "none", 0, text=text)
    assert plain["full"]["ndcg@20"] != other["full"]["ndcg@20"]
    assert fits.has("none", 0, text=vectors_key(text)) and not fits.has("none", 1)
    assert fits.figures(None, "none", 0, text=text) == other


def test_turns_of_one_file_come_together_in_the_order_of_the_prompts():
    def turn(texts, rate, peak, base):
        return {
            "load_seconds": 0.1,
            "prefill_tokens_per_s": rate,
            "decode_tokens_per_s": rate,
            "profiles_per_s": rate,
            "texts": texts,
            "finishes": ["stop"] * len(texts),
            "n_slots": 4,
            "n_workers": 1,
            "base_bytes": base,
            "peak_bytes": peak,
        }

    found = merged([turn(["a", "d", "g"], 3, 10, 4), turn(["b", "e"], 1, 30, 7), turn(["c", "f"], 2, 20, 9)])
    assert found["texts"] == list("abcdefg") and found["profiles_per_s"] == [3, 1, 2]
    assert (found["peak_bytes"], found["base_bytes"]) == (30, 7)
    assert json.loads(json.dumps(found)) == found
