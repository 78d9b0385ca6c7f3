"""`reports/report.html`: one page, for people, that needs nothing but itself.

No script, no network, system fonts; style sheet and plots are inline; it reads on a phone, in print and in
the dark. Everything that comes from data goes through `html.escape` here or in `tables` and `plots`.
"""

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np

from ..errors import ProfileFormatError
from ..files import atomic_path
from ..profiles.eta import format_duration
from ..workspace import Workspace
from . import frontier, plots, tables
from .facts import COVERAGE_K, EXAMPLE_K, Facts, Person, gather
from .shell import shell

HEADLINE_METRIC = "ndcg@20"


def write_report(ws: Workspace, out: Path | None = None, *, evaluation: Mapping | None = None) -> Path:
    """Write the page to `out` (default: `reports/report.html` of the workspace) by atomic rename; returns its path.

    evaluation: the result of `evaluate_workspace`, if it is at hand; computed where None.
    """
    if out is None:
        ws.require_own_folders()
    facts = gather(ws, evaluation=evaluation)
    path = Path(out) if out is not None else ws.root / "reports" / "report.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path, named_by_user=out is not None) as temporary:
        temporary.write_text(render(facts), encoding="utf-8")
    return path


def render(facts: Facts) -> str:
    """The whole page as HTML."""
    sections = [
        ("models", "Models compared", _models(facts)),
        ("people", "Three users", _people(facts.people)),
        ("coverage", "Coverage", _coverage(facts)),
        *([("quantization", "Size of the profile model", _quantization(facts))] if facts.quantization else []),
        ("data", "The data", _data(facts)),
        ("split", "Split and settings", _split(facts)),
        ("timings", "How long it took", _timings(facts)),
        ("provenance", "Provenance", _provenance(facts)),
    ]
    made = facts.created[:16].replace("T", " ")
    return shell(
        f"{facts.name}: recommendation report",
        kicker="Recommendation report",
        heading=facts.name,
        lede=headline(facts),
        sections=sections,
        soft=f"{_plural(facts.n_users, 'user')}, {_plural(facts.n_items, 'item')}, "
        f"{_plural(facts.n_interactions, 'interaction')}. Made {made} UTC.",
    )


# -- what came out ------------------------------------------------------------------


def headline(facts: Facts) -> str:
    """The findings in sentences (HTML): the best model beside popularity, and what profiles did to it."""
    if facts.evaluation is None or not facts.evaluation["rows"]:
        return "Nothing has been evaluated yet."
    sentences = []
    for setting, where in (("full", "Over all candidates"), ("unseen", "For items nobody had touched before")):
        group = tables.rows_of(facts.evaluation["rows"], setting)
        models = [row for row in group if row["model"] not in tables.REFERENCES]
        best = tables.best_row(models or group, HEADLINE_METRIC)
        if best is None:
            continue
        n_models = len(models or group)
        verb = f"ranks best of {n_models:,} models, with" if n_models > 1 else "reaches"
        name = f"<strong>{escape(tables.model_label(best))}</strong>"
        text = f"{where}, {name} {verb} {tables.metric_label(HEADLINE_METRIC)} {_value(best)}"
        reference = next((row for row in group if row["model"] == "popularity" and row is not best), None)
        if reference is not None and setting == "full":
            beside = "beside" if best[HEADLINE_METRIC] >= reference[HEADLINE_METRIC] else "<strong>below</strong> the"
            text += f", {beside} {reference[HEADLINE_METRIC]:.4f} of popularity{_overlap(best, reference)}"
        sentences.append(text + ".")
        effect = _profile_effect(models)
        if effect:
            sentences.append(effect if setting == "full" else f"There, {effect[0].lower()}{effect[1:]}")
    # A number stays on one line with its per cent sign.
    return " ".join(sentences).replace(" %", "\u00a0%") or "Nothing has been evaluated yet."


def _value(row: Mapping) -> str:
    interval = tables.interval_of(row, HEADLINE_METRIC)
    span = f" (95 % interval {interval[0]:.4f} to {interval[1]:.4f})" if interval else ""
    return f"{row[HEADLINE_METRIC]:.4f}{span}"


def _overlap(row: Mapping, other: Mapping) -> str:
    """Says so where the intervals of two rows overlap."""
    mine, its = tables.interval_of(row, HEADLINE_METRIC), tables.interval_of(other, HEADLINE_METRIC)
    if mine is None or its is None or mine[0] > its[1] or its[0] > mine[1]:
        return ""
    return " (the intervals overlap)"


def _profile_effect(models: Sequence[Mapping]) -> str:
    """What profiles did to the model that has both rows: the one with the highest value, if several."""
    plain = {row["model"]: row for row in models if (row.get("profiles") or "none") == "none"}
    fused = [row for row in models if (row.get("profiles") or "none") != "none" and row["model"] in plain]
    best = tables.best_row(fused, HEADLINE_METRIC)
    if best is None:
        return ""
    before, after = plain[best["model"]][HEADLINE_METRIC], best[HEADLINE_METRIC]
    name = escape(tables.model_label(plain[best["model"]]))
    verb = "raise" if after > before else "lower" if after < before else "leave"
    change = f" by {100 * abs(after / before - 1):.0f} %" if before > 0 and after != before else ""
    target = f" at {after:.4f}" if after == before else f" from {before:.4f} to {after:.4f}{change}"
    return f"Profiles {verb} {name}{target}{_overlap(best, plain[best['model']])}."


def _models(facts: Facts) -> str:
    if facts.evaluation is None or not facts.evaluation["rows"]:
        reason = f" {escape(facts.evaluation_missing)}" if facts.evaluation_missing else ""
        return f"<p>Nothing has been evaluated yet.{reason}</p>"
    rows = facts.evaluation["rows"]
    key = plots.key("uses nothing of the user", "without profiles", "with profiles")
    figures, html_tables = [], []
    for setting in tables.SETTINGS:
        group = tables.rows_of(rows, setting)
        if not group:
            continue
        for metric in ("ndcg@20", "recall@20"):
            figures.append(_model_figure(group, setting, metric))
        html_tables.append(tables.models_html(rows, setting))
    intervals = any(tables.interval_of(row, HEADLINE_METRIC) for row in rows)
    whiskers = " Whiskers are 95 % intervals over users." if intervals else ""
    stale = "".join(
        f"<li>{escape(str(entry['model']))}: {escape(str(entry['reason']))}</li>"
        for entry in facts.evaluation.get("stale") or []
    )
    left_out = f'<p class="note">Left out of the comparison:</p><ul class="note">{stale}</ul>' if stale else ""
    return (
        "<p>Each model ranks the candidates for every user with held-out interactions; what the user took before "
        "is left out. "
        f"Epochs and settings were selected on validation data only.{whiskers}</p>{key}"
        f'<div class="pair">{"".join(figures)}</div>{"".join(html_tables)}{left_out}'
    )


def _model_figure(group: Sequence[Mapping], setting: str, metric: str) -> str:
    dots = []
    for row in group:
        low, high = tables.interval_of(row, metric) or (None, None)
        reference = row["model"] in tables.REFERENCES
        fused = (row.get("profiles") or "none") != "none"
        css, marker = (
            ("reference-row", "square") if reference else ("profiles", "diamond") if fused else ("plain", "circle")
        )
        dots.append(plots.Dot(tables.model_label(row), row[metric], low, high, css, marker))
    popularity = next((row[metric] for row in group if row["model"] == "popularity"), None)
    axis = f"{tables.metric_label(metric)}, {tables.SETTING_TITLES[setting].lower()}"
    svg = plots.dot_plot(
        dots, title=axis, axis=tables.metric_label(metric), reference=popularity, reference_label="popularity"
    )
    caption = f"{tables.metric_label(metric)}<span>{tables.SETTING_TITLES[setting]}, {tables.users_label(group)}</span>"
    return f"<figure><figcaption>{caption}</figcaption>{svg}</figure>"


# -- people ---------------------------------------------------------------------------


def _people(people: Sequence[Person]) -> str:
    if not people:
        return "<p>The workspace has no users.</p>"
    intro = (
        "<p>Chosen by rule, not by result: users with a profile first, of medium history, evenly spaced over the data. "
        "Everything known is left out of the recommendations, held-out interactions too.</p>"
    )
    return intro + "".join(_person(person) for person in people)


def _person(person: Person) -> str:
    titles = "".join(f"<li>{escape(title)}</li>" for title in person.titles)
    more = person.n_history - len(person.titles)
    rest = f'<p class="note">and {more:,} more; the least popular are shown.</p>' if more > 0 else ""
    history = f"<ul>{titles}</ul>{rest}" if titles else '<p class="note">No history.</p>'
    items = "".join(
        f"<li>{escape(item.title)}<span>{escape(item.reason)}</span></li>" for item in person.recommendation.items
    )
    return (
        f'<article class="person"><h3>User {escape(person.user)}</h3>'
        f'<p class="note">{escape(person.recommendation.note)}</p>'
        f'<div class="halves"><div><h4>Took ({person.n_history:,})</h4>{history}'
        f"<h4>Profile</h4>{_profile(person)}</div>"
        f"<div><h4>Recommended, with the reason ({min(EXAMPLE_K, len(person.recommendation.items))})</h4>"
        f"<ol>{items}</ol></div></div></article>"
    )


def _profile(person: Person) -> str:
    if not person.profile:
        return '<p class="note">No profile has been made for this user.</p>'
    from ..prompts.answer import parse_profile

    source = f'<p class="note">Written by {escape(person.profile_source)}.</p>' if person.profile_source else ""
    try:
        profile = parse_profile(person.profile)
    except ProfileFormatError:
        return f'<p class="profile">{escape(person.profile)}</p>{source}'
    return (
        f'<dl class="profile"><dt>Identity</dt><dd>{escape(", ".join(profile.identity))}</dd>'
        f"<dt>Interests</dt><dd>{escape(', '.join(profile.interests))}</dd></dl>{source}"
    )


# -- quantization ---------------------------------------------------------------------


def _quantization(facts: Facts) -> str:
    document = facts.quantization or {}
    settings, when = document["settings"], str(document.get("created", ""))[:16].replace("T", " ")
    old = "" if facts.quantization_is_current else "<strong>The data or the split have changed since.</strong> "
    note = (
        f"{old}Files made of {escape(frontier.model_name(document))}, each writing the profiles of "
        f"{_plural(document['n_users'], 'user')} that {escape(settings['backbone'])} was fitted with, "
        f"{_plural(settings['n_seeds'], 'seed')}. Measured {escape(when)} UTC by <code>reclm bench quant</code>; "
        "its own page, <code>quant.html</code>, has the rest."
    )
    sentence = escape(document["choice"]["sentence"]).replace(" %", "\u00a0%")
    return f'<p>{sentence}</p>{frontier.section(document)}<p class="note">{note}</p>'


# -- coverage, data, split ----------------------------------------------------------------


def _coverage(facts: Facts) -> str:
    covered = facts.n_covered_items / facts.n_items if facts.n_items else 0.0
    tiles = [
        ("users with a profile", _percent(facts.n_user_profiles, facts.n_users)),
        ("items with a profile", _percent(facts.n_item_profiles, facts.n_items)),
        (f"of the catalogue in a top {COVERAGE_K}", f"{100 * covered:.0f} %"),
    ]
    return (
        f"{_tiles(tiles)}<p>{_plural(facts.n_user_profiles, 'user')} of {facts.n_users:,} and "
        f"{_plural(facts.n_item_profiles, 'item')} of {facts.n_items:,} have a valid profile. "
        f"The top {COVERAGE_K} of {_plural(facts.n_coverage_users, 'user')}, evenly spaced over those with a "
        "history and ranked "
        f"by {escape(facts.coverage_basis)}, together show {_plural(facts.n_covered_items, 'item')} of "
        f"{facts.n_items:,}.</p>"
    )


def _data(facts: Facts) -> str:
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
        ("items nobody took", f"{int((facts.item_counts == 0).sum()):,}"),
    ]
    one = int((lengths == 1).sum())
    none = int((lengths == 0).sum())
    left = (
        f"<span>{_percent(one, facts.n_users)} of users have one interaction, {_percent(none, facts.n_users)} have "
        "none</span>"
    )
    head = np.sort(facts.item_counts)[::-1]
    n_head = max(1, round(int((head > 0).sum()) / 100))
    share = _percent(int(head[:n_head].sum()), int(head.sum()))
    right = f"<span>The most popular 1 % ({_plural(n_head, 'item')}) hold {share} of all interactions</span>"
    return (
        f'{_tiles(tiles)}<div class="pair">'
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
            pairs += [(f"{key}: {name.replace('_', ' ')}", _short(inner)) for name, inner in value.items()]
        elif isinstance(value, list):
            pairs += [(key.rstrip("s"), _short(inner)) for inner in value]
        else:
            pairs.append((key, _short(value)))
    rows = [
        f'<tr><th scope="row">{escape(_short(source.get("file", "?")))}</th>'
        f'<td class="number">{escape(_short(source.get("bytes", "–")))}</td>'
        f"<td><code>{escape(_short(source.get('sha256', '–'))[:16])}</code></td></tr>"
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


def _split(facts: Facts) -> str:
    if not facts.split_sizes:
        return f"<p>The data have not been split. {escape(facts.evaluation_missing)}</p>"
    sizes = facts.split_sizes
    rows = [
        ("Training interactions", f"{sizes['train']:,}"),
        ("Validation interactions", f"{sizes['valid']:,}"),
        ("Test interactions, all candidates", f"{sizes['test']:,}"),
        ("Test interactions, unseen items", f"{sizes['unseen']:,}"),
        ("Candidates in the full setting", f"{sizes['full_candidates']:,}"),
        ("Candidates in the unseen setting", f"{sizes['unseen_candidates']:,}"),
        *((f"Setting: {key}", _short(value)) for key, value in facts.split_params.items()),
    ]
    return (
        "<p>Models are fitted on the training part, selected on the validation part and measured once on the rest.</p>"
        + tables.pairs_html("How the interactions were divided", rows)
    )


# -- timings ------------------------------------------------------------------------------


def _timings(facts: Facts) -> str:
    """Seconds of every stage that noted them: artefacts, and the profiles' generation."""
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
        return "<p>No stage has noted its time.</p>"
    note = '<p class="note">Of the last run of each; of one that was interrupted and went on, the part after that.</p>'
    return tables.pairs_html("What each stage took", rows) + note


def _seconds(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds < 10 else format_duration(seconds)


# -- provenance ---------------------------------------------------------------------------


def _provenance(facts: Facts) -> str:
    rows = []
    for line in facts.artefacts:
        state = f"stale: {', '.join(line.stale)} changed" if line.stale else "current"
        rows.append(
            "<tr><th "
            f'scope="row"><code>{escape(line.name)}</code></th><td><code>{escape(line.fingerprint[:12])}</code></td>'
            f"<td>{escape(str(_find(line.params, 'seed')))}</td><td>{escape(line.created[:16].replace('T', ' '))}</td>"
            f"<td>{escape(state)}</td></tr>"
        )
    heads = ("Artefact", "Fingerprint", "Seed", "Made (UTC)", "State")
    head = "".join(f'<th scope="col">{title}</th>' for title in heads)
    settings = "".join(
        f"<details><summary><code>{escape(line.name)}</code></summary><pre>{escape(_pretty(line.params))}</pre></details>"
        for line in facts.artefacts
    )
    caption = "What is stored, and whether its inputs have changed since"
    commands = "\n".join(facts.commands)
    return (
        "<h3>Commands</h3><p>These commands, on the same source, lead to this state.</p>"
        f'<pre tabindex="0"><code>{escape(commands)}</code></pre>'
        f'<h3>Artefacts</h3><div class="fine">{tables.table_html(caption, head, rows)}</div>'
        f"<details><summary>Settings of every artefact</summary>{settings}</details>"
        f"<h3>Software</h3>{tables.pairs_html('Versions on the machine that wrote this page', facts.software)}"
    )


# -- small pieces ---------------------------------------------------------------------------


def _tiles(tiles: Sequence[tuple[str, str]]) -> str:
    cells = (f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in tiles)
    return f'<dl class="facts">{"".join(cells)}</dl>'


def _plural(n: int, word: str) -> str:
    return f"{n:,} {word}" if n == 1 else f"{n:,} {word}s"


def _percent(n: int, total: int) -> str:
    if not total:
        return "–"
    share = 100 * n / total
    return f"{share:.0f} %" if share >= 10 or n == 0 else f"{share:.1f} %"


def _short(value: object) -> str:
    """One line for a table cell: plain values as they are, the rest as JSON cut at 300 characters."""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    text = str(value) if isinstance(value, (str, float, bool)) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 300 else text[:299] + "…"


def _pretty(params: Mapping) -> str:
    text = json.dumps(params, indent=1, ensure_ascii=False, default=str, sort_keys=True)
    return text if len(text) <= 4000 else text[:3999] + "…"


def _find(params: Mapping, key: str) -> object:
    """A value by name, at any depth; a dash where there is none."""
    if key in params:
        return params[key]
    for value in params.values():
        if isinstance(value, Mapping):
            found = _find(value, key)
            if found != "–":
                return found
    return "–"
