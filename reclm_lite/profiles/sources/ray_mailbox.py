"""What driver and workers of a Ray cluster have in common: the job, its batches, and the mailbox between them.

Plain Python, without Ray: `ray_cluster` makes an actor of `Mailbox` and calls it from afar.
"""

import asyncio
import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ... import __version__
from ...errors import ModelError
from ...files import file_sha256
from ..answer_grammar import GRAMMAR_VERSION
from ..chat import ChatWrap
from ..sampling import Sampling
from ..slots import GenerationResult

BATCH_MOST, BATCH_LEAST = (
    512,
    16,
)  # prompts of a batch: large, so that slots seldom run empty; small towards the end of the job
CHUNK_BYTES = 32 << 20
MAX_BEGUN = 4  # times that a batch is begun without one answer: its workers were killed each time


@dataclass(frozen=True)
class Job:
    """What a node needs to answer as the driver's own engine would. n_threads: None for the CPUs that the node
    declares."""

    path: str
    is_bundled: bool
    sha256: str
    size_bytes: int
    n_ctx: int
    n_threads: int | None
    n_slots: int | None
    chat: ChatWrap | None
    max_new_tokens: int
    sampling: Sampling
    in_order: bool  # the most valuable first, rather than those that begin alike together
    versions: tuple[str, str] = (__version__, GRAMMAR_VERSION)


@dataclass(frozen=True)
class News:
    """What the driver finds at the mailbox. seconds_each: of the slowest node. error: a sentence that ends the run."""

    results: list[GenerationResult]
    seconds_each: float
    nodes: list[str]
    error: str | None


class Mailbox:
    """An actor on the driver's machine between it and the workers; its state is the rows that are answered and the
    stop signal."""

    def __init__(self, path: str):
        self._path = path
        self._results: list[GenerationResult] = []
        self._done: set[int] = set()
        self._begun: dict[
            int, tuple[int, int]
        ] = {}  # by a batch's first row: its rows without an answer, and times in vain
        self._seconds_each: dict[str, float] = {}
        self._drain = self._stop = False
        self._error: str | None = None
        self._came = asyncio.Event()

    async def begin(self, node: str, rows: list[int]) -> tuple[list[int], bool]:
        """Those of a batch's rows that nobody has answered, and whether to begin at all."""
        self._seconds_each.setdefault(node, 0.0)
        wanted = [row for row in rows if row not in self._done]
        n_before, n_times = self._begun.get(rows[0], (-1, 0))
        n_times = n_times + 1 if len(wanted) == n_before else 0
        self._begun[rows[0]] = len(wanted), n_times
        if wanted and n_times == MAX_BEGUN:
            await self.fail(
                f"{node}: expected answers to {len(wanted)} prompts, found that the worker was killed {n_times} times "
                "without one "
                "(is its memory too small?); see Ray's logs, use fewer --slots or a smaller model"
            )
        return wanted, not (self._drain or self._stop)

    async def hand_over(self, node: str, results: list[GenerationResult], seconds_each: float) -> tuple[bool, bool]:
        """From a worker; returns the stop_signal: drain, stop. A row that has an answer keeps it."""
        fresh = [result for result in results if result.index not in self._done]
        self._done.update(result.index for result in fresh)
        self._results += fresh
        self._seconds_each[node] = seconds_each or self._seconds_each.get(node, 0.0)
        if fresh:
            self._came.set()
        return self._drain, self._stop

    async def fail(self, sentence: str) -> None:
        """From a worker that cannot go on; the first sentence ends the run."""
        self._error, self._stop = self._error or sentence, True
        self._came.set()

    async def take(self, drain: bool, stop: bool, wait_seconds: float) -> News:
        """From the driver, with the state of its stop_signal: what came since it last asked."""
        self._drain, self._stop = self._drain or drain, self._stop or stop
        if not self._came.is_set() and wait_seconds:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._came.wait(), wait_seconds)
        self._came.clear()
        results, self._results = self._results, []
        return News(results, max(self._seconds_each.values(), default=0.0), sorted(self._seconds_each), self._error)

    async def chunk(self, offset: int) -> bytes:
        """A part of the model's file, for a node that does not have it."""
        with open(self._path, "rb") as stream:
            stream.seek(offset)
            return stream.read(CHUNK_BYTES)


def batch_sizes(n: int, n_nodes: int) -> list[int]:
    """How `n` prompts are cut: a quarter of each node's share of what is left, so that the nodes end at about the same
    time."""
    sizes = []
    while n > 0:
        sizes.append(min(n, max(BATCH_LEAST, min(BATCH_MOST, n // (4 * n_nodes)))))
        n -= sizes[-1]
    return sizes


def model_file(job: Job, chunk: Callable[[int], bytes]) -> Path:
    """The model on this node: at the driver's path, or a copy in the user's cache folder, sent once where there is
    none.

    chunk(offset) gives the next bytes of the file. Raises ModelError if another file lies at the path.
    """
    path = Path(job.path)
    if job.is_bundled:
        from ...assets import profile_model_path

        path = profile_model_path()
    if path.is_file():
        if (found := file_sha256(path)) == job.sha256:
            return path
        if not job.is_bundled:
            raise ModelError(
                f"expected {path} to be the driver's model (SHA-256 {job.sha256[:12]}…), found a file with SHA-256 "
                f"{found[:12]}…: copy the model there, or remove the file, and the driver sends the model"
            )
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "reclm-lite" / "models"
    copy = folder / f"{job.sha256}.gguf"
    if copy.is_file() and file_sha256(copy) == job.sha256:
        return copy
    part = folder / f".{job.sha256}.{os.getpid()}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as stream:
            while (offset := stream.tell()) < job.size_bytes:
                if not stream.write(chunk(offset)):
                    break
            stream.flush()
            os.fsync(stream.fileno())
        if file_sha256(part) != job.sha256:
            raise ModelError(
                f"expected the model's {job.size_bytes:,} bytes, found others: was {path} changed? Run it again"
            )
        part.replace(copy)
    except OSError as error:
        raise ModelError(
            f"expected room for the model in {folder}, found: {error}; put the model at {path} on this node"
        ) from error
    finally:
        with contextlib.suppress(OSError):  # gone by its new name, or never there
            part.unlink()
    return copy
