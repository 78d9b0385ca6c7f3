"""A stage prints its memory estimate before it starts, from the base, its options and the longest dialogue."""

from pathlib import Path

import pytest
from click.testing import CliRunner
from tiny_dialogues import preferences, rl_dialogues, sft_dialogues, tiny_base, write

from reclm_lite.cli import main

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from reclm_lite.errors import ModelError
from reclm_lite.tune.base import BaseSettings
from reclm_lite.tune.memory import LIBRARIES_BYTES, Sizes, count_parameters, estimate, require_memory, sizes_of
from reclm_lite.tune.ppo_run import of_estimate
from reclm_lite.tune.ppo_settings import PpoSettings
from reclm_lite.tune.rollout import CHUNK_LOGITS, Sampling
from reclm_lite.tune.scratch import ScratchSettings, make_base

QWEN = Sizes(n_parameters=494_000_000, width=896, layers=24, vocab=151_936, ffn=4864, kv=128)
BFLOAT16 = BaseSettings("", device="cpu", dtype="bfloat16")
ON_CPU = ["--threads", "1", "--device", "cpu"]
FILES = {"sft": sft_dialogues, "reward": preferences, "ppo": rl_dialogues}
STEPS = {
    "sft": ["--max-steps", "1"],
    "reward": ["--max-steps", "1"],
    "ppo": ["--steps", "1", "--eval-answers", "4", "--max-new-tokens", "8"],
}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("memory")
    tiny_base(root / "base")
    for stage, dialogues in FILES.items():
        write(root / f"{stage}.jsonl", dialogues(40))
    return root


def tune(root: Path, stage: str, out: Path, *more: object) -> tuple[int, str]:
    args = [
        "tune",
        stage,
        "--base",
        root / "base",
        "--dialogues",
        root / f"{stage}.jsonl",
        "-o",
        out,
        "--batch",
        "4",
        *ON_CPU,
        *STEPS[stage],
        *more,
    ]
    result = CliRunner().invoke(main, [str(a) for a in args])
    return result.exit_code, result.stderr


def test_logits_are_those_that_a_stage_computes():
    of_answers, of_none = (
        estimate(BFLOAT16, lora_r=8, pass_tokens=2048, sizes=QWEN, logits=logits) for logits in (None, 0)
    )
    assert of_answers.logits == 1024 * QWEN.vocab * 12 and of_none.logits == 0
    in_chunks = estimate(BFLOAT16, sizes=QWEN, **of_estimate(PpoSettings(), 300))
    assert in_chunks.logits == CHUNK_LOGITS * 12


def test_sampling_keeps_keys_and_values_of_a_batch_and_counts_where_it_is_more():
    def need(batch: int, prompt: int, new: int):
        settings = PpoSettings(batch=batch, micro_batch=1, sampling=Sampling(new, batch=batch))
        return estimate(BFLOAT16, sizes=QWEN, **of_estimate(settings, prompt))

    per_token = QWEN.layers * 2 * QWEN.kv * 2  # keys and values, two bytes each
    assert need(32, 300, 200).sampling - need(32, 300, 100).sampling == 32 * 100 * per_token
    small, large = need(4, 300, 100), need(4096, 300, 100)
    assert small.total == LIBRARIES_BYTES + small.weights + small.optimizer + small.activations + small.logits
    assert large.total == LIBRARIES_BYTES + large.weights + large.optimizer + large.sampling > small.total


def test_longer_answers_take_more():
    short, long = (
        estimate(BFLOAT16, sizes=QWEN, **of_estimate(PpoSettings(sampling=Sampling(n)), 200)) for n in (50, 850)
    )
    assert long.activations == pytest.approx(4.2 * short.activations, rel=1e-6)


@pytest.mark.parametrize(
    "stage, option", [("sft", "--pass-tokens"), ("reward", "--pass-tokens"), ("ppo", "--micro-batch or --batch")]
)
def test_too_little_memory_is_told_before_anything_is_loaded(root, tmp_path, monkeypatch, stage, option):
    monkeypatch.setattr("reclm_lite.tune.memory.available_bytes", lambda: 100_000_000)
    code, err = tune(root, stage, tmp_path / "x", *(("--weight", "parse=1") if stage == "ppo" else ()))
    assert code == 1 and "nothing was started" in err and option in err
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("stage", FILES)
def test_a_longest_dialogue_that_memory_has_no_room_for_is_told_before_the_first_step(
    root, tmp_path, monkeypatch, stage
):
    more = {"sft": ["--pass-tokens", "16"], "reward": ["--pass-tokens", "16"], "ppo": ["--weight", "parse=1"]}[stage]
    has = iter([10_000_000_000])
    monkeypatch.setattr(
        "reclm_lite.tune.memory.available_bytes", lambda: next(has, 100_000)
    )  # the base alone finds room
    code, err = tune(root, stage, tmp_path / "x", *more)
    assert code == 1 and "longest dialogue" in err and "--max-length" in err and not (tmp_path / "x").exists()


def test_processes_of_one_machine_share_its_memory(root, monkeypatch):
    settings = BaseSettings(str(root / "base"), device="cpu")
    need = estimate(settings, lora_r=2, pass_tokens=64)
    monkeypatch.setattr("reclm_lite.tune.memory.available_bytes", lambda: 3 * need.total)
    require_memory(settings, need, "less")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(ModelError, match="less"):
        require_memory(settings, need, "less")


def test_what_is_given_already_is_no_remedy(monkeypatch):
    monkeypatch.setattr("reclm_lite.tune.memory.available_bytes", lambda: 0)
    settings = BaseSettings("", device="cpu", qlora=True, gradient_checkpointing=True)
    with pytest.raises(ModelError) as error:
        require_memory(settings, estimate(settings, lora_r=2, pass_tokens=64, sizes=QWEN), "fewer --pass-tokens")
    assert "Give fewer --pass-tokens, or a smaller base." in str(error.value)


def test_dialogues_within_a_pass_are_asked_no_more(root, tmp_path, monkeypatch):
    has = iter([10_000_000_000])
    monkeypatch.setattr("reclm_lite.tune.memory.available_bytes", lambda: next(has, 100_000))
    code, err = tune(root, "sft", tmp_path / "x", "--pass-tokens", "200")
    assert code == 0, err


def test_a_model_from_scratch_that_memory_has_no_room_for_is_not_begun(root, tmp_path):
    args = [
        "tune",
        "sft",
        "--from-scratch",
        "--width",
        "65536",
        "--layers",
        "100",
        "--dialogues",
        root / "sft.jsonl",
        "-o",
        tmp_path / "x",
        *ON_CPU,
    ]
    result = CliRunner().invoke(main, [str(a) for a in args])
    assert (
        result.exit_code == 1
        and "nothing was started" in result.stderr
        and "a smaller model" in result.stderr
        and not list(tmp_path.iterdir())
    )


def test_the_size_of_a_model_from_scratch_is_that_of_the_one_made(root):
    settings = ScratchSettings(vocab=300, layers=2, width=16, ffn=24, heads=2)
    folder = make_base(root / "sized", ["a text or two"], settings)
    assert count_parameters(folder) == settings.n_parameters
    assert sizes_of(folder) == Sizes(settings.n_parameters, 16, 2, 300, 24, 16)
