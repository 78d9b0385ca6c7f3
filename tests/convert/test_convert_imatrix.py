"""An importance matrix is the sum of squares of what each weight is multiplied by, in llama.cpp's own format."""

import ctypes
import os
import signal
import struct
import subprocess
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from checkpoints import CORPUS, save_bert, save_decoder, save_llama, train_bpe, train_gemma, train_qwen2
from llama_programs import LLAMA_BIN, needs

from reclm_lite.convert import ggml_tensor, imatrix
from reclm_lite.convert.export_checkpoint import export_checkpoint
from reclm_lite.convert.imatrix import (
    Imatrix,
    Importance,
    check_fits,
    collect,
    collect_imatrix,
    cut_texts,
    read_imatrix,
    write_imatrix,
)
from reclm_lite.errors import ModelError
from reclm_lite.runtime import check_gguf, load_model

pytest.importorskip("transformers")

TEXTS = [f"{a} {b}" for a in CORPUS[:6] for b in CORPUS[:2]]
needs_programs = needs("llama-imatrix")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    directory = tmp_path_factory.mktemp("imatrix")
    llama = save_llama(directory / "llama", hidden_size=256, intermediate_size=512)
    bert = save_bert(directory / "bert")
    export_checkpoint(llama, directory / "llama.gguf", "f32")
    export_checkpoint(bert, directory / "bert.gguf", "f32")
    return SimpleNamespace(
        llama=llama, bert=bert, llama_gguf=directory / "llama.gguf", bert_gguf=directory / "bert.gguf"
    )


@pytest.fixture(scope="module")
def collected(models: SimpleNamespace) -> Path:
    out = models.llama.parent / "collected.gguf"
    collect_imatrix(models.llama_gguf, TEXTS, out, n_ctx=64, n_threads=1, dataset="corpus.txt")
    return out


def by_hand(n_matrices: int = 1) -> Imatrix:
    sums = np.arange(1, 1 + 4 * n_matrices, dtype=np.float32).reshape(n_matrices, 4)
    entry = Importance(sums, np.arange(2, 2 + n_matrices))
    return Imatrix({"blk.0.ffn_up.weight": entry, "blk.0.attn_q.weight": entry}, ("a.txt", "b.txt"), 3, 64)


# What is collected


def torch_sums(model, sequences: list[list[int]], names: dict[str, str]) -> dict[str, np.ndarray]:
    """{GGUF name: sums of squares (n_columns,)} of the inputs of the Linear modules in `names`, in float64."""
    import torch

    sums: dict[str, np.ndarray] = {}
    for name, module in model.named_modules():
        if name in names:

            def hook(module, inputs, target=names[name]):
                rows = inputs[0].reshape(-1, inputs[0].shape[-1]).double().numpy()
                sums[target] = sums.get(target, 0.0) + (rows**2).sum(axis=0)

            module.register_forward_pre_hook(hook)
    with torch.no_grad():
        for tokens in sequences:
            model(torch.tensor([tokens]))
    return sums


LLAMA_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
BERT_NAMES = {
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
}


# Worst column measured: 9e-7, and 1e-3 where llama.cpp's GELU, a table of float16 values, precedes.
FAMILIES = {
    "Llama": (train_bpe, {"rtol": 1e-5}),
    "Mistral": (train_bpe, {"rtol": 1e-5}),
    "Qwen2": (train_qwen2, {"rtol": 1e-5}),
    "Qwen3": (train_qwen2, {"rtol": 1e-5}),
    "Gemma2": (train_gemma, {"rtol": 5e-3}),
    "Gemma3Text": (train_gemma, {"rtol": 5e-3}),
    "Bert": (None, {"rtol": 5e-3}),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_sums_are_those_of_the_model_in_torch(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every token of every block is counted. Keys and values are kept in float32 here, to leave float32's bound."""
    import torch
    from transformers import AutoModel

    train, tolerance = FAMILIES[family]
    if train is None:
        checkpoint, layers, parts = save_bert(tmp_path / "checkpoint"), "encoder.layer", BERT_NAMES
    else:
        checkpoint, layers, parts = save_decoder(tmp_path / "checkpoint", family, train=train), "layers", LLAMA_NAMES
    export_checkpoint(checkpoint, tmp_path / "m.gguf", "f32")
    with load_model(tmp_path / "m.gguf", use_extra_bufts=False) as model:
        sequences = cut_texts(model, TEXTS, 48)
        exact = {"type_k": model.lib.GGML_TYPE_F32, "type_v": model.lib.GGML_TYPE_F32, "flash_attn_type": 0}
        monkeypatch.setattr(model, "context", partial(model.context, **exact))
        found = collect(model, sequences, n_ctx=48, n_threads=1)
    reference = AutoModel.from_pretrained(checkpoint, dtype=torch.float32, attn_implementation="eager").eval()
    n_blocks = reference.config.num_hidden_layers
    names = {f"{layers}.{i}.{k}": f"blk.{i}.{v}.weight" for i in range(n_blocks) for k, v in parts.items()}
    expected = torch_sums(reference, sequences, names)
    n_tokens = sum(map(len, sequences))
    assert found.keys() == expected.keys() == set(names.values())
    for name, entry in found.items():
        assert entry.counts.tolist() == [n_tokens], name
        # A column that GELU keeps near zero is judged beside the mean column.
        near_zero = 1e-4 * expected[name].mean() if family == "Bert" else 0.0
        np.testing.assert_allclose(entry.sums[0], expected[name], atol=near_zero, err_msg=name, **tolerance)


def test_long_texts_are_cut_and_every_piece_has_the_special_tokens(models: SimpleNamespace) -> None:
    text = " ".join(TEXTS)
    with load_model(models.bert_gguf) as model:
        whole = model.tokenize(text, add_special=True)
        pieces = cut_texts(model, [text, "", "x"], 20)
    assert all(piece[0] == whole[0] and piece[-1] == whole[-1] and len(piece) <= 20 for piece in pieces)
    assert [token for piece in pieces[:-1] for token in piece[1:-1]] == whole[1:-1]
    with load_model(models.llama_gguf) as model:
        begin = model.tokenize(text, add_special=True)[0]
        assert all(piece[0] == begin for piece in cut_texts(model, [text], 20))


def test_summary_counts_texts_sequences_tokens_and_chunks(models: SimpleNamespace, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    summary = collect_imatrix(
        models.llama_gguf,
        [TEXTS[0], "", TEXTS[1]],
        tmp_path / "i.gguf",
        n_ctx=16,
        n_threads=1,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert (summary.n_texts, summary.n_dropped, summary.n_entries) == (3, 1, 14)
    assert summary.n_sequences > 2 and seen == [(i + 1, summary.n_sequences) for i in range(summary.n_sequences)]
    matrix = read_imatrix(tmp_path / "i.gguf")
    assert {int(e.counts[0]) for e in matrix.entries.values()} == {summary.n_tokens}
    assert matrix.chunk_count == summary.chunk_count == summary.n_tokens // 16 and matrix.chunk_size == 16


def test_collecting_twice_gives_the_same_bytes(models: SimpleNamespace, collected: Path, tmp_path: Path) -> None:
    collect_imatrix(models.llama_gguf, TEXTS, tmp_path / "i.gguf", n_ctx=64, n_threads=1, dataset="corpus.txt")
    assert (tmp_path / "i.gguf").read_bytes() == collected.read_bytes()


def test_a_large_vocabulary_makes_smaller_batches_and_the_same_sums(
    models: SimpleNamespace, collected: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    monkeypatch.setattr(imatrix, "_LOGITS_BYTES", 1)
    start = imatrix._Runner.__init__
    monkeypatch.setattr(
        imatrix._Runner, "__init__", lambda self, *args: (sizes.append(args[-1]), start(self, *args))[1]
    )
    collect_imatrix(models.llama_gguf, TEXTS, tmp_path / "i.gguf", n_ctx=64, n_threads=1)
    assert sizes == [32]
    expected = read_imatrix(collected).entries
    for name, entry in read_imatrix(tmp_path / "i.gguf").entries.items():
        assert entry.counts == expected[name].counts
        np.testing.assert_allclose(entry.sums, expected[name].sums, rtol=2e-3, err_msg=name)


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, ModelError("odd tensor")])
def test_what_goes_wrong_within_llama_cpp_is_raised_and_leaves_no_file(
    models: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    calls = []

    def fail(self, address: int, ask: bool) -> bool:
        calls.append(ask)
        if len(calls) == 5:
            raise error
        return True

    monkeypatch.setattr(imatrix._Collector, "_observe", fail)
    with pytest.raises(error if isinstance(error, type) else ModelError):
        collect_imatrix(models.llama_gguf, TEXTS, tmp_path / "i.gguf", n_ctx=64, n_threads=1)
    assert len(calls) == 5 and list(tmp_path.iterdir()) == []


def test_ctrl_c_ends_the_computation_at_once_and_leaves_no_file(
    models: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    observe = imatrix._Collector._observe

    def count(self, address: int, ask: bool) -> bool:
        calls.append(ask)
        if len(calls) == 50:
            os.kill(os.getpid(), signal.SIGINT)  # handled in Python at once, within llama.cpp's call
        return observe(self, address, ask)

    monkeypatch.setattr(imatrix._Collector, "_observe", count)
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            collect_imatrix(models.llama_gguf, TEXTS, tmp_path / "i.gguf", n_ctx=64, n_threads=1)
    finally:
        signal.signal(signal.SIGINT, previous)
    assert len(calls) == 50 and list(tmp_path.iterdir()) == []


def test_texts_and_models_of_no_use_are_refused(models: SimpleNamespace, tmp_path: Path) -> None:
    from reclm_lite.convert.quantize import quantize_gguf

    out = tmp_path / "i.gguf"
    quantize_gguf(models.llama_gguf, tmp_path / "q8.gguf", "q8_0", n_threads=1)
    with pytest.raises(ModelError, match="found none"):
        collect_imatrix(models.llama_gguf, [], out)
    with pytest.raises(ModelError, match="at least one token"):
        collect_imatrix(models.llama_gguf, ["", ""], out)
    with pytest.raises(ModelError, match="at least 16 tokens, found 4"):
        collect_imatrix(models.llama_gguf, TEXTS, out, n_ctx=4)
    with pytest.raises(ModelError, match="unquantized, found \\['Q8_0'\\]"):
        collect_imatrix(tmp_path / "q8.gguf", TEXTS, out)
    assert not out.exists()


def test_another_layout_of_ggmls_tensors_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    fields = list(ggml_tensor.GgmlTensor._fields_)
    ggml_tensor.load_ggml.cache_clear()
    for at in range(1, len(fields) - 2):

        class Shifted(ctypes.Structure):
            _fields_ = (*fields[:at], ("added", ctypes.c_int64), *fields[at:])

        monkeypatch.setattr(ggml_tensor, "GgmlTensor", Shifted)
        with pytest.raises(ModelError, match="laid out as in llama-cpp-python"):
            ggml_tensor.load_ggml()
    monkeypatch.undo()
    assert ggml_tensor.load_ggml().mul_mat_op > 0


def test_a_llama_cpp_without_ggmls_functions_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    ggml_tensor.load_ggml.cache_clear()
    monkeypatch.setattr(ggml_tensor, "llama_lib", lambda: SimpleNamespace(_lib=SimpleNamespace()))
    with pytest.raises(ModelError, match="ggml functions can be called.*--imatrix none"):
        ggml_tensor.load_ggml()


# The file


@pytest.mark.parametrize("n_matrices", [1, 3])
def test_a_written_matrix_is_read_as_it_was(tmp_path: Path, n_matrices: int) -> None:
    matrix = by_hand(n_matrices)
    write_imatrix(tmp_path / "imatrix.gguf", matrix)
    found = read_imatrix(tmp_path / "imatrix.gguf")
    assert (found.datasets, found.chunk_count, found.chunk_size) == (("a.txt", "b.txt"), 3, 64)
    assert found.name == "imatrix.gguf" and found.entries.keys() == matrix.entries.keys()
    for name, entry in found.entries.items():
        np.testing.assert_array_equal(entry.sums, matrix.entries[name].sums)
        np.testing.assert_array_equal(entry.counts, matrix.entries[name].counts)


def test_mean_is_one_where_no_token_was_seen() -> None:
    entry = Importance(np.array([[2, 4], [8, 16]], dtype=np.float32), np.array([2, 0]))
    assert entry.mean().tolist() == [1, 2, 1, 1] and entry.mean().dtype == np.float32


def legacy_file(path: Path, n_calls: int = 5, *, tail: bool = True, values: tuple[float, ...] = (5, 10, 2.5)) -> Path:
    name = b"blk.0.attn_q.weight"
    raw = struct.pack("<ii", 1, len(name)) + name + struct.pack("<ii", n_calls, len(values))
    raw += struct.pack(f"<{len(values)}f", *values)
    path.write_bytes(raw + (struct.pack("<ii", n_calls, 5) + b"c.txt" if tail else b""))
    return path


def test_a_legacy_file_is_read(tmp_path: Path) -> None:
    matrix = read_imatrix(legacy_file(tmp_path / "i.dat"))
    assert matrix.means()["blk.0.attn_q.weight"].tolist() == [1, 2, 0.5]
    assert (matrix.datasets, matrix.chunk_count) == (("c.txt",), 5)
    bare = read_imatrix(legacy_file(tmp_path / "bare.dat", tail=False))
    assert (bare.datasets, bare.chunk_count) == ((), 0)
    write_imatrix(tmp_path / "i.gguf", matrix)
    assert read_imatrix(tmp_path / "i.gguf").means()["blk.0.attn_q.weight"].tolist() == [1, 2, 0.5]


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    write_imatrix(tmp_path / "i.gguf", by_hand())
    legacy_file(tmp_path / "i.dat")
    whole_legacy_ends = len(legacy_file(tmp_path / "bare.dat", tail=False).read_bytes())
    for path in (tmp_path / "i.gguf", tmp_path / "i.dat"):
        whole = path.read_bytes()
        padding = 28 if path.suffix == ".gguf" else 0  # zeros after the last tensor's four bytes
        for n_bytes in range(len(whole) - padding):
            if path.suffix == ".dat" and n_bytes == whole_legacy_ends:
                continue  # the tail is optional
            (tmp_path / "cut").write_bytes(whole[:n_bytes])
            with pytest.raises(ModelError, match="expected"):
                read_imatrix(tmp_path / "cut")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sums": np.array([[1, np.nan, 1, 1]], dtype=np.float32)}, "finite sums of squares for 'blk.0.attn_q.weight'"),
        ({"sums": np.array([[1, np.inf, 1, 1]], dtype=np.float32)}, "finite sums of squares"),
        ({"sums": np.array([[1, -1, 1, 1]], dtype=np.float32)}, "finite sums of squares"),
        ({"counts": np.array([-2])}, "numbers of tokens for 'blk.0.attn_q.weight'"),
        ({"counts": np.array([np.nan])}, "numbers of tokens"),
    ],
)
def test_numbers_that_are_no_importance_are_refused(tmp_path: Path, change: dict, message: str) -> None:
    entry = SimpleNamespace(**({"sums": np.ones((1, 4), np.float32), "counts": np.array([1])} | change))
    write_imatrix(tmp_path / "i.gguf", Imatrix({"blk.0.attn_q.weight": entry}, ("a",), 1, 64))
    with pytest.raises(ModelError, match=message):
        read_imatrix(tmp_path / "i.gguf")


def test_files_that_are_no_importance_matrix_are_refused(models: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="GGUF file of type 'model'"):
        read_imatrix(models.llama_gguf)
    with pytest.raises(ModelError, match="no such file"):
        read_imatrix(tmp_path / "none.gguf")
    for raw in (b"", b"PK\3\4" + bytes(200), b"\1\0\0\0" + b"\xff" * 100, b"no matrix, but text\n" * 9):
        (tmp_path / "odd").write_bytes(raw)
        with pytest.raises(ModelError, match="expected"):
            read_imatrix(tmp_path / "odd")
    write_imatrix(tmp_path / "i.gguf", by_hand())
    whole = (tmp_path / "i.gguf").read_bytes()
    (tmp_path / "odd").write_bytes(whole.replace(b"attn_q.weight.counts", b"attn_x.weight.counts"))
    with pytest.raises(ModelError, match=r"'blk.0.attn_q.weight.counts' of type F32.*found none"):
        read_imatrix(tmp_path / "odd")


def test_a_matrix_of_another_model_is_refused_and_names_the_tensor(models: SimpleNamespace, collected: Path) -> None:
    matrix, model = read_imatrix(collected), check_gguf(models.llama_gguf)
    assert check_fits(matrix, model) == []
    with pytest.raises(ModelError, match=r"another model \(collected.gguf\): it has 'blk.0.ffn_gate.weight'"):
        check_fits(matrix, check_gguf(models.bert_gguf))
    with pytest.raises(ModelError, match="256 columns for 'blk.0.attn_q.weight', found 4"):
        check_fits(Imatrix({"blk.0.attn_q.weight": by_hand().entries["blk.0.attn_q.weight"]}, (), 1, 64), model)
    fewer = Imatrix({k: v for k, v in matrix.entries.items() if "ffn_up" not in k}, (), 1, 64)
    assert check_fits(fewer, model) == ["blk.0.ffn_up.weight", "blk.1.ffn_up.weight"]


# Beside llama.cpp's own program


def run_llama_imatrix(directory: Path, *arguments: str) -> None:
    command = [str(LLAMA_BIN / "llama-imatrix"), *arguments]
    run = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr[-2000:]


@needs_programs
@pytest.mark.parametrize("ftype", ["f32", "f16"])
def test_sums_are_those_of_llama_imatrix(models: SimpleNamespace, tmp_path: Path, ftype: str) -> None:
    """The same chunks of tokens; the bound is float32's, in which llama.cpp adds up."""
    export_checkpoint(models.llama, tmp_path / "m.gguf", ftype)
    text, n_ctx = "\n".join(TEXTS * 3), 64
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    sizes = ["-c", str(n_ctx), "-b", str(n_ctx), "-t", "1", "--no-ppl"]
    run_llama_imatrix(tmp_path, "-m", "m.gguf", "-f", "text.txt", "-o", "theirs.gguf", *sizes)
    theirs = read_imatrix(tmp_path / "theirs.gguf")
    with load_model(tmp_path / "m.gguf", use_extra_bufts=False) as model:
        tokens = model.tokenize(text, add_special=True)
        begin = model.lib.llama_vocab_bos(model.vocab)
        chunks = [[begin, *tokens[i * n_ctx + 1 : (i + 1) * n_ctx]] for i in range(len(tokens) // n_ctx)]
        ours = collect(model, chunks, n_ctx=n_ctx, n_threads=1)
    assert theirs.chunk_count == len(chunks) and theirs.chunk_size == n_ctx
    assert ours.keys() == theirs.entries.keys()
    for name, entry in theirs.entries.items():
        np.testing.assert_array_equal(ours[name].counts, entry.counts)
        np.testing.assert_allclose(ours[name].sums, entry.sums, rtol=1e-4, err_msg=name)
    write_imatrix(tmp_path / "again.gguf", theirs)
    assert (tmp_path / "again.gguf").read_bytes() == (tmp_path / "theirs.gguf").read_bytes()


@needs_programs
def test_llama_imatrix_reads_our_file_and_writes_the_same_bytes(collected: Path, tmp_path: Path) -> None:
    run_llama_imatrix(tmp_path, "-m", "unused", "--in-file", str(collected), "-o", "copy.gguf", "-c", "64")
    assert (tmp_path / "copy.gguf").read_bytes() == collected.read_bytes()
    run_llama_imatrix(tmp_path, "-m", "unused", "--in-file", str(collected), "--show-statistics")


@needs_programs
def test_llama_imatrix_writes_our_matrix_in_the_legacy_form_that_we_read(collected: Path, tmp_path: Path) -> None:
    legacy_form = ["-o", "legacy.dat", "--output-format", "dat", "-c", "64"]
    run_llama_imatrix(tmp_path, "-m", "unused", "--in-file", str(collected), *legacy_form)
    legacy, ours = read_imatrix(tmp_path / "legacy.dat"), read_imatrix(collected)
    assert legacy.datasets == ("corpus.txt",) and legacy.entries.keys() == ours.entries.keys()
    for name, mean in ours.means().items():
        np.testing.assert_allclose(legacy.means()[name], mean, rtol=1e-6)
