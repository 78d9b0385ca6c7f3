"""The interface between a run, its sources and the store: groups of prompts, generations, and a stop signal.

A source (`sources/`) is a GGUF model, the rules, an endpoint, or any of these on a cluster. It gets groups (a prompt
and the users or items that share it) and gives generations back, in whatever order they finish.
"""

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..errors import ProfileFormatError
from ..prompts.answer import MAX_ANSWER_CHARS, parse_profile
from .sampling import Sampling

OK, INVALID, TRUNCATED, TOO_LONG = "ok", "invalid", "truncated", "too_long"
MAX_REASON_CHARS = 500


@dataclass(frozen=True)
class Generation:
    """One answer, as it is stored. status: 'ok', 'invalid' (does not parse), 'truncated' or 'too_long'.

    n_left_out: items, the oldest, that the prompt had no room for. min_gap: the least distance, in logits, between the
    two likeliest tokens of a greedy answer (None: not measured). Where it is small, rounding may have decided.
    """

    prompt_key: str
    raw: str
    status: str
    reason: str = ""
    n_prompt_tokens: int = 0
    n_new_tokens: int = 0
    n_left_out: int = 0
    min_gap: float | None = None


@dataclass(frozen=True)
class Group:
    """Users (or items) that share a prompt. basis: what it shows: 'history', 'neighbors' or 'text' (see
    `prompts.build`)."""

    prompt: str
    idxs: tuple[int, ...]
    n_left_out: int = 0
    basis: str = ""


@dataclass
class Spent:
    """Totals of the answers so far, counted by the source.

    n_prompt_tokens: of all prompts; n_shared_tokens: those of them that needed no decoding, since another prompt began
    alike; n_new_tokens: written or forced. announced_bytes: the memory that the source planned to use, including the
    process.
    """

    n_answers: int = 0
    n_prompt_tokens: int = 0
    n_shared_tokens: int = 0
    n_new_tokens: int = 0
    announced_bytes: int = 0
    notes: list[str] = field(default_factory=list)


class StopSignal:
    """Stops a source before its prompts are done, from any thread.

    drain: start no further prompt, finish those in flight. stop: abandon those in flight as well. seconds_each: how
    long one prompt takes from start to answer, as measured by the source (0: not known yet). begun: when the source
    started its first prompt, after loading the model (`time.monotonic()` seconds; None: not yet, or not reported).
    """

    def __init__(self) -> None:
        self.drain, self.stop = threading.Event(), threading.Event()
        self.seconds_each = 0.0
        self.has_deadline = False
        self.begun: float | None = None

    @contextlib.contextmanager
    def by(self, deadline: float | None) -> Iterator[None]:
        """Schedule the signal so that the last answers finish just before `deadline` (in `time.monotonic()` seconds;
        None: never)."""
        if deadline is None:
            yield
            return
        self.has_deadline = True
        over = threading.Event()

        def watch() -> None:
            while not over.wait(min(0.2, max(0.01, deadline - time.monotonic()))):
                left = deadline - time.monotonic()
                if left <= self.seconds_each:
                    self.drain.set()
                if left <= 0:
                    self.stop.set()
                    return

        thread = threading.Thread(target=watch, name="reclm-deadline", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


class Source(Protocol):
    """Produces answers to prompts. Close it after use.

    form: the name of the prompt form that it gets (`prompts.forms`). tries_again: whether another seed can
    give another answer to the same prompt. spent: see `Spent`.
    """

    form: str
    tries_again: bool
    spent: Spent

    def identity(self, sampling: Sampling) -> str:
        """What determines an answer besides the prompt. It is part of the key of generations, so it contains no file or
        host name."""

    def label(self, sampling: Sampling) -> str:
        """The identity with a readable name."""

    def has_room(self, prompt: str) -> bool:
        """Whether prompt and answer fit the model's context."""

    def answers(
        self, side: str, groups: Sequence[Group], sampling: Sampling, stop_signal: StopSignal
    ) -> Iterator[tuple[Group, Generation]]:
        """Answer each group once, in any order; `groups` are sorted by value. Obeys `stop_signal`."""

    def close(self) -> None:
        """Release models and connections. Safe to call twice."""


def judge(key: str, raw: str, finish: str, *, n_ctx: int = 0, **counts: Any) -> Generation:
    """An answer as a generation with its status and, unless it is ok, the reason.

    An answer of more than MAX_ANSWER_CHARS is no profile, and only its beginning is kept. finish: "stop", "length" (cut
    off) or "too_long" (the prompt was not tried: the context has n_ctx tokens). counts: further fields of `Generation`.
    """
    status, reason, n_chars = OK, "", len(raw)
    raw = raw[:MAX_ANSWER_CHARS]
    if finish == "too_long":
        status, reason = (
            TOO_LONG,
            f"the prompt has {counts['n_prompt_tokens']} tokens, too many for a context of {n_ctx}",
        )
    elif finish == "length":
        status, reason = TRUNCATED, f"the answer did not end within {counts.get('n_new_tokens', 0)} tokens"
    elif n_chars > MAX_ANSWER_CHARS:
        status = INVALID
        reason = (
            f"expected a line of at most {MAX_ANSWER_CHARS:,} characters, found {n_chars:,}, of which the first "
            f"{MAX_ANSWER_CHARS:,} "
            "are kept; generate the profile again"
        )
    else:
        try:
            parse_profile(raw)
        except ProfileFormatError as error:
            status, reason = INVALID, str(error)
    return Generation(key, raw, status, reason[:MAX_REASON_CHARS], **counts)
