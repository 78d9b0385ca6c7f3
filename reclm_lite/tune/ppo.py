"""PPO and GRPO over one copy of the base model: one step after another as equations.

Four models, one base. The policy is the adapter "policy", which begins as a copy of the SFT adapter; the reference is
the SFT adapter frozen ("reference"), or the bare base where SFT trained all weights; the reward model is an adapter
with a head that its signal owns; the value function is a linear head on the policy's last states. Going from one to
another switches adapters. A step:

    sample     an answer to each prompt (`group_size` of them for GRPO) from the policy
    score      reward = the mixture of signals in standard deviations of the SFT policy's (signals.Mixture)
    PPO        r_t = -beta (log p_t - log p_ref_t), the reward added at the last token; GAE; advantages whitened
               loss = clipped policy loss + clipped value loss
    GRPO       A = the reward whitened within its prompt's group;  loss = clipped policy loss + beta k3(p, p_ref)
    learn      `epochs` passes over the answers in mini-batches, each the sum of micro-batches
    beta       moves towards `kl_target` (losses.AdaptiveKl)

The value head learns at its own rate. What share of its gradient reaches the adapter is `value_gradient`, by default
none: the adapter is what is kept, and moves for the sake of the reward alone, so that KL is spent on nothing else.

Left out: an entropy bonus (KL to the reference holds the policy), dropout (ratios would be noise), a second value
network. Whole runs (evaluation, checkpoints, what stops one) are in ppo_run.py, settings in ppo_settings.py; the
papers are named in losses.py.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..dialogue.records import Dialogue
from ..errors import ModelError
from . import losses
from .adapters import parameters, use
from .base import Base
from .parallel import Group
from .ppo_settings import PPO, PpoSettings
from .rendering import Renderer
from .rollout import Measured, Rollouts, answer_mask, collate, logprobs_of, measure, sample, states_of
from .run import seed_step
from .signals import Mixture

POLICY, REFERENCE = "policy", "reference"


@dataclass(frozen=True)
class Scored:
    """Rollouts and what they are worth. parts: float32 (n,) by name; total: their mix; reward: it in SFT standard
    deviations.

    mask: bool (n, n_tokens). policy, ref_logprobs, kl: what passes told, (n, n_tokens), 0 on padding; kl is k1's.
    """

    rollouts: Rollouts
    parts: dict[str, np.ndarray]
    total: np.ndarray
    reward: np.ndarray
    mask: Tensor
    policy: Measured
    ref_logprobs: Tensor
    kl: Tensor


@dataclass(frozen=True)
class Learning:
    """What the mini-batches fit, (n, n_tokens) each; weights of tokens in the loss before they are divided by `count`'s
    sum."""

    scored: Scored
    advantages: Tensor
    returns: Tensor
    weights: Tensor


class Learner:
    """The policy, its value head, and a step of learning. base has the adapter "policy" and, unless SFT trained all
    weights, "reference". mixture: fitted before the first step (see `rollouts`, `Mixture.fit`).
    """

    def __init__(self, base: Base, renderer: Renderer, mixture: Mixture, settings: PpoSettings, group: Group):
        self.base, self.renderer, self.mixture, self.settings, self.group = base, renderer, mixture, settings, group
        self.reference = REFERENCE if REFERENCE in base.model.peft_config else None
        self.policy = parameters(base, POLICY)
        self.value_head = torch.nn.Linear(base.width, 1).to(base.device, torch.float32)
        torch.nn.init.zeros_(self.value_head.weight)  # the reward's unit puts the SFT policy's mean at 0
        torch.nn.init.zeros_(self.value_head.bias)
        self.kl = losses.AdaptiveKl(settings.kl_coef, settings.kl_target, settings.kl_rate, settings.kl_coef / 10)
        groups = [{"params": list(self.policy.values()), "lr": settings.lr}]
        if settings.algorithm == PPO:
            groups.append({"params": list(self.value_head.parameters()), "lr": settings.value_lr})
        self.optimizer = torch.optim.AdamW(groups, weight_decay=0.0)

    @property
    def trained(self) -> dict[str, torch.nn.Parameter]:
        """All that learning changes, by name."""
        head = (
            {f"value_head.{name}": p for name, p in self.value_head.named_parameters()}
            if self.settings.algorithm == PPO
            else {}
        )
        return {**self.policy, **head}

    # -- sampling and scoring

    def rollouts(self, dialogues: Sequence[Dialogue], adapter: str | None, number: int) -> Rollouts:
        """An answer of this adapter to each dialogue. number: of the step, from which, with the seed, all draws
        follow."""
        seed_step(self.settings.seed, number, self.group.rank)
        self._hold_still()
        with use(self.base, adapter):
            return sample(self.base, self.renderer, dialogues, self.settings.sampling)

    def score(self, rollouts: Rollouts, adapter: str | None = POLICY) -> Scored:
        """What rollouts of `adapter` are worth, and how far it is from the reference."""
        parts = self.mixture.parts(rollouts.dialogues, rollouts.judged)
        total = self.mixture.total(parts, rollouts.ended)
        self._hold_still()
        mask = answer_mask(rollouts, self.base.device)
        told = self._measure(
            rollouts, adapter, self.value_head if adapter == POLICY and self.settings.algorithm == PPO else None
        )
        ref = told.logprobs if adapter == self.reference else self._measure(rollouts, self.reference).logprobs
        return Scored(
            rollouts, parts, total, self.mixture.reward(total), mask, told, ref, losses.kl_k1(told.logprobs, ref) * mask
        )

    def _measure(self, rollouts: Rollouts, adapter: str | None, value_head: torch.nn.Linear | None = None) -> Measured:
        sampling, micro_batch = self.settings.sampling, self.settings.micro_batch
        with use(self.base, adapter):
            return measure(
                self.base, rollouts, temperature=sampling.temperature, micro_batch=micro_batch, value_head=value_head
            )

    def _hold_still(self) -> None:
        """No dropout anywhere, that of attention included, which is no module of its own; what computes activations
        anew in the backward pass does so in training mode alone, so just these modules are in it.
        """
        self.base.model.eval()
        for module in self.base.model.modules():
            if getattr(module, "gradient_checkpointing", False):
                module.training = True

    # -- a step

    def step(self, number: int, dialogues: Sequence[Dialogue]) -> tuple[Scored, dict[str, float]]:
        """Step `number`, from 1, over this process's share of prompts. Returns what it learned from, and metrics of all
        processes.

        Raises ModelError where a loss is not finite.
        """
        settings = self.settings
        shown = [dialogue for dialogue in dialogues for _ in range(settings.n_answers)]
        scored = self.score(self.rollouts(shown, POLICY, number))
        learning = self._ppo(scored) if settings.algorithm == PPO else self._grpo(scored)
        scale = 1 - (number - 1) / settings.steps
        self.optimizer.param_groups[0]["lr"] = settings.lr * scale
        metrics = self._learn(number, learning)
        metrics |= {"lr": settings.lr * scale, "kl_coef": self.kl.coef, **self.summary(scored)}
        if settings.algorithm == PPO:
            metrics["explained_variance"] = losses.explained_variance(
                scored.policy.values, learning.returns, scored.mask, self.group.sum
            )
        self.kl.update(metrics["kl"])
        return scored, metrics

    def _ppo(self, scored: Scored) -> Learning:
        settings, mask = self.settings, scored.mask
        score = torch.from_numpy(scored.reward).to(self.base.device)
        if settings.whiten_rewards:
            mean, var = losses.mean_and_var(self.group.sum(losses.moments(score, torch.ones_like(score))))
            score = losses.whiten(score, mean, var, shift=False)
        rewards = -self.kl.coef * scored.kl
        last = mask.sum(1) - 1
        rewards[torch.arange(len(score), device=score.device), last] += score
        advantages, returns = losses.gae(rewards, scored.policy.values, mask, settings.gamma, settings.gae_lambda)
        mean, var = losses.mean_and_var(self.group.sum(losses.moments(advantages, mask)))
        return Learning(scored, losses.whiten(advantages, mean, var) * mask, returns, mask.float())

    def _grpo(self, scored: Scored) -> Learning:
        advantages = losses.grpo_advantages(
            torch.from_numpy(scored.reward).to(self.base.device), self.settings.group_size
        )
        each = scored.mask / scored.mask.sum(1, keepdim=True)  # 1/|o_i|: every answer weighs the same, however long
        return Learning(scored, advantages[:, None] * scored.mask, torch.zeros_like(each), each)

    def _learn(self, number: int, learning: Learning) -> dict[str, float]:
        """`epochs` passes in mini-batches; every process takes as many, of its own answers."""
        settings, trained = self.settings, self.trained
        n, sums, n_batches, norms = len(learning.scored.rollouts), torch.zeros(4, dtype=torch.float64), 0, 0.0
        for epoch in range(settings.epochs):
            order = np.random.default_rng((settings.seed, number, epoch, self.group.rank)).permutation(n)
            for mini in np.array_split(order, settings.n_mini_batches):
                count = float(self.group.sum(float(learning.weights[mini].sum())))
                found = torch.zeros(4, dtype=torch.float64)
                with use(self.base, POLICY):
                    for begin in range(0, len(mini), settings.micro_batch):
                        loss, told = self._loss(learning, mini[begin : begin + settings.micro_batch], count)
                        loss.backward()
                        found += told
                self.group.sum_gradients(trained.values())
                found = self.group.sum(found)
                norm = float(torch.nn.utils.clip_grad_norm_(self.policy.values(), settings.max_grad_norm))
                if settings.algorithm == PPO:
                    torch.nn.utils.clip_grad_norm_(self.value_head.parameters(), settings.max_grad_norm)
                if not (math.isfinite(norm) and bool(torch.isfinite(found).all())):
                    self._refuse(
                        number,
                        epoch,
                        n_batches % settings.n_mini_batches,
                        [learning.scored.rollouts.dialogues[i].id for i in mini],
                    )
                self.optimizer.step()
                self.optimizer.zero_grad(set_to_none=True)
                sums, n_batches, norms = sums + found, n_batches + 1, norms + norm
        policy_loss, value_loss, approx_kl, clipfrac = (sums / n_batches).tolist()
        metrics = {
            "policy_loss": policy_loss,
            "approx_kl": approx_kl,
            "clipfrac": clipfrac,
            "grad_norm": norms / n_batches,
        }
        return metrics | ({"value_loss": value_loss} if settings.algorithm == PPO else {})

    def _loss(self, learning: Learning, chosen: np.ndarray, count: float) -> tuple[Tensor, Tensor]:
        """The loss of a micro-batch, and its policy loss, value loss, approx_kl and clipfrac; sums that `count`
        divides."""
        settings, scored = self.settings, learning.scored
        rollouts, mask = scored.rollouts, scored.mask[chosen]
        batch = collate(
            [rollouts.prompts[i] for i in chosen],
            [rollouts.answers[i] for i in chosen],
            self.base.pad_id,
            self.base.device,
        )
        states = states_of(self.base, batch)
        logprobs = logprobs_of(self.base, states, batch.targets, settings.sampling.temperature)
        # Answer after answer, without padding: (n_tokens,), as `batch.targets` is.
        old, advantages, weights = (
            t[chosen][mask] for t in (scored.policy.logprobs, learning.advantages, learning.weights)
        )
        weights = weights / count
        policy_loss = (losses.clipped_policy_loss(logprobs, old, advantages, settings.clip_range) * weights).sum()
        value_loss = torch.zeros((), device=self.base.device)
        if settings.algorithm == PPO:
            share = settings.value_gradient
            fixed = states.detach().float()
            values = self.value_head(fixed + share * (states.float() - fixed) if share else fixed).squeeze(-1)
            old_values, returns = (t[chosen][mask] for t in (scored.policy.values, learning.returns))
            value_loss = (losses.clipped_value_loss(values, old_values, returns, settings.value_clip) * weights).sum()
            loss = policy_loss + value_loss
        else:
            loss = (
                policy_loss + self.kl.coef * (losses.kl_k3(logprobs, scored.ref_logprobs[chosen][mask]) * weights).sum()
            )
        with torch.no_grad():
            log_ratio = logprobs - old
            approx_kl = (
                (log_ratio.exp() - 1 - log_ratio) * weights
            ).sum()  # k3 of the policy that sampled against the present one
            clipfrac = ((log_ratio.exp() - 1).abs() > settings.clip_range) * weights
            told = torch.stack([policy_loss.detach(), value_loss.detach(), approx_kl, clipfrac.sum()]).cpu().double()
        return loss, told

    def is_sound(self, rollouts: Rollouts) -> bool:
        """Whether the policy, as it is now, could learn on, in every process: its parameters are finite, and the
        log-probabilities of a few answers, and their gradients. What diverges often shows in the latter first.
        """
        n, sampling = self.settings.micro_batch, self.settings.sampling
        batch = collate(rollouts.prompts[:n], rollouts.answers[:n], self.base.pad_id, self.base.device)
        self._hold_still()
        with use(self.base, POLICY):
            told = logprobs_of(self.base, states_of(self.base, batch), batch.targets, sampling.temperature)
            told.mean().backward()
        gradients = [p.grad for p in self.policy.values() if p.grad is not None]
        finite = all(bool(torch.isfinite(t).all()) for t in (told, *gradients, *self.trained.values()))
        self.optimizer.zero_grad(set_to_none=True)
        return float(self.group.sum(float(not finite))) == 0

    def _refuse(self, number: int, epoch: int, mini: int, ids: Sequence[str]) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        named = list(dict.fromkeys(ids))
        shown = ", ".join(named[:8]) + (" …" if len(named) > 8 else "")
        raise ModelError(
            f"the loss is NaN or infinite in step {number}, pass {epoch + 1}, mini-batch {mini + 1}; stopped. "
            f"The batch: {shown}. What was saved before is sound. Check these dialogues, or start again (--fresh) with "
            "a smaller learning rate"
        )

    def summary(self, scored: Scored) -> dict[str, float]:
        """Means over the answers of all processes, with the names that metrics have."""
        lengths = scored.mask.sum(1)
        per_answer = {
            "kl": scored.kl.sum(1),
            "answer_tokens": lengths.float(),
            "ended": torch.from_numpy(scored.rollouts.ended).float(),
            "reward/total": torch.from_numpy(scored.total),
            "reward/gain": torch.from_numpy(scored.reward),
            **{f"reward/{name}": torch.from_numpy(values) for name, values in scored.parts.items()},
        }
        sums = [
            values.cpu().double().sum()
            for values in (*per_answer.values(), torch.ones(len(lengths)), scored.policy.entropy, lengths)
        ]
        *sums, n, spread, n_tokens = self.group.sum(torch.stack(sums)).tolist()
        return {name: total / n for name, total in zip(per_answer, sums, strict=True)} | {"entropy": spread / n_tokens}
