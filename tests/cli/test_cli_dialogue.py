"""The command `reclm dialogue`."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from dialogue_workspace import dialogue_workspace

from reclm_lite.cli import main
from reclm_lite.dialogue.records import SFT, read_dialogues

PROFILE = "User identity: a fan, b fan, c fan; User interests: x, y z, w"


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("dialogue") / "ws"
    dialogue_workspace(root).close()
    return root


def run(*args: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, ["dialogue", *map(str, args)])
    return result.exit_code, result.stdout, result.stderr


def test_build_writes_into_the_workspace_says_what_and_names_the_next_command(root):
    for kind, stage in (("sft", "sft"), ("preference", "reward"), ("rl", "ppo")):
        code, out, err = run("build", kind, "-w", root)
        assert code == 0 and out == "", err
        assert (root / "llm" / "dialogues" / f"{kind}.jsonl.manifest.json").is_file()
        assert f"{kind} dialogues to" in err and err.rstrip().endswith(f"Next: reclm tune {stage} -w {root}")


def test_the_next_command_reads_the_file_that_was_written(root, tmp_path):
    file = tmp_path / "my own.jsonl"
    code, _, err = run("build", "sft", "-w", root, "-o", file, "--limit", 5)
    assert code == 0 and err.rstrip().endswith(f"Next: reclm tune sft -w {root} --dialogues '{file}'"), err


def test_json_is_the_manifest(root, tmp_path):
    code, out, _ = run(
        "build",
        "sft",
        "-w",
        root,
        "-o",
        tmp_path / "mine.jsonl",
        "--json",
        "--limit",
        5,
        "--side",
        "users",
        "--form",
        "instruct",
    )
    assert code == 0
    assert json.loads(out) == json.loads((tmp_path / "mine.jsonl.manifest.json").read_text())
    assert {dialogue.side for dialogue in read_dialogues(tmp_path / "mine.jsonl", SFT)} == {"user"}


def test_show_prints_dialogues_for_reading(root, tmp_path):
    for kind, words in (("sft", "Takes:\n"), ("preference", "[rejected: "), ("rl", "[never touched]")):
        assert run("build", kind, "-w", root)[0] == 0
        code, out, _ = run("show", "-w", root, "--kind", kind, "-n", 4)
        assert code == 0 and out.count("== ") == 4 and words in out and "[user]\nTopics:" in out
    code, _, err = run("show", "-w", root, "--file", tmp_path / "none.jsonl")
    assert code == 1 and "reclm dialogue build sft" in err


def test_targets_of_a_file_make_one_round(root, tmp_path):
    path = tmp_path / "published.csv"
    path.write_text(f'UID,Input,Response\nu1,whatever,"{PROFILE}"\n', encoding="utf-8")
    code, _, err = run(
        "build",
        "sft",
        "-w",
        root,
        "-o",
        tmp_path / "a.jsonl",
        "--side",
        "users",
        "--targets",
        path,
        "--targets-format",
        "reclm",
    )
    assert code == 0, err
    (dialogue,) = read_dialogues(tmp_path / "a.jsonl", SFT)
    assert dialogue.messages[1].text == PROFILE and len(dialogue.messages) == 2
    code, _, err = run(
        "build",
        "sft",
        "-w",
        root,
        "-o",
        tmp_path / "b.jsonl",
        "--side",
        "users",
        "--targets",
        path,
        "--targets-format",
        "reclm",
        "--rounds",
        2,
    )
    assert code == 0 and len(list(read_dialogues(tmp_path / "b.jsonl", SFT))) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["rl", "--teacher", "stored"], "rl dialogues have no first-round answers"),
        (["sft", "--corruptions", "empty"], "--corruptions applies only to preference"),
        (["sft", "--negatives", "3"], "--negatives applies only to rl"),
        (["rl", "--rounds", "1"], "--rounds applies only to sft"),
        (["sft", "--endpoint", "http://127.0.0.1:9"], "--endpoint requires the name"),
        (["sft", "--targets-format", "csv"], "requires --targets"),
        (["sft", "--yes"], "--yes requires --endpoint"),
        (["sft", "--threads", "2"], "--threads applies only to a model as teacher"),
        (["rl", "--threads", "2"], "--threads applies only to a model as teacher"),
        (["sft", "--targets", "x.csv", "--teacher", "stored"], "replaces the teacher"),
        (["poems"], "is not one of"),
    ],
)
def test_options_that_do_nothing_are_refused(root, arguments, words):
    code, _, err = run("build", *arguments, "-w", root)
    assert code == 2 and words in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["preference", "--corruptions", "burnt"], "expected corruptions among neighbor"),
        (["preference", "--corruptions", "empty=-1"], "expected a share above 0"),
        (["sft", "--teacher", "stored"], "there are no profiles in"),
        (["sft", "--targets", "nothing.jsonl"], "nothing.jsonl"),
        (["sft", "--teacher", "nothing.gguf"], "nothing.gguf"),
        (["sft", "--tokenizer", "nowhere"], "tokenizer.json"),
    ],
)
def test_bad_input_is_told_in_one_sentence(root, arguments, words):
    code, _, err = run("build", *arguments, "-w", root)
    assert code == 1 and words in err and "Traceback" not in err


def test_corruptions_can_be_chosen(root, tmp_path):
    code, out, _ = run(
        "build",
        "preference",
        "-w",
        root,
        "-o",
        tmp_path / "p.jsonl",
        "--corruptions",
        "empty=3,dot=1",
        "--variants",
        4,
        "--json",
    )
    counts = json.loads(out)["counts"]
    assert code == 0 and counts["empty"] > counts["dot"] > 0 and "merged" not in counts
