"""Untrusted headers and configurations: impossible values give an error before memory is allocated."""

import json
import random
import struct
from itertools import pairwise

import numpy as np
import pytest
import tokenizers_made as made
from adapters import write_adapter, write_checkpoint
from checkpoints import train_bpe, train_llama2

from reclm_lite.chat_template import TemplateFailed
from reclm_lite.convert import bounded_files, merge
from reclm_lite.convert.adapter import Adapter
from reclm_lite.convert.checkpoint import Checkpoint
from reclm_lite.convert.families import bert
from reclm_lite.convert.imatrix_file import read_imatrix
from reclm_lite.convert.merge import open_source
from reclm_lite.convert.parity import templates
from reclm_lite.convert.stored import read_header
from reclm_lite.convert.vocab import read_vocabulary, table
from reclm_lite.convert.vocab.bpe import merged_by_ranks
from reclm_lite.errors import ModelError

FACTORS = {"q.lora_A.weight": np.ones((2, 4), np.float32), "q.lora_B.weight": np.ones((4, 2), np.float32)}


def header(entry: bytes, n_data: int = 4) -> bytes:
    text = b'{"a":' + entry + b"}"
    return struct.pack("<Q", len(text)) + text + bytes(n_data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (header(b'{"dtype":"F32","shape":[1' + b"0" * 4000 + b'],"data_offsets":[0,4]}'), "a shape of whole numbers"),
        (header(b'{"dtype":"F32","shape":[1],"data_offsets":[0,1' + b"0" * 4299 + b"]}"), "two rising data_offsets"),
        (header(b'{"dtype":"F32","shape":[' + b"1," * 20 + b'1],"data_offsets":[0,4]}'), "a shape of whole numbers"),
        (header(b'{"dtype":"F32","shape":[true],"data_offsets":[0,4]}'), "a shape of whole numbers"),
        (header(b'{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}'), "a shape of whole numbers"),
        (header(b'{"dtype":"\\u001b[2J","shape":[1],"data_offsets":[0,4]}'), "a dtype such as F32"),
        (header(b"[" * 65 + b"]" * 65), "nested too deep"),
        (header(b"[" * 100_000), "nested too deep|JSON"),
        (struct.pack("<Q", 26 << 20) + bytes(26 << 20), "a header of at most"),
    ],
)
def test_a_safetensors_header_that_cannot_be_is_refused(tmp_path, data, message):
    (tmp_path / "x.safetensors").write_bytes(data)
    with pytest.raises(ModelError, match=message) as caught:
        read_header(tmp_path / "x.safetensors")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"lora_alpha": 10**400}, "a number above 0 as lora_alpha"),
        ({"r": True}, "a number above 0 as r"),
        ({"alpha_pattern": {"q": 10**30}}, "alpha_pattern"),
        ({"\x1b[2J": 1}, "settings that are known here"),
    ],
)
def test_an_adapters_number_that_would_overflow_is_refused(tmp_path, config, message):
    with pytest.raises(ModelError, match=message) as caught:
        Adapter(write_adapter(tmp_path, FACTORS, **config)).scale("q")
    assert str(caught.value).isprintable()


def test_a_configuration_too_large_or_too_deep_is_refused(tmp_path, monkeypatch):
    write_checkpoint(tmp_path / "base", {"a": np.ones(1, np.float32)})
    write_adapter(tmp_path / "adapter", FACTORS)
    for read, file in ((Checkpoint, "base/config.json"), (Adapter, "adapter/adapter_config.json")):
        path = tmp_path / file
        path.write_text('{"a":' + "[" * 70 + "]" * 70 + "}")
        with pytest.raises(ModelError, match="nested too deep"):
            read(path.parent)
        path.write_bytes(b'"' + b" " * bounded_files.MAX_CONFIG_BYTES + b'"')
        with pytest.raises(ModelError, match="expected at most 4,194,304 bytes in .*json"):
            read(path.parent)


@pytest.mark.parametrize("path", ["../other", "/etc", "a/../../b", "\x1b", ""])
def test_an_encoders_pooling_is_read_from_its_own_folder_only(tmp_path, path):
    (tmp_path / "modules.json").write_text(json.dumps([{"type": "x.Pooling", "path": path}]))
    with pytest.raises(ModelError, match="a folder of the checkpoint as path of its Pooling"):
        bert._pooling(tmp_path)


def legacy(*names: bytes) -> bytes:
    entries = b"".join(struct.pack("<i", len(name)) + name + struct.pack("<ii2f", 1, 2, 1.0, 2.0) for name in names)
    return struct.pack("<i", len(names)) + entries


def test_an_importance_matrix_names_each_weight_once(tmp_path):
    (tmp_path / "x.dat").write_bytes(legacy(b"a", b"a"))
    with pytest.raises(ModelError, match="each name once .*'a' twice"):
        read_imatrix(tmp_path / "x.dat")
    (tmp_path / "x.dat").write_bytes(legacy(b"a", b"b"))
    assert set(read_imatrix(tmp_path / "x.dat").entries) == {"a", "b"}


@pytest.mark.parametrize(("kind", "value"), [(5, struct.pack("<i", -1)), (7, b"\1"), (10, struct.pack("<Q", 2**63))])
def test_an_importance_matrix_counts_from_0(tmp_path, kind, value):
    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    keys = text("general.type") + struct.pack("<I", 8) + text("imatrix")
    keys += (
        text("imatrix.datasets")
        + struct.pack("<IIQ", 9, 8, 1)
        + text("a")
        + text("imatrix.chunk_size")
        + struct.pack("<II", 4, 512)
    )
    keys += text("imatrix.chunk_count") + struct.pack("<I", kind) + value
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 4) + keys)
    with pytest.raises(ModelError, match="imatrix.chunk_count"):
        read_imatrix(tmp_path / "x.gguf")


@pytest.mark.parametrize(
    "content",
    [b"\x0a\x09\x08" + b"\xff" * 7 + b"\x7f", b"\x1a\x09\x08" + b"\xff" * 7 + b"\x7f"],
    ids=["piece", "normalizer"],
)
def test_a_number_in_the_place_of_a_sentencepiece_text_is_refused_and_not_made_into_so_many_zeros(tmp_path, content):
    from reclm_lite.convert.vocab.spm_file import read_sentencepiece

    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(ModelError, match="in the place of a text"):
        read_sentencepiece(tmp_path / "tokenizer.model")


def test_many_patterns_on_many_modules_have_one_bound_together():
    from reclm_lite.convert.adapter import Adapter

    adapter = object.__new__(Adapter)
    adapter.directory, adapter._by_module, adapter._n_steps = None, {}, 0
    adapter.config = {"rank_pattern": {f"(a*)*b{i}": 1 for i in range(300)}}
    with pytest.raises(ModelError, match="takes too long to compare with every module"):
        for module in range(300):
            adapter.rank(f"m{module}." + "a" * 200)


def merged_one_by_one(word: str, ranks: dict[tuple[str, str], int]) -> list[str]:
    """What `merged_by_ranks` gives, each merge looked for anew."""
    pieces = list(word)
    while len(pieces) > 1:
        rank, at = min((ranks.get(pair, len(ranks)), i) for i, pair in enumerate(pairwise(pieces)))
        if rank == len(ranks):
            break
        pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
    return pieces


def test_merging_gives_what_merging_one_by_one_gives():
    draw = random.Random(5)
    for _ in range(300):
        tokens, ranks = ["a", "b", "c"], {}
        for _ in range(draw.randrange(12)):
            pair = draw.choice(tokens), draw.choice(tokens)
            if pair not in ranks:
                ranks[pair] = len(ranks)
                tokens.append("".join(pair))
        word = "".join(draw.choice("abc") for _ in range(draw.randrange(1, 40)))
        assert merged_by_ranks(word, ranks) == merged_one_by_one(word, ranks), (word, ranks)


def test_merging_a_long_word_takes_look_ups_in_proportion():
    class Counted(dict):
        n = 0

        def get(self, *args):
            self.n += 1
            return super().get(*args)

    for word in ("a" * 2000, "ab" * 1000):
        tokens = {word[:i] for i in range(2, 2001)}
        ranks = Counted({(token[:-1], token[-1]): rank for rank, token in enumerate(sorted(tokens, key=len))})
        ranks |= {("aa", "aa"): -2, ("ab", "ab"): -1}
        merged_by_ranks(word, ranks)
        assert ranks.n < 3 * len(word)


@pytest.mark.parametrize("kind", ["bpe", "sentencepiece", "added"])
def test_tokens_have_a_bound_on_their_length_and_on_all_lengths_together(tmp_path, kind, monkeypatch):
    n = table.MAX_TOKEN_CHARS
    train = train_llama2 if kind == "sentencepiece" else train_bpe
    for name, length, together in (("longest", n, 8 << 20), ("long", n + 1, 8 << 20), ("many", n, 3000)):
        directory = tmp_path / name
        directory.mkdir()
        train(directory)
        tokenizer = json.loads((directory / "tokenizer.json").read_text())
        vocab, added = tokenizer["model"]["vocab"], tokenizer["added_tokens"]
        n_tokens = len({*vocab, *(token["content"] for token in added)})
        new = ["\u20ac" * length] if name != "many" else ["\u20ac" * length, "\u00a3" * length]
        if kind == "added":
            plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
            added += [{"id": n_tokens + i, "content": text, **plain} for i, text in enumerate(new)]
        else:
            vocab |= {text: n_tokens + i for i, text in enumerate(new)}
        (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
        monkeypatch.setattr(table, "MAX_VOCAB_CHARS", together)
        if name == "longest" and kind == "sentencepiece":
            continue  # the added tokens would have to follow it
        if name == "longest":
            read_vocabulary(directory, ("bpe", "sentencepiece"), {"vocab_size": 4096, "eos_token_id": 1})
            continue
        message = f"at most {n:,} characters" if name == "long" else "at most 3,000 characters in all"
        with pytest.raises(ModelError, match=message):
            read_vocabulary(directory, ("bpe", "sentencepiece"), {"vocab_size": 4096, "eos_token_id": 1})


def test_a_piece_of_a_lone_sentencepiece_model_has_a_bound(tmp_path):
    pieces = [*made.pieces_of_sentencepiece(300), ("x" * 2049, -1.0, 1)]
    (tmp_path / "tokenizer.model").write_bytes(made.sentencepiece_file(pieces))
    with pytest.raises(ModelError, match=r"at most 2,048 characters in .*tokenizer.model"):
        read_vocabulary(tmp_path, "sentencepiece", {"vocab_size": 4096})


def test_added_tokens_have_a_bound_on_their_number(tmp_path, monkeypatch):
    train_bpe(tmp_path)
    monkeypatch.setattr(table, "_MAX_ADDED", 2)
    with pytest.raises(ModelError, match="at most 2 added tokens"):
        read_vocabulary(tmp_path, "bpe", {"vocab_size": 4096})


def test_what_a_chat_template_writes_for_all_conversations_has_one_bound():
    n = templates.MAX_CHARS // len(templates.CONVERSATIONS)
    assert len(templates.rendered(f"{{{{ 'x' * {n} }}}}", {})) == len(templates.CONVERSATIONS)
    with pytest.raises(TemplateFailed, match="it writes more than 1,000,000 characters"):
        templates.rendered("{% if messages | length == 1 %}{{ 'x' * 1000001 }}{% endif %}", {})
    with pytest.raises(TemplateFailed, match="characters for 15 conversations, more than 500,000"):
        templates.rendered(f"{{{{ 'x' * {n + 1} }}}}", {})


def test_counts_of_names_that_are_compared_with_each_other_are_bounded(tmp_path, monkeypatch):
    folder = write_adapter(tmp_path / "a", FACTORS, trainable_token_indices={f"m{i}": [0] for i in range(65)})
    with pytest.raises(ModelError, match="at most 64 modules in trainable_token_indices"):
        Adapter(folder)
    weights = {f"p{i}.q.weight": np.ones((4, 4), np.float32) for i in range(3)}
    base, adapter = write_checkpoint(tmp_path / "b", weights), write_adapter(tmp_path / "c", FACTORS)
    with pytest.raises(ModelError, match="several ways to name them"):
        open_source(base, adapter)
    monkeypatch.setattr(merge, "_MAX_PREFIXES", 2)
    with pytest.raises(ModelError, match="module 'q', which the base does not have"):
        open_source(base, adapter)
