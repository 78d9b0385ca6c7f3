"""Any OpenAI-compatible server as a source of profiles: llama.cpp's, vLLM's, Ollama's, or a hosted one.

It gets the plain-words prompt, a few requests at a time, and the first line of its answer counts; what a reasoning
model thinks aloud before it is left out. A prompt whose tries are used up is left for the next run; where several in a
row are, or all, the server is taken for down and the run ends. The model's context is not known, so room is judged by
an estimate.
Left out: HTTP (`http_chat`), addresses and keys (`http_address`), asking a person whether to spend money (the command).
"""

import queue
import re
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ...errors import InputError, ModelError
from ...prompts.forms import form_for, prompt_form
from ..answers import INVALID, TOO_LONG, Generation, Group, Spent, StopSignal, judge
from ..eta import format_duration
from ..sampling import Sampling
from ..store import prompt_key
from .http_address import read_address, read_key
from .http_answer import Reply
from .http_chat import ANSWER_SECONDS, ChatClient, GivenUp, RateLimit, TooLong, Unanswered
from .source_settings import SourceSettings

N_CTX = 8192
N_SLOTS = 4
BYTES_PER_TOKEN = 3  # English has about 4, other scripts 2 to 3: the estimate is rather too high
TOKENS_AROUND = 16  # what a chat template adds
USUAL_NEW_TOKENS = 48
DOWN_AFTER = 3  # prompts in a row without an answer
_GRACE_SECONDS = 5.0  # for the answers that are under way when the run must end
_THOUGHTS = re.compile(r"<(think|thinking|thought|reasoning)>.*?(</\1>|\Z)", re.DOTALL | re.IGNORECASE)
_THOUGHTS_BEGUN_BEFORE = re.compile(r"\A.*</(?:think|thinking|thought|reasoning)>", re.DOTALL | re.IGNORECASE)
_FENCE = re.compile(r"`{3,}\w*")


@dataclass(frozen=True)
class CostEstimate:
    """What prompts will take. n_new_tokens: as usual answers have; max_new_tokens: the most that they may have.

    cost, max_cost: in the currency of the prices, None without prices. min_seconds: what the rate limit alone takes.
    is_local: the server is this machine, so nothing leaves it.
    """

    host: str
    model: str
    n_prompts: int
    n_prompt_tokens: int
    n_new_tokens: int
    max_new_tokens: int
    cost: float | None
    max_cost: float | None
    min_seconds: float
    is_local: bool

    def sentence(self) -> str:
        """The estimate in words, and what it means for privacy."""
        text = (
            f"{self.n_prompts:,} prompt{'' if self.n_prompts == 1 else 's'} to {self.model} at {self.host}: about "
            f"{self.n_prompt_tokens:,} prompt tokens and "
            f"{self.n_new_tokens:,} new ones (at most {self.max_new_tokens:,})"
        )
        if self.cost is not None and self.max_cost is not None:
            text += f", about {_money(self.cost)} (at most {_money(self.max_cost)}) at the given prices"
        if self.min_seconds >= 1:
            text += f", at least {format_duration(self.min_seconds)} at the rate limit"
        text += "; an answer that is not a valid profile is requested again."
        if not self.is_local:
            text += f" Item texts and user histories leave this machine and are sent to {self.host}."
        return text


class Endpoint:
    """A `Source`. What is in flight when a run is cut short is cut off, so that no thread waits for the server any
    longer."""

    form = form_for(has_chat_template=True)
    tries_again = True

    def __init__(self, settings: SourceSettings):
        assert settings.endpoint is not None
        self.address = read_address(settings.endpoint)
        if not settings.model:
            raise InputError(
                "an endpoint requires the name of its model: add --model NAME (the server lists its models)"
            )
        for name in ("n_slots", "max_new_tokens", "n_ctx", "timeout_seconds"):
            value = getattr(settings, name)
            if value is not None and value <= 0:
                raise InputError(f"expected {name} above zero, found {value}")
        for name in ("price_in", "price_out"):
            value = getattr(settings, name)
            if value is not None and not 0 <= value < float("inf"):
                raise InputError(f"expected {name} of zero or more per million tokens, found {value}")
        self.model = settings.model
        self.max_new_tokens = settings.max_new_tokens or prompt_form(self.form).max_new_tokens
        self.spent = Spent()
        self._settings = settings
        self._n_ctx, self._n_slots = settings.n_ctx or N_CTX, settings.n_slots or N_SLOTS
        self._client = ChatClient(
            self.address,
            read_key(self.address),
            self._n_slots,
            RateLimit(settings.requests_per_minute),
            settings.timeout_seconds or ANSWER_SECONDS,
        )
        self._n_unanswered, self._why, self._is_estimated = 0, "", False

    def identity(self, sampling: Sampling) -> str:
        # top_k and the held form are not asked of a server, so they decide nothing.
        how = "greedy" if sampling.temperature <= 0 else f"t={sampling.temperature} seed={sampling.seed}"
        return (
            f"endpoint model {self.model}, template {prompt_form(self.form).version}, max {self.max_new_tokens}, {how}"
        )

    def label(self, sampling: Sampling) -> str:
        return f"{self.model} at {self.address.host}, {self.identity(sampling)}"

    def has_room(self, prompt: str) -> bool:
        return _estimated_tokens(prompt) + self.max_new_tokens <= self._n_ctx

    def estimate(self, groups: Sequence[Group]) -> CostEstimate:
        """Estimate tokens, cost and time of these prompts before any is sent."""
        settings, n = self._settings, len(groups)
        n_in = sum(_estimated_tokens(group.prompt) for group in groups)
        n_out, most = n * min(USUAL_NEW_TOKENS, self.max_new_tokens), n * self.max_new_tokens
        cost = most_cost = None
        if settings.price_in is not None or settings.price_out is not None:
            cost, most_cost = (
                (n_in * (settings.price_in or 0.0) + m * (settings.price_out or 0.0)) / 1e6 for m in (n_out, most)
            )
        seconds = (n - 1) * 60.0 / settings.requests_per_minute if settings.requests_per_minute and n else 0.0
        return CostEstimate(
            self.address.host, self.model, n, n_in, n_out, most, cost, most_cost, seconds, self.address.is_loopback
        )

    def answers(
        self, side: str, groups: Sequence[Group], sampling: Sampling, stop_signal: StopSignal
    ) -> Iterator[tuple[Group, Generation]]:
        """See `Source`. Raises ModelError, after the answers that came, where the server refuses or is down."""
        del side
        asking = _Asking(self, groups, sampling, stop_signal)
        in_a_row, any_answer, fatal = 0, False, None
        try:
            for found in asking.results():
                if isinstance(found, Exception):
                    fatal = fatal or found
                elif isinstance(found[1], Unanswered):
                    self._n_unanswered, self._why = self._n_unanswered + 1, str(found[1])
                    in_a_row += 1
                    if in_a_row >= DOWN_AFTER:
                        fatal = fatal or self._down()
                else:
                    in_a_row, any_answer = 0, True
                    group, generation = found[0], found[1]
                    self._count(generation)
                    yield group, generation
                if fatal and not asking.over.is_set():
                    asking.end_within(_GRACE_SECONDS)
            if fatal is None and in_a_row and not any_answer:
                fatal = self._down()
        finally:
            asking.leave()
            self._tell()
        if fatal:
            raise fatal

    def close(self) -> None:
        self._client.close()

    # -- one prompt, in a thread of its own ------------------------------------------

    def _ask(
        self, group: Group, sampling: Sampling, stop_signal: StopSignal, asking: "_Asking"
    ) -> Generation | Unanswered | None:
        """The generation of one prompt; None if the run ends before it was answered."""
        question = {
            "model": self.model,
            "messages": [{"role": "user", "content": group.prompt}],
            "temperature": max(0.0, sampling.temperature),
            "max_tokens": self.max_new_tokens,
        }
        if sampling.temperature > 0:
            question["seed"] = sampling.seed
        key, began = prompt_key(self.identity(sampling), group.prompt), []
        try:
            reply = self._client.ask(question, asking.must_end, lambda: began.append(time.monotonic()), asking.is_left)
        except GivenUp:
            return None
        except Unanswered as error:
            return error
        except TooLong as error:
            return Generation(
                key, "", TOO_LONG, str(error), _estimated_tokens(group.prompt), n_left_out=group.n_left_out
            )
        took = time.monotonic() - began[0]
        stop_signal.seconds_each = max(
            took, 0.9 * stop_signal.seconds_each + 0.1 * took
        )  # of the slow ones: nothing is begun too late
        return self._generation(key, group, reply)

    def _generation(self, key: str, group: Group, reply: Reply) -> Generation:
        line, is_whole = answer_line(reply.text)
        counts = {
            "n_prompt_tokens": _estimated_tokens(group.prompt)
            if reply.n_prompt_tokens is None
            else reply.n_prompt_tokens,
            "n_new_tokens": _estimated_tokens(reply.text, 0) if reply.n_new_tokens is None else reply.n_new_tokens,
            "n_left_out": group.n_left_out,
        }
        if reply.n_prompt_tokens is None or reply.n_new_tokens is None:
            self._is_estimated = True
        if reply.finish == "content_filter" and not line:
            return Generation(key, "", INVALID, "the server's content filter let no answer through", **counts)
        return judge(key, line, "length" if reply.finish == "length" and not is_whole else "stop", **counts)

    # -- what became of it -------------------------------------------------------------

    def _count(self, generation: Generation) -> None:
        self.spent.n_answers += 1
        self.spent.n_prompt_tokens += generation.n_prompt_tokens if generation.status != TOO_LONG else 0
        self.spent.n_new_tokens += generation.n_new_tokens

    def _tell(self) -> None:
        self.spent.notes.clear()
        if self._n_unanswered:
            self.spent.notes.append(
                f"{self._n_unanswered:,} prompts received no answer from {self.address.host} (the last: "
                f"{self._why}); run the command again to retry them"
            )
        if self._is_estimated:
            self.spent.notes.append("token counts are estimates if the server reported none")

    def _down(self) -> ModelError:
        return ModelError(
            f"the endpoint {self.address.host} does not answer ({self._why}): start it or check the address "
            f"({self.address.base}), then run the same command again; answers so far are stored"
        )


class _Asking:
    """The threads of one call of `answers`: they take prompts in order and put what became of them into a queue."""

    def __init__(self, source: Endpoint, groups: Sequence[Group], sampling: Sampling, stop_signal: StopSignal):
        self.over = threading.Event()  # nothing is begun or tried again
        self._left = threading.Event()  # nobody waits for answers any more
        self._source, self._sampling, self._stop_signal = source, sampling, stop_signal
        self._groups, self._lock = iter(groups), threading.Lock()
        self._done: queue.SimpleQueue = queue.SimpleQueue()
        self._end = float("inf")
        self._n_running = min(source._n_slots, len(groups))
        for number in range(self._n_running):
            threading.Thread(target=self._work, name=f"reclm-endpoint-{number}", daemon=True).start()

    def must_end(self) -> bool:
        return self.over.is_set() or self._stop_signal.drain.is_set() or self._stop_signal.stop.is_set()

    def is_left(self) -> bool:
        return self._left.is_set() or self._stop_signal.stop.is_set()

    def leave(self) -> None:
        """Begin nothing, and cut off what is in flight."""
        self.over.set()
        self._left.set()

    def end_within(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds
        self.over.set()

    def results(self) -> Iterator[Exception | tuple[Group, Generation | Unanswered]]:
        """What comes, until all is done, the stop signal is set to a stop, or the time after `end_within` is over."""
        while self._n_running:
            is_late = self._stop_signal.stop.is_set() or time.monotonic() > self._end
            try:
                found = self._done.get(timeout=0.0 if is_late else 0.1)
            except queue.Empty:
                if is_late:
                    return
                continue
            if found is None:
                self._n_running -= 1
            else:
                yield found

    def _work(self) -> None:
        try:
            while not self.must_end():
                with self._lock:
                    group = next(self._groups, None)
                if group is None:
                    return
                found = self._source._ask(group, self._sampling, self._stop_signal, self)
                if found is not None:
                    self._done.put((group, found))
        except Exception as error:
            self._done.put(error)
        finally:
            self._done.put(None)


def answer_line(text: str) -> tuple[str, bool]:
    """The first line of an answer, thoughts and code fences left out; and whether it ended with a line break."""
    text = _THOUGHTS_BEGUN_BEFORE.sub("", _THOUGHTS.sub("", text))
    start = 0
    while start <= len(text):  # not split: a hostile text has millions of lines
        end = text.find("\n", start)
        line = text[start : end if end >= 0 else len(text)].strip()
        if line and not _FENCE.fullmatch(line):
            return line, end >= 0
        start = end + 1 if end >= 0 else len(text) + 1
    return "", False


def _estimated_tokens(text: str, around: int = TOKENS_AROUND) -> int:
    return -(-len(text.encode("utf-8", "replace")) // BYTES_PER_TOKEN) + around


def _money(amount: float) -> str:
    return f"{amount:,.2f}" if amount >= 0.01 or amount == 0 else f"{amount:.4f}"
