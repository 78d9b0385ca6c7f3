"""Shared by the numba kernels: counter-based random numbers, a vectorized exp, and the number of threads.

Left out: the kernels. Import this module lazily: numba is slow to load.
"""

import functools
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numba
import numpy as np

from reclm_lite.errors import InputError
from reclm_lite.kernels._library import threads
from reclm_lite.threads import check_threads, prove_threads

# Lets LLVM vectorize the sum of a row. NaN and infinity keep their meaning. The order of a sum depends on the
# processor's vector width, but not on the number of threads.
REASSOCIATE = {"reassoc", "contract", "nsz"}

# A parallel loop of fewer operations (of at most about 1 ns) runs on one thread.
SMALL = 100_000

log = logging.getLogger(__name__)

F = TypeVar("F", bound=Callable[..., Any])


def compiled(**options: object) -> Callable[[F], F]:
    """numba.njit with machine code cached on disk, beside the package or in the user's cache folder.

    If neither is writable (a read-only installation, no home folder), numba would fail; then every process compiles.
    """

    def decorate(function: F) -> F:
        try:
            return numba.njit(cache=True, **options)(function)
        except RuntimeError as error:
            if "no locator available" not in str(error):
                raise
            _tell_of_cache()
            return numba.njit(**options)(function)

    return decorate


@functools.cache
def _tell_of_cache() -> None:
    log.warning(
        "training loops are compiled anew by each process, some 10 s: neither the package's folder nor the user's "
        "cache can be "
        "written; set NUMBA_CACHE_DIR to a folder that can"
    )


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX2 = np.uint64(0x94D049BB133111EB)


@compiled(inline="always")
def splitmix(counter: np.uint64) -> np.uint64:
    """splitmix64 of a counter: uint64 -> uint64 (Steele et al., OOPSLA 2014)."""
    z = counter * _GOLDEN
    z = (z ^ (z >> np.uint64(30))) * _MIX1
    z = (z ^ (z >> np.uint64(27))) * _MIX2
    return z ^ (z >> np.uint64(31))


@compiled(inline="always")
def below(bits: np.uint64, n: np.uint64) -> np.uint64:
    """A number in [0, n) from 64 random bits, n < 2**32: the high half of a product, without division."""
    return ((bits >> np.uint64(32)) * n) >> np.uint64(32)


_LOG2E = np.float32(1.4426950408889634)
_LN2_HIGH = np.float32(0.693359375)
_LN2_LOW = np.float32(-2.12194440e-4)
_LOWEST = np.float32(-87.0)
_ROUND = np.float32(12582912.0)  # 1.5 * 2**23: adding and subtracting it rounds to an integer
_C2, _C3, _C4 = np.float32(0.5), np.float32(1.6666665459e-1), np.float32(4.1665795894e-2)
_C5, _C6, _C7 = np.float32(8.3334519073e-3), np.float32(1.3981999507e-3), np.float32(1.9875691500e-4)
_ONE = np.float32(1)


@compiled()
def exp_at_most_zero(values: np.ndarray, bits: np.ndarray) -> None:
    """values = exp(values) in place, for float32 values <= 0; relative error below 2e-7 (polynomial of Cephes' expf).

    Values below -87 give exp(-87) = 1.6e-38. bits: int32 scratch of at least the same length. NaN stays NaN.
    """
    powers = bits.view(np.float32)
    for j in range(len(values)):
        x = values[j] if not values[j] < _LOWEST else _LOWEST
        k = (x * _LOG2E + _ROUND) - _ROUND
        r = x - k * _LN2_HIGH - k * _LN2_LOW
        p = ((((_C7 * r + _C6) * r + _C5) * r + _C4) * r + _C3) * r + _C2
        values[j] = p * r * r + r + _ONE
        bits[j] = (np.int32(k) + np.int32(127)) << np.int32(23)
    for j in range(len(values)):
        values[j] *= powers[j]


@functools.cache
def _prove_pool() -> None:
    """Check that numba can start its threads: its first parallel loop starts all of them, whatever the limit."""
    n_threads = check_threads(numba.config.NUMBA_NUM_THREADS, InputError, "NUMBA_NUM_THREADS")
    prove_threads(n_threads, InputError)


@contextmanager
def limited(n_threads: int | None, n_operations: int) -> Iterator[None]:
    """Limit parallel numba loops inside to `n_threads` (None: the kernels' default) and to the size of numba's pool.

    Small work runs on one thread: synchronization would cost more than it saves, especially on a busy machine.
    """
    _prove_pool()
    before = numba.get_num_threads()
    wanted = threads(n_threads)
    numba.set_num_threads(min(wanted, numba.config.NUMBA_NUM_THREADS) if n_operations >= SMALL else 1)
    try:
        yield
    finally:
        numba.set_num_threads(before)
