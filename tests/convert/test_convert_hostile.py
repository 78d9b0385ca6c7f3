"""Untrusted headers and configurations: impossible values give an error before memory is allocated."""

import json
import struct

import numpy as np
import pytest
from adapters import write_adapter, write_checkpoint

from reclm_lite.convert import bounded_files
from reclm_lite.convert.adapter import Adapter
from reclm_lite.convert.checkpoint import Checkpoint
from reclm_lite.convert.families import bert
from reclm_lite.convert.imatrix_file import read_imatrix
from reclm_lite.convert.stored import read_header
from reclm_lite.errors import ModelError

FACTORS = {"q.lora_A.weight": np.ones((2, 4), np.float32), "q.lora_B.weight": np.ones((4, 2), np.float32)}


def header(entry: bytes, n_data: int = 4) -> bytes:
    text = b'{"a":' + entry + b"}"
    return struct.pack("<Q", len(text)) + text + bytes(n_data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (header(b'{"dtype":"F32","shape":[1' + b"0" * 4000 + b'],"data_offsets":[0,4]}'), "a shape of whole numbers"),
        (header(b'{"dtype":"F32","shape":[1],"data_offsets":[0,1' + b"0" * 4299 + b"]}"), "two rising data_offsets"),
        (header(b'{"dtype":"F32","shape":[' + b"1," * 20 + b'1],"data_offsets":[0,4]}'), "a shape of whole numbers"),
        (header(b'{"dtype":"F32","shape":[true],"data_offsets":[0,4]}'), "a shape of whole numbers"),
        (header(b'{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}'), "a shape of whole numbers"),
        (header(b'{"dtype":"\\u001b[2J","shape":[1],"data_offsets":[0,4]}'), "a dtype such as F32"),
        (header(b"[" * 65 + b"]" * 65), "nested too deep"),
        (header(b"[" * 100_000), "nested too deep|JSON"),
        (struct.pack("<Q", 26 << 20) + bytes(26 << 20), "a header of at most"),
    ],
)
def test_a_safetensors_header_that_cannot_be_is_refused(tmp_path, data, message):
    (tmp_path / "x.safetensors").write_bytes(data)
    with pytest.raises(ModelError, match=message) as caught:
        read_header(tmp_path / "x.safetensors")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"lora_alpha": 10**400}, "a number above 0 as lora_alpha"),
        ({"r": True}, "a number above 0 as r"),
        ({"alpha_pattern": {"q": 10**30}}, "alpha_pattern"),
        ({"\x1b[2J": 1}, "settings that are known here"),
    ],
)
def test_an_adapters_number_that_would_overflow_is_refused(tmp_path, config, message):
    with pytest.raises(ModelError, match=message) as caught:
        Adapter(write_adapter(tmp_path, FACTORS, **config)).scale("q")
    assert str(caught.value).isprintable()


def test_a_configuration_too_large_or_too_deep_is_refused(tmp_path, monkeypatch):
    write_checkpoint(tmp_path / "base", {"a": np.ones(1, np.float32)})
    write_adapter(tmp_path / "adapter", FACTORS)
    for read, file in ((Checkpoint, "base/config.json"), (Adapter, "adapter/adapter_config.json")):
        path = tmp_path / file
        path.write_text('{"a":' + "[" * 70 + "]" * 70 + "}")
        with pytest.raises(ModelError, match="nested too deep"):
            read(path.parent)
        path.write_bytes(b'"' + b" " * bounded_files.MAX_CONFIG_BYTES + b'"')
        with pytest.raises(ModelError, match="expected at most 4,194,304 bytes in .*json"):
            read(path.parent)


@pytest.mark.parametrize("path", ["../other", "/etc", "a/../../b", "\x1b", ""])
def test_an_encoders_pooling_is_read_from_its_own_folder_only(tmp_path, path):
    (tmp_path / "modules.json").write_text(json.dumps([{"type": "x.Pooling", "path": path}]))
    with pytest.raises(ModelError, match="a folder of the checkpoint as path of its Pooling"):
        bert._pooling(tmp_path)


def legacy(*names: bytes) -> bytes:
    entries = b"".join(struct.pack("<i", len(name)) + name + struct.pack("<ii2f", 1, 2, 1.0, 2.0) for name in names)
    return struct.pack("<i", len(names)) + entries


def test_an_importance_matrix_names_each_weight_once(tmp_path):
    (tmp_path / "x.dat").write_bytes(legacy(b"a", b"a"))
    with pytest.raises(ModelError, match="each name once .*'a' twice"):
        read_imatrix(tmp_path / "x.dat")
    (tmp_path / "x.dat").write_bytes(legacy(b"a", b"b"))
    assert set(read_imatrix(tmp_path / "x.dat").entries) == {"a", "b"}


@pytest.mark.parametrize(("kind", "value"), [(5, struct.pack("<i", -1)), (7, b"\1"), (10, struct.pack("<Q", 2**63))])
def test_an_importance_matrix_counts_from_0(tmp_path, kind, value):
    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    keys = text("general.type") + struct.pack("<I", 8) + text("imatrix")
    keys += (
        text("imatrix.datasets")
        + struct.pack("<IIQ", 9, 8, 1)
        + text("a")
        + text("imatrix.chunk_size")
        + struct.pack("<II", 4, 512)
    )
    keys += text("imatrix.chunk_count") + struct.pack("<I", kind) + value
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 4) + keys)
    with pytest.raises(ModelError, match="imatrix.chunk_count"):
        read_imatrix(tmp_path / "x.gguf")


@pytest.mark.parametrize(
    "content",
    [b"\x0a\x09\x08" + b"\xff" * 7 + b"\x7f", b"\x1a\x09\x08" + b"\xff" * 7 + b"\x7f"],
    ids=["piece", "normalizer"],
)
def test_a_number_in_the_place_of_a_sentencepiece_text_is_refused_and_not_made_into_so_many_zeros(tmp_path, content):
    from reclm_lite.convert.vocab.spm_file import read_sentencepiece

    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(ModelError, match="in the place of a text"):
        read_sentencepiece(tmp_path / "tokenizer.model")


def test_many_patterns_on_many_modules_have_one_bound_together():
    from reclm_lite.convert.adapter import Adapter

    adapter = object.__new__(Adapter)
    adapter.directory, adapter._by_module, adapter._n_steps = None, {}, 0
    adapter.config = {"rank_pattern": {f"(a*)*b{i}": 1 for i in range(300)}}
    with pytest.raises(ModelError, match="takes too long to compare with every module"):
        for module in range(300):
            adapter.rank(f"m{module}." + "a" * 200)
