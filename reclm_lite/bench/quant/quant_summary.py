"""What the measurements of `reclm bench quant` show: a row of figures with intervals per file, and the file to ship.

The choice is the smallest file whose relative loss of full Recall@20 is below the given bound at 95 % (one-sided at
2.5 %, all files tested together by Holm's method, since the smallest of many is a choice among many). If there is none,
the sentence says whether files lose more or the sample is too small, and how many users would make the interval narrow
enough. Left out: how rows look (`text_and_csv`, `html_page`).
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from ...evaluate.intervals import bootstrap_mean
from ...profiles.answers import OK, judge
from ...report.frontier import HEADLINE
from ...workspace import now
from .paired_intervals import MIN_UNITS, Errors, chance_beyond, holm, ratio, wilson
from .recommendations import COLD_ITEMS
from .variants import File

CHOSEN, TOO_SMALL, LOSE_MORE, REFERENCE = "chosen", "sample too small", "all lose more", "reference"


@dataclass
class Measured:
    """What was measured on one file; None if it was not. turns: of its speed, whose summary `speed` is."""

    file: File
    turns: list[dict[str, Any]] = field(default_factory=list)
    speed: dict[str, Any] | None = None
    logits: dict[str, Any] | None = None
    profiles: dict[str, Any] | None = None
    downstream: dict[str, Any] | None = None


def document(
    settings: Mapping[str, Any],
    machine: Mapping[str, Any],
    found: Sequence[Measured],
    plain: Mapping[str, Any],
    int8: Mapping[str, Any] | None,
    encoders: Sequence[Mapping[str, Any]] | None,
    *,
    split: str,
    notes: Sequence[str],
    n_users: int,
    n_all_users: int,
    max_loss: float,
    n_kept: int,
    n_made: int,
) -> dict[str, Any]:
    """Everything as one JSON-able dict. found: the reference first; plain: the backbone without
    profiles; int8: of `recommendations.int8_summary`; encoders: of `encoder_variants.measure`; split: its fingerprint.
    """
    reference = found[0]
    rows = [row_of(each, reference) for each in found]
    notes = list(notes)
    if n_users < n_all_users:
        notes.append(
            f"Profiles were written for {n_users:,} of {n_all_users:,} users; the others have none in the fits, which "
            "makes losses look smaller than they are, and recommendations are compared over the former."
        )
    if settings["n_seeds"] < 2:
        notes.append(
            "One seed tells nothing of how much fits differ by chance: recommendations have no intervals; use --seeds "
            "2 or more."
        )
    return {
        "benchmark": "quant",
        "created": now(),
        "split": split,
        "machine": dict(machine),
        "settings": {name: str(value) if hasattr(value, "parts") else value for name, value in settings.items()},
        "n_users": n_users,
        "n_all_users": n_all_users,
        "cold_items": COLD_ITEMS,
        "files": rows,
        "without_profiles": plain,
        "int8_items": int8,
        "encoders": encoders,
        "choice": choose(rows, plain, max_loss),
        "notes": notes,
        "n_measurements": {"kept": n_kept, "made": n_made},
    }


def row_of(each: Measured, reference: Measured) -> dict[str, Any]:
    """A file's figures. Intervals are [low, high] at 95 %, or None if there are too few users, prompts or seeds."""
    row: dict[str, Any] = {**each.file.as_dict(), "is_reference": each is reference}
    if each.file.excluded:
        return row
    return (
        row
        | _speed(each.speed, reference.speed)
        | _logits(each.logits, reference.logits)
        | _profiles(each.profiles)
        | {"downstream": each.downstream}
    )


def _speed(speed: Mapping[str, Any], reference: Mapping[str, Any]) -> dict[str, Any]:
    texts, theirs = speed["texts"], reference["texts"]
    n = len(texts)
    n_parse = sum(judge("", text, finish).status == OK for text, finish in zip(texts, speed["finishes"], strict=True))
    n_same = sum(a == b for a, b in zip(texts, theirs, strict=True))
    out: dict[str, Any] = {}
    for name in ("load_seconds", "prefill_tokens_per_s", "decode_tokens_per_s", "profiles_per_s"):
        out[name] = statistics.median(speed[name])
        out[f"{name}_range"] = [min(speed[name]), max(speed[name])]
    return out | {
        "peak_bytes": speed["peak_bytes"],
        "model_bytes": speed["peak_bytes"] - speed["base_bytes"],
        "n_prompts": n,
        "parse_share": _share(n_parse, n),
        "free_exact_share": _share(n_same, n),
    }


def _logits(logits: Mapping[str, Any], reference: Mapping[str, Any]) -> dict[str, Any]:
    def figure(sums: str, counts: str, of: Mapping[str, Any] = logits) -> dict[str, Any]:
        value, interval = ratio(of[sums], of[counts])
        return {"value": value, "interval": interval and list(interval)}

    def exponential(sums: str, counts: str) -> dict[str, Any]:
        nats = figure(sums, counts)
        return {
            "value": math.exp(nats["value"]),
            "interval": nats["interval"] and [math.exp(end) for end in nats["interval"]],
        }

    beside = {
        "sums": [a - b for a, b in zip(logits["nll_sums"], reference["nll_sums"], strict=True)],
        "n": logits["n_tokens"],
    }
    return {
        "n_positions": sum(logits["n_tokens"]),
        "perplexity": exponential("nll_sums", "n_tokens"),
        "answer_perplexity": exponential("answer_nll_sums", "n_answer_tokens"),
        "log_perplexity_ratio": figure("sums", "n", beside),
        "mean_kl": figure("kl_sums", "n_kl"),
        "answer_mean_kl": figure("answer_kl_sums", "n_answer_kl"),
        "kl_99": {"value": logits["kl_99"], "interval": logits["kl_99_interval"]},
        "top1_agreement": figure("n_agree", "n_tokens"),
    }


def _profiles(profiles: Mapping[str, Any]) -> dict[str, Any]:
    cosines = profiles["cosines"]
    interval = list(bootstrap_mean(np.array(cosines))) if len(cosines) >= MIN_UNITS else None
    return {
        "n_users": profiles["n_users"],
        "n_written": profiles["n_written"],
        "exact_share": _share(profiles["n_exact"], profiles["n_prompts"]),
        "cosine": {"value": statistics.fmean(cosines) if cosines else None, "interval": interval, "n": len(cosines)},
    }


def _share(n_hits: int, n: int) -> dict[str, Any]:
    interval = wilson(n_hits, n)
    return {"value": n_hits / n if n else None, "interval": interval and list(interval), "n": n}


@dataclass(frozen=True)
class Choice:
    """The file to ship and why, in a sentence. state: CHOSEN, REFERENCE, TOO_SMALL or LOSE_MORE."""

    state: str
    name: str | None
    sentence: str
    max_loss: float


def choose(rows: Sequence[Mapping[str, Any]], plain: Mapping[str, Any] | None, max_loss: float) -> dict[str, Any]:
    """The smallest file whose loss is below `max_loss` at 95 %, all files looked at together, as a dict of `Choice`."""
    reference = rows[0]
    smaller = sorted(
        (row for row in rows[1:] if not row["excluded"] and row["size_bytes"] < reference["size_bytes"]),
        key=lambda row: (row["size_bytes"], not row["imatrix"], row["name"]),
    )
    bound = f"{100 * max_loss:g} %"
    losses = [(row, (row["downstream"] or {}).get(HEADLINE)) for row in smaller]
    measured = [(row, loss) for row, loss in losses if loss is not None and loss["loss_interval"] is not None]
    kept = reference["name"]
    chances = [chance_beyond(loss["loss"], Errors(**loss["of_loss"]), max_loss) for _, loss in measured]
    among = f", among {len(measured)} files (Holm)" if len(measured) > 1 else ""
    for (row, loss), is_below in zip(measured, holm(chances), strict=True):
        if is_below:
            text = (
                f"{row['name']} is the smallest file whose Recall@20 is at most {bound} below {kept}'s, at 95 % "
                f"confidence{among}: "
                f"{_loss(loss)}.{_worthless(plain, max_loss)}"
            )
            return asdict(Choice(CHOSEN, row["name"], text, max_loss))
    if smaller and not measured:
        why = (
            "no recall to lose in this sample"
            if all(loss is None or loss["loss"] is None for _, loss in losses)
            else "no interval"
        )
        text = (
            f"The sample is too small to tell: there is {why}; use at least {MIN_UNITS} users with something held "
            "out and 2 seeds."
        )
        return asdict(Choice(TOO_SMALL, None, text, max_loss))
    if any(loss["loss_interval"][0] <= max_loss for _, loss in measured):
        row, loss = min(zip(measured, chances, strict=True), key=lambda pair: (pair[1], pair[0][1]["loss"]))[0]
        text = (
            f"The sample is too small to tell: of no file is it certain, at 95 %{among}, that it loses less than "
            f"{bound}. "
        )
        text += f"{row['name']} comes nearest: {_loss(loss)}.{_enough(loss, max_loss, len(measured))}"
        return asdict(Choice(TOO_SMALL, None, text, max_loss))
    if measured:
        return asdict(
            Choice(LOSE_MORE, kept, f"Every smaller file loses more than {bound} of Recall@20: keep {kept}.", max_loss)
        )
    return asdict(Choice(REFERENCE, kept, f"There is no smaller file that could be measured: keep {kept}.", max_loss))


def _loss(loss: Mapping[str, Any]) -> str:
    low, high = loss["loss_interval"]
    return (
        f"a loss of {100 * loss['loss']:.2f} %, 95 % interval {100 * low:.2f} to {100 * high:.2f} %, "
        f"{loss['n_users']:,} users, {loss['n_seeds']} seeds"
    )


def _enough(loss: Mapping[str, Any], max_loss: float, n_files: int) -> str:
    """How many users or seeds would show that the bound holds, if the measured loss is the true one."""
    room, errors, level = max_loss - loss["loss"], Errors(**loss["of_loss"]), 1 - 0.025 / n_files
    if room <= 0:
        return " Were the losses what they seem, none would be below it."
    of_seeds = replace(errors, users=0.0).half(level)
    if of_seeds >= room:
        return f" What seeds differ by is too much of it: give more than {loss['n_seeds']} --seeds."
    n = math.ceil(loss["n_users"] * replace(errors, seeds=0.0).half(level) ** 2 / (room**2 - of_seeds**2))
    return f" About {n:,} users would do, were the loss what it seems."


def _worthless(plain: Mapping[str, Any] | None, max_loss: float) -> str:
    """A warning if the backbone without profiles is as good: then there was no gain to lose."""
    loss = (plain or {}).get(HEADLINE)
    if loss is None or loss["loss_interval"] is None or loss["loss_interval"][0] > max_loss:
        return ""
    low, high = (100 * end for end in loss["loss_interval"])
    return (
        f" But without any profiles the loss is {100 * loss['loss']:.2f} % ({low:.2f} to {high:.2f} %): these "
        "profiles are not shown to be worth more than the bound to this backbone."
    )
