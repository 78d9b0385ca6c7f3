"""Quantization keeps every tensor, reports what does not fit, and never leaves half a file."""

import logging
from pathlib import Path

import pytest
from checkpoints import save_llama

from reclm_lite.convert.export import export_checkpoint
from reclm_lite.convert.quantize import FTYPES, quantize_gguf
from reclm_lite.errors import ModelError
from reclm_lite.runtime import check_gguf, load_model

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def f16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("quantize")
    checkpoint = save_llama(directory / "checkpoint", hidden_size=256, intermediate_size=512)
    export_checkpoint(checkpoint, directory / "model.gguf", "f16")
    return directory / "model.gguf"


@pytest.mark.parametrize("ftype", ["q4_0", "q8_0", "q4_k_m", "q6_k"])
def test_quantized_file_has_every_tensor_and_loads(f16: Path, tmp_path: Path, ftype: str) -> None:
    report = quantize_gguf(f16, tmp_path / "q.gguf", ftype, n_threads=1)
    summary = check_gguf(tmp_path / "q.gguf")
    assert [t.name for t in summary.tensors].sort() == [t.name for t in check_gguf(f16).tensors].sort()
    assert report["size_bytes"] == summary.size_bytes < f16.stat().st_size
    assert report["fallback_tensors"] == {}
    with load_model(tmp_path / "q.gguf") as model:
        assert model.n_embd == 256


def test_rows_that_do_not_fit_a_k_quant_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoint = save_llama(tmp_path / "checkpoint", hidden_size=96, intermediate_size=128)
    with caplog.at_level(logging.WARNING, logger="reclm_lite.convert.quantize"):
        report = export_checkpoint(checkpoint, tmp_path / "model.gguf", "q4_k_m", n_threads=1)
    assert "blk.0.attn_q.weight" in report["fallback_tensors"]
    assert "rows that q4_k_m cannot hold" in caplog.text


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


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_unwritable_place_is_a_model_error(f16: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises((ModelError, OSError)):
        quantize_gguf(f16, tmp_path / "file" / "q.gguf", "q8_0")
