"""Which token sequences a gate looks at: the ends of 64 prompts, each with greedy text after it, and a long passage.

The work is bounded by the model's size, so that the float32 reference of a billion parameters takes two minutes on two
cores: small models see long prompts, large ones the last few tokens of each. The long passage is what shows errors
that grow with the position (rotary embeddings and their scaling, sliding windows).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from reclm_lite.convert.parity.logits import greedy_tokens
from reclm_lite.convert.parity.sentences import CODE, PROFILES, SENTENCES
from reclm_lite.errors import ModelError
from reclm_lite.runtime import Model

N_PROMPTS = 64
STORED_BYTES = 512 << 20  # of reference logits on disk, at most
MAX_STORED = 2048  # positions, at most
_WORK = 4.4e12  # multiply-adds times two, for the reference to do
_LARGE = 200_000_000  # parameters
_MIN_PROMPT_TOKENS, _MAX_PROMPT_TOKENS = 12, 256
_PROMPT_POSITIONS = 8  # of every prompt, compared beside those of the greedy text


@dataclass(frozen=True)
class Plan:
    """What is computed: token ids, prompt first and greedy continuation after it, and which positions are looked at.

    wanted[i]: rising positions within sequences[i], all of them compared by their most likely tokens; `stored[i]`,
    a mask over wanted[i], says which of them are compared by all logits. n_prompt[i]: tokens of the prompt;
    n_greedy: how many sequences, from the first, end in greedy text.
    """

    sequences: list[list[int]]
    wanted: list[np.ndarray]
    stored: list[np.ndarray]
    n_prompt: list[int]
    n_greedy: int

    @property
    def n_stored(self) -> int:
        return sum(int(mask.sum()) for mask in self.stored)


def stored_positions(n_vocab: int) -> int:
    """How many positions' logits are kept on disk for a vocabulary of `n_vocab` tokens."""
    return max(64, min(MAX_STORED, STORED_BYTES // (4 * n_vocab)))


def make_plan(model: Model, prompts: Sequence[str], n_parameters: int, *, n_threads: int) -> Plan:
    """The plan for a causal model; the greedy text is decoded by `model` itself.

    prompts: the caller's; sentences of this package fill up to N_PROMPTS where they do not give as many different ones.
    """
    n_context = model.n_ctx_train
    n_new = min(12 if n_parameters > _LARGE else 24, max(1, n_context // 2))
    n_long = min(384 if n_parameters > _LARGE else 1024, n_context)
    room = (_WORK / (2 * n_parameters) - n_long) / N_PROMPTS - n_new
    n_prompt = int(min(max(room, _MIN_PROMPT_TOKENS), _MAX_PROMPT_TOKENS, n_context - n_new))
    if n_prompt < 1:
        raise ModelError(f"expected a context of at least 2 tokens, found {n_context} in {model.path}")
    starts = _starts(model, prompts, n_prompt)
    made = greedy_tokens(model, starts, n_new, n_threads=n_threads)
    sequences = [start + new for start, new in zip(starts, made, strict=True)]
    wanted = []
    for start, sequence in zip(starts, sequences, strict=True):
        # The logits of position p say which token comes at p + 1.
        prompt_part = np.unique(np.linspace(0, len(start) - 1, _PROMPT_POSITIONS, dtype=np.int64))
        wanted.append(np.union1d(prompt_part, np.arange(len(start) - 1, len(sequence) - 1)))
    passage = _passage(model, prompts, n_long)
    sequences.append(passage)
    n_left = max(stored_positions(model.n_vocab) // 2, 1)
    wanted.append(np.unique(np.linspace(0, len(passage) - 1, min(len(passage), n_left), dtype=np.int64)))
    return Plan(
        sequences,
        wanted,
        _stored(wanted, [*map(len, starts), len(passage) + 1], stored_positions(model.n_vocab)),
        [*map(len, starts), 0],
        len(starts),
    )


def _stored(wanted: list[np.ndarray], n_prompt: list[int], limit: int) -> list[np.ndarray]:
    """Masks over the wanted positions, at most `limit` in all: those of greedy text first, the others evenly
    thinned."""
    greedy = np.concatenate([positions >= n - 1 for positions, n in zip(wanted, n_prompt, strict=True)])
    keep = np.zeros(len(greedy), bool)
    for part in (np.flatnonzero(greedy), np.flatnonzero(~greedy)):
        room = min(len(part), limit - int(keep.sum()))
        if room > 0:
            keep[part[np.linspace(0, len(part) - 1, room, dtype=np.int64)]] = True
    return np.split(keep, np.cumsum([len(positions) for positions in wanted])[:-1])


def _starts(model: Model, prompts: Sequence[str], n_prompt: int) -> list[list[int]]:
    """The last `n_prompt` tokens of N_PROMPTS different prompts, after BOS where the vocabulary has it added."""
    head = model.tokenize("", add_special=True)[:1]
    head = head if head == [model.lib.llama_vocab_bos(model.vocab)] and n_prompt > 1 else []
    step = max(1, len(prompts) // N_PROMPTS)
    chosen: dict[tuple[int, ...], None] = {}
    for text in (*prompts[::step], *prompts, *SENTENCES, *PROFILES, *CODE):
        tokens = model.tokenize(text, add_special=False)[-(n_prompt - len(head)) :]
        if tokens:
            chosen[(*head, *tokens)] = None
        if len(chosen) == N_PROMPTS:
            break
    if len(chosen) < N_PROMPTS:
        raise ModelError(
            f"expected {N_PROMPTS} prompts of different token ids, found {len(chosen)}; check the tokenizer"
        )
    return [list(tokens) for tokens in chosen]


def _passage(model: Model, prompts: Sequence[str], n_tokens: int) -> list[int]:
    """Prompts and sentences one after the other, `n_tokens` tokens of them."""
    tokens = model.tokenize("", add_special=True)[:1]
    while len(tokens) < n_tokens:
        before = len(tokens)
        for text in (*prompts, *SENTENCES):
            tokens += model.tokenize(text + "\n", add_special=False)
            if len(tokens) >= n_tokens:
                break
        if len(tokens) == before:
            raise ModelError("expected token ids for plain sentences, found none; check the tokenizer")
    return tokens[:n_tokens]
