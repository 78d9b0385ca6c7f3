"""PPO and GRPO on a toy: what they reach, what they change, what stops them, and that a kill changes nothing."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

import tune_toy
from tiny_dialogues import write

from reclm_lite.errors import InputError, ModelError
from reclm_lite.tune import losses, ppo_run
from reclm_lite.tune.adapters import LoraSettings, add_adapter, parameters, save_adapter
from reclm_lite.tune.base import BaseSettings, load_base
from reclm_lite.tune.parallel import Group
from reclm_lite.tune.ppo import POLICY, REFERENCE, Learner
from reclm_lite.tune.ppo_run import train_ppo
from reclm_lite.tune.ppo_settings import GRPO, PPO, PpoSettings
from reclm_lite.tune.rendering import Renderer
from reclm_lite.tune.reward_model import RewardModel
from reclm_lite.tune.rollout import Sampling
from reclm_lite.tune.run import read_metrics
from reclm_lite.tune.signals import Mixture, ModelScore

SIGNALS = {"blue": tune_toy.likes_blue}
QUICK = PpoSettings(
    steps=4,
    batch=8,
    group_size=2,
    lr=5e-3,
    micro_batch=4,
    n_mini_batches=2,
    epochs=2,
    n_eval=8,
    eval_every=2,
    save_every=2,
    sample_every=2,
    n_samples=2,
    sampling=Sampling(max_new_tokens=4),
    kl_ceiling=1e6,
    entropy_floor=0.0,
)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """A base that gives each answer alike, and its dialogues."""
    return tune_toy.make_toy(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    """A random base, an SFT adapter and a reward model on it, and its dialogues."""
    folder = tmp_path_factory.mktemp("adapted")
    path, file = tune_toy.make_toy(folder, n_steps=0)
    base = load(path)
    torch.manual_seed(5)
    add_adapter(base, "sft", LoraSettings(r=2, alpha=4))
    reward = RewardModel.new(base, LoraSettings(r=2, alpha=4))
    for name in ("sft", "reward"):
        for parameter in parameters(base, name).values():
            parameter.data += 0.1 * torch.randn_like(parameter)
    save_adapter(base, "sft", folder / "sft", stage="sft")
    reward.save(folder / "reward")
    return path, file, folder / "sft", folder / "reward"


def load(path, **settings):
    return load_base(BaseSettings(str(path), device="cpu", **settings))


def learner_of(adapted, settings=QUICK, **base_settings):
    path, _, sft, reward = adapted
    base = load(path, **base_settings)
    model = RewardModel.load(base, reward)
    add_adapter(base, REFERENCE, settings.lora, trainable=False, load=sft)
    add_adapter(base, POLICY, settings.lora, copy_of=REFERENCE)
    mixture = Mixture({"model": ModelScore(model), **SIGNALS}, {"model": 1.0, "blue": 1.0})
    mixture.load({"model": (0.0, 1.0), "total": (0.0, 1.0)})
    return Learner(base, Renderer(base.tokenizer, base.form), mixture, settings, Group())


@pytest.mark.parametrize("algorithm", [PPO, GRPO])
def test_the_reward_rises_by_a_standard_deviation_with_kl_below_its_target(toy, tmp_path, algorithm):
    settings = PpoSettings(
        algorithm=algorithm,
        steps=16,
        batch=64 if algorithm == PPO else 16,
        lr=4e-3,
        kl_coef=0.3,
        kl_target=1.5,
        kl_ceiling=5.0,
        micro_batch=64,
        n_eval=128,
        eval_every=4,
        save_every=8,
        entropy_floor=0.0,
        sampling=Sampling(max_new_tokens=6, batch=64),
    )
    report = train_ppo(load(toy[0]), toy[1], tmp_path / "run", settings, signals=SIGNALS)
    assert report["gain_in_sft_std"] >= 1.0 and report["kl"] < settings.kl_target and report["best_step"] > 0
    assert report["after"]["reward/blue"] > report["before"]["reward/blue"] + 0.3
    assert json.loads((tmp_path / "run" / "report.json").read_text()) == report
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()
    assert (tmp_path / "run" / "value_head.safetensors").is_file() == (algorithm == PPO)


def test_metrics_and_samples_say_what_happened(toy, tmp_path):
    train_ppo(load(toy[0]), toy[1], tmp_path, QUICK, signals=SIGNALS)
    steps = [m for m in read_metrics(tmp_path) if "policy_loss" in m]
    assert [m["step"] for m in steps] == [1, 2, 3, 4]
    wanted = (
        "kl approx_kl clipfrac explained_variance entropy reward/total reward/gain reward/blue policy_loss "
        "value_loss lr kl_coef answer_tokens ended tokens_per_s"
    )
    assert set(wanted.split()) <= steps[0].keys() and all(
        isinstance(value, (int, float)) for value in steps[-1].values()
    )
    assert steps[0]["kl"] == pytest.approx(0, abs=1e-5) and steps[-1]["lr"] == pytest.approx(QUICK.lr / 4)
    assert [m["step"] for m in read_metrics(tmp_path) if "eval/kl" in m] == [0, 2, 4]
    samples = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [s["step"] for s in samples] == [2, 2, 4, 4]
    for sample in samples:
        expected = float(tune_toy.likes_blue([], [sample["answer"] if sample["ended"] else ""])[0])
        assert sample["prompt"].startswith("Say:\n") and sample["blue"] == expected
        assert sample["total"] == expected - QUICK.unfinished_penalty * (not sample["ended"])


@pytest.mark.parametrize("lr", [1e4, 1e12])
def test_what_has_diverged_is_not_saved(toy, tmp_path, lr):
    settings = replace(QUICK, lr=lr, epochs=1, n_mini_batches=1, save_every=1, eval_every=4)
    with pytest.raises(ModelError, match="after step 1.*--fresh"):
        train_ppo(load(toy[0]), toy[1], tmp_path, settings, signals=SIGNALS)
    assert [p.name for p in (tmp_path / "checkpoints").glob("step-*")] == ["step-000000"]
    assert "diverged" in json.loads((tmp_path / "run.json").read_text())["state"]


@pytest.mark.parametrize(
    "signal, told", [(lambda dialogues, answers: np.ones(len(answers)), True), (tune_toy.likes_blue, False)]
)
def test_a_reward_that_is_the_same_for_every_answer_is_told(toy, tmp_path, caplog, signal, told):
    settings = replace(QUICK, steps=1, unfinished_penalty=0.0)
    report = train_ppo(load(toy[0]), toy[1], tmp_path, settings, signals={"part": signal})
    assert ("have the same reward" in caplog.text) == told and (report["sft_std"] == 0) == told


def test_four_models_are_one_base_and_only_policy_and_value_head_change(adapted):
    learner = learner_of(adapted)
    model = learner.base.model
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    head = learner.value_head.weight.detach().clone()
    base_weights = {name: p for name, p in model.named_parameters() if "lora_" not in name}
    with torch.random.fork_rng():
        alone = sum(p.numel() for p in load(adapted[0]).model.parameters())
    assert sum(p.numel() for p in base_weights.values()) == alone
    assert len({p.data_ptr() for p in base_weights.values()}) == len(base_weights)
    for number in (1, 2):
        learner.step(number, tune_toy.dialogues()[:8])
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {name for name in before if f".{POLICY}." in name} == set(learner.policy)
    assert not torch.equal(learner.value_head.weight, head)
    assert all(p.grad is None for p in model.parameters())
    assert {name for name, p in model.named_parameters() if p.requires_grad} == changed


def test_the_policy_begins_as_the_sft_policy(adapted):
    learner = learner_of(adapted)
    scored, metrics = learner.step(1, tune_toy.dialogues()[:8])
    assert float(scored.kl.abs().max()) < 1e-5 and metrics["kl"] == pytest.approx(0, abs=1e-5)
    assert set(scored.parts) == {"model", "blue"} and np.abs(scored.parts["model"]).min() > 0


def gradients(learner, scored, micro_batch):
    settings = replace(learner.settings, micro_batch=micro_batch, epochs=1, n_mini_batches=1, max_grad_norm=1e9)
    learner.settings, found = settings, {}
    learning = learner._ppo(scored) if settings.algorithm == PPO else learner._grpo(scored)
    learner.optimizer.step = lambda: found.update({name: p.grad.clone() for name, p in learner.trained.items()})
    learner._learn(1, learning)
    return found


@pytest.mark.parametrize("algorithm", [PPO, GRPO])
def test_micro_batches_add_up_to_one_large_batch(adapted, algorithm):
    learner = learner_of(adapted, replace(QUICK, algorithm=algorithm, value_gradient=0.5))
    scored, _ = learner.step(
        1, tune_toy.dialogues()[:6]
    )  # a step, so that ratios and KL are not those of the beginning
    scored = replace(scored, reward=np.random.default_rng(0).normal(size=len(scored.reward)).astype(np.float32))
    whole, parts = gradients(learner, scored, 64), gradients(learner, scored, 1)
    assert any(float(g.abs().max()) > 1e-3 for g in whole.values())
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], atol=1e-6, rtol=1e-4)


def test_gradient_checkpointing_changes_no_gradient(adapted):
    plain, saving = learner_of(adapted), learner_of(adapted, gradient_checkpointing=True)
    scored = [learner.score(learner.rollouts(tune_toy.dialogues()[:6], POLICY, 1)) for learner in (plain, saving)]
    assert scored[0].rollouts.answers == scored[1].rollouts.answers
    a, b = gradients(plain, scored[0], 4), gradients(saving, scored[1], 4)
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=1e-6, rtol=1e-4)


def test_dropout_of_the_bases_attention_stays_out_of_ppo_with_gradient_checkpointing_too(adapted):
    found = []
    for dropout in (0.0, 0.5):
        learner = learner_of(adapted, gradient_checkpointing=True)
        for layer in learner.base.causal.model.layers:
            layer.self_attn.attention_dropout = dropout
        scored = learner.score(learner.rollouts(tune_toy.dialogues()[:6], POLICY, 1))
        assert float(scored.kl.abs().max()) == 0.0  # the policy is a copy of its reference yet
        found.append((scored.rollouts.answers, gradients(learner, scored, 4)))
    assert found[0][0] == found[1][0]
    for name, gradient in found[0][1].items():
        assert torch.equal(gradient, found[1][1][name]), name


def test_the_value_loss_moves_the_adapter_only_where_it_is_told_to(adapted):
    found = []
    for share in (0.0, 0.5, 1.0):
        learner = learner_of(adapted, replace(QUICK, value_gradient=share))
        torch.nn.init.normal_(learner.value_head.weight, generator=torch.Generator().manual_seed(0))
        found.append(gradients(learner, learner.score(learner.rollouts(tune_toy.dialogues()[:6], POLICY, 1)), 8))
    for name in found[0]:
        if name.startswith("value_head"):
            torch.testing.assert_close(found[0][name], found[2][name])
        else:
            torch.testing.assert_close(
                2 * (found[1][name] - found[0][name]), found[2][name] - found[0][name], atol=1e-5, rtol=1e-3
            )
    name = next(name for name in found[0] if "lora_B" in name)
    assert not torch.allclose(found[0][name], found[2][name])


class Killed(Exception):
    pass


def killer(at):
    """A signal that ends the run at its n-th call."""
    n_calls = 0

    def signal(dialogues, answers):
        nonlocal n_calls
        n_calls += 1
        if n_calls == at:
            raise Killed
        return tune_toy.likes_blue(dialogues, answers)

    return {"blue": signal}


@pytest.mark.parametrize("algorithm", [PPO, GRPO])
def test_a_run_that_was_killed_ends_with_the_bits_of_one_that_was_not(adapted, tmp_path, algorithm):
    path, file, sft, _ = adapted
    settings = replace(QUICK, algorithm=algorithm, steps=5)

    def run(folder, signals):
        return train_ppo(load(path), file, folder, settings, signals=signals, sft=sft)

    whole = run(tmp_path / "whole", SIGNALS)
    # Calls: 1 and 2 measure the beginning, 3 and 4 are steps 1 and 2, 5 evaluates, 6 and 7 are steps 3 and 4, 8
    # evaluates, …
    for at in (1, 3, 7):  # one after another in the same folder: before anything is saved, in step 1, in step 4
        with pytest.raises(Killed):
            run(tmp_path / "killed", killer(at if at < 7 else 4))
    again = run(tmp_path / "killed", SIGNALS)
    assert again == whole
    for name in (
        "adapter/adapter_model.safetensors",
        "samples.jsonl",
        *(["value_head.safetensors"] if algorithm == PPO else []),
    ):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    a, b = (
        [
            {name: value for name, value in line.items() if name != "tokens_per_s"}
            for line in read_metrics(tmp_path / folder)
        ]
        for folder in ("whole", "killed")
    )
    assert a == b


def test_a_run_that_is_done_does_nothing(toy, tmp_path):
    settings = replace(QUICK, steps=1, eval_every=1)
    first = train_ppo(load(toy[0]), toy[1], tmp_path, settings, signals=SIGNALS)
    assert train_ppo(load(toy[0]), toy[1], tmp_path, settings, signals=killer(1)) == {**first, "already_done": True}


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_batch(toy, tmp_path, monkeypatch):
    n_calls, real = 0, losses.clipped_policy_loss

    def poisoned(*args):
        nonlocal n_calls
        n_calls += 1
        return real(*args) * (float("nan") if n_calls == 10 else 1.0)  # 4 micro-batches a step: the second of step 3

    monkeypatch.setattr(losses, "clipped_policy_loss", poisoned)
    with pytest.raises(
        ModelError,
        match=r"step 3, pass 1, mini-batch 2; stopped. The batch: user:\d+.*saved before is sound.*smaller learning "
        r"rate",
    ):
        train_ppo(
            load(toy[0]), toy[1], tmp_path, replace(QUICK, epochs=1, n_mini_batches=4, micro_batch=2), signals=SIGNALS
        )
    assert json.loads((tmp_path / "run.json").read_text())["state"].startswith("stopped: ")
    assert sorted(p.name for p in (tmp_path / "checkpoints").glob("step-*"))[-1] == "step-000002"


def test_a_best_checkpoint_that_was_removed_does_not_stop_the_run(toy, tmp_path):
    settings = replace(QUICK, steps=6, kl_target=1e5)
    report = train_ppo(load(toy[0]), toy[1], tmp_path, settings, signals=SIGNALS)
    assert report["best_step"] > 0
    about = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps({**about, "state": "running"}))
    shutil.rmtree(tmp_path / "checkpoints" / f"step-{report['best_step']:06d}")
    again = train_ppo(load(toy[0]), toy[1], tmp_path, settings, signals=SIGNALS)
    assert again["n_steps"] == 6 and (tmp_path / "checkpoints" / f"step-{again['best_step']:06d}").is_dir()


def test_a_reward_model_is_no_policy_and_leaves_no_run_behind(adapted, tmp_path):
    path, file, _, reward = adapted
    with pytest.raises(InputError, match="found a reward model"):
        train_ppo(load(path), file, tmp_path / "run", QUICK, signals=SIGNALS, sft=reward)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "limits, says", [({"kl_ceiling": 1e-3, "kl_target": 1e-4}, "kl above"), ({"entropy_floor": 5.0}, "entropy below")]
)
def test_a_collapse_stops_the_run_and_keeps_the_best_step(toy, tmp_path, limits, says):
    report = train_ppo(load(toy[0]), toy[1], tmp_path, replace(QUICK, patience=2, steps=9, **limits), signals=SIGNALS)
    assert report["n_steps"] < 9 and report["stopped"].startswith(says)
    if says.startswith("kl"):  # every step was beyond the target: the SFT policy is what is kept
        assert report["best_step"] == 0 and report["kl"] == 0.0 and report["gain_in_sft_std"] == 0.0


def test_every_prompt_is_seen_once_before_one_is_seen_again(toy):
    class Fixed:
        settings = replace(QUICK, batch=4)

    run = ppo_run._Ppo.__new__(ppo_run._Ppo)
    run.learner, run.training = Fixed, list("abcdef")
    seen = [d for step in range(1, 4) for d in run._prompts(step)]
    assert sorted(seen[:6]) == sorted(seen[6:]) == list("abcdef")


@pytest.mark.parametrize(
    "change, says",
    [
        ({"algorithm": "dpo"}, "ppo or grpo, found 'dpo'"),
        ({"algorithm": GRPO, "group_size": 1}, "group_size of at least 2, found 1"),
        ({"steps": 0}, "steps of at least 1"),
        ({"kl_target": 0.0}, "kl_target above 0"),
        ({"kl_ceiling": 1.0}, "KL ceiling above the target of 6"),
        ({"gamma": 1.5}, "gamma and gae_lambda from 0 to 1"),
        ({"sampling": Sampling(top_p=0.0)}, "top_p above 0"),
        ({"weights": {"model": 1.0}}, r"\(blue\), found model; give a reward model"),
        ({"max_prompt": 3}, r"'train' with prompts of at most 3 tokens in .*found 0 \(40 are longer\)"),
    ],
)
def test_settings_that_cannot_be_are_refused(toy, tmp_path, change, says):
    with pytest.raises(InputError, match=says):
        train_ppo(load(toy[0]), toy[1], tmp_path / "run", replace(QUICK, **change), signals=SIGNALS)


def test_dialogues_of_another_form_or_none_held_out_are_refused(toy, tmp_path):
    some = tune_toy.dialogues(8)
    for dialogues, says in (
        ([replace(d, form="instruct") for d in some], "form 'compact', since the base has no chat template"),
        ([replace(d, part="train") for d in some], "at least 2 dialogues of part 'held_out'"),
    ):
        with pytest.raises(InputError, match=says):
            train_ppo(load(toy[0]), write(tmp_path / "rl.jsonl", dialogues), tmp_path / "run", QUICK, signals=SIGNALS)
