"""What each part of the tuning is worth in recommendations: the ablation of the paper, on the models that you name.

    python benchmarks/ablation.py -w WS --variant full=ppo.gguf --variant "no second round"=one.gguf --variant "no RL"=sft.gguf

For each variant, in a copy of the workspace: profiles of all users by that GGUF (`rules` and `text` are variants too: `text` has
the mean text vector of the history in a profile's place), their vectors, and LightGCN fitted with them, for each seed;
and once more with profile vectors dealt to other users, since a gain that shuffled profiles give too is none. Beside
them LightGCN without profiles, popularity and random. A model is selected on validation; the figures are of test. Intervals are
95 %, of the mean over seeds by Student's t. Prints a table, and one JSON line last. Needs `reclm neighbors` and `embed items`.
With `--results FILE` each fit's figures are kept there, by the vectors' hash, and a run that was stopped, or one with more
variants, makes the others alone.
"""

import argparse
import hashlib
import json
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from reclm_lite.cf.fit import fit
from reclm_lite.cf.interface import baselines
from reclm_lite.data.dataset import load_split
from reclm_lite.evaluate.settings import SETTINGS, evaluate
from reclm_lite.files import atomic_path
from reclm_lite.profiles.generate import run_profiles
from reclm_lite.profiles.sources import SourceSettings
from reclm_lite.profiles.vectors import embed_profiles
from reclm_lite.workspace import Workspace

VECTORS = "vectors/user_profiles"
METRICS = ("recall@20", "ndcg@20")
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def profile_vectors(ws: Workspace, source: str, n_threads: int | None) -> np.ndarray:
    """float32 (n_users, dim): of profiles written by `source`, or the mean text vector of the history."""
    if source == "text":
        train = load_split(ws).train
        items = ws.load("vectors/items", made_by="reclm embed items").arrays["vectors"]
        means = np.asarray(train @ items, dtype=np.float32)
        return means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-9)
    rules = source == "rules"
    run_profiles(ws, "users", source=SourceSettings(source if rules else str(Path(source).absolute()), n_threads=None if rules else n_threads))
    embed_profiles(ws)
    return ws.load(VECTORS, made_by="reclm embed profiles").arrays["vectors"]


def put(ws: Workspace, vectors: np.ndarray, what: str) -> None:
    """Vectors in the place of the profiles'."""
    with ws.writing():
        ws.save(VECTORS, {"vectors": vectors}, inputs={"matrices/split": ws.fingerprint("matrices/split")}, params={"ablation": what})


class Kept:
    """Figures of fits that were made before, by what they were made of."""

    def __init__(self, path: Path | None):
        self.path = path
        self.figures = json.loads(path.read_text()) if path is not None and path.exists() else {}

    def add(self, key: str, figures: dict[str, float]) -> None:
        self.figures[key] = figures
        if self.path is not None:
            with atomic_path(self.path) as temporary:
                temporary.write_text(json.dumps(self.figures, indent=1) + "\n")


def figures(ws: Workspace, vectors: np.ndarray | None, seeds: list[int], n_threads: int | None, model: str, kept: Kept) -> dict[str, list[float]]:
    """Metrics of each seed, by `setting metric`. vectors: of the profiles that lie in the workspace; None: without profiles."""
    found: dict[str, list[float]] = {}
    split, hashed = load_split(ws), "none" if vectors is None else hashlib.sha256(vectors.tobytes()).hexdigest()[:16]
    for seed in seeds:
        key = f"{model} {ws.fingerprint('matrices/split')} {hashed} {seed}"
        if key not in kept.figures:
            profiles = "none" if vectors is None else "users"
            fitted = fit(ws, model, profiles=profiles, seed=seed, restart=True, n_threads=n_threads, notice=lambda _: None)
            means = {setting: evaluate(split, fitted, setting, n_threads=n_threads).means for setting in SETTINGS}
            kept.add(key, {f"{setting} {metric}": means[setting][metric] for setting in SETTINGS for metric in METRICS})
        for name, value in kept.figures[key].items():
            found.setdefault(name, []).append(value)
    return found


def interval(values: list[float]) -> float:
    """Half the width of the 95 % interval of the mean."""
    return STUDENT.get(len(values), 2.0) * statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-w", "--workspace", type=Path, required=True)
    parser.add_argument("--variant", action="append", default=[], metavar="NAME=GGUF|rules|text", required=True)
    parser.add_argument("--model", default="lightgcn")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--results", type=Path, metavar="FILE")
    options = parser.parse_args()
    variants = dict(text.partition("=")[::2] for text in options.variant)
    for name, source in variants.items():
        if source not in ("rules", "text") and not Path(source).is_file():
            parser.error(f"--variant {name}: expected a GGUF file, rules or text, found {source!r}")
    seeds, results, kept = list(range(options.seeds)), {}, Kept(options.results)
    with tempfile.TemporaryDirectory(dir=options.workspace.absolute().parent) as folder:
        copy = Path(folder) / "ws"
        shutil.copytree(options.workspace, copy)
        with Workspace.open(copy) as ws:
            split = load_split(ws)
            for yardstick in baselines(split.known()):
                results[yardstick.name] = {
                    f"{setting} {metric}": [evaluate(split, yardstick, setting).means[metric]] for setting in SETTINGS for metric in METRICS
                }
            made = {}
            for name, source in variants.items():  # before any fit: neighbors are those of the model that lies there
                start = time.monotonic()
                made[name] = profile_vectors(ws, source, options.threads)
                say(f"{name}: vectors in {time.monotonic() - start:.0f} s")
            say(f"{options.model} without profiles")
            results["without profiles"] = figures(ws, None, seeds, options.threads, options.model, kept)
            for name, vectors in made.items():
                has = np.flatnonzero(np.any(vectors != 0, axis=1))
                dealt = vectors.copy()
                dealt[has] = vectors[np.random.default_rng(0).permutation(has)]
                for kind, those in ((name, vectors), (f"{name}, shuffled", dealt)):
                    put(ws, those, kind)
                    results[kind] = figures(ws, those, seeds, options.threads, options.model, kept)
                    say(f"{kind}: R@20 {statistics.mean(results[kind]['full recall@20']):.4f}")
    columns = [f"{setting} {metric}" for setting in SETTINGS for metric in METRICS]
    width = max(map(len, results))
    print(f"{options.model}, {len(seeds)} seeds".ljust(width) + "".join(f"{column:>24}" for column in columns))
    for name, row in results.items():
        cells = (f"{statistics.mean(row[c]):.4f} ± {interval(row[c]):.4f}" if len(row[c]) > 1 else f"{row[c][0]:.4f}" for c in columns)
        print(name.ljust(width) + "".join(f"{cell:>24}" for cell in cells))
    print(json.dumps({"model": options.model, "seeds": seeds, "variants": list(variants), "results": results}))


if __name__ == "__main__":
    main()
