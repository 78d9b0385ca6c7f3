"""Profiles per second: this project's scheduler beside llama-cpp-python's one-sequence `Llama`, same prompts, same run.

    python benchmarks/bench_profile.py                             (the bundled model, prompts from the bundled demo)
    python benchmarks/bench_profile.py --model my.gguf --prompts 128 --threads 2

Prompts are compact user prompts of the demo, whatever the model; both sides decode greedily to the end token or the
first line break, at most --max-new tokens. Seconds are wall-clock; CPU seconds stand beside them, since on a busy
machine only those can be compared between runs. Prints a table on stderr and one JSON line last.
"""

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path

import numpy as np


def demo_prompts(n: int) -> list[str]:
    """Distinct compact prompts of demo users, each with up to five random users as neighbours (seed 0)."""
    from reclm_lite.data.demo import generate_demo
    from reclm_lite.dialogue.templates import user_prompt

    data, rng = generate_demo(), np.random.default_rng(0)
    histories: dict[int, list] = {}
    for user, item in zip(data.users.tolist(), data.items.tolist()):
        histories.setdefault(user, []).append(data.item_texts[item])
    users = sorted(histories)
    prompts: dict[str, None] = {}
    while len(prompts) < n:
        user = int(rng.choice(users))
        near = [histories[int(other)] for other in rng.choice(users, rng.integers(0, 6), replace=False)]
        prompts.setdefault(user_prompt(histories[user], near))
    return list(prompts)


def timed(work) -> tuple[float, float, object]:
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return time.perf_counter() - wall, time.process_time() - cpu, result


def one_at_a_time(path: Path, prompts: list[str], n_threads: int, max_new: int, n_ctx: int) -> tuple[float, float, list[str]]:
    import llama_cpp

    llama = llama_cpp.Llama(str(path), n_ctx=n_ctx, n_threads=n_threads, n_threads_batch=n_threads, verbose=False)

    def answer(prompt: str) -> str:
        made = llama.create_completion(prompt, max_tokens=max_new, temperature=0.0, stop=["\n"])
        return made["choices"][0]["text"].strip()

    answer(prompts[0])
    try:
        return timed(lambda: [answer(prompt) for prompt in prompts])
    finally:
        llama.close()


def scheduled(path: Path, prompts: list[str], n_threads: int, max_new: int, n_slots: int) -> tuple[float, float, list, dict]:
    from reclm_lite.profiles.scheduler import Engine

    with Engine(path, n_threads, n_slots) as engine:
        list(engine.generate(prompts[:1], max_new_tokens=max_new))
        before = engine.n_reused_tokens
        wall, cpu, results = timed(lambda: list(engine.generate(prompts, max_new_tokens=max_new)))
        facts = {"n_workers": len(engine.workers), "n_reused_tokens": engine.n_reused_tokens - before, "n_ctx": engine.n_ctx}
    return wall, cpu, sorted(results, key=lambda r: r.index), facts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a GGUF file [default: the bundled profile model]")
    parser.add_argument("--prompts", type=int, default=128)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--max-new", type=int, default=96)
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 2, 8, 32])
    options = parser.parse_args()

    import llama_cpp

    from reclm_lite.assets import profile_model_path

    path = options.model or profile_model_path()
    prompts = demo_prompts(options.prompts)
    rows = []

    def note(name: str, wall: float, cpu: float, **facts: object) -> None:
        row = {"name": name, "profiles_per_s": round(len(prompts) / wall, 2), "cpu_s_per_profile": round(cpu / len(prompts), 5)}
        rows.append({**row, "seconds": round(wall, 3), **facts})
        print(f"{name:<22}{row['profiles_per_s']:>9.2f} profiles/s {1e3 * row['cpu_s_per_profile']:>9.2f} CPU ms each", file=sys.stderr)

    texts: list[str] = []
    n_ctx = 1024
    for n_slots in options.slots:
        wall, cpu, results, facts = scheduled(path, prompts, options.threads, options.max_new, n_slots)
        texts, n_ctx = [r.text for r in results], facts["n_ctx"]
        n_prompt, n_new = sum(r.n_prompt_tokens for r in results), sum(r.n_new_tokens for r in results)
        note(f"scheduler, {n_slots} slots", wall, cpu, n_slots=n_slots, **facts)
    wall, cpu, peer = one_at_a_time(path, prompts, options.threads, options.max_new, n_ctx)
    note("llama_cpp.Llama", wall, cpu, n_equal_texts=sum(a == b for a, b in zip(texts, peer)))
    print(
        json.dumps(
            {
                "benchmark": "profile",
                "model": path.name,
                "size_bytes": path.stat().st_size,
                "n_prompts": len(prompts),
                "n_prompt_tokens_mean": round(n_prompt / len(prompts), 1),
                "n_new_tokens_mean": round(n_new / len(prompts), 1),
                "n_threads": options.threads,
                "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}",
                "llama_cpp_python": llama_cpp.__version__,
                "rows": rows,
            }
        )
    )


if __name__ == "__main__":
    main()
