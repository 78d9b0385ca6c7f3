"""The work on one file that `reclm bench quant` does in a child process: its speed, or an encoder's vectors.

In a child, peak memory is the file's alone, and a file that makes llama.cpp abort stops nothing else. The third kind of
work is in `token_distributions`.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...errors import ModelError
from ...memory import resident_bytes
from ...text.item_vectors import EmbedCounts, embed_texts

_N_PREFILL, _N_DECODE = 512, 32  # tokens of the plain measurements, if the context has room for them


def speed(
    model: str,
    prompts: Sequence[str],
    n_threads: int,
    n_slots: int | None,
    n_ctx: int,
    max_new: int,
    chat: list[str] | None,
) -> dict[str, Any]:
    """One turn: seconds of loading, tokens/s of one sequence, and the scheduler's unrestricted greedy answers with
    their rate.

    The file is in the page cache when it is loaded. base_bytes: resident before the first weights were read, so that
    the child's peak less base_bytes is what the file and its contexts take.
    """
    from ...kernels import decoding
    from ...runtime import llama_lib, load_model
    from ..profile_engine.engine_jobs import engine

    llama_lib()
    decoding.warm_up()
    path, base_bytes = Path(model), resident_bytes()
    load_model(path, use_mmap=False).close()
    started = time.perf_counter()
    with load_model(path, use_mmap=False) as loaded:
        load_seconds = time.perf_counter() - started
        prefill, decode = _plain(loaded, prompts, n_threads)
    answers = engine(model, prompts, n_threads, n_slots, n_ctx, max_new, guided=False, chat=chat, window=len(prompts))
    return {
        "load_seconds": load_seconds,
        "prefill_tokens_per_s": prefill,
        "decode_tokens_per_s": decode,
        "profiles_per_s": len(prompts) / answers["seconds"],
        **{name: answers[name] for name in ("texts", "finishes", "n_slots", "n_workers")},
        "base_bytes": base_bytes,
    }


def _plain(model: Any, prompts: Sequence[str], n_threads: int) -> tuple[float, float]:
    """(prefill, decode) in tokens/s of one sequence alone: a batch of prompt tokens, then one token after the other."""
    lib = model.lib
    tokens: list[int] = []
    n_prefill = min(_N_PREFILL, model.n_ctx_train - _N_DECODE - 1)
    while len(tokens) < n_prefill:
        before = len(tokens)
        for prompt in prompts:
            tokens += model.tokenize(prompt, add_special=False)
        if len(tokens) == before:
            raise ModelError("expected prompts with tokens, found none")
    n_ctx = n_prefill + _N_DECODE + 1
    with model.context(n_threads=n_threads, n_ctx=n_ctx, n_batch=n_prefill, n_ubatch=n_prefill) as context:

        def decode(some: Sequence[int]) -> None:
            array = (lib.llama_token * len(some))(*some)
            if lib.llama_decode(context.handle, lib.llama_batch_get_one(array, len(some))) != 0:
                raise ModelError(f"llama.cpp could not decode {len(some)} tokens with {model.path}")
            lib.llama_synchronize(context.handle)

        decode(tokens[:1])  # the first call sets up the threads and the graph
        lib.llama_memory_clear(lib.llama_get_memory(context.handle), True)
        started = time.perf_counter()
        decode(tokens[:n_prefill])
        prefilled = time.perf_counter()
        for token in tokens[:_N_DECODE]:
            decode([token])
        ended = time.perf_counter()
    return n_prefill / (prefilled - started), _N_DECODE / (ended - prefilled)


def encode(model: str, texts: Sequence[str], n_threads: int, out: str) -> dict[str, Any]:
    """Write an encoder's vectors of `texts`, as `reclm embed items` makes them, to `out`; returns seconds of loading
    and distinct texts/s."""
    import numpy as np

    from ...text.encoder import TextEncoder

    started = time.perf_counter()
    with TextEncoder(Path(model), n_threads=n_threads) as encoder:
        load_seconds = time.perf_counter() - started
        encoder.encode(list(texts[:16]))
        counts = EmbedCounts("items")
        started = time.perf_counter()
        arrays, _ = embed_texts(texts, encoder, None, None, counts)
        seconds = time.perf_counter() - started
    np.save(out, arrays["vectors"])
    return {"load_seconds": load_seconds, "texts_per_s": counts.n_texts_embedded / seconds}


def merged(turns: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One file's turns of "speed" as one: figures as lists, the answers of all prompts in their order, the largest
    memory."""
    lists = {
        name: [turn[name] for turn in turns]
        for name in ("load_seconds", "prefill_tokens_per_s", "decode_tokens_per_s", "profiles_per_s")
    }
    answers = {name: [""] * sum(len(turn["texts"]) for turn in turns) for name in ("texts", "finishes")}
    for name, all_of in answers.items():
        for at, turn in enumerate(turns):
            all_of[at :: len(turns)] = turn[name]
    most = max(turns, key=lambda turn: turn["peak_bytes"])
    return lists | answers | {name: most[name] for name in ("n_slots", "n_workers", "base_bytes", "peak_bytes")}
