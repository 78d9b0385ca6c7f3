"""Copies of a checkpoint, a tokenizer and an adapter that transformers and peft can read without harm.

Both libraries do much of what a configuration asks for: they import modules that it names (`auto_map`, after asking
on the terminal; `megatron_core`), read files elsewhere, build tables of any size (`num_labels`), and match names by the
file's regular expressions. So they never see the folder itself but one made here, which has

    configurations written anew, of known settings only (those that conversion has checked, and what transformers
    computes by in the families that convert; of tokenizers, tokens and steps), the class among `_TOKENIZER_CLASSES`;
    an adapter's modules, ranks and alphas by their exact names, as `adapter.py` resolved them;
    links to the weights and vocabularies, regular files of the names that are known here.

What is not copied is not looked at: custom code, an adapter beside a checkpoint, generation settings, processors.
"""

import builtins
import io
import json
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from reclm_lite.convert.adapter import CHANGES, CONFIG, Adapter
from reclm_lite.convert.bounded_files import MAX_TOKENIZER_BYTES, open_regular
from reclm_lite.convert.checkpoint import INDEX, Checkpoint, Source, optional_json
from reclm_lite.convert.checkpoint import WEIGHTS as MODEL_WEIGHTS
from reclm_lite.convert.families import family_of
from reclm_lite.errors import ModelError

# What the configuration classes of the families read, in the layouts of transformers 4 and 5.
_MODEL_SETTINGS = frozenset(
    "attention_bias attention_dropout attention_probs_dropout_prob attn_logit_softcapping bos_token_id "
    "classifier_dropout eos_token_id final_logit_softcapping head_dim hidden_act hidden_activation hidden_dropout_prob "
    "hidden_size initializer_range intermediate_size layer_norm_eps layer_types max_position_embeddings "
    "max_window_layers mlp_bias num_attention_heads num_hidden_layers num_key_value_heads pad_token_id "
    "partial_rotary_factor position_embedding_type query_pre_attn_scalar rms_norm_eps rope_local_base_freq "
    "rope_parameters rope_scaling rope_theta sliding_window sliding_window_pattern tie_word_embeddings type_vocab_size "
    "use_sliding_window vocab_size".split()
)
_MAX_POSITIONS = 1 << 26  # a table of the positions is made for BERT; the longest contexts have some 10 million
_TOKENIZER_SETTINGS = frozenset(
    "add_bos_token add_eos_token add_prefix_space added_tokens_decoder additional_special_tokens chat_template "
    "clean_up_tokenization_spaces do_basic_tokenize do_lower_case errors extra_special_tokens fix_mistral_regex legacy "
    "model_input_names model_max_length never_split padding_side spaces_between_special_tokens split_special_tokens "
    "strip_accents tokenize_chinese_chars trim_offsets truncation_side use_default_system_prompt "
    "wordpieces_prefix".split()
)
_A_TOKEN = re.compile(r"[a-z0-9_]{1,64}_token")  # bos_token, and the names that models give tokens of their own
# Classes that read nothing but the files below, without their ending "Fast".
_TOKENIZER_CLASSES = frozenset(
    "BertTokenizer CodeLlamaTokenizer CohereTokenizer DistilBertTokenizer GemmaTokenizer GPT2Tokenizer "
    "GPTNeoXTokenizer LlamaTokenizer MPNetTokenizer MistralCommonBackend PreTrainedTokenizer Qwen2Tokenizer "
    "RobertaTokenizer TokenizersBackend".split()
)
_AS_IT_STANDS = "PreTrainedTokenizerFast"  # runs tokenizer.json, as transformers does for a class that it lacks
_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "merges.txt", "tekken.json")
# Different ranks, different alphas, and names of modules saved whole; peft compiles a pattern of each for every module.
_MAX_PEFT_VALUES = 64


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="reclm-export-") as folder:
        yield Path(folder)


@contextmanager
def nobody_to_ask() -> Iterator[None]:
    """Within the block `input` raises EOFError and standard input is empty: no library asks the user for consent."""

    def refuse(prompt: object = "") -> str:
        raise EOFError("a library asked a question on the terminal, which is not passed on")

    asked, stdin = builtins.input, sys.stdin
    builtins.input, sys.stdin = refuse, io.StringIO()
    try:
        yield
    finally:
        builtins.input, sys.stdin = asked, stdin


def _link(folder: Path, path: Path, most_bytes: int | None = None) -> None:
    """A link in `folder` to a regular file, which may itself be a link. Raises ModelError for anything else."""
    try:
        with open_regular(path) as stream:
            size_bytes = stream.seek(0, io.SEEK_END)
    except OSError as error:
        raise ModelError(f"expected to read {path}, found: {error.strerror}; copy the file again") from error
    if most_bytes is not None and size_bytes > most_bytes:
        raise ModelError(f"expected at most {most_bytes:,} bytes in {path}, found {size_bytes:,}; copy the file again")
    (folder / path.name).symlink_to(path.resolve())


def _write(path: Path, settings: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(settings), encoding="utf-8")


def model_settings(config: dict[str, Any]) -> dict[str, Any]:
    """The settings of a config.json that transformers gets, of a family that converts. Raises ModelError."""
    family = family_of(config)
    named = [name for name in config.get("architectures") or [] if name in family.ARCHITECTURES]
    positions = config.get("max_position_embeddings")
    if type(positions) is int and positions > _MAX_POSITIONS:
        raise ModelError(
            f"expected at most {_MAX_POSITIONS:,} max_position_embeddings in config.json, found {positions:,}; copy "
            "config.json again"
        )
    known = {key: value for key, value in config.items() if key in _MODEL_SETTINGS}
    return known | {"architectures": named or [family.ARCHITECTURES[0]], "model_type": family.MODEL_TYPE}


@contextmanager
def copy_of_checkpoint(source: Source) -> Iterator[Path]:
    """A folder with the configuration and the weights of `source`, without its adapter; no tokenizer."""
    base: Checkpoint = getattr(source, "base", source)
    with _folder() as folder:
        _write(folder / "config.json", model_settings(base.config))
        for path in base.weight_files:
            _link(folder, path)
        if [path.name for path in base.weight_files] != [MODEL_WEIGHTS]:
            n_bytes = sum(tensor.end_byte - tensor.start_byte for tensor in base.tensors.values())
            names = {name: tensor.file.name for name, tensor in base.tensors.items()}
            _write(folder / INDEX, {"metadata": {"total_size": n_bytes}, "weight_map": names})
        yield folder


def _tokenizer_class(name: object, has_json: bool) -> str | None:
    if isinstance(name, str) and name.removesuffix("Fast") in _TOKENIZER_CLASSES:
        return name
    return _AS_IT_STANDS if name is not None and has_json else None


@contextmanager
def copy_of_tokenizer(directory: Path) -> Iterator[Path]:
    """A folder with the tokenizer of `directory`, a checkpoint's or an adapter's, and the type of its model."""
    directory = Path(directory)
    with _folder() as folder:
        for name in _VOCABULARIES:
            if (directory / name).exists():
                _link(folder, directory / name, MAX_TOKENIZER_BYTES)
        described = optional_json(directory / "tokenizer.json")
        if described.get("padding") or described.get("truncation"):  # a length to pad every text to may be any
            (folder / "tokenizer.json").unlink()
            _write(folder / "tokenizer.json", described | {"padding": None, "truncation": None})
        has_json = (folder / "tokenizer.json").exists()
        for name in ("tokenizer_config.json", "special_tokens_map.json"):
            if not (directory / name).exists():
                continue
            given = optional_json(directory / name)
            kept = {k: v for k, v in given.items() if k in _TOKENIZER_SETTINGS or _A_TOKEN.fullmatch(k)}
            named = _tokenizer_class(given.get("tokenizer_class"), has_json)
            if named and name == "tokenizer_config.json":
                kept["tokenizer_class"] = named
            _write(folder / name, kept)
        if (directory / "added_tokens.json").exists():
            added = optional_json(directory / "added_tokens.json")
            _write(folder / "added_tokens.json", {k: v for k, v in added.items() if type(v) is int})
        if (directory / "chat_template.jinja").exists():
            _link(folder, directory / "chat_template.jinja", MAX_TOKENIZER_BYTES)
        templates = sorted((directory / "additional_chat_templates").glob("*.jinja"))
        if templates:
            (folder / "additional_chat_templates").mkdir()
            for path in templates:
                _link(folder / "additional_chat_templates", path, MAX_TOKENIZER_BYTES)
        config = optional_json(directory / "config.json")
        if config:
            kind = config.get("model_type")
            try:
                settings = {"model_type": family_of(config).MODEL_TYPE}
            except ModelError:  # of another family: the tokenizer's own files must do
                settings = {"model_type": kind} if isinstance(kind, str) and kind.isidentifier() else {}
            named = _tokenizer_class(config.get("tokenizer_class"), has_json)
            _write(folder / "config.json", settings | ({"tokenizer_class": named} if named else {}))
        yield folder


def _grouped(values: Iterable[tuple[str, Any]], default: Any) -> dict[str, Any] | None:
    """{regular expression of exact names: value} of the modules whose value is not the default; None if too many."""
    names_of: dict[Any, list[str]] = {}
    for name, value in values:
        if value != default:
            names_of.setdefault(value, []).append(re.escape(name))
    if len(names_of) > _MAX_PEFT_VALUES:
        return None
    return {"|".join(names): value for value, names in names_of.items()}


def peft_settings(adapter: Adapter) -> dict[str, Any] | None:
    """adapter_config.json for peft, with every module by its exact name; None for more values than peft can take."""
    config = adapter.config
    adapted = [name for name, module in adapter.modules.items() if {"lora_A", "lora_embedding_A"} & module.parts.keys()]
    tokens = [name for name, module in adapter.modules.items() if "tokens" in module.parts]
    rank, alpha = config.get("r", 8), config.get("lora_alpha", 8)
    ranks = _grouped(((name, adapter.rank(name)) for name in adapted), rank)
    alphas = _grouped(((name, adapter.alpha(name)) for name in adapted), alpha)
    whole = [f"{name}." for name, module in adapter.modules.items() if not CHANGES >= module.parts.keys()]
    saved = [name for name in dict.fromkeys(config.get("modules_to_save") or ()) if any(f"{name}." in w for w in whole)]
    if ranks is None or alphas is None or len(saved) > _MAX_PEFT_VALUES:
        return None
    settings: dict[str, Any] = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "target_modules": adapted,
        "modules_to_save": saved or None,
        "inference_mode": True,
    }
    settings |= {key: bool(config.get(key)) for key in ("use_rslora", "use_dora", "lora_bias")}
    if config.get("bias") in ("none", "all", "lora_only"):
        settings["bias"] = config["bias"]
    if config.get("ensure_weight_tying") is True:
        settings["ensure_weight_tying"] = True
    indices = config.get("trainable_token_indices")
    if tokens and isinstance(indices, dict):
        first = [next((name for name in indices if each.endswith(name)), None) for each in tokens]
        indices = {name: indices[name] for name in first if name is not None}
    if tokens:
        settings["trainable_token_indices"] = indices
    return settings


@contextmanager
def copy_of_adapter(adapter: Adapter, settings: Mapping[str, Any]) -> Iterator[Path]:
    """A folder with an adapter's weights, and `settings` as its configuration."""
    with _folder() as folder:
        _write(folder / CONFIG, settings)
        _link(folder, adapter.weights)
        yield folder
