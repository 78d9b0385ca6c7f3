"""The work that `reclm bench profile` times: each kind in a process of its own, which tells its own peak memory.

    echo '{"kind": "loop", "model": "…", "prompts": ["…"], …}' | python -m reclm_lite.bench.profile_jobs

The job comes on stdin, its result is one JSON line on stdout. Loading and a first short answer are not timed. Peak
memory is the kernel's high-water mark of resident pages, mapped files included.
"""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..memory import peak_resident_bytes
from . import process

_WARM_UP = "Profile:"
_COUNTERS = ("n_reused_tokens", "n_decoded_tokens", "n_steps", "seconds_running", "seconds_in_llama")


def run_job(kind: str, **arguments: Any) -> dict[str, Any]:
    """Run a job in a fresh process; returns its result. Raises ModelError with the last line it wrote where it
    fails."""
    return process.run(process.python(__name__), {"kind": kind, **arguments}, f"the job {kind!r} of the benchmark")


def main(job: dict[str, Any]) -> dict[str, Any]:
    """Do `job`; returns its result and this process's peak resident memory."""
    result = _KINDS[job.pop("kind")](**job)
    return {**result, "peak_bytes": peak_resident_bytes()}


def _vocabulary(model: str, prompts: Sequence[str], chat: bool) -> dict[str, Any]:
    """How many tokens each prompt has, the context a model was made for, and the text around a prompt, if any."""
    from ..profiles.chat import chat_wrap
    from ..runtime import load_model

    with load_model(Path(model), vocab_only=True) as loaded:
        wrap = chat_wrap(loaded) if chat else None
        around = [_without_bos(loaded, wrap.before), wrap.after, wrap.name] if wrap else None
        texts = [around[0] + prompt + around[1] if around else prompt for prompt in prompts]
        lengths = [len(loaded.tokenize(text, add_special=True, parse_special=True)) for text in texts]
        architecture = loaded.gguf.architecture
        n_ctx = int(loaded.gguf.metadata.get(f"{architecture}.context_length") or 0)
    return {"lengths": lengths, "chat": around, "n_ctx": n_ctx, "size_bytes": Path(model).stat().st_size}


def _without_bos(model: Any, text: str) -> str:
    """A template's beginning without the token that both contenders put before every prompt."""
    bos = model.lib.llama_vocab_bos(model.vocab)
    if bos < 0 or not model.lib.llama_vocab_get_add_bos(model.vocab):
        return text
    return text.removeprefix(model.piece(bos, special=True).decode("utf-8", errors="replace"))


def engine_answers(
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
    """This project's scheduler. n_ctx: of the longest prompt with its answer, as `reclm profile` has it; window:
    prompts read ahead."""
    from ..profiles.chat import ChatWrap
    from ..profiles.scheduler import Engine, Sampling

    sampling = Sampling(guided=guided)
    with Engine(Path(model), n_threads, n_slots, n_ctx=n_ctx, chat=ChatWrap(*chat) if chat else None) as engine:
        list(engine.generate([_WARM_UP], max_new_tokens=4))
        before = {name: getattr(engine, name, None) for name in _COUNTERS}
        started = time.perf_counter()
        results = list(engine.generate(prompts, max_new_tokens=max_new, sampling=sampling, window=window))
        seconds = time.perf_counter() - started
        spent = {name: None if was is None else getattr(engine, name) - was for name, was in before.items()}
        about = {"n_slots": engine.n_slots, "n_workers": len(engine.workers), "n_ctx": engine.n_ctx}
        announced = getattr(engine, "announced_bytes", None)
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


def _loop(model: str, prompts: Sequence[str], n_threads: int, n_ctx: int, max_new: int) -> dict[str, Any]:
    """llama-cpp-python's `Llama`, one prompt after the other; it keeps what a prompt shares with the one before."""
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


def _differences(
    model: str, n_threads: int, n_ctx: int, cases: Sequence[dict[str, str]], noise: Sequence[str]
) -> dict[str, Any]:
    """Where two texts part and how near a tie that was; see `profile_texts`."""
    from . import profile_texts

    return profile_texts.measure(Path(model), n_threads, n_ctx, cases, noise)


def _users(root: str, n_threads: int, n_slots: int | None) -> dict[str, Any]:
    """`reclm profile users` over a workspace that has no profiles."""
    from ..profiles.generate import run_profiles
    from ..profiles.sources import SourceSettings
    from ..workspace import Workspace

    with Workspace.open(Path(root)) as ws:
        started = time.perf_counter()
        summary = run_profiles(ws, "users", source=SourceSettings(n_threads=n_threads, n_slots=n_slots))
        return {"seconds": time.perf_counter() - started, "summary": summary.as_dict()}


def _embed(texts: Sequence[str], n_threads: int, out: str) -> dict[str, Any]:
    """This project's encoder; the vectors go to `out`."""
    from ..text.encoder import TextEncoder

    with TextEncoder(n_threads=n_threads) as encoder:
        return _encode(encoder.encode, texts, out)


def _embed_peer(texts: Sequence[str], n_threads: int, out: str, checkpoint: str) -> dict[str, Any]:
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


_KINDS = {
    "vocabulary": _vocabulary,
    "engine": engine_answers,
    "loop": _loop,
    "differences": _differences,
    "users": _users,
    "embed": _embed,
    "embed_peer": _embed_peer,
}

if __name__ == "__main__":
    print(json.dumps(main(json.load(sys.stdin))))
