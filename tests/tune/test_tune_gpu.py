"""Tuning on a GPU: what the CPU's tests cannot see. `make test-gpu`, where there is one; nothing else of the suite uses
it."""

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")
if not torch.cuda.is_available():
    pytest.skip("no GPU that torch can use (or not `make test-gpu`)", allow_module_level=True)

import tune_toy
from tiny_dialogues import preferences, sft_dialogues, tiny_base, write

from reclm_lite.errors import InputError, ModelError
from reclm_lite.tune import memory
from reclm_lite.tune.adapters import LoraSettings, add_adapter, parameters, use
from reclm_lite.tune.base import BaseSettings, load_base
from reclm_lite.tune.batches import render
from reclm_lite.tune.loop import LoopSettings
from reclm_lite.tune.optim import OptimizerSettings
from reclm_lite.tune.parallel import Group
from reclm_lite.tune.ppo_run import train_ppo
from reclm_lite.tune.ppo_settings import GRPO, PPO, PpoSettings
from reclm_lite.tune.rendering import Renderer
from reclm_lite.tune.reward import RewardSettings, train_reward
from reclm_lite.tune.reward_model import RewardModel
from reclm_lite.tune.rollout import Sampling
from reclm_lite.tune.run import read_metrics
from reclm_lite.tune.sft import SftSettings, SftTask, train_sft
from reclm_lite.tune.signals import ModelScore

SFT = SftSettings(
    max_steps=60,
    epochs=20,
    batch=32,
    lora=LoraSettings(r=8, dropout=0.0),
    loop=LoopSettings(20, 20),
    optimizer=OptimizerSettings(lr=3e-3),
)
BEGUN = 15  # steps, after which there is much left to learn
REWARD = RewardSettings(
    max_steps=60,
    epochs=20,
    batch=16,
    lora=LoraSettings(r=8),
    loop=LoopSettings(20, 20),
    optimizer=OptimizerSettings(lr=1e-2),
)


@pytest.fixture(scope="module")
def dialogues(tmp_path_factory):
    return write(tmp_path_factory.mktemp("dialogues") / "sft.jsonl", sft_dialogues(400))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, dialogues):
    """A base that has begun to write profiles, whole and on the CPU: on random weights an adapter learns next to
    nothing."""
    root = tmp_path_factory.mktemp("base")
    base = load_base(BaseSettings(str(tiny_base(root / "start", layers=2, width=128)), device="cpu", full=True))
    train_sft(
        base,
        dialogues,
        root / "run",
        replace(SFT, max_steps=BEGUN, full=True, optimizer=OptimizerSettings(lr=5e-3, optimizer="muon")),
    )
    return root / "run" / "model"


@pytest.fixture(scope="module")
def written(tmp_path_factory, folder, dialogues):
    """An SFT run on the GPU with everything as it is by default there, and its facts."""
    out = tmp_path_factory.mktemp("sft") / "run"
    return out, train_sft(load_base(BaseSettings(str(folder))), dialogues, out, SFT)


def gradients(folder, device, *, packing, dtype="float32", **settings):
    """Of the first step with an adapter of fixed weights, on the CPU; without dropout."""
    base = load_base(BaseSettings(str(folder), device=device, dtype=dtype, **settings))
    add_adapter(base, "sft", LoraSettings(r=2, dropout=0.0))
    generator = torch.Generator().manual_seed(3)
    for parameter in parameters(base, "sft").values():
        parameter.data = (0.05 * torch.randn(parameter.shape, generator=generator)).to(parameter)
    examples, _ = render(sft_dialogues(12), Renderer(base.tokenizer, base.form), 256)
    task = SftTask(base, "sft", examples, [], replace(SFT, packing=packing, batch=12), Group())
    loss = task.backward(0).loss
    return loss, {name: p.grad.detach().float().cpu() for name, p in task.parameters.items()}


def distance(found, wanted):
    """Of two sets of gradients, as a share of the second."""
    names = sorted(wanted)
    a, b = (torch.cat([g[n].flatten() for n in names]) for g in (found, wanted))
    return float((a - b).norm() / b.norm())


def test_gradients_are_those_of_the_cpu(folder):
    loss, wanted = gradients(folder, "cpu", packing=False)
    for packing in (False, True):
        found_loss, found = gradients(folder, "cuda", packing=packing)
        assert found_loss == pytest.approx(loss, rel=1e-4) and distance(found, wanted) < 1e-3
    for options in ({"packing": False}, {"packing": True}, {"packing": True, "gradient_checkpointing": True}):
        found_loss, found = gradients(folder, "cuda", dtype="bfloat16", **options)
        assert found_loss == pytest.approx(loss, rel=0.02) and 1e-5 < distance(found, wanted) < 0.05


def test_sft_learns_in_bfloat16_and_its_adapter_serves_a_cpu(folder, written):
    out, facts = written
    measured = [m["eval/loss"] for m in read_metrics(out) if "eval/loss" in m]
    assert measured[-1] < 0.7 * measured[0] and facts["n_steps"] == 60
    logits = {}
    for device, dtype in (("cuda", "bfloat16"), ("cpu", "float32")):
        base = load_base(BaseSettings(str(folder), device=device, dtype=dtype))
        assert base.dtype == getattr(torch, dtype) and base.device.type == device
        add_adapter(base, "sft", LoraSettings(), load=out / "adapter")
        with use(base, "sft"), torch.no_grad():
            logits[device] = base.logits(base.hidden(torch.arange(8, 40, device=base.device)[None])).cpu()
    assert distance({"": logits["cuda"]}, {"": logits["cpu"]}) < 0.03


def test_full_training_keeps_float32_weights_under_bfloat16(folder, dialogues, tmp_path):
    base = load_base(BaseSettings(str(folder), full=True))
    assert base.autocast and {p.dtype for p in base.model.parameters()} == {torch.float32}
    settings = replace(SFT, full=True, optimizer=OptimizerSettings(lr=5e-3, optimizer="muon"))
    facts = train_sft(base, dialogues, tmp_path / "run", settings)
    assert facts["eval/loss"] < 0.7 * read_metrics(tmp_path / "run")[0]["eval/loss"]


def test_a_run_goes_on_where_it_was_stopped(folder, dialogues, written, tmp_path):
    class Stopped(Exception):
        pass

    def stop(done, *_):
        if done == 30:
            raise Stopped

    with pytest.raises(Stopped):
        train_sft(load_base(BaseSettings(str(folder))), dialogues, tmp_path / "run", SFT, progress=stop)
    facts = train_sft(load_base(BaseSettings(str(folder))), dialogues, tmp_path / "run", SFT)
    assert facts["eval/loss"] == pytest.approx(written[1]["eval/loss"], rel=0.1)  # sums on a GPU have no fixed order
    assert [m["step"] for m in read_metrics(tmp_path / "run") if "loss" in m] == list(range(1, 61))


def test_qlora_learns_on_a_gpu(folder, dialogues, tmp_path):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    base = load_base(BaseSettings(str(folder), qlora=True, gradient_checkpointing=True))
    assert isinstance(base.causal.model.layers[0].mlp.up_proj, bitsandbytes.nn.Linear4bit)
    facts = train_sft(base, dialogues, tmp_path / "run", SFT)
    assert facts["eval/loss"] < 0.7 * read_metrics(tmp_path / "run")[0]["eval/loss"]
    assert {p.dtype for p in parameters(base, "sft").values()} == {torch.float32}


def test_the_reward_model_learns_and_scores_as_on_a_cpu(folder, written, tmp_path):
    found = preferences(400)
    pairs = write(tmp_path / "preference.jsonl", found)
    facts = train_reward(
        load_base(BaseSettings(str(folder))), pairs, tmp_path / "run", REWARD, init_from=written[0] / "adapter"
    )
    assert facts["eval/accuracy"] > 0.75
    scores = {}
    for device in ("cuda", "cpu"):
        model = RewardModel.load(
            load_base(BaseSettings(str(folder), device=device, dtype="float32")), tmp_path / "run" / "adapter"
        )
        scores[device] = np.array(model.scores([d.messages for d in found[:32]], [d.chosen for d in found[:32]]))
    np.testing.assert_allclose(scores["cuda"], scores["cpu"], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("algorithm", [PPO, GRPO])
def test_the_reward_rises_by_a_standard_deviation(tmp_path, algorithm):
    toy, file = tune_toy.make_toy(tmp_path)
    settings = PpoSettings(
        algorithm=algorithm,
        steps=16,
        batch=64 if algorithm == PPO else 16,
        lr=4e-3,
        kl_coef=0.3,
        kl_target=2.0,
        kl_ceiling=8.0,
        micro_batch=64,
        n_eval=128,
        eval_every=2,
        save_every=8,
        entropy_floor=0.0,
        sampling=Sampling(max_new_tokens=6, batch=64),
    )
    base = load_base(BaseSettings(str(toy), device="cuda", dtype="float32"))
    report = train_ppo(base, file, tmp_path / "run", settings, signals={"blue": tune_toy.likes_blue})
    assert report["gain_in_sft_std"] >= 1.0 and report["kl"] < 1.25 * settings.kl_target


def test_ppo_with_all_its_adapters_in_bfloat16(folder, written, tmp_path):
    out = written[0]
    train_reward(
        load_base(BaseSettings(str(folder))),
        write(tmp_path / "p.jsonl", preferences(100)),
        tmp_path / "reward",
        replace(REWARD, max_steps=10),
    )
    base = load_base(BaseSettings(str(folder)))
    model = RewardModel.load(base, tmp_path / "reward" / "adapter")
    rl = write(tmp_path / "rl.jsonl", tune_toy.dialogues())
    settings = PpoSettings(
        steps=3,
        batch=16,
        micro_batch=8,
        n_eval=8,
        eval_every=2,
        save_every=2,
        kl_ceiling=1e6,
        entropy_floor=0.0,
        sampling=Sampling(max_new_tokens=8),
    )
    report = train_ppo(base, rl, tmp_path / "run", settings, signals={"model": ModelScore(model)}, sft=out / "adapter")
    steps = [m for m in read_metrics(tmp_path / "run") if "policy_loss" in m]
    assert len(steps) == 3 and report["n_steps"] == 3
    # In bfloat16 a pass of other rows rounds otherwise: the same policy is about, not exactly, itself.
    assert abs(steps[0]["kl"]) < 1e-6 and abs(steps[0]["approx_kl"]) < 0.05
    n_base = sum(p.numel() for n, p in base.model.named_parameters() if "lora_" not in n)
    assert n_base == sum(p.numel() for p in load_base(BaseSettings(str(folder))).model.parameters())


def test_memory_is_the_gpus(folder):
    free = torch.cuda.mem_get_info()[0]
    settings = BaseSettings(str(folder))
    assert "tuning" in memory.require_memory(
        settings, memory.estimate(settings, lora_r=8, pass_tokens=2048), "fewer --pass-tokens"
    )
    with pytest.raises(ModelError, match="pass-tokens"):
        memory.require_memory(settings, memory.Need(free, free, 0, 0), "fewer --pass-tokens")


def test_a_gpu_that_is_not_there_is_told(folder):
    with pytest.raises(InputError, match=r"cuda:99.*found \d+ of them"):
        load_base(BaseSettings(str(folder), device="cuda:99"))
