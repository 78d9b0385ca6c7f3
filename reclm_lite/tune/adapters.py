"""LoRA adapters by name over one base, in peft's format, each with a note of the base it was trained on.

Policy, reference and reward are adapters of the same base; going from one to another loads nothing. An adapter's folder
holds peft's `adapter_config.json` and `adapter_model.safetensors`, which `reclm export --adapter` reads, and
`reclm.json`.
"""

import contextlib
import json
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import InputError
from ..files import read_document
from ..own_paths import require_own_path
from .base import Base

NOTE = "reclm.json"
WEIGHTS = "adapter_model.safetensors"
REWARD = "reward"  # the stage of adapters that score


@dataclass(frozen=True)
class LoraSettings:
    """Rank, scale and dropout of LoRA (arXiv 2106.09685). targets: "all-linear", or module names with commas
    between."""

    r: int = 8
    alpha: int = 16
    dropout: float = 0.1
    targets: str = "all-linear"


def add_adapter(
    base: Base,
    name: str,
    lora: LoraSettings,
    *,
    trainable: bool = True,
    load: Path | None = None,
    copy_of: str | None = None,
) -> None:
    """Put an adapter on the base: new (it changes nothing yet), of a folder (load), or a copy of one that is there
    (copy_of).

    A loaded or copied adapter keeps its own rank and targets; `lora` is not read then.
    """
    import peft

    if load is not None:
        check_base(load, base)
        try:
            config = peft.LoraConfig.from_pretrained(str(load))
        except Exception as error:  # not JSON, not an object, no LoRA: peft fails in as many ways
            raise InputError(
                f"expected the settings of a LoRA adapter in {load / 'adapter_config.json'}, found: "
                f"{str(error)[:200]}; tune anew, or copy it again"
            ) from error
        config.base_model_name_or_path = None  # a name of another machine, of which peft would warn
    elif copy_of is not None:
        config = deepcopy(base.model.peft_config[copy_of])
    else:
        targets = lora.targets if lora.targets == "all-linear" else [t.strip() for t in lora.targets.split(",")]
        config = peft.LoraConfig(
            r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets, task_type="CAUSAL_LM"
        )
    config.inference_mode = not trainable
    try:
        if isinstance(base.model, peft.PeftModel):
            base.model.add_adapter(name, config)
        else:
            base.model = peft.get_peft_model(base.model, config, adapter_name=name)
    except ValueError as error:
        raise InputError(
            f"expected modules of {base.path} for LoRA, found: {str(error).splitlines()[0][:300]}; give modules "
            "(--lora-targets) or a dropout (--lora-dropout) that it takes"
        ) from error
    if load is not None:
        _set(base, name, _read(load))
    elif copy_of is not None:
        _set(base, name, peft.get_peft_model_state_dict(base.model, adapter_name=copy_of))
    for parameter in parameters(base, name).values():
        parameter.requires_grad_(trainable)


def parameters(base: Base, name: str) -> dict[str, torch.nn.Parameter]:
    """The adapter's own parameters, by their name in the model, in a stable order."""
    return {n: p for n, p in sorted(base.model.named_parameters()) if f".{name}." in n and "lora_" in n}


@contextlib.contextmanager
def use(base: Base, name: str | None) -> Iterator[None]:
    """Passes go through this adapter (None: the bare base) until the block ends. What is trainable stays so."""
    if not hasattr(base.model, "peft_config"):
        if name is not None:
            raise InputError(f"expected an adapter named {name!r}, found a base without adapters")
        yield
        return
    trainable = {n: p.requires_grad for n, p in base.model.named_parameters()}
    before = base.model.active_adapter
    context = base.model.disable_adapter() if name is None else contextlib.nullcontext()
    if name is not None and name != before:
        base.model.set_adapter(name)
        _restore(base, trainable)
    try:
        with context:
            _restore(base, trainable)
            yield
    finally:
        if base.model.active_adapter != before:
            base.model.set_adapter(before)
        _restore(base, trainable)


def _restore(base: Base, trainable: dict[str, bool]) -> None:
    """peft turns gradients on and off as it goes from adapter to adapter; here they are as they were."""
    for n, p in base.model.named_parameters():
        if p.requires_grad != trainable[n]:
            p.requires_grad_(trainable[n])


def save_adapter(base: Base, name: str, folder: Path, **note: Any) -> None:
    """Write peft's files and the note; `folder` is made. note: JSON-able, such as the stage and its dialogues' hash."""
    import peft
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    config = deepcopy(base.model.peft_config[name])
    config.inference_mode, config.base_model_name_or_path = True, base.name
    config.save_pretrained(str(folder))
    state = peft.get_peft_model_state_dict(base.model, adapter_name=name)
    save_file(
        {key: value.detach().to("cpu").contiguous().clone() for key, value in state.items()},
        folder / WEIGHTS,
        metadata={"format": "pt"},
    )
    (folder / NOTE).write_text(
        json.dumps({"base_fingerprint": base.fingerprint, "form": base.form, **note}, indent=1) + "\n", encoding="utf-8"
    )


def read_note(folder: Path) -> dict[str, Any]:
    """What `save_adapter` noted, or nothing where the adapter is of another make."""
    if not (folder / NOTE).is_file():  # a pipe would be waited for
        return {}
    try:
        found = json.loads(read_document(folder / NOTE))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"expected a note of this project in {folder / NOTE}, found: {error}; remove the file, or tune anew"
        ) from error
    return found if isinstance(found, dict) else {}


def check_base(folder: Path, base: Base, *, writes: bool = False) -> None:
    """Raises InputError unless `folder` is an adapter that was trained on this base, as far as its note or its shapes
    tell; WorkspaceError where it lies in a workspace behind a link.

    writes: whether it has to be one that writes, no reward model.
    """
    folder = Path(folder)
    for name in ("adapter_config.json", WEIGHTS):
        require_own_path(folder / name)
        if not (folder / name).is_file():
            raise InputError(
                f"expected an adapter with {name} in {folder}, found none; give the folder that `reclm tune` wrote"
            )
    trained_on = read_note(folder).get("base_fingerprint")
    if trained_on and trained_on != base.fingerprint:
        raise InputError(
            f"expected an adapter trained on {base.path} (fingerprint {base.fingerprint}) in {folder}, found one of "
            "another base "
            f"({trained_on}); give that base, or tune anew"
        )
    if writes and read_note(folder).get("stage") == REWARD:
        raise InputError(
            f"expected an adapter of `reclm tune sft` or `ppo` in {folder}, found a reward model; give another folder"
        )


def _read(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"expected an adapter in {folder / WEIGHTS}, found a file that cannot be read ({error}); copy it again"
        ) from error


def _set(base: Base, name: str, state: dict[str, torch.Tensor]) -> None:
    import peft

    try:
        outcome = peft.set_peft_model_state_dict(base.model, state, adapter_name=name)
    except RuntimeError as error:
        raise InputError(
            f"expected an adapter of the shapes of {base.path}, found others: "
            f"{str(error).splitlines()[-1].strip()[:300]}"
        ) from error
    missing = [key for key in outcome.missing_keys if f".{name}." in key and "lora_" in key]
    if missing or outcome.unexpected_keys:
        odd = (missing or outcome.unexpected_keys)[0]
        raise InputError(
            f"expected an adapter of {base.path}, found one without or with another {odd}; give the base that it was "
            "trained on"
        )
