"""The report's sections on results: model comparison, three users, size of the profile model.

All return HTML. Everything that comes from data goes through `html.escape` here or in `tables` and `plots`.
"""

from collections.abc import Mapping, Sequence
from html import escape

from ..errors import ProfileFormatError
from ..metrics import metric_keys, metric_label
from . import frontier, plots, tables
from .facts import EXAMPLE_K, Facts, Person
from .words import plural

HEADLINE_METRIC = "ndcg@20"


def headline(facts: Facts) -> str:
    """The headline (HTML): the best model against popularity, and the effect of profiles."""
    if facts.evaluation is None or not facts.evaluation["rows"]:
        return "Nothing has been evaluated yet."
    sentences = []
    for setting, where in (("full", "Over all candidates"), ("unseen", "For items without training interactions")):
        group = tables.rows_of(facts.evaluation["rows"], setting)
        models = [row for row in group if row["model"] not in tables.REFERENCES]
        best = tables.best_row(models or group, HEADLINE_METRIC)
        if best is None:
            continue
        n_models = len(models or group)
        verb = f"ranks best of {n_models:,} models, with" if n_models > 1 else "reaches"
        name = f"<strong>{escape(tables.model_label(best))}</strong>"
        text = f"{where}, {name} {verb} {metric_label(HEADLINE_METRIC)} {_value(best)}"
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


def models_section(facts: Facts) -> str:
    if facts.evaluation is None or not facts.evaluation["rows"]:
        reason = f" {escape(facts.evaluation_missing)}" if facts.evaluation_missing else ""
        return f"<p>Nothing has been evaluated yet.{reason}</p>"
    rows = facts.evaluation["rows"]
    key = plots.key("not personalized", "without profiles", "with profiles")
    figures, html_tables = [], []
    for setting in tables.SETTINGS:
        group = tables.rows_of(rows, setting)
        if not group:
            continue
        for metric in sorted(metric_keys([20]), key=lambda key: key != HEADLINE_METRIC):
            figures.append(_model_figure(group, setting, metric))
        html_tables.append(tables.models_html(rows, setting))
    intervals = any(tables.interval_of(row, HEADLINE_METRIC) for row in rows)
    whiskers = " Whiskers are 95 % intervals over users." if intervals else ""
    stale = "".join(
        f"<li>{escape(str(entry['model']))}: {escape(str(entry['reason']))}</li>"
        for entry in facts.evaluation.get("stale") or []
    )
    left_out = f'<p class="note">Not compared:</p><ul class="note">{stale}</ul>' if stale else ""
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
    axis = f"{metric_label(metric)}, {tables.SETTING_TITLES[setting].lower()}"
    svg = plots.dot_plot(
        dots, title=axis, axis=metric_label(metric), reference=popularity, reference_label="popularity"
    )
    caption = f"{metric_label(metric)}<span>{tables.SETTING_TITLES[setting]}, {tables.users_label(group)}</span>"
    return f"<figure><figcaption>{caption}</figcaption>{svg}</figure>"


# -- people ---------------------------------------------------------------------------


def people_section(people: Sequence[Person]) -> str:
    if not people:
        return "<p>The workspace has no users.</p>"
    intro = (
        "<p>Chosen by a fixed rule, not by result: users with a profile and a medium history, evenly spaced over the "
        "data. All known items are excluded from the recommendations, including held-out ones.</p>"
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


def quantization_section(facts: Facts) -> str:
    document = facts.quantization or {}
    settings, when = document["settings"], str(document.get("created", ""))[:16].replace("T", " ")
    old = "" if facts.quantization_is_current else "<strong>The data or the split have changed since then.</strong> "
    note = (
        f"{old}Files made from {escape(frontier.model_name(document))}, each writing the profiles of "
        f"{plural(document['n_users'], 'user')} that {escape(settings['backbone'])} was fitted with, "
        f"{plural(settings['n_seeds'], 'seed')}. Measured {escape(when)} UTC by <code>reclm bench quant</code>; its "
        "own page, <code>quant.html</code>, has the rest."
    )
    sentence = escape(document["choice"]["sentence"]).replace(" %", "\u00a0%")
    return f'<p>{sentence}</p>{frontier.section(document)}<p class="note">{note}</p>'
