"""Writes `reports/report.html`, one self-contained page.

No script, no network, system fonts; style sheet and plots are inline; it reads on a phone, in print and in
the dark. The sections are in findings.py and background.py.
"""

from collections.abc import Mapping
from pathlib import Path

from ..files import atomic_path
from ..own_paths import make_folder
from ..workspace import Workspace
from . import background, findings
from .facts import Facts, gather
from .shell import shell
from .words import plural


def write_report(ws: Workspace, out: Path | None = None, *, evaluation: Mapping | None = None) -> Path:
    """Write the page to `out` (default: `reports/report.html` of the workspace) by atomic rename; returns its path.

    evaluation: the result of `evaluate_workspace`, if it is at hand; computed where None.
    """
    if out is None:
        ws.require_own_folders()
    facts = gather(ws, evaluation=evaluation)
    path = Path(out) if out is not None else ws.root / "reports" / "report.html"
    make_folder(path.parent)
    with atomic_path(path, named_by_user=out is not None) as temporary:
        temporary.write_text(render(facts), encoding="utf-8")
    return path


def render(facts: Facts) -> str:
    """The whole page as HTML."""
    sections = [
        ("models", "Models compared", findings.models_section(facts)),
        ("people", "Three users", findings.people_section(facts.people)),
        ("coverage", "Coverage", background.coverage_section(facts)),
        *(
            [("quantization", "Size of the profile model", findings.quantization_section(facts))]
            if facts.quantization
            else []
        ),
        ("data", "The data", background.data_section(facts)),
        ("split", "Split and settings", background.split_section(facts)),
        ("timings", "Timings", background.timings_section(facts)),
        ("provenance", "Provenance", background.provenance_section(facts)),
    ]
    made = facts.created[:16].replace("T", " ")
    return shell(
        f"{facts.name}: recommendation report",
        kicker="Recommendation report",
        heading=facts.name,
        lede=findings.headline(facts),
        sections=sections,
        soft=f"{plural(facts.n_users, 'user')}, {plural(facts.n_items, 'item')}, "
        f"{plural(facts.n_interactions, 'interaction')}. Made {made} UTC.",
    )
