"""`reclm bench profile`: random models made on the spot, contenders in processes of their own, texts compared,
differences explained."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner
from profile_workspace import make_workspace

from reclm_lite.bench import machine
from reclm_lite.bench.harness import Finished, run_in_child
from reclm_lite.bench.profile_engine import encoder_bench, engine_jobs, random_models, text_differences
from reclm_lite.bench.profile_engine import profile_bench as bench
from reclm_lite.bench.profile_engine.bench_prompts import prompt_set, scratch_copy
from reclm_lite.cli import main
from reclm_lite.errors import InputError, ModelError
from reclm_lite.profiles import store
from reclm_lite.runtime import check_gguf, load_model
from reclm_lite.workspace import Workspace

TRAIN = {0: [0, 1], 1: [0, 1], 2: [2], 3: [3, 4, 5], 4: [6], 5: [6], 6: [6], 7: [8, 9, 10, 11]}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("bench") / "ws"
    make_workspace(root, TRAIN, n_users=9).close()
    return root


@pytest.fixture(scope="module")
def model(root, tmp_path_factory):
    pytest.importorskip("tokenizers")
    texts = prompt_set(root, 8, instruct=True, seed=0).texts
    return random_models.make_models(
        tmp_path_factory.mktemp("model") / "a", random_models.SHAPES["tiny"], ["q4_k_m"], texts, 1, 1
    )["q4_k_m"]


def test_the_models_have_the_sizes_that_they_are_named_for():
    n_params = {name: shape.n_params for name, shape in random_models.SHAPES.items()}
    assert 130e6 < n_params["135m"] < 140e6 and 1.0e9 < n_params["1b"] < 1.2e9
    for shape in random_models.SHAPES.values():
        assert all(n_columns % 256 == 0 for _, n_columns in shape.projections().values())


def test_a_random_model_is_a_function_of_its_seed_and_has_k_quants_throughout(root, model, tmp_path):
    texts = prompt_set(root, 8, instruct=True, seed=0).texts
    made = [
        random_models.make_models(tmp_path / str(seed), random_models.SHAPES["tiny"], ["q4_k_m"], texts, seed, 1)
        for seed in (1, 2)
    ]
    same, other = (each["q4_k_m"].read_bytes() for each in made)
    assert same == model.read_bytes() != other
    assert {tensor.type_name for tensor in check_gguf(model).tensors} == {"Q4_K", "Q6_K", "F32"}


def test_the_random_models_tokens_are_words_and_none_of_its_answers_ends_early(root, model):
    prompts = prompt_set(root, 8, instruct=True, seed=0).sample
    with load_model(model, vocab_only=True) as loaded:
        assert len(loaded.tokenize("the orchard opens uniqueword", add_special=False)) < 12
    made = engine_jobs.loop(str(model), prompts, n_threads=1, n_ctx=1024, max_new=12)
    assert set(made["finishes"]) == {"length"} and made["n_new_tokens"] == 12 * len(prompts)
    assert all(text.isascii() for text in made["texts"]) and len(set(made["texts"])) > 1


def test_where_two_texts_part_the_gap_between_their_tokens_is_told(root, model):
    prompt = prompt_set(root, 8, instruct=True, seed=0).sample[0]
    text = engine_jobs.loop(str(model), [prompt], n_threads=1, n_ctx=1024, max_new=8)["texts"][0]
    cases = [
        {"prompt": prompt, "ours": text[:-1] + "\u00e9", "theirs": text},
        {"prompt": prompt, "ours": text + " and more", "theirs": text},
    ]
    found = text_differences.measure(str(model), 1, 1024, cases, [prompt])
    odd, longer = found["cases"]
    assert "not among the likeliest" in odd["why"]
    assert not longer.get("near_tie")
    assert 0 <= found["noise"][0] < 0.2


def test_a_second_choice_is_a_near_tie_only_within_the_noise(root, model, monkeypatch):
    prompt = prompt_set(root, 8, instruct=True, seed=0).sample[0]
    with load_model(model) as loaded, loaded.context(n_ctx=1024, n_threads=1) as alone:
        probe = text_differences._Probe(loaded, alone, alone)
        logits = probe._decode(loaded.tokenize(prompt, add_special=True, parse_special=True))
        first, second = logits.argsort()[::-1][:2].tolist()
        theirs, ours = (loaded.piece(token).decode().strip() for token in (first, second))
        gap = float(logits[first] - logits[second])
    for near_tie, answer in ((1e-9, False), (1e9, True)):
        monkeypatch.setattr(text_differences, "NEAR_TIE", near_tie)
        cases = [{"prompt": prompt, "ours": ours, "theirs": theirs}]
        (case,) = text_differences.measure(str(model), 1, 1024, cases, [])["cases"]
        assert case["near_tie"] is answer and case["n_common_tokens"] == 0
        assert case["gap"] == pytest.approx(gap, abs=0.2)


def test_quick_measures_all_contenders_and_the_users_of_a_workspace(root, monkeypatch):
    pytest.importorskip("tokenizers")
    monkeypatch.setattr(machine, "installed", lambda name: name != "sentence_transformers")
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file() and ".db" not in path.name}
    command = [
        "bench",
        "profile",
        "-w",
        str(root),
        "--quick",
        "--quant",
        "q8_0",
        "--threads",
        "1",
        "--prompts",
        "3",
        "--max-new",
        "96",
    ]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout.splitlines()[-1])
    groups = {group["name"]: group for group in document["groups"]}
    assert list(groups) == [
        "bundled",
        "bundled, users as they are",
        "tiny q8_0",
        "tiny q8_0, users as they are",
        "embedding of profiles",
        "embedding, users as they are",
    ]
    for name in ("bundled", "tiny q8_0"):
        rows = groups[name]["rows"]
        assert [row["name"] for row in rows] == [bench.ENGINE, bench.LOOP, bench.HELD]
        assert all(row["per_second"] > 0 and row["facts"]["peak_bytes"] > 20e6 for row in rows)
        equal = rows[0]["facts"]["equality"]
        assert equal["n_equal"] + equal["n_near_ties"] + equal["n_unexplained"] == equal["n_prompts"] == 3
        assert rows[0]["facts"]["n_prompt_tokens"] == rows[1]["facts"]["n_prompt_tokens"]
    users = groups["bundled, users as they are"]
    assert users["what"] == "8 users with 5 distinct prompts" and users["rows"][0]["facts"]["summary"]["n_ok"] == 8
    assert groups["tiny q8_0, users as they are"]["rows"][0]["note"] == "extrapolated"
    ours, peer = groups["embedding of profiles"]["rows"]
    assert ours["per_second"] > 0 and peer["per_second"] is None and peer["note"] == "not installed"
    assert not any(group["targets"] for group in document["groups"])
    assert {path: path.stat().st_mtime_ns for path in before} == before  # the workspace itself is left alone


def fake_child(**answers):
    """In the place of `run_in_child`: canned results by job, and what was asked of each. A function is called."""
    asked = []

    def run(function, arguments):
        asked.append((function.__name__, arguments))
        answer = answers[function.__name__]
        return Finished(answer(**arguments) if callable(answer) else answer, 1_050_000_000, 1.0)

    return run, asked


def answers_of(texts, seconds, **more):
    n = len(texts)
    plain = {"seconds": seconds, "texts": texts, "finishes": ["stop"] * n, "n_prompt_tokens": [10] * n}
    return {**plain, "n_new_tokens": 10 * n, **more}


ENGINE_FACTS = {
    "n_ctx": 512,
    "n_slots": 4,
    "n_workers": 1,
    "n_reused_tokens": 3,
    "announced_bytes": 1_000_000_000,
    "seconds_running": 2.0,
    "seconds_in_llama": 1.96,
}


def test_a_file_without_a_chat_template_is_asked_in_compact_prompts(root, model, monkeypatch):
    engine, loop = answers_of(["a", "b"], 1.0, **ENGINE_FACTS), answers_of(["a", "b"], 2.0)
    nothing = {"cases": [], "noise": []}
    run, asked = fake_child(vocabulary=engine_jobs.vocabulary, engine=engine, loop=loop, measure=nothing)
    monkeypatch.setattr(bench, "run_in_child", run)
    _, line = bench.run(bench.Settings(1, (str(model),), workspace=root, n_prompts=2, max_new=4))
    group, users = json.loads(line)["groups"]
    assert group["name"] == model.name and users["rows"][1]["name"] == bench.LOOP
    compact = prompt_set(root, 2, instruct=False, seed=0).sample[:2]
    prompts = [sorted(arguments["prompts"]) for name, arguments in asked if name in ("engine", "loop")]
    assert prompts == [sorted(compact)] * 3


def test_an_unexplained_difference_is_reported_and_fails_no_command(monkeypatch):
    near = {"gap": 0.001, "noise": 0.01, "near_tie": True}
    far = {"gap": 2.0, "noise": 0.01, "near_tie": False}
    run, _ = fake_child(
        vocabulary={"lengths": [10] * 3, "chat": None, "n_ctx": 512, "size_bytes": 5_000_000},
        engine=answers_of(["a", "b", "c"], 1.0, **ENGINE_FACTS),
        loop=answers_of(["a", "x", "y"], 2.0),
        measure={"cases": [near, far], "noise": [0.01]},
    )
    monkeypatch.setattr(bench, "run_in_child", run)
    monkeypatch.setattr(bench, "prompt_set", lambda *_, **__: SimpleNamespace(sample=["p", "q", "r"]))
    monkeypatch.setattr(encoder_bench.EncoderBench, "groups", lambda *_: [])
    lines, line = bench.run(bench.Settings(1, ("bundled",)))
    assert any("prompt 2: unexplained (a gap of 2.0000, noise 0.0100): 'c' | 'y'" in text for text in lines)
    targets = {
        target["what"]: (round(target["figure"], 3), target["state"])
        for target in json.loads(line)["groups"][0]["targets"]
    }
    assert targets == {
        "share of equal texts": (0.333, "missed"),
        "texts that differ by more than a near-tie": (1, "missed"),
        "time outside llama.cpp": (2.0, "met"),
        "memory beside what was announced": (5.0, "met"),
    }


def test_a_scratch_copy_has_the_data_and_no_profiles(root, tmp_path):
    with Workspace.open(root) as ws:
        store.set_profile(ws, "user", 0, "User identity: a, b, c; User interests: x, y, z")
    with Workspace.open(scratch_copy(root, tmp_path / "copy")) as copy:
        assert copy.db.execute("SELECT COUNT(*) FROM users").fetchone() == (9,)
        assert copy.db.execute("SELECT COUNT(*) FROM profiles").fetchone() == (0,)
        assert copy.fingerprint("matrices/split") is not None
    with Workspace.open(root) as ws:
        assert store.get_profile(ws, "user", 0) is not None


def test_neighbors_are_up_to_date_in_a_scratch_copy_and_vectors_of_profiles_are_left_behind(tmp_path):
    arrays = {"vectors": np.ones((2, 2), np.float32)}
    with make_workspace(tmp_path / "ws", TRAIN, n_users=9) as ws:
        made_of = {"vectors/items": ws.save("vectors/items", arrays, inputs={}, params={})}
        ws.save("vectors/user_profiles", arrays, inputs={}, params={})
        ws.save("matrices/neighbors", {"indices": np.zeros((9, 1), np.int32)}, inputs=made_of, params={})
    with Workspace.open(scratch_copy(tmp_path / "ws", tmp_path / "copy")) as copy:
        copy.require_fresh("matrices/neighbors", made_by="reclm neighbors")
        assert copy.has("vectors/items") and not copy.has("vectors/user_profiles")


def test_a_run_over_all_users_that_fails_does_not_lose_what_was_measured(root, monkeypatch):
    def users(**_):
        raise ModelError("expected a whole run, found none")

    run, _ = fake_child(
        vocabulary={"lengths": [10] * 4, "chat": None, "n_ctx": 512, "size_bytes": 5_000_000},
        engine=answers_of(["a", "b"], 1.0, **ENGINE_FACTS),
        loop=answers_of(["a", "b"], 2.0),
        measure={"cases": [], "noise": []},
        users=users,
    )
    monkeypatch.setattr(bench, "run_in_child", run)
    monkeypatch.setattr(encoder_bench.EncoderBench, "groups", lambda *_: [])
    lines, line = bench.run(bench.Settings(1, ("bundled",), workspace=root, n_prompts=2, max_new=8, repeats=1))
    assert json.loads(line)["groups"][0]["name"] == "bundled"
    assert "not measured: expected a whole run, found none" in lines[-1]


def test_what_cannot_be_measured_is_refused_at_once(tmp_path):
    with pytest.raises(InputError, match="expected a model among bundled, 135m, 1b"):
        bench.run(bench.Settings(1, ("2b",)))
    with pytest.raises(InputError, match=r"no config\.json"):
        bench.run(bench.Settings(1, ("bundled",), checkpoint=tmp_path))
    job = {"model": tmp_path / "none.gguf", "prompts": ["a"], "n_threads": 1, "n_ctx": 64, "max_new": 1}
    with pytest.raises(ModelError, match="'loop'.*exit code 1"):
        run_in_child(engine_jobs.loop, job)
