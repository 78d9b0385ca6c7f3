"""Reads SentencePiece's `tokenizer.model` without the `sentencepiece` package.

Format: a protocol buffer, message ModelProto of sentencepiece_model.proto; field numbers are named below. Read are
the pieces and the settings that decide how text is split. Left out: everything else of the file, training settings
among it.
"""

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from reclm_lite.convert.bounded_files import MAX_TOKENIZER_BYTES, read_bounded
from reclm_lite.errors import ModelError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # SentencePiece.Type; gguf.TokenType is the same
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3  # ModelProto
_TEXT, _SCORE, _TYPE = 1, 2, 3  # ModelProto.SentencePiece
_MODEL_TYPE, _SUFFIX, _UNK_ID, _BOS_ID, _EOS_ID, _PAD_ID = 3, 24, 40, 41, 42, 43  # TrainerSpec
_NAME, _CHARSMAP, _DUMMY_PREFIX, _EXTRA_SPACES, _ESCAPE = 1, 2, 3, 4, 5  # NormalizerSpec
MODEL_TYPES = {1: "Unigram", 2: "BPE", 3: "Word", 4: "Char"}


@dataclass(frozen=True)
class SentencePieceModel:
    """Pieces as (text, score, type) by id, and the settings; `special_ids` by kind, without those set to none."""

    pieces: list[tuple[str, float, int]]
    model_type: str
    normalizer: str
    has_charsmap: bool
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool
    escape_whitespaces: bool
    whitespace_as_suffix: bool
    special_ids: dict[str, int]


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
        if shift > 63:
            raise ValueError("a number of over 64 bits")


def _fields(data: memoryview) -> Iterator[tuple[int, int | bytes | memoryview]]:
    """(field number, value) of one message: an int, four or eight raw bytes, or the bytes of a string or message."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        wire = key & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        if wire == 2:
            n_bytes, at = _varint(data, at)
        elif wire in (1, 5):
            n_bytes = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if at + n_bytes > len(data):
            raise ValueError("a field that runs over the end")
        yield key >> 3, data[at : at + n_bytes]
        at += n_bytes


def _signed(value: object, default: int) -> int:
    """An int32: negative ones are written as 64 bits."""
    if not isinstance(value, int):
        return default
    return value - (1 << 64) if value >= 1 << 63 else value


def _text(value: object) -> str:
    """A string of the message; of a number, `bytes` would make so many zeros."""
    if isinstance(value, int):
        raise ValueError(f"a number, {value}, in the place of a text")
    return bytes(value).decode()


def read_sentencepiece(path: Path) -> SentencePieceModel:
    """A `tokenizer.model`; ModelError if it is another file of that name, such as tiktoken's, or not whole."""
    pieces: list[tuple[str, float, int]] = []
    trainer: dict[int, object] = {}
    normalizer: dict[int, object] = {}
    try:
        for field, value in _fields(memoryview(read_bounded(path, MAX_TOKENIZER_BYTES))):
            if field == _PIECES:
                piece = dict(_fields(value))
                score = struct.unpack("<f", piece[_SCORE])[0] if _SCORE in piece else 0.0
                text, kind = _text(piece[_TEXT]), piece.get(_TYPE, NORMAL)
                if not math.isfinite(score) or kind not in range(NORMAL, BYTE + 1):
                    raise ValueError(f"piece {text!r} of score {score} and type {kind}")
                pieces.append((text, score, kind))
            elif field == _TRAINER:
                trainer = dict(_fields(value))
            elif field == _NORMALIZER:
                normalizer = dict(_fields(value))
        name = _text(normalizer.get(_NAME, b""))
        has_charsmap = len(normalizer.get(_CHARSMAP, b"")) > 0
    except (ValueError, IndexError, KeyError, TypeError, struct.error) as error:
        raise ModelError(
            f"{path} is not a complete SentencePiece model ({error}): copy it again, or remove it if the folder has a "
            "tokenizer.json"
        ) from error
    if not pieces:
        raise ModelError(f"expected a SentencePiece model in {path}, found no pieces in it; copy it again")
    ids = {
        "unk": _signed(trainer.get(_UNK_ID), 0),
        "bos": _signed(trainer.get(_BOS_ID), 1),
        "eos": _signed(trainer.get(_EOS_ID), 2),
        "pad": _signed(trainer.get(_PAD_ID), -1),
    }
    return SentencePieceModel(
        pieces=pieces,
        model_type=MODEL_TYPES.get(trainer.get(_MODEL_TYPE, 1), "unknown"),
        normalizer=name,
        has_charsmap=has_charsmap,
        add_dummy_prefix=bool(normalizer.get(_DUMMY_PREFIX, 1)),
        remove_extra_whitespaces=bool(normalizer.get(_EXTRA_SPACES, 1)),
        escape_whitespaces=bool(normalizer.get(_ESCAPE, 1)),
        whitespace_as_suffix=bool(trainer.get(_SUFFIX, 0)),
        special_ids={kind: token_id for kind, token_id in ids.items() if token_id >= 0},
    )
