"""What runs on each node of a Ray cluster: a worker with the model, which answers batches of prompts.

Answers do not wait for the end of a batch: a thread takes them to the mailbox (`ray_mailbox`) several times a second,
and learns there whether to stop. Imports Ray inside functions alone.
"""

import contextlib
import dataclasses
import socket
import threading
from collections.abc import Iterator
from typing import Any

from ... import __version__
from ...errors import ModelError, ReclmError
from ...runtime import pick_threads
from ..answer_grammar import GRAMMAR_VERSION
from ..answers import StopSignal
from ..scheduler import Engine
from ..slots import GenerationResult
from .ray_mailbox import Job, model_file

HAND_OVER_SECONDS = 0.25  # between two visits of a worker to the mailbox


class Worker:
    """What Ray Data keeps on a node: the model, opened with the first batch.

    It never raises: Ray would put its own traceback around the sentence. A failure goes to the mailbox.
    """

    def __init__(self, mailbox: Any, job: Job):
        self._mailbox, self._job = mailbox, job
        self._engine: Engine | None = None
        self._node = node_name()

    def __call__(self, batch: Any) -> dict[str, list[int]]:
        """batch: a pyarrow Table of `row` and `prompt` (UTF-8). The answers go to the mailbox; Ray Data gets their
        number."""
        import ray

        try:
            n = self._answer(batch["row"].to_pylist(), batch["prompt"].to_pylist())
        except Exception as error:
            sentence = str(error) if isinstance(error, ReclmError) else f"{type(error).__name__}: {error}"
            ray.get(self._mailbox.fail.remote(f"{self._node}: {sentence}"))
            n = 0
        return {"n_answers": [n]}

    def _answer(self, rows: list[int], prompts: list[bytes]) -> int:
        import ray

        wanted, go_on = ray.get(self._mailbox.begin.remote(self._node, rows))
        if not go_on or not wanted:
            return 0
        text = dict(zip(rows, prompts))
        engine, job, n = self._open(), self._job, 0
        with self._synced() as (stop_signal, results):
            for result in engine.generate(
                [text[row].decode() for row in wanted],
                max_new_tokens=job.max_new_tokens,
                sampling=job.sampling,
                stop_signal=stop_signal,
                window=None if job.in_order else len(wanted),
            ):
                results.append(dataclasses.replace(result, index=wanted[result.index]))
                n += 1
        return n

    @contextlib.contextmanager
    def _synced(self) -> Iterator[tuple[StopSignal, list[GenerationResult]]]:
        """A stop signal and a list of answers that a thread keeps in step with the mailbox."""
        import ray

        stop_signal, over = StopSignal(), threading.Event()
        results: list[GenerationResult] = []

        def carry() -> None:
            n = len(results)  # more may be appended meanwhile
            drain, stop = ray.get(self._mailbox.hand_over.remote(self._node, results[:n], stop_signal.seconds_each))
            del results[:n]
            if drain:
                stop_signal.drain.set()
            if stop:
                stop_signal.stop.set()

        def carry_on() -> None:
            while not over.wait(HAND_OVER_SECONDS):
                try:
                    carry()
                except ray.exceptions.RayError:  # the driver is gone
                    stop_signal.stop.set()
                    return

        thread = threading.Thread(target=carry_on, name="reclm-mailbox", daemon=True)
        thread.start()
        try:
            yield stop_signal, results
        finally:
            over.set()
            thread.join()
            carry()

    def _open(self) -> Engine:
        if self._engine is None:
            import ray

            job = self._job
            here = (__version__, GRAMMAR_VERSION)
            if here != job.versions:
                raise ModelError(
                    f"expected reclm-lite {job.versions[0]} as on the driver, found {here[0]}; install the same "
                    "version on every node"
                )
            path = model_file(job, lambda offset: ray.get(self._mailbox.chunk.remote(offset)))
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


def last_line(error: BaseException | None) -> str:
    """Of Ray's errors, which hold the traceback of another process, the line that says what happened."""
    lines = [line.strip() for line in str(error or "").splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__ if error else "no reason given"


def cpus_of(node: dict) -> float:
    """What an alive node of `ray.nodes()` declares, else 0."""
    return node["Resources"].get("CPU", 0.0) if node["Alive"] else 0.0
