"""The memory that a training takes beside what was announced, with and without giving back large blocks at once.

    python benchmarks/tune_memory.py --width 512 --layers 8 --vocab 8000 --pass-tokens 2048 [--full] [--keep]
    [--gradient-checkpointing]

Makes a random Llama, tunes it for two steps of SFT on made-up dialogues in this process, on one thread, and prints the
peak of resident memory, the estimate of `reclm_lite.tune.memory` and the CPU seconds. --keep: leave glibc's heap as it
is.
"""

import argparse
import json
import random
import tempfile
import time
from pathlib import Path

from reclm_lite.dialogue.records import SFT, Dialogue, Message, line_of
from reclm_lite.memory import peak_resident_bytes
from reclm_lite.prompts.spans import TEACHER, TRAIN, Span
from reclm_lite.tune.base import BaseSettings, load_base, use_threads
from reclm_lite.tune.memory import estimate, give_back_large_blocks
from reclm_lite.tune.scratch import ScratchSettings, make_base
from reclm_lite.tune.sft import SftSettings, train_sft

N_DIALOGUES = 160


def dialogues() -> list[Dialogue]:
    """Of 40 to 50 tokens each."""
    rng, words = random.Random(0), "war love jazz space food cars art golf news pets".split()
    found = []
    for i in range(N_DIALOGUES):
        a, b, c = rng.sample(words, 3)
        answer = f"User identity: {a} fan, {b} fan, {c} fan; User interests: {a}, {b}, {c}"
        messages = (
            Message("user", (Span(f"Topics:\n{a}\n{b}\n{c}\nProfile:\n", TRAIN),)),
            Message("assistant", (Span(answer, TEACHER),)),
        )
        found.append(Dialogue(SFT, f"user:{i}", "user", "compact", "train", messages))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("width", 512), ("layers", 8), ("vocab", 8000), ("pass-tokens", 2048)):
        parser.add_argument(f"--{name}", type=int, default=default)
    for name in ("full", "keep", "gradient-checkpointing"):
        parser.add_argument(f"--{name}", action="store_true")
    options = parser.parse_args()
    use_threads(1)
    if not options.keep:
        give_back_large_blocks()
    with tempfile.TemporaryDirectory() as folder:
        path, made = Path(folder) / "sft.jsonl", dialogues()
        path.write_text("".join(map(line_of, made)), encoding="utf-8")
        sizes = ScratchSettings(options.vocab, options.layers, options.width, 3 * options.width, 8, 2048)
        base = BaseSettings(
            str(make_base(Path(folder) / "base", (m.text for d in made for m in d.messages), sizes)),
            "cpu",
            gradient_checkpointing=options.gradient_checkpointing,
            full=options.full,
        )
        need, began = estimate(base, lora_r=8, pass_tokens=options.pass_tokens), time.process_time()
        settings = SftSettings(
            max_steps=2, batch=128, full=options.full, pass_tokens=options.pass_tokens, packing=False
        )
        train_sft(load_base(base), path, Path(folder) / "run", settings)
    peak = peak_resident_bytes()
    print(
        json.dumps(
            {
                **vars(options),
                "peak_bytes": peak,
                "estimate_bytes": need.total,
                "estimate_of_peak": round(need.total / peak, 2),
                "cpu_seconds": round(time.process_time() - began, 1),
            }
        )
    )


if __name__ == "__main__":
    main()
