"""How many threads a computation may have: bounded, and proved to start before a library that ends the process asks for
them.

libgomp, under the kernels, numba and llama.cpp, ends the process where a thread cannot be created: too many were asked
for, or `ulimit -u`, a bound on address space or a control group's `pids.max` is reached. Python's own threads take the
same from the system and only raise, so they are started first, all at once, and ended again: some 0.1 ms each, once in
a process.
"""

import os
import threading

from reclm_lite.errors import ReclmError

_MANY = 64  # threads that any machine may be asked for; more only with the CPUs for it
_PER_CPU = 4
MOST_OF_LLAMA_CPP = 512  # its GGML_MAX_N_THREADS, an assertion
_proved: dict[int, int] = {}  # process -> threads that were proved to start
_lock = threading.Lock()


def most_threads() -> int:
    """The largest number of threads that may be asked for on this machine."""
    return max(_MANY, _PER_CPU * (os.cpu_count() or 1))


def check_threads(n_threads: int, error: type[ReclmError], what: str = "a number of threads") -> int:
    """`n_threads`, if it is a number of 1 to `most_threads()`; raises `error` else."""
    most = most_threads()
    if isinstance(n_threads, bool) or not hasattr(n_threads, "__index__") or not 1 <= n_threads <= most:
        least = "at least 1 and " if hasattr(n_threads, "__index__") and n_threads < 1 else ""
        raise error(
            f"expected {what} of {least}at most {most} on this machine, found {repr(n_threads)[:40]}; ask for as many "
            "as it has CPUs"
        )
    return int(n_threads)


def prove_threads(n_threads: int, error: type[ReclmError]) -> None:
    """Raises `error` if this process may not start `n_threads` - 1 threads beside the calling one."""
    with _lock:
        if n_threads <= max(1, _proved.get(os.getpid(), 1)):
            return
        over, started = threading.Event(), []
        try:
            for _ in range(n_threads - 1):
                thread = threading.Thread(target=over.wait, name="reclm-proof", daemon=True)
                thread.start()
                started.append(thread)
        except (RuntimeError, MemoryError) as reason:
            raise error(
                f"expected to start {n_threads} threads, found that the system allows this process "
                f"{len(started) + 1}; ask for fewer "
                "(--threads, OMP_NUM_THREADS), or allow more processes (ulimit -u) or address space (ulimit -v)"
            ) from reason
        finally:
            over.set()
            for thread in started:
                thread.join()
        _proved.clear()  # of a process that this one was forked off
        _proved[os.getpid()] = n_threads
