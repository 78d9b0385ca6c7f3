"""`reclm bench quant`: files made and judged, figures kept, the same users paired, and a choice that knows when it
cannot choose."""

import csv
import fcntl
import io
import json
import re
import shutil
import subprocess
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner
from profile_workspace import HashEncoder, make_workspace, matrix, store_split
from tiny_llama import write_tiny_llama

from reclm_lite.assets import encoder_path, profile_model_path
from reclm_lite.bench import quant, quant_encoder, quant_output, quant_page, quant_tables
from reclm_lite.bench import quant_jobs as jobs
from reclm_lite.bench.quant_downstream import Fits
from reclm_lite.bench.quant_files import Asked, Maker, open_reference, parse_types, verdict_on
from reclm_lite.bench.quant_logits import measure
from reclm_lite.bench.quant_profiles import choose_users, open_copy
from reclm_lite.bench.quant_state import State
from reclm_lite.cli import main
from reclm_lite.convert.parity.logits import gguf_logits
from reclm_lite.errors import InputError, MissingArtefactError, ModelError, WorkspaceError
from reclm_lite.files import file_sha256
from reclm_lite.prompts.inputs import load_inputs
from reclm_lite.report import write_report
from reclm_lite.runtime import load_model, quantize_file
from reclm_lite.text.item_vectors import embed_items
from reclm_lite.workspace import Workspace

N_USERS, N_ITEMS = 40, 24
TYPES = ("q4_0",)


def histories(seed):
    rng = np.random.default_rng(seed)
    rows = [rng.permutation(N_ITEMS)[:5].tolist() for _ in range(N_USERS)]
    return (
        {u: row[:2] for u, row in enumerate(rows)},
        {u: row[2:3] for u, row in enumerate(rows)},
        {u: row[3:] for u, row in enumerate(rows)},
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("quant") / "ws"
    train, valid, test = histories(0)
    with make_workspace(root, train, valid=valid, test=test, n_items=N_ITEMS) as ws:
        embed_items(ws, HashEncoder())
    return root


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The bundled profile model as F16: it writes profiles in half a second."""
    path = tmp_path_factory.mktemp("model") / "profiles-f16.gguf"
    quantize_file(profile_model_path(), path, 1, n_threads=1, requantize=True)
    return path


def settings(root, model, out, **options):
    plain = {"types": TYPES, "imatrix": False, "n_prompts": 30, "n_seeds": 2, "epochs": 1, "turns": 1, "n_slots": 8}
    return quant.Settings(root, model, out, 1, **{**plain, **options})


def job_in_this_process(kind, **arguments):
    """What `run_job` gives, without the seconds that a process takes to start."""
    job = json.loads(json.dumps({"kind": kind, **arguments}, default=str))
    return json.loads(json.dumps(jobs.main(job)))


@pytest.fixture(scope="module")
def whole(root, model, tmp_path_factory):
    """One whole run, and all that was said."""
    out, said = tmp_path_factory.mktemp("out"), []
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file() and ".db" not in path.name}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quant, "run_job", job_in_this_process)
        document = quant.run(settings(root, model, out), said.append, encoder=HashEncoder())
    after = {path: path.stat().st_mtime_ns for path in before}
    return SimpleNamespace(out=out, document=document, said=said, before=before, after=after)


def test_every_file_has_figures_with_intervals_and_the_reference_differs_from_itself_in_nothing(whole):
    rows = {row["name"]: row for row in whole.document["files"]}
    assert list(rows) == ["f16", "q4_0"]
    for row in rows.values():
        assert not row["excluded"] and row["load_seconds"] > 0 and row["peak_bytes"] > row["model_bytes"] > 0
        assert row["prefill_tokens_per_s"] > 0 and row["decode_tokens_per_s"] > 0 and row["profiles_per_s"] > 0
        for name in ("perplexity", "mean_kl", "kl_99", "top1_agreement", "parse_share", "exact_share", "cosine"):
            low, high = row[name]["interval"]
            assert low - 1e-9 <= row[name]["value"] <= high + 1e-9
    same, small = rows["f16"], rows["q4_0"]
    assert same["mean_kl"]["value"] == 0 and same["top1_agreement"]["value"] == same["exact_share"]["value"] == 1
    assert same["downstream"]["full recall@20"]["difference"] == 0
    assert small["mean_kl"]["value"] > 0.001 and small["exact_share"]["value"] < 1
    assert small["size_bytes"] < same["size_bytes"] / 3 and 4.5 < small["bits_per_weight"] < 5.5
    assert (
        small["downstream"]["full recall@20"]["n_users"] == N_USERS and small["downstream"]["unseen recall@20"] is None
    )


def test_int8_item_vectors_give_the_lists_of_float32_and_are_told(whole):
    told = whole.document["int8_items"]
    assert told["equal_places"] > 0.99 and told["n_users"] == N_USERS and told["n_items"] == N_ITEMS
    assert told["bytes"]["float32"] == 4 * N_ITEMS * told["dim"] and told["bytes"]["int8"] == N_ITEMS * (
        told["dim"] + 4
    )
    assert told["recall@20"]["float32"] == pytest.approx(
        whole.document["files"][0]["downstream"]["full recall@20"]["value"], abs=1e-6
    )
    assert any("Item vectors in int8 beside float32" in line for line in quant_output.lines(whole.document, auto=False))


def test_the_workspace_is_left_as_it_was(whole):
    assert whole.after == whole.before


def test_a_second_run_measures_nothing_and_says_the_same(whole, root, model, monkeypatch):
    monkeypatch.setattr(quant, "run_job", lambda *_, **__: pytest.fail("a job was run again"))
    monkeypatch.setattr(
        "reclm_lite.bench.quant_profiles.run_profiles", lambda *_, **__: pytest.fail("profiles were written again")
    )
    monkeypatch.setattr(
        "reclm_lite.bench.quant_downstream.fit_arrays", lambda *_, **__: pytest.fail("a model was fitted again")
    )
    again = quant.run(settings(root, model, whole.out), encoder=HashEncoder())
    assert again["n_measurements"]["made"] == 0 < again["n_measurements"]["kept"]
    for name in ("files", "without_profiles", "choice"):
        assert again[name] == whole.document[name]


def test_a_run_that_was_stopped_goes_on_with_what_is_missing(whole, root, model, tmp_path, monkeypatch):
    out = shutil.copytree(whole.out, tmp_path / "out")
    lost = next((out / "quant-state").glob("speed-*.json"))
    lost.unlink()
    (out / "quant-state" / "logits-left-by-a-kill").mkdir()
    asked = []

    def run_job(kind, **arguments):
        asked.append(kind)
        return jobs.run_job(kind, **arguments)  # in a process of its own, as for users

    monkeypatch.setattr(quant, "run_job", run_job)
    document = quant.run(settings(root, model, out), encoder=HashEncoder())
    assert not (out / "quant-state" / "logits-left-by-a-kill").exists()
    assert asked == ["speed"] and document["n_measurements"]["made"] == 1
    assert all(50e6 < row["peak_bytes"] < 2e9 for row in document["files"])
    assert [row["mean_kl"] for row in document["files"]] == [row["mean_kl"] for row in whole.document["files"]]


def test_two_runs_into_one_folder_are_refused(whole, root, model):
    copy = whole.out / "quant-state" / "workspace"
    with Workspace.open(copy) as other, other.writing(), pytest.raises(WorkspaceError, match="another reclm process"):
        quant.run(settings(root, model, whole.out), encoder=HashEncoder())


def test_a_run_into_a_folder_that_another_one_works_in_leaves_its_copy_alone(whole, root, model, tmp_path):
    other = shutil.copytree(root, tmp_path / "ws")
    with Workspace.open(other) as ws:
        store_split(ws, [matrix(N_USERS, N_ITEMS, rows) for rows in (*histories(1), {})])
    before = (whole.out / "quant-state" / "workspace" / "copied-from.json").read_text()
    with (whole.out / "quant-state" / ".lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(WorkspaceError, match="another reclm process is measuring into .*give another --out"):
            quant.run(settings(other, model, whole.out), encoder=HashEncoder())
    assert (whole.out / "quant-state" / "workspace" / "copied-from.json").read_text() == before


@pytest.mark.parametrize("out", ["", "models/x", "quant"])
def test_a_folder_within_the_workspace_is_refused_but_for_its_reports(root, model, out):
    before = sorted(root.rglob("*"))
    with pytest.raises(InputError, match="outside the workspace or under its reports"):
        quant.run(settings(root, model, root / out))
    assert sorted(root.rglob("*")) == before
    settings(root, model, root / "reports" / "quant").check()


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


def test_an_encoder_that_is_none_is_told_before_any_work(root, model, tmp_path):
    with pytest.raises(ModelError, match="expected an embedding model"):
        quant.run(settings(root, model, tmp_path / "out", encoder_model=model))


def test_a_file_that_cannot_be_measured_is_excluded_and_the_others_are_told(whole, root, model, tmp_path, monkeypatch):
    out = shutil.copytree(whole.out, tmp_path / "out")
    made = whole.document["files"][1]
    other = write_tiny_llama(tmp_path / "other.gguf", quantization="Q8_0")
    (tmp_path / "broken.gguf").write_bytes(model.read_bytes()[:5000])
    for kept in (out / "quant-state").glob("logits-*.json"):
        if json.loads(kept.read_text())["made_of"]["file"] == made["sha256"]:
            kept.unlink()

    def run_job(kind, **arguments):
        raise ModelError(f"expected to measure {kind}, found a crash")

    monkeypatch.setattr(quant, "run_job", run_job)
    with pytest.raises(ModelError, match="found a crash"):  # without the reference nothing can be said
        quant.run(settings(root, model, tmp_path / "fresh"), encoder=HashEncoder())
    asked = settings(root, model, out, types=(*TYPES, str(other), str(tmp_path / "broken.gguf")))
    document = quant.run(asked, encoder=HashEncoder())
    excluded = {row["name"]: row["excluded"] for row in document["files"]}
    assert excluded["f16"] == "" and document["choice"]["name"] == "f16"
    assert "found a crash" in excluded["q4_0"]
    assert "fails the parity gate: expected the tensors of the unquantized file" in excluded["other.gguf"]
    assert "not a whole GGUF file" in excluded["broken.gguf"]
    told = "\n".join(quant_output.lines(document, auto=True))
    assert "excluded: other.gguf" in told and "no profiles" in told


def test_results_are_written_as_json_and_as_a_csv_of_equal_rows(whole, tmp_path):
    written = quant_output.write(whole.document, tmp_path)
    assert json.loads((tmp_path / "quant.json").read_text()) == json.loads(json.dumps(whole.document))
    rows = list(csv.DictReader(io.StringIO((tmp_path / "quant.csv").read_text())))
    assert [row["name"] for row in rows] == ["f16", "q4_0", "no profiles"]
    assert float(rows[1]["mean_kl"]) == whole.document["files"][1]["mean_kl"]["value"]
    assert rows[2]["perplexity"] == "" and float(rows[2]["full_recall@20_value"]) >= 0
    assert all(None not in row and None not in row.values() for row in rows)
    assert all(path.is_file() for path in written)


def test_what_is_being_done_and_how_much_is_left_is_said(whole):
    assert any("f16: speed (2 steps to go" in line for line in whole.said)
    assert any("seed 1: fit" in line for line in whole.said)


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
        quant.run(settings(root, model, tmp_path, n_users=12))
    with make_workspace(tmp_path / "few", {0: [0, 1], 1: [2]}, test={0: [3]}) as ws:
        split = quant.quant_profiles.load_split(ws)
        with pytest.raises(
            InputError, match="at least 30 users with a history or neighbours and something held out, found 1"
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
        split, inputs = quant.quant_profiles.load_split(ws), load_inputs(ws)
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
        quant.run(settings(root, model, tmp_path / "out", **options))
    assert not (tmp_path / "out").exists()


# -- the report of a workspace ------------------------------------------------------------------------


def test_the_report_shows_the_frontier_where_it_was_measured(whole, root, tmp_path, caplog):
    mine = shutil.copytree(root, tmp_path / "ws")
    with Workspace.open(mine) as ws:
        assert "Size of the profile model" not in Page(write_report(ws).read_text()).text
        quant_output.write(whole.document, mine / "reports" / "quant")
        page = Page(write_report(ws).read_text())
        assert (
            not page.open
            and "Size of the profile model" in page.text
            and "The data or the split have changed" not in page.text
        )
        assert "The frontier" in page.text and "no profiles, the backbone alone" in page.text
        assert whole.document["choice"]["sentence"].replace(" %", "\u00a0%") in page.text
        quant_output.write({**whole.document, "split": "another"}, mine / "reports" / "quant")
        assert "The data or the split have changed since." in Page(write_report(ws).read_text()).text
        rows = whole.document["files"]
        odd = [
            {"files": [{}]},
            {"choice": None},
            {"files": [{**rows[0], "size_bytes": 10**400}, *rows[1:]]},
            {"choice": {**whole.document["choice"], "max_loss": float("inf")}},
            {"settings": {**whole.document["settings"], "n_seeds": None}},
            {"choice": {**whole.document["choice"], "sentence": 3}},
        ]
        odd = [json.dumps({**whole.document, **change}) for change in odd]
        for damage in ("{", "[]", "[" * 100_000, *odd):
            (mine / "reports" / "quant" / "quant.json").write_text(damage)
            caplog.clear()
            assert "Size of the profile model" not in Page(write_report(ws).read_text()).text
            assert "quant.json is left out of the report: expected what `reclm bench quant` writes" in caplog.text


# -- the text encoder -----------------------------------------------------------------------


def test_an_encoder_is_compared_with_its_quantized_files_and_kept(root, tmp_path, monkeypatch):
    monkeypatch.setattr(quant_encoder, "run_job", job_in_this_process)
    monkeypatch.setattr(quant_encoder, "MIN_UNITS", N_ITEMS)
    monkeypatch.setattr(quant_encoder, "TYPES", ("q4_0",))
    model, state = tmp_path / "encoder-f16.gguf", State(tmp_path / "state")
    quantize_file(encoder_path(), model, 1, n_threads=1, requantize=True)
    fits = Fits(root, tmp_path / "fits", state, "lightgcn", 1, 1)
    about = {"n_threads": 1, "fits": fits, "seeds": range(2)}
    rows = quant_encoder.measure(root, model, tmp_path / "files", state, **about)
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
    monkeypatch.setattr(quant_encoder, "run_job", lambda *_, **__: pytest.fail("encoded again"))
    monkeypatch.setattr("reclm_lite.bench.quant_downstream.fit_arrays", lambda *_, **__: pytest.fail("fitted again"))
    assert quant_encoder.measure(root, model, tmp_path / "files", state, **about) == rows
    for lost in state.folder.glob("encoder-*.npy"):
        lost.unlink()
    with pytest.raises(pytest.fail.Exception, match="encoded again"):
        quant_encoder.measure(root, model, tmp_path / "files", state, **about)
    with pytest.raises(ModelError, match="expected --encoder in F16, BF16 or F32, found Q8_0"):
        quant_encoder.measure(root, encoder_path(), tmp_path / "files", state, n_threads=1)
    monkeypatch.undo()
    with pytest.raises(InputError, match="at least 30 distinct item texts"):
        quant_encoder.measure(root, model, tmp_path / "files", state, n_threads=1)


def test_encoders_are_in_the_table_and_on_the_page(whole):
    figure = {"value": 0.99, "interval": [0.98, 1.0]}
    row = {
        **whole.document["files"][0],
        "texts_per_s": 50.0,
        "downstream": None,
        "cosine": figure,
        "min_cosine": 0.9,
        "neighbours_kept": figure,
    }
    document = {**whole.document, "encoders": [row, {**row, "name": "q1", "excluded": "why not"}]}
    assert any("99.0 (98.0–100.0)" in line for line in quant_output.lines(document, auto=False))
    page = Page(quant_page.render(document))
    assert not page.open and "Text encoder" in page.text and "why not" in page.text
    rows = list(csv.DictReader(io.StringIO(quant_tables.csv_of(document))))
    assert [row["kind"] for row in rows] == ["profile model", "profile model", "backbone", "encoder", "encoder"]
    assert (rows[3]["texts_per_s"], rows[3]["neighbours_kept_low"], rows[4]["excluded"]) == ("50.0", "0.98", "why not")


INTERVAL = {"value": 0.98765, "interval": [0.98123, 0.99456]}
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium to lay the page out")
@pytest.mark.parametrize(("width", "medium"), [(360, "screen"), (1200, "screen"), (692, "print")])
def test_in_a_browser_nothing_sticks_out_of_the_page_and_words_do_not_lie_on_each_other(whole, tmp_path, width, medium):
    document = {
        **whole.document,
        "encoders": [
            {
                **whole.document["files"][0],
                "texts_per_s": 50.0,
                "min_cosine": 0.9,
                "neighbours_kept": INTERVAL,
                "cosine": INTERVAL,
            }
        ],
    }
    page = re.sub('<meta http-equiv="Content-Security-Policy"[^>]*>', "", quant_page.render(document))
    page = page.replace("@media print", "@media all") if medium == "print" else page
    ask = """
        const d = frame.contentDocument, boxes = e => e.getBoundingClientRect();
        const words = [...d.querySelectorAll("svg")].map(s => [...s.querySelectorAll("text")].map(boxes));
        const touching = words.flatMap(w => w.flatMap((a, i) => w.slice(i + 1).filter(
            b => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 2
              && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 4)));
        const found = [d.documentElement.scrollWidth, frame.clientWidth, words.flat().length, touching.length];
        document.title = JSON.stringify(found);"""
    outer = (
        f'<iframe id="frame" style="border:0;width:{width}px;height:900px" '
        f'srcdoc="{escape(page, quote=True)}"></iframe><script>onload = () => {{{ask}}}</script>'
    )
    (tmp_path / "outer.html").write_text(outer, encoding="utf-8")
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--window-size=1400,1000",
        "--dump-dom",
    ]
    done = subprocess.run(
        [*command, (tmp_path / "outer.html").as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    content, inside, n_words, n_touching = json.loads(re.search("<title>(.*?)</title>", done.stdout)[1])
    assert inside == width and content <= width and n_words > 30 and n_touching == 0


# -- the command --------------------------------------------------------------------------


def test_the_command_prints_tables_and_the_choice_or_one_json_line(whole, root, model, monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(quant, "run", lambda asked, say: seen.append(asked) or whole.document)
    command = [
        "bench",
        "quant",
        "-w",
        str(root),
        "--model",
        str(model),
        "--types",
        "q8_0,q4_k_m",
        "--types",
        "q2_k",
        "--max-loss",
        "2.5%",
        "--out",
        str(tmp_path),
    ]
    result = CliRunner().invoke(main, [*command, "--auto"])
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[-1] == whole.document["choice"]["sentence"] and "{" not in result.stdout
    assert seen[0].types == ("q8_0", "q4_k_m", "q2_k") and seen[0].max_loss == pytest.approx(0.025)
    result = CliRunner().invoke(main, [*command, "--json"])
    assert json.loads(result.stdout) == json.loads(json.dumps(whole.document)) and (tmp_path / "quant.json").is_file()


def test_the_command_refuses_in_one_sentence(root, tmp_path):
    result = CliRunner().invoke(
        main, ["bench", "quant", "-w", str(root), "--model", str(profile_model_path()), "--out", str(tmp_path)]
    )
    assert result.exit_code == 1 and "found Q8_0" in result.stderr and "Traceback" not in result.stderr
    result = CliRunner().invoke(main, ["bench", "quant", "-w", str(root), "--model", str(tmp_path / "none.gguf")])
    assert result.exit_code == 2
    result = CliRunner().invoke(
        main, ["bench", "quant", "-w", str(root), "--model", str(profile_model_path()), "--max-loss", "much"]
    )
    assert result.exit_code == 2 and "found 'much'" in result.stderr


# -- the page -------------------------------------------------------------------------------


class Page(HTMLParser):
    """What a page loads, which tags it leaves open, and its text."""

    VOID = ("meta", "br")

    def __init__(self, html):
        super().__init__()
        self.open, self.loads, self.text, self.ids, self.links = [], [], "", set(), set()
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.loads += [
            value
            for name, value in attributes
            if name in ("src", "srcset", "data") or (name == "href" and not value.startswith("#"))
        ]
        self.loads += [tag] if tag in ("script", "iframe", "link", "img", "object") else []
        self.ids |= {given["id"]} if "id" in given else set()
        self.links |= {given["href"].removeprefix("#")} if "href" in given else set()
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_page_is_whole_loads_nothing_and_shows_every_file(whole):
    html = quant_page.render(whole.document)
    page = Page(html)
    assert not page.open and not page.loads and page.links <= page.ids
    assert "default-src 'none'" in html and "url(" not in html and "@import" not in html
    assert whole.document["choice"]["sentence"].replace(" %", "\u00a0%") in page.text
    for row in whole.document["files"]:
        assert page.text.count(row["name"]) >= 5 and row["sha256"] in page.text
    assert html.count("<svg") >= 7 and "NaN" not in html and ">nan" not in html


def test_what_the_page_shows_of_names_is_escaped(whole):
    document = json.loads(json.dumps(whole.document))
    document["files"][1]["name"] = "<script>alert(1)</script>"
    document["files"].append({**document["files"][1], "name": "b&d", "excluded": "<b>why</b>"})
    document["settings"]["model"] = "models/<i>.gguf"
    page = Page(quant_page.render(document))
    assert not page.open and not page.loads and "<script>alert(1)</script>" in page.text and "<b>why</b>" in page.text
