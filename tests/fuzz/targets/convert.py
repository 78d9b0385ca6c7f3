"""What conversion reads of strangers: safetensors headers, importance matrices, adapters' and checkpoints'
configurations."""

import atexit
import functools
import json
import logging
import os
import shutil
import struct
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from harness import Target

from reclm_lite.convert.adapter import Adapter
from reclm_lite.convert.checkpoint import Checkpoint
from reclm_lite.convert.families import family_of
from reclm_lite.convert.imatrix_file import read_imatrix
from reclm_lite.convert.parity.plain_copies import model_settings, peft_settings
from reclm_lite.convert.stored import read_header, read_tensor
from reclm_lite.convert.vocab.spm_file import read_sentencepiece
from reclm_lite.errors import ModelError

_NUMBERS = (
    b"NaN",
    b"Infinity",
    b"-1",
    b"0",
    b"1e400",
    b"1" + b"0" * 400,
    b"-1e-400",
    b"null",
    b"true",
    b"[]",
    b"{}",
    b'"x"',
    b"[" * 200,
    b"\\ud800",
)


@functools.cache
def _folder() -> Path:
    folder = tempfile.mkdtemp(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def _judging(run: Callable[[bytes], str]) -> Callable[[bytes], str]:
    """`run`, where numpy's warning of an overflow is an error: it is a number that nobody judged."""

    @functools.wraps(run)
    def judged(data: bytes) -> str:
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            return run(data)

    return judged


def _safetensors(tensors: dict[str, tuple[str, list, int]]) -> bytes:
    """name -> (dtype, shape, bytes)."""
    header, at = {}, 0
    for name, (dtype, shape, n_bytes) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + n_bytes]}
        at += n_bytes
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    return struct.pack("<Q", len(text)) + text + bytes(at)


def _header(text: bytes, n_data: int = 0) -> bytes:
    return struct.pack("<Q", len(text)) + text + bytes(n_data)


def safetensors_seeds() -> list[bytes]:
    return [
        _safetensors({"a": ("F32", [2, 3], 24), "b": ("BF16", [4], 8), "c": ("I64", [1], 8)}),
        _safetensors({"scalar": ("F16", [], 2)}),
        _header(b"{}"),
        struct.pack("<Q", 2**63) + b"{}",
        _header(b"[" * 3000),
        _header(b'{"a":{"dtype":"F32","shape":' + b"[" * 300 + b"]" * 300 + b',"data_offsets":[0,4]}}', 4),
        _header(b'{"a":{"dtype":"F32","shape":[1' + b"0" * 4000 + b'],"data_offsets":[0,1' + b"0" * 4000 + b"]}}", 4),
        _header(b'{"a":{"dtype":"F32","shape":[' + b"9223372036854775807," * 100 + b'1],"data_offsets":[0,4]}}', 4),
        _header(b'{"a":{"dtype":"\\u001b[2J","shape":[true],"data_offsets":[false,4.0]}}', 4),
        _header(b'{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},"a":{}}'),
    ]


def safetensors(data: bytes) -> str:
    path = _folder() / "x.safetensors"
    path.write_bytes(data)
    try:
        for name, stored in read_header(path).items():
            assert 0 <= stored.start_byte <= stored.end_byte <= len(data)
            with np.errstate(all="ignore"), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    assert read_tensor(name, stored).shape == stored.shape
                except ModelError:
                    return "accepted, not readable"
    except ModelError as error:
        return _refused(error)
    return "accepted"


def _refused(error: ModelError) -> str:
    assert str(error).isprintable() and len(str(error)) < 20_000, str(error)[:300]
    return "refused"


def imatrix_seeds() -> list[bytes]:
    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    keys = text("general.type") + struct.pack("<I", 8) + text("imatrix")
    keys += text("imatrix.datasets") + struct.pack("<IIQ", 9, 8, 1) + text("a.txt")
    keys += (
        text("imatrix.chunk_count") + struct.pack("<II", 4, 2) + text("imatrix.chunk_size") + struct.pack("<II", 4, 512)
    )
    table = text("w.in_sum2") + struct.pack("<IQIQ", 1, 8, 0, 0) + text("w.counts") + struct.pack("<IQIQ", 1, 1, 0, 32)
    header = b"GGUF" + struct.pack("<IQQ", 3, 2, 4) + keys + table
    modern = header + bytes(-len(header) % 32) + struct.pack("<8f", *range(8)) + struct.pack("<f", 512.0) + bytes(28)
    name = b"blk.0.attn_q.weight"
    legacy = (
        struct.pack("<ii", 1, len(name))
        + name
        + struct.pack("<ii4f", 3, 4, *range(4))
        + struct.pack("<ii", 3, 5)
        + b"a.txt"
    )
    huge = struct.pack("<ii", 1, len(name)) + name + struct.pack("<ii4f", 3, 4, *[3e38] * 4)
    return [
        modern,
        legacy,
        huge,
        struct.pack("<ii", 2**31 - 1, 1) + b"a",
        struct.pack("<iii", 1, 1, -1),
        modern.replace(struct.pack("<f", 512.0), b"\xff" * 4),
    ]


@_judging
def imatrix(data: bytes) -> str:
    path = _folder() / "x.imatrix"
    path.write_bytes(data)
    try:
        found = read_imatrix(path)
    except ModelError as error:
        return _refused(error)
    for values in found.means().values():
        assert np.isfinite(values).all() and (values >= 0).all()
    return "accepted"


def adapter_seeds() -> list[bytes]:
    base = {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 4,
        "use_rslora": False,
        "rank_pattern": {},
        "alpha_pattern": {"q": 8},
        "modules_to_save": None,
        "target_modules": ["q"],
        "trainable_token_indices": None,
        "init_lora_weights": True,
        "use_dora": False,
    }
    seeds = [json.dumps(base).encode()]
    for change in (
        {"lora_alpha": 10**400},
        {"r": True},
        {"r": 1e308},
        {"use_rslora": True, "alpha_pattern": {"q": 10**30}},
        {"modules_to_save": [""]},
        {"modules_to_save": ["((([a-z_.0-9]+)+)+)+!"]},
        {"target_modules": "((([a-z_.0-9]+)+)+)+!", "exclude_modules": "(a*)*b", "layers_pattern": ["(a*)*b"]},
        {"rank_pattern": {"u|[]|\ud800-1]q": 9}},
    ):
        seeds.append(json.dumps(base | change).encode())
    return [
        *seeds,
        b"[" * 3000,
        b'{"peft_type":' + b"[" * 900 + b"]" * 900 + b"}",
        b'{"r":1,"r":2}',
        b'{"peft_type":"LORA","r":NaN}',
        b"\xff",
    ]


@_judging
def adapter(data: bytes) -> str:
    folder = _folder() / "adapter"
    if not folder.is_dir():
        folder.mkdir()
        (folder / "adapter_model.safetensors").write_bytes(
            _safetensors(
                {
                    "base_model.model.q.lora_A.weight": ("F32", [2, 4], 32),
                    "base_model.model.q.lora_B.weight": ("F32", [4, 2], 32),
                }
            )
        )
    (folder / "adapter_config.json").write_bytes(data)
    try:
        found = Adapter(folder)
        assert found.rank("q") == 2
        assert np.isfinite(found.scale("q")) and found.scale("q") > 0
        found.is_saved_whole("model.q")
        given = peft_settings(found)
        assert given is not None and given["target_modules"] == ["q"] and {*given["rank_pattern"]} <= {"q"}
    except ModelError as error:
        return _refused(error)
    return "accepted"


def checkpoint_seeds() -> list[bytes]:
    base = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "vocab_size": 32,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "layer_norm_eps": 1e-12,
        "head_dim": 16,
        "sliding_window": 4,
        "layer_types": ["full_attention"],
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 16,
        "rope_scaling": {"rope_type": "linear", "factor": 2.0},
    }
    names = ("Llama", "Mistral", "Qwen2", "Qwen3", "Gemma2", "Gemma3")
    seeds = [json.dumps(base | {"architectures": [f"{name}ForCausalLM"]}).encode() for name in names]
    seeds += [
        json.dumps(
            {key: value for key, value in base.items() if "rope" not in key}
            | {"architectures": [name], "hidden_act": "gelu"}
        ).encode()
        for name in ("BertModel", "LlamaForCausalLM")
    ]
    yarn = {
        "rope_type": "yarn",
        "factor": 1e308,
        "mscale": 1e-30,
        "mscale_all_dim": 1e300,
        "beta_fast": 32,
        "original_max_position_embeddings": 64,
    }
    llama3 = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    seeds += [
        json.dumps(base | {"architectures": ["LlamaForCausalLM"], "rope_scaling": scaling}).encode()
        for scaling in (yarn, llama3)
    ]
    seeds += [
        json.dumps(base | {"architectures": ["LlamaForCausalLM"]} | change).encode()
        for change in ({"num_labels": 2_000_000_000}, {"max_position_embeddings": 2_000_000_000}, {"auto_map": {}})
    ]
    return [
        *seeds,
        b"[" * 3000,
        b'{"architectures":' + b"[" * 500 + b"]" * 500 + b"}",
        b'{"hidden_size":NaN}',
        b"{}",
        b"\xff",
    ]


@_judging
def checkpoint(data: bytes) -> str:
    folder = _folder() / "checkpoint"
    if not folder.is_dir():
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(_safetensors({"model.embed_tokens.weight": ("F32", [2, 2], 16)}))
    (folder / "config.json").write_bytes(data)
    logging.getLogger("reclm_lite").setLevel(logging.ERROR)  # a window that llama.cpp lacks is told of each time
    try:
        found = Checkpoint(folder)
        family = family_of(found.config)
        values = family.hyperparameters(found.config, folder)
        assert all(np.isfinite(value) for value in values.values() if isinstance(value, float)), values
        family.renames(found.config, set(found.tensors))
        assert not {"num_labels", "auto_map"} & model_settings(found.config).keys()
        for tensor in family.extra_tensors(found.config).values():
            assert np.isfinite(tensor).all()
    except ModelError as error:
        return _refused(error)
    return "accepted"


def sentencepiece_seeds() -> list[bytes]:
    def message(field: int, data: bytes) -> bytes:
        return bytes([field << 3 | 2, len(data)]) + data

    piece = message(1, b"a") + b"\x15" + struct.pack("<f", -1.0) + b"\x18\x01"
    whole = message(1, piece) + message(2, b"\x18\x02") + message(3, message(1, b"identity"))
    number = message(1, b"\x08" + b"\xff" * 7 + b"\x7f")  # in the place of a piece's text
    return [whole, number, whole + b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f", b"\xff" * 200, b"\x0b" * 200]


@_judging
def sentencepiece(data: bytes) -> str:
    path = _folder() / "tokenizer.model"
    path.write_bytes(data)
    try:
        read_sentencepiece(path)
    except ModelError as error:
        return _refused(error)
    return "accepted"


_OF_JSON = (
    *_NUMBERS,
    b'"dtype"',
    b'"shape"',
    b'"data_offsets"',
    b'"F64"',
    b'"rope_scaling"',
    b'"rank_pattern"',
    b'"factor"',
)
TARGETS = (
    Target(
        "safetensors_header",
        "safetensors headers, and what they say of their data",
        safetensors_seeds,
        safetensors,
        _OF_JSON,
        max_bytes=9000,
    ),
    Target(
        "imatrix",
        "importance matrices, GGUF and .dat",
        imatrix_seeds,
        imatrix,
        (b"\xff" * 4, b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\x09\0\0\0"),
        n_slice=1500,
    ),
    Target("adapter_config", "adapter_config.json beside factors of rank 2", adapter_seeds, adapter, _OF_JSON),
    Target(
        "checkpoint_config",
        "config.json of a checkpoint, up to the GGUF metadata it gives",
        checkpoint_seeds,
        checkpoint,
        _OF_JSON,
        n_slice=1000,
    ),
    Target(
        "sentencepiece", "tokenizer.model, read as a protocol buffer", sentencepiece_seeds, sentencepiece, n_slice=1500
    ),
)
