"""What each part of the tuning is worth in recommendations: the ablation of the paper, on the models that you name.

    python benchmarks/ablation.py -w WS --variant full=ppo.gguf --variant "no second round"=one.gguf --variant "no
    RL"=sft.gguf

For each variant, in a copy of the workspace: profiles of all users by that GGUF (`rules` and `text` are variants too:
`text` has the mean text vector of the history in a profile's place; and a copy of the workspace in which the profiles
lie already, with their vectors), and LightGCN fitted with them, for each seed; and once more with profile vectors dealt
to other users, since a gain that shuffled profiles give too is none. Beside them LightGCN without profiles, popularity
and random. A model is selected on validation; the figures are of test. Intervals are 95 %, of the mean over seeds by
Student's t. `--set encoder=published` joins profiles as the paper does, with no gate that validation could close.
Prints a table, and one JSON line last. Needs `reclm neighbors` and `embed items`. With `--results FOLDER` each fit's
figures are kept there, as those of `reclm bench quant` are, and a run that was stopped, or one with more variants,
makes the others alone.
"""

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from reclm_lite.bench.quant.paired_intervals import students_t
from reclm_lite.bench.quant.recommendations import METRICS, Fits, vectors_key
from reclm_lite.bench.quant.resumable import State
from reclm_lite.bench.quant.written_profiles import VECTORS
from reclm_lite.cf.untrained import baselines
from reclm_lite.data.dataset import load_split
from reclm_lite.evaluate.protocol import SETTINGS, evaluate
from reclm_lite.profiles.generate import run_profiles
from reclm_lite.profiles.profile_vectors import embed_profiles
from reclm_lite.profiles.sources import SourceSettings
from reclm_lite.workspace import Workspace


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def profile_vectors(ws: Workspace, source: str, n_threads: int | None) -> np.ndarray:
    """float32 (n_users, dim): of profiles written by `source`, or the mean text vector of the history."""
    if source == "text":
        train = load_split(ws).train
        items = ws.load("vectors/items", made_by="reclm embed items").arrays["vectors"]
        means = np.asarray(train @ items, dtype=np.float32)
        return means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-9)
    if Path(source).is_dir():
        with Workspace.open(Path(source)) as other:
            if load_split(other).fingerprint != load_split(ws).fingerprint:
                raise SystemExit(
                    f"expected the split of the workspace in {source}, found a different one: copy the workspace, "
                    "then write profiles in the copy"
                )
            return other.load(VECTORS, made_by="reclm embed profiles").arrays["vectors"]
    rules = source == "rules"
    run_profiles(
        ws,
        "users",
        source=SourceSettings(
            source if rules else str(Path(source).absolute()), n_threads=None if rules else n_threads
        ),
    )
    embed_profiles(ws)
    return ws.load(VECTORS, made_by="reclm embed profiles").arrays["vectors"]


def by_metric(fits: Fits, vectors: np.ndarray | None, seeds: list[int]) -> dict[str, list[float]]:
    """Means over users of each seed, by `setting metric`, of fits with these profile vectors (None: without)."""
    found = [fits.figures(vectors, vectors_key(vectors), seed) for seed in seeds]
    return {
        f"{setting} {metric}": [float(np.mean(seed[setting][metric] or np.nan)) for seed in found]
        for setting in SETTINGS
        for metric in METRICS
    }


def interval(values: list[float]) -> float:
    """Half the width of the 95 % interval of the mean."""
    return students_t(len(values)) * statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-w", "--workspace", type=Path, required=True)
    parser.add_argument(
        "--variant", action="append", default=[], metavar="NAME=GGUF|WORKSPACE|rules|text", required=True
    )
    parser.add_argument("--model", default="lightgcn")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument(
        "--set", action="append", default=[], dest="assignments", metavar="NAME=VALUE", help="a setting of the model"
    )
    parser.add_argument("--threads", type=int)
    parser.add_argument("--results", type=Path, metavar="FOLDER")
    options = parser.parse_args()
    variants = dict(text.partition("=")[::2] for text in options.variant)
    for name, source in variants.items():
        if source not in ("rules", "text") and not Path(source).exists():
            parser.error(f"--variant {name}: expected a GGUF file, a workspace, rules or text, found {source!r}")
    seeds, results = list(range(options.seeds)), {}
    with tempfile.TemporaryDirectory(dir=options.workspace.absolute().parent) as folder:
        copy = Path(folder) / "ws"
        shutil.copytree(options.workspace, copy)
        with Workspace.open(copy) as ws:
            split = load_split(ws)
            for yardstick in baselines(split.known()):
                results[yardstick.name] = {
                    f"{setting} {metric}": [evaluate(split, yardstick, setting).means[metric]]
                    for setting in SETTINGS
                    for metric in METRICS
                }
            made = {}
            for name, source in variants.items():  # before any fit: neighbors are those of the model that lies there
                start = time.monotonic()
                made[name] = profile_vectors(ws, source, options.threads)
                say(f"{name}: vectors in {time.monotonic() - start:.0f} s")
        state = State(options.results or Path(folder) / "results")
        fits = Fits(
            options.workspace, Path(folder) / "fits", state, options.model, None, options.threads, options.assignments
        )
        say(f"{options.model} without profiles")
        results["without profiles"] = by_metric(fits, None, seeds)
        for name, vectors in made.items():
            has = np.flatnonzero(np.any(vectors != 0, axis=1))
            dealt = vectors.copy()
            dealt[has] = vectors[np.random.default_rng(0).permutation(has)]
            for kind, those in ((name, vectors), (f"{name}, shuffled", dealt)):
                results[kind] = by_metric(fits, those, seeds)
                say(f"{kind}: R@20 {statistics.mean(results[kind]['full recall@20']):.4f}")
    columns = [f"{setting} {metric}" for setting in SETTINGS for metric in METRICS]
    head = f"{' '.join([options.model, *options.assignments])}, {len(seeds)} seeds"
    width = max(map(len, (head, *results)))
    print(head.ljust(width) + "".join(f"{column:>24}" for column in columns))
    for name, row in results.items():
        cells = (
            f"{statistics.mean(row[c]):.4f} ± {interval(row[c]):.4f}" if len(row[c]) > 1 else f"{row[c][0]:.4f}"
            for c in columns
        )
        print(name.ljust(width) + "".join(f"{cell:>24}" for cell in cells))
    print(
        json.dumps(
            {
                "model": options.model,
                "seeds": seeds,
                "variants": list(variants),
                "settings": options.assignments,
                "results": results,
            }
        )
    )


if __name__ == "__main__":
    main()
