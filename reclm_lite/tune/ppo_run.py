"""A run of PPO or GRPO from dialogues to an adapter: evaluation, checkpoints, what stops it, and the report.

Held-out dialogues are cut in two. One half chooses: every `eval_every` steps the policy answers them, and the best step
is the one of the highest mean reward among those whose KL is within the target; step 0, the SFT policy itself, is one
of them.
The other half reports: SFT policy and best policy answer it once, at the end, so that the gain told is not the one that
was chosen for. The first half's answers of the SFT policy also set the unit of the reward.

    metrics.jsonl     kl, approx_kl, clipfrac, explained_variance, entropy, reward/…, losses, lr, kl_coef,
                      tokens_per_s; eval/…
    samples.jsonl     prompt, answer, its reward by part, every `sample_every` steps
    checkpoints/      adapter, value head, optimizer, coefficient of KL, unit of the reward
    adapter/          the best policy (peft's format); value_head.safetensors beside it for PPO
    report.json       before and after, in standard deviations of the SFT policy's reward
"""

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..dialogue.records import Dialogue
from ..errors import InputError, ModelError
from ..files import file_sha256, open_to_append
from .adapters import WEIGHTS, add_adapter, check_base, save_adapter
from .base import Base
from .batches import spread
from .loop import Progress, diverged
from .memory import require_longest
from .optim import named_optimizer_state, restore_optimizer_state
from .parallel import Group
from .ppo import POLICY, REFERENCE, Learner, Scored
from .ppo_prompts import Prompts, read_prompts
from .ppo_settings import PPO, PpoSettings
from .rendering import Renderer
from .rollout import CHUNK_LOGITS
from .run import Run
from .signals import Mixture, Signal

log = logging.getLogger(__name__)
STAGE = "ppo"
_CHOOSING, _REPORTING = -1, -2  # numbers of "steps" that draw the answers of evaluations: every time the same draws


def train_ppo(
    base: Base,
    dialogues: Path,
    out: Path,
    settings: PpoSettings = PpoSettings(),
    *,
    signals: Mapping[str, Signal],
    sft: Path | None = None,
    about: Mapping[str, Any] | None = None,
    reads: Sequence[Path] = (),
    group: Group | None = None,
    fresh: bool = False,
    progress: Progress = lambda *_: None,
) -> dict[str, Any]:
    """Tune the SFT policy towards `signals`, mixed by `settings.weights`; writes `out/adapter` and returns the report.

    sft: the adapter of SFT; None where SFT trained all weights of `base`. about: what else decides the result,
    JSON-able, such as the reward model's hash; reads: its files. The same call again goes on where a kill left it, or,
    when all is done, does nothing. Raises InputError on unusable dialogues, folders or settings; ModelError where a
    loss is not finite.
    """
    settings.check()
    group = group or Group()
    if sft is not None:  # before there is a run that the right one could not go on with
        check_base(sft, base, writes=True)
    renderer = Renderer(base.tokenizer, base.form)
    weights = settings.weights or dict.fromkeys(sorted(signals), 1.0)
    mixture = Mixture(signals, weights, settings.unfinished_penalty, tuple(settings.normalize))
    prompts = read_prompts(dialogues, renderer, settings, base)
    if min(len(prompts.training), settings.batch, settings.n_eval) < group.world:
        raise InputError(
            f"expected at least a prompt for each of {group.world} processes, found {len(prompts.training)} and a "
            f"batch of {settings.batch}"
        )
    require_longest(
        base,
        prompts.longest,
        "a smaller --max-length, --micro-batch or --batch",
        **of_estimate(settings, prompts.longest),
    )
    facts = {
        "base": base.name,
        "base_fingerprint": base.fingerprint,
        "dtype": base.dtype_name,
        "dialogues_sha256": file_sha256(dialogues),
        "n_processes": group.world,
        "sft_sha256": file_sha256(sft / WEIGHTS) if sft else "",
        **asdict(settings),
        "weights": weights,
        **(about or {}),
    }
    inputs = [path for path in (base.path, dialogues, sft, *reads) if path is not None]
    with Run.open(out, STAGE, facts, group=group, fresh=fresh, inputs=inputs) as run:
        if run.is_done:
            return {**run.about["facts"], "already_done": True}
        torch.manual_seed(settings.seed)
        if sft is not None:
            add_adapter(base, REFERENCE, settings.lora, trainable=False, load=sft)
        add_adapter(base, POLICY, settings.lora, copy_of=REFERENCE if sft is not None else None)
        learner = Learner(base, renderer, mixture, settings, group)
        try:
            report = _Ppo(run, learner, prompts, progress).train()
        except ModelError as error:
            run.finish(f"stopped: {error}")
            raise
        report = {
            "algorithm": settings.algorithm,
            "weights": weights,
            "n_prompts": len(prompts.training),
            "n_left_out_long": prompts.n_left_out,
            **report,
        }
        _write(learner, run, report, file_sha256(dialogues))
        run.finish(facts=report)
        group.barrier()
        return report


def of_estimate(settings: PpoSettings, longest: int) -> dict[str, Any]:
    """What `memory.estimate` is to be given for prompts of `longest` tokens: three adapters, answers in micro-batches,
    logits in chunks."""
    n_tokens = longest + settings.sampling.max_new_tokens
    at_a_time = min(settings.sampling.batch, settings.batch * settings.n_answers)
    return {
        "lora_r": settings.lora.r,
        "n_adapters": 3,
        "pass_tokens": settings.micro_batch * n_tokens,
        "logits": CHUNK_LOGITS,
        "sampled": (at_a_time, n_tokens),
    }


class _Ppo:
    """The state of a run beyond the learner's: the best step, how often in a row a limit was passed, why it stopped."""

    def __init__(self, run: Run, learner: Learner, prompts: Prompts, progress: Progress):
        self.run, self.learner, self.training, self.progress = run, learner, prompts.training, progress
        n = learner.settings.n_eval
        halves = (spread(prompts.held_out[0::2], n), spread(prompts.held_out[1::2], n))
        self.choosing, self.reporting = ([half[i % len(half)] for i in range(n)] for half in halves)
        self.best: dict[str, float] = {"gain": 0.0, "kl": 0.0, "step": 0}
        self.entropy, self.over, self.stopped = 0.0, {"kl": 0, "entropy": 0}, ""

    def train(self) -> dict[str, Any]:
        """From the newest checkpoint to the end; leaves the best policy in the adapter, and returns what the report
        holds."""
        settings, learner, run = self.learner.settings, self.learner, self.run
        done = self._resume()
        while done < settings.steps and not self.stopped:
            done += 1
            start = time.monotonic()
            scored, metrics = learner.step(done, learner.group.share(self._prompts(done)))
            n_tokens = metrics["answer_tokens"] * settings.batch * settings.n_answers
            run.log(done, **metrics, tokens_per_s=n_tokens / (time.monotonic() - start))
            self.progress(done, settings.steps, f"reward {metrics['reward/gain']:+.2f} sd, KL {metrics['kl']:.2f}")
            if done % settings.sample_every == 0:
                self._write_samples(done, scored)
            self._watch(metrics)
            is_last, is_best = bool(self.stopped) or done == settings.steps, False
            if (is_last or done % settings.eval_every == 0 or done % settings.save_every == 0) and not learner.is_sound(
                scored.rollouts
            ):
                raise diverged(run, done)
            if done % settings.eval_every == 0 or is_last:
                is_best = self._evaluate(done)
            if done % settings.save_every == 0 or is_last or is_best:
                self._save(done, is_best)
        return self._report(done)

    def _prompts(self, step: int) -> list[Dialogue]:
        """The batch of a step, over all processes: the next of endless permutations of the training dialogues."""
        n, batch = len(self.training), self.learner.settings.batch
        orders: dict[int, np.ndarray] = {}
        chosen = []
        for place in range((step - 1) * batch, step * batch):
            epoch = place // n
            if epoch not in orders:
                orders[epoch] = np.random.default_rng((self.learner.settings.seed, epoch)).permutation(n)
            chosen.append(self.training[orders[epoch][place % n]])
        return chosen

    def _watch(self, metrics: Mapping[str, float]) -> None:
        """Whether KL or entropy has been past its limit for long enough."""
        settings = self.learner.settings
        limits = {
            "kl": metrics["kl"] > settings.kl_ceiling,
            "entropy": metrics["entropy"] < settings.entropy_floor * self.entropy,
        }
        for name, is_over in limits.items():
            self.over[name] = self.over[name] + 1 if is_over else 0
            if self.over[name] >= settings.patience:
                bound = settings.kl_ceiling if name == "kl" else settings.entropy_floor * self.entropy
                self.stopped = (
                    f"{name} {'above' if name == 'kl' else 'below'} {bound:.3g} for {settings.patience} "
                    f"steps, at {metrics[name]:.3g}"
                )

    # -- evaluation

    def _measure(
        self, dialogues: Sequence[Dialogue], adapter: str | None, number: int
    ) -> tuple[Scored, dict[str, float]]:
        learner = self.learner
        scored = learner.score(learner.rollouts(learner.group.share(dialogues), adapter, number), adapter)
        return scored, learner.summary(scored)

    def _evaluate(self, done: int) -> bool:
        """Log how the policy does on the choosing half; whether it is the best so far."""
        _, figures = self._measure(self.choosing, POLICY, _CHOOSING)
        self.run.log(done, **{f"eval/{name}": value for name, value in figures.items()})
        is_best = figures["kl"] <= self.learner.settings.kl_target and figures["reward/gain"] > self.best["gain"]
        if is_best:
            self.best = {"gain": figures["reward/gain"], "kl": figures["kl"], "step": done}
        return is_best

    def _fit_unit(self) -> None:
        """The SFT policy's answers set what a reward of 1 is, and the entropy that a collapse is measured from."""
        learner, mixture = self.learner, self.learner.mixture
        rollouts = learner.rollouts(learner.group.share(self.choosing), POLICY, _CHOOSING)
        raw = mixture.parts(rollouts.dialogues, rollouts.judged)
        rows = learner.group.gather(
            [(bool(ended), *(float(raw[name][i]) for name in sorted(raw))) for i, ended in enumerate(rollouts.ended)]
        )
        columns = dict(zip(sorted(raw), (np.array(c, dtype=np.float32) for c in list(zip(*rows))[1:]), strict=True))
        if not mixture.fit(columns, np.array([row[0] for row in rows], dtype=bool)) and learner.group.is_main:
            log.warning(
                "all %d answers of the SFT policy to held-out prompts have the same reward: nothing is learned where "
                "no answer is better than another; "
                "give other parts of the reward, a higher temperature, or more answers to measure with",
                len(rows),
            )
        figures = learner.summary(learner.score(rollouts))
        self.entropy = figures["entropy"]
        self.run.log(0, **{f"eval/{name}": value for name, value in figures.items()})

    def _report(self, done: int) -> dict[str, Any]:
        """Put the best policy in place and compare it with the SFT policy on the half that chose nothing."""
        best = self.run.best()
        assert best is not None, "step 0 is saved as the best one"
        self._load(best.tensors)
        before, figures_before = self._measure(self.reporting, self.learner.reference, _REPORTING)
        _, figures_after = self._measure(self.reporting, POLICY, _REPORTING)
        totals = np.array(self.learner.group.gather(before.total.tolist()))
        std = float(totals.std())
        gain = figures_after["reward/total"] - figures_before["reward/total"]
        return {
            "n_steps": done,
            "stopped": self.stopped,
            "best_step": self.best["step"],
            "gain_in_sft_std": gain / std if std > 0 else None,
            "sft_std": std,
            "kl": figures_after["kl"],
            "kl_target": self.learner.settings.kl_target,
            "n_report": len(self.reporting),
            "before": figures_before,
            "after": figures_after,
            "chosen_by": self.best,
        }

    def _write_samples(self, done: int, scored: Scored) -> None:
        if not self.learner.group.is_main:
            return
        rollouts, kl = scored.rollouts, scored.kl.sum(1).tolist()
        with open_to_append(self.run.folder / "samples.jsonl") as file:
            for i in range(min(self.learner.settings.n_samples, len(rollouts))):
                line = {
                    "step": done,
                    "id": rollouts.dialogues[i].id,
                    "prompt": rollouts.dialogues[i].messages[-1].text,
                    "answer": rollouts.texts[i],
                    "ended": bool(rollouts.ended[i]),
                    "total": float(scored.total[i]),
                    "gain": float(scored.reward[i]),
                    "kl": kl[i],
                    **{name: float(values[i]) for name, values in scored.parts.items()},
                }
                file.write(json.dumps(line, ensure_ascii=False) + "\n")

    # -- checkpoints

    def _names(self) -> dict[torch.nn.Parameter, str]:
        return {p: name for name, p in self.learner.trained.items()}

    def _save(self, done: int, is_best: bool) -> None:
        learner = self.learner
        tensors = {**learner.trained, **named_optimizer_state([learner.optimizer], self._names())}
        self.run.save(
            done,
            tensors,
            is_best=is_best,
            kl_coef=learner.kl.coef,
            unit=learner.mixture.state(),
            entropy=self.entropy,
            best=self.best,
            over=self.over,
            stopped=self.stopped,
        )

    def _resume(self) -> int:
        """How many steps are done; before the first, the unit of the reward is set and step 0 saved as the best so
        far."""
        checkpoint = self.run.latest()
        if checkpoint is None:
            self._fit_unit()
            self._save(0, is_best=True)
            return 0
        state, learner = checkpoint.state, self.learner
        self._load(checkpoint.tensors)
        restore_optimizer_state([learner.optimizer], self._names(), checkpoint.tensors)
        learner.kl.coef = state["kl_coef"]
        learner.mixture.load(state["unit"])
        self.entropy, self.best, self.over, self.stopped = (
            state["entropy"],
            state["best"],
            state["over"],
            state["stopped"],
        )
        marked = self.run.best()
        if marked is None or marked.step != self.best["step"]:
            if (
                self.best["step"] != checkpoint.step
            ):  # somebody removed it; else the run was killed between a checkpoint and its mark
                self.best = {"gain": 0.0, "kl": 0.0, "step": checkpoint.step}
            self._save(checkpoint.step, is_best=True)
        return checkpoint.step

    @torch.no_grad()
    def _load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        for name, parameter in self.learner.trained.items():
            parameter.copy_(tensors[name])


def _write(learner: Learner, run: Run, report: Mapping[str, Any], dialogues_sha256: str) -> None:
    from safetensors.torch import save_file

    run.publish(
        "adapter",
        lambda folder: save_adapter(learner.base, POLICY, folder, stage=STAGE, dialogues_sha256=dialogues_sha256),
    )
    if learner.group.is_main:
        if learner.settings.algorithm == PPO:
            head = {name: t.detach().cpu().contiguous() for name, t in learner.value_head.state_dict().items()}
            save_file(head, run.folder / "value_head.safetensors")
        (run.folder / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
