"""The losses of tuning as pure functions of tensors: cross-entropy on answers, ranking, PPO, GRPO and what they are
made of.

Nothing here knows of models, adapters or files. Tensors of answers are right-padded, shape (n_answers, n_tokens), with
a mask of the same shape that is true on real tokens; what stands on padding changes nothing. Losses of tokens come per
token, so that the caller divides a sum over micro-batches by the count of the whole batch: accumulation then equals one
large batch.

Sources: PPO, arXiv 1707.06347; GAE, arXiv 1506.02438; GRPO, arXiv 2402.03300; the estimators k1 and k3 of the KL
divergence, http://joschu.net/blog/kl-approx.html; the adaptive KL coefficient and the reward with a KL penalty per
token, arXiv 1909.08593; the ranking loss, arXiv 2203.02155.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


def weighted_cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """sum_t w_t · -log softmax(logits_t)[targets_t]; divided by the sum of all weights of a batch it is their mean.

    logits: (n, n_vocab), those that tell of `targets`: int64 (n,). weights: float32 (n,). Returns float32 ().
    """
    return -token_logprobs(logits, targets) @ weights


def ranking_loss(chosen: Tensor, rejected: Tensor) -> Tensor:
    """-log sigmoid(chosen - rejected), the mean over pairs. chosen, rejected: scores (n_pairs,). Returns float32 ()."""
    return -functional.logsigmoid(chosen.float() - rejected.float()).mean()


def token_logprobs(logits: Tensor, ids: Tensor) -> Tensor:
    """log softmax(logits)[ids] in float32. logits: (..., n_vocab), those that tell of `ids`: int64 (...). Returns
    (...)."""
    logits = logits.float()
    return logits.gather(-1, ids.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(-1)


def entropy(logits: Tensor) -> Tensor:
    """Entropy in nats of softmax(logits) = logsumexp(z) - sum_v p_v z_v, float32. logits: (..., n_vocab). Returns
    (...)."""
    logits = logits.float()
    return logits.logsumexp(-1) - (logits.softmax(-1) * logits).sum(-1)


def kl_k1(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """log p - log q on samples of p: the plain estimate of KL(p, q) per token; its sum over an answer is the
    answer's."""
    return logprobs - ref_logprobs


def kl_k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """q/p - 1 - log(q/p) on samples of p: unbiased like k1, never negative, and of less variance where q is near p."""
    log_ratio = ref_logprobs - logprobs
    return log_ratio.exp() - 1 - log_ratio


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalized advantages and the returns that values are fitted to.

        delta_t = r_t + gamma V_(t+1) - V_t        A_t = delta_t + gamma lam A_(t+1)        R_t = A_t + V_t

    Behind an answer's last token V and A are 0: it is the end of the episode, also where the answer was cut off.
    rewards, values: float32 (n_answers, n_tokens). values[t] is that of the state before token t. Returns the two, zero
    on padding.
    """
    real = mask.to(values.dtype)
    rewards, values = rewards * real, values * real
    next_values = functional.pad(values[:, 1:], (0, 1))
    deltas = (rewards + gamma * next_values - values) * real
    advantages = torch.zeros_like(values)
    following = torch.zeros_like(values[:, 0])
    for t in reversed(range(values.shape[1])):
        following = deltas[:, t] + gamma * lam * following
        advantages[:, t] = following
    return advantages, advantages + values


def whiten(values: Tensor, mean: Tensor | float, var: Tensor | float, *, shift: bool = True) -> Tensor:
    """(values - mean) / sqrt(var), the mean put back where `shift` is false. Any shape; see `moments` for mean and
    var."""
    scale = (torch.as_tensor(var, dtype=values.dtype, device=values.device) + 1e-8).rsqrt()
    return (values - mean) * scale + (0.0 if shift else mean)


def moments(values: Tensor, mask: Tensor) -> Tensor:
    """Sum, sum of squares and count under a mask: float64 (3,), to be summed over processes and given to
    `mean_and_var`."""
    real = values.detach().cpu().double()[mask.bool().cpu()]
    return torch.stack([real.sum(), real.square().sum(), real.new_tensor(float(real.numel()))])


def mean_and_var(sums: Tensor) -> tuple[float, float]:
    """Mean and (population) variance from the sums of `moments`; 0 and 0 of nothing."""
    total, squares, count = sums.tolist()
    mean = total / max(count, 1.0)
    return mean, max(squares / max(count, 1.0) - mean * mean, 0.0)


def clipped_policy_loss(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, clip_range: float) -> Tensor:
    """PPO's objective to be minimized, per token: -min(rho A, clip(rho, 1 - eps, 1 + eps) A), rho = p / p_old.

    All of one shape, returned in it. A token whose ratio left the range on the side that its advantage wants has no
    gradient.
    """
    ratio = (logprobs - old_logprobs).exp()
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip_range, 1 + clip_range) * advantages)


def clipped_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip_range: float) -> Tensor:
    """max((V - R)^2, (V_clipped - R)^2) / 2 per token, where V_clipped is at most `clip_range` away from the old
    value."""
    clipped = old_values + (values - old_values).clamp(-clip_range, clip_range)
    return 0.5 * torch.maximum((values - returns).square(), (clipped - returns).square())


def explained_variance(
    values: Tensor, returns: Tensor, mask: Tensor, summed: Callable[[Tensor], Tensor] = lambda sums: sums
) -> float:
    """1 - Var(R - V) / Var(R) under the mask: 1 where values tell returns, 0 where they say nothing, below it where
    they harm.

    NaN where all returns are equal: there is nothing to explain. summed: sums `moments` over processes.
    """
    _, var = mean_and_var(summed(moments(returns, mask)))
    _, left = mean_and_var(summed(moments(returns - values, mask)))
    return 1 - left / var if var > 0 else float("nan")


def grpo_advantages(rewards: Tensor, group: int) -> Tensor:
    """(r - mean) / std within each group of answers to one prompt. rewards: float32 (n_prompts * group,). Returns the
    same shape.

    The standard deviation is the population's; a group whose answers are all worth the same has advantages of 0.
    """
    groups = rewards.view(-1, group)
    centered = groups - groups.mean(1, keepdim=True)
    return (centered / (centered.square().mean(1, keepdim=True).sqrt() + 1e-4)).view(-1)


@dataclass
class AdaptiveKl:
    """The KL penalty's coefficient, moved so that the KL per answer nears `target` (nats).

        e = clip((KL - target) / target, -0.2, 0.2)        coef <- max(least, coef (1 + rate e))

    rate: 0.1 in the source, which made thousands of updates; 0 keeps the coefficient as it is. least: where it stops
    falling while KL is yet small, so that it is not long in coming back once KL is too large.
    """

    coef: float
    target: float
    rate: float = 0.1
    least: float = 0.0

    def update(self, kl: float) -> float:
        """The new coefficient after a batch with this mean KL per answer, in nats."""
        error = min(max((kl - self.target) / self.target, -0.2), 0.2)
        self.coef = max(self.least, self.coef * (1 + self.rate * error))
        return self.coef
