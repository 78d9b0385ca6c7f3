"""Encoders (BERT): their pooled vectors are compared, by cosine, in place of logits and greedy text."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from reclm_lite.convert.checkpoint import optional_json
from reclm_lite.convert.parity.bounds import MAX_RELATIVE_ERROR, NOISE, SLACK, UNKNOWN_SENSITIVITY
from reclm_lite.convert.parity.logits import embeddings
from reclm_lite.convert.parity.reference import TransformersReference
from reclm_lite.convert.parity.sentences import CODE, PROFILES, SENTENCES
from reclm_lite.errors import ModelError
from reclm_lite.runtime import Model

_POOLING = {1: "mean", 2: "cls", 3: "lasttoken"}  # enum llama_pooling_type
_N_TEXTS = 128
_MAX_TOKENS = 256
# A text's own error lies within this factor of the mean one; measured below 4.
_TAIL = 6.0


def is_encoder(model: Model) -> bool:
    """Whether a model makes vectors of texts and no logits: it keeps no keys and values."""
    return f"{model.gguf.architecture}.pooling_type" in model.gguf.metadata


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Row-wise cosine of two float arrays (n, dim); float64 (n,)."""
    if a.shape != b.shape:
        raise ModelError(f"expected two arrays of one shape, found {a.shape} and {b.shape}")
    a, b = a.astype(np.float64), b.astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.einsum("ij,ij->i", a, b) / np.where(norms > 0, norms, 1.0)


class Vectors:
    """The texts of a gate over an encoder, and the reference's vectors of them once read."""

    def __init__(self, sequences: list[list[int]], pooling: str):
        self.sequences, self.pooling = sequences, pooling
        self._expected: np.ndarray | None = None
        self._sensitivity: float | None = None

    def read(self, reference: TransformersReference) -> None:
        """Takes transformers' vectors, pooled the same way, and measures the sensitivity to noise in the weights."""
        self._expected = reference.vectors(self.sequences, self.pooling)
        reference.perturb(NOISE)
        part = self.sequences[::4]
        self._sensitivity = _relative_error(reference.vectors(part, self.pooling), self._expected[::4]) / NOISE

    def read_gguf(self, model: Model, *, n_threads: int) -> None:
        """Takes the unquantized file's vectors as the reference."""
        self._expected = embeddings(model, self.sequences, n_threads=n_threads)

    def judge(self, model: Model, noise: float, reasons: list[str], details: dict[str, Any], *, n_threads: int) -> None:
        """Adds {"n_texts", "min_cosine", "mean_cosine", "relative_error", "bounds"} to `details`, failures to
        `reasons`."""
        assert self._expected is not None
        found = embeddings(model, self.sequences, n_threads=n_threads)
        if found.shape != self._expected.shape:
            reasons.append(f"expected vectors of {self._expected.shape[1]} numbers, found {found.shape[1]}")
            return
        both = cosines(found, self._expected)
        scale = UNKNOWN_SENSITIVITY if self._sensitivity is None else self._sensitivity
        r = min(SLACK * scale * noise, MAX_RELATIVE_ERROR)
        bounds = {"mean_cosine": 1 - r**2 / 2, "min_cosine": max(-1.0, 1 - (_TAIL * r) ** 2 / 2)}
        measured = {"mean_cosine": float(both.mean()), "min_cosine": float(both.min())}
        details["vectors"] = {
            "n_texts": len(found),
            "pooling": self.pooling,
            "relative_error": _relative_error(found, self._expected),
            **measured,
            "noise": noise,
            "sensitivity": scale,
            "bounds": bounds,
        }
        for name, bound in bounds.items():
            if not measured[name] >= bound:
                words = name.replace("_", " ")
                reasons.append(f"expected a {words} of vectors of at least {bound:.6g}, found {measured[name]:.6g}")


def _relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found.astype(np.float64) - expected) / np.linalg.norm(expected.astype(np.float64)))


def checkpoint_pooling(directory: Path) -> str:
    """How a checkpoint's vectors are pooled: "mean", "cls" or "lasttoken", from what sentence-transformers puts beside
    it."""
    for settings in sorted(Path(directory).glob("*Pooling*/config.json")):
        asked = optional_json(settings)
        names = [key for key, on in asked.items() if key.startswith("pooling_mode_") and on is True]
        mode = names[0].removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token") if names else None
        return {"last": "lasttoken"}.get(mode, mode) if mode else str(asked.get("pooling_mode", "mean"))
    return "mean"


def plan(model: Model, prompts: Sequence[str], directory: Path) -> Vectors:
    """Token ids of up to 128 texts: the caller's prompts, spread evenly, and sentences of this package.

    directory: the checkpoint's, which says how the vectors are pooled. Raises ModelError where the file pools
    otherwise.
    """
    pooling = checkpoint_pooling(directory)
    found = int(model.gguf.metadata[f"{model.gguf.architecture}.pooling_type"])
    if _POOLING.get(found) != pooling:
        raise ModelError(
            f"expected {pooling} pooling in {model.path} as in {directory}, found {_POOLING.get(found, found)}"
        )
    texts = dict.fromkeys([*prompts[:: max(1, len(prompts) // _N_TEXTS)], *SENTENCES, *PROFILES, *CODE])
    sequences = []
    for text in list(texts)[:_N_TEXTS]:
        tokens = model.tokenize(text, add_special=True)
        limit = min(_MAX_TOKENS, model.n_ctx_train)
        sequences.append(tokens if len(tokens) <= limit else [*tokens[: limit - 1], tokens[-1]])
    return Vectors(sequences, pooling)
