"""PEFT adapters with random values over the tiny checkpoints of checkpoints.py, and what peft makes of them."""

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np


@contextmanager
def quiet() -> Iterator[None]:
    """peft warns of every unusual adapter, and unusual adapters are what is tested."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.disable(level)


def write_checkpoint(directory: Path, tensors: dict[str, np.ndarray], **config: Any) -> Path:
    """A checkpoint of any tensors, without torch."""
    from safetensors.numpy import save_file

    directory.mkdir(parents=True, exist_ok=True)
    save_file(tensors, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]} | config))
    return directory


def write_adapter(directory: Path, tensors: dict[str, np.ndarray], **config: Any) -> Path:
    """An adapter of any tensors (named from the module on) and settings, without peft."""
    from safetensors.numpy import save_file

    directory.mkdir(parents=True, exist_ok=True)
    save_file(
        {f"base_model.model.{name}": tensor for name, tensor in tensors.items()},
        directory / "adapter_model.safetensors",
    )
    (directory / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4} | config))
    return directory


def load_base(base: Path, n_vocab: int | None = None) -> Any:
    """The base in float32 as its configuration names it, its vocabulary resized to `n_vocab`."""
    import torch
    import transformers

    torch.manual_seed(3)
    kind = json.loads((base / "config.json").read_text())["architectures"][0]
    model = getattr(transformers, kind).from_pretrained(base, dtype=torch.float32).eval()
    if n_vocab:
        model.resize_token_embeddings(n_vocab)
    return model


def save_adapter(base: Path, out: Path, *, n_vocab: int | None = None, r: int = 4, **settings: Any) -> Path:
    """A LoRA with every trainable value drawn at random, saved by peft's `save_pretrained` to `out`."""
    import torch
    from peft import LoraConfig, get_peft_model

    with quiet():
        model = get_peft_model(load_base(base, n_vocab), LoraConfig(r=r, **{"lora_alpha": 8} | settings))
        torch.manual_seed(11)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.1 * torch.randn_like(parameter)
        model.save_pretrained(out)
    return out


def attach(base: Path, adapter: Path, n_vocab: int | None = None) -> Any:
    """The base with its adapter attached by peft, not merged: the model that was trained."""
    from peft import PeftModel

    with quiet():
        return PeftModel.from_pretrained(load_base(base, n_vocab), adapter).eval()


def merged_by_peft(base: Path, adapter: Path, n_vocab: int | None = None) -> dict[str, np.ndarray]:
    """The float32 tensors that `merge_and_unload` makes."""
    with quiet():
        merged = attach(base, adapter, n_vocab).merge_and_unload()
    return {name: tensor.numpy() for name, tensor in merged.state_dict().items()}


def model_of(source: Any) -> Any:
    """A transformers model, float32, of what a `Source` says: its configuration and every one of its tensors."""
    import torch
    import transformers

    with quiet():
        config = transformers.AutoConfig.for_model(**source.config)
        model = getattr(transformers, source.config["architectures"][0])(config).eval()
        tensors = {name: torch.from_numpy(source.tensor(name).astype(np.float32)) for name in source.tensors}
        absent, leftover = model.load_state_dict(tensors, strict=False)
    assert not leftover
    assert set(absent) <= ({"lm_head.weight"} if config.tie_word_embeddings else set())
    return model
