"""transformers and peft see copies of known settings: nothing of a checkpoint runs or sizes a table."""

import builtins
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from adapters import merged_by_peft, save_adapter
from checkpoints import save_bert, save_llama, shard

from reclm_lite.convert.adapter import Adapter
from reclm_lite.convert.checkpoint import Checkpoint
from reclm_lite.convert.families import families
from reclm_lite.convert.merge import open_source
from reclm_lite.convert.parity import plain_copies
from reclm_lite.convert.parity.plain_copies import (
    copy_of_adapter,
    copy_of_checkpoint,
    copy_of_tokenizer,
    model_settings,
    nobody_to_ask,
    peft_settings,
)
from reclm_lite.convert.parity.reference import TransformersReference
from reclm_lite.convert.parity.tokens import reference_tokenizer
from reclm_lite.errors import ModelError

EVIL = "open({!r}, 'w').write('ran')\nclass Own: pass\n"
REDOS = "((([a-z_.0-9]+)+)+)+!"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("copies") / "base")


def edited(base: Path, to: Path, name: str, **changes: object) -> Path:
    if not to.exists():
        shutil.copytree(base, to)
    path = to / name
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return to


def hostile(base: Path, to: Path) -> Path:
    """A checkpoint that names code of its own in every place where transformers looks for it."""
    own = {"AutoTokenizer": ["own.Own", "own.Own"], "AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}
    edited(
        base,
        to,
        "tokenizer_config.json",
        tokenizer_class="Own",
        auto_map=own,
        processor_class="Own",
        sp_model_kwargs={"model_file": "/elsewhere"},
        tokenizer_file="/elsewhere",
        name_or_path="some/where",
    )
    edited(base, to, "config.json", auto_map=own, num_labels=2_000_000_000, custom_generate="own", _name_or_path="x/y")
    (to / "own.py").write_text(EVIL.format(str(to / "ran")))
    (to / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "some/where"}))
    return to


def test_no_code_of_a_checkpoint_runs_and_nobody_is_asked(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(builtins, "input", lambda prompt="": asked.append(prompt) or "y")
    checkpoint = hostile(llama, tmp_path / "evil")
    assert reference_tokenizer(checkpoint).encode("jazz", add_special=False) == reference_tokenizer(llama).encode(
        "jazz", add_special=False
    )
    with TransformersReference(Checkpoint(checkpoint), None, encoder=False, n_threads=1) as reference:
        assert not {"num_labels", "custom_generate"} & reference.config.keys() or reference.config["num_labels"] == 2
    assert not asked
    assert not (checkpoint / "ran").exists()


def test_the_copies_have_known_files_and_settings_only(llama: Path, tmp_path: Path) -> None:
    checkpoint = hostile(llama, tmp_path / "evil")
    with copy_of_checkpoint(Checkpoint(checkpoint)) as copy:
        assert sorted(path.name for path in copy.iterdir()) == ["config.json", "model.safetensors"]
        settings = json.loads((copy / "config.json").read_text())
    assert not {"num_labels", "auto_map", "custom_generate", "_name_or_path"} & settings.keys()
    with copy_of_tokenizer(checkpoint) as copy:
        assert sorted(path.name for path in copy.iterdir()) == [
            "config.json",
            "tokenizer.json",
            "tokenizer_config.json",
        ]
        assert json.loads((copy / "config.json").read_text()) == {"model_type": "llama"}
        settings = json.loads((copy / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert not {"auto_map", "processor_class", "sp_model_kwargs", "tokenizer_file", "name_or_path"} & settings.keys()


def test_no_text_is_padded_to_a_length_of_the_files(llama: Path, tmp_path: Path) -> None:
    padding = {"direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0, "pad_token": "x"}
    padding["strategy"] = {"Fixed": 2_000_000_000}
    truncation = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    changes = {"padding": padding, "truncation": truncation}
    checkpoint = edited(llama, tmp_path / "padded", "tokenizer.json", **changes)
    with copy_of_tokenizer(checkpoint) as copy:
        settings = json.loads((copy / "tokenizer.json").read_text())
    assert settings == json.loads((llama / "tokenizer.json").read_text()) | {"padding": None, "truncation": None}


def test_peft_gets_the_names_of_saved_modules_that_are_there(llama: Path, tmp_path: Path) -> None:
    adapter = save_adapter(llama, tmp_path / "adapter", target_modules=["q_proj"], modules_to_save=["embed_tokens"])
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["modules_to_save"] += [f"absent{i}" for i in range(300)]
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    assert peft_settings(Adapter(adapter))["modules_to_save"] == ["embed_tokens"]


def test_a_question_of_a_library_gets_no_answer() -> None:
    with nobody_to_ask():
        with pytest.raises(EOFError):
            input("run it?")
        import sys

        assert sys.stdin.read() == ""


def test_a_table_of_positions_has_a_bound(llama: Path) -> None:
    config = json.loads((llama / "config.json").read_text())
    with pytest.raises(ModelError, match="max_position_embeddings in config.json, found 2,000,000,000"):
        model_settings(config | {"max_position_embeddings": 2_000_000_000})


def test_every_setting_of_the_families_classes_that_computing_reads_is_kept() -> None:
    """A setting that is missing here would be computed with its default, and the gate would fail a sound file."""
    from transformers import AutoConfig

    made = {"architectures", "model_type", "text_config", "vision_config"}  # the latter of models that see
    left_out = {"use_cache", "pretraining_tp", "is_decoder", "add_cross_attention", "use_bidirectional_attention"}
    for family in families().values():
        config = type(AutoConfig.for_model(family.MODEL_TYPE))
        own = {name for name in config.__annotations__ if not name.startswith(("base_", "keys_", "_", "sub_"))}
        own = {name for name in own if name not in ("model_type", "attribute_map", "default_theta")}
        assert own <= plain_copies._MODEL_SETTINGS | made | left_out, family.MODEL_TYPE


def test_sharded_weights_are_read_through_the_copy(llama: Path, tmp_path: Path) -> None:
    shutil.copytree(llama, tmp_path / "sharded")
    source = Checkpoint(shard(tmp_path / "sharded"))
    with TransformersReference(source, None, encoder=False, n_threads=1) as reference:
        tensors = reference.tensors()
        for name in source.tensors:
            assert np.array_equal(tensors[name].numpy(), source.tensor(name).astype(np.float32))


@pytest.mark.parametrize("whole", [False, True])
def test_peft_gets_names_and_no_patterns_and_merges_the_same(llama: Path, tmp_path: Path, whole: bool) -> None:
    settings = {
        "target_modules": r".*\.(q|v|down)_proj",
        "rank_pattern": {r"layers\.[1-9]+\.self_attn\.q_proj": 2, "down_proj": 3},
        "alpha_pattern": {r".*v_proj": 5},
        "use_rslora": True,
    }
    if whole:
        settings["modules_to_save"] = ["lm_head"]
    adapter = save_adapter(llama, tmp_path / "adapter", **settings)
    expected = merged_by_peft(llama, adapter)
    config = json.loads((adapter / "adapter_config.json").read_text())
    config |= {"exclude_modules": REDOS, "layers_pattern": [REDOS], "target_modules": REDOS, "megatron_core": "os"}
    config |= {"auto_mapping": {"parent_library": "own", "base_model_class": "Own"}, "base_model_name_or_path": "x/y"}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    source = open_source(llama, adapter)
    given = peft_settings(source.adapter)
    assert not {"exclude_modules", "layers_pattern", "megatron_core", "auto_mapping"} & given.keys()
    assert REDOS not in json.dumps(given)
    names = set(source.adapter.modules)
    assert set(given["target_modules"]) <= names
    for pattern in (*given["rank_pattern"], *given["alpha_pattern"]):
        assert {name.replace("\\", "") for name in pattern.split("|")} <= names
    with TransformersReference(source, adapter, encoder=False, n_threads=1) as reference:
        assert "merged by peft" in reference.name
        tensors = reference.tensors()
        for name, tensor in expected.items():
            assert np.array_equal(tensors[name].numpy(), tensor), name


def test_an_adapter_of_too_many_ranks_is_merged_by_this_package(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plain_copies, "_MAX_PEFT_VALUES", 1)
    pattern = {"layers.0.self_attn.q_proj": 2, "layers.1.self_attn.q_proj": 3}
    adapter = save_adapter(llama, tmp_path / "adapter", target_modules=["q_proj"], rank_pattern=pattern)
    source = open_source(llama, adapter)
    with TransformersReference(source, adapter, encoder=False, n_threads=1) as reference:
        assert "merged by this package (it has too many" in reference.name


def test_the_copy_of_an_adapter_has_its_weights_alone(llama: Path, tmp_path: Path) -> None:
    adapter = Adapter(save_adapter(llama, tmp_path / "adapter", target_modules=["q_proj"]))
    with copy_of_adapter(adapter, {"r": 1}) as copy:
        assert sorted(path.name for path in copy.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]


@pytest.mark.parametrize("names", [[REDOS], ["a" * 3, "(a+)+"], ["lm_head"] * 5000])
def test_modules_to_save_are_plain_names_and_few(llama: Path, tmp_path: Path, names: list[str]) -> None:
    adapter = save_adapter(llama, tmp_path / "adapter", target_modules=["q_proj"])
    config = json.loads((adapter / "adapter_config.json").read_text()) | {"modules_to_save": names}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=re.escape("modules_to_save")):
        Adapter(adapter)


def test_an_encoder_is_read_through_the_copy(tmp_path: Path) -> None:
    source = Checkpoint(save_bert(tmp_path / "bert"))
    with TransformersReference(source, None, encoder=True, n_threads=1) as reference:
        assert reference.vectors([[1, 2, 3]], "mean").shape[0] == 1
