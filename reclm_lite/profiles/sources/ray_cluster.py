"""A GGUF model on every node of a Ray cluster, with the keys, and so the cache, of the local engine.

Ray Data deals out batches of prompts: a Dataset of (row, prompt), `map_batches` over a pool of actors, one to a node
(`ray_worker`), each of which opens the model once. The workers hand over answers at a `Mailbox`, a small actor beside
the driver, and learn there whether to stop. If a node is lost, Ray gives its batch to another node; the mailbox then
says which of its rows are answered already. Left out: starting a cluster (docs/ray.md).

Only this module and `ray_worker` import Ray, and only inside functions.
"""

import contextlib
import logging
import os
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ...errors import ModelError
from ...runtime import pick_threads
from ..answers import Generation, Group, StopSignal
from ..sampling import Sampling
from ..slots import GenerationResult
from .gguf import Gguf, take_answer
from .ray_mailbox import Job, Mailbox, batch_sizes
from .ray_worker import Worker, cpus_of, last_line
from .source_settings import SourceSettings

log = logging.getLogger(__name__)
TAKE_SECONDS = 0.2  # that the driver waits at the mailbox for news
SLACK_SECONDS = 0.5  # HAND_OVER_SECONDS and TAKE_SECONDS: from an answer on a node to the driver
MAX_FRUITLESS = 2  # rounds in a row without one answer
STOP_SECONDS = 10.0
WAIT_WARNING_SECONDS = 30.0


class RayCluster(Gguf):
    """A `Source`: one model on every node of a cluster that this machine belongs to, or on a cluster of its own."""

    def __init__(self, path: Path, is_bundled: bool, settings: SourceSettings):
        super().__init__(path, is_bundled, settings)
        self._is_bundled = is_bundled
        self._undo = contextlib.ExitStack()  # what `close` sets back

    def answers(
        self, side: str, groups: Sequence[Group], sampling: Sampling, stop_signal: StopSignal
    ) -> Iterator[tuple[Group, Generation]]:
        del side
        ray = self._connect()
        about, spent, source = self.about, self.spent, self.identity(sampling)
        job = self._job(groups, sampling, stop_signal)
        nodes = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        mailbox = ray.remote(Mailbox).options(num_cpus=0, scheduling_strategy=here).remote(job.path)
        left = dict(enumerate(groups))
        seen: set[str] = set()
        n_fruitless = 0
        try:
            while left and not (stop_signal.drain.is_set() or stop_signal.stop.is_set()):
                n_before = len(left)
                round_ = _Round(ray, mailbox, job, left)
                try:
                    for result in round_.results(stop_signal, seen):
                        yield take_answer(spent, source, left.pop(result.index), result, about.n_ctx)
                finally:
                    round_.end()
                n_fruitless = 0 if len(left) < n_before else n_fruitless + 1
                if n_fruitless == MAX_FRUITLESS:
                    raise ModelError(
                        f"the Ray cluster gave no answers in {n_fruitless} rounds ({last_line(round_.error)}); check "
                        f"that reclm-lite is installed on every node, and Ray's logs; {about.path.name} works "
                        "without --engine ray"
                    )
            n_lost = len(nodes - {node["NodeID"] for node in ray.nodes() if node["Alive"]})
            if n_lost:
                spent.notes.append(
                    f"{n_lost} node(s) left the Ray cluster during the run; others answered their prompts"
                )
        except ray.exceptions.RayError as error:
            raise ModelError(
                f"the connection to the Ray cluster was lost ({last_line(error)}); answers so far are stored: start "
                "the cluster again and run the same command, or run it without --engine ray"
            ) from error
        finally:
            with contextlib.suppress(ray.exceptions.RayError):  # gone already
                ray.kill(mailbox)

    def _job(self, groups: Sequence[Group], sampling: Sampling, stop_signal: StopSignal) -> Job:
        about, settings = self.about, self._settings
        longest = max(len(self.tokenizer(group.prompt)) for group in groups)
        return Job(
            str(about.path.absolute()),
            self._is_bundled,
            about.sha256,
            about.path.stat().st_size,
            min(about.n_ctx, longest + about.max_new_tokens),
            settings.n_threads,
            settings.n_slots,
            about.wrap,
            about.max_new_tokens,
            sampling,
            stop_signal.has_deadline,
        )

    def _connect(self) -> Any:
        """Ray, connected: to the address, to a cluster that runs here, or to one that is started. Nothing is sent to
        anybody."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # its C++ writes to this process's stderr
        try:
            import ray
            import ray.data
            import ray.util.scheduling_strategies
        except ImportError as error:
            raise ModelError(
                f'--engine ray requires ray, which cannot be imported ({error}): run `pip install "reclm-lite[ray]"`'
            ) from error
        if ray.is_initialized():
            return ray
        address = self._settings.ray_address or os.environ.get("RAY_ADDRESS")
        if address and address.startswith("ray://"):
            raise ModelError(
                f"expected the address of a cluster that this machine belongs to (host:port), found {address}, Ray "
                "Client; "
                "run the command on a node of the cluster, without an address or with --ray-address auto"
            )
        quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
        try:
            # Ray has the workers import from the driver's folder first. What lies there is not this package as it is
            # installed: in a checkout of the source it lacks the compiled parts.
            with tempfile.TemporaryDirectory() as empty, contextlib.chdir(empty):
                try:
                    ray.init(address=address or "auto", **quiet)
                except ConnectionError:
                    if address:
                        raise
                    log.info("no running Ray cluster found: starting one on this machine")
                    ray.init(address="local", num_cpus=pick_threads(), include_dashboard=False, **quiet)
        except (ConnectionError, OSError, RuntimeError, ValueError) as error:
            raise ModelError(
                f"expected a Ray cluster at {address or 'this machine'}, found: {error}; start one with `ray start "
                "--head` "
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
        for name in filter(
            lambda name: hasattr(context, name), wanted
        ):  # two are newer than the oldest Ray that will do
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

    def __init__(self, ray: Any, mailbox: Any, job: Job, left: dict[int, Group]):
        self._ray, self._mailbox = ray, mailbox
        self.error: BaseException | None = None
        cpus = [n for n in map(cpus_of, ray.nodes()) if n >= 1]
        if not cpus:
            raise ModelError("no node of the Ray cluster has a CPU; start one with `ray start --num-cpus`")
        rows = list(left) if job.in_order else sorted(left, key=lambda row: left[row].prompt)
        sizes = batch_sizes(len(rows), len(cpus))
        self._cpus = min(cpus)
        n = min(len(cpus), len(sizes))
        # By its defaults Ray Data spreads actors over nodes, starts lost ones elsewhere and gives them their batches
        # again.
        self._answered = ray.data.from_arrow(list(_tables(rows, left, sizes))).map_batches(
            Worker,
            fn_constructor_kwargs={"mailbox": mailbox, "job": job},
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=self._cpus,
            compute=ray.data.ActorPoolStrategy(size=n, max_tasks_in_flight_per_actor=2),
        )
        self._thread = threading.Thread(target=self._work, name="reclm-ray-data", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        try:
            for _ in self._answered.iter_batches(batch_size=None, batch_format="pyarrow"):
                pass
        except BaseException as error:  # told by who asks for results
            self.error = error

    def results(self, stop_signal: StopSignal, seen: set[str]) -> Iterator[GenerationResult]:
        """Answers as they come; index: the row. seen: gets the nodes at work. Raises ModelError with a worker's own
        sentence."""
        warn_at = time.monotonic() + WAIT_WARNING_SECONDS
        while True:
            ended = (
                not self._thread.is_alive()
            )  # before asking: what the last batch handed over is at the mailbox by now
            wait = 0.0 if ended else TAKE_SECONDS
            news = self._ray.get(self._mailbox.take.remote(stop_signal.drain.is_set(), stop_signal.stop.is_set(), wait))
            for node in sorted(set(news.nodes) - seen):
                log.info("%s has begun", node)
            seen.update(news.nodes)
            if news.error:
                raise ModelError(news.error)
            if news.seconds_each:
                stop_signal.seconds_each = news.seconds_each + SLACK_SECONDS
            yield from news.results
            if ended or stop_signal.stop.is_set():
                break
            if news.results:
                warn_at = time.monotonic() + WAIT_WARNING_SECONDS
            elif time.monotonic() > warn_at:
                warn_at = time.monotonic() + WAIT_WARNING_SECONDS
                n_able = sum(cpus_of(node) >= self._cpus for node in self._ray.nodes())
                if not seen or not n_able:
                    log.warning(
                        "waiting for a node of the Ray cluster with %g free CPUs (%d nodes have so many)",
                        self._cpus,
                        n_able,
                    )
        if self.error is not None:
            log.warning("a round on the Ray cluster ended early: %s", last_line(self.error))

    def end(self) -> None:
        """Wait until no worker is at it; where prompts are left, tell them to give up. Safe to call twice."""
        if not self._thread.is_alive():
            return
        with contextlib.suppress(Exception):  # a cluster that is gone has stopped
            self._ray.get(self._mailbox.take.remote(True, True, 0.0), timeout=STOP_SECONDS)
        self._thread.join(STOP_SECONDS)


def _tables(rows: list[int], left: dict[int, Group], sizes: list[int]) -> Iterator[Any]:
    """Each batch as a pyarrow Table, which becomes one block and one task."""
    import pyarrow as pa

    at = 0
    for size in sizes:
        part = rows[at : at + size]
        prompts = [left[row].prompt.encode("utf-8", errors="replace") for row in part]  # as llama.cpp is given them
        yield pa.table({"row": pa.array(part, pa.int64()), "prompt": pa.array(prompts, pa.binary())})
        at += size
