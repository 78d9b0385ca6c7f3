"""Answers sampled from the policy, and what a pass over them tells: log-probabilities, entropy, values.

Sampling is transformers' `generate`: prompts padded on the left, a key-value cache, the whole distribution at the given
temperature and top-p and nothing of the base's own generation settings. Passes over finished answers pad on the right
and compute logits for answer tokens alone: states are picked at the places that tell of an answer's tokens, and go
through the output layer in chunks whose logits are made anew in the backward pass. The logits of a whole batch never
exist.

Log-probabilities are those of the temperature without top-p, under every adapter: with top-p below 1 the ratio of PPO
is that of the untruncated distributions, as in TRL.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..dialogue.records import Dialogue
from . import losses
from .base import Base
from .batches import pad_right
from .rendering import Renderer

CHUNK_LOGITS = 1 << 22  # logits that exist at a time: 16 MiB of float32


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn. temperature 1 and top_p 1 draw from the model's own distribution. batch: prompts at a
    time."""

    max_new_tokens: int = 100
    temperature: float = 1.0
    top_p: float = 1.0
    batch: int = 32


@dataclass(frozen=True)
class Rollouts:
    """Sampled answers, each beside its dialogue and prompt; all lists of one length, n_answers.

    answers: token ids, with what ends them. ended: bool (n_answers,), false where max_new_tokens cut the answer off.
    texts: the answers in words.
    """

    dialogues: list[Dialogue]
    prompts: list[list[int]]
    answers: list[list[int]]
    ended: np.ndarray
    texts: list[str]

    def __len__(self) -> int:
        return len(self.answers)

    @property
    def judged(self) -> list[str]:
        """The texts that signals see: an answer that was cut off counts as an empty one."""
        return [text if ended else "" for text, ended in zip(self.texts, self.ended)]


@dataclass(frozen=True)
class AnswerBatch:
    """Prompts with answers, right-padded: ids, mask int64 (n, length), without each answer's last token, which tells
    nothing.

    rows, columns: int64 (n_tokens,), where the states are that tell of `targets` int64 (n_tokens,), answer after
    answer.
    """

    ids: Tensor
    mask: Tensor
    rows: Tensor
    columns: Tensor
    targets: Tensor


@torch.no_grad()
def sample(base: Base, renderer: Renderer, dialogues: Sequence[Dialogue], sampling: Sampling) -> Rollouts:
    """One answer for each dialogue through the adapter in use, from torch's global generator (see `run.seed_step`)."""
    prompts = [renderer.prompt(dialogue.messages) for dialogue in dialogues]
    answers: list[list[int]] = []
    for begin in range(0, len(prompts), sampling.batch):
        answers += _generate(base, renderer, prompts[begin : begin + sampling.batch], sampling)
    ends = end_ids(base, renderer)
    texts = [base.tokenizer.decode(answer, skip_special_tokens=True) for answer in answers]
    return Rollouts(
        list(dialogues), prompts, answers, np.array([answer[-1] in ends for answer in answers], dtype=bool), texts
    )


def end_ids(base: Base, renderer: Renderer) -> set[int]:
    """The tokens that end an answer: the last of the turn's end, and the tokenizer's end of text."""
    return {int(renderer.end[-1]), int(base.tokenizer.eos_token_id)}


def _generate(base: Base, renderer: Renderer, prompts: list[list[int]], sampling: Sampling) -> list[list[int]]:
    from transformers import GenerationConfig

    model, ends = base.causal, end_ids(base, renderer)
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), base.pad_id)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    config = GenerationConfig(
        do_sample=True,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=0,
        max_new_tokens=sampling.max_new_tokens,
        eos_token_id=sorted(ends),
        pad_token_id=base.pad_id,
        use_cache=True,
    )
    # What the base's folder asks for (a penalty of repetition, a top-k) would make the samples those of another policy.
    own, model.generation_config = model.generation_config, config
    was_training = model.training
    model.eval()
    try:
        with torch.autocast(base.device.type, dtype=torch.bfloat16, enabled=base.autocast):
            drawn = model.generate(ids.to(base.device), attention_mask=mask.to(base.device), generation_config=config)
    finally:
        model.generation_config = own
        model.train(was_training)
    return [_until_end(row, ends) for row in drawn[:, width:].tolist()]


def _until_end(ids: list[int], ends: set[int]) -> list[int]:
    """An answer up to its first end token, which it keeps; behind that lies padding."""
    at = next((n for n, token in enumerate(ids) if token in ends), len(ids) - 1)
    return ids[: at + 1]


def collate(
    prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], pad_id: int, device: torch.device
) -> AnswerBatch:
    """Prompts with their answers as one batch, no longer than its longest pair."""
    ids, mask = pad_right([[*prompt, *answer][:-1] for prompt, answer in zip(prompts, answers)], pad_id, device)
    rows, columns, targets = [], [], []
    for row, (prompt, answer) in enumerate(zip(prompts, answers)):
        rows += [row] * len(answer)
        columns += range(len(prompt) - 1, len(prompt) + len(answer) - 1)
        targets += answer
    places = (torch.tensor(t, dtype=torch.int64).to(device) for t in (rows, columns, targets))
    return AnswerBatch(ids, mask, *places)


def states_of(base: Base, batch: AnswerBatch) -> Tensor:
    """The last layer's states that tell of the answers' tokens: (n_tokens, width), through the adapter in use."""
    return base.hidden(batch.ids, batch.mask)[batch.rows, batch.columns]


def logprobs_of(base: Base, states: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """log p(targets) from `states` (n_tokens, width): float32 (n_tokens,). With gradients, at the memory of one
    chunk."""

    def chunk_of(states: Tensor, targets: Tensor) -> Tensor:
        return losses.token_logprobs(base.logits(states) / temperature, targets)

    found = []
    for part in _chunks(base, len(targets)):
        if torch.is_grad_enabled():
            found.append(
                checkpoint(chunk_of, states[part], targets[part], use_reentrant=False, preserve_rng_state=False)
            )
        else:
            found.append(chunk_of(states[part], targets[part]))
    return torch.cat(found)


def _chunks(base: Base, n_tokens: int) -> Iterator[slice]:
    size = max(1, CHUNK_LOGITS // base.causal.get_output_embeddings().weight.shape[0])
    for begin in range(0, n_tokens, size):
        yield slice(begin, begin + size)


@dataclass(frozen=True)
class Measured:
    """What a pass tells of every answer, right-padded with 0: float32 (n_answers, n_tokens) on the device.

    entropy: nats per token. values: of the state before each token; all 0 without a value head.
    """

    logprobs: Tensor
    entropy: Tensor
    values: Tensor


def answer_mask(rollouts: Rollouts, device: torch.device) -> Tensor:
    """True where an answer has a token: bool (n_answers, n_tokens)."""
    lengths = torch.tensor([len(answer) for answer in rollouts.answers], device=device)
    return torch.arange(int(lengths.max()), device=device)[None] < lengths[:, None]


@torch.no_grad()
def measure(
    base: Base, rollouts: Rollouts, *, temperature: float, micro_batch: int, value_head: torch.nn.Linear | None = None
) -> Measured:
    """A pass over all answers through the adapter in use, `micro_batch` at a time, those of like length together."""
    mask = answer_mask(rollouts, base.device)
    logprobs, spread, values = (torch.zeros(mask.shape, device=base.device) for _ in range(3))
    lengths = [len(p) + len(a) for p, a in zip(rollouts.prompts, rollouts.answers)]
    by_length = sorted(range(len(rollouts)), key=lambda i: (lengths[i], i))
    for begin in range(0, len(by_length), micro_batch):
        chosen = by_length[begin : begin + micro_batch]
        batch = collate(
            [rollouts.prompts[i] for i in chosen], [rollouts.answers[i] for i in chosen], base.pad_id, base.device
        )
        states = states_of(base, batch)
        rows, columns = mask[chosen].nonzero(as_tuple=True)
        rows = torch.tensor(chosen, device=base.device)[rows]
        for part in _chunks(base, len(batch.targets)):
            logits = base.logits(states[part]) / temperature
            logprobs[rows[part], columns[part]] = losses.token_logprobs(logits, batch.targets[part])
            spread[rows[part], columns[part]] = losses.entropy(logits)
        if value_head is not None:
            values[rows, columns] = value_head(states.float()).squeeze(-1)
    return Measured(logprobs, spread, values)
