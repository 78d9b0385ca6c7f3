"""Our GGUF files against llama.cpp's own converter, bit for bit, where its source is at hand.

Set LLAMA_CPP_SRC to a llama.cpp source tree (the folder with convert_hf_to_gguf.py).
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from checkpoints import save_bert, save_llama

from reclm_lite.convert.export import export_checkpoint

pytest.importorskip("transformers")

# Its converter knows pre-tokenizers by a hash of token ids, and tries SentencePiece (a package it may not find)
# before byte-level BPE; both are told to it here.
ORACLE = """
import runpy, sys
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/gguf-py"]
from conversion.base import TextModel
pre = sys.argv[2]
TextModel.get_vocab_base_pre = lambda self, tokenizer: pre
def absent(self):
    raise FileNotFoundError
TextModel._set_vocab_sentencepiece = TextModel._set_vocab_llama_hf = absent
sys.argv = ["convert_hf_to_gguf.py", *sys.argv[3:]]
runpy.run_path(sys.path[0] + "/convert_hf_to_gguf.py", run_name="__main__")
"""

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}

CHECKPOINTS = {
    "llama tied": ("gpt-2", lambda d: save_llama(d, tied=True, n_kv_heads=4)),
    "llama untied GQA": ("gpt-2", lambda d: save_llama(d, tied=False, n_kv_heads=2)),
    "llama biases, head_dim": ("gpt-2", lambda d: save_llama(d, attention_bias=True, mlp_bias=True, head_dim=32)),
    "llama 3 rope": ("gpt-2", lambda d: save_llama(d, rope_parameters=LLAMA3_ROPE)),
    "bert": ("default", save_bert),
}


@pytest.fixture(scope="module")
def llama_cpp_source() -> Path:
    source = os.environ.get("LLAMA_CPP_SRC")
    if not source or not (Path(source) / "convert_hf_to_gguf.py").is_file():
        pytest.skip("no llama.cpp source tree: set LLAMA_CPP_SRC to one to compare with its converter")
    return Path(source)


def _contents(path: Path) -> tuple[dict[str, tuple[str, np.ndarray]], dict[str, object]]:
    from gguf import GGUFReader

    reader = GGUFReader(path)
    tensors = {t.name: (t.tensor_type.name, np.array(t.data)) for t in reader.tensors}
    return tensors, {key: field.contents() for key, field in reader.fields.items()}


def _descriptive(key: str) -> bool:
    """Names, authors and size labels, and counters of the file itself: not what a model computes by."""
    kept = ("general.architecture", "general.type", "general.file_type", "general.quantization_version")
    return key.startswith("GGUF.") or (key.startswith("general.") and key not in kept)


@pytest.mark.parametrize(
    ("kind", "ftype"),
    [
        ("llama tied", "f32"),
        ("llama tied", "bf16"),
        ("llama untied GQA", "f16"),
        ("llama biases, head_dim", "f16"),
        ("llama 3 rope", "f16"),
        ("bert", "f32"),
        ("bert", "f16"),
    ],
)
def test_tensors_and_metadata_are_those_of_llama_cpps_converter(
    llama_cpp_source: Path, tmp_path: Path, kind: str, ftype: str
) -> None:
    pre, save = CHECKPOINTS[kind]
    checkpoint = save(tmp_path / "checkpoint")
    export_checkpoint(checkpoint, tmp_path / "ours.gguf", ftype)
    command = [sys.executable, "-c", ORACLE, str(llama_cpp_source), pre, str(checkpoint)]
    subprocess.run(
        [*command, "--outtype", ftype, "--outfile", str(tmp_path / "theirs.gguf")], check=True, capture_output=True
    )
    our_tensors, our_metadata = _contents(tmp_path / "ours.gguf")
    their_tensors, their_metadata = _contents(tmp_path / "theirs.gguf")

    assert our_tensors.keys() == their_tensors.keys()
    for name, (type_name, data) in our_tensors.items():
        assert type_name == their_tensors[name][0], name
        if name == "rope_freqs.weight":  # computed, not copied: two float32 powers may differ in the last bit
            np.testing.assert_allclose(data, their_tensors[name][1], rtol=1e-6)
        else:
            np.testing.assert_array_equal(data, their_tensors[name][1], err_msg=name)

    ours_only = {"bert.max_tokens"}
    differing = {
        key: (our_metadata.get(key), their_metadata.get(key))
        for key in our_metadata.keys() | their_metadata.keys()
        if not _descriptive(key) and key not in ours_only and our_metadata.get(key) != their_metadata.get(key)
    }
    assert differing == {}
