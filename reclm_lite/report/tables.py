"""Tables of results: for the terminal (rich) and for the page (HTML, escaped).

Rows are those of `evaluate_workspace`: one model in one setting, with `recall@20` and so on, and where it
was computed an interval for each metric.
"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING

from ..cf.models import ROWS
from ..evaluate.protocol import KS
from ..metrics import best_value, metric_keys, metric_label
from ..printable import printable

if TYPE_CHECKING:
    from rich.table import Table

METRIC_KEYS = metric_keys(KS)
SETTINGS = ("full", "unseen")
SETTING_TITLES = {"full": "All candidates", "unseen": "Unseen items"}
# Rows that use nothing of the user: what a model has to beat.
REFERENCES = ("random", "popularity")


def model_label(row: Mapping) -> str:
    """`LightGCN + user profiles`; the plain name where no profiles were used."""
    name = ROWS[row["model"]].label if row["model"] in ROWS else str(row["model"])
    profiles = row.get("profiles") or "none"
    if profiles == "none":
        return name
    return f"{name} + profiles" if profiles == "both" else f"{name} + {profiles.rstrip('s')} profiles"


def interval_of(row: Mapping, metric: str) -> tuple[float, float] | None:
    """The 95 % interval of one metric of a row, or None where it was not computed."""
    interval = (row.get("ci95") or {}).get(metric)
    return (float(interval[0]), float(interval[1])) if interval else None


def rows_of(rows: Sequence[Mapping], setting: str) -> list[Mapping]:
    """The rows of one setting that ranked anybody: references first, then models, without profiles before with."""

    def order(row: Mapping) -> tuple:
        reference = REFERENCES.index(row["model"]) if row["model"] in REFERENCES else len(REFERENCES)
        return reference, str(row["model"]), (row.get("profiles") or "none") != "none", str(row.get("profiles"))

    return sorted((row for row in rows if row["setting"] == setting and row["n_users"]), key=order)


def best_row(rows: Sequence[Mapping], metric: str) -> Mapping | None:
    """The row with the best value of a metric; the first of equals. None for no rows."""
    best = best_value(metric, [row[metric] for row in rows]) if rows else None
    return next((row for row in rows if row[metric] == best), None)


def models_table(result: Mapping) -> "list[Table]":
    """One terminal table per setting of an evaluation, the best value of each column in bold; for a console without
    markup."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    tables = []
    for setting in _settings(result["rows"]):
        group = rows_of(result["rows"], setting)
        if not group:
            continue
        users = users_label(group)
        title = f"{SETTING_TITLES.get(setting, setting)} ({users})"
        table = Table(
            title=printable(title), title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False
        )
        table.add_column("model", no_wrap=True)
        for metric in METRIC_KEYS:
            # R@20, N@40: short, so that the table fits into 80 columns.
            table.add_column(metric_label(metric, short=True), justify="right", no_wrap=True)
        intervals = [interval_of(row, "recall@20") for row in group]
        if any(intervals):
            table.add_column("R@20, 95 %", justify="right", no_wrap=True, style="dim")
        for row, interval in zip(group, intervals, strict=True):
            cells = []
            for metric in METRIC_KEYS:
                text = f"{row[metric]:.4f}"
                best = row[metric] == best_value(metric, [other[metric] for other in group])
                cells.append(Text(text, "bold") if best and len(group) > 1 else text)
            if any(intervals):
                cells.append(f"{interval[0]:.4f}–{interval[1]:.4f}" if interval else "")
            table.add_row(printable(model_label(row)), *cells)
        tables.append(table)
    return tables


def users_label(rows: Sequence[Mapping]) -> str:
    """`1,204 users`, or a range where the rows differ."""
    counts = sorted({int(row["n_users"]) for row in rows})
    if len(counts) == 1:
        return f"{counts[0]:,} users"
    return f"{counts[0]:,} to {counts[-1]:,} users" if counts else "no users"


def models_html(rows: Sequence[Mapping], setting: str) -> str:
    """The table of one setting for the page, each value with its interval below it."""
    group = rows_of(rows, setting)
    body = []
    for row in group:
        cells = [f'<th scope="row">{escape(model_label(row))}</th>']
        for metric in METRIC_KEYS:
            best = len(group) > 1 and row[metric] == best_value(metric, [other[metric] for other in group])
            interval = interval_of(row, metric)
            span = f'<span class="interval">{interval[0]:.4f}–{interval[1]:.4f}</span>' if interval else ""
            value = f"<strong>{row[metric]:.4f}</strong>" if best else f"{row[metric]:.4f}"
            cells.append(f'<td class="number">{value}{span}</td>')
        body.append(f"<tr>{''.join(cells)}</tr>")
    intervals = (
        " Below each value, its 95 % interval." if any(interval_of(row, METRIC_KEYS[0]) for row in group) else ""
    )
    caption = (
        f"{SETTING_TITLES.get(setting, setting)}: {users_label(group)}; the best of each column in bold.{intervals}"
    )
    head = "".join(f'<th scope="col" class="number">{metric_label(metric)}</th>' for metric in METRIC_KEYS)
    return table_html(caption, f'<th scope="col">Model</th>{head}', body)


def table_html(caption: str, head: str, rows: Sequence[str]) -> str:
    """A table in a box that scrolls sideways on its own. `head` and `rows` are HTML, escaped by the caller."""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption, quote=True)}"><table>'
        f"<caption><span>{escape(caption)}</span></caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def pairs_html(caption: str, pairs: Sequence[tuple[str, str]]) -> str:
    """A two-column table of names and values, all text escaped."""
    rows = [f'<tr><th scope="row">{escape(str(name))}</th><td>{escape(str(value))}</td></tr>' for name, value in pairs]
    head = '<th scope="col">What</th><th scope="col">Value</th>'
    return f'<div class="pairs">{table_html(caption, head, rows)}</div>'


def _settings(rows: Sequence[Mapping]) -> list[str]:
    """The settings present, the known ones in their order first."""
    present = list(dict.fromkeys(row["setting"] for row in rows))
    return [s for s in SETTINGS if s in present] + [s for s in present if s not in SETTINGS]
