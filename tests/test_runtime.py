"""A GGUF file is validated before llama.cpp sees it; everything llama.cpp allocates has one owner."""

import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from reclm_lite import runtime
from reclm_lite.assets import encoder_path
from reclm_lite.errors import ModelError

NOT_WHOLE = "not a whole GGUF file"


def _gguf(path: Path, *, n_values: int = 64, drop_bytes: int = 0) -> Path:
    """A GGUF file of one float32 tensor, made by hand; llama.cpp cannot use it, but it is whole."""

    def string(text: str) -> bytes:
        return struct.pack("<Q", len(text)) + text.encode()

    header = b"GGUF" + struct.pack("<IQQ", 3, 1, 2)
    header += string("general.architecture") + struct.pack("<I", 8) + string("llama")
    header += string("list") + struct.pack("<IIQ", 9, 8, 2) + string("a") + string("bc")
    header += string("tensor") + struct.pack("<IQIQ", 1, n_values, 0, 0)
    header += b"\0" * (-len(header) % 32)
    whole = header + struct.pack(f"<{n_values}f", *range(n_values))
    path.write_bytes(whole[: len(whole) - drop_bytes])
    return path


def test_whole_file_is_described(tmp_path: Path) -> None:
    summary = runtime.check_gguf(_gguf(tmp_path / "m.gguf"))
    assert summary.architecture == "llama"
    assert summary.array_lengths == {"list": 2}
    assert [(t.name, t.shape, t.type_name, t.size_bytes) for t in summary.tensors] == [("tensor", (64,), "F32", 256)]


def test_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    size = _gguf(tmp_path / "m.gguf").stat().st_size
    for n_bytes in range(1, size):
        with pytest.raises(ModelError, match=NOT_WHOLE):
            runtime.check_gguf(_gguf(tmp_path / "m.gguf", drop_bytes=n_bytes))


def test_bundled_model_cut_is_refused_and_says_where(tmp_path: Path) -> None:
    whole = encoder_path().read_bytes()
    for n_bytes in (len(whole) - 1, len(whole) // 2, 500_000, 1000, 30):
        (tmp_path / "m.gguf").write_bytes(whole[:n_bytes])
        with pytest.raises(ModelError, match=f"{NOT_WHOLE}.*expected.*found"):
            runtime.load_model(tmp_path / "m.gguf")


def test_flipped_bytes_in_the_header_never_crash(tmp_path: Path) -> None:
    """Every corruption of the tables is refused or yields a summary; none escapes as another exception."""
    path = _gguf(tmp_path / "m.gguf")
    whole = path.read_bytes()
    n_refused = 0
    for at in range(len(whole) - 256):
        for value in (0x00, 0x7F, 0xFF):
            path.write_bytes(whole[:at] + bytes([value]) + whole[at + 1 :])
            try:
                runtime.check_gguf(path)
            except ModelError:
                n_refused += 1
    assert n_refused > 200


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "0 bytes"),
        (b"PK\x03\x04" + b"\0" * 60, "not a GGUF file"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version 2 or 3"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "version 2 or 3"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0), "at most"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 0), "general.architecture"),
    ],
)
def test_what_is_not_gguf_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(ModelError, match=message):
        runtime.check_gguf(tmp_path / "m.gguf")


def test_missing_file_is_a_model_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="found no such file"):
        runtime.load_model(tmp_path / "none.gguf")


def test_whole_file_that_is_no_model_is_refused_with_llama_cpps_reason(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="could not load .*: .*error loading model"):
        runtime.load_model(_gguf(tmp_path / "m.gguf"))


def test_sha256_follows_the_content(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    assert runtime.file_sha256(path).startswith("ba7816bf")
    path.write_bytes(b"abcd")
    assert runtime.file_sha256(path).startswith("88d4266f")


def test_threads_default_to_the_cpus_this_process_may_use() -> None:
    assert runtime.pick_threads(3) == 3
    assert 1 <= runtime.pick_threads() <= (os.cpu_count() or 1)
    with pytest.raises(ModelError, match="at least 1"):
        runtime.pick_threads(0)


def test_tokens_of_user_text_cannot_be_special() -> None:
    with runtime.load_model(encoder_path(), vocab_only=True) as model:
        special = model.tokenize("[SEP]", add_special=False, parse_special=True)
        plain = model.tokenize("[SEP]", add_special=False)
        assert len(special) == 1
        assert special[0] not in plain
        assert b"".join(model.piece(token) for token in plain).replace(b" ", b"") == b"[sep]"


def test_closed_model_and_context_refuse_and_close_twice() -> None:
    model = runtime.load_model(encoder_path())
    context = model.context(n_ctx=32, n_batch=32, n_ubatch=32, n_threads=1, embeddings=True)
    model.close()
    model.close()
    context.close()
    with pytest.raises(ModelError, match="has been closed"):
        _ = context.handle
    with pytest.raises(ModelError, match="has been closed"):
        model.tokenize("a", add_special=True)


def test_unknown_context_parameter_is_an_error() -> None:
    with runtime.load_model(encoder_path()) as model, pytest.raises(TypeError, match="n_contexts"):
        model.context(n_contexts=3)


def test_a_signal_held_back_is_never_forgotten() -> None:
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), runtime.long_call() as held_back:
            signal.raise_signal(signal.SIGINT)
            assert held_back == [signal.SIGINT]
        with pytest.raises(KeyboardInterrupt), runtime.long_call():
            signal.raise_signal(signal.SIGINT)
            raise ModelError("what failed besides")
        with pytest.raises(KeyboardInterrupt), runtime.long_call() as outer:
            with runtime.long_call():
                signal.raise_signal(signal.SIGINT)
            assert outer == [signal.SIGINT]  # the outer call is not over
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, previous)


def test_llama_cpp_writes_nothing_to_the_terminal() -> None:
    code = (
        "from reclm_lite import runtime\n"
        "from reclm_lite.assets import encoder_path\n"
        "with runtime.load_model(encoder_path()) as m: m.context(n_ctx=32, n_threads=1, embeddings=True).close()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"", b"")


def test_importing_the_runtime_does_not_load_llama_cpp() -> None:
    code = "import sys, reclm_lite.runtime, reclm_lite.text.encoder; sys.exit('llama_cpp' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
