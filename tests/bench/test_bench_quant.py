"""`reclm bench quant` as a whole: figures kept, the same users paired, results written, the page, the command."""

import csv
import fcntl
import io
import json
import shutil

import pytest
from bench_quant_workspace import N_ITEMS, N_USERS, TYPES, histories, settings
from click.testing import CliRunner
from profile_workspace import HashEncoder, matrix, store_split
from tiny_llama import write_tiny_llama

from reclm_lite.assets import profile_model_path
from reclm_lite.bench import harness
from reclm_lite.bench.quant import quant_bench, recommendations, text_and_csv, written_profiles
from reclm_lite.cli import main
from reclm_lite.errors import InputError, ModelError, WorkspaceError
from reclm_lite.workspace import Workspace


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
    assert any(
        "Item vectors in int8 beside float32" in line for line in text_and_csv.lines_of(whole.document, auto=False)
    )


def test_the_workspace_is_left_as_it_was(whole):
    assert whole.after == whole.before


def test_a_second_run_measures_nothing_and_says_the_same(whole, root, model, monkeypatch):
    monkeypatch.setattr(quant_bench, "run_in_child", lambda *_, **__: pytest.fail("a job was run again"))
    monkeypatch.setattr(written_profiles, "run_profiles", lambda *_, **__: pytest.fail("profiles were written again"))
    monkeypatch.setattr(recommendations, "fit_arrays", lambda *_, **__: pytest.fail("a model was fitted again"))
    again = quant_bench.run(settings(root, model, whole.out), encoder=HashEncoder())
    assert again["n_measurements"]["made"] == 0 < again["n_measurements"]["kept"]
    for name in ("files", "without_profiles", "choice"):
        assert again[name] == whole.document[name]


def test_a_run_that_was_stopped_goes_on_with_what_is_missing(whole, root, model, tmp_path, monkeypatch):
    out = shutil.copytree(whole.out, tmp_path / "out")
    lost = next((out / "quant-state").glob("speed-*.json"))
    lost.unlink()
    (out / "quant-state" / "logits-left-by-a-kill").mkdir()
    asked = []

    def run(function, arguments, **more):
        asked.append(function.__name__)
        return harness.run_in_child(function, arguments, **more)  # in a real child, as for users

    monkeypatch.setattr(quant_bench, "run_in_child", run)
    document = quant_bench.run(settings(root, model, out), encoder=HashEncoder())
    assert not (out / "quant-state" / "logits-left-by-a-kill").exists()
    assert asked == ["speed"] and document["n_measurements"]["made"] == 1
    assert all(50e6 < row["peak_bytes"] < 2e9 for row in document["files"])
    assert [row["mean_kl"] for row in document["files"]] == [row["mean_kl"] for row in whole.document["files"]]


def test_two_runs_into_one_folder_are_refused(whole, root, model):
    copy = whole.out / "quant-state" / "workspace"
    with Workspace.open(copy) as other, other.writing(), pytest.raises(WorkspaceError, match="another reclm process"):
        quant_bench.run(settings(root, model, whole.out), encoder=HashEncoder())


def test_a_run_into_a_folder_that_another_one_works_in_leaves_its_copy_alone(whole, root, model, tmp_path):
    other = shutil.copytree(root, tmp_path / "ws")
    with Workspace.open(other) as ws:
        store_split(ws, [matrix(N_USERS, N_ITEMS, rows) for rows in (*histories(1), {})])
    before = (whole.out / "quant-state" / "workspace" / "copied-from.json").read_text()
    with (whole.out / "quant-state" / ".lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(WorkspaceError, match="another reclm process is measuring into .*give another --out"):
            quant_bench.run(settings(other, model, whole.out), encoder=HashEncoder())
    assert (whole.out / "quant-state" / "workspace" / "copied-from.json").read_text() == before


@pytest.mark.parametrize("out", ["", "models/x", "quant"])
def test_a_folder_within_the_workspace_is_refused_but_for_its_reports(root, model, out):
    before = sorted(root.rglob("*"))
    with pytest.raises(InputError, match="outside the workspace or under its reports"):
        quant_bench.run(settings(root, model, root / out))
    assert sorted(root.rglob("*")) == before
    settings(root, model, root / "reports" / "quant").check()


def test_an_encoder_that_is_none_is_told_before_any_work(root, model, tmp_path):
    with pytest.raises(ModelError, match="expected an embedding model"):
        quant_bench.run(settings(root, model, tmp_path / "out", encoder_model=model))


def test_a_file_that_cannot_be_measured_is_excluded_and_the_others_are_told(whole, root, model, tmp_path, monkeypatch):
    out = shutil.copytree(whole.out, tmp_path / "out")
    made = whole.document["files"][1]
    other = write_tiny_llama(tmp_path / "other.gguf", quantization="Q8_0")
    (tmp_path / "broken.gguf").write_bytes(model.read_bytes()[:5000])
    for kept in (out / "quant-state").glob("logits-*.json"):
        if json.loads(kept.read_text())["made_of"]["file"] == made["sha256"]:
            kept.unlink()

    def run(function, arguments, **_):
        raise ModelError(f"expected to measure {function.__name__}, found a crash")

    monkeypatch.setattr(quant_bench, "run_in_child", run)
    with pytest.raises(ModelError, match="found a crash"):  # without the reference nothing can be said
        quant_bench.run(settings(root, model, tmp_path / "fresh"), encoder=HashEncoder())
    asked = settings(root, model, out, types=(*TYPES, str(other), str(tmp_path / "broken.gguf")))
    document = quant_bench.run(asked, encoder=HashEncoder())
    excluded = {row["name"]: row["excluded"] for row in document["files"]}
    assert excluded["f16"] == "" and document["choice"]["name"] == "f16"
    assert "found a crash" in excluded["q4_0"]
    assert "fails the parity gate: expected the tensors of the unquantized file" in excluded["other.gguf"]
    assert "not a whole GGUF file" in excluded["broken.gguf"]
    told = "\n".join(text_and_csv.lines_of(document, auto=True))
    assert "excluded: other.gguf" in told and "no profiles" in told


def test_results_are_written_as_json_and_as_a_csv_of_equal_rows(whole, tmp_path):
    written = quant_bench.write_results(whole.document, tmp_path)
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


# -- the command --------------------------------------------------------------------------


def test_the_command_prints_tables_and_the_choice_or_one_json_line(whole, root, model, monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(quant_bench, "run", lambda asked, say: seen.append(asked) or whole.document)
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
