"""What the parity gate says of one file: whether it passed, the reasons if not, and every figure."""

import math
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Verdict:
    """What was found out about one file. `reasons`: sentences, empty where it passed; `details`: every figure."""

    ftype: str
    reference: str
    reasons: list[str] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        return not self.reasons

    def as_dict(self) -> dict[str, Any]:
        """JSON-able: {"passed", "ftype", "reference", "reasons", and a part for each thing compared}."""
        verdict = {"passed": self.passed, "ftype": self.ftype, "reference": self.reference, "reasons": self.reasons}
        return verdict | _without_infinity(self.details)


def _without_infinity(value: Any) -> Any:
    """`value` with numbers that JSON lacks (infinity, NaN: what a broken file gives) as words."""
    if isinstance(value, dict):
        return {key: _without_infinity(each) for key, each in value.items()}
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
