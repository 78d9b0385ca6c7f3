"""A GGUF model on every node of a Ray cluster, with the keys, and so the cache, of the local engine.

Ray Data deals out batches of prompts: a Dataset of (row, prompt), `map_batches` over a pool of actors, one to a node, each
of which opens the model once. Answers do not wait for the end of a batch: every worker hands over what it has, and learns
of the brake, several times a second at a `Post`, a small actor beside the driver. A batch whose node is lost is given to
another node by Ray; the post then says which of its rows are answered already. Left out: starting a cluster (docs/ray.md).

The only module that knows Ray, and only inside functions: workers are given their classes by name.
"""

import asyncio
import contextlib
import dataclasses
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ... import __version__
from ...errors import ModelError, ReclmError
from ...runtime import file_sha256, pick_threads
from ..answers import Brake, Generation, Group, judge
from ..chat import ChatWrap
from ..constrain import FORM_VERSION
from ..sampling import Sampling
from ..scheduler import Engine
from ..store import prompt_key
from ..worker import GenerationResult
from .gguf import Gguf

log = logging.getLogger(__name__)

HAND_OVER_SECONDS = 0.25  # between two visits of a worker to the post
TAKE_SECONDS = 0.2  # that the driver waits at the post for news
SLACK_SECONDS = 0.5  # from an answer on a node to the driver: both of the above
BATCH_MOST, BATCH_LEAST = 512, 16  # prompts of a batch: large, so that slots seldom run empty; small towards the end of the job
CHUNK_BYTES = 32 << 20
MAX_FRUITLESS = 2  # rounds in a row without one answer
MAX_BEGUN = 4  # times that a batch is begun without one answer: its workers were killed each time
STOP_SECONDS = 10.0
WAIT_WARNING_SECONDS = 30.0


@dataclass(frozen=True)
class Job:
    """What a node needs to answer as the driver's own engine would. n_threads: None for the CPUs that the node declares."""

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
    versions: tuple[str, int] = (__version__, FORM_VERSION)


@dataclass(frozen=True)
class News:
    """What the driver finds at the post. seconds_each: of the slowest node. error: a sentence that ends the run."""

    results: list[GenerationResult]
    seconds_each: float
    nodes: list[str]
    error: str | None


class Post:
    """An actor on the driver's machine between it and the workers; its state is the rows that are answered and the brake."""

    def __init__(self, path: str):
        self._path = path
        self._results: list[GenerationResult] = []
        self._done: set[int] = set()
        self._begun: dict[int, tuple[int, int]] = {}  # by a batch's first row: its rows without an answer, and times in vain
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
                f"{node}: expected answers to {len(wanted)} prompts, found that the worker was killed {n_times} times without one "
                "(is its memory too small?); see Ray's logs, use fewer --slots or a smaller model"
            )
        return wanted, not (self._drain or self._stop)

    async def hand_over(self, node: str, results: list[GenerationResult], seconds_each: float) -> tuple[bool, bool]:
        """From a worker; returns the brake: drain, stop. A row that has an answer keeps it."""
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
        """From the driver, with the state of its brake: what came since it last asked."""
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


class Worker:
    """What Ray Data keeps on a node: the model, opened with the first batch.

    It never raises: Ray would put its own traceback around the sentence. A failure goes to the post.
    """

    def __init__(self, post: Any, job: Job):
        self._post, self._job = post, job
        self._engine: Engine | None = None
        self._node = node_name()

    def __call__(self, batch: Any) -> dict[str, list[int]]:
        """batch: a pyarrow Table of `row` and `prompt` (UTF-8). The answers go to the post; Ray Data gets their number."""
        import ray

        try:
            n = self._answer(batch["row"].to_pylist(), batch["prompt"].to_pylist())
        except Exception as error:
            sentence = str(error) if isinstance(error, ReclmError) else f"{type(error).__name__}: {error}"
            ray.get(self._post.fail.remote(f"{self._node}: {sentence}"))
            n = 0
        return {"n_answers": [n]}

    def _answer(self, rows: list[int], prompts: list[bytes]) -> int:
        import ray

        wanted, go_on = ray.get(self._post.begin.remote(self._node, rows))
        if not go_on or not wanted:
            return 0
        text = dict(zip(rows, prompts))
        engine, job, n = self._open(), self._job, 0
        with self._courier() as (brake, results):
            for result in engine.generate(
                [text[row].decode() for row in wanted], max_new_tokens=job.max_new_tokens, sampling=job.sampling,
                brake=brake, window=None if job.in_order else len(wanted),
            ):  # fmt: skip
                results.append(dataclasses.replace(result, index=wanted[result.index]))
                n += 1
        return n

    @contextlib.contextmanager
    def _courier(self) -> Iterator[tuple[Brake, list[GenerationResult]]]:
        """Carries what is appended to the list to the post, and the brake back, while answers are being made."""
        import ray

        brake, results, over = Brake(), [], threading.Event()

        def carry() -> None:
            n = len(results)  # more may be appended meanwhile
            drain, stop = ray.get(self._post.hand_over.remote(self._node, results[:n], brake.seconds_each))
            del results[:n]
            if drain:
                brake.drain.set()
            if stop:
                brake.stop.set()

        def carry_on() -> None:
            while not over.wait(HAND_OVER_SECONDS):
                try:
                    carry()
                except ray.exceptions.RayError:  # the driver is gone
                    brake.stop.set()
                    return

        thread = threading.Thread(target=carry_on, name="reclm-courier", daemon=True)
        thread.start()
        try:
            yield brake, results
        finally:
            over.set()
            thread.join()
            carry()

    def _open(self) -> Engine:
        if self._engine is None:
            import ray

            job = self._job
            here = (__version__, FORM_VERSION)
            if here != job.versions:
                raise ModelError(
                    f"expected reclm-lite {job.versions[0]} as on the driver, found {here[0]}; install the same version on every node"
                )
            path = model_file(job, lambda offset: ray.get(self._post.chunk.remote(offset)))
            node = ray.get_runtime_context().get_node_id()
            declared = next((cpus_of(one) for one in ray.nodes() if one["NodeID"] == node), 1)
            n_threads = job.n_threads or max(1, min(int(declared), pick_threads()))
            self._engine = Engine(path, n_threads, job.n_slots, n_ctx=job.n_ctx, chat=job.chat)
        return self._engine


def node_name() -> str:
    """This machine, for a message: name, address and the first digits of Ray's id."""
    import ray

    context = ray.get_runtime_context()
    return f"node {socket.gethostname()} ({ray.util.get_node_ip_address()}, {context.get_node_id()[:8]})"


def cpus_of(node: dict) -> float:
    """What an alive node of `ray.nodes()` declares, else 0."""
    return node["Resources"].get("CPU", 0.0) if node["Alive"] else 0.0


def model_file(job: Job, chunk: Callable[[int], bytes]) -> Path:
    """The model on this node: at the driver's path, or a copy in the user's cache folder, sent once where there is none.

    chunk(offset) gives the next bytes of the file. Raises ModelError where another file lies at the path.
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
                f"expected {path} to be the driver's model (SHA-256 {job.sha256[:12]}…), found another file ({found[:12]}…); "
                "copy the model there, or remove the file, and the model is sent"
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
            raise ModelError(f"expected the model's {job.size_bytes:,} bytes, found others: was {path} changed? Run it again")
        part.replace(copy)
    except OSError as error:
        raise ModelError(f"expected room for the model in {folder}, found: {error}; put the model at {path} on this node") from error
    finally:
        with contextlib.suppress(OSError):  # gone by its new name, or never there
            part.unlink()
    return copy


class RayCluster(Gguf):
    """A `Source`: one model on every node of a cluster that this machine belongs to, or on a cluster of its own."""

    def __init__(self, path: Path, is_bundled: bool, settings: "SourceSettings"):  # noqa: F821
        super().__init__(path, is_bundled, settings)
        self._is_bundled = is_bundled
        self._undo = contextlib.ExitStack()  # what `close` sets back

    def answers(self, side: str, groups: Sequence[Group], sampling: Sampling, brake: Brake) -> Iterator[tuple[Group, Generation]]:
        del side
        ray = self._connect()
        about, spent, source = self.about, self.spent, self.identity(sampling)
        job = self._job(groups, sampling, brake)
        nodes = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        post = ray.remote(Post).options(num_cpus=0, scheduling_strategy=here).remote(job.path)
        left = dict(enumerate(groups))
        seen: set[str] = set()
        n_fruitless = 0
        try:
            while left and not (brake.drain.is_set() or brake.stop.is_set()):
                n_before = len(left)
                round_ = _Round(ray, post, job, left)
                try:
                    for result in round_.results(brake, seen):
                        group = left.pop(result.index)
                        spent.n_answers += 1
                        spent.n_prompt_tokens += result.n_prompt_tokens if result.finish != "too_long" else 0
                        spent.n_shared_tokens += result.n_shared_tokens
                        spent.n_new_tokens += result.n_new_tokens
                        yield group, judge(
                            prompt_key(source, group.prompt), result.text, result.finish, n_prompt_tokens=result.n_prompt_tokens,
                            n_new_tokens=result.n_new_tokens, n_left_out=group.n_left_out, min_gap=result.min_gap,
                        )  # fmt: skip
                finally:
                    round_.end()
                n_fruitless = 0 if len(left) < n_before else n_fruitless + 1
                if n_fruitless == MAX_FRUITLESS:
                    raise ModelError(
                        f"expected answers from the Ray cluster, found none in {n_fruitless} rounds ({round_.error or 'no reason given'}); "
                        f"see that reclm-lite is installed on every node, and Ray's logs; {about.path.name} works without --engine ray"
                    )
            n_lost = len(nodes - {node["NodeID"] for node in ray.nodes() if node["Alive"]})
            if n_lost:
                spent.notes.append(f"{n_lost} node(s) left the Ray cluster meanwhile; others answered their prompts")
        finally:
            ray.kill(post)

    def _job(self, groups: Sequence[Group], sampling: Sampling, brake: Brake) -> Job:
        about, settings = self.about, self._settings
        longest = max(len(self.tokenizer(group.prompt)) for group in groups)
        return Job(
            str(about.path.absolute()), self._is_bundled, about.sha256, about.path.stat().st_size,
            min(about.n_ctx, longest + about.max_new_tokens), settings.n_threads, settings.n_slots, about.wrap,
            about.max_new_tokens, sampling, brake.has_deadline,
        )  # fmt: skip

    def _connect(self) -> Any:
        """Ray, connected: to the address, to a cluster that runs here, or to one that is started. Nothing is sent to anybody."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # its C++ writes to this process's stderr
        try:
            import ray
            import ray.data
            import ray.util.scheduling_strategies
        except ImportError as error:
            raise ModelError(
                f"expected ray for --engine ray, found none ({error}); install it with `pip install \"reclm-lite[ray]\"`"
            ) from error
        if ray.is_initialized():
            return ray
        address = self._settings.ray_address or os.environ.get("RAY_ADDRESS")
        if address and address.startswith("ray://"):
            raise ModelError(
                f"expected the address of a cluster that this machine belongs to (host:port), found {address}, Ray Client; "
                "run the command on a node of the cluster, without an address or with --ray-address auto"
            )
        quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
        try:
            try:
                ray.init(address=address or "auto", **quiet)
            except ConnectionError:
                if address:
                    raise
                log.info("no Ray cluster runs here: starting one of this machine alone")
                ray.init(address="local", num_cpus=pick_threads(), include_dashboard=False, **quiet)
        except (ConnectionError, OSError, RuntimeError, ValueError) as error:
            raise ModelError(
                f"expected a Ray cluster at {address or 'this machine'}, found: {error}; start one with `ray start --head` "
                "(docs/ray.md), or leave out --ray-address"
            ) from error
        self._undo.callback(ray.shutdown)  # ends this job's actors; of the cluster, only what was started here
        self._keep_quiet(ray)
        return ray

    def _keep_quiet(self, ray: Any) -> None:
        """No bars and lines of Ray's on stdout, and no end for a batch that takes long, until `close`."""
        context = ray.data.DataContext.get_current()
        wanted = {
            "enable_progress_bars": False,
            "print_on_execution_start": False,
            "execution_no_progress_timeout_s": -1,
            "max_consecutive_actor_init_deaths": 3,
        }
        for name in filter(lambda name: hasattr(context, name), wanted):  # two are newer than the oldest Ray that will do
            self._undo.callback(setattr, context, name, getattr(context, name))
            setattr(context, name, wanted[name])
        logger, worker = logging.getLogger("ray.data"), ray._private.worker
        self._undo.callback(logger.setLevel, logger.level)
        logger.setLevel(logging.CRITICAL)  # its tracebacks are of what is told in a sentence here
        # Whatever log_to_driver says, Ray prints what happens to nodes to stdout, which is for results.
        self._undo.callback(setattr, worker, "print_to_stdstream", worker.print_to_stdstream)
        worker.print_to_stdstream = _into_log

    def close(self) -> None:
        super().close()
        self._undo.close()


def _into_log(data: dict, ignore_prefix: bool = False) -> None:
    """In the place of Ray's own printing. data: `lines` from a process of the cluster."""
    del ignore_prefix
    for line in data.get("lines", ()):
        log.info("Ray: %s", line.strip().splitlines()[0] if line.strip() else "")


class _Round:
    """One Dataset over the prompts that are left, run to its end in a thread of its own."""

    def __init__(self, ray: Any, post: Any, job: Job, left: dict[int, Group]):
        self._ray, self._post = ray, post
        self.error: BaseException | None = None
        cpus = [n for n in map(cpus_of, ray.nodes()) if n >= 1]
        if not cpus:
            raise ModelError("expected a node with a CPU in the Ray cluster, found none; start one with `ray start --num-cpus`")
        rows = list(left) if job.in_order else sorted(left, key=lambda row: left[row].prompt)
        sizes = batch_sizes(len(rows), len(cpus))
        self._cpus = min(cpus)
        # Where nodes are alike, one that joins later may get an actor too; else a large node would get two.
        n = min(len(cpus), len(sizes))
        most = None if len(set(cpus)) == 1 else n
        # By its defaults Ray Data spreads actors over nodes, starts lost ones elsewhere and gives them their batches again.
        self._answered = ray.data.from_arrow(list(_tables(rows, left, sizes))).map_batches(
            Worker, fn_constructor_kwargs={"post": post, "job": job}, batch_size=None, batch_format="pyarrow", num_cpus=self._cpus,
            compute=ray.data.ActorPoolStrategy(min_size=n, max_size=most, max_tasks_in_flight_per_actor=2),
        )  # fmt: skip
        self._thread = threading.Thread(target=self._work, name="reclm-ray-data", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        try:
            for _ in self._answered.iter_batches(batch_size=None, batch_format="pyarrow"):
                pass
        except BaseException as error:  # told by who asks for results
            self.error = error

    def results(self, brake: Brake, seen: set[str]) -> Iterator[GenerationResult]:
        """Answers as they come; index: the row. seen: gets the nodes at work. Raises ModelError with a worker's own sentence."""
        warn_at = time.monotonic() + WAIT_WARNING_SECONDS
        while True:
            ended = not self._thread.is_alive()  # before asking: what the last batch handed over is at the post by now
            wait = 0.0 if ended else TAKE_SECONDS
            news = self._ray.get(self._post.take.remote(brake.drain.is_set(), brake.stop.is_set(), wait))
            for node in sorted(set(news.nodes) - seen):
                log.info("%s has begun", node)
            seen.update(news.nodes)
            if news.error:
                raise ModelError(news.error)
            if news.seconds_each:
                brake.seconds_each = news.seconds_each + SLACK_SECONDS
            yield from news.results
            if ended or brake.stop.is_set():
                break
            if news.results:
                warn_at = time.monotonic() + WAIT_WARNING_SECONDS
            elif time.monotonic() > warn_at:
                warn_at = time.monotonic() + WAIT_WARNING_SECONDS
                n_able = sum(cpus_of(node) >= self._cpus for node in self._ray.nodes())
                if not seen or not n_able:
                    log.warning("waiting for a node of the Ray cluster with %g free CPUs (%d nodes have so many)", self._cpus, n_able)
        if self.error is not None:
            log.warning("a round on the Ray cluster ended early: %s", str(self.error).splitlines()[0])

    def end(self) -> None:
        """Wait until no worker is at it; where prompts are left, tell them to give up. Safe to call twice."""
        if not self._thread.is_alive():
            return
        with contextlib.suppress(Exception):  # a cluster that is gone has stopped
            self._ray.get(self._post.take.remote(True, True, 0.0), timeout=STOP_SECONDS)
        self._thread.join(STOP_SECONDS)


def batch_sizes(n: int, n_nodes: int) -> list[int]:
    """How `n` prompts are cut: a quarter of each node's share of what is left, so that the nodes end at about the same time."""
    sizes = []
    while n > 0:
        sizes.append(min(n, max(BATCH_LEAST, min(BATCH_MOST, n // (4 * n_nodes)))))
        n -= sizes[-1]
    return sizes


def _tables(rows: list[int], left: dict[int, Group], sizes: list[int]) -> Iterator[Any]:
    """Each batch as a pyarrow Table, which becomes one block and one task."""
    import pyarrow as pa

    at = 0
    for size in sizes:
        part = rows[at : at + size]
        prompts = [left[row].prompt.encode("utf-8", errors="replace") for row in part]  # as llama.cpp is given them
        yield pa.table({"row": pa.array(part, pa.int64()), "prompt": pa.array(prompts, pa.binary())})
        at += size
