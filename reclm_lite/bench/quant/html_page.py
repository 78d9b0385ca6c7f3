"""`quant.html`: the results of `reclm bench quant` as one self-contained page.

The page frame, style sheet, tables and dot plots are the report's. All text from data goes through `html.escape` here
or in `report`.
"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from ...report import frontier
from ...report.frontier import HEADLINE, Mark, loss_of, mark_of
from ...report.plots import dot_plot
from ...report.shell import shell
from ...report.tables import metric_label, pairs_html, table_html
from .quant_summary import CHOSEN, TOO_SMALL
from .recommendations import GROUPS, METRICS
from .text_and_csv import PROMPTS_NOTE, encoder_cells, int8_sentence, number, signed

_TITLES = {CHOSEN: "Smallest within {bound}: {name}", TOO_SMALL: "Too small a sample to tell"}


def render(document: Mapping[str, Any]) -> str:
    """The whole page as HTML."""
    rows = frontier.measured(document)
    excluded = [row for row in document["files"] if row["excluded"]]
    sections = [
        ("frontier", "Size against loss", frontier.section(document)),
        ("recommendations", "Recommendations", _recommendations(document, rows)),
        ("profiles", "Profiles", _profiles(rows)),
        ("distributions", "Next tokens", _distributions(rows)),
        ("speed", "Size and speed", _speed(document, rows)),
        *(
            [
                (
                    "excluded",
                    "Excluded",
                    pairs_html(
                        "Files that were not measured to the end", [(row["name"], row["excluded"]) for row in excluded]
                    ),
                )
            ]
            if excluded
            else []
        ),
        *([("encoder", "Text encoder", _encoders(document["encoders"]))] if document["encoders"] else []),
        ("made", "How it was measured", _made(document)),
    ]
    choice, about = document["choice"], f"Quantization of {frontier.model_name(document)}"
    return shell(
        about,
        kicker=about,
        heading=_TITLES.get(choice["state"], "Keep {name}").format(
            name=choice["name"], bound=f"{100 * choice['max_loss']:g}\u00a0%"
        ),
        sections=sections,
        soft=f"Profiles of {document['n_users']:,} users, {document['settings']['backbone']}, "
        f"{document['settings']['n_seeds']} seeds.",
        lede=escape(choice["sentence"]).replace(" %", "\u00a0%"),
    )


# -- sections ---------------------------------------------------------------------------


def _recommendations(document: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    compared = [(row["name"], row["downstream"], row["is_reference"]) for row in rows] + [
        ("no profiles", document["without_profiles"], False)
    ]
    titles = {"full": "All", "unseen": "Unseen items", "cold": f"Users of at most {document['cold_items']}"}
    counts = [(rows[0]["downstream"][f"{group} {METRICS[0]}"] or {}).get("n_users", 0) for group in GROUPS]
    out = []
    for metric in METRICS:
        with_loss = f"full {metric}" == HEADLINE
        body = []
        for name, pairs, is_reference in compared:
            cells = [_difference(pairs[f"{group} {metric}"], is_reference) for group in GROUPS]
            cells += [_loss(pairs[HEADLINE])] if with_loss else []
            body.append((name, cells))
        heads = [f"{escape(titles[group])}<br>{n:,} users" for group, n in zip(GROUPS, counts, strict=True)] + (
            ["Loss, all"] if with_loss else []
        )
        caption = (
            f"{metric_label(metric)}: of the unquantized file, and differences from it over the same users and "
            "seeds; below each, its 95 % interval."
        )
        out.append(_rows_html(caption, heads, body))
    int8 = f"<p>{escape(int8_sentence(document['int8_items']))}</p>".replace(" %", "\u00a0%")
    return "".join(out) + int8


def _rows_html(caption: str, heads: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    """A table with a row per file: (name, cells). heads, cells: HTML, right-aligned as numbers."""
    head = "".join(f'<th scope="col" class="number">{title}</th>' for title in heads)
    body = [
        f'<tr><th scope="row">{escape(name)}</th>'
        + "".join(f'<td class="number">{cell}</td>' for cell in cells)
        + "</tr>"
        for name, cells in rows
    ]
    return table_html(caption, f'<th scope="col">File</th>{head}', body)


def _loss(pair: Mapping[str, Any] | None) -> str:
    """The relative loss in per cent, its interval below it."""
    value, _, interval = loss_of(pair).partition(" (")
    return escape(value) + (f'<span class="interval">{escape(interval.rstrip(")"))}</span>' if interval else "")


def _difference(pair: Mapping[str, Any] | None, is_reference: bool) -> str:
    if pair is None:
        return "no users"
    if is_reference:
        return f"<strong>{pair['value']:.4f}</strong>"
    interval = pair["interval"]
    below = f"{signed(interval[0])} to {signed(interval[1])}" if interval else "too few for an interval"
    return f'{signed(pair["difference"])}<span class="interval">{below}</span>'


def _profiles(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = (
        ("parse_share", "Parse, free", 100, 1),
        ("free_exact_share", "Same answer, free", 100, 1),
        ("exact_share", "Same profile", 100, 1),
        ("cosine", "Cosine", 1, 3),
    )
    marks = [_mark(row, row["cosine"], 3) for row in rows if row["cosine"]["value"] is not None]
    plot = (
        frontier.figure(
            "Profiles beside the unquantized file's",
            "Mean cosine of their text vectors; a profile that is missing counts as 0.",
            dot_plot(marks, title="Cosine of profiles", axis="mean cosine", from_zero=False),
        )
        if marks
        else ""
    )
    note = (
        "Free: greedy answers with nothing held to the form, per cent. Same profile and cosine: as the product "
        "writes them, once for each distinct prompt."
    )
    return f"{_table(note, rows, columns)}{plot}"


def _distributions(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = (
        ("answer_perplexity", "Perplexity of answers", 1, 4),
        ("answer_mean_kl", "KL in answers", 1, None),
        ("mean_kl", "Mean KL", 1, None),
        ("kl_99", "KL, 99th percentile", 1, None),
        ("top1_agreement", "Top-1, %", 100, 1),
        ("perplexity", "Perplexity, all", 1, None),
    )
    note = (
        f"Over {rows[0]['n_positions']:,} positions of {rows[0]['n_prompts']:,} prompts with the unquantized "
        f"file's greedy answers; KL in nats. {PROMPTS_NOTE}"
    )
    return _table(note, rows, columns)


def _speed(document: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    body = []
    for row in rows:
        cells = [
            f"{row['size_bytes'] / 1e6:,.1f}",
            f"{row['bits_per_weight']:.2f}",
            f"{row['peak_bytes'] / 1e6:,.0f}",
            f"{row['load_seconds']:.3f}",
            *(_ranged(row, name) for name in ("prefill_tokens_per_s", "decode_tokens_per_s", "profiles_per_s")),
        ]
        body.append((row["name"], cells))
    heads = ("MB", "Bits/weight", "Peak MB", "Load, s", "Prefill, tokens/s", "Decode, tokens/s", "Profiles/s")
    marks = [
        mark_of(row, row["profiles_per_s"], row["profiles_per_s_range"], f"{row['profiles_per_s']:,.2f}")
        for row in rows
    ]
    plots = frontier.figure(
        "Profiles per second",
        "Free greedy answers to distinct prompts, many at once; whiskers: the least and the most of the turns.",
        dot_plot(marks, title="Profiles per second", axis="profiles/s"),
    )
    by_loss = frontier.marks_of(document, lambda row: row["profiles_per_s"])
    if by_loss:
        bound = document["choice"]["max_loss"]
        drawn = frontier.frontier_plot(
            by_loss,
            title="Speed and loss",
            x_axis="profiles/s",
            y_axis="loss of Recall@20",
            bound=bound,
            more_is_better=True,
        )
        plots += frontier.figure("Speed against loss", f"The dashed line is the bound of {100 * bound:g} %.", drawn)
    caption = "Each file in processes of its own, in turns; medians, with the least and the most below."
    return _rows_html(caption, heads, body) + f'<div class="pair">{plots}</div>'


def _encoders(rows: Sequence[Mapping[str, Any]]) -> str:
    head, *encoders = encoder_cells(rows)
    body = [
        "".join(
            [
                f'<tr><th scope="row">{escape(row[0])}</th>',
                *(f'<td class="number">{escape(cell)}</td>' for cell in row[1:]),
                "</tr>",
            ]
        )
        for row in encoders
    ]
    titles = "".join(
        f'<th scope="col"{" class=number" if at else ""}>{escape(title)}</th>' for at, title in enumerate(head)
    )
    caption = (
        "Vectors of the catalogue's texts beside the unquantized encoder's, and the backbone fitted with them, "
        "without profiles; 95 % intervals."
    )
    return table_html(caption, titles, body)


def _ranged(row: Mapping[str, Any], name: str) -> str:
    low, high = row[f"{name}_range"]
    return f'{number(row[name])}<span class="interval">{number(low)} to {number(high)}</span>'


def _mark(row: Mapping[str, Any], figure: Mapping[str, Any], digits: int) -> Mark:
    return mark_of(row, figure["value"], figure["interval"], number(figure["value"], digits))


def _table(
    caption: str, rows: Sequence[Mapping[str, Any]], columns: Sequence[tuple[str, str, float, int | None]]
) -> str:
    body = []
    for row in rows:
        cells = []
        for name, _, scale, digits in columns:
            figure = row[name]
            if figure["value"] is None:
                cells.append("none")
                continue
            ends = [number(scale * end, digits) for end in figure["interval"] or ()]
            span = f'<span class="interval">{ends[0]}–{ends[1]}</span>' if ends else ""
            cells.append(number(scale * figure["value"], digits) + span)
        body.append((row["name"], cells))
    heads = [escape(title) for _, title, _, _ in columns]
    return _rows_html(f"{caption} Below each value, its 95 % interval.", heads, body)


def _made(document: Mapping[str, Any]) -> str:
    about, settings = document["machine"], document["settings"]
    pairs = [
        (
            "Machine",
            f"{about['cpu']}, {about['n_cores']} cores, {about['n_threads']} threads, {about['isa']}, load "
            f"{about['load_average']}",
        ),
        ("Versions", ", ".join(f"{name} {value}" for name, value in about["versions"].items())),
        ("Users", f"{document['n_users']:,} of {document['n_all_users']:,}, drawn with seed {settings['seed']}"),
        (
            "Fits",
            f"{settings['backbone']}, seeds 0 to {settings['n_seeds'] - 1}, epochs "
            f"{settings['epochs'] or 'by default'}",
        ),
        *((f"SHA-256 of {row['name']}", row["sha256"]) for row in document["files"] if row["sha256"]),
    ]
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in document["notes"])
    return notes + pairs_html("What the figures were made with", pairs)
