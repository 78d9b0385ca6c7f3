"""A small base model from nothing: a tokenizer trained on the dialogues, and a Llama of random weights.

For tests, for recipes, and for whoever has no base at hand. The tokenizer is a byte-level BPE of GPT-2's structure,
which `reclm export` and llama.cpp know; there is no chat template, so the model reads the compact prompt.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from ..dialogue.records import SFT, read_dialogues
from ..errors import InputError
from ..files import atomic_folder, file_sha256, read_document
from ..own_paths import make_folder, require_own_tree

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
NOTE = "reclm.json"


@dataclass(frozen=True)
class ScratchSettings:
    """Sizes of the model. width must divide by heads; multiples of 256 quantize best (K-quants have rows of 256)."""

    vocab: int = 4096
    layers: int = 4
    width: int = 256
    ffn: int = 768
    heads: int = 4
    n_ctx: int = 1024
    seed: int = 0

    @property
    def n_parameters(self) -> int:
        """Of a model of these sizes, its embeddings used for the output too; the tokenizer may come to fewer tokens
        than asked for."""
        return (
            self.vocab * self.width
            + self.layers * (4 * self.width**2 + 3 * self.width * self.ffn + 2 * self.width)
            + self.width
        )

    def check(self) -> None:
        """Raises InputError where a size is impossible."""
        if self.width % self.heads or (self.width // self.heads) % 2:
            raise InputError(
                f"expected a width that divides by heads into even parts, found {self.width} and {self.heads}"
            )
        if self.vocab < 256 + 3:
            raise InputError(f"expected a vocabulary of at least 259 (bytes and special tokens), found {self.vocab}")


def train_tokenizer(texts: Iterable[str], vocab: int, n_ctx: int = 1024):
    """A byte-level BPE that puts BOS in front and ends with EOS only where it is told to."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    bos_id = tokenizer.token_to_id(BOS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, bos_id)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=PAD,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=n_ctx,
        add_bos_token=True,
        add_eos_token=False,
    )


def make_base(folder: Path, texts: Iterable[str], settings: ScratchSettings = ScratchSettings()) -> Path:
    """Write a base model of random weights to `folder`, its tokenizer trained on `texts`; returns the folder."""
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging as transformers_logging

    settings.check()
    tokenizer = train_tokenizer(texts, settings.vocab, settings.n_ctx)
    state = torch.get_rng_state()
    torch.manual_seed(settings.seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=max(len(tokenizer), settings.vocab),
            hidden_size=settings.width,
            intermediate_size=settings.ffn,
            num_hidden_layers=settings.layers,
            num_attention_heads=settings.heads,
            num_key_value_heads=settings.heads,
            max_position_embeddings=settings.n_ctx,
            rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
            rms_norm_eps=1e-5,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=2,
            initializer_range=0.02,
        )
    )
    torch.set_rng_state(state)
    transformers_logging.disable_progress_bar()
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _about(note: Path) -> object:
    try:
        return json.loads(read_document(note))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"expected a note of this project in {note}, found: {error}; remove its folder, or give another --out"
        ) from error


def base_for(dialogues: Path, folder: Path, settings: ScratchSettings, *, fresh: bool = False) -> bool:
    """Have a base in `folder`, its tokenizer trained on a file of SFT dialogues; whether it was made now.

    Raises InputError where files of another make lie there, or (without `fresh`) a base of other sizes or dialogues.
    """
    settings.check()
    require_own_tree(folder)
    note, about = (
        folder / NOTE,
        {**asdict(settings), "dialogues_sha256": file_sha256(dialogues) if dialogues.is_file() else ""},
    )
    found = _about(note) if note.is_file() else None
    if found == about:
        return False
    if folder.exists() and (found is None or not fresh):
        what, remedy = (
            ("files of another make", "") if found is None else ("a base of other sizes or dialogues", ", or --fresh")
        )
        raise InputError(
            f"expected a base made here before, or nothing, at {folder}, found {what}; give another --out{remedy}"
        )
    texts = (message.text for dialogue in read_dialogues(dialogues, SFT, part="train") for message in dialogue.messages)
    make_folder(folder.parent)
    with atomic_folder(folder) as partial:
        make_base(partial, texts, settings)
        (partial / NOTE).write_text(json.dumps(about), encoding="utf-8")
    return True
