"""One llama.cpp context with several sequences, refilled as they finish.

A slot is a llama.cpp sequence with its own stretch of the key-value cache (`kv_unified = false`: attention then
reads one sequence's cells, not everybody's). Every step decodes one batch that mixes the prompts of slots just
filled (prefill) with one token of every slot that is writing (decode). A prompt that begins like what some slot
already holds is not decoded again: the cells are copied (`llama_memory_seq_cp`) or, in the same slot, kept. All
bookkeeping lives in arrays over slots, so that a step costs a handful of numpy calls.

Used by one thread at a time; `scheduler.Engine` deals out the prompts.
"""

import codecs
import ctypes
import hashlib
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import ModelError
from ..runtime import Model, last_errors
from . import constrain

MIN_COPY_TOKENS = 16  # a copy moves a slot's whole stretch of cells, so a short common prefix is cheaper decoded
N_GUIDED_CHOICES = 128  # likeliest tokens that are tried before the form gives up on an answer
_UNKNOWN, _PLAIN, _NEWLINE, _END = 0, 1, 2, 3


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen: the likeliest (temperature 0), or a seeded draw among the `top_k` likeliest.

    guided: choices that no valid profile could contain are passed over, see `constrain`.
    """

    temperature: float = 0.0
    top_k: int = 40
    seed: int = 0
    guided: bool = False

    def identity(self) -> str:
        """A text that two settings share only if they choose alike."""
        how = "greedy" if self.temperature <= 0 else f"t={self.temperature} k={self.top_k} seed={self.seed}"
        return f"{how}, form {constrain.FORM_VERSION}" if self.guided else how


GREEDY = Sampling()


@dataclass(frozen=True)
class GenerationResult:
    """What became of one prompt. `finish`: "stop", "length" (cut at max_new_tokens) or "too_long" (not tried)."""

    index: int
    text: str
    n_prompt_tokens: int
    n_new_tokens: int
    finish: str


@dataclass
class Pending:
    """A prompt that waits for a slot."""

    index: int
    tokens: np.ndarray  # int32 (n_prompt_tokens,)


class _Batch:
    """A `llama_batch` over numpy arrays, kept alive here; every token belongs to exactly one sequence."""

    def __init__(self, lib: Any, n_batch: int):
        self.token = np.zeros(n_batch, np.int32)
        self.pos = np.zeros(n_batch, np.int32)
        self.seq = np.zeros(n_batch, np.int32)
        self.logits = np.zeros(n_batch, np.int8)
        self._n_seq = np.ones(n_batch, np.int32)
        # llama_batch.seq_id is int32 **: element i points at seq[i], once and for all.
        self._seq_pointers = self.seq.ctypes.data + 4 * np.arange(n_batch, dtype=np.uintp)
        fields = dict(lib.llama_batch._fields_)

        def pointer(array: np.ndarray, name: str) -> Any:
            return ctypes.cast(array.ctypes.data, fields[name])

        self.c = lib.llama_batch(
            0,
            pointer(self.token, "token"),
            None,
            pointer(self.pos, "pos"),
            pointer(self._n_seq, "n_seq_id"),
            pointer(self._seq_pointers, "seq_id"),
            pointer(self.logits, "logits"),
        )


class Worker:
    """A context of `n_slots` sequences of `n_ctx` tokens over a model that others may share. Close it."""

    def __init__(
        self, model: Model, *, n_slots: int, n_ctx: int, n_batch: int, n_threads: int, share_prefix: bool, **context_params: Any
    ):
        lib = model.lib
        self.model, self.n_slots, self.n_ctx = model, n_slots, n_ctx
        # llama.cpp rounds a sequence's share up to a multiple of 256; the surplus is not used.
        n_ctx_total = -(-n_ctx // 256) * 256 * n_slots
        self.n_batch = max(min(n_batch, n_ctx_total), n_slots)
        settings = {"n_ubatch": self.n_batch, "kv_unified": False, "n_outputs_max": n_slots, **context_params}
        self.context = model.context(n_threads=n_threads, n_ctx=n_ctx_total, n_seq_max=n_slots, n_batch=self.n_batch, **settings)
        self.n_vocab = model.n_vocab
        self.share_prefix = share_prefix
        self._memory = lib.llama_get_memory(self.context.handle)
        self._batch = _Batch(lib, self.n_batch)
        self._kind = np.zeros(self.n_vocab, np.int8)
        self.n_reused_tokens = 0
        self.n_decoded_tokens = 0
        self.n_steps = 0

    def close(self) -> None:
        """Frees the context. Safe to call twice."""
        self.context.close()

    def run(
        self,
        prompts: queue.SimpleQueue[Pending | None],
        emit: Callable[[GenerationResult], None],
        stop: threading.Event,
        max_new_tokens: int,
        sampling: Sampling,
    ) -> None:
        """Answer what comes from `prompts` until None comes, or until `stop` is set; each answer goes to `emit`.

        It waits for the next prompt whenever a slot is free, so that what shares a batch never depends on time.
        """
        self.model.lib.llama_memory_clear(self._memory, False)
        slots = _Slots(self.n_slots, self.n_ctx)
        head: Pending | None = None
        exhausted = False
        while not stop.is_set():
            budget = self.n_batch - int(slots.active.sum())
            while not exhausted and budget > 0 and not slots.active.all():
                if head is None:
                    head = prompts.get()
                    if head is None:
                        exhausted = True
                        break
                reused = self._admit(slots, head)
                if reused is None:
                    break
                budget -= len(head.tokens) - reused
                head = None
            if not slots.active.any():
                return
            for slot in self._step(slots, max_new_tokens, sampling):
                emit(self._result(slots, slot))
                slots.active[slot] = False

    def _admit(self, slots: "_Slots", pending: Pending) -> int | None:
        """Put a prompt into a free slot; returns how many of its tokens need no decoding.

        None: wait a step, because a slot is just now decoding a beginning worth copying.
        """
        lib, memory, tokens = self.model.lib, self._memory, pending.tokens
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
                lib.llama_memory_seq_cp(memory, source, target, -1, -1)
                reused = int(ready[source])
        if not lib.llama_memory_seq_rm(memory, target, reused, -1):
            # A memory that cannot forget a tail: forget it all.
            lib.llama_memory_seq_rm(memory, target, -1, -1)
            reused = 0
        slots.fill(target, pending, reused)
        self.n_reused_tokens += reused
        return reused

    def _step(self, slots: "_Slots", max_new_tokens: int, sampling: Sampling) -> list[int]:
        """Decode one batch; returns the slots that have finished, in ascending order."""
        lib, batch = self.model.lib, self._batch
        todo = np.where(slots.active, slots.n_known - slots.n_cached, 0)
        counts = _fit(todo, self.n_batch)
        total = int(counts.sum())
        # Ascending sequence ids without gaps let llama.cpp put all slots into one micro-batch.
        seq = np.repeat(slots.ids, counts)
        ends = np.cumsum(counts)
        pos = np.arange(total, dtype=np.int32) - np.repeat(ends - counts - slots.n_cached, counts)
        batch.seq[:total] = seq
        batch.pos[:total] = pos
        batch.token[:total] = slots.tokens[seq, pos]
        batch.logits[:total] = 0
        speaking = np.flatnonzero((counts > 0) & (counts == todo))
        batch.logits[ends[speaking] - 1] = 1
        batch.c.n_tokens = total
        code = lib.llama_decode(self.context.handle, batch.c)
        if code != 0:
            raise ModelError(
                f"llama.cpp could not decode a batch of {total} tokens with {self.model.path} (code {code}): "
                f"{last_errors() or 'it gave no reason'}; try fewer slots"
            )
        self.n_decoded_tokens += total
        self.n_steps += 1
        slots.n_cached += counts
        if not len(speaking):
            return []
        raw = lib.llama_get_logits(self.context.handle)
        logits = np.ctypeslib.as_array(raw, (len(speaking), self.n_vocab))
        chosen = self._choose(slots, speaking, logits, sampling)
        kinds = self._kinds(chosen)
        slots.append(speaking, chosen)
        stopped = kinds == _END
        for at in np.flatnonzero(kinds == _NEWLINE):
            # A line break ends the text, unless nothing has been written yet.
            stopped[at] = bool(self._text(slots, int(speaking[at])))
        slots.stopped[speaking] = stopped
        full = slots.n_known[speaking] - slots.n_prompt[speaking] >= max_new_tokens
        return [int(slot) for slot in speaking[stopped | full]]

    def _choose(self, slots: "_Slots", speaking: np.ndarray, logits: np.ndarray, sampling: Sampling) -> np.ndarray:
        """int32 (len(speaking),): the next token of each; logits is float32 (len(speaking), n_vocab)."""
        if sampling.temperature <= 0:
            chosen = logits.argmax(axis=1).astype(np.int32)
        else:
            chosen = np.array([self._draw(slots, int(s), logits[at], sampling) for at, s in enumerate(speaking)], np.int32)
        if sampling.guided:
            kinds = self._kinds(chosen)
            for at, slot in enumerate(speaking):
                chosen[at] = self._guided(slots, int(slot), logits[at], int(chosen[at]), int(kinds[at]))
        return chosen

    def _draw(self, slots: "_Slots", slot: int, logits: np.ndarray, sampling: Sampling) -> int:
        if slots.draws[slot] is None:
            prompt = slots.tokens[slot, : slots.n_prompt[slot]].tobytes()
            digest = hashlib.sha256(f"{sampling.seed}|".encode() + prompt).digest()
            slots.draws[slot] = np.random.default_rng(int.from_bytes(digest[:8], "little"))
        k = min(sampling.top_k or self.n_vocab, self.n_vocab)
        best = np.argsort(-logits, kind="stable")[:k]
        weights = np.exp((logits[best] - logits[best[0]]).astype(np.float64) / sampling.temperature)
        drawn = np.searchsorted(np.cumsum(weights), slots.draws[slot].random() * weights.sum(), "right")
        return int(best[min(int(drawn), k - 1)])

    def _guided(self, slots: "_Slots", slot: int, logits: np.ndarray, chosen: int, kind: int) -> int:
        """`chosen` where a valid profile can go on like that; else the form's fixed words or the likeliest that fits."""
        tokens = slots.tokens[slot, slots.n_prompt[slot] : slots.n_known[slot]]
        written = b"".join(map(self.model.piece, tokens.tolist()))
        if self._fits(written, chosen, kind):
            return chosen
        fixed = constrain.forced(written.decode("utf-8", errors="replace"))
        if fixed:
            token = self.model.tokenize(fixed, add_special=False, parse_special=False)[0]
            if self._fits(written, token, _PLAIN):
                return token
        order = np.argsort(-logits, kind="stable")[:N_GUIDED_CHOICES].astype(np.int32)
        for token, token_kind in zip(order.tolist(), self._kinds(order).tolist(), strict=True):
            if self._fits(written, token, token_kind):
                return token
        # A phrase as long as may be, and none of the likeliest tokens closes it.
        for mark in (",", ";"):
            token = self.model.tokenize(mark, add_special=False, parse_special=False)[-1]
            if self._fits(written, token, _PLAIN):
                return token
        end = int(self.model.lib.llama_vocab_eos(self.model.vocab))
        return end if end >= 0 and self._fits(written, end, _END) else chosen

    def _fits(self, written: bytes, token: int, kind: int) -> bool:
        try:
            if kind != _PLAIN:
                return constrain.may_end(written.decode("utf-8"))
            # A character may be spread over several tokens: its beginning is judged like any character.
            decoder = codecs.getincrementaldecoder("utf-8")()
            text = decoder.decode(written + self.model.piece(token))
        except UnicodeDecodeError:
            return False
        return constrain.may_begin(text + "\ufffd" if decoder.getstate()[0] else text)

    def _kinds(self, tokens: np.ndarray) -> np.ndarray:
        """int8: what each token does to the text: goes on, breaks the line, or ends it."""
        for token in tokens[self._kind[tokens] == _UNKNOWN]:
            if self.model.lib.llama_vocab_is_eog(self.model.vocab, int(token)):
                self._kind[token] = _END
            else:
                self._kind[token] = _NEWLINE if b"\n" in self.model.piece(int(token)) else _PLAIN
        return self._kind[tokens]

    def _text(self, slots: "_Slots", slot: int) -> str:
        """The first line of what a slot has written."""
        tokens = slots.tokens[slot, slots.n_prompt[slot] : slots.n_known[slot]]
        raw = b"".join(self.model.piece(int(token)) for token in tokens if self._kind[token] != _END)
        return raw.decode("utf-8", errors="replace").strip().split("\n")[0].strip()

    def _result(self, slots: "_Slots", slot: int) -> GenerationResult:
        n_prompt = int(slots.n_prompt[slot])
        finish = "stop" if slots.stopped[slot] else "length"
        n_new = int(slots.n_known[slot]) - n_prompt
        return GenerationResult(int(slots.index[slot]), self._text(slots, slot), n_prompt, n_new, finish)


class _Slots:
    """What each slot holds: `n_known` tokens of `tokens`, of which `n_cached` are in the key-value cache."""

    def __init__(self, n_slots: int, n_ctx: int):
        self.ids = np.arange(n_slots, dtype=np.int32)
        self.tokens = np.full((n_slots, n_ctx), -1, np.int32)
        self.n_known = np.zeros(n_slots, np.int64)
        self.n_cached = np.zeros(n_slots, np.int64)
        self.n_prompt = np.zeros(n_slots, np.int64)
        self.index = np.zeros(n_slots, np.int64)
        self.active = np.zeros(n_slots, bool)
        self.stopped = np.zeros(n_slots, bool)
        self.draws: list[np.random.Generator | None] = [None] * n_slots

    def fill(self, slot: int, pending: Pending, n_cached: int) -> None:
        n = len(pending.tokens)
        self.tokens[slot, :n] = pending.tokens
        self.n_known[slot] = self.n_prompt[slot] = n
        self.n_cached[slot] = n_cached
        self.index[slot] = pending.index
        self.active[slot] = True
        self.stopped[slot] = False
        self.draws[slot] = None

    def append(self, slots: np.ndarray, tokens: np.ndarray) -> None:
        self.tokens[slots, self.n_known[slots]] = tokens
        self.n_known[slots] += 1


def _fit(todo: np.ndarray, n_batch: int) -> np.ndarray:
    """How many tokens of each slot go into a batch of `n_batch`: one for each that has any, then the first ones' rest."""
    first = np.minimum(todo, 1)
    rest = todo - first
    room = n_batch - int(first.sum())
    before = np.cumsum(rest) - rest
    return first + np.clip(room - before, 0, rest)
