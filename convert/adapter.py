"""Reads a LoRA adapter in PEFT's format: `adapter_config.json` and `adapter_model.safetensors`, without torch or peft.

Of the configuration, what changes the merged weights is read: rank and alpha (also per module, by peft's regular
expressions), rsLoRA, DoRA, modules that were saved whole, trained tokens. Everything that changes the model's function
and cannot be merged into weights, or is not known here, is refused by name; so is every tensor that is not understood.
What an adapter trained is told by the tensors that it holds, so `target_modules` is not needed.

Format followed: peft 0.21. A module's tensors are `base_model.model.<module>.lora_A.weight` and so on.
"""

import math
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from reclm_lite.convert.bounded_files import MAX_CONFIG_BYTES, read_bounded
from reclm_lite.convert.name_pattern import name_pattern
from reclm_lite.convert.stored import StoredTensor, parse_unique_json, read_header, read_tensor
from reclm_lite.errors import ModelError, shell_word

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_LARGEST = 2**31  # of a rank or an alpha; numbers beyond float overflow where they are divided
# Over all patterns and modules: some seconds. A pattern such as `layers\.[0-9]+\.q_proj` takes some hundred for a name.
_MAX_PATTERN_STEPS = 10_000_000
_MAX_SAVED = 512  # names of modules that are saved whole; there are two or three, or one for each layer
_NAME = re.compile(r"\w+(\.\w+)*", re.ASCII)
_MAX_EMBEDDINGS = 64  # modules with trained tokens; a model has two
_MAX_PATTERNS = 20_000  # one for each module of the largest mixture of experts
# How a tensor's name ends -> what it is to its module. Any other tensor is one that was saved whole.
_LEAVES = {
    ".lora_A.weight": "lora_A",
    ".lora_B.weight": "lora_B",
    ".lora_B.bias": "lora_bias",
    ".lora_embedding_A": "lora_embedding_A",
    ".lora_embedding_B": "lora_embedding_B",
    ".lora_magnitude_vector": "magnitude",
    ".lora_magnitude_vector.weight": "magnitude",
    ".token_adapter.trainable_tokens_delta": "tokens",
    # What lies below the factors is saved where the vocabulary was resized or biases were trained.
    ".token_adapter.base_layer.weight": "weight",
    ".base_layer.weight": "weight",
    ".base_layer.bias": "bias",
}
CHANGES = {*_LEAVES.values()} - {"weight", "bias"}  # kinds that change a tensor; all others replace one
# Settings that say how the adapter was made or found, or are read below.
_HARMLESS = {
    *("alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "ensure_weight_tying"),
    *("eva_config", "exclude_modules", "inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform"),
    *("loftq_config", "lora_alpha", "lora_bias", "lora_dropout", "lora_ga_config", "megatron_core", "modules_to_save"),
    *("peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern", "revision", "runtime_config"),
    *("target_modules", "task_type", "trainable_token_indices", "use_dora", "use_rslora", "velora_config"),
}
# Settings that cannot be merged here -> why.
_REFUSED = {
    "alora_invocation_tokens": "an activated LoRA acts from its invocation tokens on, so no weights equal it",
    "arrow_config": "a router chooses adapters for each token, so no weights equal it",
    "fan_in_fan_out": "its base stores matrices transposed, as no supported family does",
    "kasa_config": "it also changes the base model's weights",
    "layer_replication": "its model repeats layers of the base model",
    "megatron_config": "its layers are Megatron's",
    "monteclora_config": "its weights are drawn at random",
    "target_parameters": "it adapts parameters of mixtures of experts",
    "use_bdlora": "its factors are block-diagonal",
    "use_qalora": "it pools the inputs of quantized layers",
}
# These ways to initialize subtract the adapter's first product from the base model's weights.
_CHANGES_BASE = ("pissa", "corda", "olora", "lora_ga", "loftq")


@dataclass(frozen=True)
class Part:
    """A tensor by its name in its file."""

    name: str
    stored: StoredTensor

    def __str__(self) -> str:
        return f"tensor {self.name!r} of {self.stored.file}"

    def read(self) -> np.ndarray:
        """The whole tensor as float32, row-major; ModelError, naming it, if a value is NaN or infinite."""
        return finite(read_tensor(self.name, self.stored), self).astype(np.float32, copy=False)


def finite(values: np.ndarray, part: Part) -> np.ndarray:
    """`values`, which were read from `part`; ModelError, naming it, if one is NaN or infinite."""
    if not np.isfinite(values).all():
        raise ModelError(f"expected finite numbers, found NaN or infinity in {part}; save the adapter again")
    return values


@dataclass
class AdaptedModule:
    """What an adapter holds for one module of the model: tensors by what they are (the values of `_LEAVES`).

    A tensor that was saved whole is under its own last name, such as `weight` or `bias`.
    """

    name: str  # as the model that was trained has it
    parts: dict[str, Part] = field(default_factory=dict)


class Adapter:
    """An adapter directory: `config`, and `modules` by name. Raises ModelError for one that cannot be merged."""

    def __init__(self, directory: Path):
        self.directory = Path(directory)
        self._by_module: dict[tuple[str, str], Any] = {}
        self._n_steps = 0
        self.config = self._read_config()
        self._refuse_what_cannot_be_merged()
        self.weights = self._find_weights()
        self.modules = self._group(read_header(self.weights))
        self._check_factors()

    def error(self, expected: str, found: str, remedy: str) -> ModelError:
        """The error of an adapter that cannot be used."""
        return ModelError(f"expected {expected} in the adapter {self.directory}, found {found}; {remedy}")

    def _read_config(self) -> dict[str, Any]:
        path = self.directory / CONFIG
        if not path.is_file():
            if (self.directory / "config.json").is_file():
                raise self.error(CONFIG, "a checkpoint", "give it as the base, without an adapter, if it is merged")
            nested = sorted(file.parent.name for file in self.directory.glob(f"*/{CONFIG}"))
            where = f"it is in {nested}: name that directory" if nested else "check the path"
            raise self.error(CONFIG, "none", where)
        try:
            config = parse_unique_json(read_bounded(path, MAX_CONFIG_BYTES))
        except ValueError as error:
            raise ModelError(f"expected JSON in {path}, found: {error}; copy the adapter again") from error
        if not isinstance(config, dict):
            raise ModelError(f"expected a JSON object in {path}, found {type(config).__name__}; copy it again")
        return config

    def _refuse_what_cannot_be_merged(self) -> None:
        config = self.config
        if config.get("peft_type") != "LORA":
            raise self.error(
                "peft_type LORA", repr(config.get("peft_type"))[:80], "other kinds of adapters are not merged"
            )
        for key, value in sorted(config.items()):
            if key in _REFUSED and value:
                raise self.error(f"no {key}", repr(value)[:80], _REFUSED[key])
            if key not in _HARMLESS and key not in _REFUSED and value:
                shown = key if key.isidentifier() and len(key) < 80 else repr(key)[:80]
                raise self.error(
                    "settings that are known here", f"{shown}={repr(value)[:80]}", "it may change what the adapter does"
                )
        initial = config.get("init_lora_weights", True)
        if isinstance(initial, str) and initial.lower().startswith(_CHANGES_BASE):
            raise self.error(
                "an adapter of the base model as it is",
                f"init_lora_weights={initial!r}, which changes the base's weights before training",
                "save it from peft with path_initial_model_for_weight_conversion=..., as an ordinary LoRA",
            )
        for key in ("rank_pattern", "alpha_pattern"):
            pattern = {} if config.get(key) is None else config[key]
            if not isinstance(pattern, dict) or not all(_is_positive(value) for value in pattern.values()):
                raise self.error(f"a {key} from modules to numbers above 0", repr(pattern)[:80], "save it again")
            if len(pattern) > _MAX_PATTERNS:
                raise self.error(f"at most {_MAX_PATTERNS:,} patterns in {key}", f"{len(pattern):,}", "save it again")
        for key in ("r", "lora_alpha"):
            if not _is_positive(config.get(key, 8)):
                raise self.error(f"a number above 0 as {key}", repr(config[key])[:80], "save it again")
        saved = config.get("modules_to_save") or []
        if not isinstance(saved, list) or not all(isinstance(name, str) for name in saved):
            raise self.error("a list of names as modules_to_save", repr(saved)[:80], "save it again")
        if len(saved) > _MAX_SAVED:
            raise self.error(f"at most {_MAX_SAVED:,} names in modules_to_save", f"{len(saved):,}", "save it again")
        if odd := [name for name in saved if not _NAME.fullmatch(name)]:  # peft takes them for regular expressions
            raise self.error("plain names of modules as modules_to_save", repr(odd[0])[:80], "save it again")

        indices = config.get("trainable_token_indices")
        if isinstance(indices, dict) and len(indices) > _MAX_EMBEDDINGS:
            found = f"{len(indices):,}"
            raise self.error(f"at most {_MAX_EMBEDDINGS} modules in trainable_token_indices", found, "save it again")

    def _find_weights(self) -> Path:
        path = self.directory / WEIGHTS
        if path.is_file():
            return path
        pickled = self.directory / "adapter_model.bin"
        if not pickled.is_file():
            raise self.error(WEIGHTS, "none", "copy it there")
        script = (
            "from peft import load_peft_weights; from safetensors.torch import save_file; "
            f"saved = load_peft_weights({str(self.directory)!r}, device='cpu'); "
            f"save_file({{k: v.clone().contiguous() for k, v in saved.items()}}, {str(path)!r})"
        )
        raise self.error(
            WEIGHTS,
            "pickled weights (adapter_model.bin), which can run code when opened",
            f"write safetensors beside them, where peft is installed: python -c {shlex.quote(script)}",
        )

    def _group(self, tensors: dict[str, StoredTensor]) -> dict[str, AdaptedModule]:
        modules: dict[str, AdaptedModule] = {}
        for name, stored in tensors.items():
            if not name.startswith(_PREFIX):
                raise self.error(f"names from {_PREFIX!r} on", repr(name), "save it with peft's save_pretrained")
            own = name.removeprefix(_PREFIX)
            if self._is_saved_twice(own, tensors):
                continue
            leaf = next((leaf for leaf in _LEAVES if own.endswith(leaf)), None)
            module, _, kind = own.rpartition(".")
            if leaf:
                module, kind = own[: -len(leaf)], _LEAVES[leaf]
            parts = modules.setdefault(module, AdaptedModule(module)).parts
            if kind in parts:
                found = f"{parts[kind].name!r} and {name!r}"
                raise self.error(f"one {kind} for module {module!r}", found, "save it again")
            parts[kind] = Part(name, stored)
        if not modules:
            raise self.error("tensors", "none", "save it again: an adapter without tensors changes nothing")
        return modules

    @staticmethod
    def _is_saved_twice(own: str, tensors: dict[str, StoredTensor]) -> bool:
        """peft stores a module that is saved whole under its wrapper's names as well if the vocabulary was resized."""
        for wrapper in (".modules_to_save.", ".original_module."):
            module, found, leaf = own.rpartition(wrapper)
            if found and f"{_PREFIX}{module}.{leaf}" in tensors:
                return True
        return False

    def _check_factors(self) -> None:
        """Each module's factors are complete, of the rank that the configuration says, and fit each other."""
        for module in self.modules.values():
            parts = module.parts
            for a, b in (("lora_A", "lora_B"), ("lora_embedding_A", "lora_embedding_B")):
                if (a in parts) != (b in parts):
                    there = parts.get(a) or parts[b]
                    raise self.error(f"{a} and {b} of module {module.name!r}", f"{there.name!r} alone", "save it again")
                if a not in parts:
                    continue
                shapes = parts[a].stored.shape, parts[b].stored.shape
                rank = self.rank(module.name)
                if any(len(shape) != 2 for shape in shapes) or shapes[0][0] != shapes[1][1] or shapes[0][0] != rank:
                    raise self.error(
                        f"{a} of shape ({rank}, n) and {b} of shape (m, {rank}) for module {module.name!r}, as its "
                        "rank in the configuration is",
                        f"{shapes[0]} and {shapes[1]}",
                        "copy the adapter and its configuration from the same place",
                    )
            has_factors = "lora_A" in parts or "lora_embedding_A" in parts
            for kind, setting in (("magnitude", "use_dora"), ("lora_bias", "lora_bias")):
                wanted = bool(self.config.get(setting)) and (has_factors if kind == "magnitude" else "lora_A" in parts)
                if (kind in parts) != wanted:
                    found = f"{parts[kind].name!r} without {setting}" if kind in parts else "none"
                    what = f"a {kind} of module {module.name!r} just where {setting} is on"
                    raise self.error(what, found, "copy the adapter and its configuration from the same place")
            if "tokens" in parts and has_factors:
                raise self.error(
                    f"trained tokens or a LoRA on module {module.name!r}", "both", "this combination is not merged"
                )

    def _by_pattern(self, key: str, module: str, default: float) -> float:
        """peft's rule: the first pattern that matches the module's name, or the end of it from a dot on."""
        if (key, module) not in self._by_module:
            self._by_module[key, module] = self._first_match(key, module, default)
        return self._by_module[key, module]

    def _first_match(self, key: str, module: str, default: Any) -> Any:
        for pattern, value in (self.config.get(key) or {}).items():
            try:
                reader = name_pattern(pattern)
                before, matches = reader.n_steps, reader.matches(module)
                self._n_steps += reader.n_steps - before
                if self._n_steps > _MAX_PATTERN_STEPS:
                    raise ValueError("with all the others it takes too long to compare with every module")
                if matches:
                    return value
            except ValueError as error:
                remedy = "write it without that, or as the modules' names"
                reason = ascii(str(error)[:200])[1:-1]  # which quotes of the pattern what cannot be printed
                raise self.error(
                    f"plain regular expressions in {key}", f"{pattern[:80]!r}: {reason}", remedy
                ) from error
        return default

    def rank(self, module: str) -> int:
        """The rank of a module's factors."""
        return self._by_pattern("rank_pattern", module, self.config.get("r", 8))

    def alpha(self, module: str) -> float:
        """The alpha of a module's factors."""
        return self._by_pattern("alpha_pattern", module, self.config.get("lora_alpha", 8))

    def scale(self, module: str) -> float:
        """What the product of a module's factors is multiplied by."""
        alpha, rank = self.alpha(module), self.rank(module)
        return alpha / math.sqrt(rank) if self.config.get("use_rslora") else alpha / rank

    def is_saved_whole(self, module: str) -> bool:
        """Whether the configuration lists a module (or one around it) to be trained and saved whole, by peft's rule."""
        names = self.config.get("modules_to_save") or []
        return any(f"{name}." in f"{module}." for name in names)

    def token_indices(self, module: str, n_rows: int) -> np.ndarray:
        """Which rows of a module's weight were trained, int64, each once and from 0 to n_rows - 1."""
        setting = self.config.get("trainable_token_indices")
        if isinstance(setting, dict):
            setting = next((indices for name, indices in setting.items() if module.endswith(name)), None)
        if (
            not isinstance(setting, list)
            or any(type(index) is not int or not 0 <= index < n_rows for index in setting)
            or len(set(setting)) < len(setting)
        ):
            raise self.error(
                f"trainable_token_indices of module {module!r}, each once and below {n_rows}",
                repr(setting)[:80],
                f"copy {shell_word(self.directory / CONFIG)} from where the adapter was saved",
            )
        return np.array(setting, np.int64)


def _is_positive(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value <= _LARGEST
