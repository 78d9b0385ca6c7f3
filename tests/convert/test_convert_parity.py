"""The parity check passes equivalent files and refuses every kind of damage."""

import json
import shutil
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from checkpoints import save_bert, save_decoder, save_llama, train_gemma, train_llama2, train_qwen2

from reclm_lite.convert.export_checkpoint import export_checkpoint
from reclm_lite.convert.merge import open_source
from reclm_lite.convert.parity import Gate, Verdict, sentences, strings, templates
from reclm_lite.convert.parity.bounds import ROUNDING, SLACK, TAIL, TAIL_OF_SUMS, UNQUANTIZED_NOISE, logit_bounds
from reclm_lite.convert.parity.divergence import Divergence, Stored, measure, store
from reclm_lite.convert.parity.logits import greedy_tokens, sequence_logits
from reclm_lite.convert.parity.plan import Plan
from reclm_lite.convert.parity.tokens import compare_token_ids, differs_by_design, reference_tokenizer
from reclm_lite.convert.quantize import quantize_gguf
from reclm_lite.convert.write import write_gguf
from reclm_lite.errors import ModelError
from reclm_lite.runtime import load_model

pytest.importorskip("torch")
pytest.importorskip("transformers")

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'owner' %}{{ raise_exception('no owner') }}{% endif %}"
    "<|{{ m.role }}|>{{ m.content | trim }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def _with_template(directory: Path) -> Path:
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": TEMPLATE}))
    return directory


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _with_template(save_llama(tmp_path_factory.mktemp("llama"), tied=False))


@pytest.fixture(scope="module")
def f16(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("f16") / "model-f16.gguf"
    export_checkpoint(llama, path, "f16")
    return path


@pytest.fixture
def few_strings(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests about something else than token ids."""
    monkeypatch.setattr("reclm_lite.convert.parity.gate.texts", lambda: sentences.PROBE_TEXTS)


def _judge(
    checkpoint: Path, unquantized: Path, scratch: Path, *others: tuple[Path, str], **options: object
) -> list[Verdict]:
    with Gate(open_source(checkpoint), unquantized, scratch=scratch, n_threads=1, **options) as gate:
        return [gate.judge(unquantized, "f16"), *(gate.judge(path, ftype) for path, ftype in others)]


def _edited(gguf: Path, out: Path, edit: Callable[[object], None]) -> Path:
    """A copy of a GGUF file after `edit` of a writable GGUFReader over it."""
    from gguf import GGUFReader

    shutil.copy(gguf, out)
    reader = GGUFReader(out, "r+")
    edit(reader)
    for tensor in reader.tensors:
        tensor.data.flush()
    return out


def _tensor(reader: object, name: str) -> np.ndarray:
    return next(tensor.data for tensor in reader.tensors if tensor.name == name)


def _set(reader: object, key: str, value: float) -> None:
    field = reader.fields[key]
    field.parts[field.data[0]][0] = value


# -- strings ---------------------------------------------------------------------------------------------------


def test_single_positions_of_float32_files_have_the_wider_berth_and_no_others():
    rows = np.random.default_rng(0).standard_normal((8, 16)).astype(np.float32)
    stored = Stored(rows, [np.zeros((8, 2), np.int64)], [np.sort(rows[:, :2], axis=1)[:, ::-1]])
    found = Divergence(8, 8, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0, [], [])
    for kind, tail in (("f32", TAIL_OF_SUMS), ("f16", TAIL), ("bf16", TAIL)):
        noise = UNQUANTIZED_NOISE[kind]
        bounds = logit_bounds(noise, 10.0, stored, found)
        assert bounds.min_cosine == pytest.approx(max(-1.0, 1 - (tail * SLACK * 10 * noise) ** 2 / 2))
        assert bounds.mean_cosine == pytest.approx(1 - (SLACK * 10 * noise) ** 2 / 2)
    assert logit_bounds(UNQUANTIZED_NOISE["f32"], 10.0, stored, found).min_cosine > 0.9999


def test_there_are_a_thousand_different_strings_of_every_kind():
    texts = strings.texts()
    assert len(texts) == len(set(texts)) >= 1000
    everything = "".join(texts)
    assert all(text.encode("utf-8") is not None for text in texts)
    for script in ("LATIN", "CYRILLIC", "GREEK", "HEBREW", "ARABIC", "DEVANAGARI", "THAI", "CJK", "HANGUL", "HIRAGANA"):
        assert any(unicodedata.name(c, "").startswith(script) for c in set(everything)), script
    for piece in (
        "\ufeff",
        "\x00",
        "\u2028",
        "\u200d",
        "<|im_start|>",
        "[INST]",
        " " * 33,
        "\t" * 17,
        "\r\n",
        "🏽",
        "e\u0301",
    ):
        assert piece in everything
    assert sentences.PROBE_TEXTS[0] in texts


def test_the_strings_are_the_same_in_every_process():
    code = "from reclm_lite.convert.parity.strings import texts; import zlib; print(zlib.crc32(repr(texts()).encode()))"
    runs = {subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout for _ in range(2)}
    assert len(runs) == 1


# -- the gate passes what is right -----------------------------------------------------------------------------


def test_an_honest_export_passes_with_transformers_as_reference(llama: Path, f16: Path, tmp_path: Path):
    q8, q4 = tmp_path / "q8_0.gguf", tmp_path / "q4_0.gguf"
    quantize_gguf(f16, q8, "q8_0", n_threads=1)
    quantize_gguf(f16, q4, "q4_0", n_threads=1)
    verdicts = _judge(llama, f16, tmp_path / "scratch", (q8, "q8_0"), (q4, "q4_0"), reference="transformers")
    assert [verdict.reasons for verdict in verdicts] == [[], [], []]
    told = [json.loads(json.dumps(verdict.as_dict())) for verdict in verdicts]
    assert told[0]["reference"].startswith("transformers")
    assert told[0]["token_ids"]["n_texts"] >= 1000 and told[0]["token_ids"]["n_mismatches"] == 0
    assert told[0]["chat_template"]["n_conversations"] == len(templates.CONVERSATIONS)
    assert told[0]["chat_template"]["n_refused_by_both"] == 1
    assert told[0]["greedy"]["n_prompts"] == 64 and told[0]["greedy"]["n_different"] == 0
    assert told[0]["greedy"]["n_equal"] >= 55 and told[0]["greedy"]["decoded_by"].startswith("llama.cpp")
    # More is lost with fewer bits, and every loss is reported.
    kls = [verdict["logits"]["mean_kl"] for verdict in told]
    assert 0 < kls[0] < kls[1] < kls[2]
    assert all(verdict["logits"]["n_compared"] >= 1000 for verdict in told)
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.mark.usefixtures("few_strings")
def test_flat_logits_of_an_untrained_model_are_not_refused(tmp_path: Path):
    checkpoint = save_llama(tmp_path / "flat", hidden_size=256, intermediate_size=256, initializer_range=0.02)
    export_checkpoint(checkpoint, tmp_path / "f16.gguf", "f16")
    quantize_gguf(tmp_path / "f16.gguf", tmp_path / "q2_k.gguf", "q2_k", n_threads=1)
    verdicts = _judge(checkpoint, tmp_path / "f16.gguf", tmp_path / "scratch", (tmp_path / "q2_k.gguf", "q2_k"))
    assert [verdict.reasons for verdict in verdicts] == [[], []]


def test_an_encoder_is_judged_by_its_vectors(tmp_path: Path):
    checkpoint = save_bert(tmp_path / "bert")
    good, q8 = tmp_path / "f16.gguf", tmp_path / "q8_0.gguf"
    export_checkpoint(checkpoint, good, "f16")
    quantize_gguf(good, q8, "q8_0", n_threads=1)
    verdicts = _judge(checkpoint, good, tmp_path / "scratch", (q8, "q8_0"))
    assert [verdict.reasons for verdict in verdicts] == [[], []]
    assert verdicts[0].details["vectors"]["min_cosine"] > verdicts[1].details["vectors"]["min_cosine"] > 0.9
    bad = _edited(
        good, tmp_path / "bad.gguf", lambda reader: _swap(reader, "blk.0.attn_q.weight", "blk.0.attn_k.weight")
    )
    verdict = _judge(checkpoint, bad, tmp_path / "scratch")[0]
    assert any("cosine of vectors" in reason for reason in verdict.reasons)
    other = _edited(good, tmp_path / "cls.gguf", lambda reader: _set(reader, "bert.pooling_type", 2))
    with pytest.raises(ModelError, match="expected mean pooling"):
        _judge(checkpoint, other, tmp_path / "scratch")


# -- and refuses what is not -----------------------------------------------------------------------------------


def _swap(reader: object, a: str, b: str) -> None:
    x, y = _tensor(reader, a), _tensor(reader, b)
    kept = x.copy()
    x[:], y[:] = y, kept


def _undo_permutation(reader: object) -> None:
    for name in ("attn_q", "attn_k"):
        for block in (0, 1):
            data = _tensor(reader, f"blk.{block}.{name}.weight")
            n_rows = data.shape[0]  # heads of 16 rows, halves interleaved by the conversion
            data[:] = data.reshape(n_rows // 16, 8, 2, -1).swapaxes(1, 2).reshape(data.shape)


def _row(name: str) -> Callable[[object], None]:
    def edit(reader: object) -> None:
        data = _tensor(reader, name)
        data[7] = data[8]

    return edit


def _set_item(reader: object, key: str, i: int, value: float) -> None:
    field = reader.fields[key]
    field.parts[field.data[i]][-1] = value  # of a string, its last byte


def _scale(reader: object, name: str, rows: slice, factor: float) -> None:
    data = _tensor(reader, name)
    data[rows] = data[rows].astype(np.float32) * np.float32(factor)


def _cut(reader: object, name: str) -> None:
    """bfloat16's seven bits of the mantissa, without rounding."""
    data = _tensor(reader, name)
    bits = data.astype(np.float32).view(np.uint32) & np.uint32(0xFFFF0000)
    data[:] = bits.view(np.float32)


def _less_one(reader: object) -> None:
    for tensor in reader.tensors:
        if tensor.name.endswith("norm.weight"):
            tensor.data[:] -= 1


DAMAGE = {
    "q and k without their permutation": _undo_permutation,
    "gate and up swapped": lambda reader: _swap(reader, "blk.0.ffn_gate.weight", "blk.0.ffn_up.weight"),
    "two blocks swapped": lambda reader: _swap(reader, "blk.0.attn_output.weight", "blk.1.attn_output.weight"),
    "another rope theta": lambda reader: _set(reader, "llama.rope.freq_base", 20000.0),
    "another epsilon": lambda reader: _set(reader, "llama.attention.layer_norm_rms_epsilon", 1e-2),
    "norms less one": _less_one,
    "tied though it is not": lambda reader: _tensor(reader, "output.weight").__setitem__(
        ..., _tensor(reader, "token_embd.weight")
    ),
    "a corrupted row of a matrix": _row("blk.1.ffn_down.weight"),
    "a corrupted row of the embedding": _row("token_embd.weight"),
    "a corrupted row of the output": _row("output.weight"),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.usefixtures("few_strings")
def test_each_damage_fails_the_f16_gate(damage: str, llama: Path, f16: Path, tmp_path: Path):
    bad = _edited(f16, tmp_path / "bad.gguf", DAMAGE[damage])
    verdict = _judge(llama, bad, tmp_path / "scratch")[0]
    assert not verdict.passed, verdict.as_dict()
    assert all("expected" in reason and "found" in reason for reason in verdict.reasons[:1])
    # A damaged row may be one that no prompt touches: the rest shows in the logits by itself.
    if not damage.startswith("a corrupted row"):
        assert any("logit" in reason for reason in verdict.reasons)


# What prompts hardly show or never, and what the verdict says of it.
SLIGHT = [
    (lambda reader: _set(reader, "tokenizer.ggml.eos_token_id", 9), "expected EOS to be 1"),
    (lambda reader: _set(reader, "tokenizer.ggml.padding_token_id", 9), "expected padding_token_id to be 2"),
    (lambda reader: _set_item(reader, "tokenizer.ggml.token_type", 300, 3), "is a control token"),
    (lambda reader: _set_item(reader, "tokenizer.ggml.token_type", 301, 5), "expected every token to be in use"),
    (
        lambda reader: _set_item(reader, "tokenizer.ggml.tokens", 302, ord("~")),
        "expected the tokens of the checkpoint's",
    ),
    (lambda reader: _set(reader, "llama.attention.layer_norm_rms_epsilon", 9e-7), "layer_norm_rms_epsilon 1e-06"),
    (lambda reader: _set(reader, "llama.context_length", 128), "a context of 256 tokens"),
    (lambda reader: _scale(reader, "blk.1.attn_q.weight", slice(7, 8), 1.01), "blk.1.attn_q.weight"),
    (lambda reader: _scale(reader, "blk.0.attn_v.weight", slice(None), 1.002), "blk.0.attn_v.weight"),
    (lambda reader: _cut(reader, "blk.0.ffn_up.weight"), "blk.0.ffn_up.weight"),
]


@pytest.mark.parametrize("reference", ["transformers", "gguf"])
@pytest.mark.usefixtures("few_strings")
def test_damage_that_prompts_do_not_show_is_told_thing_by_thing(reference: str, llama: Path, f16: Path, tmp_path: Path):
    bad = tmp_path / "bad.gguf"
    _edited(f16, bad, lambda reader: [edit(reader) for edit, _ in SLIGHT])
    with Gate(open_source(llama), bad, scratch=tmp_path / "scratch", reference=reference, n_threads=1) as gate:
        told = "\n".join(gate.judge(bad, "f16").reasons)
        assert [words for _, words in SLIGHT if words not in told] == []
        honest = gate.judge(f16, "f16")  # a file of the same kind that is not the one it should have been made from
    assert any("not equal" in reason for reason in honest.reasons)


@pytest.mark.usefixtures("few_strings")
def test_a_quantized_file_of_a_damaged_one_fails_too(llama: Path, f16: Path, tmp_path: Path):
    bad = _edited(f16, tmp_path / "bad.gguf", DAMAGE["gate and up swapped"])
    quantize_gguf(bad, tmp_path / "q8_0.gguf", "q8_0", n_threads=1)
    verdict = _judge(llama, bad, tmp_path / "scratch", (tmp_path / "q8_0.gguf", "q8_0"))[1]
    assert "the unquantized file that it was made from is not equal" in verdict.reasons[0]


@pytest.mark.parametrize(("ftype", "reference"), [("q8_0", "transformers"), ("q2_k", "gguf")])
@pytest.mark.usefixtures("few_strings")
def test_a_quantized_file_of_other_tensors_fails_its_type(ftype: str, reference: str, tmp_path: Path):
    checkpoint = save_llama(tmp_path / "llama", hidden_size=256, intermediate_size=256, initializer_range=0.05)
    good, bad, out = tmp_path / "f16.gguf", tmp_path / "bad.gguf", tmp_path / "out.gguf"
    export_checkpoint(checkpoint, good, "f16")
    _edited(good, bad, lambda reader: _swap(reader, "blk.0.attn_output.weight", "blk.1.attn_output.weight"))
    quantize_gguf(bad, out, ftype, n_threads=1)
    verdict = _judge(checkpoint, good, tmp_path / "scratch", (out, ftype), reference=reference)[1]
    assert any("blk.0.attn_output.weight" in reason for reason in verdict.reasons)


def test_a_wrong_bos_flag_fails_by_its_token_ids(llama: Path, f16: Path, tmp_path: Path):
    bad = _edited(f16, tmp_path / "bad.gguf", lambda reader: _set(reader, "tokenizer.ggml.add_bos_token", False))
    verdict = _judge(llama, bad, tmp_path / "scratch")[0]
    assert any("with BOS and EOS" in reason for reason in verdict.reasons)


@pytest.mark.parametrize(
    ("old", "new"), [(b"<|end|>", b"<|END|>"), (b"{{ bos_token }}", b"{{ eos_token }}"), (b"'owner'", b"'nobod'")]
)
@pytest.mark.usefixtures("few_strings")
def test_another_chat_template_fails(old: bytes, new: bytes, llama: Path, f16: Path, tmp_path: Path):
    raw = f16.read_bytes()
    at = raw.index(b"tokenizer.chat_template")
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(raw[:at] + raw[at:].replace(old, new, 1))
    verdict = _judge(llama, bad, tmp_path / "scratch")[0]
    assert any("renders as" in reason for reason in verdict.reasons)


@pytest.mark.parametrize("use_rslora", [False, True])
@pytest.mark.usefixtures("few_strings")
def test_a_wrong_adapter_scale_fails(use_rslora: bool, tmp_path: Path):
    """alpha / sqrt(r) in place of alpha / r, and the other way round; the reference is peft's own merge."""
    peft = pytest.importorskip("peft")
    import torch
    from transformers import AutoModelForCausalLM

    base = save_llama(tmp_path / "base")
    config = peft.LoraConfig(r=4, lora_alpha=8, use_rslora=use_rslora, target_modules=["q_proj", "down_proj"])
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    model.save_pretrained(tmp_path / "adapter")
    scales = {}
    for wrong in (False, True):
        merged = tmp_path / f"merged-{wrong}"
        shutil.copytree(base, merged)
        adapted = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "adapter")
        if wrong:
            for module in adapted.modules():
                if hasattr(module, "scaling"):
                    module.scaling = {"default": 8 / 4 if use_rslora else 8 / 2}
        adapted.merge_and_unload().save_pretrained(merged)
        export_checkpoint(merged, tmp_path / f"{wrong}.gguf", "f16")
        source = open_source(base, tmp_path / "adapter")
        with Gate(
            source, tmp_path / f"{wrong}.gguf", scratch=tmp_path / "scratch", adapter=tmp_path / "adapter", n_threads=1
        ) as gate:
            assert "merged by peft" in gate.reference
            scales[wrong] = gate.judge(tmp_path / f"{wrong}.gguf", "f16").reasons
    assert scales[False] == [] and any("logit" in reason for reason in scales[True])


# -- references ------------------------------------------------------------------------------------------------


def test_a_reference_that_is_demanded_but_cannot_be_had_is_an_error(
    llama: Path, f16: Path, tmp_path: Path, monkeypatch
):
    monkeypatch.setattr("reclm_lite.convert.parity.reference.available_bytes", lambda: 1 << 20)
    source = open_source(llama)
    with pytest.raises(ModelError, match=r"GB of memory needed"):
        Gate(source, f16, scratch=tmp_path, reference="transformers")
    with Gate(source, f16, scratch=tmp_path, n_threads=1) as gate:
        verdict = gate.judge(f16, "f16")
    assert verdict.passed and "not proved" in verdict.details["logits"]["note"]
    assert "unquantized GGUF file" in verdict.reference and "memory" in verdict.reference
    with pytest.raises(ModelError, match="expected a reference among"):
        Gate(source, f16, scratch=tmp_path, reference="torch")


def test_without_torch_and_transformers_the_gate_runs_and_says_what_is_not_proved(
    llama: Path, f16: Path, tmp_path: Path
):
    quantize_gguf(f16, tmp_path / "q8_0.gguf", "q8_0", n_threads=1)
    code = f"""
import sys
from pathlib import Path
for name in ("torch", "transformers", "peft"):
    sys.modules[name] = None
from reclm_lite.convert.merge import open_source
from reclm_lite.convert.parity import Gate
source, f16, scratch = open_source(Path({str(llama)!r})), Path({str(f16)!r}), Path({str(tmp_path / "s")!r})
with Gate(source, f16, scratch=scratch, n_threads=1) as gate:
    verdicts = [gate.judge(Path({str(f16)!r}), "f16"), gate.judge(Path({str(tmp_path / "q8_0.gguf")!r}), "q8_0")]
assert all(v.passed for v in verdicts), [v.reasons for v in verdicts]
assert verdicts[0].details["token_ids"]["reference"].startswith("tokenizers")
assert verdicts[0].details["chat_template"]["proved"] == "rendered from the checkpoint's files"
assert "torch and transformers not installed" in gate.reference
assert verdicts[1].details["logits"]["mean_kl"] > 0
"""
    run = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


# -- parts -----------------------------------------------------------------------------------------------------


def test_greedy_tokens_of_a_batch_are_those_of_each_prompt_alone(f16: Path):
    with load_model(f16) as model:
        prompts = [model.tokenize(text, add_special=True) for text in sentences.SENTENCES[:20]]
        together = greedy_tokens(model, prompts, 8, n_threads=1)
        assert together == [greedy_tokens(model, [prompt], 8, n_threads=1)[0] for prompt in prompts]


def test_divergence_of_a_file_from_itself_is_nothing_and_of_known_logits_is_known(tmp_path: Path):
    plan = Plan([[0, 1, 2]], [np.array([0, 1])], [np.array([True, True])], [3], 0)
    expected = np.log(np.array([[0.5, 0.25, 0.25], [0.2, 0.2, 0.6]], np.float32))
    found = np.log(np.array([[0.25, 0.5, 0.25], [0.2, 0.2, 0.6]], np.float32)) + 3  # softmax does not see the shift
    stored = store(plan, iter([(0, expected)]), tmp_path / "logits", 3)
    same = measure(plan, stored, iter([(0, expected)]))
    assert (same.mean_kl, same.max_abs_difference, same.top1_agreement) == (0.0, 0.0, 1.0)
    other = measure(plan, stored, iter([(0, found)]))
    assert other.mean_kl == pytest.approx((0.5 * np.log(2) + 0.25 * np.log(0.5)) / 2, rel=1e-6)
    assert other.top1_agreement == 0.5 and other.max_kl == pytest.approx(2 * other.mean_kl)
    with pytest.raises(ModelError, match="NaN"):
        store(plan, iter([(0, np.full((2, 3), np.nan, np.float32))]), tmp_path / "logits", 3)


def test_token_ids_of_all_strings_take_less_than_two_seconds_of_work(llama: Path, f16: Path):
    reference = reference_tokenizer(llama)
    with load_model(f16, vocab_only=True) as model:
        report = compare_token_ids(model, reference, strings.texts())
    assert report.identical and report.n_texts == len(strings.texts())


def test_what_differs_by_design_is_told_by_the_text_alone():
    bert = {"tokenizer.ggml.model": "bert", "tokenizer.ggml.normalizer.lowercase": True}
    assert differs_by_design("plain words, é and 中文", bert) is None
    assert differs_by_design("a\x85b", bert) and differs_by_design("x" * 101, bert) and differs_by_design("कि", bert)
    assert differs_by_design("a\x85b", {"tokenizer.ggml.model": "gpt2"}) is None


def test_every_bound_on_rounding_lies_far_below_an_unrelated_tensor():
    assert all(tensor <= row < 1.3 and tensor < 1.0 for tensor, row in ROUNDING.values())


def test_sequences_of_a_batch_do_not_see_each_other(f16: Path):
    with load_model(f16) as model:
        sequences = [model.tokenize(text, add_special=True) for text in sentences.SENTENCES[:5]]
        wanted = [np.arange(len(sequence)) for sequence in sequences]
        together = {i: rows.copy() for i, rows in sequence_logits(model, sequences, wanted, n_threads=1)}
        for i, sequence in enumerate(sequences):
            for _, alone in sequence_logits(model, [sequence], [wanted[i]], n_threads=1):
                np.testing.assert_allclose(alone, together[i], atol=2e-2)


# -- other families --------------------------------------------------------------------------------------------

FAMILIES = {
    "Mistral": train_llama2,
    "Qwen2": train_qwen2,
    "Qwen3": train_qwen2,
    "Gemma2": train_gemma,
    "Gemma3Text": train_gemma,
}


@pytest.mark.parametrize(("family", "ftype"), [*((family, "f16") for family in FAMILIES), ("Qwen2", "bf16")])
@pytest.mark.usefixtures("few_strings")
def test_an_honest_export_of_every_family_passes(family: str, ftype: str, tmp_path: Path):
    checkpoint, gguf = save_decoder(tmp_path / "checkpoint", family, train=FAMILIES[family]), tmp_path / "model.gguf"
    write_gguf(open_source(checkpoint), gguf, ftype)
    verdict = _judge(checkpoint, gguf, tmp_path / "scratch", reference="transformers")[0]
    assert verdict.reasons == []
    # bfloat16 keeps 8 bits of a weight: near-ties turn round in a third of the texts.
    assert verdict.details["greedy"]["n_equal"] >= (20 if ftype == "bf16" else 40)


@pytest.mark.usefixtures("few_strings")
def test_gemma_norms_without_their_one_fail(tmp_path: Path):
    checkpoint, good = save_decoder(tmp_path / "checkpoint", "Gemma2", train=train_gemma), tmp_path / "model.gguf"
    write_gguf(open_source(checkpoint), good, "f16")
    bad = _edited(good, tmp_path / "bad.gguf", _less_one)
    assert any("logit" in reason for reason in _judge(checkpoint, bad, tmp_path / "scratch")[0].reasons)
