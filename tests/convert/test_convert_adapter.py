"""An adapter that is not whole, not of its base, or not a plain LoRA is refused, naming what is wrong."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapters import save_adapter, write_adapter, write_checkpoint
from checkpoints import save_bert

from reclm_lite.convert.merge import open_source
from reclm_lite.errors import ModelError

W = np.arange(12, dtype=np.float32).reshape(4, 3)
A = np.array([[1, 2, 0], [0, 1, -1]], np.float32)  # (rank, in)
B = np.array([[1, 0], [0, 1], [1, 1], [2, -1]], np.float32)  # (out, rank)
LORA = {"layer.q.lora_A.weight": A, "layer.q.lora_B.weight": B}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    tensors = {
        "layer.q.weight": W,
        "layer.q.bias": np.arange(4, dtype=np.float32),
        "layer.norm.weight": np.ones(3, np.float32),
        "model.embed_tokens.weight": np.ones((6, 3), np.float32),
        "lm_head.weight": np.ones((6, 3), np.float32),
    }
    return write_checkpoint(tmp_path / "base", tensors, vocab_size=6, tie_word_embeddings=False)


def test_a_lora_is_its_scaled_product_added(base: Path, tmp_path: Path) -> None:
    source = open_source(base, write_adapter(tmp_path / "adapter", LORA))
    assert source.merged and source.dtype == "F32"
    assert (source.tensor("layer.q.weight") == W + 2 * B @ A).all()
    assert (source.tensor("layer.q.bias") == np.arange(4)).all()


def test_blocks_of_any_size_make_the_same_tensor(base: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    w = rng.standard_normal((37, 11)).astype(np.float16)
    tied = write_checkpoint(tmp_path / "wide", {"m.embed_tokens.weight": w, "m.q.weight": w}, tie_word_embeddings=False)
    a, b = rng.standard_normal((2, 11)).astype(np.float32), rng.standard_normal((37, 2)).astype(np.float32)
    factors = {"m.q.lora_A.weight": a, "m.q.lora_B.weight": b, "m.q.lora_magnitude_vector": b[:, 0].copy()}
    factors |= {"m.embed_tokens.lora_embedding_A": b.T.copy(), "m.embed_tokens.lora_embedding_B": a.T.copy()}
    factors["m.embed_tokens.lora_magnitude_vector"] = a[0].copy()
    source = open_source(tied, write_adapter(tmp_path / "adapter", factors, use_dora=True))
    for name in source.tensors:
        whole = source.tensor(name)
        for max_bytes in (1, 500, 1500):
            blocks = list(source.blocks(name, max_bytes))
            assert len(blocks) > 1 and max(len(block) for block in blocks) * 44 <= max(max_bytes, 44)
            # A product of fewer rows may be summed by another kernel; the sum and DoRA's factor round after it.
            difference = np.abs(np.concatenate(blocks) - whole).max()
            assert difference <= 3 * np.finfo(np.float32).eps * np.abs(whole).max()


def test_what_an_adapter_does_not_touch_stays_as_stored(tmp_path: Path) -> None:
    tensors = {"q.weight": W.astype(np.float16), "k.weight": W.astype(np.float16)}
    base = write_checkpoint(tmp_path / "base", tensors)
    adapter = write_adapter(tmp_path / "adapter", {"q.lora_A.weight": A, "q.lora_B.weight": B})
    source = open_source(base, adapter)
    assert source.dtype == "F16"
    assert source.tensor("k.weight").dtype == np.float16
    assert source.tensor("q.weight").dtype == np.float32


@pytest.mark.parametrize(
    ("trained_as", "stored_as", "way"),
    [("bert.layer.q", "layer.q", "removed"), ("layer.q", "bert.layer.q", "added"), ("layer.q", "layer.q", "kept")],
)
def test_one_prefix_may_differ(tmp_path: Path, trained_as: str, stored_as: str, way: str) -> None:
    base = write_checkpoint(tmp_path / "base", {f"{stored_as}.weight": W, f"{stored_as}.norm.weight": W[0].copy()})
    factors = {f"{trained_as}.lora_A.weight": A, f"{trained_as}.lora_B.weight": B}
    source = open_source(base, write_adapter(tmp_path / "adapter", factors, rank_pattern={trained_as: 2}, r=9))
    assert (source.tensor(f"{stored_as}.weight") == W + 2 * B @ A).all()


def test_an_ambiguous_prefix_is_refused(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", {"encoder.layer.q.weight": W, "decoder.layer.q.weight": W})
    with pytest.raises(ModelError, match=r"several ways to name them: with 'decoder\.' .* and with 'encoder\.'"):
        open_source(base, write_adapter(tmp_path / "adapter", LORA))


def test_a_bert_trained_with_its_head_fits_the_encoder_alone(tmp_path: Path) -> None:
    from transformers import AutoModelForMaskedLM

    pytest.importorskip("peft")
    base = save_bert(tmp_path / "base")
    with_head = tmp_path / "with-head"
    shutil.copytree(base, with_head)
    AutoModelForMaskedLM.from_pretrained(base).save_pretrained(with_head)
    adapter = save_adapter(with_head, tmp_path / "adapter", target_modules=["query"])
    alone, whole = open_source(base, adapter), open_source(with_head, adapter)
    name = "encoder.layer.0.attention.self.query.weight"
    assert (alone.tensor(name) == whole.tensor(f"bert.{name}")).all()
    assert (alone.tensor(name) != open_source(base).tensor(name)).any()


# What is wrong -> tensors, settings, what the message says.
BAD: dict[str, tuple[dict[str, np.ndarray], dict[str, Any], str]] = {
    "a module the base lacks": (
        {"layer.z.lora_A.weight": A, "layer.z.lora_B.weight": B},
        {},
        r"module 'layer\.z', which the base does not have",
    ),
    "a base of another width": (
        {"layer.q.lora_A.weight": np.ones((2, 5), np.float32), "layer.q.lora_B.weight": B},
        {},
        r"'base_model\.model\.layer\.q\.lora_A\.weight' of shape \(2, 3\) .*found shape \(2, 5\)",
    ),
    "a base of another height": (
        {"layer.q.lora_A.weight": A, "layer.q.lora_B.weight": np.ones((5, 2), np.float32)},
        {},
        r"lora_B\.weight' of shape \(4, 2\) for 'layer\.q\.weight' of shape \(4, 3\), found shape \(5, 2\)",
    ),
    "a rank that disagrees": (LORA, {"r": 3}, r"lora_A of shape \(3, n\).*found \(2, 3\) and \(4, 2\)"),
    "A alone": ({"layer.q.lora_A.weight": A}, {}, "lora_A and lora_B of module 'layer.q'.*alone"),
    "B alone": ({"layer.q.lora_B.weight": B}, {}, "lora_A and lora_B of module 'layer.q'.*alone"),
    "a leftover tensor": (LORA | {"layer.q.lora_C.weight": A}, {}, r"'layer\.q\.lora_C'"),
    "an adapter's name in its tensors": (
        {"layer.q.lora_A.default.weight": A, "layer.q.lora_B.default.weight": B},
        {},
        r"lora_A\.default",
    ),
    "a head that is not converted": (LORA | {"score.weight": W}, {}, "'score', which the base does not have"),
    "a saved norm of another width": (
        LORA | {"layer.norm.weight": np.ones(4, np.float32)},
        {},
        r"of shape \(3,\) for 'layer\.norm\.weight' of shape \(3,\), found shape \(4,\)",
    ),
    "an embedding of another width": (
        LORA | {"model.embed_tokens.weight": np.ones((6, 4), np.float32)},
        {},
        r"of shape \(6, 3\).*found shape \(6, 4\)",
    ),
    "one of two embeddings resized": (
        LORA | {"model.embed_tokens.weight": np.ones((8, 3), np.float32)},
        {},
        r"as many rows in 'lm_head\.weight' as in 'model\.embed_tokens\.weight', 8, found 6",
    ),
    "a saved module that is not there": (
        LORA,
        {"modules_to_save": ["norm"]},
        r"'layer\.norm\.weight'.*modules_to_save",
    ),
    "DoRA without magnitudes": (LORA, {"use_dora": True}, "magnitude of module 'layer.q'"),
    "magnitudes without DoRA": (LORA | {"layer.q.lora_magnitude_vector": W[:, 0].copy()}, {}, "where use_dora is on"),
    "a magnitude of another length": (
        LORA | {"layer.q.lora_magnitude_vector": W[0].copy()},
        {"use_dora": True},
        r"lora_magnitude_vector' of shape \(4,\)",
    ),
    "a bias of LoRA without the setting": (LORA | {"layer.q.lora_B.bias": W[:, 0].copy()}, {}, "where lora_bias is on"),
    "a bias of LoRA where the base has none": (
        {"lm_head.lora_A.weight": A, "lm_head.lora_B.weight": np.ones((6, 2), np.float32)}
        | {"lm_head.lora_B.bias": np.ones(6, np.float32)},
        {"lora_bias": True},
        r"expected a bias 'lm_head\.bias' .*train with lora_bias=False",
    ),
    "a bias where the base has none": (LORA | {"lm_head.bias": W[0].copy()}, {}, r"no 'lm_head\.bias'"),
    "two weights for one module": (
        LORA | {"lm_head.weight": W, "lm_head.base_layer.weight": W},
        {},
        "one weight for module 'lm_head'",
    ),
    "a LoRA of a norm": (
        {"layer.norm.lora_A.weight": A, "layer.norm.lora_B.weight": B},
        {},
        r"a matrix for .*'layer\.norm\.weight' of shape \(3,\)",
    ),
    "tokens beyond the vocabulary": (
        {"model.embed_tokens.token_adapter.trainable_tokens_delta": W[:2].copy()},
        {"trainable_token_indices": [1, 6]},
        "trainable_token_indices of module 'model.embed_tokens', each once and below 6",
    ),
    "tokens twice": (
        {"model.embed_tokens.token_adapter.trainable_tokens_delta": W[:2].copy()},
        {"trainable_token_indices": [1, 1]},
        "each once",
    ),
    "fewer tokens than indices": (
        {"model.embed_tokens.token_adapter.trainable_tokens_delta": W[:2].copy()},
        {"trainable_token_indices": [1, 2, 3]},
        r"of shape \(3, 3\)",
    ),
    "no tensors": ({}, {}, "expected tensors"),
    "another kind of adapter": (LORA, {"peft_type": "LOHA"}, "peft_type LORA .*found 'LOHA'"),
    "activated LoRA": (LORA, {"alora_invocation_tokens": [1, 2]}, "no alora_invocation_tokens"),
    "stacked layers": (LORA, {"layer_replication": [[0, 1]]}, "no layer_replication"),
    "transposed matrices": (LORA, {"fan_in_fan_out": True}, "no fan_in_fan_out"),
    "parameters as targets": (LORA, {"target_parameters": ["experts"]}, "no target_parameters"),
    "QALoRA": (LORA, {"use_qalora": True}, "no use_qalora"),
    "a start that changed the base": (LORA, {"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4"),
    "a setting of the future": (LORA, {"use_wings": True}, "use_wings=True"),
    "a rank of zero": (LORA, {"r": 0}, "a number above 0 as r"),
    "a rank in words": (LORA, {"r": "two"}, "a number above 0 as r"),
    "an odd rank_pattern": (LORA, {"rank_pattern": {"q": "x"}}, "rank_pattern"),
    "a rank_pattern that is a list": (LORA, {"rank_pattern": []}, "rank_pattern"),
    "a broken pattern": (LORA, {"alpha_pattern": {"(q": 3}}, r"regular expressions in alpha_pattern.*'\(q'"),
    "an odd modules_to_save": (LORA, {"modules_to_save": "norm"}, "modules_to_save"),
    "integers": (
        {"layer.q.lora_A.weight": A.astype(np.int64), "layer.q.lora_B.weight": B},
        {},
        r"lora_A\.weight' .*found I64",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_an_adapter_that_cannot_be_merged_is_refused_by_name(base: Path, tmp_path: Path, case: str) -> None:
    tensors, settings, message = BAD[case]
    adapter = write_adapter(tmp_path / "adapter", tensors, **settings)
    with pytest.raises(ModelError, match=message) as caught:
        source = open_source(base, adapter)
        for name in source.tensors:
            source.tensor(name)
    assert str(adapter) in str(caught.value)


@pytest.mark.parametrize("name", ["lora_A.weight", "lora_B.weight", "lora_magnitude_vector", "lora_B.bias"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_in_an_adapter_is_refused_naming_its_tensor(base: Path, tmp_path: Path, name: str, value: float) -> None:
    tensors = {key: tensor.copy() for key, tensor in LORA.items()}
    tensors["layer.q.lora_magnitude_vector" if "mag" in name else "layer.q.lora_B.bias"] = np.ones(4, np.float32)
    tensors[f"layer.q.{name}"].flat[-1] = value
    settings = {"use_dora": True} if "mag" in name else {"lora_bias": True}
    source = open_source(base, write_adapter(tmp_path / "adapter", tensors, **settings))
    with pytest.raises(ModelError, match=re.escape(f"'base_model.model.layer.q.{name}'")):
        source.tensor("layer.q.bias" if "bias" in name else "layer.q.weight")


def test_the_tensor_that_brings_nan_into_a_merged_one_is_told(base: Path, tmp_path: Path) -> None:
    broken = write_checkpoint(tmp_path / "broken", {"layer.q.weight": np.where(W == 5, np.nan, W), "k.weight": W})
    source = open_source(broken, write_adapter(tmp_path / "adapter", LORA))
    assert np.isnan(source.tensor("layer.q.weight")).any()
    assert source.origin("layer.q.weight") == f"tensor 'layer.q.weight' of {broken / 'model.safetensors'}"
    saved = {"layer.q.weight": np.full_like(W, np.inf)}
    source = open_source(base, write_adapter(tmp_path / "saved", saved))
    assert "'base_model.model.layer.q.weight'" in source.origin("layer.q.weight")
    huge = {"layer.q.lora_A.weight": A * np.float32(1e38), "layer.q.lora_B.weight": B}
    source = open_source(base, write_adapter(tmp_path / "huge", huge))
    assert np.isinf(source.tensor("layer.q.weight")).any()
    assert "'layer.q.weight', merged of tensor" in source.origin("layer.q.weight")


def test_dora_over_a_row_of_zeros_is_refused(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", {"layer.q.weight": np.zeros_like(W)})
    tensors = {
        "layer.q.lora_A.weight": A,
        "layer.q.lora_B.weight": 0 * B,
        "layer.q.lora_magnitude_vector": B[:, 0].copy(),
    }
    with pytest.raises(ModelError, match="rows that are not all zero in tensor 'layer.q.weight'"):
        open_source(base, write_adapter(tmp_path / "adapter", tensors, use_dora=True)).tensor("layer.q.weight")


@pytest.mark.parametrize("of_embedding", [False, True])
def test_dora_divides_by_norms_whose_squares_exceed_float32(tmp_path: Path, of_embedding: bool) -> None:
    w = W + np.float32(1e25)
    base = write_checkpoint(tmp_path / "base", {"q.weight": w.T.copy() if of_embedding else w})
    kind = "lora_embedding_{}" if of_embedding else "lora_{}.weight"
    factors = {f"q.{kind.format('A')}": A, f"q.{kind.format('B')}": B}
    factors["q.lora_magnitude_vector"] = np.ones(4, np.float32)
    found = open_source(base, write_adapter(tmp_path / "adapter", factors, use_dora=True)).tensor("q.weight")
    np.testing.assert_allclose(found.T if of_embedding else found, np.full((4, 3), 3**-0.5), rtol=1e-6)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "adapter_config.json").unlink(), "expected adapter_config.json"),
        (lambda folder: (folder / "adapter_config.json").write_text("{"), "expected JSON"),
        (lambda folder: (folder / "adapter_config.json").write_text("[]"), "expected a JSON object"),
        (lambda folder: (folder / "adapter_config.json").write_text('{"r": 2, "r": 3}'), "'r' twice"),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), "expected adapter_model.safetensors"),
        (
            lambda folder: (folder / "adapter_model.safetensors").write_bytes(
                (folder / "adapter_model.safetensors").read_bytes()[:-1]
            ),
            "not a whole safetensors file",
        ),
    ],
)
def test_an_adapter_that_is_not_whole_is_refused(
    base: Path, tmp_path: Path, spoil: Callable[[Path], Any], message: str
) -> None:
    adapter = write_adapter(tmp_path / "adapter", LORA)
    spoil(adapter)
    with pytest.raises(ModelError, match=message) as caught:
        open_source(base, adapter)
    assert str(adapter) in str(caught.value)


def test_an_adapter_in_a_folder_of_its_name_is_pointed_to(base: Path, tmp_path: Path) -> None:
    write_adapter(tmp_path / "adapters" / "default", LORA)
    with pytest.raises(ModelError, match=r"it is in \['default'\]"):
        open_source(base, tmp_path / "adapters")


def test_a_checkpoint_is_no_adapter_and_an_adapter_no_checkpoint(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="found a checkpoint"):
        open_source(base, base)
    with pytest.raises(ModelError, match="found an adapter; .* --adapter"):
        open_source(write_adapter(tmp_path / "adapter", LORA))


def test_a_pickled_adapter_is_refused_with_the_command_that_converts_it(base: Path, tmp_path: Path) -> None:
    import torch

    adapter = write_adapter(tmp_path / "an adapter", LORA)
    (adapter / "adapter_model.safetensors").unlink()
    tensors = {f"base_model.model.{name}": torch.from_numpy(tensor) for name, tensor in LORA.items()}
    torch.save(tensors, adapter / "adapter_model.bin")
    with pytest.raises(ModelError, match="can run code when opened") as caught:
        open_source(base, adapter)
    command = str(caught.value).partition("installed: ")[2]
    subprocess.run(["bash", "-c", command.replace("python", sys.executable, 1)], check=True)
    assert (open_source(base, adapter).tensor("layer.q.weight") == W + 2 * B @ A).all()


def test_an_adapters_own_tokenizer_is_taken_and_its_files_are_listed(base: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", LORA)
    assert open_source(base, adapter).tokenizer_directory == base
    (adapter / "tokenizer.json").write_text("{}")
    source = open_source(base, adapter)
    assert source.tokenizer_directory == adapter and source.directory == base
    names = [(path.parent.name, path.name) for path in source.files()]
    assert names == [
        *(("base", "config.json"), ("base", "model.safetensors")),
        *(("adapter", "adapter_config.json"), ("adapter", "adapter_model.safetensors"), ("adapter", "tokenizer.json")),
    ]


def test_settings_that_change_nothing_are_taken(base: Path, tmp_path: Path) -> None:
    settings = {"lora_dropout": 0.1, "inference_mode": False, "use_wings": False, "wing_config": None, "wings": {}}
    source = open_source(base, write_adapter(tmp_path / "adapter", LORA, **settings))
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["lora_dropout"] == 0.1
    assert (source.tensor("layer.q.weight") == W + 2 * B @ A).all()


def test_trained_tokens_are_put_in_place_whatever_the_blocks(base: Path, tmp_path: Path) -> None:
    rows = np.array([[5, 5, 5], [7, 7, 7], [9, 9, 9]], np.float32)
    tensors = {"lm_head.token_adapter.trainable_tokens_delta": rows}
    source = open_source(base, write_adapter(tmp_path / "adapter", tensors, trainable_token_indices=[4, 0, 5]))
    want = [[7] * 3, [1] * 3, [1] * 3, [1] * 3, [5] * 3, [9] * 3]
    for max_bytes in (1, 100, 1 << 20):
        assert np.concatenate(list(source.blocks("lm_head.weight", max_bytes))).tolist() == want


def test_tied_embeddings_saved_with_unequal_values_are_refused(tmp_path: Path) -> None:
    embedding = np.ones((6, 3), np.float32)
    base = write_checkpoint(tmp_path / "base", {"model.embed_tokens.weight": embedding}, tie_word_embeddings=True)
    tensors = {"model.embed_tokens.weight": embedding, "lm_head.weight": 2 * embedding}
    with pytest.raises(ModelError, match="equal values for the two tied embeddings.* in 'base_model.model.model.embed"):
        open_source(base, write_adapter(tmp_path / "adapter", tensors))
    tensors = {"model.embed_tokens.token_adapter.trainable_tokens_delta": W[:1].copy(), "lm_head.lora_A.weight": A}
    tensors["lm_head.lora_B.weight"] = np.ones((6, 2), np.float32)
    with pytest.raises(ModelError, match="this combination is not merged"):
        open_source(base, write_adapter(tmp_path / "both", tensors, trainable_token_indices=[1]))
