"""Parts of `reclm bench quant` with real files: variants, distributions, profiles, settings, encoders."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from bench_quant_workspace import N_ITEMS, N_USERS, histories, job_in_this_process, settings
from profile_workspace import make_workspace, matrix, store_split
from tiny_llama import write_tiny_llama

from reclm_lite.assets import encoder_path, profile_model_path
from reclm_lite.bench.quant import encoder_variants, quant_bench, recommendations
from reclm_lite.bench.quant.recommendations import Fits
from reclm_lite.bench.quant.resumable import State
from reclm_lite.bench.quant.token_distributions import measure
from reclm_lite.bench.quant.variants import Asked, Maker, open_reference, parse_types, verdict_on
from reclm_lite.bench.quant.written_profiles import choose_users, open_copy
from reclm_lite.convert.parity.logits import gguf_logits
from reclm_lite.data.dataset import load_split
from reclm_lite.errors import InputError, MissingArtefactError, ModelError
from reclm_lite.files import file_sha256
from reclm_lite.prompts.inputs import load_inputs
from reclm_lite.runtime import load_model, quantize_file
from reclm_lite.workspace import Workspace

# -- files ------------------------------------------------------------------------


def test_a_file_is_taken_by_its_hash_and_made_anew_where_it_is_another(model, tmp_path):
    maker = Maker(open_reference(model), tmp_path / "files", State(tmp_path / "state"), 1)
    first = maker.make(Asked("q4_0"), None)
    written = first.path.stat().st_mtime_ns
    assert maker.make(Asked("q4_0"), None) == first and first.path.stat().st_mtime_ns == written
    first.path.write_bytes(b"GGUF and nothing of worth")
    assert not maker.is_there(Asked("q4_0"), None)
    assert maker.make(Asked("q4_0"), None) == first and first.path.stat().st_mtime_ns != written


def test_the_importance_matrix_is_collected_once_for_the_same_texts_and_changes_the_file(model, tmp_path):
    maker = Maker(open_reference(model), tmp_path / "files", State(tmp_path / "state"), 1)
    imatrix = maker.imatrix(["sports: rugby finals", "music: choirs"])
    written = imatrix.stat().st_mtime_ns
    assert maker.imatrix(["sports: rugby finals", "music: choirs"]).stat().st_mtime_ns == written
    plain, better = (maker.make(asked, imatrix) for asked in parse_types(["q2_k"], imatrix=True))
    assert (
        not plain.excluded
        and not better.excluded
        and plain.sha256 != better.sha256
        and better.path.name == "profiles-f16-q2_k-imatrix.gguf"
    )
    maker.imatrix(["film: westerns"])
    assert not maker.is_there(Asked("q2_k", imatrix=True), imatrix) and maker.is_there(Asked("q2_k"), imatrix)


def test_a_reference_that_is_quantized_or_damaged_is_refused(model, tmp_path):
    with pytest.raises(ModelError, match="expected --model in F16, BF16 or F32, found Q8_0"):
        open_reference(profile_model_path())
    (tmp_path / "half.gguf").write_bytes(model.read_bytes()[:100_000])
    with pytest.raises(ModelError, match="not a whole GGUF file"):
        open_reference(tmp_path / "half.gguf")


def test_what_the_export_found_of_a_file_counts(model, tmp_path):
    path = Path(shutil.copy(model, tmp_path / "f16.gguf"))
    assert verdict_on(open_reference(path)) == (None, "")
    entry = {"file": "x.gguf", "ftype": "f16", "size_bytes": 1, "sha256": open_reference(path).sha256, "made_from": "x"}
    for passed, parity, expected in ((True, {"passed": True}, (True, "")), (True, None, (None, ""))):
        manifest = {
            "format": 1,
            "identity": "x",
            "imatrix": None,
            "files": [{**entry, "passed": passed, "parity": parity}],
        }
        (tmp_path / "manifest.json").write_text(json.dumps(manifest))
        assert verdict_on(open_reference(path)) == expected
    manifest["files"][0] |= {"passed": False, "parity": {"passed": False, "reasons": ["expected a smaller error"]}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(
        ModelError, match="fails the parity gate: expected a smaller error .manifest.json beside it.: export it again"
    ):
        open_reference(path)
    maker = Maker(open_reference(model), tmp_path / "files", State(tmp_path / "state"), 1)
    assert "fails the parity gate: expected a smaller error" in maker.make(Asked("", given=path), None).excluded
    (tmp_path / "manifest.json").write_text("[]")  # not an export's: it says nothing of files
    assert verdict_on(open_reference(path)) == (None, "")


# -- distributions ------------------------------------------------------------------


def test_divergence_is_that_of_logits_computed_one_sequence_at_a_time(model, tmp_path):
    small = tmp_path / "small.gguf"
    quantize_file(model, small, 2, n_threads=1)
    with load_model(model) as loaded:
        prompts = [
            loaded.tokenize(text, add_special=True)
            for text in ("sports: rugby finals | music: choirs", "film: late night westerns")
        ]
    reference = measure(str(model), str(tmp_path), 1, prompts, 6)
    found = measure(str(small), str(tmp_path), 1)
    assert reference["kl_sums"] == [0.0, 0.0] and reference["n_agree"] == reference["n_tokens"]
    kept = np.load(tmp_path / "sequences.npz")
    for i, tokens in enumerate(np.split(kept["tokens"], np.cumsum(kept["lengths"])[:-1])):
        with load_model(model) as a, load_model(small) as b:
            p, q = (
                np.exp(x - x.max(1, keepdims=True))
                for x in (gguf_logits(m, tokens.tolist(), n_threads=1).astype(float) for m in (a, b))
            )
        p, q = p[:-1] / p[:-1].sum(1, keepdims=True), q[:-1] / q[:-1].sum(1, keepdims=True)
        assert tokens[: len(prompts[i])].tolist() == prompts[i] and len(tokens) > len(prompts[i])
        assert found["n_tokens"][i] == found["n_kl"][i] == len(tokens) - 1
        assert found["kl_sums"][i] == pytest.approx((p * np.log(p / q)).sum(), rel=2e-3)
        assert found["nll_sums"][i] == pytest.approx(-np.log(q[np.arange(len(q)), tokens[1:]]).sum(), rel=1e-3)
        assert found["n_agree"][i] == (p.argmax(1) == q.argmax(1)).sum()
    assert found["kl_99_interval"][0] <= found["kl_99"] <= found["kl_99_interval"][1] + 1e-12


def test_of_sequences_that_hold_their_answers_none_is_decoded(model, tmp_path):
    sequences = [list(range(5, 25)), list(range(30, 42))]
    found = measure(str(model), str(tmp_path), 1, sequences, n_prompt=[11, 7])
    assert found["n_tokens"] == [19, 11] and found["n_answer_tokens"] == [9, 5] == found["n_answer_kl"]
    with load_model(model) as loaded:
        logits = gguf_logits(loaded, sequences[1], n_threads=1).astype(float)
    log_q = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    assert found["answer_nll_sums"][1] == pytest.approx(
        -sum(log_q[at, sequences[1][at + 1]] for at in range(6, 11)), rel=1e-3
    )


# -- profiles -------------------------------------------------------------------------


def test_too_few_users_for_an_interval_are_refused(root, model, tmp_path):
    with pytest.raises(InputError, match="at least 30 users.*--users 12"):
        quant_bench.run(settings(root, model, tmp_path, n_users=12))
    with make_workspace(tmp_path / "few", {0: [0, 1], 1: [2]}, test={0: [3]}) as ws:
        split = load_split(ws)
        with pytest.raises(
            InputError, match="at least 30 users with a history or neighbors and something held out, found 1"
        ):
            choose_users(split, load_inputs(ws), None, 0)


def test_the_copy_is_kept_as_long_as_the_workspace_is_the_same(root, tmp_path):
    mine = shutil.copytree(root, tmp_path / "ws")
    with open_copy(mine, tmp_path / "copy") as copy:
        copy.db.execute("INSERT INTO meta VALUES ('mark', '1')")
        copy.db.commit()
    with open_copy(mine, tmp_path / "copy") as copy:
        assert copy.get_meta("mark") == "1"
    with Workspace.open(mine) as ws:
        assert ws.get_meta("mark") is None
        train, valid, test = histories(1)
        parts = [matrix(N_USERS, N_ITEMS, rows) for rows in (train, valid, test, {})]
        changed = store_split(ws, parts)
    with open_copy(mine, tmp_path / "copy") as copy:
        assert copy.get_meta("mark") is None and copy.fingerprint("matrices/split") == changed
    with (
        pytest.raises(MissingArtefactError, match="reclm embed items"),
        make_workspace(tmp_path / "bare", {0: [1]}) as ws,
    ):
        open_copy(ws.root, tmp_path / "other")


def test_users_are_drawn_among_those_with_something_held_out(root):
    with Workspace.open(root) as ws:
        split, inputs = load_split(ws), load_inputs(ws)
        assert choose_users(split, inputs, None, 0) == list(range(N_USERS))
        drawn = choose_users(split, inputs, 30, 0)
        assert len(set(drawn)) == 30 and drawn == choose_users(split, inputs, 30, 0) != choose_users(
            split, inputs, 30, 1
        )


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"backbone": "ease"}, "takes profiles"),
        ({"n_prompts": 8}, "--prompts 8"),
        ({"max_loss": 1.5}, "150 %"),
        ({"types": ("q9",)}, "'q9'"),
    ],
)
def test_settings_that_cannot_be_used_are_refused_before_any_work(root, model, tmp_path, options, why):
    with pytest.raises(InputError, match=why):
        quant_bench.run(settings(root, model, tmp_path / "out", **options))
    assert not (tmp_path / "out").exists()


def test_two_models_of_one_name_do_not_share_files(tmp_path):
    others = []
    for seed in (1, 2):
        (tmp_path / str(seed)).mkdir()
        others.append(write_tiny_llama(tmp_path / str(seed) / "m.gguf", quantization="F16", seed=seed))
    made = [
        Maker(open_reference(path), tmp_path / "files", State(tmp_path / "state"), 1).make(Asked("q4_0"), None)
        for path in others
    ]
    assert (
        made[0].path != made[1].path
        and all(file.sha256 == file_sha256(file.path) for file in made)
        and made[0].sha256 != made[1].sha256
    )


def test_an_encoder_is_compared_with_its_quantized_files_and_kept(root, tmp_path, monkeypatch):
    monkeypatch.setattr(encoder_variants, "run_in_child", job_in_this_process)
    monkeypatch.setattr(encoder_variants, "MIN_UNITS", N_ITEMS)
    monkeypatch.setattr(encoder_variants, "TYPES", ("q4_0",))
    model, state = tmp_path / "encoder-f16.gguf", State(tmp_path / "state")
    quantize_file(encoder_path(), model, 1, n_threads=1, requantize=True)
    fits = Fits(root, tmp_path / "fits", state, "lightgcn", 1, 1)
    about = {"n_threads": 1, "fits": fits, "seeds": range(2)}
    rows = encoder_variants.measure(root, model, tmp_path / "files", state, **about)
    assert [row["name"] for row in rows] == ["f16", "q4_0"] and not any(row["excluded"] for row in rows)
    same, small = rows
    assert same["cosine"]["value"] == pytest.approx(1, abs=1e-6) and same["neighbours_kept"]["value"] == 1
    assert (
        0.9995 > small["cosine"]["value"] > 0.8
        and 0.5 < small["neighbours_kept"]["value"] <= 1
        and small["size_bytes"] < same["size_bytes"] / 2
    )
    assert small["min_cosine"] <= small["cosine"]["interval"][0] and small["texts_per_s"] > 0
    first, second = (row["downstream"]["full recall@20"] for row in rows)
    assert first["difference"] == 0 and first["n_users"] == second["n_users"] == N_USERS and second["n_seeds"] == 2
    assert (
        second["reference"] == first["value"] and second["interval"][0] <= second["difference"] <= second["interval"][1]
    )
    assert small["downstream"]["full ndcg@20"]["difference"] != 0
    monkeypatch.setattr(encoder_variants, "run_in_child", lambda *_, **__: pytest.fail("encoded again"))
    monkeypatch.setattr(recommendations, "fit_arrays", lambda *_, **__: pytest.fail("fitted again"))
    assert encoder_variants.measure(root, model, tmp_path / "files", state, **about) == rows
    for lost in state.folder.glob("encoder-*.npy"):
        lost.unlink()
    with pytest.raises(pytest.fail.Exception, match="encoded again"):
        encoder_variants.measure(root, model, tmp_path / "files", state, **about)
    with pytest.raises(ModelError, match="expected --encoder in F16, BF16 or F32, found Q8_0"):
        encoder_variants.measure(root, encoder_path(), tmp_path / "files", state, n_threads=1)
    monkeypatch.undo()
    with pytest.raises(InputError, match="at least 30 distinct item texts"):
        encoder_variants.measure(root, model, tmp_path / "files", state, n_threads=1)
