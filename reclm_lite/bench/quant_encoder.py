"""The text encoder in Q8_0 and Q4_0 beside F16: how far vectors of the catalogue's own texts turn, and what that does to neighbours.

For each file, in a process of its own: load time, texts/s, peak memory; and beside the unquantized file's vectors, the cosine of
every text and the share of its K nearest texts that stay, with intervals over texts. Left out: a backbone fitted with each
file's vectors.
"""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..data.dataset import item_texts
from ..errors import InputError, ModelError
from ..evaluate.intervals import bootstrap_mean
from ..kernels.topk import knn
from ..workspace import Workspace
from . import machine
from .quant_files import Asked, File, Maker, open_reference
from .quant_intervals import MIN_UNITS
from .quant_jobs import run_job
from .quant_state import State, digest_of_texts

TYPES = ("q8_0", "q4_0")
K = 20
MAX_TEXTS = 2000


def measure(root: Path, model: Path, folder: Path, state: State, *, n_threads: int, seed: int = 0) -> list[dict[str, Any]]:
    """A row for each file, the unquantized one first. Raises InputError for a workspace with too few texts, ModelError for a file
    that is no unquantized GGUF, or no encoder.
    """
    texts = _texts(root, seed)
    reference = open_reference(model, option="--encoder")
    maker = Maker(reference, folder, state, n_threads)
    files = [reference, *(maker.make(Asked(ftype), None) for ftype in TYPES)]
    common = {"reference": reference.sha256, "texts": digest_of_texts(texts), "n_threads": n_threads, "cpu": machine.cpu_name(),
              "llama": machine.version("llama-cpp-python")}  # fmt: skip
    made_of = {file.sha256: {"file": file.sha256, **common} for file in files}
    with tempfile.TemporaryDirectory(dir=state.folder, prefix="encoder-") as scratch:
        vectors: dict[str, np.ndarray] = {}

        def encode(file: File) -> dict[str, Any]:
            path = Path(scratch) / f"{file.sha256}.npy"
            found = run_job("encode", model=file.path, texts=texts, n_threads=n_threads, out=path)
            vectors[file.sha256] = np.load(path)
            return found

        rows = []
        for file in files:
            row: dict[str, Any] = {**file.as_dict(), "is_reference": file is reference}
            if not file.excluded:
                try:
                    row |= _figures(
                        state.once("encoder", made_of[file.sha256], lambda file=file: _beside(file, reference, encode, vectors))
                    )
                except ModelError as error:
                    if file is reference:
                        raise
                    row["excluded"] = str(error)
            rows.append(row)
    return rows


def _texts(root: Path, seed: int) -> list[str]:
    with Workspace.open(root) as ws:
        distinct = list(dict.fromkeys(text for item in item_texts(ws) if (text := item.joined().strip())))
    if len(distinct) < MIN_UNITS:
        raise InputError(
            f"expected at least {MIN_UNITS} distinct item texts to compare encoders on, found {len(distinct)}; leave out --encoder"
        )
    chosen = np.random.default_rng(seed).permutation(len(distinct))[:MAX_TEXTS]
    return [distinct[at] for at in sorted(chosen.tolist())]


def _beside(file: File, reference: File, encode: Any, vectors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """What is kept of a file: its speed, and for each text its cosine with the reference's vector and the share of neighbours kept."""
    found = encode(file)
    if reference.sha256 not in vectors:
        encode(reference)
    ours, theirs = vectors[file.sha256], vectors[reference.sha256]
    k = min(K, len(ours) - 1)
    near, expected = (knn(rows, rows, k, own=np.arange(len(rows)))[0] for rows in (ours, theirs))
    kept = [len(set(a) & set(b)) / k for a, b in zip(near.tolist(), expected.tolist(), strict=True)]
    cosines = np.einsum("ij,ij->i", ours.astype(np.float64), theirs.astype(np.float64)).round(8)
    return {**found, "cosines": cosines.tolist(), "kept": kept}


def _figures(kept: Mapping[str, Any]) -> dict[str, Any]:
    cosines, neighbours = np.array(kept["cosines"]), np.array(kept["kept"])
    return {
        **{name: kept[name] for name in ("load_seconds", "texts_per_s", "peak_bytes")},
        "n_texts": len(cosines),
        "cosine": {"value": float(cosines.mean()), "interval": list(bootstrap_mean(cosines))},
        "min_cosine": float(cosines.min()),
        "neighbours_kept": {"value": float(neighbours.mean()), "interval": list(bootstrap_mean(neighbours))},
    }


def cells(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """A table: its head, then a row a file; an excluded one says why."""

    def figure(one: Mapping[str, Any], scale: float, digits: int) -> str:
        low, high = (scale * end for end in one["interval"])
        return f"{scale * one['value']:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"

    out: list[tuple[str, ...]] = [("encoder", "MB", "bits/w", "load s", "peak MB", "texts/s", "cosine", "least", f"nearest {K} kept, %")]
    for row in rows:
        if row["excluded"]:
            out.append((row["name"], "excluded", "", "", "", "", "", "", row["excluded"]))
            continue
        out.append(
            (row["name"], f"{row['size_bytes'] / 1e6:,.1f}", f"{row['bits_per_weight']:.2f}", f"{row['load_seconds']:.3f}", f"{row['peak_bytes'] / 1e6:,.0f}",
             f"{row['texts_per_s']:,.1f}", figure(row["cosine"], 1, 5), f"{row['min_cosine']:.5f}", figure(row["neighbours_kept"], 100, 1))
        )  # fmt: skip
    return out
