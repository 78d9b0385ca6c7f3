"""A checkpoint is read as it is stored, block by block; one that is not whole or lies is refused, naming the tensor."""

import json
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapters import write_checkpoint
from checkpoints import save_bert
from hypothesis import given, settings
from hypothesis import strategies as st

from reclm_lite.convert.checkpoint import Checkpoint
from reclm_lite.convert.merge import open_source
from reclm_lite.convert.stored import half_to_single, read_header
from reclm_lite.errors import ModelError

W = np.arange(12, dtype=np.float32).reshape(4, 3)


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "model", {"a.weight": W, "b.weight": W.T.copy(), "norm": W[0].copy()})


def write_header(path: Path, header: Any, n_data_bytes: int = 96) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(n_data_bytes))
    return path


def shard(directory: Path) -> Path:
    """Two shards and their index in place of the one file."""
    from safetensors.numpy import load_file, save_file

    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    weight_map = {}
    for i, name in enumerate(sorted(tensors)):
        file = f"model-{i % 2 + 1:05}-of-00002.safetensors"
        weight_map[name] = file
    for file in set(weight_map.values()):
        save_file({name: tensors[name] for name in tensors if weight_map[name] == file}, directory / file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return directory


# --- reading ---


def test_a_tensor_is_its_blocks_put_together(whole: Path) -> None:
    source = open_source(whole)
    assert [block.shape for block in source.blocks("a.weight", 24)] == [(2, 3), (2, 3)]
    assert [block.shape for block in source.blocks("a.weight", 1)] == [(1, 3)] * 4
    assert [block.shape for block in source.blocks("norm", 8)] == [(2,), (1,)]
    for name, want in {"a.weight": W, "b.weight": W.T, "norm": W[0]}.items():
        assert (np.concatenate(list(source.blocks(name, 8))) == want).all()
        assert (source.tensor(name) == want).all()


def test_blocks_are_memory_of_their_own(whole: Path) -> None:
    first, second = open_source(whole).blocks("a.weight", 24)
    first[:] = -1
    assert (second == W[2:]).all()
    assert (open_source(whole).tensor("a.weight") == W).all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64", "float32"])
def test_every_stored_type_is_read_exactly(tmp_path: Path, dtype: str) -> None:
    import torch
    from safetensors.torch import save_file

    write_checkpoint(tmp_path, {"w": W})
    values = torch.tensor([[1.5, -0.0, 3e-3], [-2.0, 6e-8, 1e4]]).to(getattr(torch, dtype))
    save_file({"w": values, "scalar": values[1, 0].clone()}, tmp_path / "model.safetensors")
    source = open_source(tmp_path)
    assert source.tensor("w").dtype == (np.float16 if dtype == "float16" else np.float32)
    assert source.tensor("w").astype(np.float32).tobytes() == values.float().numpy().tobytes()
    assert source.tensor("scalar").shape == () and source.tensor("scalar") == -2
    assert not source.merged and source.tokenizer_directory == tmp_path == source.directory


def test_a_float64_beyond_float32_becomes_infinite(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, {"w": np.array([[1e300, 1.0]])})
    assert (open_source(tmp_path).tensor("w") == [[np.inf, 1]]).all()


def test_every_half_is_widened_exactly() -> None:
    halves = np.arange(65536, dtype=np.uint16).view(np.float16)
    for chosen in (halves, halves[np.isfinite(halves)].copy()):
        out = np.empty(chosen.shape, np.float32)
        half_to_single(chosen, out)
        assert out.tobytes() == chosen.astype(np.float32).tobytes()


def test_shards_are_one_checkpoint(whole: Path) -> None:
    shard(whole)
    source = open_source(whole)
    assert set(source.tensors) == {"a.weight", "b.weight", "norm"}
    assert (source.tensor("b.weight") == W.T).all()
    assert [file.name for file in source.files()] == [
        "config.json",
        "model.safetensors.index.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]


def test_the_commonest_type_of_matrices_is_told(tmp_path: Path) -> None:
    half = W.astype(np.float16)
    write_checkpoint(tmp_path, {"a": half, "b": half, "c": W, "norm": W[0].copy(), "norm2": W[0].copy()})
    assert open_source(tmp_path).dtype == "F16"


def test_other_weights_in_the_directory_are_left_alone(whole: Path) -> None:
    shutil.copy(whole / "model.safetensors", whole / "consolidated.safetensors")
    shutil.copy(whole / "model.safetensors", whole / "adapter_model.safetensors")
    assert len(open_source(whole).tensors) == 3
    (whole / "model.safetensors").unlink()
    (whole / "training_args.bin").write_bytes(b"")
    with pytest.raises(ModelError, match="found no weights"):
        open_source(whole)


_PEAK = """
import resource, sys
from pathlib import Path
import numpy as np
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
from reclm_lite.convert.merge import open_source
source = open_source(*map(Path, sys.argv[1:]))
total = sum(block.nbytes for name in source.tensors for block in source.blocks(name, 8 << 20))
print(total, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss counts kilobytes on Linux")
@pytest.mark.parametrize("with_adapter", [False, True])
def test_memory_does_not_grow_with_the_tensor(tmp_path: Path, with_adapter: bool) -> None:
    from adapters import write_adapter

    rows, columns = 60_000, 512  # 123 MB as float32
    rng = np.random.default_rng(0)
    big = {"embed_tokens.weight": rng.standard_normal((rows, columns)).astype(np.float16)}
    arguments = [write_checkpoint(tmp_path / "base", big, tie_word_embeddings=False)]
    if with_adapter:
        a, b = np.ones((2, rows), np.float32), np.ones((columns, 2), np.float32)
        factors = {"embed_tokens.lora_embedding_A": a, "embed_tokens.lora_embedding_B": b}
        arguments.append(write_adapter(tmp_path / "adapter", factors))
    run = subprocess.run(
        [sys.executable, "-c", _PEAK, *map(str, arguments)], check=True, capture_output=True, text=True
    )
    n_bytes, peak_bytes = map(int, run.stdout.split())
    assert n_bytes == rows * columns * (4 if with_adapter else 2)
    assert peak_bytes < 45 << 20


# --- what is refused ---

ENTRY = {"dtype": "F32", "shape": [4, 3], "data_offsets": [0, 48]}
BAD_HEADERS: dict[str, tuple[Any, str]] = {
    "not JSON": (b"{", "a JSON header"),
    "not UTF-8": (b'{"\xff": 1}', "a JSON header"),
    "a list": ([], "a JSON object as its header"),
    "brackets without end": (b"[" * 100_000, "a JSON header"),
    "a number too long": (b'{"a": ' + b"9" * 10_000 + b"}", "a JSON header"),
    "a tensor twice": (
        b'{"a": {"dtype":"F32","shape":[4,3],"data_offsets":[0,48]}, '
        b'"a": {"dtype":"F32","shape":[4,3],"data_offsets":[48,96]}}',
        "each tensor once in its header, found the name 'a' twice",
    ),
    "an entry that is a number": ({"a": 3}, "dtype, shape and data_offsets for tensor 'a'"),
    "no dtype": ({"a": {"shape": [4, 3], "data_offsets": [0, 48]}}, "for tensor 'a'"),
    "a dtype that is a number": ({"a": ENTRY | {"dtype": 32}}, "for tensor 'a'"),
    "no shape": ({"a": {"dtype": "F32", "data_offsets": [0, 48]}}, "a shape of whole numbers for tensor 'a'"),
    "a negative shape": ({"a": ENTRY | {"shape": [-4, -3]}}, "a shape of whole numbers for tensor 'a'"),
    "a shape of fractions": ({"a": ENTRY | {"shape": [4.0, 3]}}, "a shape of whole numbers for tensor 'a'"),
    "a shape of truths": ({"a": ENTRY | {"shape": [True, 12]}}, "a shape of whole numbers for tensor 'a'"),
    "a shape in words": ({"a": ENTRY | {"shape": "4x3"}}, "a shape of whole numbers for tensor 'a'"),
    "negative offsets": ({"a": ENTRY | {"data_offsets": [-48, 0]}}, "two rising data_offsets for tensor 'a'"),
    "falling offsets": ({"a": ENTRY | {"data_offsets": [48, 0]}}, "two rising data_offsets for tensor 'a'"),
    "three offsets": ({"a": ENTRY | {"data_offsets": [0, 48, 96]}}, "two rising data_offsets for tensor 'a'"),
    "no offsets": ({"a": {"dtype": "F32", "shape": [4, 3]}}, "two rising data_offsets for tensor 'a'"),
    "an end beyond the file": ({"a": ENTRY | {"data_offsets": [96, 144]}}, "tensor 'a' to end at byte"),
    "fewer bytes than items": ({"a": ENTRY | {"data_offsets": [0, 44]}}, "12 items of F32 for tensor 'a'"),
    "ranges that overlap": (
        {"a": ENTRY, "b": ENTRY | {"data_offsets": [24, 72]}},
        "tensor 'b' to begin at byte .* it overlaps",
    ),
    "a gap": ({"a": ENTRY | {"data_offsets": [48, 96]}}, "tensor 'a' to begin at byte .* gap"),
    "bytes of no tensor": ({"a": ENTRY}, "bytes in all"),
    "no tensors": ({}, "bytes in all"),
}


@pytest.mark.parametrize("case", BAD_HEADERS)
def test_a_header_that_cannot_be_true_is_refused(tmp_path: Path, case: str) -> None:
    header, message = BAD_HEADERS[case]
    path = write_header(tmp_path / "model.safetensors", header)
    with pytest.raises(ModelError, match=message) as caught:
        read_header(path)
    assert str(path) in str(caught.value)


@settings(deadline=None)
@given(st.binary(max_size=80), st.integers(0, 200))
def test_any_bytes_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, text: bytes, n_data_bytes: int
) -> None:
    path = tmp_path_factory.mktemp("any") / "model.safetensors"
    for content in (text, struct.pack("<Q", len(text)) + text + bytes(n_data_bytes)):
        path.write_bytes(content)
        try:
            read_header(path)
        except ModelError as error:
            assert str(path) in str(error)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-100, 200) | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets"]), inner)
    ),
    max_leaves=8,
)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(["a", "b", "__metadata__"]), json_values | st.just(ENTRY)))
def test_any_json_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, header: dict[str, Any]) -> None:
    path = write_header(tmp_path_factory.mktemp("any") / "model.safetensors", header)
    try:
        assert all(tensor.end_byte <= path.stat().st_size for tensor in read_header(path).values())
    except ModelError as error:
        assert str(path) in str(error)


@pytest.mark.parametrize("n_cut", [1, 90, 10_000])
def test_a_truncated_shard_is_named(whole: Path, n_cut: int) -> None:
    shard(whole)
    path = whole / "model-00002-of-00002.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: max(0, len(content) - n_cut)])
    with pytest.raises(ModelError, match="model-00002-of-00002.safetensors is not a whole safetensors file"):
        open_source(whole)


def test_a_file_that_is_cut_while_it_is_read_is_named(whole: Path) -> None:
    source = open_source(whole)
    with (whole / "model.safetensors").open("r+b") as stream:
        stream.truncate(source.tensors["norm"].end_byte - 4)
    with pytest.raises(ModelError, match="4 more bytes of tensor 'norm'"):
        source.tensor("norm")
    (whole / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="to read tensor 'norm'"):
        source.tensor("norm")


INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "expected JSON"),
        ("[]", "expected a weight_map"),
        ("{}", "expected a weight_map"),
        ('{"weight_map": []}', "expected a weight_map"),
        ('{"weight_map": {"a": "../other/model.safetensors"}}', "beside it for tensor 'a', found '../other/"),
        ('{"weight_map": {"a": "/etc/passwd"}}', "beside it for tensor 'a'"),
        ('{"weight_map": {"a": "..\\\\x.safetensors/.."}}', "beside it for tensor 'a'"),
        ('{"weight_map": {"a": "model.bin"}}', "beside it for tensor 'a', found 'model.bin'"),
        ('{"weight_map": {"a": 3}}', "beside it for tensor 'a', found '3'"),
        ('{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}', "'a' twice"),
        ('{"weight_map": {"a": "gone.safetensors"}}', r"the shards \['gone.safetensors'\]"),
    ],
)
def test_an_index_that_cannot_be_true_is_refused(whole: Path, text: str, message: str) -> None:
    shard(whole)
    (whole / INDEX).write_text(text)
    with pytest.raises(ModelError, match=message) as caught:
        open_source(whole)
    assert INDEX in str(caught.value)


def test_an_index_and_shards_that_differ_are_refused(whole: Path) -> None:
    shard(whole)
    index = json.loads((whole / INDEX).read_text())
    del index["weight_map"]["norm"]
    (whole / INDEX).write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"found differences: \['norm'\]"):
        open_source(whole)


def test_one_file_and_an_index_are_refused(whole: Path) -> None:
    shutil.copy(whole / "model.safetensors", whole / "kept")
    shard(whole)
    (whole / "kept").rename(whole / "model.safetensors")
    with pytest.raises(ModelError, match="found both"):
        open_source(whole)


def test_a_tensor_in_two_files_is_refused(whole: Path) -> None:
    (whole / "model.safetensors").rename(whole / "model-1.safetensors")
    shutil.copy(whole / "model-1.safetensors", whole / "model-2.safetensors")
    with pytest.raises(ModelError, match="'a.weight' once, found it in model-1.safetensors and model-2.safetensors"):
        open_source(whole)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_quantized_tensors_are_refused(tmp_path: Path, dtype: type) -> None:
    write_checkpoint(tmp_path, {"a": W, "q": W.astype(dtype)})
    with pytest.raises(ModelError, match="found tensor 'q' as [IU]8; nothing is dequantized.* before quantization"):
        open_source(tmp_path)


def test_a_quantized_configuration_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, {"a": W}, quantization_config={"quant_method": "bitsandbytes"})
    with pytest.raises(ModelError, match=r"quantization_config \(bitsandbytes\).*before quantization"):
        open_source(tmp_path)


def test_integers_and_empty_tensors_are_refused_when_they_are_read(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, {"a": W, "ids": np.arange(3), "none": np.zeros((0, 3), np.float32)})
    source = open_source(tmp_path)
    with pytest.raises(ModelError, match="tensor 'ids' .*found I64"):
        source.tensor("ids")
    with pytest.raises(ModelError, match=r"values in tensor 'none' .*\(0, 3\)"):
        source.tensor("none")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "expected config.json"),
        (lambda folder: (folder / "config.json").write_text("[1]"), "expected a JSON object in"),
        (lambda folder: (folder / "config.json").write_text("{"), "expected JSON in"),
        (lambda folder: (folder / "config.json").write_bytes(b"\xff"), "expected JSON in"),
        (lambda folder: (folder / "model.safetensors").unlink(), "found no weights"),
        (shutil.rmtree, "expected a checkpoint directory"),
    ],
)
def test_a_directory_that_is_no_checkpoint_is_refused(whole: Path, spoil: Callable[[Path], Any], message: str) -> None:
    spoil(whole)
    with pytest.raises(ModelError, match=message) as caught:
        Checkpoint(whole)
    assert str(whole) in str(caught.value)


def test_a_pickled_checkpoint_is_refused_with_the_command_that_converts_it(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    base = save_bert(tmp_path / "a model")
    want = open_source(base).tensor("pooler.dense.weight")
    torch.save(load_file(base / "model.safetensors"), base / "pytorch_model.bin")
    (base / "model.safetensors").unlink()
    with pytest.raises(
        ModelError, match=r"found pickled weights \['pytorch_model.bin'\], which can run code"
    ) as caught:
        open_source(base)
    command = str(caught.value).partition("installed: ")[2]
    subprocess.run(["bash", "-c", command.replace("python", sys.executable, 1)], check=True, capture_output=True)
    assert (open_source(base).tensor("pooler.dense.weight") == want).all()
