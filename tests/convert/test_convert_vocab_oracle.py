"""Vocabularies in GGUF against llama.cpp's own converter, key by key, where its source is at hand.

Set LLAMA_CPP_SRC to a llama.cpp source tree (the folder with convert_hf_to_gguf.py).
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers_made as made
from gguf import GGUFReader

from reclm_lite.convert.vocab import bpe

pytest.importorskip("transformers")

# Runs the converter's own vocabulary code for many directories in one process; the name of the pre-tokenizer, which it
# finds by a hash of token ids that made tokenizers cannot have, is told to it.
ORACLE = """
import json, pathlib, sys
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/gguf-py"]
import gguf
from conversion.base import TextModel
from conversion.bert import BertModel
from conversion.gemma import Gemma2Model
from conversion.llama import LlamaModel
from conversion.qwen import Qwen2Model
classes = {"llama": LlamaModel, "qwen2": Qwen2Model, "gemma2": Gemma2Model, "bert": BertModel}
found = {}
for name, family, pre in json.loads(sys.argv[2]):
    model = object.__new__(classes[family])
    model.dir_model = pathlib.Path(name)
    model.hparams = json.loads((model.dir_model / "config.json").read_text())
    model.origin_hf_arch, model.is_mistral_format = None, False
    model.gguf_writer = gguf.GGUFWriter(None, family)
    TextModel.get_vocab_base_pre = lambda self, tokenizer: pre
    model.set_vocab()
    as_text = lambda v: v.decode() if isinstance(v, bytes) else [as_text(i) for i in v] if isinstance(v, list) else v
    found[name] = {key: as_text(value.value) for key, value in model.gguf_writer.kv_data[0].items()}
print("FOUND" + json.dumps(found))
"""

QWEN2 = [made.split(bpe.QWEN2), made.byte_level(False)]
LLAMA3 = [made.split(bpe.LLAMA3), made.byte_level(False)]
TEKKEN = [made.split(bpe.TEKKEN), made.byte_level(False)]
FILES = ("tokenizer.model", "tokenizer.json")


def _directories(root: Path) -> dict[str, tuple[str, str, Path]]:
    """Name -> (family, pre-tokenizer, directory)."""
    nfc = {"type": "NFC"}
    gemma = {"bos_token": "<s>", "add_bos_token": True}
    model = ("tokenizer.model",)
    return {
        "gpt-2": ("llama", "gpt-2", made.save_bpe(root / "a", [made.byte_level(True)], padded_to=1600)),
        "qwen2": ("qwen2", "qwen2", made.save_bpe(root / "b", QWEN2, normalizer=nfc, add_bos=False)),
        "llama 3": ("llama", "llama-bpe", made.save_bpe(root / "c", LLAMA3, ignore_merges=True)),
        "tekken": ("llama", "tekken", made.save_bpe(root / "d", TEKKEN, ignore_merges=True, merges_as_pairs=False)),
        "model": ("llama", "", made.save_sentencepiece(root / "e", made.LEGACY, files=model, padded_to=2000)),
        "both": ("llama", "", made.save_sentencepiece(root / "f", made.LEGACY, files=FILES)),
        "gemma": ("gemma2", "", made.save_sentencepiece(root / "g", made.GEMMA, files=model, settings=gemma)),
        "lone json": ("llama", "", made.save_sentencepiece(root / "h", made.LEGACY, files=FILES[1:])),
        "wordpiece": ("bert", "default", made.save_wordpiece(root / "i")),
        "cased": ("bert", "default", made.save_wordpiece(root / "j", lowercase=False)),
    }


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, tuple[Any, Any]]]:
    """Name -> {key: (ours, theirs)} of the keys that differ."""
    source = os.environ.get("LLAMA_CPP_SRC")
    if not source or not (Path(source) / "convert_hf_to_gguf.py").is_file():
        pytest.skip("no llama.cpp source tree: set LLAMA_CPP_SRC to one to compare with its converter")
    pytest.importorskip("sentencepiece")
    directories = _directories(tmp_path_factory.mktemp("oracle"))
    tasks = [(str(directory), family, pre) for family, pre, directory in directories.values()]
    command = [sys.executable, "-c", ORACLE, source, json.dumps(tasks)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    found = json.loads(run.stdout.split("FOUND", 1)[1])
    differing = {}
    for name, (_, _, directory) in directories.items():
        made.vocabulary_gguf(directory, directory / "vocab.gguf")
        fields = GGUFReader(directory / "vocab.gguf").fields
        ours = {key: field.contents() for key, field in fields.items() if key.startswith("tokenizer.")}
        theirs = {key: value for key, value in found[str(directory)].items() if key.startswith("tokenizer.")}
        differing[name] = {
            key: (ours.get(key), theirs.get(key))
            for key in ours.keys() | theirs.keys()
            if ours.get(key) != theirs.get(key)
        }
    return differing


@pytest.mark.parametrize("name", ["gpt-2", "qwen2", "llama 3", "tekken", "wordpiece", "cased"])
def test_every_key_is_that_of_llama_cpps_converter(compared: dict[str, dict[str, tuple[Any, Any]]], name: str) -> None:
    assert compared[name] == {}


@pytest.mark.parametrize("name", ["model", "gemma"])
def test_a_lone_tokenizer_model_gives_the_special_ids_it_names_too(compared, name: str) -> None:
    """The converter takes these from config.json alone; what it leaves out is llama.cpp's default, if the ids fit."""
    ids = {"bos": (1, None), "eos": (2, None), "unknown": (0, None)}
    assert compared[name] == {f"tokenizer.ggml.{kind}_token_id": pair for kind, pair in ids.items()}


def test_tokenizer_json_adds_what_a_tokenizer_model_does_not_say(compared) -> None:
    """The converter does not open tokenizer.json beside tokenizer.model, so that it misses the added tokens."""
    assert compared["both"].keys() == {"tokenizer.ggml.tokens", "tokenizer.ggml.scores", "tokenizer.ggml.token_type"}
    ours, theirs = compared["both"]["tokenizer.ggml.tokens"]
    assert [pair for pair in zip(ours, theirs, strict=True) if pair[0] != pair[1]] == [
        ("<tool>", f"[PAD{len(ours) - 2}]"),
        ("<|im_end|>", f"[PAD{len(ours) - 1}]"),
    ]


def test_a_lone_tokenizer_json_gets_scores_that_merge(compared) -> None:
    """The converter gives all of them the score -1000, with which llama.cpp merges whatever stands leftmost."""
    differing = dict(compared["lone json"])
    ours, theirs = differing.pop("tokenizer.ggml.scores")
    assert set(theirs) == {-1000.0}
    assert len(np.unique(ours)) > 500
    assert differing.keys() <= {"tokenizer.ggml.token_type"}
