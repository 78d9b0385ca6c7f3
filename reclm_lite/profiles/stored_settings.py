"""The settings of an earlier run, as the table `jobs` keeps them: each within what the command line would take.

A workspace may come from somebody else, and `--resume` would do what it says: a number of retries is a list of that
length, and a time-out is waited for.
"""

import math
from collections.abc import Mapping
from typing import Any

_MOST_CHARS = 4096  # of a path or an address
_MOST = 2**63 - 1

# Setting -> (least, most) of a number; of a float, where one of the two is.
_NUMBERS: dict[str, tuple[float, float]] = {
    "n_slots": (1, 256),
    "n_threads": (1, 4096),  # what this machine takes is asked when they are started
    "max_new_tokens": (16, 4096),
    "n_ctx": (1, 1 << 20),
    "timeout_seconds": (0.001, 3600.0),
    "requests_per_minute": (0.001, 1e9),
    "price_in": (0.0, 1e9),
    "price_out": (0.0, 1e9),
    "limit": (1, _MOST),
    "n_retries": (0, 10),
    "fresh_after": (0, _MOST),
    "temperature": (0.0, 5.0),
    "top_k": (0, _MOST),
    "seed": (0, _MOST),
}
_TEXTS = ("model", "endpoint", "engine", "ray_address", "model_sha256", "fallback", "reuse")
_NEVER_NONE = ("n_retries", "temperature", "top_k", "seed", "engine", "reuse", "fresh", "guided")
_FLAGS = ("fresh", "guided")


def check_stored(settings: Mapping[str, Any]) -> None:
    """Raises ValueError for a setting that is of another type than this software writes, or out of its range."""
    for name, value in settings.items():
        if value is None and name not in _NEVER_NONE:
            continue
        if name in _NUMBERS:
            least, most = _NUMBERS[name]
            kinds = (int, float) if isinstance(least, float) else (int,)
            if type(value) not in kinds or not (math.isfinite(value) and least <= value <= most):
                raise ValueError(f"{name}: expected a number from {least:g} to {most:g}, found {repr(value)[:40]}")
        elif name in _FLAGS and type(value) is not bool:
            raise ValueError(f"{name}: expected true or false, found {repr(value)[:40]}")
        elif name in _TEXTS and not (type(value) is str and len(value) <= _MOST_CHARS and "\0" not in value):
            raise ValueError(f"{name}: expected a text of at most {_MOST_CHARS} characters, found {repr(value)[:40]}")
