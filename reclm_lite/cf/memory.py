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


def trained_bytes(shape: Shape, settings: TrainedSettings, *, relu_width: int = 0, view_bytes: int = 0) -> int:
    """Peak bytes of training: what stays throughout, and the largest of what comes and goes (a step of the model or of the
    profiles' part, writing a checkpoint). view_bytes: what a step takes beside the vectors of its views.
    """
    n, dim = shape.n_users + shape.n_items, settings.dim
    hidden = settings.text_hidden or dim
    id_items = 0 if settings.encoder == "published" and shape.n_text else shape.n_items
    parameters = (shape.n_users + id_items) * dim * FLOAT
    parameters += (shape.n_text + shape.n_user_profile + shape.n_item_profile + dim) * hidden * FLOAT
    # Parameters, two moments, the best epoch's copy; users, items and order of the interactions.
    stays = 4 * parameters + shape.nnz * (4 + 4 + 8)
    vectors = n * (dim + relu_width) * FLOAT
    batch = min(settings.batch_size, shape.nnz)
    sampled = batch * (settings.n_negatives * 3 + 4 + 2 * (dim + relu_width)) * FLOAT
    if isinstance(settings, GraphSettings):
        # Both directions' weights and indices with their thinned weights; what finds the transposed order.
        stays += shape.nnz * (16 + 8 + 8)
        step = _graph_step(shape, settings, batch) + view_bytes
    else:
        step = _row_step(shape, settings, batch, relu_width, parameters)
    validation = vectors + shape.n_validated * (dim + relu_width + 60) * FLOAT
    transients = [sampled + step, 4 * parameters, validation]
    if settings.encoder == "residual" and (shape.n_user_profile or shape.n_item_profile):
        transients.append(2 * vectors + _tower_step(shape, settings, batch))
    return stays + max(transients)


def _graph_step(shape: Shape, settings: GraphSettings, batch: int) -> int:
    """Vectors are (n, dim): first, their sum over layers, two layers in work, gradients of the scores and of the first."""
    copies, blocks = 8, 0
    if isinstance(settings, ContrastSettings):
        # Two views, normalised, and their gradients.
        copies += 8
        others = max(shape.n_users, shape.n_items) if settings.contrast_with == "all" else batch
        blocks = min(4_000_000, batch * others) * FLOAT + 6 * batch * settings.dim * FLOAT
    vectors = (shape.n_users + shape.n_items) * settings.dim * FLOAT * copies
    return vectors + blocks + _encoder_step(shape, settings, shape.n_users, shape.n_items)


def _row_step(shape: Shape, settings: TrainedSettings, batch: int, relu_width: int, parameters: int) -> int:
    """The rows of a batch's users and items; the gradient of whole tables, unless Adam moves the rows alone."""
    users, items = min(batch, shape.n_users), min(batch * (settings.n_negatives + 1), shape.n_items)
    rows = (users + items) * (settings.dim + relu_width) * FLOAT * 3 + items * shape.n_text * FLOAT
    full = 0 if getattr(settings, "sparse_updates", False) else parameters
    return rows + full + _encoder_step(shape, settings, users, items)


def _encoder_step(shape: Shape, settings: TrainedSettings, users: int, items: int) -> int:
    """Hidden layers over text and, as published, over profiles, with their gradients."""
    hidden, dim = settings.text_hidden or settings.dim, settings.dim
    total = items * (2 * hidden + dim) * FLOAT if shape.n_text else 0
    if settings.encoder == "published":
        total += items * (2 * hidden + 7 * dim) * FLOAT if shape.n_item_profile else 0
        total += users * (2 * hidden + 7 * dim) * FLOAT if shape.n_user_profile else 0
    return total


def _tower_step(shape: Shape, settings: TrainedSettings, batch: int) -> int:
    """A step of the profiles' part; or, at validation, the parts of all, joined with the base for each try of the gates."""
    dim = settings.dim
    users, items = min(batch, shape.n_users), min(batch * (settings.n_negatives + 1), shape.n_items)
    step = users * (shape.n_user_profile + 8 * dim) + items * (shape.n_text + shape.n_item_profile + 12 * dim)
    joined = (shape.n_users + shape.n_items) * 5 * dim
    return max(step, joined) * FLOAT


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


def _cgroup(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> list[int]:
    """Limit less use of the process's control group and of those above it, of version 2 or 1; page cache that can be taken
    back does not count as use. In a container its own group stands at the root.
    """
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    # hierarchy:controllers:path, with no controllers in version 2
    paths = {controllers: path.strip("/") for _, controllers, path in (line.split(":", 2) for line in lines if line.count(":") >= 2)}
    of_version_1 = next((path for controllers, path in paths.items() if "memory" in controllers.split(",")), "")
    found = []
    for top, path, limit, used, cache in (
        (root, paths.get("", ""), "memory.max", "memory.current", "inactive_file"),
        (root / "memory", of_version_1, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        group = top / path
        for folder in (group, *group.parents):
            if not folder.is_relative_to(top):
                break
            try:
                most, now = (folder / limit).read_text().strip(), (folder / used).read_text().strip()
                counts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
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
