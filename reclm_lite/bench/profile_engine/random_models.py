"""Random Llamas for `reclm bench profile`: real shapes and real token counts, no training.

Speed does not depend on what weights say. Equality of texts does: of 32,000 random logits the two largest lie within a
hundredth of their deviation in one step of twenty, which no trained model's do. So the weights are drawn in this way:

- Token vectors have deviation 1, and what the layers add is scaled by 1 / sqrt(2 n_layers), as in GPT-2, so that
  rounding is not amplified from layer to layer. Queries and keys are large enough for attention to pick few positions.
- Every token has four likely successors, one likelier than the other: their rows of the output matrix hold its vector,
  and a random part by which the context chooses among them. So texts differ from prompt to prompt, and the gaps between
  the two likeliest tokens are those of few candidates. A larger deviation of a random output matrix would not do: the
  gaps grow with it, and so does the rounding.
- Tokens other than words of plain ASCII have a zero row: no text ends early, breaks its line or is cut within a
character.

The tokenizer is byte-level BPE trained on the catalogue's texts; ids beyond what they give are unused.
Left out: chat templates.
"""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from ...convert.merge import open_source
from ...convert.quantize import quantize_gguf
from ...convert.write import write_gguf
from ...errors import InputError
from .. import machine
from ..random_llama import SPECIAL, Shape, normal_rows, write_checkpoint, write_tokenizer_config

# Rows of 256 and more, so that every matrix takes K-quants.
SHAPES = {
    "135m": Shape(hidden=768, feed_forward=2048, n_layers=14, n_heads=12, n_kv_heads=4),
    "1b": Shape(),
    "tiny": Shape(hidden=256, feed_forward=512, n_layers=2, n_heads=4, n_kv_heads=2, n_vocab=2048),
}
# Logits of a token's successors against deviation 1 of the rest, before what the layers add dilutes them.
_SUCCESSORS = (15.0, 13.0, 11.0, 9.0)
_ATTENTION_GAIN, _SHARPNESS = 2.0, 1.5
_BYTES_PER_PARAM = 6  # the checkpoint and its F16 file, then that and the quantized ones


def n_bytes_needed(shape: Shape) -> int:
    """Disk space that making a model takes."""
    return _BYTES_PER_PARAM * shape.n_params


def make_models(
    folder: Path, shape: Shape, quants: Sequence[str], texts: Sequence[str], seed: int, n_threads: int
) -> dict[str, Path]:
    """A GGUF file for each type in `folder`, of one model: {type: path}. `texts`: what the tokenizer is trained on."""
    tokenizer = _train_tokenizer(texts, shape.n_vocab)

    def write_tokenizer(directory: Path) -> None:
        tokenizer.save(str(directory / "tokenizer.json"))
        write_tokenizer_config(directory)

    folder.mkdir(parents=True)
    weights = _Weights(shape, _words_of(tokenizer))
    checkpoint = write_checkpoint(
        folder / "checkpoint", shape, seed, write_tokenizer=write_tokenizer, weights=weights.rows
    )
    unquantized = folder / "model-f16.gguf"
    write_gguf(open_source(checkpoint), unquantized, "f16")
    shutil.rmtree(checkpoint)
    made = {}
    for quant in quants:
        made[quant] = folder / f"model-{quant}.gguf"
        quantize_gguf(unquantized, made[quant], quant, n_threads=n_threads)
    unquantized.unlink()
    return made


def _train_tokenizer(texts: Sequence[str], n_vocab: int) -> Any:
    """Byte-level BPE of at most `n_vocab` pieces, as many as the texts give."""
    if not machine.installed("tokenizers"):
        raise InputError(
            "expected the package tokenizers, which trains the random models' vocabularies, found none; pip install "
            "tokenizers"
        )
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=n_vocab,
        min_frequency=2,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _words_of(tokenizer: Any) -> list[int]:
    """The ids of pieces that are ASCII letters or digits, with or without a space before them; "\u0120" is that
    space."""
    pieces = ((i, piece.removeprefix("\u0120")) for piece, i in tokenizer.get_vocab().items())
    return sorted(i for i, piece in pieces if piece.isascii() and piece.isalnum())


class _Weights:
    """The tensors of a `Shape`, in its order: token vectors come before the output matrix, which is made of them."""

    def __init__(self, shape: Shape, words: Sequence[int]):
        self.shape, self.words = shape, np.array(words)
        self.vectors = np.empty((shape.n_vocab, shape.hidden), np.float32)

    def rows(self, rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
        """Blocks of float32 rows of the tensor `name`."""
        if len(shape) == 1:
            yield 1 + 0.02 * rng.standard_normal(shape, dtype=np.float32)
        elif name == "model.embed_tokens.weight":
            at = 0
            for block in normal_rows(rng, shape, 1.0):
                self.vectors[at : at + len(block)] = block
                at += len(block)
                yield block
        elif name == "lm_head.weight":
            yield from self._output_rows(rng, shape)
        else:
            yield from normal_rows(rng, shape, self._gain(name) / np.sqrt(shape[1]))

    def _gain(self, name: str) -> float:
        """Deviation of a product's results, where what it multiplies has deviation 1."""
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            return _SHARPNESS
        added = 1 / np.sqrt(2 * self.shape.n_layers)
        if name.endswith("o_proj.weight"):
            return _ATTENTION_GAIN * added
        return added if name.endswith("down_proj.weight") else 1.0

    def _output_rows(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
        n_vocab, hidden = shape
        words, others = self.words, np.setdiff1d(np.arange(n_vocab), self.words)
        # before[i, t]: the part of token t's vector in row i. A word is the successor of four words, and of a few other
        # tokens.
        tokens, after, parts = [], [], []
        for logit in _SUCCESSORS:
            tokens += [words, others]
            after += [rng.permutation(words), rng.choice(words, len(others))]
            parts.append(np.full(n_vocab, logit / hidden, np.float32))
        places = (np.concatenate(after), np.concatenate(tokens))
        before = sp.csr_matrix((np.concatenate(parts), places), shape=(n_vocab, n_vocab))
        spoken = np.zeros((n_vocab, 1), np.float32)
        spoken[words] = 1
        at = 0
        for block in normal_rows(rng, (n_vocab, hidden), 1 / np.sqrt(hidden)):
            part = slice(at, at + len(block))
            yield spoken[part] * block + before[part] @ self.vectors
            at += len(block)
