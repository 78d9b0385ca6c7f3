"""Memory of this process and the machine: available bytes, resident bytes, peak resident bytes."""

import resource
import sys
from pathlib import Path

from .errors import ModelError


def available_bytes() -> int:
    """Bytes this process can still allocate: the minimum over the machine, the control group and RLIMIT_AS."""
    limits = [_meminfo(), *_cgroup(), *_address_space()]
    found = [limit for limit in limits if limit is not None]
    return max(0, min(found)) if found else 2**62


def require(need: int, what: str, remedy: str, *, available: int | None = None) -> str:
    """A log line about memory. Raises ModelError, with `remedy`, if `need` bytes are not available."""
    have = available_bytes() if available is None else available
    if need > have:
        raise ModelError(
            f"{what} needs about {in_units(need)} of memory and {in_units(have)} are available: nothing was started. "
            f"{remedy}"
        )
    return f"memory: {what} takes about {in_units(need)} of {in_units(have)} available"


def in_units(n_bytes: int) -> str:
    """`n_bytes` in MB or GB, for display."""
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
    """Limit minus usage of the process's control group (version 1 or 2) and of its ancestors.

    Reclaimable page cache does not count as usage. In a container the process's own group is the root.
    """
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    # hierarchy:controllers:path, with no controllers in version 2
    paths = {
        controllers: path.strip("/")
        for _, controllers, path in (line.split(":", 2) for line in lines if line.count(":") >= 2)
    }
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
    """RLIMIT_AS minus the mapped address space."""
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft == resource.RLIM_INFINITY:
        return []
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    except OSError:
        pages = 0
    return [soft - pages * resource.getpagesize()]


def resident_bytes() -> int:
    """Resident bytes of this process now; the peak on systems that do not report the current value."""
    return _status("VmRSS") or peak_resident_bytes()


def peak_resident_bytes() -> int:
    """Peak resident bytes of this process (on Linux: since `clear_refs` was last written)."""
    found = _status("VmHWM")
    if found is not None:
        return found
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _status(key: str) -> int | None:
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) * 1024
    except OSError:
        return None
    return None
