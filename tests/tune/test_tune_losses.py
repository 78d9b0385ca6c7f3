"""The equations of tuning against cases solved by hand and against transformers' own loss."""

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from reclm_lite.tune import losses


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def close(found, wanted, tolerance=1e-5):
    np.testing.assert_allclose(
        np.asarray(found.detach() if isinstance(found, torch.Tensor) else found), wanted, atol=tolerance, rtol=0
    )


def answers_of(logits, ids, is_answer):
    """(sum of the losses of answer tokens, how many): the first token is told by nothing."""
    counted = is_answer[:, 1:]
    return losses.weighted_cross_entropy(
        logits[:, :-1][counted], ids[:, 1:][counted], torch.ones(int(counted.sum()))
    ), counted.sum()


def test_weighted_cross_entropy_weighs_by_hand():
    logits = torch.tensor([[0.0, math.log(3)], [5.0, 5.0]])  # p = (1/4, 3/4) and (1/2, 1/2)
    close(
        losses.weighted_cross_entropy(logits, torch.tensor([1, 0]), torch.tensor([1.0, 6.0])),
        math.log(4 / 3) + 6 * math.log(2),
    )


def test_masked_cross_entropy_is_transformers_loss_on_the_answers():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        initializer_range=0.5,
        bos_token_id=0,
        eos_token_id=1,
    )
    model = LlamaForCausalLM(config)
    ids = torch.randint(0, 50, (3, 12))
    is_answer = torch.rand(3, 12) < 0.4
    is_answer[:, 0] = True  # nothing predicts it: both leave it out
    wanted = model(input_ids=ids, labels=ids.masked_fill(~is_answer, -100))
    total, count = answers_of(wanted.logits, ids, is_answer)
    assert count == is_answer[:, 1:].sum()
    close(total / count, wanted.loss.item())
    parameter = model.model.layers[0].mlp.up_proj.weight
    ours, theirs = (torch.autograd.grad(loss, parameter, retain_graph=True)[0] for loss in (total / count, wanted.loss))
    close(ours, theirs.numpy())


def test_masked_cross_entropy_of_parts_adds_up_to_that_of_the_whole():
    torch.manual_seed(1)
    logits, ids, is_answer = torch.randn(4, 7, 9), torch.randint(0, 9, (4, 7)), torch.rand(4, 7) < 0.5
    parts = [answers_of(logits[i : i + 1], ids[i : i + 1], is_answer[i : i + 1]) for i in range(4)]
    total, count = answers_of(logits, ids, is_answer)
    close(sum(part[0] for part in parts), total.item())
    assert sum(int(part[1]) for part in parts) == count


def test_ranking_loss_by_hand():
    # -log sigmoid(0) = log 2;  -log sigmoid(log 3) = -log(3/4)
    loss = losses.ranking_loss(torch.tensor([1.0, math.log(3)]), torch.tensor([1.0, 0.0]))
    close(loss, (math.log(2) + math.log(4 / 3)) / 2)


def test_token_logprobs_and_entropy_by_hand():
    logits = torch.tensor([[0.0, math.log(3)], [5.0, 5.0]])  # p = (1/4, 3/4) and (1/2, 1/2)
    close(losses.token_logprobs(logits, torch.tensor([1, 0])), [math.log(3 / 4), math.log(1 / 2)])
    close(losses.entropy(logits), [-(0.25 * math.log(0.25) + 0.75 * math.log(0.75)), math.log(2)])


def test_kl_estimators_agree_with_the_divergence_in_the_mean():
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.2, 0.6])
    divergence = float((p * (p / q).log()).sum())
    for estimate in (losses.kl_k1, losses.kl_k3):
        close((p * estimate(p.log(), q.log())).sum(), divergence)
    assert (losses.kl_k3(p.log(), q.log()) >= 0).all() and (losses.kl_k1(p.log(), q.log()) < 0).any()


def test_gae_by_hand():
    # gamma 0.9, lambda 0.5, so gamma lambda = 0.45; behind the end V and A are 0.
    #   t = 2: delta = 2 + 0 - 0 = 2                  A = 2
    #   t = 1: delta = 0 + 0.9 * 0 - 1 = -1           A = -1 + 0.45 * 2 = -0.1
    #   t = 0: delta = 1 + 0.9 * 1 - 0.5 = 1.4        A = 1.4 + 0.45 * -0.1 = 1.355
    # second answer, one token: delta = 3 - 1 = 2     A = 2, whatever stands on its padding
    rewards = torch.tensor([[1.0, 0.0, 2.0], [3.0, 7.0, 7.0]])
    values = torch.tensor([[0.5, 1.0, 0.0], [1.0, 9.0, 9.0]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    advantages, returns = losses.gae(rewards, values, mask, 0.9, 0.5)
    close(advantages, [[1.355, -0.1, 2.0], [2.0, 0.0, 0.0]])
    close(returns, [[1.855, 0.9, 2.0], [3.0, 0.0, 0.0]])


def test_gae_with_lambda_one_is_the_discounted_sum_minus_the_value():
    rng = np.random.default_rng(0)
    rewards, values = rng.normal(size=(1, 6)), rng.normal(size=(1, 6))
    _, returns = losses.gae(torch.tensor(rewards), torch.tensor(values), torch.ones(1, 6), 0.8, 1.0)
    wanted = [sum(0.8 ** (k - t) * rewards[0, k] for k in range(t, 6)) for t in range(6)]
    close(returns, [wanted])


def test_clipped_policy_loss_by_hand():
    # clip 0.2. ratio, advantage -> loss, and whether anything flows back (d/d log p of -ratio A is -ratio A)
    #   1.5, +1 -> -min(1.5, 1.2) = -1.2, nothing      0.5, +1 -> -min(0.5, 0.8) = -0.5, -0.5
    #   1.5, -1 -> -min(-1.5, -1.2) = 1.5, 1.5         0.5, -1 -> -min(-0.5, -0.8) = 0.8, nothing      1, 2 -> -2, -2
    ratio = torch.tensor([1.5, 0.5, 1.5, 0.5, 1.0])
    logprobs = (ratio.log() - 1).requires_grad_()
    loss = losses.clipped_policy_loss(logprobs, torch.full((5,), -1.0), torch.tensor([1.0, 1.0, -1.0, -1.0, 2.0]), 0.2)
    close(loss, [-1.2, -0.5, 1.5, 0.8, -2.0])
    loss.sum().backward()
    close(logprobs.grad, [0.0, -0.5, 1.5, 0.0, -2.0])


def test_clipped_value_loss_by_hand():
    # clip 0.2, old value 0, return 1.  V = 0.5: max(0.5^2, 0.8^2)/2 = 0.32, clipped, nothing flows;  V = -0.1: 1.1^2/2
    # = 0.605
    # return -1.  V = 0.5: max(1.5^2, 1.2^2)/2 = 1.125, and the gradient is V - R = 1.5
    values = torch.tensor([0.5, -0.1, 0.5], requires_grad=True)
    loss = losses.clipped_value_loss(values, torch.zeros(3), torch.tensor([1.0, 1.0, -1.0]), 0.2)
    close(loss, [0.32, 0.605, 1.125])
    loss.sum().backward()
    close(values.grad, [0.0, -1.1, 1.5])


def test_whiten_under_a_mask():
    values, mask = torch.tensor([[1.0, 3.0, 99.0]]), torch.tensor([[True, True, False]])
    mean, var = losses.mean_and_var(losses.moments(values, mask))
    assert (mean, var) == (2.0, 1.0)
    close(losses.whiten(values, mean, var)[mask], [-1.0, 1.0])
    close(losses.whiten(values * 2, 2 * mean, 4 * var, shift=False)[mask], [3.0, 5.0])


def test_explained_variance():
    returns, mask = torch.tensor([[0.0, 2.0, 4.0, 50.0]]), torch.tensor([[True, True, True, False]])
    assert losses.explained_variance(returns, returns, mask) == 1.0
    assert losses.explained_variance(torch.full_like(returns, 7.0), returns, mask) == pytest.approx(0.0, abs=1e-12)
    assert losses.explained_variance(-returns, returns, mask) == pytest.approx(-3.0)  # Var(2R) = 4 Var(R)
    # V = (0, 2, 2): R - V = (0, 0, 2), variance 8/9; Var(R) = 8/3
    assert losses.explained_variance(torch.tensor([[0.0, 2.0, 2.0, 1.0]]), returns, mask) == pytest.approx(2 / 3)
    assert math.isnan(losses.explained_variance(returns, torch.ones_like(returns), mask))


def test_grpo_advantages_by_hand():
    # (0, 2): mean 1, deviation 1 -> -1, 1;  (5, 5): nothing to choose;  groups do not mix
    close(
        losses.grpo_advantages(torch.tensor([0.0, 2.0, 5.0, 5.0, 10.0, 30.0]), 2),
        [-1.0, 1.0, 0.0, 0.0, -1.0, 1.0],
        2e-4,
    )


def test_adaptive_kl_moves_towards_its_target():
    kl = losses.AdaptiveKl(coef=1.0, target=6.0)
    assert kl.update(60.0) == pytest.approx(1.02)  # error cut to 0.2, times the rate of 0.1
    assert kl.update(6.0) == pytest.approx(1.02)
    assert kl.update(6.6) == pytest.approx(1.02 * 1.01)  # error 0.1
    assert kl.update(0.0) == pytest.approx(1.02 * 1.01 * 0.98)
    assert losses.AdaptiveKl(0.3, 6.0, least=0.299).update(0.0) == 0.299
    assert losses.AdaptiveKl(0.3, 6.0, rate=0.0).update(100.0) == 0.3


@pytest.mark.parametrize("seed", range(3))
def test_padded_answers_in_a_batch_give_what_each_gives_alone(seed):
    rng = torch.Generator().manual_seed(seed)
    lengths = [3, 7, 1, 5]
    mask = torch.arange(7)[None] < torch.tensor(lengths)[:, None]
    rewards, values, old, new = (torch.randn(4, 7, generator=rng) for _ in range(4))
    advantages, returns = losses.gae(rewards, values, mask, 0.97, 0.9)
    policy = losses.clipped_policy_loss(new, old, advantages, 0.2)
    value = losses.clipped_value_loss(new, values, returns, 0.2)
    for i, n in enumerate(lengths):
        own = slice(i, i + 1), slice(0, n)
        a, r = losses.gae(rewards[own], values[own], torch.ones(1, n), 0.97, 0.9)
        close(advantages[own], a.numpy())
        close(returns[own], r.numpy())
        close(policy[own], losses.clipped_policy_loss(new[own], old[own], a, 0.2).numpy())
        close(value[own], losses.clipped_value_loss(new[own], values[own], r, 0.2).numpy())
