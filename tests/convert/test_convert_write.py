"""An unquantized GGUF holds every value of its checkpoint, passes through memory by blocks, and is whole or not
there."""

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader
from safetensors.numpy import load_file, save_file

from reclm_lite import runtime
from reclm_lite.bench.random_llama import Shape, write_adapter, write_checkpoint
from reclm_lite.convert import write
from reclm_lite.convert.export_checkpoint import export_checkpoint
from reclm_lite.convert.merge import open_source
from reclm_lite.convert.write import TooLargeForType, write_gguf
from reclm_lite.errors import ModelError
from reclm_lite.runtime import check_gguf

TINY = Shape(hidden=64, feed_forward=96, n_layers=2, n_heads=4, n_kv_heads=2, n_vocab=300, rank=2)
UP = "model.layers.1.mlp.up_proj.weight"


def llama(directory: Path, edit: Callable[[dict], object] = lambda tensors: None, *, dtype: str | None = None) -> Path:
    """A random float16 Llama, its tensors cast to `dtype` and then changed by `edit`."""
    write_checkpoint(directory, TINY)
    tensors = load_file(directory / "model.safetensors")
    if dtype:
        tensors = {name: tensor.astype(dtype) for name, tensor in tensors.items()}
    edit(tensors)
    save_file(tensors, directory / "model.safetensors")
    return directory


def values(path: Path) -> dict[str, np.ndarray]:
    return {tensor.name: np.array(tensor.data) for tensor in GGUFReader(path).tensors}


@pytest.mark.parametrize("ftype", ["f16", "bf16", "f32"])
def test_the_size_of_blocks_does_not_change_a_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ftype: str) -> None:
    source = open_source(llama(tmp_path / "base"))
    write_gguf(source, tmp_path / "large.gguf", ftype)
    monkeypatch.setattr(write, "_BLOCK_BYTES", 300)  # two rows at a time, and an odd number of them in the last block
    write_gguf(source, tmp_path / "small.gguf", ftype)
    assert (tmp_path / "large.gguf").read_bytes() == (tmp_path / "small.gguf").read_bytes()


def test_float16_values_are_copied_bit_for_bit_and_vectors_widened(tmp_path: Path) -> None:
    base = llama(tmp_path / "base")
    write_gguf(open_source(base), tmp_path / "model.gguf", "f16")
    stored, written = load_file(base / "model.safetensors"), values(tmp_path / "model.gguf")
    np.testing.assert_array_equal(written["blk.1.ffn_up.weight"], stored[UP])
    assert written["blk.1.ffn_up.weight"].dtype == np.float16
    np.testing.assert_array_equal(written["output_norm.weight"], stored["model.norm.weight"].astype(np.float32))
    assert written["output_norm.weight"].dtype == np.float32


def test_bfloat16_rounds_to_the_nearest_and_ties_to_even(tmp_path: Path) -> None:
    ulp = 2.0**-7  # of bfloat16 at 1
    row = np.array(
        [1, 1 + 0.4 * ulp, 1 + 0.5 * ulp, 1 + 0.6 * ulp, 1 + 1.5 * ulp, -1 - 0.5 * ulp, 1e-40, 0.0], np.float32
    )
    expected = np.array([1, 1, 1, 1 + ulp, 1 + 2 * ulp, -1, 1e-40, 0.0], np.float32)
    base = llama(tmp_path / "base", lambda t: t.update({UP: np.tile(row, (96, 8))}), dtype="float32")
    write_gguf(open_source(base), tmp_path / "model.gguf", "bf16")
    bits = values(tmp_path / "model.gguf")["blk.1.ffn_up.weight"].view(np.uint16).astype(np.uint32)
    np.testing.assert_allclose((bits << 16).view(np.float32)[3, :8], expected, rtol=1e-7, atol=5e-41)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("dtype", "ftype"), [("float16", "f16"), ("float32", "f32"), ("float32", "f16"), ("float32", "bf16")]
)
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path: Path, value: float, dtype: str, ftype: str) -> None:
    base = llama(tmp_path / "base", lambda t: t[UP].__setitem__((95, 63), value), dtype=dtype)
    with pytest.raises(ModelError, match=rf"NaN or infinity in tensor '{UP}'"):
        write_gguf(open_source(base), tmp_path / "model.gguf", ftype)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base"]


@pytest.mark.parametrize(
    ("ftype", "value", "advice"),
    [("f16", 65520, "bf16 or f32"), ("f16", -1e6, "bf16 or f32"), ("bf16", 3.4e38, "export as f32")],
)
def test_a_weight_beyond_the_type_is_refused_by_name(tmp_path: Path, ftype: str, value: float, advice: str) -> None:
    base = llama(tmp_path / "base", lambda t: t[UP].__setitem__((0, 0), value), dtype="float32")
    with pytest.raises(TooLargeForType, match=f"{UP}.*{advice}"):
        write_gguf(open_source(base), tmp_path / "model.gguf", ftype)
    write_gguf(open_source(base), tmp_path / "model.gguf", "f32")
    assert values(tmp_path / "model.gguf")["blk.1.ffn_up.weight"][0, 0] == np.float32(value)


@pytest.mark.parametrize("library", [True, False])
def test_float16_has_the_bits_of_numpys_cast(library: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ties, subnormal numbers and overflow included, with ggml's conversion and without."""
    assert runtime._row_to_half() is not None  # in the libraries of today
    if not library:
        monkeypatch.setattr(runtime, "_row_to_half", lambda: None)
    fractions = np.array([0, 1, 0xFFF, 0x1000, 0x1001, 0x1FFF, 0x2FFF, 0x3000, 0x3001, 0x7FFFFF], np.uint32)
    bits = (np.arange(512, dtype=np.uint32)[:, None] << 23) | np.concatenate(
        [fractions, np.arange(0, 1 << 23, 9973, dtype=np.uint32)]
    )
    values = bits.view(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        expected = values.astype(np.float16)
    found = runtime.single_to_half(values)
    assert found.shape == values.shape and (np.isnan(found) == np.isnan(expected)).all()
    there = ~np.isnan(expected)
    np.testing.assert_array_equal(found.view(np.uint16)[there], expected.view(np.uint16)[there])
    np.testing.assert_array_equal(runtime.single_to_half(values[::3, ::2]), found[::3, ::2])


def test_the_largest_float16_is_written(tmp_path: Path) -> None:
    base = llama(tmp_path / "base", lambda t: t[UP].__setitem__((0, 0), 65504), dtype="float32")
    write_gguf(open_source(base), tmp_path / "model.gguf", "f16")
    assert values(tmp_path / "model.gguf")["blk.1.ffn_up.weight"][0, 0] == 65504


def test_bytes_that_change_on_the_disk_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = write._write_tensors

    def then_a_bit_flips(path: Path, *arguments: object) -> dict[str, int]:
        checksums = written(path, *arguments)
        last = check_gguf(path).tensors[-1]
        with path.open("rb+") as stream:
            stream.seek(last.offset_bytes + last.size_bytes - 1)
            byte = stream.read(1)[0]
            stream.seek(-1, 1)
            stream.write(bytes([byte ^ 1]))
        return checksums

    monkeypatch.setattr(write, "_write_tensors", then_a_bit_flips)
    with pytest.raises(ModelError, match="found other bytes in"):
        write_gguf(open_source(llama(tmp_path / "base")), tmp_path / "model.gguf", "f16")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base"]


def test_memory_is_that_of_blocks_not_of_matrices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = write_checkpoint(
        tmp_path / "base", Shape(64, 96, 1, 4, 2, n_vocab=200_000, rank=2)
    )  # an embedding of 25.6 MB
    adapter = write_adapter(tmp_path / "adapter", Shape(64, 96, 1, 4, 2, 200_000, 2), base)
    monkeypatch.setattr(write, "_BLOCK_BYTES", 1 << 20)
    monkeypatch.setattr(
        write, "_write_header", lambda source, family, path, *_: path.write_bytes(b"")
    )  # whose vocabulary is a list
    monkeypatch.setattr(write, "_read_again", lambda path, checksums: path.stat().st_size)
    source = open_source(base, adapter)
    tracemalloc.start()
    try:
        write_gguf(source, tmp_path / "model.gguf", "f32")
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (tmp_path / "model.gguf").stat().st_size > 51e6
    assert peak_bytes < 12 << 20  # being computed, waiting, being written, in float32


def test_progress_reaches_its_total_and_the_report_counts(tmp_path: Path) -> None:
    seen = []
    report = write_gguf(
        open_source(llama(tmp_path / "base")), tmp_path / "m.gguf", "f16", progress=lambda *at: seen.append(at)
    )
    assert seen[-1][0] == seen[-1][1] == sum(t.size_bytes for t in check_gguf(tmp_path / "m.gguf").tensors)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert report["n_params"] == TINY.n_params and report["size_bytes"] == (tmp_path / "m.gguf").stat().st_size


def test_quantized_types_are_not_written_here(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="expected one of f32, f16, bf16"):
        write_gguf(open_source(llama(tmp_path / "base")), tmp_path / "m.gguf", "q8_0")


def test_merged_weights_too_large_for_float16_are_quantized_from_float32(tmp_path: Path, caplog) -> None:
    """bfloat16 holds 1e5, and a merged model is kept in float16 only where it fits."""
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file as save_torch

    base = llama(tmp_path / "base", dtype="float32")
    tensors = load_file(base / "model.safetensors")
    tensors[UP][0, 0] = 1e5
    save_torch(
        {name: torch.from_numpy(t).to(torch.bfloat16) for name, t in tensors.items()}, base / "model.safetensors"
    )
    adapter = write_adapter(tmp_path / "adapter", TINY, base)
    report = export_checkpoint(base, tmp_path / "model.gguf", "q8_0", adapter=adapter, n_threads=1)
    assert report["ftype"] == "q8_0" and "kept in float32" in caplog.text
    with pytest.raises(TooLargeForType, match="65504"):
        export_checkpoint(base, tmp_path / "f16.gguf", "f16", adapter=adapter)
    assert not (tmp_path / "f16.gguf").exists()
