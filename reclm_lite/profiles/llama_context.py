"""The calls of llama.cpp that a worker makes: a batch over numpy arrays, decoding, and the key-value cache."""

import ctypes
import time
from typing import Any

import numpy as np

from ..errors import ModelError
from ..runtime import Model, last_errors


class Batch:
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


class LlamaCalls:
    """The calls of llama.cpp that a worker makes, and the time spent in them."""

    def __init__(self, model: Model, context: Any, n_vocab: int):
        self._lib, self._model, self._context, self._n_vocab = model.lib, model, context, n_vocab
        self._memory = model.lib.llama_get_memory(context.handle)
        self.seconds = 0.0
        self._logits: dict[tuple[int, int], np.ndarray] = {}  # views of llama.cpp's buffer, by address and rows

    def clear(self) -> None:
        self._lib.llama_memory_clear(self._memory, False)

    def copy(self, source: int, target: int) -> None:
        """All cells of one sequence in the place of another's."""
        started = time.perf_counter()
        self._lib.llama_memory_seq_cp(self._memory, source, target, -1, -1)
        self.seconds += time.perf_counter() - started

    def keep(self, slot: int, n_tokens: int) -> bool:
        """Forget all but the first tokens of a sequence; False if the memory could only forget all of it."""
        started = time.perf_counter()
        kept = self._lib.llama_memory_seq_rm(self._memory, slot, n_tokens, -1)
        if not kept:
            self._lib.llama_memory_seq_rm(self._memory, slot, -1, -1)
        self.seconds += time.perf_counter() - started
        return bool(kept)

    def decode(self, batch: Batch, n_logits: int) -> np.ndarray | None:
        """Decode a batch; returns the logits asked for, float32 (n_logits, n_vocab), valid until the next call."""
        started = time.perf_counter()
        code = self._lib.llama_decode(self._context.handle, batch.c)
        raw = self._lib.llama_get_logits(self._context.handle) if code == 0 and n_logits else None
        self.seconds += time.perf_counter() - started
        if code != 0:
            raise ModelError(
                f"llama.cpp could not decode a batch of {batch.c.n_tokens} tokens with {self._model.path} (code "
                f"{code}): "
                f"{last_errors() or 'it gave no reason'}; try fewer slots"
            )
        if raw is None:
            return None
        key = ctypes.addressof(raw.contents), n_logits
        if key not in self._logits:
            self._logits[key] = np.ctypeslib.as_array(raw, (n_logits, self._n_vocab))
        return self._logits[key]
