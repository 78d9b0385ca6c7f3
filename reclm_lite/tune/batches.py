"""Rendered dialogues to batches: padded ones, or rows in which several dialogues lie one after the other.

What a step sees is decided by the seed and its number alone: the order of an epoch is a permutation, a step takes the
next `batch` dialogues of it, and `micro_batches` cuts those into passes that fit the memory. The loss of a step is the
sum over its passes divided by the weight of all its answer tokens, so that cutting changes nothing but the order of
sums.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from ..dialogue.records import Dialogue
from ..errors import InputError
from ..prompts.forms import prompt_form
from ..prompts.spans import LABEL, ORIGINS, TEACHER
from .rendering import Renderer, Tokens

T = TypeVar("T")
_LABEL, _TEACHER = 1 + ORIGINS.index(LABEL), 1 + ORIGINS.index(TEACHER)
_OPEN, _CLOSE = (",", ":"), (",", ";")  # what a phrase of a profile follows, and what follows it


@dataclass(frozen=True)
class Weights:
    """Of answer tokens in the loss, where it is not 1. label: of Yes and No. phrase: of a token that begins a phrase of
    a profile
    (half of it: of one that ends one), where a model decides what to say; the rest is saying it.
    """

    label: float = 1.0
    phrase: float = 1.0


@dataclass(frozen=True)
class Example:
    """A dialogue's tokens, its id, and weights: float32 (n,), of each token in the loss."""

    id: str
    tokens: Tokens
    weights: np.ndarray


@dataclass(frozen=True)
class Micro:
    """What one pass computes. ids, targets: int64 (rows, length); the target of a place is the token after it.

    weights: float32 (rows, length), of the target in the loss, 0 where it is no answer. mask: int64 (rows, length), 1
    where a token is, or None; positions: int64 (rows, length) where dialogues are packed, or None. is_label: bool
    (rows, length), the target is the first token of Yes or No.
    """

    ids: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor
    is_label: torch.Tensor
    mask: torch.Tensor | None = None
    positions: torch.Tensor | None = None

    def to(self, device: torch.device) -> "Micro":
        """The same on a device."""
        return Micro(
            *(
                None if t is None else t.to(device)
                for t in (self.ids, self.targets, self.weights, self.is_label, self.mask, self.positions)
            )
        )


def render(
    dialogues: Iterable[Dialogue], renderer: Renderer, max_length: int, weights: Weights = Weights()
) -> tuple[list[Example], int]:
    """Examples of dialogues, and how many were left out since they have more than `max_length` tokens.

    Raises InputError where a dialogue is of the other form, or where none fits.
    """
    examples, n_long = [], 0
    opening, closing = (_table(renderer, marks) for marks in (_OPEN, _CLOSE))
    for dialogue in dialogues:
        check_form(dialogue, renderer)
        tokens = renderer.dialogue(dialogue.messages)
        if len(tokens) > max_length:
            n_long += 1
        else:
            examples.append(Example(dialogue.id, tokens, _weigh(tokens, weights, opening, closing)))
    if not examples and n_long:
        raise InputError(
            f"expected dialogues of at most {max_length} tokens, found {n_long}, all longer; build them shorter, or "
            "give a larger --max-length, up to the base's context"
        )
    return examples, n_long


def _table(renderer: Renderer, marks: Sequence[str]) -> np.ndarray:
    """bool (vocabulary,): which tokens say one of these marks of the answer's form."""
    vocabulary = renderer.tokenizer.get_vocab()
    found = np.zeros(max(vocabulary.values()) + 1, dtype=bool)
    found[[n for piece, n in vocabulary.items() if len(piece) <= 4 and piece.lstrip("\u0120\u2581 ") in marks]] = True
    return found


def _weigh(tokens: Tokens, weights: Weights, opening: np.ndarray, closing: np.ndarray) -> np.ndarray:
    found = tokens.is_answer.astype(np.float32)
    found[tokens.is_answer & (tokens.origin == _LABEL)] *= weights.label
    if weights.phrase != 1:
        teacher = tokens.origin == _TEACHER
        after = np.concatenate([[False], teacher[:-1]])  # an answer's end, too, closes a phrase
        opens = teacher & np.concatenate([[False], opening[tokens.ids[:-1]]])
        closes = tokens.is_answer & after & (closing[tokens.ids] | ~teacher)
        found[opens | closes] = weights.phrase * (opens + 0.5 * closes)[opens | closes]
    return found


def check_form(dialogue: Dialogue, renderer: Renderer) -> None:
    """Raises InputError unless the dialogue's form is that of the base."""
    if dialogue.form != renderer.form:
        have = "a chat template" if prompt_form(renderer.form).uses_chat_template else "no chat template"
        raise InputError(
            f"expected dialogues of form {renderer.form!r}, since the base has {have}, found {dialogue.form!r} in "
            f"{dialogue.id}; "
            f"build them with `reclm dialogue build --form {renderer.form}`, or give another base"
        )


def spread(found: Sequence[T], n: int) -> list[T]:
    """At most `n` of these, evenly over the whole: a file has users before items, and both are to be measured."""
    if len(found) <= n:
        return list(found)
    return [found[i * len(found) // n] for i in range(n)]


def step_indices(n: int, batch: int, seed: int, step: int) -> np.ndarray:
    """int64 (batch,) or fewer: which of `n` examples step `step` (from 0) sees. Every epoch sees each example once."""
    per_epoch = steps_per_epoch(n, batch)
    epoch, place = divmod(step, per_epoch)
    order = np.random.default_rng((seed, epoch)).permutation(n)
    return order[place * batch : (place + 1) * batch]


def steps_per_epoch(n: int, batch: int) -> int:
    """The last step of an epoch may be smaller."""
    return max(1, -(-n // batch))


def micro_batches(examples: Sequence[Example], *, max_tokens: int, packing: bool, pad_id: int) -> Iterator[Micro]:
    """Cut a step's examples into passes of at most `max_tokens` tokens (one example more than that has a pass of its
    own).

    packing: one row a pass, dialogues one after the other, each with positions of its own. Else rows of like length,
    padded on the right.
    """
    lengths = [len(example.tokens) for example in examples]
    if packing:
        for row in _first_fit(lengths, max_tokens):
            yield _packed([examples[i] for i in row])
    else:
        for chosen in by_length(lengths, max_tokens):
            yield _padded([examples[i] for i in chosen], pad_id)


def by_length(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Indices of sequences in passes, the longest first, each of at most `max_tokens` tokens with its padding (or of
    one sequence)."""
    passes: list[list[int]] = []
    for i in _longest_first(lengths):
        if passes and (len(passes[-1]) + 1) * lengths[passes[-1][0]] <= max_tokens:
            passes[-1].append(i)
        else:
            passes.append([i])
    return passes


def _longest_first(lengths: Sequence[int]) -> list[int]:
    return sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))


def _first_fit(lengths: Sequence[int], room: int) -> list[list[int]]:
    rows: list[list[int]] = []
    left: list[int] = []
    for i in _longest_first(lengths):
        place = next((n for n, space in enumerate(left) if space >= lengths[i]), None)
        if place is None:
            rows.append([i])
            left.append(room - lengths[i])
        else:
            rows[place].append(i)
            left[place] -= lengths[i]
    return rows


def _targets(example: Example) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What follows each token, its weight, and whether it is the first token of Yes or No."""
    tokens, weights = example.tokens, example.weights
    is_label = tokens.origin == _LABEL
    first = is_label & ~np.concatenate([[False], is_label[:-1]])
    return np.append(tokens.ids[1:], 0), np.append(weights[1:], 0.0), np.append(first[1:], False)


def _packed(examples: Sequence[Example]) -> Micro:
    parts = [_targets(e) for e in examples]
    ids, targets, weights, labels = (
        np.concatenate(column) for column in ([e.tokens.ids for e in examples], *zip(*parts, strict=True))
    )
    positions = np.concatenate([np.arange(len(e.tokens)) for e in examples])
    return Micro(
        torch.from_numpy(ids.astype(np.int64))[None],
        torch.from_numpy(targets.astype(np.int64))[None],
        torch.from_numpy(weights.astype(np.float32))[None],
        torch.from_numpy(labels)[None],
        None,
        torch.from_numpy(positions)[None],
    )


def _padded(examples: Sequence[Example], pad_id: int) -> Micro:
    ids, mask = pad_right([e.tokens.ids for e in examples], pad_id, torch.device("cpu"))
    targets, weights, labels = (
        torch.full_like(ids, pad_id),
        torch.zeros(ids.shape),
        torch.zeros(ids.shape, dtype=torch.bool),
    )
    for row, example in enumerate(examples):
        n = len(example.tokens)
        following, weight, label = _targets(example)
        targets[row, :n] = torch.from_numpy(following.astype(np.int64))
        weights[row, :n] = torch.from_numpy(weight.astype(np.float32))
        labels[row, :n] = torch.from_numpy(label)
    return Micro(ids, targets, weights, labels, mask)


def pad_right(
    sequences: Sequence[Sequence[int] | np.ndarray], pad_id: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """ids, mask: int64 (n, longest) of token sequences."""
    longest = max(map(len, sequences))
    ids = torch.full((len(sequences), longest), pad_id)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.as_tensor(sequence)
        mask[row, : len(sequence)] = 1
    return ids.to(device), mask.to(device)
