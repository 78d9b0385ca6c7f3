"""Text vectors of items, `vectors/items`; only changed texts are encoded again.

    vectors     float32 (n_items, dim), rows L2-normalized, zero rows for items without text
    text_hash   uint64 (n_items,), hash of the embedded text; 0 if there is none

Also the incremental embedding that profile vectors share. Left out: the encoder itself (`text.encoder`).
"""

import contextlib
import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from ..artefacts import checked
from ..data.dataset import item_texts
from ..errors import ModelError, WorkspaceError
from ..workspace import Workspace

log = logging.getLogger(__name__)

BATCH = 256


class Encoder(Protocol):
    """The interface of an encoder; `text.encoder.TextEncoder` implements it."""

    identity: object
    dim: int

    def encode(self, texts: Sequence[str]) -> np.ndarray: ...


@dataclass
class EmbedCounts:
    """Counts of an embedding run. Rows are items or users; `changed` has their indices (int64) by artefact."""

    what: str
    n_rows: int = 0
    n_empty: int = 0
    n_texts_embedded: int = 0
    n_reused: int = 0
    changed: dict[str, np.ndarray] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict:
        return {
            "what": self.what,
            "n_rows": self.n_rows,
            "n_empty": self.n_empty,
            "n_texts_embedded": self.n_texts_embedded,
            "n_reused": self.n_reused,
            "n_changed": {name: len(rows) for name, rows in self.changed.items()},
        }

    def sentence(self) -> str:
        """The result in words."""
        text = (
            f"{self.n_rows - self.n_empty:,} {self.what} have vectors: {self.n_texts_embedded:,} distinct texts "
            f"embedded, {self.n_reused:,} rows reused"
        )
        text += (
            f"; {self.n_empty:,} without {'a profile' if self.what == 'profiles' else 'text'} (zero rows)"
            if self.n_empty
            else ""
        )
        return "; ".join([text, *self.notes]) + "."


@contextlib.contextmanager
def open_encoder(encoder: Encoder | None) -> Iterator[Encoder]:
    """The caller's encoder, or the bundled one, closed at the end of the block."""
    if encoder is not None:
        yield encoder
        return
    from .encoder import TextEncoder

    with TextEncoder() as bundled:
        yield bundled


def text_hash(text: str) -> int:
    """64 bits of SHA-256, never 0; 0 for an empty text."""
    if not text:
        return 0
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", errors="replace")).digest()[:8], "little") or 1


def embed_texts(
    texts: Sequence[str],
    encoder: Encoder,
    earlier: Mapping[str, np.ndarray] | None,
    progress: Callable | None,
    counts: EmbedCounts,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Vectors of `texts`: reuses `earlier` arrays of the same encoder and encodes each distinct new text once.

    Returns the arrays `vectors` float32 (len(texts), dim) and `text_hash` uint64, and the changed rows, int64.
    """
    hashes = np.array([text_hash(text) for text in texts], np.uint64)
    vectors = np.zeros((len(texts), encoder.dim), np.float32)
    known: dict[int, int] = {}
    if earlier is not None:
        known = {key: row for row, key in enumerate(earlier["text_hash"].tolist()) if key}
    missing: dict[int, str] = {}
    reused = []
    for row, key in enumerate(hashes.tolist()):
        if key in known:
            vectors[row] = earlier["vectors"][known[key]]
            reused.append(row)
        elif key:
            missing.setdefault(key, texts[row])
    if missing:
        fresh = _encode(list(missing.values()), encoder, progress)
        place = {key: number for number, key in enumerate(missing)}
        rows = [row for row, key in enumerate(hashes.tolist()) if key in place]
        vectors[rows] = fresh[[place[key] for key in hashes[rows].tolist()]]
    if earlier is not None and len(earlier["text_hash"]) == len(hashes):
        changed = np.flatnonzero(earlier["text_hash"] != hashes)
    else:
        changed = np.arange(len(hashes))
    counts.n_rows += len(texts)
    counts.n_empty += int((hashes == 0).sum())
    counts.n_texts_embedded += len(missing)
    counts.n_reused += len(reused)
    return {"vectors": vectors, "text_hash": hashes}, changed.astype(np.int64)


def _encode(texts: list[str], encoder: Encoder, progress: Callable | None) -> np.ndarray:
    """float32 (len(texts), dim), rows L2-normalized. Texts are sorted by length to fill batches well."""
    vectors = np.zeros((len(texts), encoder.dim), np.float32)
    order = sorted(range(len(texts)), key=lambda i: (len(texts[i]), i))
    for start in range(0, len(order), BATCH):
        part = order[start : start + BATCH]
        made = np.asarray(encoder.encode([texts[i] for i in part]), dtype=np.float32)
        if made.shape != (len(part), encoder.dim) or not np.isfinite(made).all():
            raise ModelError(
                f"expected {len(part)} finite vectors of {encoder.dim} numbers from the encoder, found shape "
                f"{made.shape}"
            )
        vectors[part] = made
        if progress:
            progress(start + len(part), len(texts))
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.maximum(norms, np.float32(1e-12))


def earlier_arrays(ws: Workspace, name: str, encoder: Encoder) -> dict[str, np.ndarray] | None:
    """The arrays of an artefact that the same encoder made, or None."""
    if not ws.has(name):
        return None
    try:
        artefact = ws.load(
            name, made_by=ws.command_for(name), any_ids=True
        )  # vectors are looked up by the hash of their text
    except WorkspaceError as error:
        log.warning("%s; making it again", error)
        return None
    if artefact.params.get("encoder") != plain(encoder.identity):
        return None
    try:
        vectors = checked(artefact.arrays, "vectors", np.float32, None, encoder.dim)
        checked(artefact.arrays, "text_hash", np.uint64, len(vectors))
    except ValueError as error:
        log.warning("%s is damaged (%s); it is made anew now", name, error)
        return None
    return artefact.arrays


def plain(value: object) -> object:
    """`value` as it would be read back from an artefact's header (through JSON)."""
    import json

    return json.loads(json.dumps(value, default=str))


def embed_items(ws: Workspace, encoder: Encoder | None = None, *, progress: Callable | None = None) -> EmbedCounts:
    """Write `vectors/items`. progress: called as `progress(done, total)`, in distinct texts.

    Raises MissingArtefactError if nothing has been imported.
    """
    from ..data.dataset import load_interactions

    counts = EmbedCounts("items")
    with ws.writing(), open_encoder(encoder) as encoder:
        fingerprint = load_interactions(ws).fingerprint
        texts = [item.joined().strip() for item in item_texts(ws)]
        arrays, changed = embed_texts(texts, encoder, earlier_arrays(ws, "vectors/items", encoder), progress, counts)
        counts.changed["vectors/items"] = changed
        save_if_changed(
            ws, "vectors/items", arrays, changed, {"matrices/interactions": fingerprint}, {"encoder": encoder.identity}
        )
    return counts


def save_if_changed(
    ws: Workspace, name: str, arrays: dict[str, np.ndarray], changed: np.ndarray, inputs: dict[str, str], params: dict
) -> None:
    """Write an artefact unless the existing one has the same content for the same rows."""
    params = plain(params)
    if not len(changed) and ws.has(name) and not ws.stale_inputs(name):
        there = ws.provenance(name, made_by=ws.command_for(name))
        if there["inputs"] == inputs and there["params"] == params and "ids" in there:
            return
    ws.save(name, arrays, inputs=inputs, params=params)
