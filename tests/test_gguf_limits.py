"""Files that would abort llama.cpp are refused with an error that names key, value and expectation."""

import io
import math
import struct
from pathlib import Path

import pytest
from gguf_made import ARRAY, BOOL, F32, I32, MADE, STRING, U32, Made, charsmap, llama, tensor, unigram

from reclm_lite import gguf_charsmap, probe_child
from reclm_lite.convert.vocab.spm_file import _fields
from reclm_lite.errors import ModelError
from reclm_lite.gguf_file import check_gguf


def write(tmp_path: Path, made: Made) -> Path:
    (tmp_path / "made.gguf").write_bytes(made.data())
    return tmp_path / "made.gguf"


@pytest.mark.parametrize("name", MADE)
def test_sound_models_of_every_family_pass(tmp_path, name):
    assert check_gguf(write(tmp_path, MADE[name]())).architecture == MADE[name]().keys["general.architecture"][1]


@pytest.mark.parametrize(
    ("family", "key", "kind", "value", "message"),
    [
        ("llama", "block_count", U32, 0, "llama.block_count as a number of 1 to 512, found 0"),
        ("llama", "block_count", U32, 513, "of 1 to 512, found 513"),
        ("llama", "block_count", BOOL, True, "found True"),
        ("llama", "block_count", ARRAY, (U32, [1]), "as one number"),
        ("llama", "context_length", U32, 2**31, "context_length"),
        ("llama", "nextn_predict_layers", U32, 2, "at most 1, the number of layers, found 2"),
        ("llama", "attention.head_count", U32, 0, "attention.head_count of 1 or more"),
        ("llama", "attention.head_count", U32, 16, "attention.head_count of at most 8"),
        ("llama", "attention.head_count", ARRAY, (U32, [2, 2]), "1 numbers"),
        ("llama", "attention.head_count", ARRAY, (F32, [2.0]), "one for each layer"),
        ("llama", "attention.head_count_kv", U32, 0, "attention.head_count_kv of 1 or more"),
        ("llama", "attention.head_count_kv", U32, 3, "to divide 2 heads, found 3"),
        (
            "llama",
            "attention.layer_norm_rms_epsilon",
            F32,
            math.nan,
            "layer_norm_rms_epsilon as a finite number, found nan",
        ),
        ("llama", "attention.layer_norm_rms_epsilon", F32, -1.0, "from 0 on, found -1.0"),
        ("llama", "rope.freq_base", F32, math.inf, "rope.freq_base as a finite number"),
        ("llama", "rope.dimension_count", U32, 3, "rope.dimension_count as an even number of at most 4"),
        ("llama", "rope.dimension_count", U32, 0, "rope.dimension_count"),
        ("llama", "rope.dimension_count", U32, 2, "rope.dimension_count of 4, a head's width"),
        ("gemma2", "rope.dimension_count", U32, 6, "of at most 4"),
        ("llama", "rope.scaling.type", STRING, "x", "one of none, linear, yarn, longrope"),
        ("llama", "rope.scaling.type", U32, 1, "one of none, linear, yarn, longrope"),
        ("llama", "expert_count", U32, 1, "expert_used_count of 1 to 1"),
        ("llama", "expert_count", U32, 1025, "expert_count as a number of 0 to 1024"),
        ("llama", "expert_used_count", U32, 1, "expert_used_count of 0 to 0"),
        ("mixture", "expert_used_count", U32, 5, "expert_used_count of 1 to 4"),
        ("mixture", "expert_group_count", U32, 3, "to divide 4 experts"),
        ("mixture", "expert_group_count", U32, 2, "expert_group_used_count of 1 to 1"),
        ("qwen3", "attention.value_length", U32, 2, "attention.value_length of 4"),
        ("gemma2", "attention.sliding_window", U32, 2**31 - 1, "attention.sliding_window"),
        ("gemma2", "attention.sliding_window_pattern", U32, 1, "other than 1"),
        ("gemma2", "attention.sliding_window_pattern", ARRAY, (BOOL, [False]), "with a window in one at least"),
        ("bert", "pooling_type", U32, 5, "bert.pooling_type as a number of 0 to 4, found 5"),
        ("bert", "attention.key_length", U32, 3, "bert.attention.key_length of 4"),
        ("bert", "embedding_length_out", U32, 9, "bert.embedding_length_out of 8"),
        ("bert", "max_tokens", STRING, "many", "bert.max_tokens as a number"),
        ("llama", "tokenizer.ggml.model", STRING, "none", "tokenizer.ggml.model as one of"),
        ("llama", "tokenizer.ggml.pre", STRING, "whitespace", "tokenizer.ggml.pre"),
        ("llama-bpe", "tokenizer.ggml.tokens", ARRAY, (STRING, []), "tokenizer.ggml.tokens with tokens"),
        ("llama-bpe", "tokenizer.ggml.tokens", ARRAY, (STRING, ["a", "a"]), "each once, found '1 of 2 twice'"),
        ("llama-bpe", "tokenizer.ggml.tokens", ARRAY, (STRING, ["a", "a\0b"]), "each once"),
        ("llama-bpe", "tokenizer.ggml.tokens", ARRAY, (STRING, ["", "[EMPTY_0]"]), "each once"),
        (
            "llama",
            "tokenizer.ggml.tokens",
            ARRAY,
            (STRING, ["<unk>", "<s>", "</s>"]),
            "a token for every byte .*<0x00>",
        ),
        ("bert", "tokenizer.ggml.token_type", ARRAY, (I32, [6] * 8), "tokenizer.ggml.token_type"),
        ("bert", "tokenizer.ggml.seperator_token_id", U32, 8, "seperator_token_id as a token of 0 to 7"),
        ("bert", "tokenizer.ggml.bos_token_id", U32, 2**32 - 1, "bos_token_id as a token of 0 to 7"),
        ("llama", "tokenizer.chat_template", U32, 1, "tokenizer.chat_template as a text"),
        ("llama", "split.count", U32, 2, "a model in one file"),
        ("llama", "general.alignment", U32, 0, "power of two, found 0"),
        ("llama", "general.alignment", U32, 3, "power of two, found 3"),
        ("llama", "general.alignment", U32, 2**31, "to end at byte"),
    ],
)
def test_a_value_that_ends_llama_cpps_process_is_named(tmp_path, family, key, kind, value, message):
    made = MADE[family]()
    architecture = made.keys["general.architecture"][1]
    name = key if key.startswith(("general.", "tokenizer.", "split.")) else f"{architecture}.{key}"
    with pytest.raises(ModelError, match=message):
        check_gguf(write(tmp_path, made.with_key(name, kind, value)))


@pytest.mark.parametrize(
    ("name", "shape", "kind", "n_bytes", "message"),
    [
        ("blk.0.attn_q.weight", (8, 8), 27, 512, "of a type that weights may have.*found I64"),
        ("blk.0.attn_q.weight", (8, 8), 28, 512, "found F64"),
        ("token_embd.weight", (8, 262), 24, 2096, "found I8"),
        ("output_norm.weight", (8,), 1, 16, "of type F32.*found F16"),
        ("blk.0.attn_norm.weight", (8, 1), 30, 16, "of type F32.*found BF16"),
        ("blk.0.attn_q.weight", (0, 8), 0, 0, "dimensions of 1 or more"),
        ("blk.0.attn_q.weight", (2**32, 2**32), 0, 0, "to end at byte"),
        ("blk.0.attn_q.weight", (2**63, 2), 0, 0, "to end at byte"),
        ("blk.0.attn_q.weight", (1, 1, 1, 1, 1), 0, 4, "at most 4 dimensions"),
        ("blk.0.attn_q.weight", (), 2, 0, "multiple of 32"),
        ("blk.0.attn_q.weight", (33, 1), 2, 36, "multiple of 32"),
        ("blk.0.attn_q.weight", (8, 8), 4, 0, "a known type"),
        ("x" * 64, (8,), 0, 32, "at most 63 bytes of a tensor's name"),
        ("a\0b", (8,), 0, 32, "a tensor's name without NUL"),
        ("", (8,), 0, 32, "a tensor's name without NUL, not empty"),
    ],
)
def test_a_tensor_that_ends_llama_cpps_process_is_named(tmp_path, name, shape, kind, n_bytes, message):
    with pytest.raises(ModelError, match=message):
        check_gguf(write(tmp_path, llama().with_tensor(name, shape, kind, bytes(n_bytes))))


def test_data_that_are_not_aligned_for_the_processor_are_refused(tmp_path):
    data = llama().with_key("general.alignment", U32, 8).data()
    with pytest.raises(ModelError, match="from a multiple of 32 bytes on|at offset"):
        (tmp_path / "made.gguf").write_bytes(data)
        check_gguf(tmp_path / "made.gguf")


def test_tensors_that_overlap_or_leave_gaps_are_refused(tmp_path):
    whole = llama().data()
    name = b"output_norm.weight"
    at = whole.index(name) + len(name) + 4 + 8 + 4
    offset = struct.unpack_from("<Q", whole, at)[0]
    for wrong, message in ((0, "overlaps"), (offset + 32, "leaves a gap")):
        (tmp_path / "made.gguf").write_bytes(whole[:at] + struct.pack("<Q", wrong) + whole[at + 8 :])
        with pytest.raises(ModelError, match=message):
            check_gguf(tmp_path / "made.gguf")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (struct.pack("<Q", 0) + struct.pack("<I", 4) + bytes(4), "a metadata key without NUL, not empty"),
        (struct.pack("<Q", 2**60) + b"a", "at most 65,535 bytes of a metadata key"),
        (struct.pack("<Q", 1) + b"a" + struct.pack("<IQ", 8, 2**60), "bytes of 'a'"),
        (struct.pack("<Q", 1) + b"a" + struct.pack("<IIQ", 9, 9, 2**60), "numbers or texts in the array 'a'"),
        (struct.pack("<Q", 1) + b"a" + struct.pack("<IIQ", 9, 8, 2**60), "texts in 'a'"),
        (struct.pack("<Q", 1) + b"a" + struct.pack("<IIQ", 9, 0, 2**60), "items of 'a'"),
        (struct.pack("<Q", 1) + b"a" + struct.pack("<I", 13), "a known value type"),
    ],
)
def test_a_size_that_the_file_cannot_have_takes_no_memory(tmp_path, body, message):
    (tmp_path / "made.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + body + bytes(64))
    with pytest.raises(ModelError, match=message):
        check_gguf(tmp_path / "made.gguf")


def test_an_architecture_cannot_write_to_the_terminal(tmp_path):
    with pytest.raises(ModelError, match="general.architecture") as caught:
        check_gguf(write(tmp_path, llama().with_key("general.architecture", STRING, "\x1b[2J")))
    assert "\x1b" not in str(caught.value)


def test_an_array_of_numbers_for_each_layer_passes(tmp_path):
    made = (
        llama()
        .with_key("llama.attention.head_count", ARRAY, (U32, [2]))
        .with_key("llama.feed_forward_length", ARRAY, (I32, [16]))
    )
    check_gguf(write(tmp_path, made))


def test_a_table_of_experts_by_tokens_may_hold_integers(tmp_path):
    made = llama().with_tensor("blk.0.ffn_gate_tid2eid.weight", (8,), 26, bytes(32))
    check_gguf(write(tmp_path, made.with_tensor("d2t", (4,), 27, bytes(32)).with_tensor("more", *tensor(8))))


LEAF = 1 << 8
H = ord("H")


@pytest.mark.parametrize(
    ("blob", "message"),
    [
        (b"\x01", "1 bytes"),
        (struct.pack("<I", 2**32 - 4) + bytes(8), "an array of 4,294,967,292 of 12 bytes"),
        (struct.pack("<I", 8) + bytes(8), "an array of 8 of 12 bytes"),
        (struct.pack("<I", 4) + bytes(5), "a way to unit 255 of 1"),
        (charsmap({0: 4096 << 10}), r"a way to unit 4,351 of 512"),
        (charsmap({H: H | LEAF | 2048 << 10}), r"a way to unit 2,120 of 512"),
        (charsmap({H: H | 2048 << 10}), r"a way to unit 2,\d+ of 512"),
        (charsmap({H: H | LEAF | 256 << 10, 256 ^ H: 1 << 31 | 2}), "a replacement from byte 2 of 2 on"),
        (charsmap({H: H | LEAF | 256 << 10, 256 ^ H: 1 << 31}, b"xy"), "a last replacement without end"),
        (charsmap({H: H | LEAF | 256 << 10, 256 ^ H: 1 << 31}, b"x" * 1025 + b"\0"), "a replacement of 1,025 bytes"),
    ],
)
def test_a_character_map_that_leads_outside_for_one_letter_is_refused(tmp_path, blob, message):
    with pytest.raises(ModelError, match=f"precompiled_charsmap as a map that no text leads out of, found '{message}"):
        check_gguf(write(tmp_path, unigram(blob)))


def test_a_character_map_of_other_items_or_beyond_the_bound_is_refused(tmp_path, monkeypatch):
    with pytest.raises(ModelError, match="found 'no bytes'"):
        check_gguf(write(tmp_path, unigram(b"\0", U32)))
    monkeypatch.setattr(gguf_charsmap, "MAX_BYTES", 100)
    with pytest.raises(ModelError, match="2,054 bytes, more than 100"):
        check_gguf(write(tmp_path, unigram(charsmap({}))))


def test_a_sound_character_map_passes_and_a_circle_in_it_ends(tmp_path):
    sound = charsmap({H: H | LEAF | 256 << 10, 256 ^ H: 1 << 31})
    circle = charsmap({H: H | H << 10, 256 ^ H: 0})
    for blob in (b"", sound, circle):
        assert check_gguf(write(tmp_path, unigram(blob))).metadata["tokenizer.ggml.model"] == "t5"


def test_the_map_that_sentencepiece_makes_passes():
    sentencepiece = pytest.importorskip("sentencepiece")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a text of some words", "and another one"] * 20),
        model_writer=model,
        vocab_size=30,
        model_type="unigram",
        hard_vocab_limit=False,
        minloglevel=2,
    )
    normalizer = dict(_fields(memoryview(model.getvalue())))[3]
    blob = bytes(dict(_fields(normalizer))[2])
    assert len(blob) > 200_000
    assert gguf_charsmap.charsmap_problem(blob) is None


def test_the_probe_writes_every_byte_and_every_latin_letter():
    assert set(probe_child._WIDE_TEXT) == set(range(256))
    assert set(map(chr, range(0x20, 0x7F))) <= set(probe_child._WIDE_TEXT[256:].decode())
