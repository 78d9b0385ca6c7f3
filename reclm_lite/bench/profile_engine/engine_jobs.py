"""The work that `reclm bench profile` times, each function in a child process (`harness.run_in_child`).

Loading a model and a first short answer are not timed.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_WARM_UP = "Profile:"
_COUNTERS = ("n_reused_tokens", "n_decoded_tokens", "n_steps", "seconds_running", "seconds_in_llama")


def vocabulary(model: str, prompts: Sequence[str], chat: bool) -> dict[str, Any]:
    """Tokens of each prompt, the context that the model was trained for, and the chat template around a prompt, if
    any."""
    from ...profiles.chat import chat_wrap
    from ...runtime import load_model

    with load_model(Path(model), vocab_only=True) as loaded:
        wrap = chat_wrap(loaded) if chat else None
        around = [_without_bos(loaded, wrap.before), wrap.after, wrap.name] if wrap else None
        texts = [around[0] + prompt + around[1] if around else prompt for prompt in prompts]
        lengths = [len(loaded.tokenize(text, add_special=True, parse_special=True)) for text in texts]
        architecture = loaded.gguf.architecture
        n_ctx = int(loaded.gguf.metadata.get(f"{architecture}.context_length") or 0)
    return {"lengths": lengths, "chat": around, "n_ctx": n_ctx, "size_bytes": Path(model).stat().st_size}


def _without_bos(model: Any, text: str) -> str:
    """The beginning of a template without BOS, which both contenders put before every prompt."""
    bos = model.lib.llama_vocab_bos(model.vocab)
    if bos < 0 or not model.lib.llama_vocab_get_add_bos(model.vocab):
        return text
    return text.removeprefix(model.piece(bos, special=True).decode("utf-8", errors="replace"))


def engine(
    model: str,
    prompts: Sequence[str],
    n_threads: int,
    n_slots: int | None,
    n_ctx: int,
    max_new: int,
    guided: bool,
    chat: list[str] | None,
    window: int | None = None,
) -> dict[str, Any]:
    """This project's scheduler. n_ctx: tokens of the longest prompt with its answer, as `reclm profile` sets it.
    guided: restrict answers to the profile grammar. window: prompts read ahead."""
    from ...profiles.chat import ChatWrap
    from ...profiles.scheduler import Engine, Sampling

    sampling = Sampling(guided=guided)
    with Engine(Path(model), n_threads, n_slots, n_ctx=n_ctx, chat=ChatWrap(*chat) if chat else None) as running:
        list(running.generate([_WARM_UP], max_new_tokens=4))
        before = {name: getattr(running, name, None) for name in _COUNTERS}
        started = time.perf_counter()
        results = list(running.generate(prompts, max_new_tokens=max_new, sampling=sampling, window=window))
        seconds = time.perf_counter() - started
        spent = {name: None if was is None else getattr(running, name) - was for name, was in before.items()}
        about = {"n_slots": running.n_slots, "n_workers": len(running.workers), "n_ctx": running.n_ctx}
        announced = getattr(running, "announced_bytes", None)
    results.sort(key=lambda result: result.index)
    return {
        "seconds": seconds,
        "texts": [result.text for result in results],
        "finishes": [result.finish for result in results],
        "n_prompt_tokens": [result.n_prompt_tokens for result in results],
        "n_new_tokens": sum(result.n_new_tokens for result in results),
        "announced_bytes": announced,
        **spent,
        **about,
    }


def loop(model: str, prompts: Sequence[str], n_threads: int, n_ctx: int, max_new: int) -> dict[str, Any]:
    """llama-cpp-python's `Llama`, one prompt after the other; it reuses the prefix shared with the prompt before."""
    import llama_cpp

    llama = llama_cpp.Llama(
        model,
        n_ctx=n_ctx,
        n_threads=n_threads,
        n_threads_batch=n_threads,
        n_gpu_layers=0,
        logits_all=False,
        verbose=False,
    )

    def answer(prompt: str, n: int) -> dict[str, Any]:
        return llama.create_completion(prompt, max_tokens=n, temperature=0.0, stop=["\n"])

    try:
        answer(_WARM_UP, 4)
        started = time.perf_counter()
        made = [answer(prompt, max_new) for prompt in prompts]
        seconds = time.perf_counter() - started
    finally:
        llama.close()
    return {
        "seconds": seconds,
        "texts": [one["choices"][0]["text"].strip() for one in made],
        "finishes": [one["choices"][0]["finish_reason"] for one in made],
        "n_prompt_tokens": [one["usage"]["prompt_tokens"] for one in made],
        "n_new_tokens": sum(one["usage"]["completion_tokens"] for one in made),
    }


def users(root: str, n_threads: int, n_slots: int | None) -> dict[str, Any]:
    """`reclm profile users` over a workspace that has no profiles."""
    from ...profiles.generate import run_profiles
    from ...profiles.sources import SourceSettings
    from ...workspace import Workspace

    with Workspace.open(Path(root)) as ws:
        started = time.perf_counter()
        summary = run_profiles(ws, "users", source=SourceSettings(n_threads=n_threads, n_slots=n_slots))
        return {"seconds": time.perf_counter() - started, "summary": summary.as_dict()}


def embed(texts: Sequence[str], n_threads: int, out: str) -> dict[str, Any]:
    """This project's encoder; the vectors go to `out`."""
    from ...text.encoder import TextEncoder

    with TextEncoder(n_threads=n_threads) as encoder:
        return _encode(encoder.encode, texts, out)


def embed_peer(texts: Sequence[str], n_threads: int, out: str, checkpoint: str) -> dict[str, Any]:
    """sentence-transformers on the original checkpoint, with its own defaults."""
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(n_threads)
    model = SentenceTransformer(checkpoint, device="cpu")
    return _encode(lambda some: model.encode(some, normalize_embeddings=True, show_progress_bar=False), texts, out)


def _encode(encode: Any, texts: Sequence[str], out: str) -> dict[str, Any]:
    import numpy as np

    texts = list(texts)
    encode(texts[:64])
    started = time.perf_counter()
    vectors = encode(texts)
    seconds = time.perf_counter() - started
    if out:
        np.save(out, vectors)
    return {"seconds": seconds}
