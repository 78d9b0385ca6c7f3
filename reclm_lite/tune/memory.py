"""What a stage will take, told from the checkpoint's header and configuration before anything is loaded.

    weights       n_parameters × bytes of the dtype (4.5 bits in nf4, the embeddings aside)
    optimizer     trained parameters × 4 bytes × (gradient + two moments), and the parameter itself where it is an
    adapter's activations   tokens of a pass × what the backward pass needs of each layer (or, with checkpointing, of
    one, and its input of
                  the others)
    logits        those that exist at a time × 4 bytes × 3 (logits, probabilities, gradient)
    sampling      tokens of a batch of answers × keys and values of every layer, and the logits of its last tokens;
    before anything is
                  learned, so that of this and of activations with logits the larger one counts

What a dialogue's length decides is told once more when the dialogues are read, before the first step
(`require_longest`). docs/results.md has it beside the peaks of real runs (0.74 to 1.22 of them); the libraries
themselves take about half a gigabyte.

On a CPU glibc keeps what large tensors leave free, in pieces that fit no other tensor: training with LoRA took 3.3 GB
so, and 1.9 GB where blocks of 4 MB and more are given back at once, for a tenth more time (`give_back_large_blocks`).
"""

import ctypes
import json
import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import InputError, ModelError
from ..memory import available_bytes, in_units, require
from .base import Base, BaseSettings, choose_device, choose_dtype, locate

LIBRARIES_BYTES = 550_000_000
_M_MMAP_THRESHOLD, _LARGE_BYTES = -3, 4_000_000  # of glibc's mallopt
_ANSWER_SHARE = 0.5  # of a pass's tokens at most, as a rule: a prompt is as long as its answer, or longer


@dataclass(frozen=True)
class Need:
    """Bytes, by what takes them."""

    weights: int
    optimizer: int
    activations: int
    logits: int
    sampling: int = 0

    @property
    def running(self) -> int:
        """What is not there yet when the model has been loaded."""
        return self.optimizer + max(self.activations + self.logits, self.sampling)

    @property
    def total(self) -> int:
        return LIBRARIES_BYTES + self.weights + self.running

    def __str__(self) -> str:
        sampling = f", or {in_units(self.sampling)} while answers are sampled" if self.sampling else ""
        return (
            f"{in_units(self.total)} (weights {in_units(self.weights)}, optimizer {in_units(self.optimizer)}, "
            "activations "
            f"{in_units(self.activations)} and logits {in_units(self.logits)}{sampling}, libraries "
            f"{in_units(LIBRARIES_BYTES)})"
        )


_MAX_HEADER_BYTES = 100 << 20  # as safetensors itself allows


def count_parameters(folder: Path) -> int:
    """Of a checkpoint, by the headers of its safetensors files."""
    total = 0
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with path.open("rb") as file:
                size = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(size)) if size < min(path.stat().st_size, _MAX_HEADER_BYTES) else None
            total += sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ModelError(
                f"transformers cannot load {folder} as a causal model: {path.name} has no header of safetensors; copy "
                "it again, or check --base"
            ) from error
    if not total:
        raise InputError(
            f"expected weights in safetensors in {folder}, found none; convert the checkpoint with transformers"
        )
    return total


@dataclass(frozen=True)
class Sizes:
    """Of a causal model. kv: the columns of its keys."""

    n_parameters: int
    width: int
    layers: int
    vocab: int
    ffn: int
    kv: int


def sizes_of(folder: Path) -> Sizes:
    """Of a checkpoint, by the names that transformers has for its settings. Raises InputError where they cannot be
    read."""
    import transformers

    path = folder / "config.json"
    try:
        config = transformers.AutoConfig.from_pretrained(folder).get_text_config()
    except Exception as error:  # not JSON, not an object, an architecture that this transformers lacks
        raise InputError(
            f"expected the settings of a model in {path}, found: {str(error).splitlines()[0][:300]}; copy it again, "
            "or check --base"
        ) from error
    found = [_first(config, name) for name in ("hidden_size", "num_hidden_layers", "vocab_size")]
    if None in found:
        raise InputError(
            f"expected width, layers and vocabulary of a causal model in {path}, found {found}; check --base"
        )
    width, layers, vocab = (int(n or 0) for n in found)
    n_heads = _first(config, "num_attention_heads") or 1
    one_of_keys = getattr(config, "multi_query", False) and not getattr(
        config, "new_decoder_architecture", False
    )  # Falcon, StarCoder
    kv = (1 if one_of_keys else _first(config, "num_key_value_heads", "num_kv_heads") or n_heads) * (
        _first(config, "head_dim") or width // n_heads
    )
    return Sizes(
        count_parameters(folder),
        width,
        layers,
        vocab,
        _first(config, "intermediate_size", "ffn_dim", "n_inner") or 4 * width,
        kv,
    )


def _first(config: Any, *names: str) -> int | None:
    """The first of these settings that is a number."""
    return next((value for name in names if isinstance(value := getattr(config, name, None), int)), None)


def estimate(
    settings: BaseSettings,
    *,
    lora_r: int,
    pass_tokens: int,
    n_adapters: int = 1,
    logits: int | None = None,
    sampled: tuple[int, int] = (0, 0),
    sizes: Sizes | None = None,
) -> Need:
    """The memory that training needs.

    lora_r: rank of the adapter, unless all weights are trained. n_adapters: adapters on the base. logits: the most that
    exist at a time (None: those of all answer tokens of a pass). sampled: (answers at a time, tokens of each with its
    prompt). sizes: of a base that has not been made yet.
    """
    device = choose_device(settings.device)
    size = choose_dtype(settings.dtype, device).itemsize
    m = sizes or sizes_of(locate(settings.base))
    weights = (
        m.n_parameters * 4
        if settings.full
        else round(m.n_parameters * 0.5625) + m.vocab * m.width * size
        if settings.qlora
        else m.n_parameters * size
    )
    lora = m.layers * lora_r * (2 * (m.width + m.width) + 2 * (m.width + m.kv) + 3 * (m.width + m.ffn))
    optimizer = 12 * m.n_parameters if settings.full else n_adapters * lora * 4 + 12 * lora
    # Per token of a layer: inputs and outputs of its products, of the norms (which reckon in float32) and of the gate.
    layer = (8 * m.width + 3 * m.kv + 4 * m.ffn) * size + 4 * m.width * 4
    if not settings.full:
        layer += (6 * m.width + m.ffn) * 9  # what dropout gives to the adapters, its masks, and their products
    per_token = m.layers * m.width * size + layer if settings.gradient_checkpointing else m.layers * layer
    n_logits = round(pass_tokens * _ANSWER_SHARE) * m.vocab
    n_answers, n_tokens = sampled
    sampling = n_answers * n_tokens * m.layers * 2 * m.kv * size + n_answers * m.vocab * 4 * 4
    return Need(
        weights,
        optimizer,
        pass_tokens * per_token,
        (n_logits if logits is None else min(n_logits, logits)) * 4 * 3,
        sampling,
    )


def require_memory(settings: BaseSettings, need: Need, remedy: str) -> str:
    """A line for the log. Raises ModelError where the memory of the device is too little. remedy: the options that make
    a pass smaller."""
    return require(need.total, "tuning", _told(need, settings, remedy), available=_available(settings))


def require_longest(base: Base, n_tokens: int, remedy: str, **of_estimate: Any) -> None:
    """Raises ModelError where the longest dialogue, of `n_tokens`, is too much for what the loaded model has left.
    of_estimate: what `estimate` is to be given.
    """
    need = estimate(base.settings, sizes=sizes_of(base.path), **of_estimate)
    what = f"a pass with the longest dialogue, {n_tokens:,} tokens,"
    require(need.running, what, _told(need, base.settings, remedy), available=_available(base.settings))


def _told(need: Need, settings: BaseSettings, remedy: str) -> str:
    """What takes the memory, and what would take less and has not been given yet."""
    ways = [remedy] + ["--gradient-checkpointing"] * (not settings.gradient_checkpointing)
    ways += ["LoRA in the place of --full"] if settings.full else ["--qlora"] * (not settings.qlora)
    return f"Tuning takes {need}. Give {', '.join(ways)}, or a smaller {'model' if settings.full else 'base'}."


def _available(settings: BaseSettings) -> int:
    """Of the device; off a GPU, a share for each of the processes that run on this machine (`torchrun` and accelerate
    tell how many)."""
    device = choose_device(settings.device)
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return available_bytes() // max(1, int(os.environ.get("LOCAL_WORLD_SIZE") or 1))


def give_back_large_blocks() -> None:
    """From here on, memory of freed tensors of 4 MB and more goes back to the system at once. For the whole process; on
    Linux alone."""
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none, and nothing to mend
        if mallopt is not None:
            mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
