"""Reads a Hugging Face checkpoint directory tensor by tensor, without torch.

`config.json` plus safetensors files, sharded or not. Tensors are read by blocks of rows, so a checkpoint larger than
memory converts. Pickled weights (`pytorch_model.bin`) are refused: opening them runs code. So are quantized
checkpoints: their values have been rounded once already.

`Source` is what the rest of the conversion reads: a checkpoint, or a checkpoint with an adapter merged in (merge.py).
"""

import shlex
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from reclm_lite.convert.bounded_files import MAX_CONFIG_BYTES, MAX_TOKENIZER_BYTES, parse_json, read_bounded
from reclm_lite.convert.stored import (
    BLOCK_BYTES,
    StoredTensor,
    parse_unique_json,
    read_blocks,
    read_header,
    read_tensor,
)
from reclm_lite.errors import ModelError, shell_word

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_MAX_INDEX_BYTES = 25 << 20  # some 100 bytes a tensor
_LARGE = frozenset(
    ("tokenizer.json", "tokenizer_config.json", "added_tokens.json", "vocab.json", "tekken.json")
)  # with a vocabulary
_FOREIGN = ("adapter_model.safetensors", "consolidated")  # an adapter; the same weights under Mistral's own names
_QUANTIZED_DTYPES = ("I8", "U8", "F8_", "F4", "F6_")
_BESIDE_WEIGHTS = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tekken.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "modules.json",
    "sentence_bert_config.json",
    "1_Pooling/config.json",
)


class Source(Protocol):
    """A model to convert: its configuration, the names and shapes of its tensors, and their values by blocks."""

    directory: Path  # the base checkpoint
    tokenizer_directory: Path
    config: dict[str, Any]
    tensors: Mapping[str, StoredTensor]  # of the model as it is converted; shapes are row-major
    merged: bool  # an adapter is merged in

    @property
    def dtype(self) -> str:
        """The commonest dtype among matrices, as safetensors names it."""

    def blocks(self, name: str, max_bytes: int = BLOCK_BYTES) -> Iterator[np.ndarray]:
        """A tensor by blocks of whole rows, float16 or float32, of at most about `max_bytes` each."""

    def tensor(self, name: str) -> np.ndarray:
        """A whole tensor, float16 or float32."""

    def files(self) -> list[Path]:
        """Every file that the result depends on."""

    def origin(self, name: str) -> str:
        """Where a tensor's values come from, in words, for messages about them."""


def read_json(path: Path) -> Any:
    """A JSON file of a checkpoint; ModelError if it is missing or not JSON."""
    if not path.is_file():
        raise ModelError(f"expected {path.name} in the checkpoint {path.parent}, found none; copy it there")
    try:
        return parse_json(read_bounded(path, MAX_TOKENIZER_BYTES if path.name in _LARGE else MAX_CONFIG_BYTES))
    except ValueError as error:
        raise ModelError(f"expected JSON in {path}, found: {error}; copy the checkpoint again") from error


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object of a checkpoint; ModelError if it is missing or something else."""
    found = read_json(path)
    if not isinstance(found, dict):
        raise ModelError(f"expected a JSON object in {path}, found {type(found).__name__}; copy the file again")
    return found


def optional_json(path: Path) -> dict[str, Any]:
    """A JSON object of a checkpoint, {} where there is no such file."""
    return read_object(path) if path.is_file() else {}


def files_beside(directory: Path) -> list[Path]:
    """The tokenizer's and the model's side files that a checkpoint or adapter directory holds."""
    templates = sorted(path for path in (directory / "additional_chat_templates").glob("*.jinja") if path.is_file())
    return [directory / name for name in _BESIDE_WEIGHTS if (directory / name).is_file()] + templates


def commonest_dtype(tensors: Mapping[str, StoredTensor]) -> str:
    """The commonest dtype among matrices, as safetensors names it; F32 if there are none."""
    counts = Counter(tensor.dtype for tensor in tensors.values() if len(tensor.shape) > 1)
    return max(sorted(counts), key=counts.__getitem__, default="F32")


class Checkpoint:
    """A checkpoint directory, a `Source` without an adapter. Raises ModelError for one that cannot be used."""

    merged = False

    def __init__(self, directory: Path):
        self.directory = Path(directory)
        if not self.directory.is_dir():
            raise ModelError(f"expected a checkpoint directory at {self.directory}, found none; check the path")
        if not (self.directory / "config.json").is_file() and (self.directory / "adapter_config.json").is_file():
            raise ModelError(
                f"expected a checkpoint with config.json in {self.directory}, found an adapter; give its base model's "
                f"directory as the base and this one as the adapter: --base DIR --adapter {shell_word(self.directory)}"
            )
        self.tokenizer_directory = self.directory
        self.config: dict[str, Any] = read_json(self.directory / "config.json")
        if not isinstance(self.config, dict):
            raise ModelError(
                f"expected a JSON object in {self.directory / 'config.json'}, found {type(self.config).__name__}"
            )
        self.weight_files: list[Path] = []
        self.tensors = self._find_tensors()
        self._refuse_quantized()

    def _refuse_quantized(self) -> None:
        settings = self.config.get("quantization_config")
        method = settings.get("quant_method", "unnamed") if isinstance(settings, dict) else settings
        found = f"quantization_config ({method}) in config.json" if settings else None
        for name, tensor in self.tensors.items():
            if found is None and tensor.dtype.startswith(_QUANTIZED_DTYPES):
                found = f"tensor {name!r} as {tensor.dtype}"
        if found:
            raise ModelError(
                f"expected unquantized weights in {self.directory}, found {found}; nothing is dequantized, as that "
                "would round twice: convert the checkpoint as it was before quantization"
            )

    def _shards(self) -> tuple[list[Path], set[str] | None]:
        """The weight files, and the names of tensors that the index lists (None without an index)."""
        index_path, single = self.directory / INDEX, self.directory / WEIGHTS
        if not index_path.is_file():
            if single.is_file():
                return [single], None
            found = sorted(self.directory.glob("*.safetensors"))
            return [file for file in found if not file.name.startswith(_FOREIGN)], None
        try:
            index = parse_unique_json(read_bounded(index_path, _MAX_INDEX_BYTES))
        except ValueError as error:
            raise ModelError(f"expected JSON in {index_path}, found: {error}; copy it again") from error
        weight_map = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(weight_map, dict) or not weight_map:
            raise ModelError(f"expected a weight_map of tensors to files in {index_path}, found none; copy it again")
        for name, file in weight_map.items():
            if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors"):
                raise ModelError(
                    f"expected {index_path} to name a *.safetensors file beside it for tensor {name!r}, "
                    f"found {str(file)[:80]!r}; only files of the checkpoint's own directory are read"
                )
        files = [self.directory / name for name in sorted(set(weight_map.values()))]
        if single.is_file() and single not in files:
            raise ModelError(
                f"expected {WEIGHTS} or {INDEX} in {self.directory}, found both; "
                "remove the one that does not belong to this checkpoint"
            )
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise ModelError(f"expected the shards {missing} beside {index_path}, found none; copy them there")
        return files, set(weight_map)

    def _find_tensors(self) -> dict[str, StoredTensor]:
        files, listed = self._shards()
        if not files:
            raise self._without_weights()
        tensors: dict[str, StoredTensor] = {}
        for file in files:
            for name, tensor in read_header(file).items():
                if name in tensors:
                    raise ModelError(
                        f"expected tensor {name!r} once, found it in {tensors[name].file.name} and {file.name}; "
                        "remove the weights that do not belong to this checkpoint"
                    )
                tensors[name] = tensor
        if listed is not None and listed != set(tensors):
            odd = sorted(listed ^ set(tensors))[:5]
            raise ModelError(
                f"expected the shards to hold what {self.directory / INDEX} lists, found differences: {odd}; "
                "copy the shards and the index from the same checkpoint"
            )
        self.weight_files = files
        return tensors

    def _without_weights(self) -> ModelError:
        pickled = sorted(file.name for file in self.directory.glob("pytorch_model*.bin"))
        if not pickled:
            return ModelError(f"expected *.safetensors in {self.directory}, found no weights; copy them there")
        named = self.config.get("architectures")
        known = isinstance(named, list) and named and isinstance(named[0], str) and named[0].isidentifier()
        here = repr(str(self.directory))
        script = (
            f"from transformers import {named[0] if known else 'AutoModel'} as Model; "
            f"Model.from_pretrained({here}, dtype='auto', weights_only=True).save_pretrained({here})"
        )
        return ModelError(
            f"expected *.safetensors in {self.directory}, found pickled weights {pickled}, which can run code when "
            "opened; write safetensors beside them, where transformers and torch are installed: "
            f"python -c {shlex.quote(script)}"
        )

    @property
    def dtype(self) -> str:
        """The commonest dtype among matrices, as safetensors names it."""
        return commonest_dtype(self.tensors)

    def files(self) -> list[Path]:
        """config.json, the weights and their index, and what lies beside them for the tokenizer."""
        index = [self.directory / INDEX] if (self.directory / INDEX).is_file() else []
        return [self.directory / "config.json", *index, *self.weight_files, *files_beside(self.directory)]

    def origin(self, name: str) -> str:
        """Where a tensor's values come from, in words, for messages about them."""
        return f"tensor {name!r} of {self.tensors[name].file}"

    def blocks(self, name: str, max_bytes: int = BLOCK_BYTES) -> Iterator[np.ndarray]:
        """A tensor by blocks of whole rows: float16 if stored so, else float32 (bfloat16 widens exactly).

        Blocks have shape (n_rows, *shape[1:]) and are of at most `max_bytes` unless one row is larger. Raises
        ModelError for a dtype that cannot be read, a tensor without values, and a file that ends too early.
        """
        return read_blocks(name, self.tensors[name], max_bytes)

    def tensor(self, name: str) -> np.ndarray:
        """A whole tensor, row-major: float16 if stored so, else float32 (bfloat16 widens exactly)."""
        return read_tensor(name, self.tensors[name])
