"""Tokenizers of the structures that checkpoints have, trained on the spot, for the tests of vocabularies.

Each function writes the files of one tokenizer, and a config.json that says only how large the vocabulary is.
`vocabulary_gguf` makes the GGUF file that holds nothing else.
"""

import json
import struct
from pathlib import Path
from typing import Any

from reclm_lite.convert.parity.sentences import SENTENCES
from reclm_lite.convert.parity.strings import texts
from reclm_lite.convert.vocab import Vocabulary, read_vocabulary, write_vocabulary

BOS, EOS, END_OF_TURN = "<|begin|>", "<|end_of_text|>", "<|im_end|>"
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def corpus() -> list[str]:
    """Many scripts, code and numbers, so that merges cross every boundary a pre-tokenizer may draw."""
    return [text for text in (*SENTENCES, *texts()[::3]) if "\0" not in text] * 2


def save(directory: Path, tokenizer: dict[str, Any], settings: dict[str, Any], n_vocab: int | None = None) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    vocab, added = tokenizer["model"]["vocab"], tokenizer.get("added_tokens") or []
    n_vocab = n_vocab or 1 + max([*vocab.values(), *(token["id"] for token in added)])
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    (directory / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    (directory / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": n_vocab}))
    return directory


def split(pattern: str, behavior: str = "Isolated", invert: bool = False) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": invert}


def byte_level(own_regex: bool, **changes: Any) -> dict[str, Any]:
    step = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": own_regex}
    return step | changes


def template(before: tuple[str, int] | None, after: tuple[str, int] | None = None) -> dict[str, Any]:
    """A post_processor with one token before a text, one after it, or both."""

    def special(token: tuple[str, int] | None, n: int) -> list[dict[str, Any]]:
        return [{"SpecialToken": {"id": token[0], "type_id": n}}] if token else []

    def text(name: str, n: int) -> list[dict[str, Any]]:
        return [*special(before, n), {"Sequence": {"id": name, "type_id": n}}, *special(after, n)]

    tokens = [token for token in (before, after) if token]
    return {
        "type": "TemplateProcessing",
        "single": text("A", 0),
        "pair": text("A", 0) + text("B", 1),
        "special_tokens": {name: {"id": name, "ids": [i], "tokens": [name]} for name, i in tokens},
    }


def save_bpe(
    directory: Path,
    steps: list[dict[str, Any]],
    *,
    n_vocab: int = 1500,
    ignore_merges: bool = False,
    normalizer: dict[str, Any] | None = None,
    merges_as_pairs: bool = True,
    add_bos: bool = True,
    settings: dict[str, Any] | None = None,
    padded_to: int | None = None,
) -> Path:
    """A byte-level BPE with the pre-tokenizer `steps`, as transformers saves it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    whole = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": normalizer,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps} if len(steps) > 1 else steps[0],
        "model": {"type": "BPE", "vocab": {}, "merges": []},
    }
    tokenizer = Tokenizer.from_str(json.dumps(whole))
    tokenizer.model = models.BPE()
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=n_vocab, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.add_special_tokens([BOS, EOS, END_OF_TURN])
    tokenizer.add_tokens(["<tool>"])
    made = json.loads(tokenizer.to_str())
    made["model"]["ignore_merges"] = ignore_merges
    if not merges_as_pairs:
        made["model"]["merges"] = [" ".join(pair) for pair in made["model"]["merges"]]
    bos = tokenizer.token_to_id(BOS)
    made["post_processor"] = template((BOS, bos)) if add_bos else byte_level(False)
    named = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BOS, "eos_token": EOS, "pad_token": EOS}
    return save(directory, made, named | {"chat_template": TEMPLATE} | (settings or {}), padded_to)


def _message(field: int, data: bytes) -> bytes:
    """A length-delimited field of a protocol buffer."""

    def varint(value: int) -> bytes:
        low = value & 0x7F
        return bytes([low | 0x80]) + varint(value >> 7) if value > 0x7F else bytes([low])

    return varint(field << 3 | 2) + varint(len(data)) + data


def sentencepiece_file(pieces: list[tuple[str, float, int]], **settings: Any) -> bytes:
    """A `tokenizer.model` with these pieces (text, score, type); settings by name, see below."""
    settings = {"model_type": 2, "prefix": True, "extra_spaces": False, "charsmap": b"", "name": b"identity"} | settings
    body = b"".join(
        _message(1, _message(1, text.encode()) + b"\x15" + struct.pack("<f", score) + b"\x18" + bytes([kind]))
        for text, score, kind in pieces
    )
    trainer = b"\x18" + bytes([settings["model_type"]]) + b"\x98\x02\x01"  # and byte_fallback
    if any(kind == 6 for _, _, kind in pieces):
        trainer += b"\x98\x02\x01"  # byte_fallback, without which the sentencepiece package refuses byte pieces
    normalizer = _message(1, settings["name"]) + (_message(2, settings["charsmap"]) if settings["charsmap"] else b"")
    normalizer += b"\x18" + bytes([settings["prefix"]]) + b"\x20" + bytes([settings["extra_spaces"]])
    return body + _message(2, trainer) + _message(3, normalizer)


def pieces_of_sentencepiece(
    n_merged: int = 1200, further: tuple[tuple[str, int], ...] = ()
) -> list[tuple[str, float, int]]:
    """Pieces as SentencePiece trains them for a BPE with byte fallback: unknown, control, bytes, merged, characters.

    `further` are pieces (text, type) put after </s>.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    common = [text for text in corpus() if max(map(ord, text), default=0) < 0x500]  # the rest needs the bytes
    trainer = trainers.BpeTrainer(vocab_size=n_merged, show_progress=False, max_token_length=16)
    tokenizer.train_from_iterator(common, trainer)
    order = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    merged = [text for text, _ in order if len(text) > 1]
    merged += ["\u2581" * n for n in (2, 3, 4, 8)]  # Llama 2 has runs of spaces
    merged = [text for text in dict.fromkeys(merged) if text not in dict(further)]
    characters = [text for text, _ in order if len(text) == 1]
    pieces = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3), *((text, 0.0, kind) for text, kind in further)]
    pieces += [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)]
    pieces += [(text, -float(i), 1) for i, text in enumerate(merged)]
    return pieces + [(text, -float(len(merged) + i), 1) for i, text in enumerate(characters)]


def merges_of_pieces(pieces: list[tuple[str, float, int]]) -> list[list[str]]:
    """Every pair of pieces that makes a piece, best score first: the merges that a converter writes."""
    id_of = {text: i for i, (text, _, _) in enumerate(pieces)}
    found = []
    for text, score, _ in pieces:
        pairs = [(text[:i], text[i:]) for i in range(1, len(text))]
        inside = [pair for pair in pairs if pair[0] in id_of and pair[1] in id_of]
        found += [(-score, n, pair) for n, pair in enumerate(sorted(inside, key=lambda p: (id_of[p[0]], id_of[p[1]])))]
    return [list(pair) for _, _, pair in sorted(found, key=lambda item: item[0])]


SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
PREPEND = {"type": "Prepend", "prepend": "\u2581"}
LEGACY = {"normalizer": {"type": "Sequence", "normalizers": [PREPEND, SPACES]}, "pre_tokenizer": None}
GEMMA = {
    "normalizer": SPACES,
    "pre_tokenizer": {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False},
}


def metaspace(scheme: str) -> dict[str, Any]:
    step = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": scheme, "split": False}
    return {"normalizer": None, "pre_tokenizer": step}


def save_sentencepiece(
    directory: Path,
    structure: dict[str, Any],
    *,
    files: tuple[str, ...] = ("tokenizer.json", "tokenizer.model"),
    settings: dict[str, Any] | None = None,
    added: tuple[tuple[str, bool], ...] = (("<tool>", False), ("<|im_end|>", True)),
    further: tuple[tuple[str, int], ...] = (),
    padded_to: int | None = None,
    tokenizer_class: str = "PreTrainedTokenizerFast",
) -> Path:
    """A SentencePiece BPE; `structure` holds normalizer and pre_tokenizer of its tokenizer.json."""
    pieces = pieces_of_sentencepiece(further=further)
    named = [("<unk>", True), ("<s>", True), ("</s>", True), *((text, kind == 3) for text, kind in further), *added]
    id_of = {text: i for i, (text, _, _) in enumerate(pieces)}
    ids = {text: id_of.get(text, len(pieces) + n) for n, (text, _) in enumerate(named, -3 - len(further))}
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    made = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": ids[text], "content": text, "special": special} | plain for text, special in named],
        **structure,
        "post_processor": template(("<s>", 1)),
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": id_of,
            "merges": merges_of_pieces(pieces),
        },
    }
    base = {"tokenizer_class": tokenizer_class, "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    base |= {"add_bos_token": True, "add_eos_token": False, "chat_template": TEMPLATE}
    if "tokenizer.json" not in files:
        listed = {str(ids[token["content"]]): token for token in made["added_tokens"]}
        base["added_tokens_decoder"] = {i: {k: v for k, v in t.items() if k != "id"} for i, t in listed.items()}
    save(directory, made, base | (settings or {}), padded_to)
    if "tokenizer.json" not in files:
        (directory / "tokenizer.json").unlink()
    if "tokenizer.model" in files:
        prefix = structure.get("normalizer") != SPACES
        (directory / "tokenizer.model").write_bytes(sentencepiece_file(pieces, prefix=prefix))
    return directory


def save_wordpiece(directory: Path, *, lowercase: bool = True, n_vocab: int = 900) -> Path:
    """A WordPiece of BERT's structure."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=n_vocab, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    settings = {f"{kind}_token": token for kind, token in names.items()}
    return save(directory, json.loads(tokenizer.to_str()), {"tokenizer_class": "PreTrainedTokenizerFast"} | settings)


def vocabulary_gguf(
    directory: Path, path: Path, kinds: tuple[str, ...] = ("bpe", "sentencepiece", "wordpiece")
) -> Vocabulary:
    """Writes a GGUF with the vocabulary of `directory` alone, for `load_model(path, vocab_only=True)`."""
    from gguf import GGUFWriter

    vocabulary = read_vocabulary(directory, kinds, json.loads((directory / "config.json").read_text()))
    writer = GGUFWriter(path, "bert" if vocabulary.model == "bert" else "llama")
    writer.add_context_length(512)
    writer.add_embedding_length(64)
    writer.add_block_count(1)
    writer.add_head_count(4)
    writer.add_feed_forward_length(64)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_layer_norm_eps(1e-5)
    writer.add_causal_attention(vocabulary.model != "bert")
    write_vocabulary(writer, vocabulary)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return vocabulary
