"""The report's sections on background: coverage, data, split, timings and provenance.

All return HTML. Everything that comes from data goes through `html.escape` here or in `tables` and `plots`.
"""

from collections.abc import Mapping
from html import escape

import numpy as np

from ..profiles.eta import format_duration
from . import plots, tables
from .facts import COVERAGE_K, Facts
from .words import lookup, percent, plural, pretty, short, tiles_html


def coverage_section(facts: Facts) -> str:
    covered = facts.n_covered_items / facts.n_items if facts.n_items else 0.0
    tiles = [
        ("users with a profile", percent(facts.n_user_profiles, facts.n_users)),
        ("items with a profile", percent(facts.n_item_profiles, facts.n_items)),
        (f"of the catalogue in a top {COVERAGE_K}", f"{100 * covered:.0f} %"),
    ]
    return (
        f"{tiles_html(tiles)}<p>{plural(facts.n_user_profiles, 'user')} of {facts.n_users:,} and "
        f"{plural(facts.n_item_profiles, 'item')} of {facts.n_items:,} have a valid profile. The top {COVERAGE_K} of "
        f"{plural(facts.n_coverage_users, 'user')}, evenly spaced over those with a history and ranked by "
        f"{escape(facts.coverage_basis)}, together show {plural(facts.n_covered_items, 'item')} of "
        f"{facts.n_items:,}.</p>"
    )


def data_section(facts: Facts) -> str:
    cells = facts.n_users * facts.n_items
    density = f"{100 * facts.n_interactions / cells:.2g} %" if cells else "–"
    lengths = facts.history_lengths
    median = f"{np.median(lengths):g}" if len(lengths) else "–"
    tiles = [
        ("users", f"{facts.n_users:,}"),
        ("items", f"{facts.n_items:,}"),
        ("interactions", f"{facts.n_interactions:,}"),
        ("density", density),
        ("median history", median),
        ("items without interactions", f"{int((facts.item_counts == 0).sum()):,}"),
    ]
    one = int((lengths == 1).sum())
    none = int((lengths == 0).sum())
    left = (
        f"<span>{percent(one, facts.n_users)} of users have one interaction, {percent(none, facts.n_users)} have "
        "none</span>"
    )
    head = np.sort(facts.item_counts)[::-1]
    n_head = max(1, round(int((head > 0).sum()) / 100))
    share = percent(int(head[:n_head].sum()), int(head.sum()))
    right = f"<span>The most popular 1 % ({plural(n_head, 'item')}) hold {share} of all interactions</span>"
    return (
        f'{tiles_html(tiles)}<div class="pair">'
        f"<figure><figcaption>History lengths{left}</figcaption>{plots.history_histogram(lengths)}</figure>"
        "<figure><figcaption>Interactions per "
        f"item{right}</figcaption>{plots.popularity_curve(facts.item_counts)}</figure>"
        f"</div>{_manifest(facts.manifest)}"
    )


def _manifest(manifest: Mapping) -> str:
    if not manifest:
        return ""
    pairs = []
    for key, value in manifest.items():
        if key == "sources":
            continue
        if isinstance(value, Mapping):
            pairs += [(f"{key}: {name.replace('_', ' ')}", short(inner)) for name, inner in value.items()]
        elif isinstance(value, list):
            pairs += [(key.rstrip("s"), short(inner)) for inner in value]
        else:
            pairs.append((key, short(value)))
    rows = [
        f'<tr><th scope="row">{escape(short(source.get("file", "?")))}</th>'
        f'<td class="number">{escape(short(source.get("bytes", "–")))}</td>'
        f"<td><code>{escape(short(source.get('sha256', '–'))[:16])}</code></td></tr>"
        for source in (manifest["sources"] if isinstance(manifest.get("sources"), list) else ())
        if isinstance(source, Mapping)
    ]
    head = (
        '<th scope="col">File</th><th scope="col" class="number">Bytes</th><th scope="col">SHA-256 (first 16 '
        "digits)</th>"
    )
    files = f'<div class="fine">{tables.table_html("Files that were read", head, rows)}</div>' if rows else ""
    return (
        f"<details><summary>Where the data came from</summary>{tables.pairs_html('The import', pairs)}{files}</details>"
    )


def split_section(facts: Facts) -> str:
    if not facts.split_sizes:
        return f"<p>The data have no split yet. {escape(facts.evaluation_missing)}</p>"
    sizes = facts.split_sizes
    rows = [
        ("Training interactions", f"{sizes['train']:,}"),
        ("Validation interactions", f"{sizes['valid']:,}"),
        ("Test interactions, all candidates", f"{sizes['test']:,}"),
        ("Test interactions, unseen items", f"{sizes['unseen']:,}"),
        ("Candidates in the full setting", f"{sizes['full_candidates']:,}"),
        ("Candidates in the unseen setting", f"{sizes['unseen_candidates']:,}"),
        *((f"Setting: {key}", short(value)) for key, value in facts.split_params.items()),
    ]
    return (
        "<p>Models are fitted on the training part, selected on the validation part and measured once on the rest.</p>"
        + tables.pairs_html("How the interactions were split", rows)
    )


# -- timings ------------------------------------------------------------------------------


def timings_section(facts: Facts) -> str:
    """The section with the recorded seconds of every stage, including profile generation."""
    rows = [(line.name, _seconds(line.seconds)) for line in facts.artefacts if line.seconds is not None]
    for run in facts.generations:
        end = "" if run.ended_by == "done" else f"; ended by: {run.ended_by}"
        rows.append(
            (
                f"profiles of {run.side}, by {run.source}",
                f"{_seconds(run.seconds)} for {run.n_generated:,} generated, {run.profiles_per_s:,.1f} profiles/s{end}",
            )
        )
    if not rows:
        return "<p>No timings are recorded.</p>"
    note = (
        '<p class="note">Times of the last run of each stage; for a resumed run, only the part after the '
        "interruption.</p>"
    )
    return tables.pairs_html("Time per stage", rows) + note


def _seconds(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds < 10 else format_duration(seconds)


# -- provenance ---------------------------------------------------------------------------


def provenance_section(facts: Facts) -> str:
    rows = []
    for line in facts.artefacts:
        state = f"stale: {', '.join(line.stale)} changed" if line.stale else "current"
        rows.append(
            "<tr><th "
            f'scope="row"><code>{escape(line.name)}</code></th><td><code>{escape(line.fingerprint[:12])}</code></td>'
            f"<td>{escape(str(lookup(line.params, 'seed')))}</td><td>{escape(line.created[:16].replace('T', ' '))}</td>"
            f"<td>{escape(state)}</td></tr>"
        )
    heads = ("Artefact", "Fingerprint", "Seed", "Made (UTC)", "State")
    head = "".join(f'<th scope="col">{title}</th>' for title in heads)
    settings = "".join(
        f"<details><summary><code>{escape(line.name)}</code></summary><pre>{escape(pretty(line.params))}</pre></details>"
        for line in facts.artefacts
    )
    caption = "What is stored, and whether its inputs have changed since"
    commands = "\n".join(facts.commands)
    return (
        "<h3>Commands</h3><p>These commands reproduce this state from the same source.</p>"
        f'<pre tabindex="0"><code>{escape(commands)}</code></pre>'
        f'<h3>Artefacts</h3><div class="fine">{tables.table_html(caption, head, rows)}</div>'
        f"<details><summary>Settings of every artefact</summary>{settings}</details>"
        f"<h3>Software</h3>{tables.pairs_html('Versions on the machine that wrote this page', facts.software)}"
    )
