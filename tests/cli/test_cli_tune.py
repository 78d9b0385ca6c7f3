"""The command `reclm tune`."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from tiny_dialogues import preferences, rl_dialogues, sft_dialogues, tiny_base, write

from reclm_lite.cli import main

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

QUICK = ["--max-steps", "2", "--batch", "4", "--threads", "1", "--device", "cpu"]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("tune")
    tiny_base(root / "base")
    write(root / "sft.jsonl", sft_dialogues(40))
    write(root / "preference.jsonl", preferences(40))
    write(root / "rl.jsonl", rl_dialogues(40))
    return root


def run(*args: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, [str(a) for a in args])
    return result.exit_code, result.stdout, result.stderr


def test_each_stage_writes_what_the_next_command_takes(root, tmp_path):
    code, out, err = run(
        "tune", "sft", "--base", root / "base", "--dialogues", root / "sft.jsonl", "-o", tmp_path / "sft", *QUICK
    )
    assert code == 0, err
    assert (
        "eval/loss" in out
        and f"reclm tune reward --base {root / 'base'} --init-from {tmp_path / 'sft' / 'adapter'}" in err
    )
    assert "memory: tuning takes about" in err and "no chat template" in err
    code, out, err = run(
        "tune",
        "reward",
        "--base",
        root / "base",
        "--init-from",
        tmp_path / "sft" / "adapter",
        "--dialogues",
        root / "preference.jsonl",
        "-o",
        tmp_path / "reward",
        *QUICK,
        "--json",
    )
    assert code == 0, err
    assert json.loads(out)["eval/accuracy"] >= 0
    assert (tmp_path / "reward" / "adapter" / "head.safetensors").is_file()
    ppo = [
        "tune",
        "ppo",
        "--base",
        root / "base",
        "--sft",
        tmp_path / "sft" / "adapter",
        "--reward",
        tmp_path / "reward" / "adapter",
        "--dialogues",
        root / "rl.jsonl",
        "-o",
        tmp_path / "ppo",
        "--steps",
        "1",
        "--batch",
        "4",
        "--eval-answers",
        "2",
        "--max-new-tokens",
        "8",
        "--threads",
        "1",
        "--device",
        "cpu",
    ]
    code, out, err = run(*ppo)
    assert code == 0, err
    assert "SFT policy" in out and "reward/model" in out and "reward/parse" in out and "reward/rank" in out
    report = json.loads((tmp_path / "ppo" / "report.json").read_text())
    assert report["weights"] == {"model": 1.0, "parse": 1.0, "rank": 1.0}
    code, out, err = run(*ppo)
    assert code == 0 and "is already complete; nothing was changed" in err
    code, _, err = run(*ppo, "--weight", "parse=2", "--weight", "model=1")
    assert code == 1 and "weights" in err and "--fresh" in err


def test_the_next_command_can_be_pasted_and_a_beginning_that_nothing_beat_is_told(root, tmp_path):
    out = tmp_path / "läuf é"
    sft = ["tune", "sft", "--base", root / "base", "--dialogues", root / "sft.jsonl", *QUICK]
    code, _, err = run(*sft, "-o", tmp_path / "good", "--max-steps", "20", "--lr", "1e-2")
    assert code == 0 and "No step improved" not in err
    code, _, err = run(
        *sft, "-o", out, "--init-from", tmp_path / "good" / "adapter", "--lr", "9", "--max-grad-norm", "1e9"
    )
    assert code == 0, err
    assert f"--init-from '{out / 'adapter'}'" in err and "No step improved on the starting weights" in err


def test_a_weight_that_is_given_twice_is_refused(root, tmp_path):
    ppo = ["tune", "ppo", "--base", root / "base", "--dialogues", root / "rl.jsonl", "-o", tmp_path / "ppo"]
    code, _, err = run(*ppo, "--weight", "parse=1", "--weight", "parse=5")
    assert code == 2 and "given twice" in err


def test_from_scratch_trains_a_tokenizer_and_a_whole_model(root, tmp_path):
    sizes = ["--vocab", "300", "--layers", "1", "--width", "32", "--ffn", "64", "--heads", "2", "--max-length", "256"]
    code, out, err = run(
        "tune",
        "sft",
        "--from-scratch",
        "--dialogues",
        root / "sft.jsonl",
        "-o",
        tmp_path / "sft",
        *sizes,
        *QUICK,
        "--optimizer",
        "muon",
    )
    assert code == 0, err
    config = json.loads((tmp_path / "sft" / "model" / "config.json").read_text())
    assert (config["num_hidden_layers"], config["hidden_size"], config["vocab_size"]) == (1, 32, 300)


@pytest.mark.parametrize("stage", ["sft", "ppo"])
def test_what_was_tuned_is_exported_proved_and_written_with_by_the_engine(root, tmp_path, stage):
    """The adapter through `reclm export`: merged, compared with the original in token ids, logits and text; then the
    engine's answers to prompts are those of the tuned model in torch.
    """
    from reclm_lite.profiles.scheduler import Engine
    from reclm_lite.tune.adapters import LoraSettings, add_adapter, use
    from reclm_lite.tune.base import BaseSettings, load_base
    from reclm_lite.tune.rendering import Renderer

    assert (
        run(
            "tune",
            "sft",
            "--base",
            root / "base",
            "--dialogues",
            root / "sft.jsonl",
            "-o",
            tmp_path / "sft",
            *QUICK,
            "--lr",
            "0.05",
        )[0]
        == 0
    )
    if stage == "ppo":
        code, _, err = run(
            "tune",
            "ppo",
            "--base",
            root / "base",
            "--sft",
            tmp_path / "sft" / "adapter",
            "--dialogues",
            root / "rl.jsonl",
            "-o",
            tmp_path / "ppo",
            "--weight",
            "parse=1",
            "--steps",
            "1",
            "--batch",
            "4",
            "--eval-answers",
            "4",
            "--max-new-tokens",
            "8",
            "--threads",
            "1",
            "--device",
            "cpu",
        )
        assert code == 0 and f"reclm export --base {root / 'base'} --adapter {tmp_path / 'ppo' / 'adapter'}" in err, err
    code, out, err = run(
        "export",
        "--base",
        root / "base",
        "--adapter",
        tmp_path / stage / "adapter",
        "--quant",
        "f16",
        "-o",
        tmp_path / "gguf",
        "--threads",
        "1",
    )
    assert code == 0, err
    assert "proved" in out
    base = load_base(BaseSettings(str(root / "base")))
    add_adapter(base, "sft", LoraSettings(), load=tmp_path / stage / "adapter", trainable=False)
    base.model.eval()
    renderer, prompts = Renderer(base.tokenizer, base.form), [d.messages[:1] for d in sft_dialogues(3)]
    with Engine(tmp_path / "gguf" / "adapter-f16.gguf", 1, 2, n_ctx=256) as engine:
        answers = {r.index: r.text for r in engine.generate([p[0].text for p in prompts], max_new_tokens=20)}
    for n, prompt in enumerate(prompts):
        ids = torch.tensor([renderer.prompt(prompt)])
        for _ in range(20):
            with torch.no_grad(), use(base, "sft"):
                ids = torch.cat([ids, base.logits(base.hidden(ids)[:, -1:]).argmax(-1)], dim=1)
        mine = ids[0, len(renderer.prompt(prompt)) :].tolist()
        mine = mine[: mine.index(renderer.end[0])] if renderer.end[0] in mine else mine
        assert base.tokenizer.decode(mine).strip() == answers[n].strip()


@pytest.mark.parametrize(
    "args, message",
    [
        (["sft", "-o", "x"], "--base"),
        (["sft", "--base", "b", "--from-scratch"], "either --base or --from-scratch"),
        (["sft", "--base", "b"], "give a workspace"),
        (["sft", "--base", "b", "--optimizer", "muon", "-o", "x"], "--full"),
        (["sft", "--base", "b", "-o", "x", "--dialogues", "d", "--layers", "3"], "--layers"),
        (["sft", "--base", "b", "-o", "x", "--dialogues", "d", "--full", "--lora-r", "3"], "--lora-r"),
        (["sft", "--base", "b", "-o", "x", "--dialogues", "d", "--lr-muon", "0.1"], "--lr-muon"),
        (
            ["sft", "--base", "b", "-o", "x", "--dialogues", "d", "--schedule", "constant", "--decay", "0.4"],
            "--decay has no effect",
        ),
        (
            ["sft", "--base", "b", "-o", "x", "--dialogues", "d", "--rounds", "1", "--label-weight", "3"],
            "--label-weight has no effect",
        ),
        (["reward", "-o", "x"], "--base"),
        (["ppo", "--base", "b", "--weight", "model=1"], "give it with --reward"),
        (["ppo", "--base", "b", "--weight", "taste=1"], "one of the parts model, parse, rank"),
        (["ppo", "--base", "b", "--weight", "parse=-1"], "at least 0"),
        (["ppo", "--base", "b", "--weight", "parse=0"], "above 0"),
        (["ppo", "--base", "b", "--reward", "r", "--weight", "parse=1"], "--reward has no effect"),
        (["ppo", "--base", "b", "--group-size", "4"], "--group-size has no effect"),
        (["ppo", "--base", "b", "--algorithm", "grpo", "--value-lr", "1"], "--value-lr has no effect"),
        (["ppo", "--base", "b", "--sft", "s", "--lora-r", "4"], "--lora-r has no effect"),
    ],
)
def test_options_that_contradict_or_would_do_nothing_are_refused(args, message):
    code, _, err = run("tune", *args)
    assert code == 2 and message in err


def test_a_base_that_export_does_not_convert_is_told_at_the_start(root, tmp_path):
    transformers = pytest.importorskip("transformers")

    n_vocab = transformers.AutoConfig.from_pretrained(root / "base").vocab_size
    config = transformers.GPT2Config(
        vocab_size=n_vocab,
        n_embd=32,
        n_layer=1,
        n_head=2,
        n_positions=256,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    for file in (root / "base").glob("tokenizer*"):
        (tmp_path / "gpt2" / file.name).write_bytes(file.read_bytes())
    code, _, err = run(
        "tune", "sft", "--base", tmp_path / "gpt2", "--dialogues", root / "sft.jsonl", "-o", tmp_path / "x", *QUICK
    )
    assert code == 0 and "cannot convert models of type gpt2" in err, err


def test_a_base_of_a_hub_is_exported_from_where_it_was_put(root, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **_: str(root / "base"))
    code, _, err = run(
        "tune", "sft", "--base", "some/model", "--dialogues", root / "sft.jsonl", "-o", tmp_path / "sft", *QUICK
    )
    assert (
        code == 0
        and "reclm tune reward --base some/model --init-from" in err
        and f"reclm export --base {root / 'base'} --adapter" in err
    ), err


def test_a_base_that_is_not_there_is_one_sentence(root, tmp_path):
    code, _, err = run(
        "tune", "sft", "--base", tmp_path / "none", "--dialogues", root / "sft.jsonl", "-o", tmp_path / "x"
    )
    assert code == 1 and "check --base" in err and "Traceback" not in err


@pytest.mark.slow
def test_two_processes_make_the_adapter_of_one(root, tmp_path):
    import os
    import subprocess
    import sys

    from safetensors.numpy import load_file

    command = [
        "-m",
        "reclm_lite.cli",
        "tune",
        "sft",
        "--base",
        str(root / "base"),
        "--dialogues",
        str(root / "sft.jsonl"),
        "--lora-dropout",
        "0",
        "--lr",
        "0.01",
        "--save-every",
        "1",
        *QUICK,
    ]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    for launch, out in (
        ([sys.executable], "one"),
        ([sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"], "two"),
    ):
        subprocess.run([*launch, *command, "-o", str(tmp_path / out)], check=True, capture_output=True, env=env)
    one, two = (load_file(tmp_path / out / "adapter" / "adapter_model.safetensors") for out in ("one", "two"))
    assert max(float(abs(v).max()) for n, v in one.items() if "lora_B" in n) > 1e-3
    assert max(float(abs(one[n] - two[n]).max()) for n in one) < 1e-5


def test_from_scratch_leaves_a_folder_of_somebody_elses_alone_and_asks_for_fresh_on_other_sizes(root, tmp_path):
    (tmp_path / "mine-base").mkdir()
    (tmp_path / "mine-base" / "model.safetensors").write_text("years of work")
    sizes = ["--vocab", "300", "--width", "32", "--ffn", "64", "--heads", "2", "--max-length", "256", "--layers"]
    start = ["tune", "sft", "--from-scratch", "--dialogues", root / "sft.jsonl", *QUICK, *sizes]
    for fresh in ([], ["--fresh"]):
        code, _, err = run(*start, 1, "-o", tmp_path / "mine", *fresh)
        assert code == 1 and "files of another make" in err
    assert (tmp_path / "mine-base" / "model.safetensors").read_text() == "years of work"
    assert run(*start, 1, "-o", tmp_path / "run")[0] == 0
    code, _, err = run(*start, 2, "-o", tmp_path / "run")
    assert code == 1 and "other sizes" in err
    assert run(*start, 2, "-o", tmp_path / "run", "--fresh")[0] == 0
    assert json.loads((tmp_path / "run" / "model" / "config.json").read_text())["num_hidden_layers"] == 2
