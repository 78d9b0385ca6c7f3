"""A foreign GGUF file is tried in a process of its own: what ends that one is a sentence in this one, once for each
content."""

import os
import stat
import subprocess
import sys
import threading

import pytest
from gguf_made import U32, bert, llama

from reclm_lite import gguf_file, probe, runtime, threads
from reclm_lite.assets import encoder_path, profile_model_path
from reclm_lite.errors import InputError, ModelError


@pytest.fixture
def tried(tmp_path, monkeypatch):
    """A cache folder of its own, nothing known, and the list of processes that were started."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(probe, "_passed", set())
    started = []
    start = subprocess.Popen

    def counted(*args, **kwargs):
        started.append(args[0])
        return start(*args, **kwargs)

    monkeypatch.setattr(probe.subprocess, "Popen", counted)
    return started


def write(tmp_path, made):
    (tmp_path / "made.gguf").write_bytes(made.data())
    return tmp_path / "made.gguf"


def test_a_file_that_ends_the_process_is_a_sentence(tmp_path, monkeypatch, tried):
    monkeypatch.setattr(gguf_file, "check_limits", lambda *arguments: None)
    path = write(tmp_path, llama().with_key("llama.block_count", U32, 0))
    for _ in range(2):  # a refusal is not kept: memory may have been short
        with pytest.raises(ModelError, match=r"expected .*made.gguf to load .* ended by SIGABRT \(.*n_layer"):
            runtime.load_model(path)
    assert len(tried) == 2


def test_a_file_that_hangs_is_a_sentence(tmp_path, monkeypatch, tried):
    monkeypatch.setattr(gguf_file, "check_limits", lambda *arguments: None)
    monkeypatch.setattr(probe, "_SECONDS", 1)
    with pytest.raises(ModelError, match="had not after 1 seconds"):
        runtime.load_model(write(tmp_path, bert_that_hangs()))


def bert_that_hangs():
    from gguf_made import gemma2

    return gemma2().with_key("gemma2.rope.dimension_count", U32, 0)


def test_a_file_is_tried_once_for_its_content(tmp_path, monkeypatch, tried):
    path = write(tmp_path, llama())
    runtime.load_model(path).close()
    runtime.load_model(path, vocab_only=True).close()
    assert len(tried) == 1
    probe._passed.clear()  # another process
    runtime.load_model(path.rename(tmp_path / "renamed.gguf")).close()
    assert len(tried) == 1
    runtime.load_model(write(tmp_path, bert())).close()
    assert len(tried) == 2
    kept = list((tmp_path / "cache").rglob("models-that-passed-*/*"))
    assert len(kept) == 2
    assert all(stat.S_IMODE(file.stat().st_mode) == 0o600 and not file.stat().st_size for file in kept)
    monkeypatch.setattr(probe, "PROBE_VERSION", probe.PROBE_VERSION + 1)
    probe._passed.clear()
    runtime.load_model(path).close()
    assert len(tried) == 3


def test_the_cache_keeps_the_newest(tmp_path, monkeypatch, tried):
    monkeypatch.setattr(probe, "_MAX_KEPT", 2)
    for number in range(4):
        probe._keep(f"{number}")
        os.utime(probe._kept_under() / f"{number}", ns=(number, number))
    assert len(list(probe._kept_under().iterdir())) == 2


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path, monkeypatch, tried):
    (tmp_path / "cache").write_text("a file")
    runtime.load_model(write(tmp_path, llama())).close()
    assert len(tried) == 1


def test_bundled_models_are_not_tried(tried):
    for path in (encoder_path(), profile_model_path()):
        runtime.load_model(path).close()
    assert not tried


def test_a_file_without_more_than_a_vocabulary_loads_as_one(tmp_path, tried):
    made = llama()
    path = write(tmp_path, made.without(*made.tensors))
    with runtime.load_model(path, vocab_only=True) as model:
        assert model.n_vocab == 262
    with pytest.raises(ModelError, match="llama.cpp could not load"):
        runtime.load_model(path)


def test_a_process_that_cannot_be_started_is_a_sentence(tmp_path, monkeypatch, tried):
    def none(*args, **kwargs):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(probe.subprocess, "Popen", none)
    with pytest.raises(ModelError, match="allow more processes"):
        runtime.load_model(write(tmp_path, llama()))


def test_a_trial_that_nobody_waits_for_is_ended(tmp_path, tried):
    summary = runtime.check_gguf(write(tmp_path, llama()))
    trial = probe.Probe(summary)
    child = trial._child
    trial.close()
    trial.close()
    assert child.returncode is not None


def test_a_file_that_vanished_meanwhile_is_named(tmp_path, tried):
    summary = runtime.check_gguf(write(tmp_path, llama()))
    (tmp_path / "made.gguf").unlink()
    with pytest.raises(ModelError, match="expected to read .*made.gguf"):
        probe.Probe(summary)


def test_quantizing_tries_the_source_first(tmp_path, monkeypatch, tried):
    monkeypatch.setattr(gguf_file, "check_limits", lambda *arguments: None)
    with pytest.raises(ModelError, match="ended by SIG"):
        runtime.quantize_file(
            write(tmp_path, llama().with_key("llama.block_count", U32, 0)), tmp_path / "out", 7, n_threads=1
        )


# threads


@pytest.mark.parametrize("n_threads", [0, -1, 10**6, 2**40, 2.5, "2", True])
def test_a_number_of_threads_that_no_machine_can_be_asked_for_is_refused(n_threads):
    with pytest.raises(InputError, match=f"at most {threads.most_threads()} on this machine, found {n_threads!r}"):
        threads.check_threads(n_threads, InputError)
    assert threads.check_threads(threads.most_threads(), InputError) == threads.most_threads() >= 64


def test_threads_that_the_system_does_not_allow_are_refused_before_a_library_asks_for_them(monkeypatch):
    monkeypatch.setattr(threads, "_proved", {})
    start, running = threading.Thread.start, []

    def few(thread):
        if len(running) == 3:
            raise RuntimeError("can't start new thread")
        running.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", few)
    with pytest.raises(InputError, match="expected to start 8 threads, found that the system allows this process 4"):
        threads.prove_threads(8, InputError)
    assert not any(thread.is_alive() for thread in running)
    running.clear()
    threads.prove_threads(3, InputError)


LIMITED = """
import resource, numpy as np
from reclm_lite.errors import InputError
from reclm_lite.kernels import native
vectors = np.ones((4096, 8), np.float32)
native.topk(vectors, vectors, 1, n_threads=1)
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + (100 << 20), size + (100 << 20)))
try:
    native.topk(vectors, vectors, 1, n_threads=60)
except InputError as error:
    print(error)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="bounds address space as Linux does")
def test_kernels_under_a_bound_on_address_space_end_with_a_sentence():
    run = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "expected to start 60 threads" in run.stdout


def test_the_command_refuses_a_number_of_threads_beyond_the_machine():
    run = subprocess.run(
        [sys.executable, "-m", "reclm_lite.cli", "embed", "items", "-w", "nowhere", "--threads", "100000"],
        capture_output=True,
        text=True,
    )
    assert run.returncode in (1, 2) and "expected --threads of at most" in run.stderr
