"""The bundled models, each a GGUF file beside a JSON file that says where it comes from and how it was made."""

from pathlib import Path

from reclm_lite.errors import ModelError

_HERE = Path(__file__).parent


def _asset(filename: str, what: str, recipe: str) -> Path:
    path = _HERE / filename
    if not path.is_file():
        raise ModelError(
            f"expected the bundled {what} at {path}, found none; make it with `{recipe}`, "
            "or name a GGUF file of your own"
        )
    return path


def encoder_path() -> Path:
    """The bundled text encoder: all-MiniLM-L6-v2, Q8_0, 384 dimensions."""
    return _asset("all-MiniLM-L6-v2-q8_0.gguf", "text encoder", "python recipes/encoder.py CHECKPOINT_DIR")


def profile_model_path() -> Path:
    """The bundled profile model: a small Llama that writes user and item profiles, Q8_0."""
    return _asset("reclm-profile-q8_0.gguf", "profile model", "python recipes/export_profile_model.py CHECKPOINT_DIR")
