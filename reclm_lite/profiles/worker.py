"""One llama.cpp context with several sequences, refilled as they finish.

A slot is a llama.cpp sequence with its own stretch of the key-value cache (`kv_unified = false`: attention then
reads one sequence's cells, not everybody's). Every step decodes one batch that mixes the prompts of slots just
filled (prefill) with one token of every slot that is writing (decode). A prompt that begins like what some slot
already holds is not decoded again: the cells are copied (`llama_memory_seq_cp`) or, in the same slot, kept. All
bookkeeping lives in arrays over slots, so that a step costs a handful of numpy calls.

Three things about llama.cpp shape a step. It cuts a batch into parts of equally many tokens for each of their
sequences, which must follow one another, and every part reads all weights: so the prompts of a step get equally many
tokens, and no free slot stays between two that are at work (`_move_to_front`). Its products of matrices take four
tokens at once, and what is left over one by one: so prompts get multiples of four. And its attention adds up in another
order from 64 tokens of a sequence on: so a prompt goes in by MAX_CHUNK tokens at most, and an answer then has the same
bits whatever the number of slots and threads and whoever is alongside.

Used by one thread at a time; `scheduler.Engine` deals out the prompts.
"""

import hashlib
import queue
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from ..runtime import Model
from .answers import StopSignal
from .constrained_decoding import END, NEWLINE, PLAIN, SILENT, AnswerConstraint, TokenTable
from .llama_context import Batch, LlamaCalls
from .sampling import Sampling
from .slots import GenerationResult, Pending, Slots

MIN_COPY_TOKENS = 16  # a copy moves a slot's whole stretch of cells, so a short common prefix is cheaper decoded
MAX_CHUNK = 61  # tokens of a prompt in one step: sixty beside the one that every sequence gets
REFILL_SHARE = 8  # slots are refilled when one in so many is free
MIN_ALONGSIDE = 4  # beside so many others that write, fixed words go in one by one


class Worker:
    """A context of `n_slots` sequences of `n_ctx` tokens over a model that others may share. Close it."""

    def __init__(
        self,
        model: Model,
        table: TokenTable,
        *,
        n_slots: int,
        n_ctx: int,
        n_batch: int,
        n_threads: int,
        share_prefix: bool,
        **context_params: Any,
    ):
        self.model, self.table, self.n_slots, self.n_ctx = model, table, n_slots, n_ctx
        # llama.cpp rounds a sequence's share up to a multiple of 256; the surplus is not used.
        n_ctx_total = -(-n_ctx // 256) * 256 * n_slots
        self.n_batch = max(min(n_batch, n_ctx_total, MAX_CHUNK * n_slots), n_slots)
        settings = {"n_ubatch": self.n_batch, "kv_unified": False, "n_outputs_max": n_slots, **context_params}
        self.context = model.context(
            n_threads=n_threads, n_ctx=n_ctx_total, n_seq_max=n_slots, n_batch=self.n_batch, **settings
        )
        self.n_vocab = model.n_vocab
        self.share_prefix = share_prefix
        self.llama = LlamaCalls(model, self.context, self.n_vocab)
        self._batch = Batch(model.lib, self.n_batch)
        from ..kernels import decoding  # numba is slow to load

        self._decoding = decoding
        self._best, self._gap = np.zeros(n_slots, np.int64), np.zeros(n_slots, np.float32)
        self.n_reused_tokens = 0
        self.n_decoded_tokens = 0
        self.n_steps = 0
        self.seconds_running = 0.0
        self.seconds_waiting = 0.0

    def close(self) -> None:
        """Frees the context. Safe to call twice."""
        self.context.close()

    @property
    def untouched_bytes(self) -> int:
        """What llama.cpp has set aside and not written to yet: it becomes resident with the first full batch."""
        taken = self.context.buffer_bytes
        return taken.get("compute", 0) + taken.get("output", 0)

    def run(
        self,
        prompts: queue.SimpleQueue[Pending | None],
        emit: Callable[[GenerationResult], None],
        stop_signal: StopSignal,
        max_new_tokens: int,
        sampling: Sampling,
    ) -> None:
        """Answer what comes from `prompts` until None comes or the stop signal is set; each answer goes to `emit`.

        It waits for the next prompt whenever a slot is free, so that what shares a batch never depends on time.
        """
        started, waited = time.perf_counter(), self.seconds_waiting
        try:
            self._run(prompts, emit, stop_signal, max_new_tokens, sampling)
        finally:
            self.seconds_running += time.perf_counter() - started - (self.seconds_waiting - waited)

    def _run(
        self,
        prompts: queue.SimpleQueue,
        emit: Callable,
        stop_signal: StopSignal,
        max_new_tokens: int,
        sampling: Sampling,
    ) -> None:
        self.llama.clear()
        slots = Slots(self.n_slots, self.n_ctx)
        constraint = AnswerConstraint(self.table, self.n_slots) if sampling.guided else None
        head: Pending | None = None
        exhausted = refilling = False
        while not stop_signal.stop.is_set():
            n_free = self.n_slots - int(slots.active.sum())
            exhausted = exhausted or stop_signal.drain.is_set()
            refilling = n_free > 0 and (refilling or n_free * REFILL_SHARE >= self.n_slots)
            while refilling and n_free and not exhausted:
                if head is None:
                    started = time.perf_counter()
                    head = prompts.get()
                    self.seconds_waiting += time.perf_counter() - started
                    if head is None:
                        exhausted = True
                        break
                slot = self._admit(slots, head, max_new_tokens)
                if slot is None:
                    break
                if constraint is not None:
                    slots.extend(slot, constraint.begin(slot)[: max_new_tokens - 1])
                n_free -= 1
                head = None
            if n_free == self.n_slots:
                return
            if self.share_prefix:
                self._move_to_front(slots, constraint)
            for slot in self._step(slots, constraint, sampling):
                emit(self._result(slots, slot))
                slots.free(slot)

    def _admit(self, slots: Slots, pending: Pending, max_new_tokens: int) -> int | None:
        """Put a prompt into a free slot, keeping or copying what needs no decoding; returns the slot.

        None: wait a step, because a slot is just now decoding a beginning worth copying.
        """
        tokens = pending.tokens
        n = len(tokens)
        target = source = int(np.argmin(slots.active))
        reused = 0
        if self.share_prefix:
            same = slots.tokens[:, :n] == tokens
            common = np.where(same.all(axis=1), n, same.argmin(axis=1))
            common = np.minimum(np.minimum(common, slots.n_known), n - 1)
            ready = np.minimum(common, slots.n_cached)
            own = np.where(slots.active, -1, ready)
            target = int(own.argmax())
            reused = max(0, int(own[target]))
            source = int(ready.argmax())
            if int(common.max()) >= int(ready[source]) + MIN_COPY_TOKENS and slots.active.any():
                return None
            if ready[source] >= reused + MIN_COPY_TOKENS and source != target:
                self.llama.copy(source, target)
                reused = int(ready[source])
        if not self.llama.keep(target, reused):
            reused = 0
        slots.fill(target, pending, reused, max_new_tokens)
        self.n_reused_tokens += reused
        return target

    def _move_to_front(self, slots: Slots, constraint: AnswerConstraint | None) -> None:
        """Let no free slot stand between two that are at work: the last one moves to the first gap."""
        active = np.flatnonzero(slots.active)
        n = len(active)
        if n == 0 or active[-1] == n - 1:
            return
        gaps = np.flatnonzero(~slots.active[:n]).tolist()
        for target, source in zip(gaps, active[::-1].tolist()):
            self.llama.copy(source, target)
            slots.move(source, target)
            if constraint is not None:
                constraint.move(source, target)

    def _step(self, slots: Slots, constraint: AnswerConstraint | None, sampling: Sampling) -> list[int]:
        """Decode one batch; returns the slots that have finished, in ascending order."""
        batch = self._batch
        total, n_speaking = self._decoding.fill_batch(
            slots.tokens,
            slots.n_known,
            slots.n_cached,
            slots.n_prompt,
            self.n_batch,
            MAX_CHUNK,
            MIN_ALONGSIDE,
            batch.token,
            batch.pos,
            batch.seq,
            batch.logits,
            slots.speaking,
        )
        batch.c.n_tokens = total
        logits = self.llama.decode(batch, n_speaking)
        self.n_decoded_tokens += total
        self.n_steps += 1
        if logits is None:
            return []
        speaking = slots.speaking[:n_speaking]
        chosen = self._choose(slots, speaking, logits, sampling)
        forced = constraint.choose(speaking, logits, chosen) if constraint is not None else {}
        slots.append(speaking, chosen)
        for slot, tokens in forced.items():
            slots.extend(slot, tokens[: int(slots.n_most[slot] - slots.n_known[slot])])
        kinds = self.table.kinds(chosen)
        ended = (kinds != PLAIN) | (slots.n_known[speaking] >= slots.n_most[speaking])
        dead: set[int] = set()
        if constraint is not None:
            dead = constraint.dead
            ended |= np.isin(speaking, list(dead)) if dead else False
            if sampling.temperature <= 0:
                for slot, gap in constraint.gaps.items():  # between what was taken and what else the grammar allows
                    slots.min_gap[slot] = min(slots.min_gap[slot], gap)
        return [
            slot
            for at in np.flatnonzero(ended)
            if self._has_ended(slots, slot := int(speaking[at]), int(kinds[at]), dead)
        ]

    def _has_ended(self, slots: Slots, slot: int, kind: int, dead: set[int]) -> bool:
        """Whether an answer is over with its last token, or beyond help. A line break ends it, unless nothing has been
        written yet."""
        if kind == END or slot in dead or (kind == NEWLINE and self._text(slots, slot)):
            slots.stopped[slot] = True
            return True
        return bool(slots.n_known[slot] >= slots.n_most[slot])

    def _choose(self, slots: Slots, speaking: np.ndarray, logits: np.ndarray, sampling: Sampling) -> np.ndarray:
        """int64 (len(speaking),): the next token of each; logits is float32 (len(speaking), n_vocab)."""
        if sampling.temperature > 0:
            return np.array(
                [self._draw(slots, int(s), logits[at], sampling) for at, s in enumerate(speaking)], np.int64
            )
        n = len(speaking)
        self._decoding.best_two(logits, self._best, self._gap)
        slots.min_gap[speaking] = np.minimum(slots.min_gap[speaking], self._gap[:n])
        return self._best[:n]

    def _draw(self, slots: Slots, slot: int, logits: np.ndarray, sampling: Sampling) -> int:
        rng = slots.draws[slot]
        if rng is None:
            prompt = slots.tokens[slot, : slots.n_prompt[slot]].tobytes()
            digest = hashlib.sha256(f"{sampling.seed}|".encode() + prompt).digest()
            rng = slots.draws[slot] = np.random.default_rng(int.from_bytes(digest[:8], "little"))
        k = min(sampling.top_k or self.n_vocab, self.n_vocab)
        best = np.argpartition(-logits, k - 1)[:k] if k < self.n_vocab else np.arange(k)
        best = best[np.lexsort((best, -logits[best]))]
        weights = np.exp((logits[best] - logits[best[0]]).astype(np.float64) / sampling.temperature)
        drawn = np.searchsorted(np.cumsum(weights), rng.random() * weights.sum(), "right")
        return int(best[min(int(drawn), k - 1)])

    def _text(self, slots: Slots, slot: int) -> str:
        """The first line of what a slot has written."""
        tokens = slots.tokens[slot, slots.n_prompt[slot] : slots.n_known[slot]]
        kinds = self.table.kinds(tokens)
        raw = b"".join(map(self.table.piece, tokens[(kinds != END) & (kinds != SILENT)].tolist()))
        return raw.decode("utf-8", errors="replace").strip().split("\n")[0].strip()

    def _result(self, slots: Slots, slot: int) -> GenerationResult:
        n_prompt, gap = int(slots.n_prompt[slot]), float(slots.min_gap[slot])
        return GenerationResult(
            int(slots.index[slot]),
            self._text(slots, slot),
            n_prompt,
            int(slots.n_known[slot]) - n_prompt,
            "stop" if slots.stopped[slot] else "length",
            int(slots.n_shared[slot]),
            gap if np.isfinite(gap) else None,
            time.perf_counter() - slots.started[slot],
        )
