"""Each family of models computes in llama.cpp what it computes in transformers, or is refused by name.

The random checkpoints have weights as large as trained ones, windows of 16 tokens and texts of over a hundred.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import CORPUS, save_bert, save_decoder, shard, train_bpe, train_gemma, train_llama2, train_qwen2

from reclm_lite.convert import families, parity
from reclm_lite.convert.families import _decoder, _rope, family_of
from reclm_lite.convert.merge import open_source
from reclm_lite.convert.parity.logits import embeddings
from reclm_lite.convert.write import write_gguf
from reclm_lite.errors import ModelError
from reclm_lite.runtime import check_gguf, load_model

TEXTS = [" ".join(CORPUS[:3]), " ".join(CORPUS[3:6])]
DIRECTORY = Path("checkpoint")

LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
GEMMA3_LINEAR = {
    "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
OWN_TURN = ["full_attention", "sliding_attention"] * 3 + ["full_attention"]
UNTIED = {"tie_word_embeddings": False}
TIED = {"tie_word_embeddings": True}

# What differs from a family's tiny checkpoint. Worst measured: cosine 1 - 4e-11, difference 4e-5 of logits up to 30.
DECODERS: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "llama": ("Llama", train_llama2, {}),
    "llama linear": ("Llama", train_bpe, {"rope_parameters": LINEAR}),
    "llama llama3, biases": ("Llama", train_bpe, {"rope_parameters": LLAMA3, "attention_bias": True, "mlp_bias": True}),
    "llama yarn": ("Llama", train_bpe, {"rope_parameters": YARN}),
    "llama yarn, attention_factor": ("Llama", train_bpe, {"rope_parameters": YARN | {"attention_factor": 1.3}}),
    "llama yarn, mscale": ("Llama", train_bpe, {"rope_parameters": YARN | {"mscale": 1.0, "mscale_all_dim": 0.5}}),
    "mistral, head_dim": ("Mistral", train_llama2, {"head_dim": 32}),
    "qwen2": ("Qwen2", train_qwen2, {}),
    "qwen2 tied yarn": ("Qwen2", train_qwen2, TIED | {"rope_parameters": YARN}),
    "qwen3": ("Qwen3", train_qwen2, {}),
    "qwen3 tied yarn": ("Qwen3", train_qwen2, TIED | {"rope_parameters": YARN}),
    "gemma2": ("Gemma2", train_gemma, {}),
    "gemma2 base, own turn": (
        "Gemma2",
        train_gemma,
        {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}, "layer_types": OWN_TURN[:3]},
    ),
    "gemma3": ("Gemma3Text", train_gemma, {}),
    "gemma3 linear, untied, cap": (
        "Gemma3Text",
        train_gemma,
        UNTIED | {"rope_parameters": GEMMA3_LINEAR, "final_logit_softcapping": 20.0},
    ),
    "gemma3 own turn": ("Gemma3Text", train_gemma, {"layer_types": OWN_TURN}),
    "gemma3 no window": ("Gemma3Text", train_gemma, {"layer_types": ["full_attention"] * 7}),
    "gemma3 all windows": ("Gemma3Text", train_gemma, {"layer_types": ["sliding_attention"] * 7}),
}


def steep(model: Any) -> None:
    """Gates so steep that GELU is the identity or zero: llama.cpp looks it up in a float16 table in between."""
    for name, parameter in model.named_parameters():
        if "gate_proj" in name:
            parameter.data *= 1000


def agreement(checkpoint: Path, gguf: Path) -> dict[str, Any]:
    write_gguf(open_source(checkpoint), gguf, "f32")
    return parity.logit_parity(gguf, checkpoint, TEXTS, n_threads=1)


@pytest.mark.parametrize("name", DECODERS)
def test_logits_are_those_of_transformers_beyond_the_window(tmp_path: Path, name: str) -> None:
    pytest.importorskip("transformers")
    family, train, settings = DECODERS[name]
    change = steep if family.startswith("Gemma") else None
    checkpoint = save_decoder(tmp_path / "checkpoint", family, train=train, change=change, **settings)
    found = agreement(checkpoint, tmp_path / "model.gguf")
    assert found["n_positions"] > 200
    assert found["min_cosine"] > 1 - 1e-9
    assert found["max_abs_difference"] < 3e-4
    assert found["top1_agreement"] == 1.0


@pytest.mark.parametrize("family", ["Gemma2", "Gemma3Text"])
def test_gemma_differs_by_llama_cpps_float16_table_of_gelu_only(tmp_path: Path, family: str) -> None:
    pytest.importorskip("transformers")
    checkpoint = save_decoder(tmp_path / "checkpoint", family, train=train_gemma)
    found = agreement(checkpoint, tmp_path / "model.gguf")
    assert found["min_cosine"] > 1 - 1e-6  # measured 1 - 2.3e-7; 1 - 2e-11 where the table is not used (above)
    assert found["top1_agreement"] > 0.98


@pytest.mark.parametrize(
    ("family", "train", "edit"),
    [
        ("Gemma2", train_gemma, {"sliding_window": 4096}),
        ("Gemma2", train_gemma, {"attn_logit_softcapping": 10.0}),
        ("Gemma3Text", train_gemma, {"layer_types": OWN_TURN}),
        ("Gemma3Text", train_gemma, {"rope_parameters": GEMMA3_LINEAR}),
        ("Qwen3", train_qwen2, {"rope_parameters": YARN}),
        ("Llama", train_bpe, {"rope_parameters": LINEAR}),
    ],
)
def test_a_setting_said_otherwise_shows_in_the_logits(tmp_path: Path, family: str, train: Any, edit: dict) -> None:
    pytest.importorskip("transformers")
    checkpoint = save_decoder(tmp_path / "checkpoint", family, train=train)
    source = open_source(checkpoint)
    source.config.update(edit)
    write_gguf(source, tmp_path / "model.gguf", "f32")
    found = parity.logit_parity(tmp_path / "model.gguf", checkpoint, TEXTS, n_threads=1)
    assert found["min_cosine"] < 0.999


@pytest.mark.parametrize(
    ("family", "train", "settings"),
    [
        ("Mistral", train_llama2, {"sliding_window": 16}),
        ("Qwen2", train_qwen2, {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}),
        ("Qwen3", train_qwen2, {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}),
    ],
)
def test_a_window_that_llama_cpp_lacks_ends_the_context(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    family: str,
    train: Any,
    settings: dict[str, Any],
) -> None:
    pytest.importorskip("transformers")
    checkpoint = save_decoder(tmp_path / "checkpoint", family, train=train, **settings)
    with caplog.at_level("WARNING"):
        found = agreement(checkpoint, tmp_path / "model.gguf")
    assert "limited to 16 tokens, not 256" in caplog.text
    with load_model(tmp_path / "model.gguf") as model:
        assert model.n_ctx_train == 16
    assert found["n_positions"] == 32
    assert found["min_cosine"] > 1 - 1e-9
    # and the limit is needed: with the whole context the same file would answer otherwise
    monkeypatch.setattr(_decoder, "within_window", lambda n_ctx, window: n_ctx)
    assert agreement(checkpoint, tmp_path / "longer.gguf")["min_cosine"] < 0.999


def test_bert_vectors_are_those_of_transformers(tmp_path: Path) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    checkpoint = save_bert(tmp_path / "checkpoint")
    write_gguf(open_source(checkpoint), tmp_path / "model.gguf", "f32")
    reference = transformers.BertModel.from_pretrained(checkpoint).eval()
    with load_model(tmp_path / "model.gguf") as model, torch.no_grad():
        sequences = [model.tokenize(text, add_special=True)[:64] for text in CORPUS[:6]]
        found = embeddings(model, sequences, n_threads=1)
        hidden = [reference(torch.tensor([tokens])).last_hidden_state[0].mean(0).numpy() for tokens in sequences]
    assert parity.cosines(np.stack(hidden), found).min() > 1 - 1e-6  # measured 1 - 4e-8, of GELU (above)


def test_sharded_and_whole_checkpoints_give_the_same_file(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    save_decoder(tmp_path / "whole", "Qwen3", train=train_qwen2)
    shard(save_decoder(tmp_path / "sharded", "Qwen3", train=train_qwen2), 3)
    for name in ("whole", "sharded"):
        write_gguf(open_source(tmp_path / name), tmp_path / f"{name}.gguf", "f16", name="m")
    assert (tmp_path / "whole.gguf").read_bytes() == (tmp_path / "sharded.gguf").read_bytes()


def test_gemma_norms_of_float16_checkpoints_are_added_to_one_in_float32(tmp_path: Path) -> None:
    # llama.cpp's converter adds in float16, which rounds them; transformers computes 1 + weight in float32
    pytest.importorskip("transformers")
    from gguf import GGUFReader

    checkpoint = save_decoder(tmp_path / "checkpoint", "Gemma2", train=train_gemma, dtype="float16")
    source = open_source(checkpoint)
    write_gguf(source, tmp_path / "model.gguf", "f16")
    written = {tensor.name: tensor.data for tensor in GGUFReader(tmp_path / "model.gguf").tensors}
    stored = source.tensor("model.norm.weight")
    assert stored.dtype == np.float16
    np.testing.assert_array_equal(written["output_norm.weight"], np.float32(1) + stored.astype(np.float32))


def test_a_stored_copy_of_tied_embeddings_is_left_out_of_gemma2_and_written_for_the_others(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from safetensors.numpy import load_file, save_file

    for family, train in (("Gemma2", train_gemma), ("Gemma3Text", train_gemma), ("Llama", train_bpe)):
        checkpoint = save_decoder(tmp_path / family, family, train=train, **TIED)
        tensors = load_file(checkpoint / "model.safetensors")
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
        save_file(tensors, checkpoint / "model.safetensors")
        write_gguf(open_source(checkpoint), tmp_path / f"{family}.gguf", "f16")
        names = {tensor.name for tensor in check_gguf(tmp_path / f"{family}.gguf").tensors}
        assert ("output.weight" in names) is (family != "Gemma2")
        load_model(tmp_path / f"{family}.gguf").close()


def test_rows_of_a_head_go_from_halves_to_pairs() -> None:
    rows = np.arange(8)[:, None] * np.ones((1, 3))  # two heads of four rows
    np.testing.assert_array_equal(_decoder.pairs_from_halves(2)(rows)[:, 0], [0, 2, 1, 3, 4, 6, 5, 7])


# A config.json per architecture, as small as it may be: what is absent is the family's default.
SMALL = {
    "vocab_size": 400,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
}


def configured(architecture: str, **settings: Any) -> dict[str, Any]:
    own = {"num_key_value_heads": 2}
    if architecture.startswith("Gemma"):
        own |= {"head_dim": 256, "sliding_window": 16}
    return {"architectures": [architecture]} | SMALL | own | settings


def metadata(config: dict[str, Any]) -> dict[str, Any]:
    family = family_of(config)
    family.renames(config, set())
    family.extra_tensors(config)
    return family.hyperparameters(config, DIRECTORY)


@pytest.mark.parametrize("model", ["Llama", "Mistral", "Qwen2", "Qwen3"])
def test_both_layouts_of_rope_settings_mean_the_same(model: str) -> None:
    architecture = f"{model}ForCausalLM"
    yarn = {"factor": 4.0, "original_max_position_embeddings": 64}
    old = configured(architecture, rope_theta=5e5, rope_scaling={"type": "yarn"} | yarn)
    new = configured(architecture, rope_parameters={"rope_type": "yarn", "rope_theta": 5e5} | yarn)
    assert metadata(old) == metadata(new)
    assert metadata(new)["rope.scaling.original_context_length"] == 64
    assert metadata(configured(architecture, rope_theta=5e5))["rope.freq_base"] == 5e5
    assert metadata(configured(architecture, rope_scaling=None))["rope.freq_base"] == 10000.0


def test_gemma3s_older_layout_of_rope_and_windows_means_the_same() -> None:
    scaling = {"rope_type": "linear", "factor": 8.0}
    older = {"rope_theta": 1e6, "rope_local_base_freq": 1e4, "rope_scaling": scaling, "sliding_window_pattern": 6}
    found = metadata(configured("Gemma3ForCausalLM", **older))
    assert found == metadata(configured("Gemma3ForCausalLM", rope_parameters=GEMMA3_LINEAR))
    assert (found["rope.freq_base"], found["rope.freq_base_swa"], found["rope.scaling.factor"]) == (1e6, 1e4, 8.0)
    assert metadata(configured("Gemma3ForCausalLM"))["rope.freq_base_swa"] == 1e4
    every_third = metadata(configured("Gemma3ForCausalLM", sliding_window_pattern=3))
    assert every_third["attention.sliding_window_pattern"] == [True, True, False] * 2


def test_the_largest_gemmas_scale_scores_as_llama_cpp_does() -> None:
    sizes = {"hidden_size": 4608, "num_attention_heads": 32, "num_hidden_layers": 46, "head_dim": 128}
    assert metadata(configured("Gemma2ForCausalLM", **sizes, query_pre_attn_scalar=144))["block_count"] == 46
    with pytest.raises(ModelError, match="query_pre_attn_scalar 144"):
        metadata(configured("Gemma2ForCausalLM", **sizes, query_pre_attn_scalar=128))


def test_settings_that_say_nothing_new_are_accepted() -> None:
    neutral = {"partial_rotary_factor": 1.0, "quantization_config": None, "is_causal": True, "num_experts": 0}
    harmless = {"attention_dropout": 0.1, "pretraining_tp": 2, "use_cache": False, "torch_dtype": "bfloat16"}
    assert metadata(configured("LlamaForCausalLM", **neutral, **harmless))["block_count"] == 6
    unused = {"use_sliding_window": False, "sliding_window": 16, "max_window_layers": 1}
    assert metadata(configured("Qwen2ForCausalLM", **unused))["context_length"] == 256
    wide = {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 6}  # no layer is so high up
    assert metadata(configured("Qwen3ForCausalLM", **wide))["context_length"] == 256
    assert metadata(configured("MistralForCausalLM", max_position_embeddings=32768))["context_length"] == 4096
    no_window = configured("MistralForCausalLM", max_position_embeddings=32768, sliding_window=None)
    assert metadata(no_window)["context_length"] == 32768


@pytest.mark.parametrize("key", sorted(families._NEUTRAL))
def test_a_setting_of_another_architecture_is_refused(key: str) -> None:
    with pytest.raises(ModelError, match=rf"expected {key} .* found"):
        family_of(configured("LlamaForCausalLM", **{key: 0.37}))


def nested(rope: dict[str, Any]) -> dict[str, Any]:
    return {"full_attention": rope, "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}


REFUSED = [
    ("LlamaForCausalLM", {"hidden_act": "gelu"}, "hidden_act"),
    ("LlamaForCausalLM", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type"),
    ("LlamaForCausalLM", {"rope_scaling": {"type": "longrope", "factor": 2.0}}, "rope_type"),
    ("LlamaForCausalLM", {"rope_parameters": YARN | {"beta_fast": 16}}, "beta_fast"),
    ("LlamaForCausalLM", {"rope_parameters": YARN | {"beta_slow": 2}}, "beta_slow"),
    ("LlamaForCausalLM", {"rope_parameters": YARN | {"truncate": False}}, "truncate"),
    ("LlamaForCausalLM", {"rope_parameters": YARN | {"attn_factor": 1.2}}, r"found \['attn_factor'\]"),
    ("LlamaForCausalLM", {"rope_parameters": {"rope_type": "linear"}}, "factor"),
    ("LlamaForCausalLM", {"rope_parameters": LINEAR | {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
    ("LlamaForCausalLM", {"hidden_size": None}, "expected hidden_size in config.json, found none"),
    ("LlamaForCausalLM", {"num_attention_heads": 0}, "above 0 as num_attention_heads"),
    ("LlamaForCausalLM", {"num_hidden_layers": "six"}, "above 0 and up to 512 as num_hidden_layers"),
    ("MistralForCausalLM", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type"),
    ("Qwen2ForCausalLM", {"rope_parameters": LLAMA3}, "rope_type"),
    ("Qwen2ForCausalLM", {"head_dim": 32}, "hidden_size 64"),
    ("Qwen2ForCausalLM", {"rope_parameters": nested({"rope_type": "default"})}, "full_attention"),
    ("Qwen3ForCausalLM", {"attention_bias": True}, "attention_bias"),
    ("Qwen3ForCausalLM", {"rope_parameters": LLAMA3}, "rope_type"),
    ("Gemma2ForCausalLM", {"hidden_activation": "gelu"}, "hidden_activation"),
    ("Gemma2ForCausalLM", {"attention_bias": True}, "attention_bias"),
    ("Gemma2ForCausalLM", {"query_pre_attn_scalar": 224}, "query_pre_attn_scalar"),
    ("Gemma2ForCausalLM", {"attn_logit_softcapping": None}, "attn_logit_softcapping"),
    ("Gemma2ForCausalLM", {"final_logit_softcapping": None}, "final_logit_softcapping"),
    ("Gemma2ForCausalLM", UNTIED, "tied embeddings .*peft: ensure_weight_tying=True"),
    ("Gemma2ForCausalLM", {"rope_parameters": LINEAR}, "rope_type"),
    ("Gemma2ForCausalLM", {"sliding_window": None}, "sliding_window"),
    ("Gemma2ForCausalLM", {"layer_types": ["full_attention"] * 6}, "layer_types"),
    ("Gemma2ForCausalLM", {"layer_types": ["sliding_attention"] * 5}, "layer_types for 6 layers"),
    ("Gemma3ForCausalLM", {"layer_types": ["chunked_attention"] * 6}, "layer_types"),
    ("Gemma3ForCausalLM", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
    ("Gemma3ForCausalLM", {"query_pre_attn_scalar": 168}, "query_pre_attn_scalar"),
    ("Gemma3ForCausalLM", {"rope_parameters": LINEAR}, "full_attention and sliding_attention"),
    ("Gemma3ForCausalLM", {"rope_parameters": nested(YARN)}, "rope_type"),
    ("Gemma3ForCausalLM", {"rope_parameters": {"sliding_attention": LINEAR}}, "rope_type"),
    ("LlamaForCausalLM", {"num_attention_heads": 3}, "multiple of num_key_value_heads and head_dim to be even"),
    ("LlamaForCausalLM", {"head_dim": 17}, "head_dim to be even"),
    ("LlamaForCausalLM", {"model_type": "mistral"}, "expected model_type None or 'llama'"),
    (
        "LlamaForCausalLM",
        {"rope_parameters": LLAMA3 | {"low_freq_factor": 4.0}},
        "low_freq_factor below high_freq_factor",
    ),
    ("BertModel", {"num_attention_heads": 5}, "hidden_size to be a multiple of num_attention_heads"),
    ("BertModel", {"hidden_act": "relu"}, "hidden_act"),
    ("BertModel", {"position_embedding_type": "relative_key"}, "position_embedding_type"),
    ("BertModel", {"is_decoder": True}, "is_decoder"),
]


@pytest.mark.parametrize(("architecture", "settings", "message"), REFUSED)
def test_what_llama_cpp_would_compute_otherwise_is_refused(architecture: str, settings: dict, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        metadata(configured(architecture, **settings))


ODD = (None, "", "x", "1e-5", [], [1], ["a"], [{}], {}, {"a": 1}, 0, -1, 3, 1.5, -0.5, float("nan"), float("inf"))
ODD += (10**7, 2**31, 2**33, 10**30, 1e39, True, False, ["sliding_attention"] * 6, {"full_attention": 3})
ODD += ({"type": "yarn", "factor": "x"}, {"rope_type": "yarn", "factor": 2.0, "mscale": [1], "mscale_all_dim": 1})
ODD += (
    {"rope_type": "linear", "factor": 0},
    {"rope_type": []},
    {"rope_theta": "x"},
    {"rope_type": "llama3", "factor": 8},
)
KEYS = {
    *SMALL,
    *families._NEUTRAL,
    "architectures",
    "model_type",
    "num_key_value_heads",
    "head_dim",
    "rope_theta",
    "rope_scaling",
}
KEYS |= {
    "rope_parameters",
    "rms_norm_eps",
    "layer_norm_eps",
    "tie_word_embeddings",
    "attention_bias",
    "mlp_bias",
    "hidden_act",
}
KEYS |= {
    "sliding_window",
    "use_sliding_window",
    "max_window_layers",
    "layer_types",
    "sliding_window_pattern",
    "text_config",
}
KEYS |= {"attn_logit_softcapping", "final_logit_softcapping", "query_pre_attn_scalar", "rope_local_base_freq"}


@pytest.mark.parametrize("name", sorted(families.families()))
def test_any_value_in_config_json_is_used_or_refused_in_one_sentence(name: str) -> None:
    refused = 0
    for key in sorted(KEYS):
        for value in ODD:
            settings = {"use_sliding_window": True} if key in ("max_window_layers", "sliding_window") else {}
            config = configured(families.families()[name].ARCHITECTURES[0], **settings) | {key: value}
            try:
                found = metadata(config)
            except ModelError as error:
                refused += 1
                assert "\n" not in str(error) and len(str(error)) < 700
            else:
                for entry, got in found.items():
                    assert np.float32(0) < np.float32(got) < np.inf if type(got) is float else True, (key, value, entry)
                    assert 0 <= got < 2**32 if type(got) is int else True, (key, value, entry)
    assert refused > 300


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("modules.json", "3", "expected a list of modules"),
        ("modules.json", '[{"path": ""}]', "expected a list of modules with type and path"),
        ("modules.json", '[{"type": "models.Dense", "path": "2_Dense"}]', "found Dense; cannot be converted"),
        ("1_Pooling/config.json", "[]", "expected a JSON object"),
        ("1_Pooling/config.json", '{"pooling_mode_max_tokens": true}', "found .'pooling_mode_max_tokens'"),
        ("1_Pooling/config.json", '{"pooling_mode": ["mean"]}', "expected one pooling"),
        ("sentence_bert_config.json", "[]", "expected a JSON object"),
        ("sentence_bert_config.json", '{"max_seq_length": "128"}', "max_seq_length in .*sentence_bert_config.json"),
    ],
)
def test_files_of_sentence_transformers_are_used_or_refused(
    tmp_path: Path, file: str, content: str, message: str
) -> None:
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "modules.json").write_text('[{"type": "models.Pooling", "path": "1_Pooling"}]')
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    config = configured("BertModel")
    assert family_of(config).hyperparameters(config, tmp_path)["pooling_type"] == 2
    (tmp_path / file).write_text(content)
    with pytest.raises(ModelError, match=message):
        family_of(config).hyperparameters(config, tmp_path)


def test_an_unknown_architecture_is_told_which_are_known() -> None:
    known = sum(len(family.ARCHITECTURES) for family in families.families().values())
    expected = rf"one of the {known} architectures \['BertForMaskedLM', .*'Qwen3ForCausalLM'\]"
    with pytest.raises(ModelError, match=expected):
        family_of({"architectures": ["MambaForCausalLM"]})
    with pytest.raises(ModelError, match="also reads images"):
        family_of({"architectures": ["Gemma3ForConditionalGeneration"], "text_config": {}})
    assert family_of({"model_type": "qwen3"}).GGUF_ARCH == "qwen3"


@pytest.mark.parametrize("name", sorted(families.families()))
def test_a_family_names_its_tensors_once(name: str) -> None:
    family = families.families()[name]
    config = configured(family.ARCHITECTURES[0], attention_bias=name == "llama", mlp_bias=name == "llama")
    rules = family.renames(config, set())
    assert len({rule.source for rule in rules}) == len({rule.target for rule in rules}) == len(rules)
    assert all(family.canonical_name(rule.source) == rule.source for rule in rules)


def test_config_json_is_not_changed_by_reading_it() -> None:
    for family in families.families().values():
        config = configured(family.ARCHITECTURES[0], rope_scaling=None, layer_norm_eps=1e-12)
        before = json.dumps(config)
        family.hyperparameters(config, DIRECTORY)
        family.renames(config, set())
        family.extra_tensors(config)
        assert json.dumps(config) == before


def test_llama3_factors_are_one_for_short_waves_and_the_factor_for_long_ones() -> None:
    factors = _rope.llama3_factors(LLAMA3, 64)["rope_freqs.weight"]
    assert factors.dtype == np.float32
    assert factors[0] == 1.0
    assert factors[-1] == 8.0
    assert (np.diff(factors) >= 0).all()
    assert len(set(factors)) > 2  # some are between
