"""One question to an OpenAI-compatible server over HTTP: `POST {base}/chat/completions`, with retries and a rate limit.

What cannot pass by waiting (a wrong key, a wrong model, a wrong address, a certificate that does not hold) ends the run
with ModelError. What may pass (429, 5xx, a broken connection, no answer in time, an answer that is not of the form) is
tried again after a growing, jittered pause, or when the server's Retry-After says. Redirects are never followed,
cookies never kept, certificates always verified, nothing is unpacked. The key stands in one header and nowhere else: it
is cut out of whatever the
server sends back. Left out: how a request is held to its time and its bytes (`http_bounds`), what a body says
(`http_answer`), what is asked and what becomes of the answer (`endpoint`).
"""

import email.utils
import json
import random
import re
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ...errors import InputError, ModelError
from .http_address import KEYS, Address, proxy_for
from .http_answer import Reply, plain, read_error, read_reply

if TYPE_CHECKING:
    import urllib3

MAX_TRIES = 6
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 30.0
LONGEST_RETRY_AFTER_SECONDS = 600.0  # a server that asks for more is left alone until the next run
LONGEST_SECONDS = 1e9  # thirty years: what a server asks for is told, and need not have 300 digits
ANSWER_SECONDS = 180.0  # from the connection to the last byte
# A reasoning model that thinks for 64,000 tokens, each of its letters written as \u and six bytes, sends less than 1
# MiB.
MAX_ANSWER_BYTES = 2 << 20
_POLL_SECONDS = 0.05
_PASSES = frozenset((408, 409, 425, 429))  # and 5xx
_TOO_LONG = re.compile(
    r"context_length_exceeded|exceed_context_size|maximum context length|context (?:size|window)", re.IGNORECASE
)


class Unanswered(Exception):
    """A question whose tries are used up; the text says why."""


class TooLong(Exception):
    """The server says that the prompt does not fit the model's context, in its own words."""


class GivenUp(Exception):
    """The run ends, so the question was not asked (again)."""


class RateLimit:
    """At most so many requests a minute, from any number of threads, evenly spaced; None: no limit."""

    def __init__(
        self, per_minute: float | None, clock: Callable[[], float] = time.monotonic, sleep: Callable = time.sleep
    ):
        if per_minute is not None and not 0 < per_minute < float("inf"):
            raise InputError(f"expected a number of requests a minute above zero, found {per_minute}")
        self._spacing = 0.0 if per_minute is None else 60.0 / per_minute
        self._clock, self._sleep = clock, sleep
        self._next = self._held_until = float("-inf")
        self._turn, self._state = threading.Lock(), threading.Lock()

    def acquire(self, give_up: Callable[[], bool]) -> None:
        """Return when a request may be sent. Raises GivenUp as soon as `give_up()`."""
        with self._turn:  # one waits at a time, so that no two count from the same moment
            self.pause(lambda: max(self._next, self._held_until), give_up)
            self._next = self._clock() + self._spacing

    def hold(self, seconds: float) -> None:
        """No request for so long: the server asked for it."""
        with self._state:
            self._held_until = max(self._held_until, self._clock() + seconds)

    def pause(self, until: Callable[[], float], give_up: Callable[[], bool]) -> None:
        """Wait until a moment of the clock, which may move meanwhile. Raises GivenUp as soon as `give_up()`."""
        while True:
            if give_up():
                raise GivenUp
            left = until() - self._clock()
            if left <= 0:
                return
            self._sleep(min(left, _POLL_SECONDS))

    def pause_for(self, seconds: float, give_up: Callable[[], bool]) -> None:
        end = self._clock() + seconds
        self.pause(lambda: end, give_up)


class ChatClient:
    """A server and how often it may be asked. May be used from several threads; close it."""

    def __init__(
        self, address: Address, key: str, n_connections: int, limit: RateLimit, answer_seconds: float = ANSWER_SECONDS
    ):
        from .http_bounds import Watch, open_pool  # urllib3 is slow to load

        self.address, self.limit = address, limit
        self._key, self._answer_seconds = key, answer_seconds
        self._headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "reclm-lite"}
        self._headers["Accept-Encoding"] = "identity"
        if key:
            self._headers["Authorization"] = f"Bearer {key}"
        self._watch, self._pool = Watch(), open_pool(n_connections, proxy_for(address))
        self._reading = threading.Lock()  # a hostile body takes some 80 MiB while it is read: one at a time

    def close(self) -> None:
        """Requests in flight are cut off."""
        self._watch.cut_all()
        self._pool.clear()

    def ask(
        self,
        question: dict,
        give_up: Callable[[], bool],
        begun: Callable[[], None] = lambda: None,
        cut_off: Callable[[], bool] = lambda: False,
    ) -> Reply:
        """The answer to one question. give_up: whether to begin no further try; cut_off: whether to end the one in
        flight, too.

        begun: called when it may be sent for the first time.

        Raises TooLong, Unanswered, GivenUp, or ModelError where asking on makes no sense.
        """
        body, why = json.dumps(question).encode(), ""
        for number in range(MAX_TRIES):
            self.limit.acquire(give_up)
            if not number:
                begun()
            status, headers, content, why = self._post(body, cut_off)
            if status == 200 and not why:
                try:
                    with self._reading:
                        return read_reply(content, self._without_key)
                except ValueError as error:
                    why = f"an invalid answer ({error})"
            elif status and status != 200:
                why = self._refusal(status, headers, content)
            asked_for = _retry_after(headers.get("Retry-After"))
            if asked_for is not None and status in (429, 503):
                if asked_for > LONGEST_RETRY_AFTER_SECONDS:
                    raise ModelError(
                        f"the endpoint {self.address.host} asks to wait for {asked_for:,.0f} s ({why}): answers so "
                        "far are stored; run the same command again after that time"
                    )
                self.limit.hold(asked_for)
            if number + 1 < MAX_TRIES:
                longest = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2**number)
                self.limit.pause_for(max(asked_for or 0.0, longest * (0.5 + random.random() / 2)), give_up)
        raise Unanswered(why)

    # -- one try -------------------------------------------------------------------

    def _post(self, body: bytes, cut_off: Callable[[], bool]) -> tuple[int, Mapping[str, str], bytes, str]:
        """(status, headers, content, ""), or (0, {}, b"", why) where there was no answer that can be read.

        Raises GivenUp if it was cut off, ModelError where the certificate does not hold.
        """
        import urllib3
        from urllib3 import exceptions

        from .http_bounds import CONNECT_SECONDS, GIVEN_UP, BadAnswer

        seconds, response = self._answer_seconds, None
        with self._watch.flight(seconds, cut_off, loopback_only=self.address.is_loopback) as flight:
            try:
                response = self._pool.request(
                    "POST",
                    f"{self.address.base}/chat/completions",
                    body=body,
                    headers=self._headers,
                    redirect=False,
                    preload_content=False,
                    decode_content=False,
                    timeout=urllib3.Timeout(connect=CONNECT_SECONDS, read=seconds),
                )
                content = self._content(response)
                if not flight.cut_by:  # else what came may be the half of it
                    response.release_conn()
                    return response.status, response.headers, content, ""
            except BadAnswer as error:
                if response is not None and response.status != 200:  # which says enough
                    return response.status, response.headers, b"", ""
                return 0, {}, b"", str(error)
            except (exceptions.HTTPError, OSError) as error:  # HTTPError is urllib3's base class
                if not flight.cut_by and time.monotonic() < flight.end:
                    return 0, {}, b"", self._what_broke(error)
            finally:
                if response is not None:
                    response.close()
        if flight.cut_by == GIVEN_UP:
            raise GivenUp
        return 0, {}, b"", f"no answer within {seconds:g} s"

    def _content(self, response: "urllib3.BaseHTTPResponse") -> bytes:
        from .http_bounds import BadAnswer

        packed = response.headers.get("Content-Encoding", "").strip().lower()
        if packed not in ("", "identity"):  # a few bytes may unpack to gigabytes, and it was not asked for
            raise BadAnswer(f"a packed answer ({plain(packed, 20)}), though a plain one was asked for")
        content = bytearray()
        while part := response.read1(1 << 16, decode_content=False):
            content += part
            if len(content) > MAX_ANSWER_BYTES:
                raise BadAnswer(f"an answer of more than {MAX_ANSWER_BYTES >> 20} MiB")
        return bytes(content)

    def _what_broke(self, error: Exception) -> str:
        """What a person should know of an error of urllib3's. Raises ModelError if it will not pass."""
        from urllib3 import exceptions

        from .http_bounds import CONNECT_SECONDS

        if isinstance(error, exceptions.SSLError):
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                raise ModelError(
                    f"the certificate of the endpoint {self.address.host} is not valid ({plain(str(error), 160)}): "
                    "check the address, or set SSL_CERT_FILE to the certificate of its authority; certificates are "
                    "always verified"
                ) from None
            return "no safe connection: TLS failed"
        told = (  # classes before their base classes
            (exceptions.ProxyError, "the proxy did not let it through"),
            (exceptions.NameResolutionError, "its name cannot be resolved"),
            (exceptions.NewConnectionError, "no connection: nothing listens there, or a firewall blocks it"),
            (exceptions.ConnectTimeoutError, f"no connection within {CONNECT_SECONDS:.0f} s"),
            (exceptions.TimeoutError, f"no answer within {self._answer_seconds:g} s"),
        )
        return next(
            (words for kind, words in told if isinstance(error, kind)), f"the connection broke ({type(error).__name__})"
        )

    def _refusal(self, status: int, headers: Mapping[str, str], content: bytes) -> str:
        """Why a status other than 200 came, where it may pass. Raises TooLong or ModelError where it does not."""
        host = self.address.host
        if 300 <= status < 400:
            target = _host_of(self._without_key(headers.get("Location", "")))
            raise ModelError(
                f"the endpoint {host} redirects to {target}, which is not followed: give the final address"
            )
        with self._reading:
            code, message = read_error(content, self._without_key)
        told = f"{status}{f', {message}' if message else ''}"
        if code == "insufficient_quota":
            raise ModelError(
                f"the account at {host} has no quota left ({told}): answers so far are stored; run the command again "
                "when it has quota"
            )
        if status in _PASSES or status >= 500:
            return f"status {told}"
        if status == 413 or (status == 400 and (_TOO_LONG.search(code) or _TOO_LONG.search(message))):
            raise TooLong(f"the server says that the prompt is too long: {message or status}")
        if status in (401, 403):  # servers repeat (parts of) the key in their message
            raise ModelError(
                f"the endpoint {host} refused the key ({status}): "
                + ("check" if self._key else "set")
                + (
                    f" {' or '.join(KEYS)}, and that it gives access to the model; answers so far are stored, run "
                    "the command again to continue"
                )
            )
        hint = (
            f": check that {self.address.base} is its base URL (most end in /v1) and --model a model it has"
            if status == 404
            else ""
        )
        raise ModelError(
            f"the endpoint {host} refused the request ({told}){hint}; answers so far are stored, run the command "
            "again to continue"
        )

    def _without_key(self, text: str) -> str:
        if len(self._key) < 8:  # no secret, but a word
            return text
        return text.replace(self._key, "[key]").replace(repr(self._key)[1:-1], "[key]")


def _host_of(location: str) -> str:
    """Where a Location header leads, in words for an error."""
    try:
        target = urlsplit(location[:2000]).hostname
    except ValueError:
        target = None
    return plain(target or "another place", 100)


def _retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header, which holds seconds or a date; None if it holds neither."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return None
    return min(max(0.0, seconds), LONGEST_SECONDS) if seconds == seconds else None
