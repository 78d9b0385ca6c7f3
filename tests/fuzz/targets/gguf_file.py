"""GGUF headers: `gguf_header` walks them; `gguf_load` gives those that pass to llama.cpp, in a process forked for
each."""

import atexit
import functools
import os
import shutil
import signal
import tempfile
from pathlib import Path

from gguf_made import MADE, STRING, U32, charsmap, spoiled, unigram
from harness import Target

from reclm_lite.errors import ModelError
from reclm_lite.gguf_file import check_gguf

_SECONDS = 20
aborted: list[tuple[bytes, int]] = []  # what check_gguf let through and llama.cpp ended the process for, and the signal


@functools.cache
def _folder() -> Path:
    folder = tempfile.mkdtemp(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def _write(data: bytes) -> Path:
    path = _folder() / "made.gguf"
    path.write_bytes(data)
    return path


def header(data: bytes) -> str:
    try:
        check_gguf(_write(data))
    except ModelError:
        return "refused"
    return "accepted"


def load(data: bytes) -> str:
    path = _write(data)
    try:
        summary = check_gguf(path)
    except ModelError:
        return "refused"
    status = try_apart(path, summary)
    if os.WIFSIGNALED(status) or os.WEXITSTATUS(status) not in (0, 3):
        aborted.append((data, status))
        return f"refused by the probe: {signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else status}"
    return "accepted" if os.WEXITSTATUS(status) == 0 else "refused by llama.cpp"


def try_apart(path: Path, summary) -> int:
    """The wait status of a process that does what `reclm_lite.probe_child` does; 3 where llama.cpp refused the file
    itself."""
    from reclm_lite.probe import encodes, pooling_of
    from reclm_lite.probe_child import PASSED, bound, try_model
    from reclm_lite.runtime import llama_lib

    lib = llama_lib()
    child = os.fork()
    if not child:
        code = 99
        try:
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, 2)
            os.environ["GGML_NO_BACKTRACE"] = "1"
            bound(_SECONDS, summary.size_bytes)
            code = (
                0
                if try_model(lib, os.fsencode(path), encoder=encodes(summary), pooling_type=pooling_of(summary))
                == PASSED
                else 3
            )
        finally:
            os._exit(code)
    return os.waitpid(child, 0)[1]


def small() -> list[bytes]:
    return [make().data() for make in MADE.values()]


def wrong() -> list[bytes]:
    """The smallest of each kind known to end llama.cpp's process."""
    llama, bert = MADE["llama"](), MADE["bert"]()
    return [
        *small(),
        *(
            llama.with_key(f"llama.{key}", U32, value).data()
            for key, value in (
                ("block_count", 0),
                ("block_count", 513),
                ("attention.head_count", 0),
                ("attention.head_count_kv", 0),
                ("attention.head_count", 3),
                ("expert_used_count", 1),
                ("rope.dimension_count", 3),
                ("nextn_predict_layers", 2),
            )
        ),
        llama.with_key("llama.rope.scaling.type", STRING, "x").data(),
        bert.with_key("bert.pooling_type", U32, 99).data(),
        unigram(charsmap({ord("H"): ord("H") | 1 << 8 | 256 << 10, 256 ^ ord("H"): 1 << 31})).data(),
        unigram(charsmap({ord("H"): ord("H") | 1 << 8 | 2048 << 10})).data(),  # aborts at the letter H alone
    ]


def everything() -> list[bytes]:
    return [*wrong(), *(each.data() for make in MADE.values() for _, each in list(spoiled(make()))[::90])]


DICTIONARY = (
    b"GGUF",
    b"general.alignment",
    b"tokenizer.ggml.tokens",
    b"\xff" * 4,
    b"\xff" * 8,
    b"\0" * 8,
    b"\0\0\xc0\x7f",
    b"\0\0\x80\xff",
    b"\x09\0\0\0",
    b"\x08\0\0\0",
    b"block_count",
    b"head_count",
    b"rope.scaling.type",
    b"expert_count",
)
TARGETS = (
    Target(
        "gguf_header", "GGUF headers, walked by check_gguf", wrong, header, DICTIONARY, max_bytes=32_768, n_slice=1500
    ),
    Target(
        "gguf_load",
        "GGUF files that pass, loaded by llama.cpp in a process apart",
        everything,
        load,
        DICTIONARY,
        max_bytes=32_768,
        memory_bytes=0,
        n_slice=60,
    ),
)
