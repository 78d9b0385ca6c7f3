"""An adapter is merged as peft merges it, block by block, whatever it trained; one that does not fit is refused."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapters import attach, load_base, merged_by_peft, model_of, save_adapter, write_adapter, write_checkpoint
from checkpoints import save_bert, save_decoder, save_llama, train_gemma, train_llama2, train_qwen2
from hypothesis import given, settings
from hypothesis import strategies as st

from reclm_lite.convert.merge import open_source
from reclm_lite.convert.parity.logits import sequence_logits
from reclm_lite.convert.parity.reference import TransformersReference
from reclm_lite.convert.write import write_gguf
from reclm_lite.runtime import load_model

pytest.importorskip("peft")

# Products are summed in another order than torch's, and nothing else differs: so many units in the last place of a
# tensor's largest value.
MAX_ULPS = 4

ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LLAMA: dict[str, dict[str, Any]] = {
    "every linear layer": {"target_modules": ALL_LINEAR},
    "rsLoRA": {"target_modules": ["q_proj", "v_proj"], "use_rslora": True, "r": 7, "lora_alpha": 5},
    "DoRA": {"target_modules": ALL_LINEAR, "use_dora": True},
    "DoRA with rsLoRA": {"target_modules": ["k_proj"], "use_dora": True, "use_rslora": True},
    "ranks by module": {
        "target_modules": ["q_proj", "v_proj", "down_proj"],
        "rank_pattern": {"q_proj": 2, "layers.1.self_attn.v_proj": 6, "^model.layers.0.mlp.down_proj": 3},
        "alpha_pattern": {r"layers\.\d+\.self_attn\.q_proj": 3, "proj": 100, "v_proj": 5},
    },
    "some layers": {"target_modules": ["q_proj"], "layers_to_transform": [1]},
    "bias of LoRA": {"target_modules": ["q_proj", "k_proj"], "lora_bias": True},
    "every bias": {"target_modules": ["q_proj"], "bias": "all"},
    "biases of LoRA modules": {"target_modules": ["q_proj"], "bias": "lora_only"},
    "saved norm": {"target_modules": ["q_proj"], "modules_to_save": ["input_layernorm"]},
    "saved embeddings": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    "saved MLP": {"target_modules": ["q_proj"], "modules_to_save": ["mlp"]},
    "LoRA of the head": {"target_modules": ["lm_head", "q_proj"]},
    "LoRA of the embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "DoRA of embedding and head": {"target_modules": ["embed_tokens", "lm_head"], "use_dora": True},
    "trained tokens": {"target_modules": ["q_proj"], "trainable_token_indices": [3, 399, 0]},
    "trained tokens of the head": {"target_modules": ["q_proj"], "trainable_token_indices": {"lm_head": [5, 7]}},
    "gaussian start": {"target_modules": ["q_proj"], "init_lora_weights": "gaussian"},
    "orthogonal start": {"target_modules": ["q_proj"], "init_lora_weights": "orthogonal"},
    "MiCA": {"target_modules": ["q_proj"], "init_lora_weights": "mica"},
}
RESIZED: dict[str, dict[str, Any]] = {
    "no embedding trained": {"target_modules": ["q_proj"]},
    "embeddings saved": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    "embedding saved": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "LoRA of both": {"target_modules": ["embed_tokens", "lm_head"]},
    "new tokens trained": {"target_modules": ["q_proj"], "trainable_token_indices": [401, 402]},
}
BERT: dict[str, dict[str, Any]] = {
    "attention": {"target_modules": ["query", "key", "value"]},
    "every linear layer": {"target_modules": "all-linear", "use_rslora": True},
    "embedding": {"target_modules": ["word_embeddings", "query"]},
    "DoRA": {"target_modules": ["word_embeddings", "dense"], "use_dora": True},
    "every bias": {"target_modules": ["query"], "bias": "all"},
    "saved pooler": {"target_modules": ["query"], "modules_to_save": ["pooler", "word_embeddings"]},
    "trained tokens": {"target_modules": ["query"], "trainable_token_indices": [1, 299]},
}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("llama"), tied=False, attention_bias=True)


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("tied"), tied=True)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bert(tmp_path_factory.mktemp("bert"))


def assert_merged_as_peft_merges(base: Path, adapter: Path, n_vocab: int | None = None) -> None:
    source = open_source(base, adapter)
    expected = merged_by_peft(base, adapter, n_vocab)
    # peft's tied model names the matrix that both embeddings share twice
    assert set(source.tensors) == set(expected) - (
        {"lm_head.weight"} if source.config["tie_word_embeddings"] else set()
    )
    changed = 0
    original = open_source(base)
    for name in source.tensors:
        want, got = expected[name], source.tensor(name)
        assert got.shape == want.shape == source.tensors[name].shape
        assert np.abs(got - want).max() <= MAX_ULPS * np.finfo(np.float32).eps * np.abs(want).max(), name
        if got.shape != original.tensors[name].shape or (got != original.tensor(name)).any():
            changed += 1
    assert changed


@pytest.mark.parametrize("variant", LLAMA)
def test_llama_is_merged_as_peft_merges_it(llama: Path, tmp_path: Path, variant: str) -> None:
    assert_merged_as_peft_merges(llama, save_adapter(llama, tmp_path / "adapter", **LLAMA[variant]))


@pytest.mark.parametrize("variant", BERT)
def test_bert_is_merged_as_peft_merges_it(bert: Path, tmp_path: Path, variant: str) -> None:
    assert_merged_as_peft_merges(bert, save_adapter(bert, tmp_path / "adapter", **BERT[variant]))


@pytest.mark.parametrize("variant", RESIZED)
@pytest.mark.parametrize("n_vocab", [404, 396])
def test_a_vocabulary_that_was_resized_in_training_is_resized(
    llama: Path, tmp_path: Path, variant: str, n_vocab: int
) -> None:
    chosen = RESIZED[variant]
    if n_vocab < 400 and "trainable_token_indices" in chosen:
        chosen = chosen | {"trainable_token_indices": [390]}
    adapter = save_adapter(llama, tmp_path / "adapter", n_vocab=n_vocab, **chosen)
    assert_merged_as_peft_merges(llama, adapter, n_vocab)
    assert open_source(llama, adapter).config["vocab_size"] == n_vocab


# variant -> whether the embeddings stay tied
TIED: dict[str, tuple[bool, dict[str, Any]]] = {
    "neither embedding": (True, {"target_modules": ["q_proj"]}),
    "LoRA of the embedding": (False, {"target_modules": ["q_proj", "embed_tokens"]}),
    "LoRA of the head": (False, {"target_modules": ["q_proj", "lm_head"]}),
    "LoRA of both": (False, {"target_modules": ["embed_tokens", "lm_head"]}),
    "one LoRA for both": (True, {"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True}),
    "DoRA of the embedding": (False, {"target_modules": ["embed_tokens"], "use_dora": True}),
    "DoRA of the head": (False, {"target_modules": ["lm_head"], "use_dora": True}),
    "embedding saved": (False, {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}),
    "head saved": (False, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    "both saved": (False, {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}),
    "both saved as one": (
        True,
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    ),
    "trained tokens": (True, {"target_modules": ["q_proj"], "trainable_token_indices": [3, 5]}),
    "tokens of each": (
        False,
        {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [3, 5], "lm_head": [3, 7]}},
    ),
    "the same tokens of both": (
        True,
        {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [3, 5], "lm_head": [3, 5]}},
    ),
    "tokens of the head": (False, {"target_modules": ["q_proj"], "trainable_token_indices": {"lm_head": [3, 7]}}),
}


def assert_merged_is_the_trained_model(base: Path, adapter: Path, n_vocab: int | None = None) -> None:
    """The same logits for every token. Not peft's merge: that changes tied embeddings both where one was trained."""
    import torch

    tokens = torch.arange(n_vocab or 400)[None, :250] + torch.tensor([[0], [150]])
    with torch.no_grad():
        want = attach(base, adapter, n_vocab)(tokens).logits
        got = model_of(open_source(base, adapter))(tokens).logits
    assert (got - want).abs().max() <= 1e-5 * want.abs().max()


@pytest.mark.parametrize("variant", TIED)
def test_tied_embeddings_come_out_as_they_were_trained(tied: Path, tmp_path: Path, variant: str) -> None:
    stays_tied, chosen = TIED[variant]
    adapter = save_adapter(tied, tmp_path / "adapter", **chosen)
    source = open_source(tied, adapter)
    assert source.config["tie_word_embeddings"] is stays_tied
    assert ("lm_head.weight" in source.tensors) is not stays_tied
    assert source.peft_adds_twice is (variant == "one LoRA for both")
    assert_merged_is_the_trained_model(tied, adapter)


@pytest.mark.parametrize("variant", RESIZED)
def test_tied_embeddings_grow_together(tied: Path, tmp_path: Path, variant: str) -> None:
    adapter = save_adapter(tied, tmp_path / "adapter", n_vocab=404, **RESIZED[variant])
    source = open_source(tied, adapter)
    assert source.config["vocab_size"] == 404 == source.tensors["model.embed_tokens.weight"].shape[0]
    assert source.config["tie_word_embeddings"] is (variant in ("no embedding trained", "new tokens trained"))
    assert_merged_is_the_trained_model(tied, adapter, 404)


def test_tied_embeddings_that_are_stored_twice_stay_equal(tied: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    twice = tmp_path / "base"
    shutil.copytree(tied, twice)
    tensors = load_file(twice / "model.safetensors")
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].copy()}, twice / "model.safetensors")
    adapter = save_adapter(tied, tmp_path / "adapter", target_modules=["q_proj"], trainable_token_indices=[3])
    source = open_source(twice, adapter)
    assert (source.tensor("lm_head.weight") == source.tensor("model.embed_tokens.weight")).all()
    assert (source.tensor("lm_head.weight") != tensors["model.embed_tokens.weight"]).any()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_merged_in_float32(llama: Path, tmp_path: Path, dtype: str) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    base = shutil.copytree(llama, tmp_path / "base")
    adapter = save_adapter(llama, tmp_path / "adapter", target_modules=["q_proj", "embed_tokens"], use_dora=True)
    for path in (base / "model.safetensors", adapter / "adapter_model.safetensors"):
        halves = {name: tensor.to(getattr(torch, dtype)) for name, tensor in load_file(path).items()}
        save_file(halves, path, metadata={"format": "pt"})
    assert open_source(base, adapter).dtype == {"float16": "F16", "bfloat16": "BF16"}[dtype]
    assert_merged_as_peft_merges(base, adapter)


SIZES = ((40, "rows"), (30, "columns"), (9, "rank"))


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_rounding_is_all_that_parts_a_merge_from_its_formula(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    n_rows, n_columns, rank = (data.draw(st.integers(1, most), label=label) for most, label in SIZES)
    of_embedding, rslora, dora = (data.draw(st.booleans(), label=x) for x in ("embedding", "rslora", "dora"))
    alpha = data.draw(st.floats(0.01, 100))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    w = rng.standard_normal((n_rows, n_columns)).astype(data.draw(st.sampled_from([np.float16, np.float32])))
    n_out, n_in = (n_columns, n_rows) if of_embedding else (n_rows, n_columns)
    a, b = rng.standard_normal((rank, n_in)).astype(np.float32), rng.standard_normal((n_out, rank)).astype(np.float32)
    kind = "lora_embedding_{}" if of_embedding else "lora_{}.weight"
    tensors = {f"q.{kind.format('A')}": a, f"q.{kind.format('B')}": b}
    if dora:
        tensors["q.lora_magnitude_vector"] = rng.uniform(0.5, 2, n_out).astype(np.float32)
    folder = tmp_path_factory.mktemp("any")
    base = write_checkpoint(folder / "base", {"q.weight": w})
    adapter = write_adapter(folder / "adapter", tensors, r=rank, lora_alpha=alpha, use_rslora=rslora, use_dora=dora)
    blocks = open_source(base, adapter).blocks("q.weight", data.draw(st.sampled_from([1, 300, 1 << 20])))

    exact_a, exact_b, scale = a.astype(np.float64), b.astype(np.float64), alpha / (rank**0.5 if rslora else rank)
    want, size = w + scale * _turned(exact_b @ exact_a, of_embedding), np.abs(w).astype(np.float64)
    size += scale * _turned(np.abs(exact_b) @ np.abs(exact_a), of_embedding)
    if dora:
        axis = 0 if of_embedding else 1
        magnitude = np.expand_dims(tensors["q.lora_magnitude_vector"].astype(np.float64), axis)
        norm = np.sqrt((want**2).sum(axis=axis, keepdims=True))
        # The norm's own error is that of the sums in it, relative to it.
        worst = (size**2).sum(axis=axis, keepdims=True) ** 0.5
        want, size = magnitude / norm * want, magnitude / norm * (size + np.abs(want) * worst / norm)
    unit = np.finfo(np.float32).eps / 2
    assert (np.abs(np.concatenate(list(blocks)) - want) <= (rank + 6) * unit * size).all()


def _turned(product: np.ndarray, of_embedding: bool) -> np.ndarray:
    return product.T if of_embedding else product


@pytest.mark.parametrize("variant", ["LoRA of the embedding", "one LoRA for both", "tokens of each", "head saved"])
def test_what_an_export_is_held_against_is_the_trained_model(tied: Path, tmp_path: Path, variant: str) -> None:
    import torch

    adapter = save_adapter(tied, tmp_path / "adapter", **TIED[variant][1])
    tokens = list(range(0, 400, 9))
    with torch.no_grad():
        want = attach(tied, adapter)(torch.tensor([tokens])).logits[0].numpy()
    with TransformersReference(open_source(tied, adapter), adapter, encoder=False, n_threads=1) as reference:
        ((_, got),) = reference.sequence_logits([tokens], [np.arange(len(tokens))])
    assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max()


RICH = {
    "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "down_proj"],
    "modules_to_save": ["input_layernorm", "norm"],
    "rank_pattern": {"v_proj": 2},
    "use_rslora": True,
}
# Gemma's feed-forward layers go through llama.cpp's float16 table of GELU: measured up to 6e-4, the others 2.6e-6.
FAMILIES = {
    "Mistral": (train_llama2, 2e-5),
    "Qwen2": (train_qwen2, 2e-5),
    "Qwen3": (train_qwen2, 2e-5),
    "Gemma2": (train_gemma, 2e-3),
    "Gemma3Text": (train_gemma, 2e-3),
}


@pytest.mark.parametrize("use_dora", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_file_of_a_merged_adapter_answers_as_the_model_with_its_adapter_attached(
    tmp_path: Path, family: str, use_dora: bool
) -> None:
    import torch

    train, tolerance = FAMILIES[family]
    base = save_decoder(tmp_path / "base", family, train=train)
    adapter = save_adapter(base, tmp_path / "adapter", **RICH, use_dora=use_dora)
    assert_merged_as_peft_merges(base, adapter)
    tokens = list(range(5, 16))  # shorter than every window
    with torch.no_grad():
        want, before = (m(torch.tensor([tokens])).logits[0].numpy() for m in (attach(base, adapter), load_base(base)))
    write_gguf(open_source(base, adapter), tmp_path / "model.gguf", "f32")
    with load_model(tmp_path / "model.gguf") as model:
        for _, got in sequence_logits(model, [tokens], [np.arange(len(tokens))], n_threads=1):
            assert np.abs(got - want).max() <= tolerance * np.abs(want).max()
    assert np.abs(before - want).max() > 0.1 * np.abs(want).max()
