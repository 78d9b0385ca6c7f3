"""Perplexity and KL divergence of `reclm bench quant` beside llama.cpp's own `llama-perplexity`, on the same files and
text.

    python benchmarks/perplexity.py --model profiles-f16.gguf --types q8_0,q4_0,q2_k --llama-perplexity
    BUILD/bin/llama-perplexity

The tool is built from the llama.cpp that lies in the source distribution of llama-cpp-python (`pip download --no-binary
:all: --no-deps llama-cpp-python==VERSION`, then `cmake -B BUILD vendor/llama.cpp -DLLAMA_CURL=OFF` and `cmake --build
BUILD --target llama-perplexity`). The text is that of profile prompts of the demo, cut into chunks of --n-ctx tokens
with BOS in front; of each the second half counts, as there. Keys and values are float32 on both sides. Prints a table,
and one JSON line last.
"""

import argparse
import json
import math
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from reclm_lite.bench.quant.token_distributions import measure
from reclm_lite.convert.quantize import quantize_gguf
from reclm_lite.profiles.calibration_texts import sample_prompts
from reclm_lite.runtime import load_model

_NUMBERS = {"perplexity": r"Mean PPL\(Q\)\s*:\s*([\d.]+)", "mean_kl": r"Mean\s+KLD:\s*([\d.]+)"}


def chunks_of(model: Path, text: str, n_ctx: int) -> list[list[int]]:
    """Whole chunks of tokens, the first of each replaced by BOS where the model has one in front."""
    with load_model(model) as loaded:
        tokens = loaded.tokenize(text, add_special=True)
        bos = loaded.lib.llama_vocab_bos(loaded.vocab) if loaded.lib.llama_vocab_get_add_bos(loaded.vocab) else None
    chunks = [tokens[start : start + n_ctx] for start in range(0, len(tokens) - n_ctx + 1, n_ctx)]
    return [[tokens[0] if bos is None else bos, *chunk[1:]] for chunk in chunks]


def ours(files: list[Path], chunks: list[list[int]], folder: Path) -> list[dict[str, float]]:
    """Figures of each file, the unquantized one first."""
    n_prompt = [len(chunk) // 2 + 1 for chunk in chunks]
    found = []
    for path in files:
        given = {} if found else {"prompts": chunks, "n_prompt": n_prompt}
        sums = measure(str(path), str(folder), 1, **given)
        n = sum(sums["n_answer_tokens"])
        if sum(sums["n_answer_kl"]) != n:
            raise SystemExit(
                f"expected the distributions of {n} positions to be kept, found room for {sum(sums['n_answer_kl'])}: "
                "use fewer --prompts"
            )
        found.append(
            {"perplexity": math.exp(sum(sums["answer_nll_sums"]) / n), "mean_kl": sum(sums["answer_kl_sums"]) / n}
        )
    return found


def theirs(tool: Path, files: list[Path], text: Path, n_ctx: int, folder: Path) -> list[dict[str, float]]:
    base = folder / "base.kld"
    common = [
        "-c",
        str(n_ctx),
        "-b",
        str(n_ctx),
        "-t",
        "1",
        "-ctk",
        "f32",
        "-ctv",
        "f32",
        "-fa",
        "off",
        "--no-escape",
        "-ngl",
        "0",
    ]
    subprocess.run(
        [tool, "-m", files[0], "-f", text, "--kl-divergence-base", base, *common], check=True, capture_output=True
    )
    found = []
    for path in files:
        done = subprocess.run(
            [tool, "-m", path, "--kl-divergence-base", base, "--kl-divergence", *common],
            check=True,
            capture_output=True,
            text=True,
        )
        said = done.stdout + done.stderr
        found.append({name: float(re.search(pattern, said)[1]) for name, pattern in _NUMBERS.items()})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="GGUF in F16 or F32")
    parser.add_argument("--types", default="q8_0,q4_0,q2_k")
    parser.add_argument("--llama-perplexity", type=Path, required=True, dest="tool")
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--n-ctx", type=int, default=256)
    options = parser.parse_args()
    types = options.types.split(",")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = "\n".join(sample_prompts(None, n=options.prompts)).strip()
        (folder / "text.txt").write_text(text, encoding="utf-8")
        files = [options.model, *(folder / f"{ftype}.gguf" for ftype in types)]
        for path, ftype in zip(files[1:], types, strict=True):
            quantize_gguf(options.model, path, ftype, n_threads=1)
        chunks = chunks_of(options.model, text, options.n_ctx)
        print(f"{len(chunks)} chunks of {options.n_ctx} tokens", file=sys.stderr)
        mine = ours(files, chunks, folder)
        other = theirs(options.tool, files, folder / "text.txt", options.n_ctx, folder)
    print(f"{'file':<12}{'perplexity':>14}{'llama.cpp':>14}{'ratio':>9}{'mean KL':>12}{'llama.cpp':>12}{'ratio':>9}")
    rows = []
    for path, a, b in zip(files, mine, other, strict=True):
        ratios = {key: a[key] / b[key] if b[key] else None for key in a}
        rows.append({"file": path.stem, "ours": a, "llama.cpp": b, "ratio": ratios})
        shown = ["" if ratio is None else f"{ratio:.4f}" for ratio in ratios.values()]
        print(
            f"{path.stem[-11:]:<12}{a['perplexity']:>14.7g}{b['perplexity']:>14.7g}{shown[0]:>9}{a['mean_kl']:>12.6f}{b['mean_kl']:>12.6f}{shown[1]:>9}"
        )
    print(json.dumps({"n_chunks": len(chunks), "n_ctx": options.n_ctx, "rows": rows}))


if __name__ == "__main__":
    main()
