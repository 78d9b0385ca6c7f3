"""Bases beyond Llama: random models of other architectures are loaded, sized, told apart by packing, tuned and
sampled."""

import shutil
from pathlib import Path

import pytest
from tiny_dialogues import rl_dialogues, sft_dialogues, tiny_base, write

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("peft")

from reclm_lite.errors import InputError, ModelError
from reclm_lite.tune import base as base_module
from reclm_lite.tune.adapters import LoraSettings, add_adapter, use
from reclm_lite.tune.base import BaseSettings, keeps_apart, load_base
from reclm_lite.tune.loop import LoopSettings
from reclm_lite.tune.memory import estimate, sizes_of
from reclm_lite.tune.rendering import Renderer
from reclm_lite.tune.rollout import Sampling, measure, sample
from reclm_lite.tune.sft import SftSettings, train_sft

OLD = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
NEW = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 256,
}
GROUPED = {**NEW, "num_key_value_heads": 2}
# Configuration's class, its settings, whether packed dialogues can be kept apart, and the columns of its keys.
ARCHITECTURES = {
    "gpt2": ("GPT2Config", OLD, True, 32),
    "gptj": ("GPTJConfig", {**OLD, "rotary_dim": 8}, True, 32),
    "gpt_neox": ("GPTNeoXConfig", NEW, True, 32),
    "mistral": ("MistralConfig", {**GROUPED, "sliding_window": 8}, True, 16),
    "phi3": ("Phi3Config", GROUPED, True, 16),
    "olmo2": ("Olmo2Config", GROUPED, True, 16),
    "granite": ("GraniteConfig", {**GROUPED, "logits_scaling": 10.0, "embedding_multiplier": 3.0}, True, 16),
    "cohere": ("CohereConfig", {**GROUPED, "logit_scale": 0.8333}, True, 16),
    "gemma2": ("Gemma2Config", {**GROUPED, "head_dim": 8, "final_logit_softcapping": 0.05}, True, 16),
    "qwen3": ("Qwen3Config", {**GROUPED, "head_dim": 16}, True, 32),  # wider than width / heads
    "mixtral": ("MixtralConfig", {**GROUPED, "num_local_experts": 4}, True, 16),
    "opt": ("OPTConfig", {**NEW, "ffn_dim": 64, "word_embed_proj_dim": 32}, False, 32),
    "bloom": ("BloomConfig", {"hidden_size": 32, "n_layer": 2, "n_head": 4}, False, 32),
    "falcon": (
        "FalconConfig",
        {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
        False,
        8,
    ),  # of one head
}
QUICK = SftSettings(max_steps=4, batch=8, lora=LoraSettings(r=2, dropout=0.0), loop=LoopSettings(4, 4))


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """The folder of a random model of an architecture, made when it is first asked for, with the tokenizer of the tiny
    Llama."""
    root = tmp_path_factory.mktemp("architectures")
    llama = tiny_base(root / "llama", layers=1)
    n_vocab = transformers.AutoConfig.from_pretrained(llama).vocab_size
    torch.set_num_threads(1)

    def make(name: str) -> Path:
        kind, settings, *_ = ARCHITECTURES[name]
        if not (root / name).is_dir():
            torch.manual_seed(0)
            config = getattr(transformers, kind)(
                vocab_size=n_vocab, bos_token_id=0, eos_token_id=1, pad_token_id=2, **settings
            )
            transformers.AutoModelForCausalLM.from_config(config).save_pretrained(root / name)
            for file in llama.glob("tokenizer*"):
                shutil.copy(file, root / name)
        return root / name

    return make


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_its_size_is_known_before_it_is_loaded(folder_of, name):
    sizes = sizes_of(folder_of(name))
    assert (sizes.width, sizes.layers, sizes.kv) == (32, 2, ARCHITECTURES[name][3])
    assert estimate(BaseSettings(str(folder_of(name))), lora_r=2, pass_tokens=64).activations > 0


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_packed_dialogues_see_one_another_where_it_is_said(folder_of, name):
    base = load_base(BaseSettings(str(folder_of(name))))
    base.model.eval()
    first, second = torch.arange(5, 16)[None], torch.arange(30, 50)[None]
    with torch.no_grad():
        alone = torch.cat([base.hidden(first), base.hidden(second)], dim=1)
        positions = torch.cat([torch.arange(11), torch.arange(20)])[None]
        packed = base.hidden(torch.cat([first, second], dim=1), positions=positions)
    same = torch.allclose(alone, packed, atol=2e-6)
    assert same == keeps_apart(base) == ARCHITECTURES[name][2]
    assert keeps_apart(load_base(BaseSettings(str(folder_of(name)), dtype="bfloat16"))) == same


def test_mamba_is_told_by_its_running_state(folder_of, monkeypatch):
    monkeypatch.setitem(
        ARCHITECTURES, "mamba", ("MambaConfig", {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}, False, 32)
    )
    assert not keeps_apart(load_base(BaseSettings(str(folder_of("mamba")))))


def test_logits_of_another_making_are_refused(folder_of, monkeypatch):
    """In bfloat16 too, whose rounding is larger than that of float32, but smaller than a scale that is forgotten."""
    for dtype in ("float32", "bfloat16"):
        load_base(BaseSettings(str(folder_of("granite")), dtype=dtype))
    monkeypatch.setattr(
        base_module.Base, "logits", lambda self, hidden: self.causal.get_output_embeddings()(hidden).float()
    )
    for dtype in ("float32", "bfloat16"):
        with pytest.raises(ModelError, match="granite"):
            load_base(BaseSettings(str(folder_of("granite")), dtype=dtype))


@pytest.mark.parametrize("name", ["bloom", "opt"])
def test_packing_is_refused_where_dialogues_would_see_one_another(folder_of, name, tmp_path):
    dialogues = write(tmp_path / "sft.jsonl", sft_dialogues(10))
    settings = SftSettings(max_steps=1, batch=8, packing=True, lora=LoraSettings(r=2))
    with pytest.raises(InputError, match=f"{name}.*--no-packing"):
        train_sft(load_base(BaseSettings(str(folder_of(name)))), dialogues, tmp_path / "run", settings)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["gpt2", "opt", "granite", "cohere", "mixtral"])
def test_it_is_tuned_and_sampled(folder_of, name, tmp_path):
    dialogues = write(tmp_path / "sft.jsonl", sft_dialogues(40))
    base = load_base(BaseSettings(str(folder_of(name))))
    facts = train_sft(base, dialogues, tmp_path / "run", QUICK)
    assert facts["n_steps"] == 4 and (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()
    again = load_base(BaseSettings(str(folder_of(name))))
    add_adapter(again, "sft", LoraSettings(), load=tmp_path / "run" / "adapter")
    with use(again, "sft"):
        rollouts = sample(again, Renderer(again.tokenizer, again.form), rl_dialogues(4), Sampling(max_new_tokens=6))
        told = measure(again, rollouts, temperature=1.0, micro_batch=4).logprobs
        again.model.eval()
        for row, (prompt, answer) in enumerate(zip(rollouts.prompts, rollouts.answers)):
            with torch.no_grad():  # the model's own logits, of one unpadded sequence
                logits = again.causal(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].float()
            own = logits.log_softmax(-1)[range(len(answer)), answer]
            assert torch.allclose(told[row, : len(answer)], own, atol=1e-5)


def test_experts_refuse_dropout_by_its_name(folder_of, tmp_path):
    base = load_base(BaseSettings(str(folder_of("mixtral"))))
    with pytest.raises(InputError, match="--lora-dropout"):
        add_adapter(base, "sft", LoraSettings(dropout=0.1))
