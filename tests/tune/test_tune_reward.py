"""The reward model: what it learns of every kind of corruption, and that its head comes back as it was."""

from dataclasses import replace
from pathlib import Path

import pytest
from tiny_dialogues import preferences, sft_dialogues, tiny_base, write

from reclm_lite.dialogue.preferences import SHARES
from reclm_lite.errors import InputError

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from reclm_lite.tune.adapters import LoraSettings, parameters
from reclm_lite.tune.base import BaseSettings, load_base
from reclm_lite.tune.batches import Weights
from reclm_lite.tune.loop import LoopSettings
from reclm_lite.tune.optim import OptimizerSettings
from reclm_lite.tune.reward import RewardSettings, train_reward
from reclm_lite.tune.reward_model import RewardModel
from reclm_lite.tune.run import read_metrics
from reclm_lite.tune.sft import SftSettings, train_sft

QUICK = RewardSettings(
    max_steps=6,
    batch=8,
    lora=LoraSettings(r=2, alpha=4),
    loop=LoopSettings(save_every=2, eval_every=3),
    optimizer=OptimizerSettings(lr=1e-2),
)


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model that has learned to write profiles a little: a random one has little to score by."""
    root = tmp_path_factory.mktemp("base")
    torch.set_num_threads(1)
    base = load_base(BaseSettings(str(tiny_base(root / "start")), full=True))
    settings = SftSettings(
        max_steps=250,
        epochs=20,
        batch=32,
        full=True,
        weights=Weights(label=10),
        optimizer=OptimizerSettings(lr=5e-3, optimizer="muon"),
    )
    train_sft(base, write(root / "sft.jsonl", sft_dialogues(600)), root / "run", settings)
    return root / "run" / "model"


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("pairs") / "preference.jsonl", preferences(800))


def open_base(folder: Path):
    return load_base(BaseSettings(str(folder)))


def test_it_tells_good_profiles_from_every_kind_of_corruption(tmp_path, folder, pairs):
    facts = train_reward(
        open_base(folder),
        pairs,
        tmp_path / "run",
        replace(QUICK, lora=LoraSettings(r=8), epochs=6, max_steps=None, batch=16, loop=LoopSettings(50, 30)),
    )
    assert facts["eval/accuracy"] >= 0.9
    assert {name for name in facts if name.startswith("eval/accuracy/")} == {f"eval/accuracy/{kind}" for kind in SHARES}
    assert facts["eval/least_accuracy"] >= 0.75
    assert read_metrics(tmp_path / "run")[0]["eval/accuracy"] < 0.9  # untrained


def test_pairs_are_read_before_a_run_is_made(tmp_path, folder):
    wrong = write(tmp_path / "sft.jsonl", sft_dialogues(20))
    with pytest.raises(InputError):
        train_reward(open_base(folder), wrong, tmp_path / "run", QUICK)
    assert not (tmp_path / "run").exists()


def test_a_reward_model_is_no_beginning_for_sft(tmp_path, folder, pairs):
    train_reward(open_base(folder), pairs, tmp_path / "run", QUICK)
    with pytest.raises(InputError, match="reward model"):
        train_sft(
            open_base(folder),
            write(tmp_path / "sft.jsonl", sft_dialogues(40)),
            tmp_path / "sft",
            SftSettings(),
            init_from=tmp_path / "run" / "adapter",
        )


def test_a_reward_model_comes_back_with_the_same_scores(tmp_path, folder, pairs):
    trained = open_base(folder)
    train_reward(trained, pairs, tmp_path / "run", QUICK)
    dialogues = preferences(12)
    prompts = [d.messages for d in dialogues for _ in range(2)]
    answers = [text for d in dialogues for text in (d.chosen, d.rejected)]
    loaded = RewardModel.load(open_base(folder), tmp_path / "run" / "adapter")
    scores = loaded.scores(prompts, answers)
    assert len(set(scores)) > 12
    one_by_one = [loaded.scores([p], [a])[0] for p, a in zip(prompts, answers, strict=True)]
    assert one_by_one == pytest.approx(scores, abs=1e-5)  # whatever they were padded with
    assert not any(p.requires_grad for p in loaded.parameters.values())
    assert any(float(p.abs().sum()) > 0 for n, p in parameters(trained, "reward").items() if "lora_B" in n)


def test_padding_on_the_left_scores_as_padding_on_the_right(folder):
    torch.manual_seed(0)
    model = RewardModel.new(open_base(folder), LoraSettings(r=2))
    model.base.model.eval()
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 2, 2]])
    right = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    left_ids = torch.tensor([[5, 6, 7, 8], [2, 2, 9, 10]])
    with torch.no_grad():
        torch.testing.assert_close(model.score(ids, right), model.score(left_ids, right.flip(1)), atol=1e-5, rtol=1e-5)


def test_the_base_stays_as_it_was(tmp_path, folder, pairs):
    base = open_base(folder)
    before = {n: p.detach().clone() for n, p in base.causal.named_parameters()}
    train_reward(base, pairs, tmp_path / "run", QUICK)
    same = [
        torch.equal(p, before[n.replace(".base_layer", "")])
        for n, p in base.causal.named_parameters()
        if n.replace(".base_layer", "") in before
    ]
    assert len(same) == len(before) and all(same)


def test_a_run_stopped_in_the_middle_ends_with_the_same_bits(tmp_path, folder, pairs):
    train_reward(open_base(folder), pairs, tmp_path / "whole", QUICK)

    class Stopped(Exception):
        pass

    def stop(done: int, *_: object) -> None:
        if done == 5:
            raise Stopped

    with pytest.raises(Stopped):
        train_reward(open_base(folder), pairs, tmp_path / "again", QUICK, progress=stop)
    train_reward(open_base(folder), pairs, tmp_path / "again", QUICK)
    for name in ("adapter_model.safetensors", "head.safetensors"):
        assert (tmp_path / "again" / "adapter" / name).read_bytes() == (
            tmp_path / "whole" / "adapter" / name
        ).read_bytes()


def test_it_may_begin_with_the_adapter_of_sft(tmp_path, folder, pairs):
    sft = SftSettings(max_steps=2, batch=8, lora=LoraSettings(r=3), optimizer=OptimizerSettings(lr=1e-2))
    train_sft(open_base(folder), write(tmp_path / "sft.jsonl", sft_dialogues(50)), tmp_path / "sft", sft)
    base = open_base(folder)
    train_reward(base, pairs, tmp_path / "run", QUICK, init_from=tmp_path / "sft" / "adapter")
    assert base.model.peft_config["reward"].r == 3
    RewardModel.load(open_base(folder), tmp_path / "run" / "adapter")


def test_what_is_no_reward_model_of_this_base_is_refused(tmp_path, folder, pairs):
    train_reward(open_base(folder), pairs, tmp_path / "run", QUICK)
    adapter = tmp_path / "run" / "adapter"
    with pytest.raises(InputError, match="another base"):
        RewardModel.load(open_base(tiny_base(tmp_path / "other", seed=3)), adapter)
    (adapter / "head.safetensors").rename(adapter / "scores.safetensors")
    with pytest.raises(InputError, match="expected a reward model"):
        RewardModel.load(open_base(folder), adapter)


def test_pairs_of_another_kind_are_told(tmp_path, folder):
    with pytest.raises(InputError, match="of kind 'preference'"):
        train_reward(open_base(folder), write(tmp_path / "sft.jsonl", sft_dialogues(5)), tmp_path / "run", QUICK)
