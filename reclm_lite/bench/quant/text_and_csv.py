"""The results of `reclm bench quant` as tables in the terminal and as `quant.csv`, one row per file."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from ...csv_cells import marked
from ...report.frontier import HEADLINE, loss_of
from ..machine import sentence
from .encoder_variants import K as N_NEAREST
from .recommendations import GROUPS, METRICS, K

_FIGURES = (
    "perplexity",
    "answer_perplexity",
    "log_perplexity_ratio",
    "mean_kl",
    "answer_mean_kl",
    "kl_99",
    "top1_agreement",
    "parse_share",
    "free_exact_share",
    "exact_share",
    "cosine",
    "neighbours_kept",
)
_PLAIN = (
    "size_bytes",
    "bits_per_weight",
    "n_fallback",
    "load_seconds",
    "peak_bytes",
    "model_bytes",
    "prefill_tokens_per_s",
    "decode_tokens_per_s",
    "profiles_per_s",
    "n_positions",
    "n_prompts",
    "n_users",
    "n_written",
    "n_texts",
    "texts_per_s",
)
PROMPTS_NOTE = (
    "A profile model is trained on answers only: figures of answers show its quality, figures of prompts only "
    "how far files differ."
)
_OF_PAIRS = ("value", "difference", "loss", "n_users", "n_seeds")


def lines_of(document: Mapping[str, Any], *, auto: bool) -> list[str]:
    """Plain text: the machine, tables, notes, and with `auto` the choice."""
    rows = [row for row in document["files"] if not row["excluded"]]
    lines = [sentence(document["machine"])]
    lines += ["", "Size and speed (one sequence: prefill, decode; all together: profiles)"]
    lines += _table(
        ("file", "MB", "bits/w", "load s", "peak MB", "prefill/s", "decode/s", "profiles/s"),
        [
            (
                row["name"],
                f"{row['size_bytes'] / 1e6:,.1f}",
                f"{row['bits_per_weight']:.2f}",
                f"{row['load_seconds']:.3f}",
                f"{row['peak_bytes'] / 1e6:,.0f}",
                f"{row['prefill_tokens_per_s']:,.0f}",
                f"{row['decode_tokens_per_s']:,.0f}",
                f"{row['profiles_per_s']:,.2f}",
            )
            for row in rows
        ],
    )
    lines += ["", f"Next tokens beside {rows[0]['name']}, with 95 % intervals; KL in nats. {PROMPTS_NOTE}"]
    lines += _table(
        (
            "file",
            "perplexity of answers",
            "KL in answers",
            "mean KL",
            "KL, 99th percentile",
            "top-1 %",
            "perplexity, all",
        ),
        [
            (
                row["name"],
                _figure(row["answer_perplexity"], 1, 4),
                *(_figure(row[name]) for name in ("answer_mean_kl", "mean_kl", "kl_99")),
                _figure(row["top1_agreement"], 100, 1),
                number(row["perplexity"]["value"]),
            )
            for row in rows
        ],
    )
    lines += ["", f"Profiles beside those of {rows[0]['name']}, with 95 % intervals; free: nothing held to the form"]
    lines += _table(
        ("file", "parse, free %", "same, free %", "same %", "cosine"),
        [
            (
                row["name"],
                *(_figure(row[name], 100, 1) for name in ("parse_share", "free_exact_share", "exact_share")),
                _figure(row["cosine"], 1, 3),
            )
            for row in rows
        ],
    )
    compared = [(row["name"], row["downstream"]) for row in rows] + [("no profiles", document["without_profiles"])]
    for metric in METRICS:
        name = metric.replace("recall", "Recall").replace("ndcg", "NDCG")
        lines += [
            "",
            f"{name} of {document['settings']['backbone']} with these profiles: differences from {rows[0]['name']}, "
            "95 % intervals",
        ]
        loss = metric == HEADLINE.split()[1]
        lines += _table(
            (
                "file",
                "all",
                "unseen items",
                f"users of at most {document['cold_items']}",
                *(["loss, all"] if loss else []),
            ),
            [
                (
                    name,
                    *(_difference(pairs[f"{group} {metric}"], name == rows[0]["name"]) for group in GROUPS),
                    *([loss_of(pairs[HEADLINE])] if loss else []),
                )
                for name, pairs in compared
            ],
        )
    if document["encoders"]:
        head, *cells = encoder_cells(document["encoders"])
        lines += [
            "",
            f"The text encoder on the catalogue's texts; {document['settings']['backbone']} with its item vectors and "
            "no profiles; 95 % intervals",
            *_table(head, cells),
        ]
    for row in document["files"]:
        if row["excluded"]:
            lines.append(f"excluded: {row['name']}: {row['excluded']}")
    kept = document["n_measurements"]
    return [
        *lines,
        "",
        int8_sentence(document["int8_items"]),
        *document["notes"],
        f"{kept['made']} measurements made, {kept['kept']} kept from before.",
        *(["", document["choice"]["sentence"]] if auto else []),
    ]


def int8_sentence(found: Mapping[str, Any] | None) -> str:
    """What `recommendations.int8_summary` found, in words."""
    if found is None:
        return "Item vectors in int8: topk ranks this backbone in float32 alone."
    recall, seconds, n_bytes = found[f"recall@{K}"], found["seconds"], found["bytes"]
    interval = (
        f", 95 % interval {recall['interval'][0]:+.4f} to {recall['interval'][1]:+.4f}" if recall["interval"] else ""
    )
    return (
        f"Item vectors in int8 beside float32 in topk: {100 * found['equal_places']:.3f} % of places equal, "
        f"Recall@{K} {recall['int8']:.4f} against "
        f"{recall['float32']:.4f} ({recall['difference']:+.4f}{interval}); {found['n_users']:,} users, "
        f"{found['n_items']:,} items of {found['dim']} columns: "
        f"{1e3 * seconds['int8']:.1f} against {1e3 * seconds['float32']:.1f} ms, {n_bytes['int8'] / 1e6:.2f} "
        f"against {n_bytes['float32'] / 1e6:.2f} MB."
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(head[i]), *(len(row[i]) for row in rows)) for i in range(len(head))]
    return [
        "  "
        + "  ".join(
            cell.ljust(width) if not i else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in (head, *rows)
    ]


def number(value: float, digits: int | None = None) -> str:
    """Three significant digits, or `digits` decimals."""
    if digits is not None:
        return f"{value:.{digits}f}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def signed(value: float) -> str:
    """Four decimals with a sign, unless all are zero."""
    text = f"{value:+.4f}"
    return text if float(text) else "0.0000"


def _figure(figure: Mapping[str, Any], scale: float = 1, digits: int | None = None) -> str:
    if figure["value"] is None:
        return "none"
    text = number(scale * figure["value"], digits)
    if figure["interval"] is None:
        return text
    low, high = (number(scale * end, digits) for end in figure["interval"])
    return f"{text} ({low}–{high})"


def _difference(pair: Mapping[str, Any] | None, is_reference: bool) -> str:
    if pair is None:
        return "no users"
    if is_reference:
        return f"{pair['value']:.4f}, n={pair['n_users']:,}"
    if pair["interval"] is None:
        return f"{signed(pair['difference'])}, too few"
    return f"{signed(pair['difference'])} ±{pair['interval'][1] - pair['difference']:.4f}"


def csv_of(document: Mapping[str, Any]) -> str:
    """A row per file, each figure with columns `_low` and `_high`; empty if there is none. kind: "profile model",
    "backbone" (without profiles) or "encoder", whose `cosine` is of texts and whose recommendations are of the backbone
    fitted with its vectors.
    """
    pairs = [f"{group} {metric}" for group in GROUPS for metric in METRICS]
    first = ["kind", "name", "ftype", "imatrix", "excluded", "sha256", *_PLAIN]
    head = list(first)
    for name in _FIGURES:
        head += [name, f"{name}_low", f"{name}_high"]
    for name in pairs:
        stem = name.replace(" ", "_")
        head += [f"{stem}_{what}" for what in _OF_PAIRS] + [
            f"{stem}_{what}_{end}" for what in ("difference", "loss") for end in ("low", "high")
        ]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(head)
    all_rows = [{"kind": "profile model", **row} for row in document["files"]]
    all_rows.append({"kind": "backbone", "name": "no profiles", "downstream": document["without_profiles"]})
    all_rows += [{"kind": "encoder", **row} for row in document["encoders"] or ()]
    for row in all_rows:
        cells = [row.get(name, "") for name in first]
        for name in _FIGURES:
            figure = row.get(name) or {"value": "", "interval": None}
            cells += [figure["value"], *(figure["interval"] or ("", ""))]
        for name in pairs:
            pair = (row.get("downstream") or {}).get(name) or {}
            cells += [pair.get(what, "") for what in _OF_PAIRS]
            cells += [*(pair.get("interval") or ("", "")), *(pair.get("loss_interval") or ("", ""))]
        writer.writerow(["" if cell is None else marked(cell) for cell in cells])
    return out.getvalue()


def encoder_cells(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """The text encoders as a table: its head, then a row per file; an excluded one says why."""

    def figure(one: Mapping[str, Any], scale: float, digits: int) -> str:
        low, high = (scale * end for end in one["interval"])
        return f"{scale * one['value']:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"

    out: list[tuple[str, ...]] = [
        (
            "encoder",
            "MB",
            "bits/w",
            "load s",
            "peak MB",
            "texts/s",
            "cosine",
            "least",
            f"nearest {N_NEAREST} kept, %",
            "R@20 (users)",
            "loss of R@20",
        )
    ]
    for row in rows:
        if row["excluded"]:
            out.append((row["name"], "excluded", "", "", "", "", "", "", "", "", row["excluded"]))
            continue
        pair = (row["downstream"] or {}).get(HEADLINE)
        out.append(
            (
                row["name"],
                f"{row['size_bytes'] / 1e6:,.1f}",
                f"{row['bits_per_weight']:.2f}",
                f"{row['load_seconds']:.3f}",
                f"{row['peak_bytes'] / 1e6:,.0f}",
                f"{row['texts_per_s']:,.1f}",
                figure(row["cosine"], 1, 5),
                f"{row['min_cosine']:.5f}",
                figure(row["neighbours_kept"], 100, 1),
                "not fitted"
                if row["downstream"] is None
                else "no users"
                if pair is None
                else f"{pair['value']:.4f} ({pair['n_users']:,})",
                "" if pair is None else loss_of(pair),
            )
        )
    return out
