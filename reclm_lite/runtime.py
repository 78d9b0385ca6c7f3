"""Loads llama.cpp (the only module that does) and owns what it allocates.

llama.cpp trusts its input, logs to stderr, and needs every model and context to be freed explicitly. Here a file is
validated before llama.cpp sees it (`check_gguf`), a foreign one is first loaded in a separate process (`Probe`), the
log is silenced except that its last error lines go into the exception, and `Model` and `Context` free what they own.
Left out: sampling, batching and pooling, which belong to the callers.
"""

import collections
import ctypes
import functools
import os
import re
import signal
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from reclm_lite.errors import ModelError
from reclm_lite.files import file_sha256
from reclm_lite.gguf_file import GgufSummary, TensorInfo, check_gguf
from reclm_lite.probe import Probe
from reclm_lite.threads import MOST_OF_LLAMA_CPP, check_threads, prove_threads

__all__ = ["GgufSummary", "TensorInfo", "check_gguf"]  # part of this module's interface

_ERROR_LEVEL = 4  # enum ggml_log_level
# Words and numbers have bounded lengths: a log line may contain a model's name, which may be anything.
_BUFFER_SIZE = re.compile(rb"(\w{1,9}) buffer size = {1,20}(\d{1,9}(?:\.\d{1,6})?) MiB")
_buffer_bytes: collections.Counter[str] = collections.Counter()  # buffer sizes by kind, from llama.cpp's log
_error_lines: collections.deque[str] = collections.deque(maxlen=6)
_keep_alive: list[Any] = []  # the log callback: C holds a pointer to it until the process ends

_KV_INT, _KV_STR, _KV_STR_BYTES = 0, 3, 127  # enum llama_model_kv_override_type; the longest string, without its NUL


def pick_threads(n_threads: int | None = None) -> int:
    """The number of threads to use: `n_threads` if given, else the CPUs this process may run on."""
    if n_threads is not None:
        return min(check_threads(n_threads, ModelError), MOST_OF_LLAMA_CPP)
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(os.cpu_count() or 1, usable, MOST_OF_LLAMA_CPP))


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
        elif b"buffer size" in text and (found := _BUFFER_SIZE.search(text)):
            _buffer_bytes[found[1].decode()] += int(float(found[2]) * 2**20)

    callback = lib.llama_log_callback(keep_errors)
    _keep_alive.append(callback)
    lib.llama_log_set(callback, ctypes.c_void_p(0))
    lib.llama_backend_init()
    return lib


@functools.cache
def _row_to_half() -> Any:
    """ggml's conversion of a row to float16 by a hardware instruction; None if the library lacks it."""
    convert = getattr(llama_lib()._lib, "ggml_cpu_fp32_to_fp16", None)
    if convert is not None:
        convert.argtypes, convert.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64], None
    return convert


def single_to_half(values: np.ndarray) -> np.ndarray:
    """float32 -> float16 of the same shape, rounded to nearest, ties to even; overflow gives infinity.

    The bits equal NumPy's cast, which is several times slower, except for NaN payloads.
    """
    convert = _row_to_half()
    if convert is None:
        with np.errstate(over="ignore", invalid="ignore"):
            return np.ascontiguousarray(values, dtype=np.float16)
    values = np.ascontiguousarray(values, dtype=np.float32)
    halves = np.empty(values.shape, np.float16)
    convert(values.ctypes.data, halves.ctypes.data, values.size)
    return halves


def last_errors() -> str:
    """The last error lines of llama.cpp's log, joined by `; ` (empty if there were none)."""
    return "; ".join(line for line in _error_lines if line)


def clear_errors() -> None:
    """Discard the error lines kept so far, so that a later message contains only its own."""
    _error_lines.clear()


@contextmanager
def _new_buffers() -> Iterator[dict[str, int]]:
    """Yield bytes of buffers allocated within the block, by kind ("model", "KV", "compute", "output"), from the log."""
    before, found = _buffer_bytes.copy(), {}
    yield found
    found.update(_buffer_bytes - before)


@contextmanager
def long_call() -> Iterator[list[int]]:
    """Wrap a call of llama.cpp: discard earlier errors, and delay signals until the call returns.

    Python handles a signal wherever Python code runs next. During the call that is a callback, from which exceptions
    cannot propagate: a Ctrl-C would be printed and lost. Yields the list of the signals delayed so far.
    """
    clear_errors()
    held_back: list[int] = []
    handlers = {}
    if threading.current_thread() is threading.main_thread():  # other threads handle no signals
        for number in (signal.SIGINT, signal.SIGTERM):
            handler = signal.getsignal(number)
            if callable(handler):
                handlers[number] = handler
                signal.signal(number, lambda number, frame: held_back.append(number))
    try:
        yield held_back
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if held_back:  # even after an exception, so that no Ctrl-C is lost
            handlers[held_back[0]](held_back[0], None)


class Model:
    """A model loaded by llama.cpp, and its vocabulary. `close()` frees its contexts, then the model.

    foreign: load it in a separate process first, unless it came with the package or has passed before.
    buffer_bytes: of the weights, by kind of buffer, from llama.cpp's log (empty if the log has no such line).
    """

    def __init__(
        self,
        path: Path,
        *,
        vocab_only: bool = False,
        use_mmap: bool = True,
        use_extra_bufts: bool = True,
        foreign: bool = True,
    ):
        self.path = Path(path)
        self.gguf = check_gguf(self.path)
        with Probe(self.gguf) if foreign else nullcontext() as probe:
            self.lib = lib = llama_lib()  # takes as long as the probe of a small model
            if probe is not None:
                probe.wait()
        self._handle: Any = None
        self._contexts: weakref.WeakSet[Context] = weakref.WeakSet()
        params = lib.llama_model_default_params()
        params.n_gpu_layers = 0
        params.vocab_only = vocab_only
        params.use_extra_bufts = use_extra_bufts
        if not use_mmap:
            params.load_mode = lib.LLAMA_LOAD_MODE_NONE
        try:
            with long_call(), _new_buffers() as self.buffer_bytes:
                self._handle = lib.llama_model_load_from_file(os.fsencode(self.path), params)
        except BaseException:  # a signal's handler may raise anything
            self.close()
            raise
        if not self._handle:
            raise ModelError(
                f"llama.cpp could not load {self.path}: {last_errors() or 'it gave no reason'}; "
                f"expected a model of an architecture it knows, found {self.gguf.architecture!r}"
            )
        self.vocab = lib.llama_model_get_vocab(self._handle)

    @property
    def handle(self) -> Any:
        """The `llama_model *`; raises an error once closed."""
        if self._handle is None:
            raise ModelError(f"the model {self.path} has been closed")
        return self._handle

    @property
    def n_embd(self) -> int:
        return self.lib.llama_model_n_embd(self.handle)

    @property
    def n_ctx_train(self) -> int:
        # With only the vocabulary loaded, llama.cpp reports no training context.
        return self.lib.llama_model_n_ctx_train(self.handle) or int(
            self.gguf.metadata.get(f"{self.gguf.architecture}.context_length", 0)
        )

    @property
    def n_vocab(self) -> int:
        return self.lib.llama_vocab_n_tokens(self.vocab)

    @property
    def sha256(self) -> str:
        return file_sha256(self.path)

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool = False) -> list[int]:
        """Token ids of `text`.

        add_special: add BOS/EOS or [CLS]/[SEP] as the vocabulary requires. parse_special: recognize special tokens
        written in the text; never for text from users.
        """
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
        """The bytes of one token, possibly part of a character. Special tokens are empty unless `special`."""
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
        if self._handle:
            self.lib.llama_model_free(self._handle)
            self._handle = None

    def __enter__(self) -> "Model":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Context:
    """A llama.cpp context. `params` are fields of `llama_context_params`; `n_threads` sets both thread counts.

    cb_eval: called as cb_eval(address of a ggml_tensor, ask) -> bool for the nodes of each graph; returning False with
    `ask` false ends the computation. It must not raise: ctypes would print the exception and drop it.

    buffer_bytes: allocated bytes by kind ("KV", "compute", "output"), from llama.cpp's log.

    A context must not be used from two threads at once; two contexts over one model may.
    """

    def __init__(
        self,
        model: Model,
        *,
        n_threads: int | None = None,
        cb_eval: Callable[[int, bool], bool] | None = None,
        **params: Any,
    ):
        self.model, self.lib = model, model.lib
        self._handle: Any = None
        c_params = self.lib.llama_context_default_params()
        known = {name for name, _ in c_params._fields_}
        for name, value in params.items():
            if name not in known:
                raise TypeError(f"llama_context_params has no field {name!r}")
            setattr(c_params, name, value)
        if cb_eval is not None:
            self._cb_eval = self.lib.ggml_backend_sched_eval_callback(
                lambda tensor, ask, user_data: cb_eval(tensor, ask)
            )
            c_params.cb_eval = self._cb_eval
        c_params.n_threads = c_params.n_threads_batch = pick_threads(n_threads)
        prove_threads(c_params.n_threads, ModelError)
        c_params.no_perf = True
        try:
            with long_call(), _new_buffers() as self.buffer_bytes:
                self._handle = self.lib.llama_init_from_model(model.handle, c_params)
        except BaseException:  # a signal's handler may raise anything
            self.close()
            raise
        if not self._handle:
            raise ModelError(
                f"llama.cpp could not make a context over {model.path} with {params}: "
                f"{last_errors() or 'it gave no reason'}; ask for a smaller n_ctx if memory is short"
            )
        model._contexts.add(self)

    @property
    def handle(self) -> Any:
        """The `llama_context *`; raises an error once closed."""
        if self._handle is None:
            raise ModelError(f"the context over {self.model.path} has been closed")
        return self._handle

    def close(self) -> None:
        """Frees the context. Safe to call twice."""
        if self._handle:
            self.lib.llama_free(self._handle)
            self._handle = None

    def __enter__(self) -> "Context":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def load_model(path: Path, **options: Any) -> Model:
    """Check a GGUF file and load it. options: those of `Model`."""
    return Model(path, **options)


def quantize_file(
    source: Path,
    out: Path,
    ftype: int,
    *,
    n_threads: int,
    requantize: bool = False,
    imatrix: Mapping[str, np.ndarray] | None = None,
    metadata: Mapping[str, int | str] | None = None,
    max_buf_size: int = 0,
) -> None:
    """Quantize a GGUF file with llama.cpp; ftype: its number of the type. Writes `out` directly, not atomically.

    requantize: allow a source that is already quantized.
    imatrix: tensor name -> importance of each column, float32 (n_matrices * n_columns,).
    metadata: keys to set in `out`; text is cut at llama.cpp's limit of 127 bytes.
    max_buf_size: bytes of one tensor's rows processed at once; 0 is llama.cpp's default (8 GiB).
    Raises ModelError if llama.cpp fails. A Ctrl-C is raised when llama.cpp returns.
    """
    prove_threads(check_threads(n_threads, ModelError), ModelError)
    with Probe(check_gguf(source)) as probe:
        lib = llama_lib()
        probe.wait()
    params = lib.llama_model_quantize_default_params()
    params.ftype, params.nthread, params.allow_requantize = ftype, n_threads, requantize
    params.max_buf_size = max_buf_size or params.max_buf_size
    if imatrix:
        # An additional zero entry terminates each of these arrays.
        entries = (lib.llama_model_imatrix_data * (len(imatrix) + 1))()
        for entry, (name, values) in zip(entries, imatrix.items(), strict=False):
            if values.dtype != np.float32 or not values.flags.c_contiguous:
                raise TypeError(f"imatrix of {name!r}: expected contiguous float32, found {values.dtype}")
            entry.name, entry.size = name.encode(), values.size
            entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        params.imatrix = entries
    if metadata:
        overrides = (lib.llama_model_kv_override * (len(metadata) + 1))()
        for override, (key, value) in zip(overrides, metadata.items(), strict=False):
            override.key = key.encode()
            if isinstance(value, int):
                override.tag, override.value.val_i64 = _KV_INT, value
            else:
                cut = value.encode()[:_KV_STR_BYTES].decode("utf-8", errors="ignore")
                override.tag, override.value.val_str = _KV_STR, cut.encode()
        params.kv_overrides = overrides
    with long_call():
        status = lib.llama_model_quantize(os.fsencode(source), os.fsencode(out), ctypes.byref(params))
    if status != 0:
        raise ModelError(
            f"llama.cpp could not convert {source} to type {ftype}: {last_errors() or f'status {status}'}; "
            f"if it could not write, make room at {out.parent}"
        )
