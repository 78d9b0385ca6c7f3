"""Inline SVG plots, without a plotting library: a histogram, a popularity curve, intervals around dots.

Every function returns one `<svg>` string with a title and a description for screen readers. Colours and
fonts come from the page's style sheet through classes, so that dark mode and print restyle them; nothing
is told by colour alone. Widths are in SVG units drawn for a column of about 420 CSS pixels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

WIDTH = 440
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 14, 44


@dataclass(frozen=True)
class Dot:
    """One line of a dot plot: a value with its 95 % interval (None: unknown).

    group: a CSS class. marker: its shape. shown: the value as text (empty: four decimals).
    """

    label: str
    value: float
    low: float | None = None
    high: float | None = None
    group: str = "plain"
    marker: str = "circle"
    shown: str = ""


def key(reference: str, plain: str, profiles: str) -> str:
    """What the three marks of dot plots stand for: square, circle, diamond. The words are HTML."""
    drawn = (
        ('<rect class="dot reference-row" x="3" y="3" width="8" height="8"/>', reference),
        ('<circle class="dot" cx="7" cy="7" r="4.5"/>', plain),
        ('<path class="dot profiles" d="M7,1 l6,6 l-6,6 l-6,-6 Z"/>', profiles),
    )
    items = "".join(
        f'<li><svg viewBox="0 0 14 14" aria-hidden="true">{shape}</svg>{words}</li>' for shape, words in drawn
    )
    return f'<ul class="key" aria-label="Marks">{items}</ul>'


def history_histogram(lengths: np.ndarray) -> str:
    """How many users have how many interactions, in bins that double. lengths: int (n_users,)."""
    lengths = np.asarray(lengths, dtype=np.int64)
    edges = _doubling_edges(int(lengths.max(initial=0)))
    if len(edges) > 2 and not (lengths == 0).any():
        edges = edges[1:]
    labels, counts = [], []
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        counts.append(int(((lengths >= low) & (lengths < high)).sum()))
        labels.append(str(low) if high == low + 1 else f"{low}–{high - 1}")
    top = max(counts) or 1
    height, inner_width = 250, WIDTH - _LEFT - _RIGHT
    inner_height = height - _TOP - _BOTTOM
    step = inner_width / len(counts)
    # Where labels would touch (about 8 units a character), every second one is left to the tooltip.
    every = 2 if max(map(len, labels)) * 8 > step else 1
    out = [_grid_y(nice_ticks([0.0, top]), lambda v: _TOP + inner_height * (1 - v / _axis_top(top)))]
    for index, (label, count) in enumerate(zip(labels, counts, strict=True)):
        bar = inner_height * count / _axis_top(top)
        x = _LEFT + index * step
        if count:
            bar = max(bar, 1.5)
        y = _TOP + inner_height - bar
        out.append(
            f'<rect class="bar" x="{x + step * 0.12:.1f}" y="{y:.1f}" width="{step * 0.76:.1f}" height="{bar:.1f}" '
            'rx="1.5">'
            f"<title>{label} interactions: {count:,} users</title></rect>"
        )
        if index % every == 0:
            out.append(text(x + step / 2, height - _BOTTOM + 16, label, "tick", "middle"))
    out.append(text(_LEFT + inner_width / 2, height - 8, "interactions per user", "axis", "middle"))
    median = float(np.median(lengths)) if len(lengths) else 0.0
    description = "; ".join(f"{label} interactions: {count} users" for label, count in zip(labels, counts, strict=True))
    return svg(out, height, "History lengths", f"Users by number of interactions, median {median:g}. {description}.")


def popularity_curve(counts: np.ndarray) -> str:
    """Interactions of each item against its popularity rank, both axes logarithmic. counts: int (n_items,)."""
    counts = np.sort(np.asarray(counts, dtype=np.int64))[::-1]
    counts = counts[counts > 0]
    height, inner_width = 250, WIDTH - _LEFT - _RIGHT
    inner_height = height - _TOP - _BOTTOM
    if not len(counts):
        return svg([], height, "Popularity", "No interactions.")
    n_items, top = len(counts), int(counts[0])
    span_x, span_y = max(math.log10(n_items), 1e-9), max(math.log10(top), 1e-9)

    def x_of(rank: float) -> float:
        return _LEFT + inner_width * math.log10(rank) / span_x

    def y_of(count: float) -> float:
        return _TOP + inner_height * (1 - math.log10(count) / span_y)

    ranks = np.unique(np.round(np.geomspace(1, n_items, min(n_items, 160))).astype(np.int64))
    points = [f"{x_of(int(rank)):.1f},{y_of(int(counts[rank - 1])):.1f}" for rank in ranks]
    out = [_grid_y(_powers_of_ten(top), y_of)]
    for tick in _powers_of_ten(n_items):
        out.append(
            f'<line class="grid" x1="{x_of(tick):.1f}" x2="{x_of(tick):.1f}" y1="{_TOP}" y2="{_TOP + inner_height}"/>'
        )
        out.append(text(x_of(tick), height - _BOTTOM + 16, f"{tick:,}", "tick", "middle"))
    base = _TOP + inner_height
    out.append(f'<path class="area" d="M{_LEFT},{base} L{" L".join(points)} L{x_of(n_items):.1f},{base} Z"/>')
    out.append(f'<polyline class="line" points="{" ".join(points)}"/>')
    out.append(text(_LEFT + inner_width / 2, height - 8, "popularity rank of the item", "axis", "middle"))
    total = int(counts.sum())
    n_head = max(1, round(n_items / 100))
    head_share = 100 * int(counts[:n_head].sum()) / total
    description = (
        f"Interactions per item by rank, logarithmic axes: the first item has {top}, the last of {n_items} has "
        f"{int(counts[-1])}; the most popular 1 % of items ({n_head}) hold {head_share:.0f} % of all interactions."
    )
    return svg(out, height, "Popularity curve", description)


def dot_plot(
    dots: Sequence[Dot],
    *,
    title: str,
    axis: str,
    reference: float | None = None,
    reference_label: str = "",
    percent: bool = False,
    from_zero: bool = True,
) -> str:
    """Values as dots with 95 % intervals as whiskers, one line each; `reference` is a dashed vertical.

    percent: values are shares, and ticks per cent. from_zero: whether zero is on the axis.
    """
    row, top_margin = 42, 30 if reference is not None else 10
    height = top_margin + row * len(dots) + _BOTTOM
    left, inner_width = 6, WIDTH - 22
    bottom = height - _BOTTOM
    ends = [end for dot in dots for end in (dot.value, dot.low, dot.high) if end is not None]
    ticks = nice_ticks([*ends, *([0.0, 1e-6] if from_zero else []), *([] if reference is None else [reference])])

    def x_of(value: float) -> float:
        return left + inner_width * (value - ticks[0]) / (ticks[-1] - ticks[0])

    out, told = [], []
    for tick in ticks:
        x = x_of(tick)
        out.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top_margin - 4}" y2="{bottom}"/>')
        out.append(text(x, bottom + 16, tick_text(tick, percent), "tick", "middle"))
    if reference is not None:
        x = x_of(reference)
        anchor = "start" if x < WIDTH * 0.3 else "end" if x > WIDTH * 0.7 else "middle"
        out.append(f'<line class="reference" x1="{x:.1f}" x2="{x:.1f}" y1="{top_margin - 6}" y2="{bottom}"/>')
        out.append(text(x, top_margin - 12, reference_label, "tick", anchor))
    for index, dot in enumerate(dots):
        y = top_margin + row * index + 29
        interval = ""
        out.append(text(left, y - 12, dot.label, f"label {dot.group}", "start"))
        out.append(text(left + inner_width, y - 12, dot.shown or f"{dot.value:.4f}", "value", "end"))
        if dot.low is not None and dot.high is not None:
            interval = f" (95 % interval {dot.low:.4f} to {dot.high:.4f})"
            low, high = x_of(dot.low), x_of(dot.high)
            out.append(
                f'<path class="whisker {escape(dot.group, quote=True)}" '
                f'd="M{low:.1f},{y} H{high:.1f} M{low:.1f},{y - 4} v8 M{high:.1f},{y - 4} v8"/>'
            )
        figure = dot.shown or f"{dot.value:.4f}{interval}"
        out.append(marker(x_of(dot.value), y, dot, f"{dot.label}: {figure}"))
        told.append(f"{dot.label} {figure}")
    out.append(text(left + inner_width / 2, height - 8, axis, "axis", "middle"))
    return svg(out, height, title, f"{axis}: {'; '.join(told)}.")


# -- pieces ---------------------------------------------------------------------


def svg(parts: Sequence[str], height: float, title: str, description: str) -> str:
    """The image of these parts, WIDTH units wide."""
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" '
        f'aria-label="{escape(f"{title}. {description}", quote=True)}">'
        f"<desc>{escape(description)}</desc>{''.join(parts)}</svg>"
    )


def text(x: float, y: float, words: str, css: str, anchor: str) -> str:
    """Words at a place, escaped."""
    return (
        f'<text class="{escape(css, quote=True)}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'
    )


def marker(x: float, y: float, dot: Dot, tip: str) -> str:
    """A dot's shape in its colour, with a tooltip."""
    css = f'class="dot {escape(dot.group, quote=True)}"'
    tip = f"<title>{escape(tip)}</title>"
    if dot.marker == "diamond":
        return f'<path {css} d="M{x:.1f},{y - 6.5:.1f} l6.5,6.5 l-6.5,6.5 l-6.5,-6.5 Z">{tip}</path>'
    if dot.marker == "square":
        return f'<rect {css} x="{x - 4.5:.1f}" y="{y - 4.5:.1f}" width="9" height="9">{tip}</rect>'
    return f'<circle {css} cx="{x:.1f}" cy="{y:.1f}" r="5">{tip}</circle>'


def _grid_y(ticks: Sequence[float], y_of) -> str:
    lines = []
    for tick in ticks:
        y = y_of(tick)
        lines.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        lines.append(text(_LEFT - 7, y + 4, f"{tick:,.0f}" if tick >= 1 or tick == 0 else f"{tick:g}", "tick", "end"))
    return "".join(lines)


def _doubling_edges(longest: int) -> list[int]:
    """Bin edges 0, 1, 2, 3, 5, 9, 17, …: the last bin holds `longest`."""
    edges = [0, 1, 2]
    width = 1
    while edges[-1] <= longest:
        edges.append(edges[-1] + width)
        width *= 2
    return edges


def _step(span: float) -> float:
    """A tick distance of 1, 2 or 5 times a power of ten that cuts `span` into about four."""
    rough = span / 4
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)


def _axis_top(top: float) -> float:
    return nice_ticks([0.0, top])[-1]


def nice_ticks(values: Sequence[float]) -> list[float]:
    """About five round ticks that enclose all values."""
    low, high = min(values), max(values)
    if high - low <= 0:
        high = low + (abs(low) or 1.0)
    step = _step(high - low)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


def tick_text(value: float, percent: bool = False) -> str:
    """A tick in words."""
    return f"{100 * value:.4g} %" if percent else f"{value:.6g}"


def _powers_of_ten(top: int) -> list[int]:
    return [10**power for power in range(int(math.log10(top) + 1e-9) + 1)]
