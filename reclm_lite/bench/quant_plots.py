"""Inline SVG plots of `quant.html`: figures of files as lines with intervals, and the frontier of size and loss.

Classes are those of the report's style sheet, so that dark mode and print restyle them; nothing is told by colour alone: files
with an importance matrix are diamonds, the unquantized one a square.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from ..report.plots import WIDTH

_CHAR = 7.4  # units that a character of a label takes, about


@dataclass(frozen=True)
class Mark:
    """A file's figure. detail: said beside its name, such as its size. kind: "plain", "imatrix" or "reference"."""

    name: str
    detail: str
    value: float
    low: float | None = None
    high: float | None = None
    kind: str = "plain"
    shown: str = ""


_CSS = {"plain": "", "imatrix": " profiles", "reference": " reference-row"}


def rows_plot(
    marks: Sequence[Mark], *, title: str, axis: str, lines: Mapping[float, str] | None = None, percent: bool = False, from_zero: bool = True
) -> str:
    """One line a file: its figure as a dot, its interval as whiskers. lines: dashed verticals with their names. from_zero: whether
    the axis has zero on it.
    """
    lines = lines or {}
    row, top, bottom_room, left, inner = 42, 30 if lines else 10, 44, 8, WIDTH - 26
    height = top + row * len(marks) + bottom_room
    bottom = height - bottom_room
    ticks = nice_ticks(
        [end for mark in marks for end in (mark.value, mark.low, mark.high) if end is not None] + [*([0.0] if from_zero else []), *lines]
    )
    span = ticks[-1] - ticks[0]

    def x_of(value: float) -> float:
        return left + inner * (value - ticks[0]) / span

    out, told = [], []
    for tick in ticks:
        out.append(f'<line class="grid" x1="{x_of(tick):.1f}" x2="{x_of(tick):.1f}" y1="{top - 4}" y2="{bottom}"/>')
        out.append(_text(x_of(tick), bottom + 16, _tick(tick, percent), "tick", "middle"))
    for at, name in lines.items():
        x = x_of(at)
        anchor = "start" if x < WIDTH * 0.3 else "end" if x > WIDTH * 0.7 else "middle"
        out.append(f'<line class="reference" x1="{x:.1f}" x2="{x:.1f}" y1="{top - 6}" y2="{bottom}"/>')
        out.append(_text(x, top - 12, name, "tick", anchor))
    for index, mark in enumerate(marks):
        y = top + row * index + 29
        whiskers = _whisker(x_of(mark.low), x_of(mark.high), y, mark.kind) if mark.low is not None and mark.high is not None else ""
        out += [
            _text(left, y - 12, f"{mark.name}, {mark.detail}", "label", "start"),
            _text(left + inner, y - 12, mark.shown, "value", "end"),
            whiskers,
        ]
        out.append(_dot(x_of(mark.value), y, mark))
        told.append(f"{mark.name} {mark.shown}")
    out.append(_text(left + inner / 2, height - 8, axis, "axis", "middle"))
    return _svg(out, height, title, f"{axis}: {'; '.join(told)}.")


def frontier_plot(marks: Sequence[tuple[float, Mark]], *, title: str, x_axis: str, y_axis: str, bound: float | None = None) -> str:
    """Files by size (x, from zero) and loss (y, a share), each with its interval; a line joins those that no other file beats.

    bound: a dashed horizontal. Names are put where there is room; where there is none, pointing at the mark tells.
    """
    height, left, right, top, bottom_room = 340, 56, 16, 34, 46
    inner_w, inner_h = WIDTH - left - right, height - top - bottom_room
    xs = nice_ticks([0.0, *(x for x, _ in marks)])
    ys = nice_ticks(
        [end for _, mark in marks for end in (mark.value, mark.low, mark.high) if end is not None]
        + [0.0, *([bound] if bound is not None else [])]
    )

    def x_of(value: float) -> float:
        return left + inner_w * (value - xs[0]) / (xs[-1] - xs[0])

    def y_of(value: float) -> float:
        return top + inner_h * (1 - (value - ys[0]) / (ys[-1] - ys[0]))

    out = [_text(8, 12, y_axis, "axis", "start")]
    for tick in ys:
        out.append(f'<line class="grid" x1="{left}" x2="{WIDTH - right}" y1="{y_of(tick):.1f}" y2="{y_of(tick):.1f}"/>')
        out.append(_text(left - 7, y_of(tick) + 4, _tick(tick, True), "tick", "end"))
    for tick in xs:
        out.append(_text(x_of(tick), height - bottom_room + 16, f"{tick:g}", "tick", "middle"))
    if bound is not None:
        out.append(f'<line class="reference" x1="{left}" x2="{WIDTH - right}" y1="{y_of(bound):.1f}" y2="{y_of(bound):.1f}"/>')
    best = frontier([(x, mark.value) for x, mark in marks])
    if len(best) > 1:
        points = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in best)
        out.append(f'<polyline class="line" points="{points}"/>')
    places = [(x_of(x) + {"imatrix": 4, "plain": -4}.get(mark.kind, 0), y_of(mark.value), mark) for x, mark in marks]
    for x, y, mark in places:
        if mark.low is not None and mark.high is not None:
            low, high = y_of(mark.low), y_of(mark.high)
            out.append(
                f'<path class="whisker{_CSS[mark.kind]}" d="M{x:.1f},{low:.1f} V{high:.1f} M{x - 4:.1f},{low:.1f} h8 M{x - 4:.1f},{high:.1f} h8"/>'
            )
        out.append(_dot(x, y, mark))
    out += _labels(places, left, WIDTH - right, top - 16, height - bottom_room)
    out.append(_text(left + inner_w / 2, height - 8, x_axis, "axis", "middle"))
    told = "; ".join(f"{mark.name} {mark.detail}, {mark.shown}" for _, mark in marks)
    return _svg(out, height, title, f"{y_axis} against {x_axis}: {told}.")


def frontier(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those of (size, loss) that no other is both smaller and better than, by size."""
    out: list[tuple[float, float]] = []
    for x, y in sorted(set(points)):
        if not out or y < out[-1][1]:
            out.append((x, y))
    return out


def nice_ticks(values: Sequence[float]) -> list[float]:
    """About five round ticks that enclose all values."""
    low, high = min(values), max(values)
    if high - low <= 0:
        high = low + (abs(low) or 1.0)
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


def _labels(places: Sequence[tuple[float, float, Mark]], left: float, right: float, top: float, bottom: float) -> list[str]:
    """Names beside their marks: right, left, above, below, wherever they touch no mark and no other name."""
    taken = [(x - 6, y - 6, x + 6, y + 6) for x, y, _ in places]
    out = []
    for x, y, mark in places:
        width = _CHAR * len(mark.name)
        for dx, dy, anchor in (
            (10, 4, "start"),
            (-10, 4, "end"),
            (0, -11, "middle"),
            (0, 19, "middle"),
            (10, -9, "start"),
            (10, 17, "start"),
            (-10, -9, "end"),
            (-10, 17, "end"),
        ):
            start = x + dx - {"start": 0, "end": width, "middle": width / 2}[anchor]
            box = (start, y + dy - 11, start + width, y + dy + 3)
            inside = box[0] >= left and box[2] <= right and box[1] >= top and box[3] <= bottom
            if inside and not any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken):
                taken.append(box)
                out.append(_text(x + dx, y + dy, mark.name, "label", anchor))
                break
    return out


def _tick(value: float, percent: bool) -> str:
    return f"{100 * value:.4g} %" if percent else f"{value:.6g}"


def _svg(parts: Sequence[str], height: float, title: str, description: str) -> str:
    label = escape(f"{title}. {description}", quote=True)
    return f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{label}"><desc>{escape(description)}</desc>{"".join(parts)}</svg>'


def _text(x: float, y: float, text: str, css: str, anchor: str) -> str:
    return f'<text class="{css}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _whisker(low: float, high: float, y: float, kind: str) -> str:
    return f'<path class="whisker{_CSS[kind]}" d="M{low:.1f},{y} H{high:.1f} M{low:.1f},{y - 4} v8 M{high:.1f},{y - 4} v8"/>'


def _dot(x: float, y: float, mark: Mark) -> str:
    css, tip = f'class="dot{_CSS[mark.kind]}"', f"<title>{escape(f'{mark.name}, {mark.detail}: {mark.shown}')}</title>"
    if mark.kind == "imatrix":
        return f'<path {css} d="M{x:.1f},{y - 6.5:.1f} l6.5,6.5 l-6.5,6.5 l-6.5,-6.5 Z">{tip}</path>'
    if mark.kind == "reference":
        return f'<rect {css} x="{x - 4.5:.1f}" y="{y - 4.5:.1f}" width="9" height="9">{tip}</rect>'
    return f'<circle {css} cx="{x:.1f}" cy="{y:.1f}" r="5">{tip}</circle>'
