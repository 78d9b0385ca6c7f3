"""Text embeddings with any embedding GGUF, by llama.cpp on CPU; the bundled model is all-MiniLM-L6-v2.

Why it is fast: each thread has its own context over the shared weights, so threads never wait at a barrier. llama.cpp's
flash attention on CPU works in tiles of 64 tokens and is five times slower below that, so short texts share a batch.
But attention is computed across a whole batch, with other texts masked, so a batch fills at most two or three tiles.

Batches depend only on the set of texts, sorted by length: neither their order nor the number of threads changes a
vector. Other texts in the batch do, slightly, because a last bit can change the rounding of Q8_0's 8-bit activations:
over 32 texts, the cosine between a text alone and in a batch is 0.9999, an eighth of the error of Q8_0 itself.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from reclm_lite.assets import encoder_path
from reclm_lite.errors import ModelError
from reclm_lite.files import file_sha256
from reclm_lite.probe import is_bundled
from reclm_lite.runtime import Context, Model, clear_errors, last_errors, load_model, pick_threads
from reclm_lite.text.expand import expanded, faster_type

_POOLING_NAMES = {1: "mean", 2: "cls", 3: "last"}  # enum llama_pooling_type
_DEFAULT_MAX_TOKENS = 512
# No common vocabulary has longer tokens; text beyond this cannot reach the first `max_tokens` tokens, unless it is
# mostly white space.
_MAX_CHARS_PER_TOKEN = 128
_FLASH_ATTN_ENABLED = 1
_TILE_TOKENS = 64  # ggml's flash attention tile: a smaller batch is filled up to it
_SHARED_BATCH_TOKENS = 160  # texts share a batch up to here
_MAX_SEQS = 16  # sequences of a batch; must divide its tokens, or llama.cpp aborts


@dataclass(frozen=True)
class EncodeCounts:
    """Counts of one call of `encode`. `n_encoded` counts distinct texts that went through the model."""

    n_texts: int
    n_encoded: int
    n_empty: int
    n_truncated: int


@dataclass(frozen=True)
class _Job:
    """A distinct text, its token ids, and the rows of the result that it fills."""

    text: str
    tokens: list[int]
    rows: list[int]


class _Worker:
    """One context and its batch; used by one thread at a time.

    Encoders (BERT) take several texts in a batch. Models with a KV cache take one text at a time.
    """

    def __init__(self, model: Model, max_tokens: int, pooling_type: int):
        self.model, self.lib = model, model.lib
        self.shares_batches = True
        self.room = -(-max(max_tokens, _SHARED_BATCH_TOKENS) // _MAX_SEQS) * _MAX_SEQS
        self.context = self._open_context(self.room, _MAX_SEQS, pooling_type)
        if self.lib.llama_get_memory(self.context.handle):
            self.context.close()
            self.shares_batches, self.room = False, max_tokens
            self.context = self._open_context(self.room, 1, pooling_type)
        self.batch = self.lib.llama_batch_init(self.room, 0, 1)
        self.tokens = np.ctypeslib.as_array(self.batch.token, (self.room,))
        self.positions = np.ctypeslib.as_array(self.batch.pos, (self.room,))
        for i in range(self.room):
            self.batch.logits[i], self.batch.n_seq_id[i] = 1, 1

    def _open_context(self, n_tokens: int, n_seqs: int, pooling_type: int) -> Context:
        return self.model.context(
            n_ctx=n_tokens,
            n_batch=n_tokens,
            n_ubatch=n_tokens,
            n_seq_max=n_seqs,
            n_threads=1,
            embeddings=True,
            pooling_type=pooling_type,
            flash_attn_type=_FLASH_ATTN_ENABLED,
        )

    def embed(self, texts: Sequence[Sequence[int]]) -> np.ndarray:
        """The pooled vectors of a batch of tokenized texts: float32 (n_texts, dim), not normalized."""
        sequences = list(texts)
        n_missing = _TILE_TOKENS - sum(map(len, sequences))
        if self.shares_batches and n_missing > 0:
            sequences.append([texts[0][0]] * n_missing)  # fills the tile; its output is ignored
        at = 0
        for seq_id, tokens in enumerate(sequences):
            end = at + len(tokens)
            self.tokens[at:end] = tokens
            self.positions[at:end] = np.arange(len(tokens))
            for i in range(at, end):
                self.batch.seq_id[i][0] = seq_id
            at = end
        self.batch.n_tokens = at
        if self.shares_batches:
            status = self.lib.llama_encode(self.context.handle, self.batch)
        else:
            self.lib.llama_memory_clear(self.lib.llama_get_memory(self.context.handle), False)
            status = self.lib.llama_decode(self.context.handle, self.batch)
        vectors = np.empty((len(texts), self.model.n_embd), dtype=np.float32)
        for row in range(len(texts)):
            vector = self.lib.llama_get_embeddings_seq(self.context.handle, row) if status == 0 else None
            if not vector:
                raise ModelError(
                    f"llama.cpp could not encode {at} tokens with {self.model.path}: "
                    f"{last_errors() or f'status {status}'}"
                )
            vectors[row] = np.ctypeslib.as_array(vector, (self.model.n_embd,))
        return vectors

    def close(self) -> None:
        if self.batch is not None:
            self.lib.llama_batch_free(self.batch)
            self.batch = self.tokens = self.positions = None
        self.context.close()


class TextEncoder:
    """Encodes texts as L2-normalized vectors. Call `close()`, or use it as a context manager.

    `path`: a GGUF file of an embedding model (default: the bundled one). `n_threads`: default, all CPUs.
    `max_tokens`: longer texts are truncated, keeping the final special token (default: the model's limit).
    `expand`: "bf16" or "f16" for a copy of the weights in that type, "" for the file as it is, see `text.expand`
    (default: the fastest type on this processor).
    """

    def __init__(
        self,
        path: Path | None = None,
        n_threads: int | None = None,
        *,
        max_tokens: int | None = None,
        expand: str | None = None,
    ):
        path = encoder_path() if path is None else Path(path)
        to = faster_type() if expand is None else expand
        used = expanded(path, to) if to else path
        self._path = path
        self._model = load_model(used, foreign=not is_bundled(path))  # a copy is as trusted as its source
        self._workers: list[_Worker] = []
        self._lock = threading.Lock()
        try:
            self._pooling_type = self._read_pooling_type()
            self.max_tokens = self._read_max_tokens(max_tokens)
            clear_errors()
            for _ in range(pick_threads(n_threads)):
                self._workers.append(_Worker(self._model, self.max_tokens, self._pooling_type))
        except BaseException:
            self.close()
            raise
        self.last_counts = EncodeCounts(0, 0, 0, 0)

    def _metadata(self, key: str) -> Any:
        gguf = self._model.gguf
        return gguf.metadata.get(f"{gguf.architecture}.{key}")

    def _read_pooling_type(self) -> int:
        pooling_type = self._metadata("pooling_type")
        if pooling_type is None and self._metadata("attention.causal") is False:
            pooling_type = 1
        if pooling_type not in _POOLING_NAMES:
            raise ModelError(
                f"expected an embedding model with one of the poolings {sorted(_POOLING_NAMES.values())} in "
                f"{self._model.path}, found architecture {self._model.gguf.architecture!r} with pooling type "
                f"{pooling_type}; use a GGUF file of a sentence encoder"
            )
        # Vectors are read with the model's width as number of columns.
        if self._metadata("embedding_length_out") not in (None, 0, self.dim):
            raise ModelError(
                f"expected vectors of {self.dim} columns from {self._model.path}, found embedding_length_out "
                f"{self._metadata('embedding_length_out')}; use a GGUF file of another sentence encoder"
            )
        return pooling_type

    def _read_max_tokens(self, asked: int | None) -> int:
        n_ctx = self._model.n_ctx_train
        if asked is not None and not 4 <= asked <= n_ctx:
            raise ModelError(f"expected max_tokens between 4 and {n_ctx} for {self._model.path}, found {asked}")
        return asked or min(self._metadata("max_tokens") or _DEFAULT_MAX_TOKENS, n_ctx)

    @property
    def dim(self) -> int:
        return self._model.n_embd

    @property
    def n_threads(self) -> int:
        return len(self._workers)

    @property
    def identity(self) -> dict[str, Any]:
        """What comparable vectors have in common: the model's name and hash, pooling, dimension, maximum of tokens.

        A 16-bit copy has the identity of its file: the weights are the same, and vectors agree to a cosine of 0.999.
        """
        return {
            "name": self._model.gguf.metadata.get("general.name") or self._path.stem,
            "sha256": file_sha256(self._path),
            "pooling": _POOLING_NAMES[self._pooling_type],
            "dim": self.dim,
            "max_tokens": self.max_tokens,
            "normalized": True,
        }

    def tokenize(self, text: str) -> tuple[list[int], bool]:
        """The token ids that are encoded, and whether the text was cut; no ids if it has no content.

        Special tokens written in a text ("[SEP]") are read as ordinary characters.
        """
        tokens = self._model.tokenize(text[: self.max_tokens * _MAX_CHARS_PER_TOKEN], add_special=True)
        if len(tokens) <= self._n_special_tokens():
            return [], False
        if len(tokens) <= self.max_tokens:
            return tokens, False
        closing = tokens[-1:] if self._model.lib.llama_vocab_is_control(self._model.vocab, tokens[-1]) else []
        return tokens[: self.max_tokens - len(closing)] + closing, True

    def _n_special_tokens(self) -> int:
        return len(self._model.tokenize("", add_special=True))

    def encode(self, texts: Sequence[str], *, progress: Callable[[int], None] | None = None) -> np.ndarray:
        """L2-normalized vectors of `texts`: float32 (n_texts, dim).

        A text without content (empty, white space, nothing the vocabulary reads) gets the zero vector;
        `last_counts.n_empty` says how many. Equal texts are encoded once. `progress` is called in the calling
        thread with the number of texts done so far, and at last with `len(texts)`.
        """
        if isinstance(texts, str):
            raise TypeError("expected a sequence of texts, found one str")
        with self._lock:
            return self._encode(texts, progress)

    def _encode(self, texts: Sequence[str], progress: Callable[[int], None] | None) -> np.ndarray:
        if not self._workers:
            raise ModelError(f"the encoder {self._model.path} has been closed")
        rows_of: dict[str, list[int]] = {}
        for row, text in enumerate(texts):
            rows_of.setdefault(text, []).append(row)
        vectors = np.zeros((len(texts), self.dim), dtype=np.float32)
        jobs: list[_Job] = []
        n_empty = n_truncated = 0
        for text, rows in rows_of.items():
            tokens, truncated = self.tokenize(text) if text.strip() else ([], False)
            n_empty += 0 if tokens else len(rows)
            n_truncated += len(rows) if truncated else 0
            if tokens:
                jobs.append(_Job(text, tokens, rows))
        self._run(self._pack(jobs), vectors, n_empty, progress)
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        if not np.isfinite(norms).all():
            row = int(np.flatnonzero(~np.isfinite(norms[:, 0]))[0])
            raise ModelError(f"expected finite vectors from {self._model.path}, found NaN for {texts[row][:60]!r}")
        vectors /= np.where(norms > 0, norms, 1.0)
        self.last_counts = EncodeCounts(len(texts), len(jobs), n_empty, n_truncated)
        return vectors

    def _pack(self, jobs: list[_Job]) -> list[list[_Job]]:
        """Batches of texts, longest first, so that no thread ends with a long one."""
        jobs = sorted(jobs, key=lambda job: (-len(job.tokens), job.text))
        if not self._workers[0].shares_batches:
            return [[job] for job in jobs]
        batches: list[list[_Job]] = []
        n_tokens = 0
        for job in jobs:
            n_tokens += len(job.tokens)
            # One sequence is reserved for filling a tile.
            if not batches or n_tokens > _SHARED_BATCH_TOKENS or len(batches[-1]) == _MAX_SEQS - 1:
                batches.append([])
                n_tokens = len(job.tokens)
            batches[-1].append(job)
        return batches

    def _run(
        self, batches: Sequence[list[_Job]], vectors: np.ndarray, n_done: int, progress: Callable[[int], None] | None
    ) -> None:
        """Fills `vectors` batch by batch. The calling thread is one of the workers."""
        todo = iter(batches)
        lock = threading.Lock()
        stop = threading.Event()
        failures: list[BaseException] = []
        done = [n_done]

        def work(worker: _Worker) -> Iterator[int]:
            while not stop.is_set():
                with lock:
                    batch = next(todo, None)
                if batch is None:
                    return
                for job, vector in zip(batch, worker.embed([job.tokens for job in batch]), strict=True):
                    vectors[job.rows] = vector
                with lock:
                    done[0] += sum(len(job.rows) for job in batch)
                yield done[0]

        def work_apart(worker: _Worker) -> None:
            try:
                for _ in work(worker):
                    pass
            except BaseException as error:  # passed to the calling thread, which raises it
                failures.append(error)
                stop.set()

        helpers = [
            threading.Thread(target=work_apart, args=(worker,), daemon=True)
            for worker in self._workers[1 : max(1, len(batches))]
        ]
        for helper in helpers:
            helper.start()
        try:
            for n in work(self._workers[0]):
                if progress is not None:
                    progress(n)
        except BaseException:
            stop.set()
            raise
        finally:
            for helper in helpers:
                helper.join()
        if failures:
            raise failures[0]
        if progress is not None:
            progress(len(vectors))

    def close(self) -> None:
        """Frees the contexts and the model. Safe to call twice."""
        for worker in self._workers:
            worker.close()
        self._workers = []
        self._model.close()

    def __enter__(self) -> "TextEncoder":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
