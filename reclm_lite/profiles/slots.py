"""What each slot of a worker holds: prompts, tokens and answers, in arrays over slots."""

import time
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class GenerationResult:
    """What became of one prompt. `finish`: "stop", "length" (cut at max_new_tokens) or "too_long" (not tried).

    n_shared_tokens: of the prompt, taken from another that began alike. min_gap: the least distance between the two
    likeliest tokens, in logits (greedy only; None: not measured). seconds: from taking a slot to the answer.
    """

    index: int
    text: str
    n_prompt_tokens: int
    n_new_tokens: int
    finish: str
    n_shared_tokens: int = 0
    min_gap: float | None = None
    seconds: float = field(default=0.0, compare=False)


@dataclass
class Pending:
    """A prompt that waits for a slot."""

    index: int
    tokens: np.ndarray  # int32 (n_prompt_tokens,)


class Slots:
    """What each slot holds: `n_known` tokens of `tokens`, of which `n_cached` are in the key-value cache (all, in a
    free slot)."""

    def __init__(self, n_slots: int, n_ctx: int):
        self.speaking = np.zeros(n_slots, np.int64)  # those whose next token the last step has brought
        self.tokens = np.full((n_slots, n_ctx), -1, np.int32)
        self.n_known = np.zeros(n_slots, np.int64)
        self.n_cached = np.zeros(n_slots, np.int64)
        self.n_prompt = np.zeros(n_slots, np.int64)
        self.n_most = np.zeros(n_slots, np.int64)  # tokens that end an answer
        self.n_shared = np.zeros(n_slots, np.int64)
        self.index = np.zeros(n_slots, np.int64)
        self.active = np.zeros(n_slots, bool)
        self.stopped = np.zeros(n_slots, bool)
        self.min_gap = np.full(n_slots, np.inf, np.float32)
        self.started = [0.0] * n_slots
        self.draws: list[np.random.Generator | None] = [None] * n_slots

    def fill(self, slot: int, pending: Pending, n_cached: int, max_new_tokens: int) -> None:
        n = len(pending.tokens)
        self.n_most[slot] = n + max_new_tokens
        self.tokens[slot, :n] = pending.tokens
        self.n_known[slot] = self.n_prompt[slot] = n
        self.n_cached[slot] = self.n_shared[slot] = n_cached
        self.index[slot] = pending.index
        self.active[slot] = True
        self.stopped[slot] = False
        self.min_gap[slot] = np.inf
        self.started[slot] = time.perf_counter()
        self.draws[slot] = None

    def move(self, source: int, target: int) -> None:
        """A free slot takes over from one that is at work, which stays as one that has finished."""
        for array in (
            self.tokens,
            self.n_known,
            self.n_cached,
            self.n_prompt,
            self.n_most,
            self.n_shared,
            self.index,
            self.stopped,
            self.min_gap,
        ):
            array[target] = array[source]
        self.started[target], self.draws[target] = self.started[source], self.draws[source]
        self.active[target] = True
        self.free(source)

    def free(self, slot: int) -> None:
        """Its tokens stay for those who begin alike; the last one, which was never decoded, is not known any more."""
        self.active[slot] = False
        self.n_known[slot] = self.n_cached[slot]

    def append(self, slots: np.ndarray, tokens: np.ndarray) -> None:
        self.tokens[slots, self.n_known[slots]] = tokens
        self.n_known[slots] += 1

    def extend(self, slot: int, tokens: tuple[int, ...]) -> None:
        """Tokens that follow without the model's being asked."""
        n = int(self.n_known[slot])
        self.tokens[slot, n : n + len(tokens)] = tokens
        self.n_known[slot] += len(tokens)
