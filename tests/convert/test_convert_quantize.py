"""Quantization equals llama.cpp's byte for byte, reports fallbacks, and never leaves a partial file."""

import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from checkpoints import CORPUS, save_bert, save_llama
from llama_programs import LLAMA_BIN, needs

from reclm_lite.convert.export_checkpoint import export_checkpoint
from reclm_lite.convert.imatrix import Imatrix, collect_imatrix, read_imatrix
from reclm_lite.convert.quantize import FTYPES, NEEDS_IMATRIX, QUANTIZED_FTYPES, quantize_gguf
from reclm_lite.errors import ModelError
from reclm_lite.runtime import check_gguf, llama_lib, load_model

pytest.importorskip("transformers")

needs_programs = needs("llama-quantize")


@pytest.fixture(scope="module")
def f16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("quantize")
    checkpoint = save_llama(directory / "checkpoint", hidden_size=256, intermediate_size=512)
    export_checkpoint(checkpoint, directory / "model.gguf", "f16")
    return directory / "model.gguf"


@pytest.fixture(scope="module")
def odd_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of 64 and 128: they fit blocks of 32, not of 256."""
    directory = tmp_path_factory.mktemp("odd")
    export_checkpoint(save_llama(directory / "checkpoint", tied=False), directory / "odd.gguf", "f16")
    return directory / "odd.gguf"


def collected(model: Path) -> Imatrix:
    out = model.with_name("imatrix.gguf")
    if not out.exists():
        collect_imatrix(model, CORPUS[:6], out, n_ctx=64, n_threads=1, dataset="a/folder/corpus.txt")
    return read_imatrix(out)


@pytest.mark.parametrize(
    "ftype", ["q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0", "q3_k_m", "q2_k", "q2_k_s", "iq4_xs", "iq4_nl", "iq3_xxs"]
)
def test_quantized_file_has_every_tensor_and_loads(f16: Path, tmp_path: Path, ftype: str) -> None:
    report = quantize_gguf(f16, tmp_path / "q.gguf", ftype, imatrix=collected(f16), n_threads=1)
    summary = check_gguf(tmp_path / "q.gguf")
    assert {(t.name, t.shape) for t in summary.tensors} == {(t.name, t.shape) for t in check_gguf(f16).tensors}
    assert report["size_bytes"] == summary.size_bytes < f16.stat().st_size
    assert report["fallback_tensors"] == {} and report["without_importance"] == [] and report["imatrix"]
    assert sum(report["tensor_types"].values()) == len(summary.tensors)
    with load_model(tmp_path / "q.gguf") as model:
        assert model.n_embd == 256


@pytest.mark.parametrize("ftype", ["q4_k_m", "iq4_xs", "q8_0"])
def test_rows_at_work_at_once_do_not_change_the_file(
    f16: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ftype: str
) -> None:
    """Memory is bounded by working on some rows of a tensor at a time: here on one."""
    quantize_gguf(f16, tmp_path / "many.gguf", ftype, imatrix=collected(f16), n_threads=1)
    monkeypatch.setattr("reclm_lite.convert.quantize._MAX_BUFFER_BYTES", 1)
    quantize_gguf(f16, tmp_path / "one.gguf", ftype, imatrix=collected(f16), n_threads=2)
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "many.gguf").read_bytes()


# Rows that do not fit


@pytest.mark.parametrize(
    ("ftype", "expected"),
    [
        ("q4_k_m", {"blk.0.attn_q.weight": "Q5_0", "output.weight": "Q8_0", "token_embd.weight": "Q5_0"}),
        ("q2_k", {"blk.1.ffn_down.weight": "Q4_0", "output.weight": "Q8_0"}),
        ("iq4_xs", {"blk.0.ffn_up.weight": "IQ4_NL", "output.weight": "Q8_0"}),
        ("q4_0", {"output.weight": "Q8_0"}),
        ("q8_0", {}),
    ],
)
def test_rows_that_do_not_fit_are_reported_with_the_type_they_got(
    odd_rows: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, ftype: str, expected: dict[str, str]
) -> None:
    with caplog.at_level(logging.WARNING, logger="reclm_lite.convert.quantize"):
        report = quantize_gguf(odd_rows, tmp_path / "q.gguf", ftype, n_threads=1)
    found = report["fallback_tensors"]
    assert expected.items() <= found.items() and (len(found) == len(expected) or "k" in ftype or "xs" in ftype)
    types = {t.name: t.type_name for t in check_gguf(tmp_path / "q.gguf").tensors}
    assert all(types[name] == got for name, got in found.items())
    assert len(caplog.records) == bool(expected)
    assert not expected or f"{len(found)} of 21 tensors have rows that {ftype} cannot hold" in caplog.text


def test_tables_that_llama_cpp_never_quantizes_are_no_fallback(tmp_path: Path) -> None:
    export_checkpoint(save_bert(tmp_path / "bert"), tmp_path / "bert.gguf", "f16")
    report = quantize_gguf(tmp_path / "bert.gguf", tmp_path / "q.gguf", "q8_0", n_threads=1)
    assert report["fallback_tensors"] == {}


def test_rows_that_fit_no_block_stay_f16(tmp_path: Path) -> None:
    sizes = {"hidden_size": 48, "intermediate_size": 96, "num_attention_heads": 4, "head_dim": 12}
    export_checkpoint(save_llama(tmp_path / "checkpoint", **sizes), tmp_path / "m.gguf", "f16")
    report = quantize_gguf(tmp_path / "m.gguf", tmp_path / "q.gguf", "q8_0", n_threads=1)
    assert report["fallback_tensors"]["blk.0.attn_q.weight"] == "F16"
    assert "blk.0.ffn_down.weight" not in report["fallback_tensors"]


# The importance matrix


def weighted_error(original: Path, quantized: Path, imatrix: Imatrix) -> float:
    """Squared error of the weights of the blocks, each column weighed by its importance, relative to the weights."""
    from gguf import GGUFReader
    from gguf.quants import dequantize

    tensors = [
        {t.name: dequantize(t.data, t.tensor_type) for t in GGUFReader(p).tensors} for p in (original, quantized)
    ]
    error = total = 0.0
    for name, mean in imatrix.means().items():
        error += float((mean * (tensors[0][name] - tensors[1][name]) ** 2).sum())
        total += float((mean * tensors[0][name] ** 2).sum())
    return error / total


@pytest.mark.parametrize("ftype", ["q4_0", "q4_k_m", "q3_k_m", "q2_k", "iq4_xs"])
def test_columns_that_matter_are_rounded_more_finely(f16: Path, tmp_path: Path, ftype: str) -> None:
    matrix, errors = collected(f16), []
    for imatrix in (None, matrix):
        report = quantize_gguf(f16, tmp_path / "q.gguf", ftype, imatrix=imatrix, n_threads=1)
        assert report["imatrix"] == (imatrix is not None)
        errors.append(weighted_error(f16, tmp_path / "q.gguf", matrix))
    assert errors[1] < 0.95 * errors[0]


def test_the_file_tells_which_matrix_it_was_made_with_by_name_only(f16: Path, tmp_path: Path) -> None:
    matrix = collected(f16)
    quantize_gguf(f16, tmp_path / "q.gguf", "q4_0", imatrix=matrix, n_threads=1)
    found = {k: v for k, v in check_gguf(tmp_path / "q.gguf").metadata.items() if k.startswith("quantize.")}
    assert found == {
        "quantize.imatrix.file": "imatrix.gguf",
        "quantize.imatrix.dataset": "corpus.txt",
        "quantize.imatrix.entries_count": 14,
        "quantize.imatrix.chunks_count": matrix.chunk_count,
    }
    quantize_gguf(f16, tmp_path / "plain.gguf", "q4_0", n_threads=1)
    assert not any(k.startswith("quantize.") for k in check_gguf(tmp_path / "plain.gguf").metadata)


@pytest.mark.parametrize("ftype", sorted(NEEDS_IMATRIX))
def test_very_small_types_are_refused_without_a_matrix_before_any_work(f16: Path, tmp_path: Path, ftype: str) -> None:
    matrix = collected(f16)
    fewer = Imatrix({k: v for k, v in matrix.entries.items() if k != "blk.1.ffn_up.weight"}, (), 1, 64)
    with pytest.raises(ModelError, match=f"importance matrix for {ftype}.*found none; pass --imatrix auto"):
        quantize_gguf(f16, tmp_path / "folder" / "q.gguf", ftype, n_threads=1)
    with pytest.raises(ModelError, match=r"for 1 \(blk.1.ffn_up.weight is one\)"):
        quantize_gguf(f16, tmp_path / "folder" / "q.gguf", ftype, imatrix=fewer, n_threads=1)
    assert list(tmp_path.iterdir()) == []


def test_the_types_that_need_a_matrix_are_those_that_llama_cpp_refuses_without(
    f16: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reclm_lite.convert.quantize.NEEDS_IMATRIX", frozenset())
    refused = set()
    for ftype in QUANTIZED_FTYPES:
        try:
            quantize_gguf(f16, tmp_path / "q.gguf", ftype, n_threads=1)
        except ModelError as error:
            assert "requires an imatrix" in str(error)
            refused.add(ftype)
    assert refused == NEEDS_IMATRIX


def test_weights_without_importance_are_counted_and_warned_of(
    f16: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    entries = {k: v for k, v in collected(f16).entries.items() if "ffn_up" not in k}
    with caplog.at_level(logging.WARNING, logger="reclm_lite.convert.quantize"):
        report = quantize_gguf(f16, tmp_path / "q.gguf", "q4_0", imatrix=Imatrix(entries, (), 1, 64), n_threads=1)
    assert report["without_importance"] == ["blk.0.ffn_up.weight", "blk.1.ffn_up.weight"]
    assert "no importance for 2 weights (blk.0.ffn_up.weight is one)" in caplog.text


def test_a_matrix_of_another_model_is_refused(f16: Path, odd_rows: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="256 columns for 'blk.0.attn_k.weight', found 64"):
        quantize_gguf(f16, tmp_path / "q.gguf", "q4_0", imatrix=collected(odd_rows), n_threads=1)
    assert list(tmp_path.iterdir()) == []


@needs_programs
@pytest.mark.parametrize("model", ["f16", "odd_rows"])
@pytest.mark.parametrize("with_imatrix", [False, True])
@pytest.mark.parametrize("ftype", ["q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0", "q3_k_m", "q2_k", "iq4_xs", "iq2_xs"])
def test_the_bytes_are_those_of_llama_quantize(
    model: str, ftype: str, with_imatrix: bool, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """The tensors it says it gave another type are ours, but for the output's, of which it says nothing."""
    if ftype in NEEDS_IMATRIX and not with_imatrix:
        pytest.skip("needs a matrix")
    source = request.getfixturevalue(model)
    matrix = collected(source)
    # llama-quantize notes the first dataset as it stands; here only its name is kept.
    matrix = Imatrix(matrix.entries, ("corpus.txt",), matrix.chunk_count, matrix.chunk_size)
    arguments = []
    if with_imatrix:
        from reclm_lite.convert.imatrix import write_imatrix

        write_imatrix(tmp_path / "imatrix.gguf", matrix)
        arguments = ["--imatrix", "imatrix.gguf"]
    report = quantize_gguf(source, tmp_path / "ours.gguf", ftype, imatrix=matrix if with_imatrix else None, n_threads=2)
    shutil.copy(source, tmp_path / "source.gguf")
    command = [str(LLAMA_BIN / "llama-quantize"), *arguments, "source.gguf", "theirs.gguf", ftype, "1"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr[-2000:]
    assert (tmp_path / "ours.gguf").read_bytes() == (tmp_path / "theirs.gguf").read_bytes()
    said = dict(re.findall(r"warning: (\S+) .*falling back to +(\S+)", run.stdout + run.stderr))
    found = {name: got.lower() for name, got in report["fallback_tensors"].items()}
    assert {k: v.lower() for k, v in said.items()}.items() <= found.items()
    assert set(found) - set(said) <= {"output.weight", "token_embd.weight"}


# What goes wrong


def test_numbers_of_types_are_those_of_llama_cpp() -> None:
    lib = llama_lib()
    assert FTYPES["f32"] == lib.LLAMA_FTYPE_ALL_F32
    for name in FTYPES.keys() - {"f32"}:
        assert FTYPES[name] == getattr(lib, f"LLAMA_FTYPE_MOSTLY_{name.upper()}"), name


def test_unknown_type_is_refused_with_the_known_ones(f16: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="q4_k_m"):
        quantize_gguf(f16, tmp_path / "q.gguf", "q4_k_xl")
    assert {"f32", "f16", "q8_0", "q6_k", "q4_k_m", "q4_0"} <= set(FTYPES)


def test_quantizing_twice_is_refused(f16: Path, tmp_path: Path) -> None:
    quantize_gguf(f16, tmp_path / "q8.gguf", "q8_0", n_threads=1)
    with pytest.raises(ModelError, match="quantize from the unquantized file"):
        quantize_gguf(tmp_path / "q8.gguf", tmp_path / "q4.gguf", "q4_0")


def test_failure_leaves_no_file_and_keeps_the_old_one(f16: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(f16.read_bytes()[:-100])
    out = tmp_path / "q.gguf"
    out.write_bytes(b"old")
    with pytest.raises(ModelError, match="not a whole GGUF file"):
        quantize_gguf(broken, out, "q8_0")
    assert out.read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["broken.gguf", "q.gguf"]


def test_unwritable_place_is_refused(f16: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ModelError, match="expected to write"):
        quantize_gguf(f16, tmp_path / "file" / "q.gguf", "q8_0")


@pytest.mark.skipif(sys.platform == "win32", reason="no limits on the size of files")
def test_a_full_disk_is_a_model_error_and_leaves_no_file(f16: Path, tmp_path: Path) -> None:
    """A limit on file size simulates a full disk: writing beyond it fails in the same way."""
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from reclm_lite.convert.quantize import quantize_gguf; from reclm_lite.errors import ModelError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n"
        "try: quantize_gguf(Path(sys.argv[1]), Path(sys.argv[2]), 'q8_0', n_threads=1)\n"
        "except ModelError as error: print(error)"
    )
    command = [sys.executable, "-c", code, str(f16), str(tmp_path / "q.gguf")]
    run = subprocess.run(command, capture_output=True, text=True)
    assert "could not convert" in run.stdout and "make room at" in run.stdout, run.stderr
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_is_raised_and_leaves_no_file(f16: Path, tmp_path: Path) -> None:
    """It comes while llama.cpp calls back to log, where an exception would be lost."""

    def interrupt() -> None:
        deadline = time.monotonic() + 30
        while not list(tmp_path.glob(".*.partial")) and time.monotonic() < deadline:
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGINT)

    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    thread = threading.Thread(target=interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            thread.start()
            quantize_gguf(f16, tmp_path / "q.gguf", "iq3_s", n_threads=1)
    finally:
        thread.join()
        signal.signal(signal.SIGINT, previous)
    assert list(tmp_path.iterdir()) == []
