"""The text encoder in Q8_0 and Q4_0 beside F16: how far vectors of the catalog's own texts turn, and what that does to
neighbors and to recommendations.

Each file makes the vectors of all items, as `reclm embed items` does, in a child process: load time, texts/s, peak
memory. Beside the unquantized file's vectors: the cosine of texts and the share of their K nearest that stay, with
intervals over texts; and the backbone, without profiles, fitted with each file's vectors, over the same users and
seeds.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from ...data.dataset import item_texts
from ...errors import InputError, ModelError
from ...evaluate.intervals import bootstrap_mean
from ...files import atomic_path
from ...kernels.topk import knn
from ...workspace import Workspace
from .. import machine
from ..harness import run_in_child
from . import file_jobs
from .paired_intervals import MIN_UNITS, Paired
from .recommendations import Fits, as_dicts, compare, vectors_key
from .resumable import State, Steps, digest, digest_of_texts
from .variants import Asked, File, Maker, open_reference

TYPES = ("q8_0", "q4_0")
K = 20
MAX_TEXTS = 2000  # that are compared one by one


def measure(
    root: Path,
    model: Path,
    folder: Path,
    state: State,
    *,
    n_threads: int,
    seed: int = 0,
    fits: Fits | None = None,
    seeds: Sequence[int] = (),
    steps: Steps | None = None,
) -> list[dict[str, Any]]:
    """A row for each file, the unquantized one first; fits: to fit a backbone with each file's vectors, for each of
    `seeds`.

    Raises InputError for a workspace with too few texts, ModelError for a file that is quantized, or
    not an encoder.
    """
    steps = steps or Steps(lambda _: None)
    texts, chosen = _texts(root, seed)
    reference = open_reference(model, option="--encoder")
    maker = Maker(reference, folder, state, n_threads)
    common = {
        "texts": digest_of_texts(texts),
        "n_threads": n_threads,
        "cpu": machine.cpu_name(),
        "llama": machine.version("llama-cpp-python"),
    }

    def encode(file: File) -> tuple[dict[str, Any], np.ndarray]:
        made_of = {"file": file.sha256, **common}
        path = state.folder / f"encoder-{digest(made_of)}.npy"
        if state.has("encoder", made_of) and path.is_file():
            return state.once("encoder", made_of, dict), np.load(path)
        state.path("encoder", made_of).unlink(missing_ok=True)

        def made() -> dict[str, Any]:
            with steps.step("vectors", file.name), atomic_path(path) as temporary:
                partial = temporary.with_suffix(".npy")  # numpy adds it to names without
                job = {"model": file.path, "texts": texts, "n_threads": n_threads, "out": partial}
                what, remedy = f"encoding with {file.path}", "; check --encoder"
                found = run_in_child(file_jobs.encode, job, what=what, remedy=remedy).with_peak
                partial.replace(temporary)
            return found

        found = state.once("encoder", made_of, made)
        return found, np.load(path)

    def fitted(vectors: np.ndarray, name: str) -> list[dict[str, Any]]:
        out = []
        for each in seeds if fits is not None else ():
            there = fits.has("none", each, text=vectors_key(vectors))
            with nullcontext() if there else steps.step("fit", f"{fits.backbone}, vectors of {name}, seed {each}"):
                out.append(fits.figures(None, "none", each, text=vectors))
        return out

    rows: list[dict[str, Any]] = []
    compared: list[dict[str, Paired | None]] = []
    theirs, base = None, []
    for file in (reference, *(maker.make(Asked(ftype), None) for ftype in TYPES)):
        row: dict[str, Any] = {**file.as_dict(), "is_reference": file is reference}
        if not file.excluded:
            try:
                speed, vectors = encode(file)
                if theirs is None or vectors.shape == theirs.shape:
                    theirs = vectors if theirs is None else theirs
                    row |= speed | _beside(vectors[chosen], theirs[chosen])
                    found = fitted(vectors, file.name)
                    base = base or found
                    row["downstream"] = None
                    if fits is not None and found:
                        compared.append(compare(found, base, fits.split, range(fits.split.n_users)))
                        row["downstream"] = {}  # filled in when all are known
                else:
                    row["excluded"] = f"expected vectors of shape {theirs.shape}, found {vectors.shape}"
            except ModelError as error:
                if file is reference:
                    raise
                row["excluded"] = str(error)
        rows.append(row)
    for row, together in zip(
        [row for row in rows if row.get("downstream") is not None], as_dicts(compared), strict=True
    ):
        row["downstream"] = together
    return rows


def _texts(root: Path, seed: int) -> tuple[list[str], np.ndarray]:
    """(the text of every item, empty for none; rows of distinct texts to compare, ascending)."""
    with Workspace.open(root) as ws:
        texts = [item.joined().strip() for item in item_texts(ws)]
    first: dict[str, int] = {}
    for row, text in enumerate(texts):
        if text:
            first.setdefault(text, row)
    distinct = np.array(list(first.values()), np.int64)
    if len(distinct) < MIN_UNITS:
        raise InputError(
            f"expected at least {MIN_UNITS} distinct item texts to compare encoders on, found {len(distinct)}; leave "
            "out --encoder"
        )
    return texts, np.sort(np.random.default_rng(seed).permutation(distinct)[:MAX_TEXTS])


def _beside(ours: np.ndarray, theirs: np.ndarray) -> dict[str, Any]:
    """For rows of texts: the cosine of each with the reference's vector, and the share of its nearest neighbors that
    stay."""
    k = min(K, len(ours) - 1)
    near, expected = (knn(rows, rows, k, own=np.arange(len(rows)))[0] for rows in (ours, theirs))
    kept = np.array([len(set(a) & set(b)) / k for a, b in zip(near.tolist(), expected.tolist(), strict=True)])
    cosines = np.einsum("ij,ij->i", ours.astype(np.float64), theirs.astype(np.float64))
    return {
        "n_texts": len(cosines),
        "cosine": {"value": float(cosines.mean()), "interval": list(bootstrap_mean(cosines))},
        "min_cosine": float(cosines.min()),
        "neighbours_kept": {"value": float(kept.mean()), "interval": list(bootstrap_mean(kept))},
    }
