"""Facts that every figure is reported with: machine, threads, versions; and the machine's own limits."""

import importlib.metadata
import importlib.util
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from .. import __version__
from ..kernels import native

PACKAGES = ("numpy", "scipy", "numba", "torch", "implicit")


def facts(n_threads: int, packages: Sequence[str] = ()) -> dict:
    """Processor, cores, threads used, instruction set of the kernels, versions (also of `packages`), load average."""
    return {
        "cpu": cpu_name(),
        "n_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "n_threads": n_threads,
        "isa": native.isa(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {"reclm-lite": __version__, **{name: version(name) for name in (*PACKAGES, *packages)}},
        "load_average": round(os.getloadavg()[0], 2),
    }


def cpu_name() -> str:
    """The processor's name as the system reports it."""
    path = Path("/proc/cpuinfo")
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def version(package: str) -> str:
    """The installed version, or "not installed"."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def installed(module: str) -> bool:
    """Whether a peer can be imported; nothing is imported to check."""
    return importlib.util.find_spec(module) is not None


def sentence(about: dict) -> str:
    """The facts as one line."""
    versions = ", ".join(f"{name} {value}" for name, value in about["versions"].items())
    return (
        f"{about['cpu']}, {about['n_cores']} cores, {about['n_threads']} threads, {about['isa']}, load "
        f"{about['load_average']}; "
        f"{about['system']}, Python {about['python']}, {versions}"
    )


def copy_bandwidth(n_threads: int, n_bytes: int = 256 << 20, repeats: int = 7) -> float:
    """Bytes/s (read plus written) of copying memory that fits no cache, a part in each thread."""
    source, target = np.ones(n_bytes // 4, np.float32), np.zeros(n_bytes // 4, np.float32)
    seconds = _in_threads(
        [lambda part=part: np.copyto(target[part], source[part]) for part in _ranges(len(source), n_threads)], repeats
    )
    return 2 * n_bytes / seconds


def cache_bandwidth(n_threads: int, n_bytes: int = 16 << 20, repeats: int = 7) -> float:
    """Bytes/s of reading an array that fits the last-level cache only, a part in each thread (BLAS dot)."""
    from threadpoolctl import threadpool_limits

    values = np.ones(n_bytes // 4, np.float32)
    n_rounds = 8

    def read(part: slice) -> None:
        mine = values[part]
        for _ in range(n_rounds):
            mine @ mine

    with threadpool_limits(limits=1, user_api="blas"):
        seconds = _in_threads([lambda part=part: read(part) for part in _ranges(len(values), n_threads)], repeats)
    return n_rounds * n_bytes / seconds


def product_rate(n: int = 1024, repeats: int = 7) -> float:
    """Floating-point operations/s of a large float32 matrix product, with the threads that BLAS is limited to."""
    left, out = np.ones((n, n), np.float32), np.empty((n, n), np.float32)
    seconds = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        np.matmul(left, left, out=out)
        seconds.append(time.perf_counter() - started)
    return 2.0 * n**3 / statistics.median(seconds[1:])


def _ranges(n: int, n_parts: int) -> list[slice]:
    bounds = [n * part // n_parts for part in range(n_parts + 1)]
    return [slice(low, high) for low, high in zip(bounds[:-1], bounds[1:], strict=True)]


def _in_threads(works: list[Callable[[], None]], repeats: int) -> float:
    """Median seconds of doing all of `works` at the same time."""
    seconds = []
    with ThreadPoolExecutor(len(works)) as pool:
        for turn in range(repeats + 1):
            started = time.perf_counter()
            for done in [pool.submit(work) for work in works]:
                done.result()
            if turn:
                seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)
