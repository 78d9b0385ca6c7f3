"""Many prompts through llama.cpp at once: continuous batching on the low-level API.

`Engine` reads prompts ahead in windows, sorts each window by tokens (common beginnings become neighbors, which the
workers exploit) and deals it out to its workers, each a context over the same weights with several sequences in
flight (see `worker`). A small model gets one single-threaded worker per thread: threads that share nothing never wait
for each other at llama.cpp's barriers, which for a few million weights cost more than the arithmetic. A large model
gets one worker with all threads, which reads its weights once per step.

Greedy results are those of one-at-a-time decoding up to float rounding: the shape of a batch decides the order of
summation, so a near-tie between two tokens can fall the other way. Left out: what prompts say, where texts go.
"""

import functools
import logging
import queue
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ModelError
from ..memory import in_units, resident_bytes
from ..runtime import Model, load_model, pick_threads
from .answers import StopSignal
from .chat import ChatWrap
from .constrained_decoding import TokenTable
from .memory_plan import N_BATCH, plan_memory
from .sampling import GREEDY, Sampling
from .slots import GenerationResult, Pending
from .worker import Worker

__all__ = ["GREEDY", "Engine", "GenerationResult", "Sampling", "Tokenizer"]

log = logging.getLogger(__name__)

DEFAULT_N_CTX = 2048  # tokens a sequence may have, where the model allows more
WINDOW_PER_SLOT = 16  # prompts that are sorted together, per slot


class Tokenizer:
    """Prompts to tokens, as a model gets them: `int32 (n,)`, with the chat template around and BOS once where it is
    asked for.

    Special tokens that are written in a prompt stay plain text. model: a loaded one, or a file whose vocabulary is
    loaded alone and freed in `close()`.
    """

    def __init__(self, model: Model | Path, chat: ChatWrap | None = None):
        loaded = model if isinstance(model, Model) else load_model(Path(model), vocab_only=True)
        self._own = None if loaded is model else loaded
        self.model = model = loaded
        lib = model.lib
        bos = lib.llama_vocab_bos(model.vocab)
        self._before = model.tokenize(chat.before, add_special=False, parse_special=True) if chat else []
        self._after = model.tokenize(chat.after, add_special=False, parse_special=True) if chat else []
        if lib.llama_vocab_get_add_bos(model.vocab) and bos >= 0 and self._before[:1] != [bos]:
            self._before = [bos, *self._before]

    @property
    def n_around(self) -> int:
        """Tokens before and after a prompt's own; one more, as some vocabularies put a space before a text."""
        return len(self._before) + len(self._after) + 1

    def __call__(self, prompt: str) -> np.ndarray:
        own = self.model.tokenize(prompt, add_special=False, parse_special=False)
        return np.array([*self._before, *own, *self._after], np.int32)

    def close(self) -> None:
        """Safe to call twice; a model that was given is not closed."""
        if self._own is not None:
            self._own.close()


class Engine:
    """A GGUF model with `n_slots` sequences of `n_ctx` tokens in flight. Close it, or use `with`.

    n_threads: None: all CPUs. n_slots, n_workers: None: chosen from the model, the context and free memory
    (`memory_plan`). n_ctx: None: at most DEFAULT_N_CTX. chat: the text around each prompt, see `chat.ChatWrap`.
    share_prefix: reuse common beginnings, if the model's memory allows it. announced_bytes: what the process will take
    at its peak.
    """

    def __init__(
        self,
        path: Path,
        n_threads: int | None = None,
        n_slots: int | None = None,
        *,
        n_ctx: int | None = None,
        n_batch: int = N_BATCH,
        n_workers: int | None = None,
        chat: ChatWrap | None = None,
        share_prefix: bool = True,
        **context_params: Any,
    ):
        n_threads = pick_threads(n_threads)
        with load_model(Path(path), vocab_only=True) as vocabulary:
            n_ctx = n_ctx or min(vocabulary.n_ctx_train, DEFAULT_N_CTX)
            plan = plan_memory(
                vocabulary.gguf,
                vocabulary.n_vocab,
                n_ctx=n_ctx,
                n_threads=n_threads,
                n_slots=n_slots,
                n_workers=n_workers,
                n_batch=n_batch,
            )
        # Not mapped: llama.cpp keeps some weights in another order, and then a mapped file would stay beside them.
        self.model: Model = load_model(Path(path), use_mmap=False)
        self.workers: list[Worker] = []
        try:
            model = self.model
            self.n_ctx, self.n_slots = n_ctx, plan.n_slots
            from ..kernels import decoding  # numba is slow to load

            decoding.warm_up()
            table = TokenTable(model)
            for number in range(plan.n_workers):
                self.workers.append(
                    Worker(
                        model,
                        table,
                        n_slots=_share(self.n_slots, plan.n_workers, number),
                        n_ctx=n_ctx,
                        n_batch=n_batch,
                        n_threads=_share(n_threads, plan.n_workers, number),
                        share_prefix=share_prefix and _keeps_history(model),
                        **context_params,
                    )
                )
            self.tokenize = Tokenizer(model, chat)
            self.announced_bytes = resident_bytes() + sum(worker.untouched_bytes for worker in self.workers)
            log.info(
                "%s: %d slots of %d tokens, %d worker(s), %d threads; %s planned",
                self.model.path.name,
                self.n_slots,
                n_ctx,
                plan.n_workers,
                n_threads,
                in_units(self.announced_bytes),
            )
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Frees the contexts and the model. Safe to call twice."""
        for worker in self.workers:
            worker.close()
        self.model.close()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def n_reused_tokens(self) -> int:
        return sum(worker.n_reused_tokens for worker in self.workers)

    @property
    def n_decoded_tokens(self) -> int:
        return sum(worker.n_decoded_tokens for worker in self.workers)

    @property
    def n_steps(self) -> int:
        return sum(worker.n_steps for worker in self.workers)

    @property
    def seconds_running(self) -> float:
        """Of all workers together, waiting for prompts left out."""
        return sum(worker.seconds_running for worker in self.workers)

    @property
    def seconds_in_llama(self) -> float:
        """Of `seconds_running`, what llama.cpp took."""
        return sum(worker.llama.seconds for worker in self.workers)

    def generate(
        self,
        prompts: Iterable[str],
        *,
        max_new_tokens: int,
        sampling: Sampling = GREEDY,
        stop_signal: StopSignal | None = None,
        window: int | None = None,
    ) -> Iterator[GenerationResult]:
        """Yield one result per prompt as each finishes; `index` counts `prompts`.

        A text ends at the model's end token or at its first line break. Results are the same for equal calls; their
        order is too, with one worker. `prompts` is read in the caller's thread, a window or two of `window` prompts
        ahead (None: WINDOW_PER_SLOT for each slot); the prompts of a window are answered in the order of their tokens.
        stop_signal: ends the work early; prompts not begun by then get no result.
        """
        if max_new_tokens < 1:
            raise ModelError(f"expected max_new_tokens of at least 1, found {max_new_tokens}")
        windows = self._windows(prompts, max_new_tokens, window or self.n_slots * WINDOW_PER_SLOT)
        stop_signal = stop_signal or StopSignal()
        inboxes: list[queue.SimpleQueue] = [queue.SimpleQueue() for _ in self.workers]
        outbox: queue.SimpleQueue = queue.SimpleQueue()
        n_open = [0] * len(self.workers)  # prompts dealt out to each worker and not answered yet
        own = StopSignal()  # of this call alone; the caller's is obeyed through it
        own.drain, own.stop = stop_signal.drain, _Either(stop_signal.stop)
        pool = ThreadPoolExecutor(len(self.workers), thread_name_prefix="reclm-profiles")
        futures = []
        for number, worker in enumerate(self.workers):
            emit = functools.partial(_put, outbox, number)
            future = pool.submit(worker.run, inboxes[number], emit, own, max_new_tokens, sampling)
            # The default binds this worker's `emit`.
            future.add_done_callback(lambda _, emit=emit: emit(None))  # type: ignore[misc]  # mypy infers no defaults
            futures.append(future)
        try:
            n_running, exhausted = len(futures), False
            while n_running:
                exhausted = exhausted or self._told_to_end(stop_signal, inboxes)
                while not exhausted and any(n < 2 * w.n_slots for n, w in zip(n_open, self.workers)):
                    following = next(windows, None)
                    if following is None:
                        exhausted = True
                        for inbox in inboxes:
                            inbox.put(None)
                        break
                    refused, parts = following
                    yield from refused
                    for number, part in enumerate(parts):
                        n_open[number] += len(part)
                        for pending in part:
                            inboxes[number].put(pending)
                number, result = outbox.get()
                if result is None:
                    futures[number].result()  # raises what ended the worker, if anything did
                    n_running -= 1
                else:
                    n_open[number] -= 1
                    stop_signal.seconds_each += (result.seconds - stop_signal.seconds_each) * (
                        0.1 if stop_signal.seconds_each else 1.0
                    )
                    yield result
        finally:
            own.stop.set()
            for inbox in inboxes:
                inbox.put(None)
            while True:  # a second Ctrl-C must not free a context that is at work
                try:
                    pool.shutdown(wait=True)
                    break
                except KeyboardInterrupt:
                    continue

    @staticmethod
    def _told_to_end(stop_signal: StopSignal, inboxes: list[queue.SimpleQueue]) -> bool:
        """Whether the stop signal is set; if so, workers that wait for a prompt are told that none comes."""
        if not (stop_signal.drain.is_set() or stop_signal.stop.is_set()):
            return False
        for inbox in inboxes:
            inbox.put(None)
        return True

    def _windows(
        self, prompts: Iterable[str], max_new_tokens: int, window: int
    ) -> Iterator[tuple[list[GenerationResult], list[list[Pending]]]]:
        """Windows of tokenized prompts: those refused, and a part for each worker, of about equally many tokens."""
        numbered = enumerate(prompts)
        while chunk := list(islice(numbered, window)):
            refused, fitting = [], []
            for index, prompt in chunk:
                tokens = self.tokenize(prompt)
                if len(tokens) == 0 or len(tokens) + max_new_tokens > self.n_ctx:
                    refused.append(GenerationResult(index, "", len(tokens), 0, "too_long"))
                else:
                    fitting.append(Pending(index, tokens))
            fitting.sort(key=lambda p: (p.tokens.astype(">i4").tobytes(), p.index))
            costs = np.cumsum([len(p.tokens) + max_new_tokens for p in fitting])
            bounds = [0]
            for number in range(1, len(self.workers)):
                bounds.append(int(np.searchsorted(costs, costs[-1] * number / len(self.workers))) if len(costs) else 0)
            yield refused, [fitting[a:b] for a, b in zip(bounds, [*bounds[1:], len(fitting)])]


class _Either(threading.Event):
    """Set where it is set itself, or where `other` is."""

    def __init__(self, other: threading.Event):
        super().__init__()
        self._other = other

    def is_set(self) -> bool:
        return super().is_set() or self._other.is_set()


def _put(outbox: queue.SimpleQueue, number: int, result: GenerationResult | None) -> None:
    """A worker's answer; None: that worker has ended."""
    outbox.put((number, result))


def _share(n: int, n_workers: int, number: int) -> int:
    """Worker `number`'s part of `n`, as equal as whole numbers allow and at least 1."""
    return max(1, n // n_workers + (number < n % n_workers))


def _keeps_history(model: Model) -> bool:
    """Whether a sequence's tail can be dropped and its beginning used again: not with recurrent or sliding-window
    memory."""
    lib = model.lib
    return not (
        lib.llama_model_is_recurrent(model.handle)
        or lib.llama_model_is_hybrid(model.handle)
        or lib.llama_model_n_swa(model.handle)
    )
