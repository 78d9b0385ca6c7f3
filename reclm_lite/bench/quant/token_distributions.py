"""Next-token distributions of a quantized file beside those of the unquantized one, on profile prompts and answers.

A sequence is a prompt as the product sends it (chat template, BOS) and the answer that the reference decodes greedily.
Of every position after the first token comes

    perplexity   exp(-mean log q(next token))
    top-1        whether the file's likeliest token is the reference's
    KL           sum_t p(t) (log p(t) - log q(t)), in nats, of the reference's p against the file's q

KL needs whole rows of the reference: they lie in a file, of at most `MAX_STORED_BYTES`, those of answers first and of
prompts evenly thinned; the others count positions of all sequences. Keys and values are float32
(`convert.parity.logits`): weights are compared, not caches. `benchmarks/perplexity.py` holds these figures to
llama.cpp's own tool.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...convert.parity.divergence import kl_of, log_softmax
from ...convert.parity.logits import greedy_tokens, sequence_logits
from ...errors import ModelError
from ...runtime import Model, load_model

MAX_STORED_BYTES = 512 << 20
_PIECE_ROWS = 32
_N_RESAMPLES = 300


def sequences_of(model: Model, prompts: Sequence[Sequence[int]], n_answer: int, n_threads: int) -> list[list[int]]:
    """Each prompt with the model's own greedy answer, which ends with its first line break or end token."""
    made = greedy_tokens(model, prompts, n_answer, n_threads=n_threads)
    out = []
    for prompt, answer in zip(prompts, made, strict=True):
        stop = next((i + 1 for i, token in enumerate(answer) if b"\n" in model.piece(token)), len(answer))
        out.append([*prompt, *answer[:stop]])
    return out


def stored_masks(n_prompt: Sequence[int], lengths: Sequence[int], limit: int) -> list[np.ndarray]:
    """For each sequence bool (length - 1,): which positions' rows are kept, `limit` in all, those of answers first."""
    of_answer = np.concatenate([np.arange(length - 1) >= n - 1 for n, length in zip(n_prompt, lengths, strict=True)])
    keep = np.zeros(len(of_answer), bool)
    for part in (np.flatnonzero(of_answer), np.flatnonzero(~of_answer)):
        room = min(len(part), limit - int(keep.sum()))
        if room > 0:
            keep[part[np.linspace(0, len(part) - 1, room, dtype=np.int64)]] = True
    return np.split(keep, np.cumsum([length - 1 for length in lengths])[:-1])


def measure(
    model: str,
    folder: str,
    n_threads: int,
    prompts: Sequence[Sequence[int]] | None = None,
    n_answer: int = 0,
    n_prompt: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Figures by sequence. prompts: given for the reference alone, whose sequences and rows then go to `folder`.
    n_prompt: how many tokens of each belong to no answer, where they hold one already and none is to be decoded.

    {"nll_sums", "n_tokens", "answer_nll_sums", "n_answer_tokens", "n_agree", "kl_sums", "n_kl", "answer_kl_sums",
    "n_answer_kl", "kl_99", "kl_99_interval"}. Raises ModelError for logits that are not finite.
    """
    place = Path(folder)
    with load_model(Path(model)) as loaded:
        if prompts is not None:
            if n_prompt is None:
                sequences, n_prompt = (
                    sequences_of(loaded, prompts, n_answer, n_threads),
                    [len(prompt) for prompt in prompts],
                )
            else:
                sequences = [list(prompt) for prompt in prompts]
            masks = stored_masks(n_prompt, list(map(len, sequences)), max(64, MAX_STORED_BYTES // (4 * loaded.n_vocab)))
            rows = np.lib.format.open_memmap(
                place / "rows.npy",
                mode="w+",
                dtype=np.float32,
                shape=(sum(int(mask.sum()) for mask in masks), loaded.n_vocab),
            )
            best = np.empty(sum(len(sequence) - 1 for sequence in sequences), np.int64)
        else:
            kept = np.load(place / "sequences.npz")
            sequences = [part.tolist() for part in np.split(kept["tokens"], np.cumsum(kept["lengths"])[:-1])]
            n_prompt, best = kept["n_prompt"].tolist(), kept["best"]
            masks = np.split(kept["stored"], np.cumsum(kept["lengths"] - 1)[:-1])
            rows = np.load(place / "rows.npy", mmap_mode="r")
            if rows.shape[1] != loaded.n_vocab:
                raise ModelError(f"expected logits of {rows.shape[1]} tokens, found {loaded.n_vocab}")
        found = _read(loaded, sequences, n_prompt, masks, rows, best, n_threads, is_reference=prompts is not None)
        if prompts is not None:
            rows.flush()
            np.savez(
                place / "sequences.npz",
                tokens=np.concatenate(sequences),
                lengths=np.array(list(map(len, sequences))),
                n_prompt=np.array(n_prompt),
                best=best,
                stored=np.concatenate(masks),
            )
    return found


def _read(
    model: Model,
    sequences: Sequence[Sequence[int]],
    n_prompt: Sequence[int],
    masks: Sequence[np.ndarray],
    rows: np.ndarray,
    best: np.ndarray,
    n_threads: int,
    *,
    is_reference: bool,
) -> dict[str, Any]:
    """Figures of all sequences; of the reference, `rows` and `best` are filled in as well."""
    n = len(sequences)
    names = ("nll_sums", "answer_nll_sums", "kl_sums", "answer_kl_sums")
    counts = ("n_tokens", "n_answer_tokens", "n_agree", "n_kl", "n_answer_kl")
    sums: dict[str, list] = {name: [0.0] * n for name in names} | {name: [0] * n for name in counts}
    first_position = np.cumsum([0, *(len(sequence) - 1 for sequence in sequences)])
    first_row = np.cumsum([0, *(int(mask.sum()) for mask in masks)])
    all_kl: list[np.ndarray] = []
    wanted = [np.arange(len(sequence) - 1) for sequence in sequences]
    for i, logits in sequence_logits(model, sequences, wanted, n_threads=n_threads):
        if not np.isfinite(logits).all():
            raise ModelError("expected finite logits, found NaN or infinity: the type has too few bits for this model")
        mask, span, start = masks[i], slice(first_position[i], first_position[i + 1]), int(first_row[i])
        if is_reference:
            best[span] = logits.argmax(axis=1)
            rows[start : start + int(mask.sum())] = logits[mask]
        nll, kl = np.empty(len(logits)), []
        stored = np.cumsum(mask) - 1 + start  # the row of each stored position
        for at in range(0, len(logits), _PIECE_ROWS):
            part = np.arange(at, min(at + _PIECE_ROWS, len(logits)))
            log_q = log_softmax(logits[part].astype(np.float64))
            nll[part] = -log_q[np.arange(len(part)), np.asarray(sequences[i][at + 1 : at + 1 + len(part)])]
            inside = mask[part]
            if inside.any():
                log_p = log_softmax(rows[stored[part[inside]]].astype(np.float64))
                kl.append(kl_of(log_p, log_q[inside]))
        answer = np.arange(len(nll)) >= n_prompt[i] - 1
        sums["nll_sums"][i], sums["n_tokens"][i] = float(nll.sum()), len(nll)
        sums["answer_nll_sums"][i], sums["n_answer_tokens"][i] = float(nll[answer].sum()), int(answer.sum())
        sums["n_agree"][i] = int((logits.argmax(axis=1) == best[span]).sum())
        all_kl.append(np.concatenate(kl) if kl else np.empty(0))
        sums["kl_sums"][i], sums["n_kl"][i] = float(all_kl[-1].sum()), len(all_kl[-1])
        of_answer = all_kl[-1][answer[mask]]
        sums["answer_kl_sums"][i], sums["n_answer_kl"][i] = float(of_answer.sum()), len(of_answer)
    return {**sums, **_percentile(all_kl)}


def _percentile(all_kl: Sequence[np.ndarray]) -> dict[str, Any]:
    """The 99th percentile of KL over positions, and its interval with sequences drawn again."""
    value = float(np.quantile(np.concatenate(all_kl), 0.99))
    rng, n = np.random.default_rng(0), len(all_kl)
    drawn = [np.quantile(np.concatenate([all_kl[i] for i in rng.integers(0, n, n)]), 0.99) for _ in range(_N_RESAMPLES)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {"kl_99": value, "kl_99_interval": [float(low), float(high)]}
