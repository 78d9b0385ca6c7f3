"""The plot of `quant.html` that the report has not: the frontier of size and loss; and files as dots of `report.plots`.

Classes are those of the report's style sheet, so that dark mode and print restyle them; nothing is told by colour alone: files
with an importance matrix are diamonds, the unquantized one a square.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ..report.plots import WIDTH, Dot, marker, nice_ticks, svg, text, tick_text

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


_LOOKS = {"plain": ("plain", "circle"), "imatrix": ("profiles", "diamond"), "reference": ("reference-row", "square")}


def dot_of(mark: Mark) -> Dot:
    """The mark as a line of `report.plots.dot_plot`."""
    group, shape = _LOOKS[mark.kind]
    return Dot(f"{mark.name}, {mark.detail}", mark.value, mark.low, mark.high, group, shape, mark.shown)


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

    out = [text(8, 12, y_axis, "axis", "start")]
    for tick in ys:
        out.append(f'<line class="grid" x1="{left}" x2="{WIDTH - right}" y1="{y_of(tick):.1f}" y2="{y_of(tick):.1f}"/>')
        out.append(text(left - 7, y_of(tick) + 4, tick_text(tick, True), "tick", "end"))
    for tick in xs:
        out.append(text(x_of(tick), height - bottom_room + 16, f"{tick:g}", "tick", "middle"))
    if bound is not None:
        out.append(f'<line class="reference" x1="{left}" x2="{WIDTH - right}" y1="{y_of(bound):.1f}" y2="{y_of(bound):.1f}"/>')
    best = frontier([(x, mark.value) for x, mark in marks])
    if len(best) > 1:
        points = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in best)
        out.append(f'<polyline class="line" points="{points}"/>')
    places = [(x_of(x) + {"imatrix": 4, "plain": -4}.get(mark.kind, 0), y_of(mark.value), mark) for x, mark in marks]
    for x, y, mark in places:
        dot = dot_of(mark)
        if mark.low is not None and mark.high is not None:
            low, high = y_of(mark.low), y_of(mark.high)
            out.append(
                f'<path class="whisker {dot.group}" d="M{x:.1f},{low:.1f} V{high:.1f} M{x - 4:.1f},{low:.1f} h8 M{x - 4:.1f},{high:.1f} h8"/>'
            )
        out.append(marker(x, y, dot, f"{dot.label}: {dot.shown}"))
    out += _labels(places, left, WIDTH - right, top - 16, height - bottom_room)
    out.append(text(left + inner_w / 2, height - 8, x_axis, "axis", "middle"))
    told = "; ".join(f"{mark.name} {mark.detail}, {mark.shown}" for _, mark in marks)
    return svg(out, height, title, f"{y_axis} against {x_axis}: {told}.")


def frontier(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those of (size, loss) that no other is both smaller and better than, by size."""
    out: list[tuple[float, float]] = []
    for x, y in sorted(set(points)):
        if not out or y < out[-1][1]:
            out.append((x, y))
    return out


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
                out.append(text(x + dx, y + dy, mark.name, "label", anchor))
                break
    return out
