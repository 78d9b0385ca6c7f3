"""The only place where llama.cpp is loaded, and the owners of what it allocates.

llama.cpp trusts its input: a truncated or corrupt GGUF file can abort the whole process, its log goes to
stderr, and every model and context must be freed by hand. Here a file is proved whole before llama.cpp sees
it (`check_gguf`), the log is silenced but its last error lines go into the exception, and `Model` and
`Context` free what they own. Left out: sampling, batching and pooling, which belong to the callers.

Format followed: GGUF versions 2 and 3, little endian (ggml/docs/gguf.md).
"""

import collections
import ctypes
import functools
import hashlib
import mmap
import os
import struct
import weakref
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from reclm_lite.errors import ModelError

_GGUF_MAGIC = b"GGUF"
_GGUF_VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
# GGUF value type -> struct format of one value.
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_MAX_DIMS = 4
_MAX_ENTRIES = 1 << 20  # more keys or tensors than this is corruption, not a model
_MAX_ARRAY_DEPTH = 4

_ERROR_LEVEL = 4  # enum ggml_log_level
_error_lines: collections.deque[str] = collections.deque(maxlen=6)
_keep_alive: list[Any] = []  # the log callback: C holds a pointer to it until the process ends


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a GGUF file. `shape` is in GGUF order: fastest-varying dimension first."""

    name: str
    shape: tuple[int, ...]
    type_name: str
    offset_bytes: int
    size_bytes: int


@dataclass(frozen=True)
class GgufSummary:
    """What a whole GGUF file says of itself; arrays of metadata are given by their length only."""

    path: Path
    version: int
    size_bytes: int
    architecture: str
    metadata: dict[str, Any] = field(repr=False)
    array_lengths: dict[str, int] = field(repr=False)
    tensors: tuple[TensorInfo, ...] = field(repr=False)


def pick_threads(n_threads: int | None = None) -> int:
    """The number of threads to use: `n_threads` if given, else the CPUs this process may run on."""
    if n_threads is not None:
        if n_threads < 1:
            raise ModelError(f"expected a number of threads of at least 1, found {n_threads}")
        return n_threads
    if hasattr(os, "sched_getaffinity"):
        return max(1, min(os.cpu_count() or 1, len(os.sched_getaffinity(0))))
    return os.cpu_count() or 1


def file_sha256(path: Path) -> str:
    """SHA-256 of a file as hex; remembered in memory as long as its size and mtime stay the same."""
    path = Path(path).resolve()
    stat = path.stat()
    return _sha256_of(path, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _sha256_of(path: Path, size_bytes: int, mtime_ns: int) -> str:
    del size_bytes, mtime_ns  # part of the cache key only
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class _Cursor:
    """Reads GGUF primitives from a buffer; running past the end is a truncated file, never an IndexError."""

    def __init__(self, path: Path, buffer: mmap.mmap):
        self.path, self.buffer, self.at, self.size_bytes = path, buffer, 0, len(buffer)

    def fail(self, expected: str, found: str) -> ModelError:
        return ModelError(
            f"{self.path} is not a whole GGUF file: expected {expected}, found {found}; "
            "copy or convert the model again"
        )

    def take(self, n_bytes: int, what: str) -> bytes:
        if n_bytes > self.size_bytes - self.at:
            raise self.fail(
                f"{n_bytes} bytes of {what} at byte {self.at}", f"the end of the file at byte {self.size_bytes}"
            )
        piece = self.buffer[self.at : self.at + n_bytes]
        self.at += n_bytes
        return piece

    def scalar(self, fmt: str, what: str) -> Any:
        return struct.unpack(fmt, self.take(struct.calcsize(fmt), what))[0]

    def string(self, what: str) -> str:
        raw = self.take(self.scalar("<Q", f"the length of {what}"), what)
        return raw.decode("utf-8", errors="replace")

    def skip_strings(self, n_strings: int, what: str) -> None:
        """Walks over `n_strings` strings; the loop that a vocabulary of 100,000 tokens makes hot."""
        at, buffer, end = self.at, self.buffer, self.size_bytes
        unpack = struct.Struct("<Q").unpack_from
        for _ in range(n_strings):
            if at + 8 > end:
                raise self.fail(f"a string of {what} at byte {at}", f"the end of the file at byte {end}")
            at += 8 + unpack(buffer, at)[0]
        if at > end:
            raise self.fail(f"the strings of {what}", f"the end of the file at byte {end}")
        self.at = at

    def value(self, value_type: int, what: str, depth: int = 0) -> tuple[Any, int | None]:
        """One metadata value: (value, None), or (None, its length) for an array."""
        if value_type == _STRING:
            return self.string(what), None
        if value_type in _SCALARS:
            return self.scalar(_SCALARS[value_type], what), None
        if value_type != _ARRAY or depth >= _MAX_ARRAY_DEPTH:
            raise self.fail(f"a known value type for {what}", f"type {value_type}")
        item_type = self.scalar("<I", f"the item type of {what}")
        n_items = self.scalar("<Q", f"the length of {what}")
        if item_type in _SCALARS:
            size = struct.calcsize(_SCALARS[item_type])
            if n_items * size > self.size_bytes - self.at:
                raise self.fail(f"{n_items} items of {what}", f"the end of the file at byte {self.size_bytes}")
            self.at += n_items * size
        elif item_type == _STRING:
            self.skip_strings(n_items, what)
        else:
            for _ in range(n_items):
                self.value(item_type, what, depth + 1)
        return None, n_items


def _read_tensor_info(cursor: _Cursor) -> tuple[str, tuple[int, ...], Any, int, int]:
    """(name, shape, GGML type, offset within the data section, size in bytes) of the next tensor."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    name = cursor.string("a tensor's name")
    n_dims = cursor.scalar("<I", f"the number of dimensions of {name}")
    if not 0 <= n_dims <= _MAX_DIMS:
        raise cursor.fail(f"at most {_MAX_DIMS} dimensions for tensor {name!r}", str(n_dims))
    shape = tuple(cursor.scalar("<Q", f"the shape of {name}") for _ in range(n_dims))
    type_id = cursor.scalar("<I", f"the type of {name}")
    offset_bytes = cursor.scalar("<Q", f"the offset of {name}")
    try:
        ggml_type = GGMLQuantizationType(type_id)
    except ValueError as error:
        raise cursor.fail(f"a known type for tensor {name!r}", f"type {type_id}") from error
    block, block_bytes = GGML_QUANT_SIZES[ggml_type]
    n_items = 1
    for n in shape:
        n_items *= n
    if shape and shape[0] % block:
        raise cursor.fail(f"rows of a multiple of {block} for tensor {name!r} ({ggml_type.name})", str(shape[0]))
    return name, shape, ggml_type, offset_bytes, n_items // block * block_bytes


def check_gguf(path: Path) -> GgufSummary:
    """Proves that a GGUF file is whole: header, metadata and tensor table readable, all tensor data present.

    Raises ModelError saying what was expected and what was found. The contents of the tensors are not judged.
    """
    path = Path(path)
    if not path.is_file():
        found = "a folder; name the file in it" if path.is_dir() else "no such file; check the path"
        raise ModelError(f"expected a GGUF model at {path}, found {found}")
    size_bytes = path.stat().st_size
    if size_bytes < 24:
        raise ModelError(
            f"{path} is not a whole GGUF file: expected a header of 24 bytes, found {size_bytes} bytes; "
            "copy or convert the model again"
        )
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as buffer:
        return _parse_gguf(_Cursor(path, buffer))


def _parse_gguf(cursor: _Cursor) -> GgufSummary:
    magic = cursor.take(4, "the magic")
    if magic != _GGUF_MAGIC:
        raise ModelError(
            f"{cursor.path} is not a GGUF file: expected it to start with {_GGUF_MAGIC!r}, found {magic!r}; "
            "convert the checkpoint to GGUF first"
        )
    version = cursor.scalar("<I", "the version")
    if version not in _GGUF_VERSIONS:
        raise cursor.fail(f"GGUF version {' or '.join(map(str, _GGUF_VERSIONS))}, little endian", f"{version}")
    n_tensors = cursor.scalar("<Q", "the number of tensors")
    n_keys = cursor.scalar("<Q", "the number of metadata keys")
    if n_tensors > _MAX_ENTRIES or n_keys > _MAX_ENTRIES:
        raise cursor.fail(f"at most {_MAX_ENTRIES} tensors and keys", f"{n_tensors} and {n_keys}")

    metadata: dict[str, Any] = {}
    array_lengths: dict[str, int] = {}
    for _ in range(n_keys):
        key = cursor.string("a metadata key")
        value, length = cursor.value(cursor.scalar("<I", f"the type of {key}"), key)
        if key in metadata or key in array_lengths:
            raise cursor.fail("each metadata key once", f"{key!r} twice")
        if length is None:
            metadata[key] = value
        else:
            array_lengths[key] = length
    infos = [_read_tensor_info(cursor) for _ in range(n_tensors)]

    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise cursor.fail("general.alignment to be a power of two", repr(alignment))
    data_start = -(-cursor.at // alignment) * alignment
    tensors = []
    for name, shape, ggml_type, offset_bytes, n_bytes in infos:
        if offset_bytes % alignment:
            raise cursor.fail(f"tensor {name!r} aligned to {alignment} bytes", f"offset {offset_bytes}")
        end = data_start + offset_bytes + n_bytes
        if end > cursor.size_bytes:
            raise cursor.fail(f"tensor {name!r} to end at byte {end}", f"a file of {cursor.size_bytes} bytes")
        tensors.append(TensorInfo(name, shape, ggml_type.name, data_start + offset_bytes, n_bytes))
    if len({tensor.name for tensor in tensors}) != len(tensors):
        raise cursor.fail("each tensor's name once", "a name twice")
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str):
        raise cursor.fail("general.architecture to name the architecture", repr(architecture))
    return GgufSummary(
        path=cursor.path,
        version=version,
        size_bytes=cursor.size_bytes,
        architecture=architecture,
        metadata=metadata,
        array_lengths=array_lengths,
        tensors=tuple(tensors),
    )


@functools.cache
def llama_lib() -> ModuleType:
    """llama_cpp's low-level C bindings, loaded once, with llama.cpp's log silenced."""
    try:
        from llama_cpp import llama_cpp as lib
    except (ImportError, OSError, RuntimeError) as error:
        raise ModelError(
            f"expected a working llama-cpp-python, found: {error}; install it with `pip install llama-cpp-python`"
        ) from error

    def keep_errors(level: int, text: bytes, user_data: int) -> None:
        del user_data
        if level == _ERROR_LEVEL:
            _error_lines.append(text.decode("utf-8", errors="replace").strip())

    callback = lib.llama_log_callback(keep_errors)
    _keep_alive.append(callback)
    lib.llama_log_set(callback, ctypes.c_void_p(0))
    lib.llama_backend_init()
    return lib


def last_errors() -> str:
    """The last error lines of llama.cpp's log, joined by `; ` (empty if there were none)."""
    return "; ".join(line for line in _error_lines if line)


def clear_errors() -> None:
    """Forgets the error lines kept so far, so that a later message holds only its own."""
    _error_lines.clear()


class Model:
    """A model that llama.cpp has loaded, and its vocabulary. Frees it in `close()`; contexts close first."""

    def __init__(self, path: Path, *, vocab_only: bool = False, use_mmap: bool = True, use_extra_bufts: bool = True):
        self.path = Path(path)
        self.gguf = check_gguf(self.path)
        self.lib = lib = llama_lib()
        self._handle: Any = None
        self._contexts: weakref.WeakSet[Context] = weakref.WeakSet()
        params = lib.llama_model_default_params()
        params.n_gpu_layers = 0
        params.vocab_only = vocab_only
        params.use_extra_bufts = use_extra_bufts
        if not use_mmap:
            params.load_mode = lib.LLAMA_LOAD_MODE_NONE
        clear_errors()
        handle = lib.llama_model_load_from_file(os.fsencode(self.path), params)
        if not handle:
            raise ModelError(
                f"llama.cpp could not load {self.path}: {last_errors() or 'it gave no reason'}; "
                f"expected a model of an architecture it knows, found {self.gguf.architecture!r}"
            )
        self._handle = handle
        self.vocab = lib.llama_model_get_vocab(handle)

    @property
    def handle(self) -> Any:
        """The `llama_model *`; refuses once closed."""
        if self._handle is None:
            raise ModelError(f"the model {self.path} has been closed")
        return self._handle

    @property
    def n_embd(self) -> int:
        return self.lib.llama_model_n_embd(self.handle)

    @property
    def n_ctx_train(self) -> int:
        return self.lib.llama_model_n_ctx_train(self.handle)

    @property
    def n_vocab(self) -> int:
        return self.lib.llama_vocab_n_tokens(self.vocab)

    @property
    def sha256(self) -> str:
        return file_sha256(self.path)

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool = False) -> list[int]:
        """Token ids of `text`. `add_special` adds BOS/EOS or [CLS]/[SEP] as the vocabulary asks;
        `parse_special` reads special tokens written in the text, which text from users must not be able to do."""
        assert self.handle
        raw = text.encode("utf-8", errors="replace")
        room = len(raw) + 8
        while True:
            buffer = (self.lib.llama_token * room)()
            n = self.lib.llama_tokenize(self.vocab, raw, len(raw), buffer, room, add_special, parse_special)
            if n >= 0:
                return buffer[:n]
            if -n <= room:
                raise ModelError(f"llama.cpp could not tokenize a text of {len(raw)} bytes with {self.path}")
            room = -n

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """The bytes of one token; those of special tokens only if `special`. May be part of a character."""
        assert self.handle
        room = 64
        while True:
            buffer = (ctypes.c_char * room)()
            n = self.lib.llama_token_to_piece(self.vocab, token, buffer, room, 0, special)
            if n >= 0:
                return buffer.raw[:n]
            room = -n

    def context(self, **params: Any) -> "Context":
        """A new context over this model; see `Context`."""
        return Context(self, **params)

    def close(self) -> None:
        """Frees the contexts made from this model, then the model. Safe to call twice."""
        for context in list(self._contexts):
            context.close()
        if self._handle is not None:
            self.lib.llama_model_free(self._handle)
            self._handle = None

    def __enter__(self) -> "Model":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Context:
    """A llama.cpp context. `params` are fields of `llama_context_params`; `n_threads` sets both thread counts.

    A context must not be used from two threads at once; two contexts over one model may.
    """

    def __init__(self, model: Model, *, n_threads: int | None = None, **params: Any):
        self.model, self.lib = model, model.lib
        self._handle: Any = None
        c_params = self.lib.llama_context_default_params()
        known = {name for name, _ in c_params._fields_}
        for name, value in params.items():
            if name not in known:
                raise TypeError(f"llama_context_params has no field {name!r}")
            setattr(c_params, name, value)
        c_params.n_threads = c_params.n_threads_batch = pick_threads(n_threads)
        c_params.no_perf = True
        clear_errors()
        handle = self.lib.llama_init_from_model(model.handle, c_params)
        if not handle:
            raise ModelError(
                f"llama.cpp could not make a context over {model.path} with {params}: "
                f"{last_errors() or 'it gave no reason'}; ask for a smaller n_ctx if memory is short"
            )
        self._handle = handle
        model._contexts.add(self)

    @property
    def handle(self) -> Any:
        """The `llama_context *`; refuses once closed."""
        if self._handle is None:
            raise ModelError(f"the context over {self.model.path} has been closed")
        return self._handle

    def close(self) -> None:
        """Frees the context. Safe to call twice."""
        if self._handle is not None:
            self.lib.llama_free(self._handle)
            self._handle = None

    def __enter__(self) -> "Context":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def load_model(path: Path, **options: Any) -> Model:
    """Checks a GGUF file and loads it; `options` as for `Model`."""
    return Model(path, **options)


def quantize_file(source: Path, out: Path, ftype: int, *, n_threads: int, requantize: bool = False) -> None:
    """llama.cpp's own quantization of a GGUF file; `ftype` is its number for the type. Writes `out` in place.

    requantize: allow a source that is quantized already. Raises ModelError where llama.cpp refuses.
    """
    lib = llama_lib()
    params = lib.llama_model_quantize_default_params()
    params.ftype, params.nthread, params.allow_requantize = ftype, n_threads, requantize
    clear_errors()
    status = lib.llama_model_quantize(os.fsencode(source), os.fsencode(out), ctypes.byref(params))
    if status != 0:
        raise ModelError(f"llama.cpp could not convert {source} to type {ftype}: {last_errors() or f'status {status}'}")
