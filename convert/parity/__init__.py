"""Proofs that a GGUF file says what its checkpoint says: token ids, logits, vectors.

Token ids need the `tokenizers` package, logits need torch and transformers: all of them at conversion time only.
"""

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from reclm_lite.convert.parity.strings import PROBE_TEXTS as PROBE_TEXTS
from reclm_lite.convert.parity.tokens import differs_by_design as differs_by_design
from reclm_lite.convert.parity.tokens import token_id_mismatches as token_id_mismatches
from reclm_lite.errors import ModelError
from reclm_lite.runtime import Model, load_model


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Row-wise cosine of two float arrays (n, dim); float64 (n,)."""
    if a.shape != b.shape:
        raise ModelError(f"expected two arrays of one shape, found {a.shape} and {b.shape}")
    a, b = a.astype(np.float64), b.astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.einsum("ij,ij->i", a, b) / np.where(norms > 0, norms, 1.0)


def gguf_logits(model: Model, tokens: Sequence[int], *, n_threads: int | None = None) -> np.ndarray:
    """Logits of every position of one sequence: float32 (n_tokens, n_vocab).

    Keys and values are kept in float32, where a context by default has float16: the weights are on trial here.
    """
    lib, n = model.lib, len(tokens)
    room = max(n, 32)
    sizes = {"n_ctx": room, "n_batch": room, "n_ubatch": room}
    exact = {"type_k": lib.GGML_TYPE_F32, "type_v": lib.GGML_TYPE_F32, "flash_attn_type": 0}
    with model.context(n_threads=n_threads, **sizes, **exact) as context:
        batch = lib.llama_batch_init(n, 0, 1)
        try:
            batch.n_tokens = n
            for i, token in enumerate(tokens):
                batch.token[i], batch.pos[i] = token, i
                batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = 1, 0, 1
            if lib.llama_decode(context.handle, batch) != 0:
                raise ModelError(f"llama.cpp could not decode {n} tokens with {model.path}")
            raw = lib.llama_get_logits(context.handle)
            return np.ctypeslib.as_array(ctypes.cast(raw, ctypes.POINTER(ctypes.c_float)), (n, model.n_vocab)).copy()
        finally:
            lib.llama_batch_free(batch)


def logit_parity(gguf: Path, checkpoint: Path, texts: Sequence[str], *, n_threads: int | None = None) -> dict[str, Any]:
    """Compares the logits of a causal GGUF with transformers' float32 ones on the same token ids.

    Returns {"n_positions", "max_abs_difference", "min_cosine", "top1_agreement"}; needs torch and transformers.
    """
    import torch
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    n_positions, max_abs, min_cosine, n_agree = 0, 0.0, 1.0, 0
    with load_model(gguf) as model, torch.no_grad():
        for text in texts:
            tokens = model.tokenize(text, add_special=True)[: model.n_ctx_train]
            if not tokens:
                continue
            expected = reference(torch.tensor([tokens])).logits[0].numpy()
            found = gguf_logits(model, tokens, n_threads=n_threads)
            n_positions += len(tokens)
            max_abs = max(max_abs, float(np.abs(expected - found).max()))
            min_cosine = min(min_cosine, float(cosines(expected, found).min()))
            n_agree += int((expected.argmax(1) == found.argmax(1)).sum())
    return {
        "n_positions": n_positions,
        "max_abs_difference": max_abs,
        "min_cosine": min_cosine,
        "top1_agreement": n_agree / max(n_positions, 1),
    }


def greedy_text(model: Model, prompt: str, n_tokens: int, *, n_threads: int | None = None) -> str:
    """Up to `n_tokens` greedily decoded tokens after `prompt`, as text; stops at an end-of-generation token."""
    lib = model.lib
    tokens = model.tokenize(prompt, add_special=True, parse_special=True)
    n_ctx = min(len(tokens) + n_tokens, model.n_ctx_train)
    made: list[int] = []
    with model.context(n_ctx=n_ctx, n_batch=n_ctx, n_ubatch=n_ctx, n_threads=n_threads) as context:
        step = tokens
        while len(made) < n_tokens and len(tokens) + len(made) < n_ctx:
            buffer = (lib.llama_token * len(step))(*step)
            if lib.llama_decode(context.handle, lib.llama_batch_get_one(buffer, len(step))) != 0:
                raise ModelError(f"llama.cpp could not decode with {model.path}")
            raw = lib.llama_get_logits_ith(context.handle, -1)
            logits = np.ctypeslib.as_array(ctypes.cast(raw, ctypes.POINTER(ctypes.c_float)), (model.n_vocab,))
            token = int(logits.argmax())
            if lib.llama_vocab_is_eog(model.vocab, token):
                break
            made.append(token)
            step = [token]
    return b"".join(model.piece(token) for token in made).decode("utf-8", errors="replace")
