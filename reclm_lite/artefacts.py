"""Artefacts: files of arrays with their provenance and the digests of the id lists that number their rows.

A safetensors file whose header holds, as JSON under the key `reclm`:

    fingerprint   of arrays, settings, inputs and ids (32 hex digits)
    inputs        name -> fingerprint of each artefact that it was made from
    ids           "users" and "items" -> digest of the list of ids that numbers its rows or columns
    params        settings; created, made_by, seconds

A row number means a person only together with a list of ids, so `Workspace.load` refuses an artefact of other lists.
Left out: which stage makes which file, and the command that makes it again (workspace.py and the stages).
"""

import hashlib
import itertools
import json
import os
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from . import memory

# The artefact that an import writes; the row of `meta` with this name holds the fingerprint of the valid one.
INTERACTIONS = "matrices/interactions"
COMMITTED = "interactions"
SIDES = ("users", "items")
# Artefacts numbered by one list of ids; all others are numbered by both.
_NUMBERED_BY = {
    "vectors/items": ("items",),
    "vectors/item_profiles": ("items",),
    "vectors/user_profiles": ("users",),
    "matrices/neighbors": ("users",),
}
# Such as `models/lightgcn+users`. A header names inputs; the pattern allows no path outside the workspace.
_NAME = re.compile(r"(matrices|vectors|models)/[A-Za-z0-9_][A-Za-z0-9_.+-]{0,100}")
# Far more than names and settings need. A bound, because the header is read before anything is known about the file.
_MAX_HEADER_BYTES = 16 << 20
_MAX_INPUTS = 64  # of one artefact; models with profiles are made of six
_ASK_FOR_MEMORY_BYTES = 64 << 20


@dataclass(frozen=True)
class Artefact:
    """The arrays of one file with their provenance."""

    name: str
    arrays: dict[str, np.ndarray]
    fingerprint: str
    inputs: dict[str, str] = field(default_factory=dict)
    params: dict = field(default_factory=dict)
    created: str = ""


def numbered_by(name: str) -> tuple[str, ...]:
    """The lists of ids that number the rows and columns of artefact `name`: "users", "items" or both."""
    return _NUMBERED_BY.get(name, SIDES)


def is_name(name: object) -> bool:
    """Whether `name` may be the name of an artefact."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def ids_digest(data_set: str, ids: Iterable[str]) -> str:
    """SHA-256 (32 hex digits) of a list of ids, in order. data_set: tells apart data sets that share ids."""
    digest = hashlib.sha256()
    for one in itertools.chain([data_set], ids):
        data = one.encode("utf-8", errors="surrogatepass")
        digest.update(b"%d:%b" % (len(data), data))
    return digest.hexdigest()[:32]


def fingerprint_arrays(arrays: Mapping[str, np.ndarray], params: Mapping) -> str:
    """SHA-256 (32 hex digits) over names, dtypes, shapes and bytes of arrays, and over `params`."""
    digest = hashlib.sha256(json.dumps(params, sort_keys=True, default=str).encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name}|{array.dtype}|{array.shape}|".encode())
        digest.update(array.data if array.size else b"")
    return digest.hexdigest()[:32]


def artefact_fingerprint(
    arrays: Mapping[str, np.ndarray], inputs: Mapping[str, str], params: Mapping, ids: Mapping[str, str]
) -> str:
    """The fingerprint of an artefact: of its arrays, its settings, its inputs' fingerprints and its lists of ids."""
    return fingerprint_arrays(arrays, {"params": params, "inputs": dict(inputs), "ids": dict(ids)})


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], metadata: dict[str, str]) -> None:
    """Write a safetensors file. Raises OSError if the system fails, such as on a full disk."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    path.touch()
    mode = path.stat().st_mode  # by the user's umask; the library would create it readable by the owner only
    try:
        save_file(dict(arrays), path, metadata=metadata)
    except SafetensorError as error:  # contains the system's error only as text
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
    os.chmod(path, mode)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of a safetensors file. Raises ValueError or OSError if it is unreadable or exceeds free memory."""
    size = path.stat().st_size
    if size > _ASK_FOR_MEMORY_BYTES and size > (
        free := memory.available_bytes()
    ):  # a sparse file takes no disk space, but memory
        raise ValueError(f"it has {memory.in_units(size)}, and {memory.in_units(free)} of memory are available")
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as handle:
            return {key: handle.get_tensor(key) for key in handle.keys()}
    except MemoryError as error:
        raise ValueError("it takes more memory than is available") from error
    except (SafetensorError, KeyError, TypeError, AttributeError) as error:  # AttributeError: a dtype that NumPy lacks
        raise ValueError(str(error)) from error


def checked(arrays: Mapping[str, np.ndarray], name: str, dtype: type, *shape: int | None) -> np.ndarray:
    """The array `name`. Raises ValueError unless it has this dtype and shape (None: any length) and finite floats.

    Later code does not check again: kernels and SciPy access memory by these indices and shapes.
    """
    array = arrays.get(name)
    if array is None:
        raise ValueError(f"it lacks {name}")
    fits = array.ndim == len(shape) and all(
        n is None or n == found for n, found in zip(shape, array.shape, strict=True)
    )
    if array.dtype != np.dtype(dtype) or not fits:
        told = ", ".join("any" if n is None else str(n) for n in shape)
        raise ValueError(f"{name}: expected {np.dtype(dtype)} ({told}), found {array.dtype} {array.shape}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ValueError(f"{name}: expected finite numbers")
    return array


def row_bounds(indptr: np.ndarray, n_rows: int, n_entries: int) -> np.ndarray:
    """Row bounds of a file as int64 (n_rows + 1,). Raises ValueError unless they ascend from 0 to `n_entries`.

    SciPy's C++ and the kernels read and write where these point. Neighbours are compared, not subtracted: a difference
    of unsigned numbers is never below 0, and one of large signed numbers may wrap.
    """
    if (
        indptr.dtype.kind not in "iu"
        or indptr.shape != (n_rows + 1,)
        or indptr[0] != 0
        or indptr[-1] != n_entries
        or (indptr[1:] < indptr[:-1]).any()
    ):
        raise ValueError(
            f"expected row bounds of {n_rows} rows that ascend from 0 to {n_entries}, found {indptr.dtype} "
            f"{indptr.shape}"
        )
    return indptr.astype(np.int64, copy=False)


def whole_numbers(name: str, array: np.ndarray, n: int) -> np.ndarray:
    """An array (any length,) of a file as int32. Raises ValueError unless it holds whole numbers from 0 to n - 1."""
    if array.ndim != 1 or array.dtype.kind not in "iu" or (array.size and not 0 <= array.min() <= array.max() < n):
        raise ValueError(f"{name}: expected whole numbers from 0 to {n - 1}, found {array.dtype} {array.shape}")
    return array.astype(np.int32, copy=False)


def read_provenance(path: Path) -> dict:
    """The provenance in an artefact's header, without reading its arrays.

    Raises ValueError if the header is not that of an artefact, or the file's length does not match the header.
    """
    with open(path, "rb") as handle:
        start = handle.read(8)
        if len(start) != 8:
            raise ValueError(f"expected a header, found {len(start)} bytes")
        (length,) = struct.unpack("<Q", start)
        if length > _MAX_HEADER_BYTES:
            raise ValueError(f"expected a header of at most {_MAX_HEADER_BYTES:,} bytes, found {length:,}")
        text = handle.read(length)
    try:
        header = json.loads(text)
        provenance = json.loads(header.pop("__metadata__")["reclm"])
        end = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
        kinds = {"fingerprint": str, "inputs": dict, "params": dict, "created": str}
        wrong = [key for key, kind in kinds.items() if not isinstance(provenance[key], kind)]
        wrong += [
            key for key in ("inputs", "ids") if not all(isinstance(v, str) for v in provenance.get(key, {}).values())
        ]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise ValueError(f"its header is damaged ({type(error).__name__})") from error
    if wrong:
        raise ValueError(f"its header holds something else under {', '.join(wrong)} than this software writes")
    if len(provenance["inputs"]) > _MAX_INPUTS:
        raise ValueError(f"expected at most {_MAX_INPUTS} inputs, found {len(provenance['inputs']):,}")
    if path.stat().st_size != end:
        raise ValueError(f"expected {end} bytes, found {path.stat().st_size}")
    return provenance
