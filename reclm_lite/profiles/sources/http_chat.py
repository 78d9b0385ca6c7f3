"""One question to an OpenAI-compatible server over HTTP: `POST {base}/chat/completions`, with retries and a rate limit.

What cannot pass by waiting (a wrong key, a wrong model, a wrong address, a certificate that does not hold) ends the run with
ModelError. What may pass (429, 5xx, a broken connection, no answer in time, an answer that is not of the form) is tried again
after a growing, jittered pause, or when the server's Retry-After says. Redirects are never followed, certificates always
verified. The key stands in one header and nowhere else: it is cut out of whatever the server sends back. Left out: what is
asked and what becomes of the answer (`endpoint`).
"""

import email.utils
import json
import random
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from ...errors import InputError, ModelError
from .http_address import KEYS, Address, proxy_for

MAX_TRIES = 6
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 30.0
LONGEST_RETRY_AFTER_SECONDS = 600.0  # a server that asks for more is left alone until the next run
CONNECT_SECONDS, ANSWER_SECONDS = 10.0, 180.0
MAX_ANSWER_BYTES = 8 << 20
_POLL_SECONDS = 0.05
_PASSES = frozenset((408, 409, 425, 429))  # and 5xx
_TOO_LONG = re.compile(r"context_length_exceeded|exceed_context_size|maximum context length|context (?:size|window)", re.IGNORECASE)


class Unanswered(Exception):
    """A question whose tries are used up; the text says why."""


class TooLong(Exception):
    """The server says that the prompt does not fit the model's context, in its own words."""


class GivenUp(Exception):
    """The run ends, so the question was not asked (again)."""


@dataclass(frozen=True)
class Reply:
    """What a server answered. n_prompt_tokens, n_new_tokens: as it counts them, None where it does not."""

    text: str
    finish: str
    n_prompt_tokens: int | None
    n_new_tokens: int | None


class RateLimit:
    """At most so many requests a minute, from any number of threads, evenly spaced; None: no limit."""

    def __init__(self, per_minute: float | None, clock: Callable[[], float] = time.monotonic, sleep: Callable = time.sleep):
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

    def __init__(self, address: Address, key: str, n_connections: int, limit: RateLimit, answer_seconds: float = ANSWER_SECONDS):
        import urllib3

        self.address, self.limit = address, limit
        self._key, self._answer_seconds = key, answer_seconds
        self._headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "reclm-lite"}
        if key:
            self._headers["Authorization"] = f"Bearer {key}"
        options = {"num_pools": 1, "maxsize": n_connections, "retries": False}
        proxy = proxy_for(address)
        if proxy is None:
            self._pool = urllib3.PoolManager(**options)
        else:
            self._pool = urllib3.ProxyManager(proxy[0], proxy_headers=proxy[1], **options)

    def close(self) -> None:
        self._pool.clear()

    def ask(self, question: dict, give_up: Callable[[], bool], begun: Callable[[], None] = lambda: None) -> Reply:
        """The answer to one question. begun: called when it may be sent for the first time.

        Raises TooLong, Unanswered, GivenUp, or ModelError where asking on makes no sense.
        """
        body, why = json.dumps(question).encode(), ""
        for number in range(MAX_TRIES):
            self.limit.acquire(give_up)
            if not number:
                begun()
            status, headers, content, why = self._post(body)
            if status == 200:
                try:
                    return self._reply(content)
                except ValueError as error:
                    why = f"an answer that is not of the form ({error})"
            elif status:
                why = self._refusal(status, headers, content)
            asked_for = _retry_after(headers.get("Retry-After"))
            if asked_for is not None and status in (429, 503):
                if asked_for > LONGEST_RETRY_AFTER_SECONDS:
                    raise ModelError(
                        f"the endpoint {self.address.host} asks to be left alone for {asked_for:,.0f} s ({why}): what was answered is "
                        "stored; run the same command again then"
                    )
                self.limit.hold(asked_for)
            if number + 1 < MAX_TRIES:
                longest = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2**number)
                self.limit.pause_for(max(asked_for or 0.0, longest * (0.5 + random.random() / 2)), give_up)
        raise Unanswered(why)

    # -- one try -------------------------------------------------------------------

    def _post(self, body: bytes) -> tuple[int, Mapping[str, str], bytes, str]:
        """(status, headers, content, ""), or (0, {}, b"", why) where there was no answer."""
        import urllib3
        from urllib3 import exceptions

        end = time.monotonic() + self._answer_seconds
        response = None
        try:
            response = self._pool.request(
                "POST", f"{self.address.base}/chat/completions", body=body, headers=self._headers, redirect=False,
                preload_content=False, timeout=urllib3.Timeout(connect=CONNECT_SECONDS, read=self._answer_seconds),
            )  # fmt: skip
            content = bytearray()
            while part := response.read1(1 << 16):
                content += part
                if len(content) > MAX_ANSWER_BYTES:
                    raise exceptions.HTTPError(f"an answer of more than {MAX_ANSWER_BYTES >> 20} MiB")
                if time.monotonic() > end:
                    raise exceptions.ReadTimeoutError(None, "", "")
            response.release_conn()
            return response.status, response.headers, bytes(content), ""
        except exceptions.SSLError as error:
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                raise ModelError(
                    f"the certificate of the endpoint {self.address.host} does not hold ({_plain(str(error), 160)}): check the "
                    "address, or name the authority that signed it in SSL_CERT_FILE; certificates are always verified"
                ) from None
            return 0, {}, b"", "no safe connection: TLS failed"
        except exceptions.ProxyError:
            return 0, {}, b"", "the proxy did not let it through"
        except exceptions.NameResolutionError:  # before its base classes, as the next one
            return 0, {}, b"", "its name is not known"
        except exceptions.NewConnectionError:
            return 0, {}, b"", "no connection: nothing listens there, or the way is barred"
        except exceptions.ConnectTimeoutError:
            return 0, {}, b"", f"no connection within {CONNECT_SECONDS:.0f} s"
        except exceptions.TimeoutError:
            return 0, {}, b"", f"no answer within {self._answer_seconds:g} s"
        except (exceptions.HTTPError, OSError) as error:  # HTTPError is urllib3's base class
            return 0, {}, b"", f"the connection broke ({type(error).__name__})"
        finally:
            if response is not None:
                response.close()

    def _refusal(self, status: int, headers: Mapping[str, str], content: bytes) -> str:
        """Why a status other than 200 came, where it may pass. Raises TooLong or ModelError where it does not."""
        host = self.address.host
        if 300 <= status < 400:
            target = urlsplit(headers.get("Location", "")).hostname or "another place"
            raise ModelError(f"the endpoint {host} redirects to {_plain(target, 100)}, which is not followed: give the address itself")
        code, message = self._error_of(content)
        told = f"{status}{f', {message}' if message else ''}"
        if code == "insufficient_quota":
            raise ModelError(f"the account at {host} has no quota left ({told}): what was answered is stored; run again when it has")
        if status in _PASSES or status >= 500:
            return f"status {told}"
        if status == 413 or status == 400 and (_TOO_LONG.search(code) or _TOO_LONG.search(message)):
            raise TooLong(f"the server says that the prompt is too long: {message or status}")
        if status in (401, 403):  # servers repeat (parts of) the key in their message
            raise ModelError(
                f"the endpoint {host} refused the key ({status}): " + ("check" if self._key else "set") + f" {' or '.join(KEYS)}, "
                "and that the model may be used with it; what was answered is stored, run again to go on"
            )
        hint = f": check that {self.address.base} is its base URL (most end in /v1) and --model a model it has" if status == 404 else ""
        raise ModelError(f"the endpoint {host} refused the request ({told}){hint}; what was answered is stored, run again to go on")

    def _error_of(self, content: bytes) -> tuple[str, str]:
        """(code or type, message) of an error, each empty where the server gives none; no key and no control characters in it."""
        try:
            error = json.loads(content)
            error = error.get("error", error) if isinstance(error, dict) else error
        except (ValueError, RecursionError):
            return "", ""
        if isinstance(error, str):
            return "", _plain(self._without_key(error), 300)
        if not isinstance(error, dict):
            return "", ""
        code = " ".join(str(error.get(name)) for name in ("code", "type") if isinstance(error.get(name), str))
        message = error.get("message") or error.get("detail") or ""
        code = "insufficient_quota" if "insufficient_quota" in code.split() else code
        return code, _plain(self._without_key(str(message)), 300)

    def _reply(self, content: bytes) -> Reply:
        """The answer in a body. Raises ValueError where there is none."""
        try:
            document = json.loads(content)
        except (ValueError, RecursionError):
            raise ValueError("no JSON") from None
        choices = document.get("choices") if isinstance(document, dict) else None
        if not isinstance(choices, list) or not choices:
            raise ValueError("no choices")
        choice = choices[0]
        message = choice.get("message") if isinstance(choice, dict) else None
        if not isinstance(message, dict):
            raise ValueError("no message")
        text = message.get("content")
        if isinstance(text, list):  # in parts
            text = "".join(part["text"] for part in text if isinstance(part, dict) and isinstance(part.get("text"), str))
        if text is not None and not isinstance(text, str):
            raise ValueError("no text")
        usage = document.get("usage")
        usage = usage if isinstance(usage, dict) else {}
        finish = choice.get("finish_reason")
        return Reply(
            self._without_key((text or "").encode("utf-8", "replace").decode()),  # a lone surrogate cannot be stored
            finish if isinstance(finish, str) else "stop",
            _count(usage.get("prompt_tokens")),
            _count(usage.get("completion_tokens")),
        )

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "[key]") if len(self._key) >= 8 else text  # shorter ones are no secrets, but words


def _count(value: object) -> int | None:
    return value if type(value) is int and 0 <= value < 1 << 31 else None


def _plain(text: str, limit: int) -> str:
    """One line without control characters, cut."""
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header, which holds seconds or a date; None where it holds neither."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return None
    return max(0.0, seconds) if seconds == seconds else None
