"""Where two greedy texts of one prompt part, and how near to a tie the choice was there.

The prompt and what both texts have in common are evaluated as the loop does it: alone, the prompt at once and then
token by token, without flash attention. Both texts name a token at the place where they part; `gap` is the difference
between the logits of the two. It is compared with what the two ways of evaluating change in these logits: the same
tokens once more as the scheduler does it, beside other sequences and with flash attention (`noise`: the deviation, over
the vocabulary, of the difference of two logits). A gap of at most NEAR_TIE times that is a near-tie; else the
difference is
unexplained. What differs is attention: flash attention on pieces of 64 tokens or more, on shorter ones, and the two
ways without it (several tokens, one token) each add up differently; all else is the same in any batch.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...runtime import Context, Model, load_model

NEAR_TIE = 6.0
_N_LIKELY = 64
_DISABLED = 0  # enum llama_flash_attn_type
_LOOP_BATCH, _BATCH = 512, 1024  # the defaults of Llama and of the scheduler
_N_DECODED = 4  # tokens decoded one by one, of the prompts that noise is measured on
_N_BESIDE = 3  # sequences that share the batch with the one that noise is measured on


def measure(
    model: str, n_threads: int, n_ctx: int, cases: Sequence[dict[str, str]], noise: Sequence[str]
) -> dict[str, Any]:
    """For each case {"prompt", "ours", "theirs"} where it parts; and the noise at the end of each prompt of `noise`.

    Returns {"cases": [{"n_common_tokens", "ours", "theirs", "gap", "noise", "deviation", "near_tie"}], "noise": [...]},
    the noise relative to the deviation of the logits. A case that could not be followed has the key "why" alone.
    """
    with load_model(Path(model)) as loaded:
        n_seqs = _N_BESIDE + 1
        loop = {
            "n_ctx": n_ctx,
            "n_batch": _LOOP_BATCH,
            "n_ubatch": _LOOP_BATCH,
            "kv_unified": True,
            "flash_attn_type": _DISABLED,
        }
        scheduler = {
            "n_ctx": n_seqs * n_ctx,
            "n_seq_max": n_seqs,
            "n_batch": _BATCH,
            "n_ubatch": _BATCH,
            "kv_unified": False,
        }
        with (
            loaded.context(n_threads=n_threads, **loop) as alone,
            loaded.context(n_threads=n_threads, **scheduler) as beside,
        ):
            probe = _Probe(loaded, alone, beside)
            found = [probe.part(case["prompt"], case["ours"], case["theirs"]) for case in cases]
            return {"cases": found, "noise": [probe.noise_of(prompt) for prompt in noise]}


class _Probe:
    """Two contexts over a model: one for a sequence alone, one for sequences side by side."""

    def __init__(self, model: Model, alone: Context, beside: Context):
        self.model, self.lib, self.alone, self.beside = model, model.lib, alone, beside

    def part(self, prompt: str, ours: str, theirs: str) -> dict[str, Any]:
        """Follow the likeliest tokens as long as both texts go that way; then compare the two tokens that they name."""
        tokens = self.model.tokenize(prompt, add_special=True, parse_special=True)
        n_prompt = len(tokens)
        texts, written = (ours.encode(), theirs.encode()), b""
        logits = self._decode(tokens)
        while True:
            named = [self._named(logits, written, text) for text in texts]
            if None in named:
                return {"why": "a text goes on with a token that is not among the likeliest"}
            if named[0] != named[1]:
                break
            if self._ends(named[0]):
                return {"why": "the texts have the same tokens and differ in how they are written"}
            tokens.append(named[0])
            written += self.model.piece(named[0])
            logits = self._decode(tokens[-1:], len(tokens) - 1)
        noise = self._noise(tokens, n_prompt, logits)
        gap = float(logits[named[1]] - logits[named[0]])
        return {
            "n_common_tokens": len(tokens) - n_prompt,
            "ours": self.model.piece(named[0]).decode(errors="replace"),
            "theirs": self.model.piece(named[1]).decode(errors="replace"),
            "gap": gap,
            "noise": noise,
            "deviation": float(logits.std()),
            "near_tie": abs(gap) <= NEAR_TIE * noise,
        }

    def noise_of(self, prompt: str) -> float:
        """The noise at the end of a prompt, its last tokens decoded one by one, relative to the deviation of the
        logits."""
        tokens = self.model.tokenize(prompt, add_special=True, parse_special=True)
        n_prompt = len(tokens) - _N_DECODED
        logits = self._decode(tokens[:n_prompt])
        for at in range(n_prompt, len(tokens)):
            logits = self._decode(tokens[at : at + 1], at)
        return self._noise(tokens, n_prompt, logits) / float(logits.std())

    def _named(self, logits: np.ndarray, written: bytes, text: bytes) -> int | None:
        """The likeliest token with which `text` goes on after `written`; white space around a text does not count."""
        best = np.argpartition(-logits, _N_LIKELY)[:_N_LIKELY]
        for token in best[np.argsort(-logits[best], kind="stable")].tolist():
            whole = (written + self.model.piece(token)).lstrip()
            if self._ends(token):
                if written.strip() == text:
                    return token
            elif text.startswith(whole) or whole.rstrip() == text:
                return token
        return None

    def _ends(self, token: int) -> bool:
        return bool(self.lib.llama_vocab_is_eog(self.model.vocab, token)) or b"\n" in self.model.piece(token)

    def _decode(self, tokens: Sequence[int], position: int = 0) -> np.ndarray:
        """float32 (n_vocab,): the logits after `tokens`, which stand at `position` of the sequence that is alone."""
        if position == 0:
            self.lib.llama_memory_clear(self.lib.llama_get_memory(self.alone.handle), False)
        return self._run(self.alone, [(0, position, tokens)])

    def _noise(self, tokens: Sequence[int], n_prompt: int, logits: np.ndarray) -> float:
        """Deviation of the difference of two logits between a sequence alone and the same beside others."""
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self.beside.handle), False)
        others = range(1, _N_BESIDE + 1)
        # The others lack their last tokens, so that they are not the same sequence.
        together = [(0, 0, tokens[:n_prompt]), *((other, 0, tokens[: max(1, n_prompt - other)]) for other in others)]
        found = self._run(self.beside, together[::-1])
        for at in range(n_prompt, len(tokens)):
            step = [
                (0, at, tokens[at : at + 1]),
                *((other, max(1, n_prompt - other) + at - n_prompt, tokens[at : at + 1]) for other in others),
            ]
            found = self._run(self.beside, step[::-1])
        return float(np.sqrt(2) * (found - logits).std())

    def _run(self, context: Context, parts: Sequence[tuple[int, int, Sequence[int]]]) -> np.ndarray:
        """Decode parts (sequence, position, tokens) in common batches; returns the logits after the last part."""
        flat = [(seq, position + i, token) for seq, position, tokens in parts for i, token in enumerate(tokens)]
        n_batch = self.lib.llama_n_batch(context.handle)
        for some in _blocks(flat, n_batch):
            batch = self.lib.llama_batch_init(len(some), 0, 1)
            try:
                for i, (seq, position, token) in enumerate(some):
                    batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, position, 1, 0
                    batch.seq_id[i][0] = seq
                batch.logits[len(some) - 1] = 1
                batch.n_tokens = len(some)
                if self.lib.llama_decode(context.handle, batch):
                    raise RuntimeError("llama.cpp could not decode")
            finally:
                self.lib.llama_batch_free(batch)
        raw = self.lib.llama_get_logits_ith(context.handle, -1)
        return np.ctypeslib.as_array(raw, (self.model.n_vocab,)).copy()


def _blocks(items: list, size: int) -> Iterator[list]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
