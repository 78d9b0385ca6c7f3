"""Bookkeeping for decoding many sequences at once, in a few nanoseconds per token. numba; import lazily.

These loops replace some thirty NumPy calls at every step, each of which is slow after the model has evicted the caches.
They run without the GIL. Left out: the meaning of tokens, memory, llama.cpp.
"""

import numpy as np

from reclm_lite.kernels._jit import compiled

BLOCK = 256  # columns


@compiled(nogil=True)
def fill_batch(
    tokens: np.ndarray,
    n_known: np.ndarray,
    n_cached: np.ndarray,
    n_prompt: np.ndarray,
    n_batch: int,
    max_chunk: int,
    min_alongside: int,
    batch_token: np.ndarray,
    batch_pos: np.ndarray,
    batch_seq: np.ndarray,
    batch_logits: np.ndarray,
    speaking: np.ndarray,
) -> tuple[int, int]:
    """Fill the batch of one decoding step; returns (n_tokens, n_speaking) and writes the last five arrays.

    tokens: int32 (n_slots, n_ctx). n_known, n_cached, n_prompt: int64 (n_slots,), number of tokens known, decoded so
    far, and in the prompt. batch_token, batch_pos, batch_seq: int32, batch_logits: int8, each of length >= n_batch.
    speaking: int64 (n_slots,), ascending, the slots whose last known token is decoded in this step.

    Prompts get equally many tokens, at most max_chunk; until the shortest of them ends a multiple of four, or one more
    than that beside slots that generate. A slot past its prompt gets one token, or up to max_chunk if at most
    min_alongside of them are active. Slots beyond n_batch tokens wait. n_cached grows by what is decoded.
    """
    n_slots = len(n_known)
    n_writing = n_reading = 0
    least = len(tokens[0])
    for slot in range(n_slots):
        todo = n_known[slot] - n_cached[slot]
        if todo > 0:
            if n_cached[slot] >= n_prompt[slot]:
                n_writing += 1
            else:
                n_reading += 1
                least = min(least, todo)
    lump = 1 if n_writing > min_alongside else max_chunk
    n_written = 0
    for slot in range(n_slots):
        todo = n_known[slot] - n_cached[slot]
        if todo > 0 and n_cached[slot] >= n_prompt[slot]:
            n_written += min(todo, lump)
    if n_reading:
        room = min(max_chunk, (n_batch - n_written) // n_reading)
        if room < least:
            beside = 1 if n_writing else 0
            least = max(1, room - (room - beside) % 4 if room >= 4 + beside else room)
    total = n_speaking = 0
    for slot in range(n_slots):
        todo = n_known[slot] - n_cached[slot]
        if todo <= 0:
            continue
        count = min(todo, lump) if n_cached[slot] >= n_prompt[slot] else least
        if total + count > n_batch:
            continue
        for k in range(count):
            at = n_cached[slot] + k
            batch_token[total] = tokens[slot, at]
            batch_pos[total] = at
            batch_seq[total] = slot
            batch_logits[total] = 0
            total += 1
        n_cached[slot] += count
        if count == todo:
            batch_logits[total - 1] = 1
            speaking[n_speaking] = slot
            n_speaking += 1
    return total, n_speaking


@compiled(nogil=True, fastmath={"nnan", "nsz"})  # no NaN: then the largest of a block is found in vector lanes
def best_two(logits: np.ndarray, best: np.ndarray, gap: np.ndarray) -> None:
    """Write each row's argmax (ties to the lower column) to best, and its lead over the second largest value to gap.

    logits: float32 (n, n_columns), n_columns >= 2, no NaN. best: int64 (n,). gap: float32 (n,).
    """
    n = logits.shape[1]
    for row in range(len(logits)):
        values = logits[row]
        block, first, second = 0, values[0], np.float32(-np.inf)
        for start in range(0, n, BLOCK):
            most = values[start]
            for value in values[start : start + BLOCK]:
                most = max(most, value)
            if start == 0:
                first = most
            elif most > first:
                block, first, second = start, most, first
            else:
                second = max(second, most)
        stop = min(block + BLOCK, n)
        at = block
        while at < stop - 1 and values[at] != first:
            at += 1
        for column in range(block, stop):
            if column != at:
                second = max(second, values[column])
        best[row] = at
        gap[row] = first - second


@compiled(nogil=True)
def pass_quickly(
    tokens: np.ndarray,
    slots: np.ndarray,
    is_plain: np.ndarray,
    n_chars: np.ndarray,
    n_spaces: np.ndarray,
    chars_left: np.ndarray,
    spaces_left: np.ndarray,
    is_quick: np.ndarray,
) -> int:
    """Find tokens that merely continue a phrase with room for them; returns how many tokens do not.

    tokens, slots: int64 (n,). is_plain: int8, n_chars, n_spaces: int32, by token. chars_left, spaces_left: int32, by
    slot, reduced in place. is_quick: int8 (n,), written.
    """
    n_slow = 0
    for at in range(len(tokens)):
        token, slot = tokens[at], slots[at]
        quick = is_plain[token] == 1 and n_chars[token] <= chars_left[slot] and n_spaces[token] <= spaces_left[slot]
        is_quick[at] = quick
        if quick:
            chars_left[slot] -= n_chars[token]
            spaces_left[slot] -= n_spaces[token]
        else:
            n_slow += 1
    return n_slow


def warm_up() -> None:
    """Compile the loops or load them from the cache, since the first call of each takes seconds and memory."""
    int32, int64, single = np.zeros((1, 2), np.int32), np.zeros(1, np.int64), np.zeros((1, 2), np.float32)
    flags = np.zeros(2, np.int8)
    fill_batch(int32, int64, int64, int64, 1, 1, 1, int32[0], int32[0], int32[0], flags, int64)
    best_two(single, int64, single[0])
    pass_quickly(int64, int64, flags, int32[0], int32[0], int32[0], int32[0], flags)
