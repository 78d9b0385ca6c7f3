"""Reads a Hugging Face checkpoint directory tensor by tensor, without torch.

`config.json` plus safetensors files, sharded or not. Tensors are memory-mapped, so a checkpoint larger than
memory converts. Pickled weights (`pytorch_model.bin`) are refused: opening them runs code.

Format followed: safetensors 1.0 (8-byte little-endian header length, JSON header, raw little-endian data).
"""

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from reclm_lite.errors import ModelError

# safetensors dtype -> (numpy dtype of the bytes on disk, bytes per item). bfloat16 is widened on reading.
_DTYPES = {"F32": ("<f4", 4), "F16": ("<f2", 2), "BF16": ("<u2", 2), "F64": ("<f8", 8)}
_MAX_HEADER_BYTES = 100 << 20


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies: file, dtype as safetensors names it, shape (row-major), byte range in the file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start_byte: int
    end_byte: int


def read_json(path: Path) -> Any:
    """A JSON file of a checkpoint; ModelError if it is missing or not JSON."""
    if not path.is_file():
        raise ModelError(f"expected {path.name} in the checkpoint {path.parent}, found none; copy it there")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelError(f"expected JSON in {path}, found: {error}; copy the checkpoint again") from error


def _read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors that one safetensors file says it holds, checked to lie inside it."""

    def broken(expected: str, found: str) -> ModelError:
        return ModelError(
            f"{path} is not a whole safetensors file: expected {expected}, found {found}; copy it again"
        )

    size_bytes = path.stat().st_size
    with path.open("rb") as stream:
        prefix = stream.read(8)
        if len(prefix) < 8:
            raise broken("an 8-byte header length", f"{size_bytes} bytes in all")
        n_header = struct.unpack("<Q", prefix)[0]
        if n_header > min(_MAX_HEADER_BYTES, size_bytes - 8):
            raise broken(f"a header of {n_header} bytes", f"{size_bytes} bytes in all")
        try:
            header = json.loads(stream.read(n_header))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise broken("a JSON header", str(error)) from error
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        dtype, shape = entry["dtype"], tuple(entry["shape"])
        start, end = (8 + n_header + offset for offset in entry["data_offsets"])
        if end > size_bytes:
            raise broken(f"tensor {name!r} to end at byte {end}", f"{size_bytes} bytes in all")
        if dtype in _DTYPES and end - start != math.prod(shape) * _DTYPES[dtype][1]:
            raise broken(f"{math.prod(shape)} items of {dtype} for {name!r}", f"{end - start} bytes")
        tensors[name] = StoredTensor(path, dtype, shape, start, end)
    return tensors


class Checkpoint:
    """A checkpoint directory: `config`, the names and shapes of its tensors, and their values on demand."""

    def __init__(self, directory: Path):
        self.directory = Path(directory)
        if not self.directory.is_dir():
            raise ModelError(f"expected a checkpoint directory at {self.directory}, found none; check the path")
        self.config: dict[str, Any] = read_json(self.directory / "config.json")
        self.tensors = self._find_tensors()

    def _find_tensors(self) -> dict[str, StoredTensor]:
        index_path = self.directory / "model.safetensors.index.json"
        weight_map: dict[str, str] | None = None
        if index_path.is_file():
            weight_map = read_json(index_path)["weight_map"]
            files = [self.directory / name for name in sorted(set(weight_map.values()))]
            missing = [file.name for file in files if not file.is_file()]
            if missing:
                raise ModelError(f"expected the shards {missing} beside {index_path}, found none; copy them there")
        else:
            files = sorted(self.directory.glob("*.safetensors"))
        if not files:
            pickled = sorted(file.name for file in self.directory.glob("*.bin"))
            found = f"pickled weights {pickled}, which can run code when opened" if pickled else "no weights"
            raise ModelError(
                f"expected *.safetensors in {self.directory}, found {found}; "
                "save the model with save_pretrained(..., safe_serialization=True)"
            )
        tensors: dict[str, StoredTensor] = {}
        for file in files:
            for name, tensor in _read_header(file).items():
                if name in tensors:
                    raise ModelError(
                        f"expected tensor {name!r} once, found it in {tensors[name].file.name} and {file.name}; "
                        "remove the weights that do not belong to this checkpoint"
                    )
                tensors[name] = tensor
        if weight_map is not None and set(weight_map) != set(tensors):
            odd = sorted(set(weight_map) ^ set(tensors))[:5]
            raise ModelError(f"expected the shards to hold what {index_path} lists, found differences: {odd}")
        return tensors

    @property
    def dtype(self) -> str:
        """The commonest dtype among matrices, as safetensors names it."""
        matrices = [tensor.dtype for tensor in self.tensors.values() if len(tensor.shape) > 1]
        return max(sorted(set(matrices)), key=matrices.count) if matrices else "F32"

    def tensor(self, name: str) -> np.ndarray:
        """A tensor's values, row-major: float16 if stored so, else float32 (bfloat16 widens exactly)."""
        stored = self.tensors[name]
        if stored.dtype not in _DTYPES:
            raise ModelError(
                f"expected tensor {name!r} as one of {sorted(_DTYPES)}, found {stored.dtype}; "
                "convert the checkpoint as it was before quantization"
            )
        on_disk, _ = _DTYPES[stored.dtype]
        if not math.prod(stored.shape):
            raise ModelError(f"expected values in tensor {name!r}, found shape {stored.shape}")
        raw = np.memmap(stored.file, dtype=on_disk, mode="r", offset=stored.start_byte, shape=stored.shape)
        if stored.dtype == "BF16":
            return (raw.astype(np.uint32) << 16).view(np.float32)
        return raw if stored.dtype == "F16" else raw.astype(np.float32, copy=False)
