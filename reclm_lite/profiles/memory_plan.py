"""How many sequences are decoded in parallel, and the memory they take: chosen from model, context and free memory.

A small model gets one single-threaded worker per thread, a large model one worker with all threads (`scheduler` says
why). Every slot takes its part of the key-value cache; slots beyond MAX_SLOTS_EACH gain next to nothing, since
arithmetic then dominates. Left out: allocating, which `worker` does, and measuring what llama.cpp really took.
"""

from dataclasses import dataclass
from typing import Any

from ..errors import ModelError
from ..memory import available_bytes, in_units

MAX_SLOTS_EACH = 32  # of a worker
MAX_WORKERS = 16
SMALL_MODEL_BYTES = 64 << 20
KV_BUDGET_BYTES = 1 << 30  # of all key-value caches together
N_BATCH = 1024  # tokens decoded at once, where a slot has a prompt
TOGETHER = 4  # tokens that llama.cpp's products of matrices take at once: so many slots, or twice, … waste nothing
_F16, _F32 = 2, 4
_CELLS = 256  # llama.cpp rounds a sequence's share up to a multiple


@dataclass(frozen=True)
class MemoryPlan:
    """n_slots: sequences in parallel, over all n_workers. n_ctx: tokens of a prompt with its answer. need_bytes: an
    estimate of the whole memory."""

    n_slots: int
    n_ctx: int
    n_batch: int
    n_workers: int
    need_bytes: int


def kv_bytes_per_slot(gguf: Any, n_ctx: int) -> int:
    """Of a cache in float16. gguf: a `GgufSummary`."""

    def number(key: str, default: int) -> int:
        found = gguf.metadata.get(f"{gguf.architecture}.{key}", default)
        return max(found) if isinstance(found, list) else int(found)

    n_embd, n_head = number("embedding_length", 1), max(1, number("attention.head_count", 1))
    n_head_kv = number("attention.head_count_kv", n_head)
    width = number("attention.key_length", n_embd // n_head) + number("attention.value_length", n_embd // n_head)
    return _F16 * number("block_count", 1) * n_head_kv * width * -(-n_ctx // _CELLS) * _CELLS


def compute_bytes(gguf: Any, n_vocab: int, n_batch: int, n_slots: int) -> int:
    """A worker's activations at their peak, roughly: a few rows of the widest layers for each token of a batch."""
    get = gguf.metadata.get
    n_embd, n_ff = get(f"{gguf.architecture}.embedding_length", 1), get(f"{gguf.architecture}.feed_forward_length", 1)
    n_ff = max(n_ff) if isinstance(n_ff, list) else n_ff
    return _F32 * (n_batch * (6 * n_embd + 3 * n_ff) + 2 * n_slots * n_vocab)


def plan_memory(
    gguf: Any,
    n_vocab: int,
    *,
    n_ctx: int,
    n_threads: int,
    n_slots: int | None = None,
    n_workers: int | None = None,
    n_batch: int = N_BATCH,
    available: int | None = None,
) -> MemoryPlan:
    """What suits the model and the machine; n_slots and n_workers are kept where they are given.

    Raises ModelError if not even one sequence has room in memory, or the slots that were asked for have none.
    """
    if n_slots is not None and not 1 <= n_slots <= 256:
        raise ModelError(f"expected 1 to 256 slots, found {n_slots}")
    free = available_bytes() if available is None else available
    if n_workers is None:
        n_workers = min(n_threads, MAX_WORKERS) if gguf.size_bytes <= SMALL_MODEL_BYTES else 1
    each = kv_bytes_per_slot(gguf, n_ctx)

    def need(n: int) -> int:
        workers = min(n_workers, n)
        return gguf.size_bytes + n * each + workers * compute_bytes(gguf, n_vocab, n_batch, -(-n // workers))  # at most

    if n_slots is None:
        n_slots = max(1, min(MAX_SLOTS_EACH * n_workers, KV_BUDGET_BYTES // max(1, each)))
        while n_slots > 1 and need(n_slots) > free:
            n_slots -= 1
        if n_slots > TOGETHER:
            n_slots -= n_slots % TOGETHER
    if need(n_slots) > free:
        raise ModelError(
            f"{n_slots} sequence(s) of {n_ctx} tokens need about {in_units(need(n_slots))} of memory and "
            f"{in_units(free)} are available. Nothing was started: use fewer --slots, a model with fewer bits, or a "
            "machine with more memory"
        )
    return MemoryPlan(n_slots, n_ctx, n_batch, min(n_workers, n_slots), need(n_slots))
