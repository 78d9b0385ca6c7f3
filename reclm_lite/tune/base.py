"""The base model of a run: one causal language model, its tokenizer, and what they must have.

A base is a local folder as transformers saves it, or a name on a hub, which is fetched into transformers' cache. A
tokenizer with a chat template makes it a chat model (form "instruct"); without one it reads the compact prompt. A pad
token is not needed: padded places are masked, so where there is none the end token fills them.

Left out: adapters (adapters.py), and what is trained.
"""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..errors import InputError, ModelError
from ..prompts.forms import form_for, prompt_form

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_SAMPLE = 1 << 16  # bytes of each end of a weight file that its fingerprint reads


@dataclass(frozen=True)
class BaseSettings:
    """base: a folder or a hub name. device: "auto" (a GPU where there is one), "cpu", "cuda", "cuda:1", "mps". dtype:
    "auto" (bfloat16 on a GPU, float32 elsewhere), "float32" or "bfloat16". qlora: base weights in 4 bits (nf4), by
    bitsandbytes.
    gradient_checkpointing: activations are computed anew in the backward pass. full: all weights will be trained, so
    they stay float32 and bfloat16 is what is computed in.
    """

    base: str
    device: str = "auto"
    dtype: str = "auto"
    qlora: bool = False
    gradient_checkpointing: bool = False
    full: bool = False


@dataclass
class Base:
    """A base model and its tokenizer.

    model: a causal model of transformers or, once it has adapters, peft's wrapper around it. form: name of a
    prompt form. name: its folder, or its name on the hub. fingerprint: of configuration and weights; adapters store it.
    settings: those it was loaded with.
    """

    model: Any
    tokenizer: Any
    form: str
    device: torch.device
    dtype: torch.dtype
    fingerprint: str
    path: Path
    name: str
    settings: BaseSettings
    notes: list[str] = field(default_factory=list)

    @property
    def causal(self) -> Any:
        """The causal model itself, whatever adapters it has."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    @property
    def autocast(self) -> bool:
        """Whether it computes in bfloat16 over float32 weights."""
        return self.settings.full and self.dtype == torch.bfloat16

    @property
    def dtype_name(self) -> str:
        """Of the weights, for a run's settings."""
        return "nf4" if self.settings.qlora else str(self.dtype).removeprefix("torch.")

    @property
    def n_ctx(self) -> int:
        """Positions that the model was made for."""
        return int(getattr(self.causal.config.get_text_config(), "max_position_embeddings", None) or 1 << 30)

    @property
    def pad_id(self) -> int:
        """What fills padded places; they are masked."""
        return int(
            self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.tokenizer.eos_token_id
        )

    @property
    def width(self) -> int:
        """Columns of the hidden states."""
        return int(self.causal.get_input_embeddings().weight.shape[1])

    def hidden(
        self, ids: torch.Tensor, mask: torch.Tensor | None = None, positions: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The last layer's states (batch, length, width) of ids int64 (batch, length), through the adapter in use.

        mask: 1 where a token is, or None. positions: int64 (batch, length); where they begin anew in a row, sequences
        are packed in it and do not see one another.
        """
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.autocast):
            return self.causal.get_decoder()(
                input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False
            ).last_hidden_state

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """float32 (…, vocabulary) of hidden states (…, width): the head, and the scale (Granite, Cohere) or soft cap
        (Gemma 2) of models that have one."""
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.autocast):
            logits = self.causal.get_output_embeddings()(hidden)
        config = self.causal.config
        logits = (
            logits.float()
            * (getattr(config, "logit_scale", None) or 1)
            / (getattr(config, "logits_scaling", None) or 1)
        )
        cap = getattr(config, "final_logit_softcapping", None)
        return torch.tanh(logits / cap) * cap if cap else logits


def use_threads(n_threads: int) -> None:
    """CPU threads of torch, for the whole process."""
    torch.set_num_threads(n_threads)


def choose_device(name: str) -> torch.device:
    """The device of a name; raises InputError where it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"expected a device such as auto, cpu, cuda or cuda:1, found {name!r}") from error
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        found = f"{torch.cuda.device_count()} of them" if torch.cuda.is_available() else "none that this torch can use"
        raise InputError(
            f"expected a GPU for --device {name}, found {found}; give --device cpu, or install torch for your GPU"
        )
    if device.type not in ("cpu", "cuda", "mps"):
        raise InputError(f"expected a device such as auto, cpu, cuda or cuda:1, found {name!r}")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise InputError("expected an Apple GPU for --device mps, found none; give --device cpu")
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """bfloat16 on a GPU, float32 elsewhere, unless the name says otherwise."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if name not in DTYPES:
        raise InputError(f"expected a dtype among auto, {', '.join(DTYPES)}, found {name!r}")
    return DTYPES[name]


def locate(name: str) -> Path:
    """The folder of a base: a local one, or a hub's model, fetched. Raises InputError where neither is to be had."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise InputError(f"expected a model's folder with a config.json at {folder}, found none; check --base")
        return folder
    if folder.exists() or name.startswith((".", "/", "~")):
        raise InputError(f"expected a model's folder at {folder}, found none; check --base")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt"]))
    except Exception as error:  # the hub's client fails in many ways, and each says little to a user
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise InputError(
            f"expected a folder or a model on the hub named {name!r}, found neither ({reason}); give a local folder"
        ) from error


def fingerprint(folder: Path) -> str:
    """16 hex digits of configuration, tokenizer and chat template, and of size, beginning and end of every weight file.

    The files may be many gigabytes. The beginning of a safetensors file holds names, shapes and dtypes.
    """
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for name in ("tokenizer.json", "chat_template.jinja"):
        if (folder / name).is_file():
            digest.update((folder / name).read_bytes())
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{size}".encode())
        with path.open("rb") as file:
            digest.update(file.read(_SAMPLE))
            file.seek(max(0, size - _SAMPLE))
            digest.update(file.read(_SAMPLE))
    return digest.hexdigest()[:16]


def load_base(settings: BaseSettings) -> Base:
    """Load a base. Raises InputError where the folder, the device or a library is missing, ModelError where it cannot
    serve."""
    import transformers

    device = choose_device(settings.device)
    dtype = choose_dtype(settings.dtype, device)
    folder = locate(settings.base)
    options: dict[str, Any] = {"dtype": torch.float32 if settings.full else dtype}
    if settings.qlora:
        options["quantization_config"] = _nf4(device, dtype, settings)
        options["device_map"] = {"": device}
    transformers.utils.logging.disable_progress_bar()
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, **options)
    except Exception as error:  # whatever the folder holds, transformers' own words say it best
        raise ModelError(
            f"transformers cannot load {folder} as a causal model ({str(error).splitlines()[0][:300]}); check --base"
        ) from error
    if not settings.qlora:
        model.to(device)
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"expected a tokenizer with an end token (eos_token) in {folder}, found none; answers could not end"
        )
    n_rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > n_rows:
        raise ModelError(
            f"expected at most {n_rows} tokens as the model in {folder} has embeddings, found a tokenizer of "
            f"{len(tokenizer)}"
        )
    base = Base(
        model,
        tokenizer,
        form_for(bool(tokenizer.chat_template)),
        device,
        dtype,
        fingerprint(folder),
        folder,
        folder.name if Path(settings.base).expanduser().is_dir() else settings.base,
        settings,
    )
    if not prompt_form(base.form).uses_chat_template:
        base.notes.append("the base has no chat template: it is shown the compact prompt as plain text")
    if tokenizer.pad_token_id is None:
        base.notes.append("the base has no pad token: the end token fills padded places, which are masked")
    model.config.use_cache = False
    for parameter in model.parameters():
        parameter.requires_grad_(settings.full and parameter.is_floating_point())
    if settings.gradient_checkpointing:
        if hasattr(model, "activation_checkpointing_enable"):  # what newer versions of transformers call it
            model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        else:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    _check_head(base)
    return base


def _nf4(device: torch.device, dtype: torch.dtype, settings: BaseSettings) -> Any:
    if settings.full:
        raise InputError("expected LoRA with --qlora, found --full: weights in 4 bits cannot be trained; leave one out")
    if device.type not in ("cuda", "cpu"):
        raise InputError(f"expected a GPU of CUDA, or a CPU, for --qlora, found {device.type}; leave out --qlora")
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise InputError(
            'expected the package bitsandbytes for --qlora, found none; run `pip install "reclm-lite[qlora]"`'
        ) from error
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype, bnb_4bit_use_double_quant=True
    )


@torch.no_grad()
def _check_head(base: Base) -> None:
    """Losses ask for logits of answers alone; that they are the model's own is seen on a few tokens."""
    ids = torch.arange(6, device=base.device)[None] % base.causal.config.get_text_config().vocab_size
    was_training = base.causal.training
    base.causal.eval()
    try:
        with torch.autocast(base.device.type, dtype=torch.bfloat16, enabled=base.autocast):
            whole = base.causal(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits.float()
        apart = base.logits(base.hidden(ids, torch.ones_like(ids)))
    finally:
        base.causal.train(was_training)
    if not bool(torch.isfinite(whole).all()):
        raise ModelError(
            f"expected finite logits of {base.path}, found others: its weights are damaged, or too large for "
            f"{base.dtype_name}; copy it again, or give --dtype float32"
        )
    # transformers scales and caps in the dtype of the head, and bfloat16 has 8 bits.
    bound = 1e-3 if base.dtype == torch.float32 else 2e-2
    if whole.shape != apart.shape or not torch.allclose(whole, apart, rtol=bound, atol=bound):
        raise ModelError(
            f"expected logits of {base.path} that are the output layer of its last states, found others: this "
            "architecture "
            f"({base.causal.config.model_type}) is not supported; use a Llama, Mistral, Qwen or Gemma model"
        )


@torch.no_grad()
def keeps_apart(base: Base) -> bool:
    """Whether sequences packed in one row do not see one another: the second's states are the same whatever the first
    is.

    Models of ALiBi, of positions counted from the mask (OPT) or of a running state (Mamba) cannot tell where one
    begins.
    """
    n_ids = base.causal.config.get_text_config().vocab_size
    second = torch.arange(14) * 3
    positions = torch.cat([torch.arange(9), torch.arange(len(second))])[None].to(base.device)
    was_training = base.causal.training
    base.causal.eval()
    try:
        one, other = (
            base.hidden((torch.cat([first, second])[None] % n_ids).to(base.device), positions=positions)[0, 9:].float()
            for first in (torch.arange(9), torch.arange(9) + 20)
        )
    finally:
        base.causal.train(was_training)
    # Equal to the bit, but where experts are dealt tokens in batches; what a small random model lets through was 0.004
    # and more.
    return bool((one - other).square().mean().sqrt() <= (1e-5 if base.dtype_name == "float32" else 1e-3) * one.std())
