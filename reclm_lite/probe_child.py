"""Tries a GGUF file in a process of its own: loads it, tokenizes, decodes a few tokens. Run by `probe`, as a script.

llama.cpp ends the process for what it did not expect in a file (an assertion, a division by zero, an address out of
bounds). Here that is the end of this process alone, and its parent makes a sentence of it. So that it starts in some
70 ms, it imports the C bindings without the package around them, and nothing of reclm_lite, not even numpy.
"""

import ctypes
import json
import os
import resource
import signal
import sys
import types

PASSED, NOT_LOADED = "passed", "not loaded"
_N_CTX = 256  # tokens; llama.cpp rounds a context up to so many
_SHARED_BYTES = 4 << 30  # address space beside the file and the processor's copy of it: libraries, cache, buffers
_TEXT = "User identity: a, b, c; User interests: \u00fc \u4f60 \U0001f600 0123\n\t <s> [SEP] <|im_end|>".encode()
# Every byte, and characters from all over Unicode: all of the first 1,024, then some of every block.
_WIDE_TEXT = (
    bytes(range(256))
    + "".join(map(chr, (*range(1, 0x400), *range(0x400, 0xD800, 61), *range(0xE000, 0x110000, 1021)))).encode()
    + b" abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ"
)
_N_PIECES = 2000  # tokens whose bytes are asked for, spread over the vocabulary


def bound(seconds: float, size_bytes: int) -> None:
    """At most so much time and address space, and no core file: what wants more ends here."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(max(1, int(seconds)))  # an orphan ends as well
    wanted = 3 * size_bytes + _SHARED_BYTES
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    try:
        limit = wanted if most == resource.RLIM_INFINITY else min(wanted, most)
        resource.setrlimit(resource.RLIMIT_AS, (limit, most))
    except (OSError, ValueError):  # macOS bounds no address space
        pass


def load_library(folder: str) -> types.ModuleType:
    """llama_cpp's C bindings, with llama.cpp's log dropped; the package's own `__init__` would load numpy and more."""
    package = types.ModuleType("llama_cpp")
    package.__path__ = [folder]
    sys.modules["llama_cpp"] = package
    from llama_cpp import llama_cpp as lib

    quiet = lib.llama_log_callback(lambda level, text, data: None)
    load_library.keep_alive = quiet
    lib.llama_log_set(quiet, ctypes.c_void_p(0))
    lib.llama_backend_init()
    return lib


def _open(lib: types.ModuleType, path: bytes, *, vocab_only: bool) -> ctypes.c_void_p | None:
    params = lib.llama_model_default_params()
    # Weights stay mapped, as repacking them would take memory and time; nothing is written to them.
    params.n_gpu_layers, params.vocab_only, params.use_extra_bufts = 0, vocab_only, False
    return lib.llama_model_load_from_file(path, params)


def _context(lib: types.ModuleType, model: ctypes.c_void_p, n_batch: int, **settings: int) -> ctypes.c_void_p | None:
    params = lib.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max = _N_CTX, n_batch, n_batch, 1
    params.n_threads = params.n_threads_batch = 1
    params.no_perf = True
    for name, value in settings.items():
        setattr(params, name, value)
    return lib.llama_init_from_model(model, params)


def _tokens(lib: types.ModuleType, vocab: ctypes.c_void_p) -> list[int]:
    """Tokens of a text that has a bit of everything; the pieces of many tokens are asked for on the way."""
    room = len(_WIDE_TEXT) + 16
    wide = (lib.llama_token * room)()
    for special in (False, True):
        lib.llama_tokenize(vocab, _WIDE_TEXT, len(_WIDE_TEXT), wide, room, special, special)
    room = len(_TEXT) + 16
    for special in (False, True):
        buffer = (lib.llama_token * room)()
        n = lib.llama_tokenize(vocab, _TEXT, len(_TEXT), buffer, room, special, special)
    n_vocab = lib.llama_vocab_n_tokens(vocab)
    piece = (ctypes.c_char * 256)()
    ends = [lib.llama_vocab_bos(vocab), lib.llama_vocab_eos(vocab), lib.llama_vocab_eot(vocab)]
    for token in (*range(0, n_vocab, max(1, n_vocab // _N_PIECES)), *(end for end in ends if end >= 0)):
        lib.llama_token_to_piece(vocab, token, piece, 256, 0, True)
    return [token for token in buffer[: max(n, 0)] if 0 <= token < n_vocab] or ([0] if n_vocab else [])


def _decode(lib: types.ModuleType, context: ctypes.c_void_p, tokens: list[int], n_vocab: int) -> None:
    memory = lib.llama_get_memory(context)
    batch = lib.llama_batch_init(len(tokens), 0, 1)
    batch.n_tokens = len(tokens)
    for at, token in enumerate(tokens):
        batch.token[at], batch.pos[at], batch.n_seq_id[at], batch.seq_id[at][0], batch.logits[at] = token, at, 1, 0, 1
    if memory:
        status = lib.llama_decode(context, batch)
        logits = lib.llama_get_logits(context) if status == 0 and n_vocab else None
        if logits:
            _ = logits[0], logits[n_vocab * len(tokens) - 1]
        lib.llama_memory_seq_rm(memory, 0, 1, -1)
    else:
        lib.llama_encode(context, batch)
        lib.llama_get_embeddings_seq(context, 0)
    lib.llama_batch_free(batch)


def try_model(lib: types.ModuleType, path: bytes, *, encoder: bool, pooling_type: int | None) -> str:
    """Load a model and do with it what a run does; returns PASSED, or NOT_LOADED if llama.cpp itself refuses the file.

    encoder: it makes vectors and no text, so nothing is asked for the next token. pooling_type: of an embedding model.
    """
    model = _open(lib, path, vocab_only=False)
    if not model:
        model = _open(lib, path, vocab_only=True)
        if model:
            _tokens(lib, lib.llama_model_get_vocab(model))
            lib.llama_model_free(model)
        return NOT_LOADED
    vocab = lib.llama_model_get_vocab(model)
    n_vocab = lib.llama_vocab_n_tokens(vocab)
    tokens = _tokens(lib, vocab)
    # Few tokens cost little; the vocabulary's last one finds an embedding that is too short.
    tokens = [*tokens[:3], n_vocab - 1] if n_vocab else []
    ways = [] if encoder else [{}]
    if encoder or pooling_type is not None:
        ways.append(
            {"embeddings": True, "pooling_type": 1 if pooling_type is None else pooling_type, "flash_attn_type": 1}
        )
    for settings in ways:
        context = _context(lib, model, max(len(tokens), 1), **settings)
        if context:
            if tokens:
                _decode(lib, context, tokens, 0 if settings else n_vocab)
            lib.llama_free(context)
    lib.llama_model_free(model)
    return PASSED


def main() -> None:
    job = json.loads(sys.argv[1])
    bound(job["seconds"], job["size_bytes"])
    sys.path[:] = job["sys_path"]
    lib = load_library(job["folder"])
    outcome = try_model(lib, os.fsencode(job["path"]), encoder=job["encoder"], pooling_type=job["pooling_type"])
    sys.stdout.write(outcome)
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
