"""Proofs that a GGUF file says what its checkpoint says: token ids, chat template, weights, logits, greedy text.

`Gate` is the whole of it; the parts can be used alone. transformers, torch, peft and tokenizers serve as references
where they are installed, at conversion time only.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from reclm_lite.convert.checkpoint import Checkpoint
from reclm_lite.convert.parity.encoders import cosines
from reclm_lite.convert.parity.gate import Gate
from reclm_lite.convert.parity.logits import gguf_logits, greedy_text
from reclm_lite.convert.parity.plain_copies import copy_of_checkpoint, nobody_to_ask
from reclm_lite.convert.parity.sentences import PROBE_TEXTS
from reclm_lite.convert.parity.tokens import differs_by_design, token_id_mismatches
from reclm_lite.convert.parity.verdict import Verdict
from reclm_lite.runtime import load_model

__all__ = [
    "PROBE_TEXTS",
    "Gate",
    "Verdict",
    "cosines",
    "differs_by_design",
    "gguf_logits",
    "greedy_text",
    "logit_parity",
    "token_id_mismatches",
]


def logit_parity(gguf: Path, checkpoint: Path, texts: Sequence[str], *, n_threads: int | None = None) -> dict[str, Any]:
    """Compares the logits of a causal GGUF with transformers' float32 ones on the same token ids.

    Returns {"n_positions", "max_abs_difference", "min_cosine", "top1_agreement"}; needs torch and transformers.
    """
    import torch
    from transformers import AutoModelForCausalLM

    with copy_of_checkpoint(Checkpoint(checkpoint)) as copy, nobody_to_ask():
        reference = AutoModelForCausalLM.from_pretrained(
            copy, dtype=torch.float32, local_files_only=True, trust_remote_code=False
        ).eval()
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
