"""Checkpoints of Llama and BERT become equivalent GGUF files, or are refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from checkpoints import ADVERSARIAL_TEXTS, CORPUS, save_bert, save_llama
from safetensors.numpy import load_file, save_file

import reclm_lite
from reclm_lite.convert import parity
from reclm_lite.convert.export_checkpoint import export_checkpoint
from reclm_lite.errors import ModelError
from reclm_lite.runtime import check_gguf, load_model

pytest.importorskip("torch")
pytest.importorskip("transformers")

ASSETS = Path(reclm_lite.__file__).parent / "assets"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bert(tmp_path_factory.mktemp("bert"))


def _copy(checkpoint: Path, to: Path) -> Path:
    return Path(shutil.copytree(checkpoint, to / "copy"))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("n_kv_heads", [4, 2])
def test_llama_logits_agree_with_transformers(tmp_path: Path, tied: bool, n_kv_heads: int) -> None:
    checkpoint = save_llama(tmp_path / "checkpoint", tied=tied, n_kv_heads=n_kv_heads)
    report = export_checkpoint(checkpoint, tmp_path / "model.gguf", "f32")
    assert report["token_ids_proved"]
    names = {tensor.name for tensor in check_gguf(tmp_path / "model.gguf").tensors}
    assert ("output.weight" in names) is not tied
    agreement = parity.logit_parity(tmp_path / "model.gguf", checkpoint, CORPUS[:6], n_threads=1)
    assert agreement["n_positions"] > 100
    assert agreement["min_cosine"] > 1 - 1e-9
    assert agreement["max_abs_difference"] < 1e-3  # of logits that reach 20 and more; measured 3e-5
    assert agreement["top1_agreement"] == 1.0


def test_llama_token_ids_are_identical_on_adversarial_strings(llama: Path, tmp_path: Path) -> None:
    export_checkpoint(llama, tmp_path / "model.gguf", "f16")
    texts = [*parity.PROBE_TEXTS, *ADVERSARIAL_TEXTS]
    assert parity.token_id_mismatches(tmp_path / "model.gguf", llama, texts) == []


def test_bert_token_ids_are_identical_on_adversarial_strings(bert: Path, tmp_path: Path) -> None:
    export_checkpoint(bert, tmp_path / "model.gguf", "f16")
    texts = [*parity.PROBE_TEXTS, *ADVERSARIAL_TEXTS]
    assert parity.token_id_mismatches(tmp_path / "model.gguf", bert, texts) == []


def test_a_wrong_pre_tokenizer_is_noticed(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reclm_lite.convert.vocab.bpe.pre_tokenizer_name", lambda tokenizer, path: "qwen2")
    with pytest.raises(ModelError, match="expected the token ids of"):
        export_checkpoint(llama, tmp_path / "model.gguf", "f16")
    assert list(tmp_path.iterdir()) == []


def test_sharded_and_whole_checkpoints_give_the_same_file(llama: Path, tmp_path: Path) -> None:
    sharded = _copy(llama, tmp_path)
    tensors = load_file(sharded / "model.safetensors")
    (sharded / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map = {}
    for i, part in enumerate((names[::2], names[1::2])):
        file = f"model-{i + 1:05}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, sharded / file)
        weight_map |= dict.fromkeys(part, file)
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    export_checkpoint(llama, tmp_path / "whole.gguf", "f16", name="m")
    export_checkpoint(sharded, tmp_path / "sharded.gguf", "f16", name="m")
    assert (tmp_path / "whole.gguf").read_bytes() == (tmp_path / "sharded.gguf").read_bytes()


def test_bfloat16_checkpoint_widens_exactly(llama: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file as load_torch
    from safetensors.torch import save_file as save_torch

    from reclm_lite.convert.checkpoint import Checkpoint

    narrow = _copy(llama, tmp_path)
    tensors = {name: t.to(torch.bfloat16) for name, t in load_torch(narrow / "model.safetensors").items()}
    save_torch(tensors, narrow / "model.safetensors")
    checkpoint = Checkpoint(narrow)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(checkpoint.tensor(name), tensor.float().numpy())
    assert export_checkpoint(narrow, tmp_path / "model.gguf", "bf16")["ftype"] == "bf16"


def _edited(llama: Path, tmp_path: Path, edit) -> Path:
    copy = _copy(llama, tmp_path)
    tensors = load_file(copy / "model.safetensors")
    edit(tensors)
    save_file(tensors, copy / "model.safetensors")
    return copy


def test_leftover_tensor_is_refused(llama: Path, tmp_path: Path) -> None:
    extra = {"model.layers.0.self_attn.q_proj.lora_A.weight": np.zeros((8, 64), np.float32)}
    copy = _edited(llama, tmp_path, lambda tensors: tensors.update(extra))
    with pytest.raises(ModelError, match=r"0 missing \(none\) and 1 left over .*lora_A"):
        export_checkpoint(copy, tmp_path / "model.gguf")


def test_missing_tensor_is_refused(llama: Path, tmp_path: Path) -> None:
    copy = _edited(llama, tmp_path, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(ModelError, match=r"1 missing \(model\.layers\.1\.mlp\.up_proj\.weight\)"):
        export_checkpoint(copy, tmp_path / "model.gguf")


def test_odd_shape_nan_and_float16_overflow_are_refused(llama: Path, tmp_path: Path) -> None:
    key = "model.layers.0.mlp.up_proj.weight"
    for i, (value, message) in enumerate(
        [
            (np.zeros((5, 64), np.float32), "of shape"),
            (np.full((128, 64), np.nan, np.float32), "finite weights"),
            (np.full((128, 64), 1e6, np.float32), "bf16 or f32"),
        ]
    ):
        (tmp_path / str(i)).mkdir()
        copy = _edited(llama, tmp_path / str(i), lambda tensors, value=value: tensors.update({key: value}))
        with pytest.raises(ModelError, match=message):
            export_checkpoint(copy, tmp_path / "model.gguf", "f16")
    assert not (tmp_path / "model.gguf").exists()


def test_pickled_weights_are_refused_unopened(llama: Path, tmp_path: Path) -> None:
    copy = _copy(llama, tmp_path)
    (copy / "model.safetensors").unlink()
    (copy / "pytorch_model.bin").write_bytes(b"not opened")
    with pytest.raises(ModelError, match="can run code when opened"):
        export_checkpoint(copy, tmp_path / "model.gguf")


def test_truncated_safetensors_is_refused(llama: Path, tmp_path: Path) -> None:
    copy = _copy(llama, tmp_path)
    whole = (copy / "model.safetensors").read_bytes()
    for n_bytes in (4, 100, len(whole) - 1):
        (copy / "model.safetensors").write_bytes(whole[:n_bytes])
        with pytest.raises(ModelError, match="not a whole safetensors file"):
            export_checkpoint(copy, tmp_path / "model.gguf")


def test_unknown_architecture_activation_and_tokenizer_are_refused(llama: Path, tmp_path: Path) -> None:
    copy = _copy(llama, tmp_path)
    config = json.loads((copy / "config.json").read_text())
    for edit, message in [
        ({"architectures": ["MambaForCausalLM"]}, "expected a checkpoint of one of"),
        ({"hidden_act": "relu"}, "hidden_act"),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "rope_type"),
    ]:
        (copy / "config.json").write_text(json.dumps(config | edit))
        with pytest.raises(ModelError, match=message):
            export_checkpoint(copy, tmp_path / "model.gguf")
    (copy / "config.json").write_text(json.dumps(config))
    tokenizer = json.loads((copy / "tokenizer.json").read_text())
    tokenizer["pre_tokenizer"] = {"type": "Whitespace"}
    (copy / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ModelError, match="ends in ByteLevel"):
        export_checkpoint(copy, tmp_path / "model.gguf")


def test_greedy_text_stops_at_the_end_of_the_context(llama: Path, tmp_path: Path) -> None:
    export_checkpoint(llama, tmp_path / "model.gguf", "f32")
    with load_model(tmp_path / "model.gguf") as model:
        first = parity.greedy_text(model, "User identity:", 12, n_threads=1)
        assert first == parity.greedy_text(model, "User identity:", 12, n_threads=1)
        parity.greedy_text(model, "a " * 60, 10_000, n_threads=1)


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_metadata_keys_keep_the_order_of_the_bundled_models(
    family: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """So that the recipes give the bundled files byte for byte."""
    from gguf import GGUFReader

    asset = {"llama": "reclm-profile-q8_0.gguf", "bert": "all-MiniLM-L6-v2-q8_0.gguf"}[family]
    export_checkpoint(
        request.getfixturevalue(family), tmp_path / "model.gguf", "q8_0", metadata={"general.license": "x"}
    )
    bundled, made = (list(GGUFReader(path).fields) for path in (ASSETS / asset, tmp_path / "model.gguf"))
    assert len(made) > 20 and [key for key in made if key in bundled] == [key for key in bundled if key in made]
