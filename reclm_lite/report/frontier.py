"""The results of `reclm bench quant` as a plot of file size against loss, for the report and for `quant.html`.

Reads the document that the benchmark writes (`quant.json`). Classes are those of the report's style sheet, so that dark
mode and print restyle them; nothing is told by colour alone: files with an importance matrix are diamonds, the
unquantized one a square.
"""

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from ..errors import WorkspaceError
from ..files import read_document
from ..own_paths import require_own_path
from .plots import WIDTH, Dot, dot_plot, key, marker, nice_ticks, svg, text, tick_text

log = logging.getLogger(__name__)
HEADLINE = "full recall@20"
KEY = key("not quantized", "without importance matrix", "with one")
_CHAR = 7.4  # units that a character of a label takes, about


@dataclass(frozen=True)
class Mark(Dot):
    """A file's figure; name: its label without what is said beside it."""

    name: str = ""


_ASIDE = {"profiles": 4, "plain": -4}  # files of one size stand beside each other
_LOOKS = {"plain": ("plain", "circle"), "imatrix": ("profiles", "diamond"), "reference": ("reference-row", "square")}


def read(path: Path) -> dict[str, Any] | None:
    """The results at `path`, or None where there are none, or none that can be read: the log says why."""
    if not path.is_file():
        return None

    def refuse(constant: str) -> float:
        raise ValueError(f"{constant} is no number of JSON")

    try:
        require_own_path(path)
        document = json.loads(read_document(path), parse_constant=refuse)
        section(document)
        settings, choice = document["settings"], document["choice"]
        if not all(isinstance(text, str) for text in (settings["model"], settings["backbone"], choice["sentence"])):
            raise TypeError("a text is none")
        if not all(isinstance(n, int) for n in (settings["n_seeds"], document["n_users"])):
            raise TypeError("a count is none")
    except (
        *(WorkspaceError, OSError, ValueError, LookupError),
        *(TypeError, AttributeError, ArithmeticError, RecursionError),
    ) as error:
        log.warning(
            "%s is left out of the report: expected what `reclm bench quant` writes, found %s: %s",
            path,
            type(error).__name__,
            error,
        )
        return None
    return document


def loss_of(pair: Mapping[str, Any] | None) -> str:
    """The relative loss in per cent with its interval."""
    if pair is None or pair["loss"] is None:
        return "none"
    if pair["loss_interval"] is None:
        return f"{100 * pair['loss']:.2f} %, too few"
    low, high = (100 * end for end in pair["loss_interval"])
    return f"{100 * pair['loss']:.2f} % ({low:.2f} to {high:.2f})"


def measured(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The rows of files that were measured to the end, the largest first."""
    return sorted(
        (row for row in document["files"] if not row["excluded"]), key=lambda row: (-row["size_bytes"], row["name"])
    )


def marks_of(document: Mapping[str, Any], measure: Callable[[Mapping[str, Any]], float]) -> list[tuple[float, "Mark"]]:
    """Of every file that has a loss: what `measure` says of its row, and its loss as a mark."""
    marks = []
    for row in measured(document):
        pair = row["downstream"][HEADLINE]
        if pair is not None and pair["loss"] is not None:
            marks.append((measure(row), mark_of(row, pair["loss"], pair["loss_interval"], loss_of(pair))))
    return marks


def section(document: Mapping[str, Any]) -> str:
    """Size against loss as HTML: the frontier, and every file with its interval, beside the backbone without
    profiles."""
    marks = marks_of(document, lambda row: row["size_bytes"] / 1e6)
    numbers = [x for x, _ in marks] + [
        end for _, each in marks for end in (each.value, each.low, each.high) if end is not None
    ]
    if not all(math.isfinite(number) and abs(number) < 1e15 for number in numbers):
        raise ValueError("expected finite sizes and losses")
    if not marks:
        return "<p>No held-out interaction of this sample was found by any model, so there is no loss to show.</p>"
    bound = document["choice"]["max_loss"]
    in_rows = [each for _, each in marks]
    plain = document["without_profiles"][HEADLINE]
    if plain is not None and plain["loss"] is not None:
        in_rows.append(
            marked(
                "no profiles", "the backbone alone", plain["loss"], plain["loss_interval"], "reference", loss_of(plain)
            )
        )
    note = f"Loss of Recall@20 compared with the unquantized file; the dashed line is the bound of {100 * bound:g} %."
    by_loss = dot_plot(
        in_rows,
        title="Loss of Recall@20",
        axis="loss of Recall@20",
        reference=bound,
        reference_label=f"{100 * bound:g} %",
        percent=True,
    )
    scatter = frontier_plot(
        marks, title="Size and loss", x_axis="size of the file, MB", y_axis="loss of Recall@20", bound=bound
    )
    figures = figure("The frontier", note, scatter) + figure(
        "With 95 % intervals", "Negative: better than the unquantized file.", by_loss
    )
    return f'{KEY}<div class="pair">{figures}</div>'


def figure(title: str, note: str, drawn: str) -> str:
    return f"<figure><figcaption>{escape(title)}<span>{escape(note)}</span></figcaption>{drawn}</figure>"


def marked(name: str, detail: str, value: float, interval: Sequence[float] | None, kind: str, shown: str) -> Mark:
    """A mark in the looks of its kind: "plain", "imatrix" or "reference"."""
    low, high = interval or (None, None)
    return Mark(f"{name}, {detail}", value, low, high, *_LOOKS[kind], shown, name)


def mark_of(row: Mapping[str, Any], value: float, interval: Sequence[float] | None, shown: str) -> Mark:
    """The mark of a file's row, its size beside its name."""
    kind = "reference" if row["is_reference"] else "imatrix" if row["imatrix"] else "plain"
    return marked(row["name"], f"{row['size_bytes'] / 1e6:,.1f} MB", value, interval, kind, shown)


def model_name(document: Mapping[str, Any]) -> str:
    """The unquantized file's name without its folder, of either system's paths."""
    return str(document["settings"]["model"]).replace("\\", "/").rpartition("/")[2]


def frontier_plot(
    marks: Sequence[tuple[float, Mark]],
    *,
    title: str,
    x_axis: str,
    y_axis: str,
    bound: float | None = None,
    more_is_better: bool = False,
) -> str:
    """Files by size or speed (x, from zero) and loss (y, a share), each with its interval; a line joins those that no
    other file beats.

    bound: a dashed horizontal. more_is_better: of x. Names are put where there is room; where there is none, pointing
    at the mark tells.
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
        out.append(
            f'<line class="reference" x1="{left}" x2="{WIDTH - right}" y1="{y_of(bound):.1f}" y2="{y_of(bound):.1f}"/>'
        )
    best = frontier([(x, mark.value) for x, mark in marks], more_is_better=more_is_better)
    if len(best) > 1:
        points = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in best)
        out.append(f'<polyline class="line" points="{points}"/>')
    places = [(x_of(x) + _ASIDE.get(mark.group, 0), y_of(mark.value), mark) for x, mark in marks]
    for x, y, mark in places:
        if mark.low is not None and mark.high is not None:
            low, high = y_of(mark.low), y_of(mark.high)
            out.append(
                f'<path class="whisker {mark.group}" d="M{x:.1f},{low:.1f} V{high:.1f} M{x - 4:.1f},{low:.1f} h8 '
                f'M{x - 4:.1f},{high:.1f} h8"/>'
            )
        out.append(marker(x, y, mark, f"{mark.label}: {mark.shown}"))
    out += _labels(places, left, WIDTH - right, top - 16, height - bottom_room)
    out.append(text(left + inner_w / 2, height - 8, x_axis, "axis", "middle"))
    told = "; ".join(f"{mark.label}, {mark.shown}" for _, mark in marks)
    return svg(out, height, title, f"{y_axis} against {x_axis}: {told}.")


def frontier(points: Sequence[tuple[float, float]], *, more_is_better: bool = False) -> list[tuple[float, float]]:
    """Those of (size, loss) that no other is both smaller and better than, by size; or of (speed, loss), from the
    fastest on."""
    out: list[tuple[float, float]] = []
    for x, y in sorted(set(points), key=lambda point: (-point[0] if more_is_better else point[0], point[1])):
        if not out or y < out[-1][1]:
            out.append((x, y))
    return out


def _labels(
    places: Sequence[tuple[float, float, Mark]], left: float, right: float, top: float, bottom: float
) -> list[str]:
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
