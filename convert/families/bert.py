"""BERT encoders (BertModel, BertForMaskedLM) for sentence embeddings: absolute positions, post-norm, GELU.

The pooler and the pre-training heads are not converted: an embedding is pooled from the last hidden states.
How (mean, first or last token) and how many tokens a text may have are read from the files that
sentence-transformers puts beside a model; without them, mean over all positions.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np

from reclm_lite.convert.checkpoint import optional_json, read_json, read_object
from reclm_lite.convert.families import Rename, n_layers_of, number, require, shown, size
from reclm_lite.errors import ModelError

ARCHITECTURES = ("BertModel", "BertForMaskedLM")
MODEL_TYPE = "bert"
GGUF_ARCH = "bert"
VOCAB = ("wordpiece",)

_POOLING_IDS = {"mean": 1, "cls": 2, "lasttoken": 3}  # enum llama_pooling_type
_POOLING_MODES = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "lasttoken",
}
_NOT_CONVERTED = ("pooler.", "cls.predictions.", "cls.seq_relationship.")


def canonical_name(name: str) -> str | None:
    name = name.removeprefix("bert.")
    if name == "embeddings.position_ids" or name.startswith(_NOT_CONVERTED):
        return None
    # Checkpoints that came from TensorFlow call a LayerNorm's scale gamma and its shift beta.
    if name.endswith(".gamma"):
        return name.removesuffix(".gamma") + ".weight"
    if name.endswith(".beta"):
        return name.removesuffix(".beta") + ".bias"
    return name


def _pooling(directory: Path) -> str:
    """The pooling that sentence-transformers' `modules.json` asks for: mean, cls or lasttoken."""
    pooling, path = "mean", directory / "modules.json"
    if not path.is_file():
        return pooling
    modules = read_json(path)
    for module in modules if isinstance(modules, list) else [modules]:
        if not isinstance(module, dict) or any(not isinstance(module.get(key), str) for key in ("type", "path")):
            raise ModelError(
                f"expected a list of modules with type and path in {path}, found {shown(module)}; copy it again"
            )
        kind = module["type"].rsplit(".", 1)[-1]
        if kind not in ("Transformer", "Pooling", "Normalize"):
            raise ModelError(
                f"expected Transformer, Pooling and Normalize in {path}, found {kind}; cannot be converted"
            )
        if kind == "Pooling":
            if not re.fullmatch(r"[\w-]{1,64}", module["path"], re.ASCII):
                raise ModelError(
                    f"expected a folder of the checkpoint as path of its Pooling in {path}, found "
                    f"{shown(module['path'])}; copy it again"
                )
            settings = read_object(directory / module["path"] / "config.json")
            on = [mode for mode, chosen in settings.items() if mode.startswith("pooling_mode_") and chosen]
            modes = [_POOLING_MODES.get(mode, mode) for mode in on] or [settings.get("pooling_mode")]
            if len(modes) != 1 or modes[0] not in list(_POOLING_IDS):
                raise ModelError(
                    f"expected one pooling among {sorted(_POOLING_IDS)}, found {shown(modes)}; cannot be converted"
                )
            pooling = modes[0]
    return pooling


def _max_tokens(config: dict[str, Any], directory: Path) -> int:
    """Tokens of a text that are read, [CLS] and [SEP] among them; the rest is cut off."""
    n_positions, path = size(config, "max_position_embeddings"), directory / "sentence_bert_config.json"
    n_tokens = optional_json(path).get("max_seq_length")
    if n_tokens is None:
        return n_positions
    if type(n_tokens) is not int or n_tokens < 1:
        raise ModelError(
            f"expected a whole number above 0 as max_seq_length in {path}, found {shown(n_tokens)}; copy it again"
        )
    return min(n_positions, n_tokens)


def hyperparameters(config: dict[str, Any], directory: Path) -> dict[str, Any]:
    # llama.cpp computes the tanh form for all of them; the exact form differs from it by less than 5e-4
    require(config, "hidden_act", ("gelu", "gelu_new", "gelu_pytorch_tanh"), default="gelu")
    require(config, "position_embedding_type", ("absolute", None), default="absolute")
    require(config, "is_decoder", (False,), default=False)
    d_model, n_heads = size(config, "hidden_size"), size(config, "num_attention_heads")
    if d_model % n_heads:
        raise ModelError(
            "expected hidden_size to be a multiple of num_attention_heads in config.json, found "
            f"{d_model} and {n_heads}; copy config.json again"
        )
    return {
        "block_count": n_layers_of(config),
        "context_length": size(config, "max_position_embeddings"),
        "embedding_length": d_model,
        "feed_forward_length": size(config, "intermediate_size"),
        "attention.head_count": n_heads,
        "attention.layer_norm_epsilon": number(config, "layer_norm_eps", 1e-12),
        "attention.causal": False,
        "pooling_type": _POOLING_IDS[_pooling(directory)],
        "max_tokens": _max_tokens(config, directory),  # ours; llama.cpp ignores it, the text encoder truncates by it
    }


def renames(config: dict[str, Any], names: set[str]) -> list[Rename]:
    del names
    d_model, d_ff, n_vocab = (size(config, key) for key in ("hidden_size", "intermediate_size", "vocab_size"))
    n_positions, n_types = size(config, "max_position_embeddings"), size(config, "type_vocab_size", 2)

    def affine(hf: str, gg: str, *shape: int) -> list[Rename]:
        # weight (d_out, d_in) or (d,), bias (d_out,)
        return [Rename(f"{hf}.weight", f"{gg}.weight", shape), Rename(f"{hf}.bias", f"{gg}.bias", shape[:1])]

    emb = "embeddings"
    rules = [
        Rename(f"{emb}.word_embeddings.weight", "token_embd.weight", (n_vocab, d_model)),
        Rename(f"{emb}.position_embeddings.weight", "position_embd.weight", (n_positions, d_model), keep_f32=True),
        Rename(f"{emb}.token_type_embeddings.weight", "token_types.weight", (n_types, d_model), keep_f32=True),
        *affine(f"{emb}.LayerNorm", "token_embd_norm", d_model),
    ]
    for i in range(n_layers_of(config)):
        hf, gg = f"encoder.layer.{i}", f"blk.{i}"
        rules += affine(f"{hf}.attention.self.query", f"{gg}.attn_q", d_model, d_model)
        rules += affine(f"{hf}.attention.self.key", f"{gg}.attn_k", d_model, d_model)
        rules += affine(f"{hf}.attention.self.value", f"{gg}.attn_v", d_model, d_model)
        rules += affine(f"{hf}.attention.output.dense", f"{gg}.attn_output", d_model, d_model)
        rules += affine(f"{hf}.attention.output.LayerNorm", f"{gg}.attn_output_norm", d_model)
        rules += affine(f"{hf}.intermediate.dense", f"{gg}.ffn_up", d_ff, d_model)
        rules += affine(f"{hf}.output.dense", f"{gg}.ffn_down", d_model, d_ff)
        rules += affine(f"{hf}.output.LayerNorm", f"{gg}.layer_output_norm", d_model)
    return rules


def extra_tensors(config: dict[str, Any]) -> dict[str, np.ndarray]:
    del config
    return {}
