"""How much memory a fit will take, and whether there is so much: asked before the work begins.

Estimates count the arrays that live at the peak, from shapes and settings; a test holds them against measured peaks.
What is loaded already (the split, text and profile vectors) does not count, since it is not available any more either.
"""

import resource
from dataclasses import dataclass
from pathlib import Path

from ..errors import ModelError
from .settings import ContrastSettings, GraphSettings, TrainedSettings

FLOAT = 4
# Rows of InfoNCE's score blocks; cf/contrast.py.
CONTRAST_ROWS = 256


@dataclass(frozen=True)
class Shape:
    """Of the data. nnz: training interactions. n_text, n_user_profile, n_item_profile: widths of the vectors, 0 for none.

    n_validated: users with validation interactions.
    """

    n_users: int
    n_items: int
    nnz: int
    n_text: int = 0
    n_user_profile: int = 0
    n_item_profile: int = 0
    n_validated: int = 0


def trained_bytes(shape: Shape, settings: TrainedSettings, *, relu_width: int = 0) -> int:
    """Peak bytes of training: the larger of the base model's and the profile tower's."""
    base = _base_bytes(shape, settings, relu_width)
    if settings.encoder == "published":
        return base
    # The base's vectors stay while the tower trains.
    vectors = (shape.n_users + shape.n_items) * (settings.dim + relu_width) * FLOAT
    return max(base, _tower_bytes(shape, settings) + 2 * vectors)


def _base_bytes(shape: Shape, settings: TrainedSettings, relu_width: int) -> int:
    n = shape.n_users + shape.n_items
    dim = settings.dim
    hidden = settings.text_hidden or dim
    batch = min(settings.batch_size, shape.nnz)
    with_profiles = settings.encoder == "published" and (shape.n_user_profile or shape.n_item_profile)
    id_items = 0 if settings.encoder == "published" and shape.n_text else shape.n_items
    tables = (shape.n_users + id_items) * dim * FLOAT
    small = (shape.n_text + shape.n_user_profile + shape.n_item_profile + dim) * hidden * FLOAT
    # Parameters, two moments, the best epoch's copy.
    total = 4 * (tables + small)
    # Users and places of every interaction, their order, the transposed order.
    total += shape.nnz * (4 + 4 + 8 + 8)
    total += batch * (settings.n_negatives + 4) * 3 * FLOAT
    if isinstance(settings, GraphSettings):
        # First vectors, their sum over layers, two layers in work, the scores' gradients: (n, dim) each.
        rows_users, rows_items, copies = shape.n_users, shape.n_items, 8
        if isinstance(settings, ContrastSettings):
            # Two views, each normalised, with gradients.
            copies += 8
            others = max(shape.n_users, shape.n_items) if settings.contrast_with == "all" else batch
            total += 3 * min(batch, CONTRAST_ROWS) * others * FLOAT + 4 * batch * dim * FLOAT
            total += 4 * shape.nnz * FLOAT
        total += n * dim * FLOAT * copies
        # Both directions' weights and indices, the thinned weights, what building them takes.
        total += shape.nnz * (16 + 8 + 8 + 24)
    else:
        # The gradient of the whole tables, unless only the batch's rows are moved; the batch's rows.
        total += 0 if getattr(settings, "sparse_updates", False) else tables
        rows_users, rows_items = min(batch, shape.n_users), min(batch * (settings.n_negatives + 1), shape.n_items)
        total += (rows_users + rows_items) * (dim + relu_width) * FLOAT * 4
        total += rows_items * shape.n_text * FLOAT
        # Validation ranks with the vectors of all.
        total += n * (dim + relu_width) * FLOAT
    if shape.n_text:
        total += rows_items * (4 * hidden + 3 * dim) * FLOAT
    if with_profiles:
        total += ((shape.n_user_profile > 0) * rows_users + (shape.n_item_profile > 0) * rows_items) * (4 * hidden + 8 * dim) * FLOAT
    return total + shape.n_validated * (dim + relu_width + 40) * FLOAT


def _tower_bytes(shape: Shape, settings: TrainedSettings) -> int:
    if not (shape.n_user_profile or shape.n_item_profile):
        return 0
    batch = min(settings.batch_size, shape.nnz)
    rows_items = min(batch * (settings.n_negatives + 1), shape.n_items)
    total = min(batch, shape.n_users) * (shape.n_user_profile + 8 * settings.dim) * FLOAT
    total += rows_items * (2 * max(shape.n_text, shape.n_item_profile) + 12 * settings.dim) * FLOAT
    # All parts at validation, joined once more for each try of the gates.
    return total + (shape.n_users + shape.n_items) * 6 * settings.dim * FLOAT


def available_bytes() -> int:
    """What this process may still take: the least of the machine's, the control group's and the process's own limit."""
    limits = [_meminfo(), *_cgroup(), *_address_space()]
    found = [limit for limit in limits if limit is not None]
    return max(0, min(found)) if found else 2**62


def require(need: int, what: str, remedy: str, *, available: int | None = None) -> str:
    """A line about memory for the log. Raises ModelError, with `remedy`, where `need` bytes are not to be had."""
    have = available_bytes() if available is None else available
    if need > have:
        raise ModelError(
            f"{what} needs about {in_units(need)} of memory and {in_units(have)} are available: nothing was started. {remedy}"
        )
    return f"memory: {what} takes about {in_units(need)} of {in_units(have)} available"


def in_units(n_bytes: int) -> str:
    """`n_bytes` in MB or GB, for people."""
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e9 else f"{max(n_bytes / 1e6, 1):.0f} MB"


def _meminfo() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        return None
    return None


def _cgroup() -> list[int]:
    """Limit less use of the control group, of version 2 or 1; its page cache can be taken back, so it does not count as use."""
    found = []
    for limit, used, stat, cache in (
        ("memory.max", "memory.current", "memory.stat", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
    ):
        root = Path("/sys/fs/cgroup")
        try:
            most, now = (root / limit).read_text().strip(), (root / used).read_text().strip()
            counts = dict(line.split() for line in (root / stat).read_text().splitlines())
        except (OSError, ValueError):
            continue
        if most != "max":
            found.append(int(most) - int(now) + int(counts.get(cache, 0)))
    return found


def _address_space() -> list[int]:
    """RLIMIT_AS less what the process has mapped."""
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft == resource.RLIM_INFINITY:
        return []
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    except OSError:
        pages = 0
    return [soft - pages * resource.getpagesize()]
