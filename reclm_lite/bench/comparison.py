"""Results of a benchmark: groups of rows and targets, as a table for people and one JSON line for machines."""

import json
from dataclasses import asdict, dataclass, field

from .harness import Timing

NOT_INSTALLED = "not installed"


@dataclass
class Row:
    """One contender. median_ms, min_ms, per_second: None if it was not run; `note` then says why.

    facts: further figures for the JSON.
    """

    name: str
    median_ms: float | None = None
    min_ms: float | None = None
    per_second: float | None = None
    n_calls: int = 0
    note: str = ""
    facts: dict = field(default_factory=dict)


@dataclass
class Target:
    """A promised figure and the measured one. figure None: it could not be measured here."""

    what: str
    target: float
    figure: float | None
    at_least: bool = True
    unit: str = "x"

    @property
    def state(self) -> str:
        """ "met", "missed" or "not measured"."""
        if self.figure is None:
            return "not measured"
        met = self.figure >= self.target if self.at_least else self.figure <= self.target
        return "met" if met else "missed"


@dataclass
class Group:
    """Contenders that do the same work: `count` of `unit` per call."""

    name: str
    what: str
    unit: str
    count: float
    rows: list[Row] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)

    def add(self, name: str, timing: Timing, note: str = "", **facts: object) -> None:
        """A contender that was timed."""
        self.rows.append(
            Row(
                name,
                timing.median_seconds * 1e3,
                timing.min_seconds * 1e3,
                self.count / timing.median_seconds,
                timing.n_calls,
                note,
                facts,
            )
        )

    def add_missing(self, name: str, note: str = NOT_INSTALLED) -> None:
        """A contender that was not run."""
        self.rows.append(Row(name, note=note))

    def median(self, name: str) -> float | None:
        """Milliseconds of a row, None if it was not run."""
        return next((row.median_ms for row in self.rows if row.name == name), None)

    def expect(self, ours: str, times: float, peer: str) -> None:
        """Add a target: `ours` at least `times` as fast as `peer`, by their medians."""
        fast, slow = self.median(ours), self.median(peer)
        ratio = None if fast is None or slow is None else slow / fast
        self.targets.append(Target(f"{ours} against {peer}", times, ratio))


def to_json(benchmark: str, about: dict, settings: dict, groups: list[Group], **more: object) -> str:
    """Everything as one line."""
    document = {"benchmark": benchmark, "machine": about, "settings": settings, "groups": [], **more}
    for group in groups:
        targets = [{**asdict(target), "state": target.state} for target in group.targets]
        document["groups"].append({**asdict(group), "targets": targets})
    return json.dumps(document, ensure_ascii=False, allow_nan=False)


def lines_of(groups: list[Group]) -> list[str]:
    """The table, as lines of plain text."""
    lines = []
    for group in groups:
        lines += ["", f"{group.name}: {group.what}"]
        width = max((len(row.name) for row in group.rows), default=0)
        for row in group.rows:
            if row.median_ms is None:
                lines.append(f"  {row.name:<{width}}  {row.note}")
                continue
            rate = f"{_short(row.per_second)} {group.unit}/s"
            lines.append(
                f"  {row.name:<{width}}  {_ms(row.median_ms):>10} ms  (least {_ms(row.min_ms)})  {rate:>18}  "
                f"{row.note}".rstrip()
            )
        for target in group.targets:
            sign = ">=" if target.at_least else "<="
            found = "" if target.figure is None else f": {target.figure:.4g}{target.unit}"
            lines.append(f"  {target.state:>12}  {target.what} {sign} {target.target:g}{target.unit}{found}")
    return lines


def _ms(value: float) -> str:
    return f"{value:,.3f}" if value < 10 else f"{value:,.1f}"


def _short(value: float) -> str:
    for size, suffix in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{value / size:.3g}{suffix}"
    return f"{value:.3g} "
