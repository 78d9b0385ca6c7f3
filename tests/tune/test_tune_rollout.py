"""Sampled answers and what passes over them tell, against the plain way of computing it."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

import tune_toy

from reclm_lite.tune import rollout
from reclm_lite.tune.base import BaseSettings, load_base
from reclm_lite.tune.rendering import Renderer
from reclm_lite.tune.rollout import Rollouts, Sampling, answer_mask, collate, logprobs_of, measure, sample, states_of
from reclm_lite.tune.run import seed_step


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    torch.set_num_threads(1)
    path, _ = tune_toy.make_toy(tmp_path_factory.mktemp("toy"), n_steps=0)
    base = load_base(BaseSettings(str(path), device="cpu"))
    torch.manual_seed(3)
    for parameter in base.model.parameters():
        parameter += 0.2 * torch.randn_like(parameter)  # as large as trained weights, so that errors show
    return base


@pytest.fixture(scope="module")
def renderer(base):
    return Renderer(base.tokenizer, base.form)


def draw(base, renderer, n=8, number=1, **settings):
    seed_step(0, number)
    return sample(base, renderer, tune_toy.dialogues(n), Sampling(**{"max_new_tokens": 6, **settings}))


def plain_logprobs(base, prompt, answer, temperature=1.0):
    """By the model's own forward pass over one answer alone."""
    with torch.no_grad():
        logits = base.causal(input_ids=torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
    return (logits / temperature).log_softmax(-1)[range(len(answer)), answer]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("micro_batch", [1, 3, 8])
def test_measured_logprobs_are_those_of_each_answer_alone(base, renderer, micro_batch, temperature):
    rollouts = draw(base, renderer)
    told = measure(base, rollouts, temperature=temperature, micro_batch=micro_batch)
    mask = answer_mask(rollouts, base.device)
    for i in range(len(rollouts)):
        wanted = plain_logprobs(base, rollouts.prompts[i], rollouts.answers[i], temperature)
        np.testing.assert_allclose(told.logprobs[i][mask[i]], wanted, atol=1e-5)
    assert (told.logprobs[~mask] == 0).all() and (told.entropy[mask] > 0).all() and (told.values == 0).all()


def test_values_are_the_heads_of_the_states_before_each_token(base, renderer):
    rollouts, head = draw(base, renderer), torch.nn.Linear(base.width, 1)
    told = measure(base, rollouts, temperature=1.0, micro_batch=3, value_head=head)
    for i in (0, 5):
        n = len(rollouts.prompts[i])
        with torch.no_grad():
            states = base.hidden(torch.tensor([[*rollouts.prompts[i], *rollouts.answers[i]]]))[0, n - 1 : -1]
            wanted = head(states)[:, 0]
        np.testing.assert_allclose(told.values[i, : len(wanted)], wanted, atol=1e-5)


def test_chunks_change_neither_logprobs_nor_gradients(base, renderer, monkeypatch):
    rollouts = draw(base, renderer)
    batch = collate(rollouts.prompts, rollouts.answers, base.pad_id, base.device)
    found = []
    for n_logits in (1 << 24, 300 * 5):  # all at once, and five tokens at a time
        monkeypatch.setattr(rollout, "CHUNK_LOGITS", n_logits)
        states = states_of(base, batch).detach().requires_grad_()
        logprobs = logprobs_of(base, states, batch.targets, 0.9)
        logprobs.square().sum().backward()
        found.append((logprobs.detach(), states.grad))
    for whole, parts in zip(*found, strict=True):
        torch.testing.assert_close(parts, whole, atol=1e-6, rtol=1e-5)


def test_only_answer_tokens_reach_the_output_layer(base, renderer):
    rollouts, rows = draw(base, renderer), []
    hook = base.causal.get_output_embeddings().register_forward_hook(
        lambda _, inputs, __: rows.append(inputs[0].shape[:-1].numel())
    )
    measure(base, rollouts, temperature=1.0, micro_batch=4)
    hook.remove()
    assert sum(rows) == sum(map(len, rollouts.answers))


def test_equal_seeds_draw_equal_answers_and_others_do_not(base, renderer):
    again = [draw(base, renderer, number=number).answers for number in (1, 1, 2)]
    assert again[0] == again[1] != again[2]


def test_padding_of_prompts_does_not_change_what_is_drawn(base, renderer):
    cold = {"temperature": 1e-5}  # the likeliest token, so that company in the batch cannot show in the draws
    together = draw(base, renderer, batch=8, **cold)
    assert len({len(prompt) for prompt in together.prompts}) > 1
    assert draw(base, renderer, batch=1, **cold).answers == together.answers


def test_the_bases_own_generation_settings_are_not_used(base, renderer):
    plain = draw(base, renderer).answers
    own = base.causal.generation_config
    own.top_k, own.repetition_penalty, own.temperature = 1, 5.0, 0.01
    try:
        assert draw(base, renderer).answers == plain
        assert base.causal.generation_config is own
    finally:
        own.top_k, own.repetition_penalty, own.temperature = 50, 1.0, 1.0


def test_an_answer_ends_with_its_end_token_or_is_cut_off_and_counts_as_empty(base, renderer):
    rollouts = draw(base, renderer, n=40)
    ends = rollout.end_ids(base, renderer)
    for answer, ended, text, judged in zip(rollouts.answers, rollouts.ended, rollouts.texts, rollouts.judged):
        assert 1 <= len(answer) <= 6 and ended == (answer[-1] in ends) and not set(answer[:-1]) & ends
        assert judged == (text if ended else "")
    assert not rollouts.ended.all()


def test_a_batch_is_no_longer_than_its_longest_pair_and_leaves_out_the_last_token(base):
    batch = collate([[5, 6, 7], [5]], [[8, 1], [9, 9, 1]], base.pad_id, base.device)
    assert batch.ids.tolist() == [[5, 6, 7, 8], [5, 9, 9, base.pad_id]]
    assert batch.mask.tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert batch.targets.tolist() == [8, 1, 9, 9, 1]
    assert list(zip(batch.rows.tolist(), batch.columns.tolist())) == [(0, 2), (0, 3), (1, 0), (1, 1), (1, 2)]


def test_rollouts_count_their_answers():
    assert len(Rollouts([], [[1]], [[2]], np.array([True]), ["x"])) == 1
