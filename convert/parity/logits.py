"""Logits, greedy tokens and vectors of a GGUF file, many sequences to a batch, through llama.cpp.

Keys and values are kept in float32 and flash attention is off, where a context by default rounds them to float16:
the weights are on trial here. Sampling and streaming are no business of this file.
"""

import ctypes
from collections.abc import Callable, Iterator, Sequence
from typing import Self

import numpy as np

from reclm_lite.errors import ModelError
from reclm_lite.runtime import Context, Model, clear_errors, last_errors

_MAX_SEQS = 16
_BATCH_TOKENS = 512


class _Batch:
    """A llama_batch and a context with room for `room` tokens of up to `n_seqs` sequences."""

    def __init__(self, model: Model, room: int, n_seqs: int, n_threads: int | None, **params: int):
        self.model, self.lib = model, model.lib
        # A multiple of n_seqs, as llama.cpp divides the context among the sequences.
        self.room = -(-max(room, 32) // n_seqs) * n_seqs
        settings = {
            "n_ctx": self.room,
            "n_batch": self.room,
            "n_ubatch": min(self.room, _BATCH_TOKENS),
            "n_seq_max": n_seqs,
            "kv_unified": True,
            "type_k": self.lib.GGML_TYPE_F32,
            "type_v": self.lib.GGML_TYPE_F32,
            "flash_attn_type": 0,
        } | params
        self.context: Context = model.context(n_threads=n_threads, **settings)
        self.batch = self.lib.llama_batch_init(self.room, 0, 1)
        self.batch.n_tokens = 0

    def clear(self) -> None:
        """Forgets the tokens of the batch; what the context remembers stays."""
        self.batch.n_tokens = 0

    def forget(self) -> None:
        """Forgets every sequence that the context has seen."""
        memory = self.lib.llama_get_memory(self.context.handle)
        if memory:
            self.lib.llama_memory_clear(memory, True)

    def add(self, token: int, position: int, sequence: int, wanted: bool) -> int:
        """Appends a token; returns its index in the batch."""
        i, batch = self.batch.n_tokens, self.batch
        batch.token[i], batch.pos[i] = token, position
        batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = 1, sequence, wanted
        batch.n_tokens = i + 1
        return i

    def run(self, function: Callable[..., int]) -> None:
        clear_errors()
        if function(self.context.handle, self.batch) != 0:
            raise ModelError(
                f"llama.cpp could not compute {self.batch.n_tokens} tokens with {self.model.path}: "
                f"{last_errors() or 'it gave no reason'}"
            )

    def logits(self, n_rows: int) -> np.ndarray:
        """The logits of the wanted tokens in batch order: float32 (n_rows, n_vocab), lent until the next run."""
        raw = self.lib.llama_get_logits(self.context.handle)
        shape = (n_rows, self.model.n_vocab)
        return np.ctypeslib.as_array(ctypes.cast(raw, ctypes.POINTER(ctypes.c_float)), shape)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.lib.llama_batch_free(self.batch)
        self.context.close()


def groups(lengths: Sequence[int], room: int, max_items: int = _MAX_SEQS) -> Iterator[list[int]]:
    """Indices in order, in groups of at most `room` tokens in all and `max_items` sequences; none is empty."""
    group: list[int] = []
    for i, length in enumerate(lengths):
        if group and (len(group) == max_items or sum(lengths[j] for j in group) + length > room):
            yield group
            group = []
        group.append(i)
    if group:
        yield group


def sequence_logits(
    model: Model, sequences: Sequence[Sequence[int]], wanted: Sequence[np.ndarray], *, n_threads: int | None = None
) -> Iterator[tuple[int, np.ndarray]]:
    """The logits of chosen positions: yields (i, float32 (len(wanted[i]), n_vocab)), lent until the next one.

    sequences: token ids, each sequence read from its beginning; wanted[i]: rising positions within sequence i.
    """
    lengths = [len(sequence) for sequence in sequences]
    if not lengths or min(lengths) == 0:
        raise ModelError("expected sequences of at least one token, found an empty one")
    room = max(_BATCH_TOKENS, *lengths)
    with _Batch(model, room, min(_MAX_SEQS, len(lengths)), n_threads) as batch:
        for group in groups(lengths, room):
            batch.clear()
            batch.forget()
            for seq_id, i in enumerate(group):
                marks = set(np.asarray(wanted[i]).tolist())
                for position, token in enumerate(sequences[i]):
                    batch.add(token, position, seq_id, position in marks)
            batch.run(model.lib.llama_decode)
            logits = batch.logits(sum(len(wanted[i]) for i in group))
            start = 0
            for i in group:
                yield i, logits[start : start + len(wanted[i])]
                start += len(wanted[i])


def greedy_tokens(
    model: Model, prompts: Sequence[Sequence[int]], n_tokens: int, *, n_threads: int | None = None
) -> list[list[int]]:
    """Up to `n_tokens` greedily decoded tokens after each prompt (token ids), 16 prompts at a time.

    A token that ends generation is the last one of its list. Equal logits: the lower id, as in numpy's argmax.
    """
    made: list[list[int]] = [[] for _ in prompts]
    lengths = [len(prompt) + n_tokens for prompt in prompts]
    if not lengths:
        return made
    room = max(2 * _BATCH_TOKENS, *lengths)
    with _Batch(model, room, min(_MAX_SEQS, len(lengths)), n_threads) as batch:
        for group in groups(lengths, room):
            batch.forget()
            live = list(enumerate(group))
            for step in range(n_tokens):
                batch.clear()
                for seq_id, i in live:
                    tokens = made[i][-1:] if step else prompts[i]
                    start = len(prompts[i]) + step - 1 if step else 0
                    for offset, token in enumerate(tokens):
                        batch.add(token, start + offset, seq_id, offset == len(tokens) - 1)
                batch.run(model.lib.llama_decode)
                for (_, i), token in zip(live, batch.logits(len(live)).argmax(axis=1).tolist(), strict=True):
                    made[i].append(token)
                live = [(s, i) for s, i in live if not model.lib.llama_vocab_is_eog(model.vocab, made[i][-1])]
                if not live:
                    break
    return made


def gguf_logits(model: Model, tokens: Sequence[int], *, n_threads: int | None = None) -> np.ndarray:
    """Logits of every position of one sequence: float32 (n_tokens, n_vocab)."""
    for _, logits in sequence_logits(model, [tokens], [np.arange(len(tokens))], n_threads=n_threads):
        return logits.copy()
    raise ModelError("expected at least one token, found none")


def greedy_text(model: Model, prompt: str, n_tokens: int, *, n_threads: int | None = None) -> str:
    """Up to `n_tokens` greedily decoded tokens after `prompt`, as text; stops at an end-of-generation token."""
    tokens = model.tokenize(prompt, add_special=True, parse_special=True)
    n_tokens = min(n_tokens, model.n_ctx_train - len(tokens))
    made = greedy_tokens(model, [tokens], n_tokens, n_threads=n_threads)[0]
    if made and model.lib.llama_vocab_is_eog(model.vocab, made[-1]):
        made.pop()
    return b"".join(model.piece(token) for token in made).decode("utf-8", errors="replace")


def embeddings(model: Model, sequences: Sequence[Sequence[int]], *, n_threads: int | None = None) -> np.ndarray:
    """The pooled vectors of an encoder, as its own metadata says to pool: float32 (n_sequences, n_embd)."""
    n_seqs = min(_MAX_SEQS, len(sequences))
    # llama.cpp aborts where the tokens of a micro-batch cannot be shared out equally among the sequences.
    room = -(-max(_BATCH_TOKENS, *(len(sequence) for sequence in sequences)) // n_seqs) * n_seqs
    vectors = np.empty((len(sequences), model.n_embd), np.float32)
    params = {"embeddings": True, "n_ubatch": room, "kv_unified": False}
    with _Batch(model, room, n_seqs, n_threads, **params) as batch:
        for group in groups([len(sequence) for sequence in sequences], batch.room):
            batch.clear()
            batch.forget()
            for seq_id, i in enumerate(group):
                for position, token in enumerate(sequences[i]):
                    batch.add(token, position, seq_id, True)
            batch.run(model.lib.llama_encode)
            for seq_id, i in enumerate(group):
                raw = batch.lib.llama_get_embeddings_seq(batch.context.handle, seq_id)
                if not raw:
                    raise ModelError(f"expected an encoder that pools, found none in {model.path}")
                vectors[i] = np.ctypeslib.as_array(ctypes.cast(raw, ctypes.POINTER(ctypes.c_float)), (model.n_embd,))
    return vectors
