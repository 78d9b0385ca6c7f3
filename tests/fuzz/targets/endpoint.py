"""What an endpoint answers: the bytes of a whole HTTP response, and the JSON of its body."""

import functools
import json
import socket
from unittest import mock

from harness import Target

from reclm_lite.errors import ModelError
from reclm_lite.profiles.answers import MAX_ANSWER_CHARS, MAX_REASON_CHARS, OK, judge
from reclm_lite.profiles.sources import http_chat
from reclm_lite.profiles.sources.endpoint import answer_line
from reclm_lite.profiles.sources.http_address import Address
from reclm_lite.profiles.sources.http_answer import Reply, read_error, read_reply
from reclm_lite.profiles.sources.http_chat import ChatClient, RateLimit, TooLong, Unanswered

GOOD = "User identity: cook, gardener, parent; User interests: herbs, soups, tools"
KEY = "sk-not-for-anybody-else-0123456789"
ADDRESS = Address("http://127.0.0.1:9/v1", "127.0.0.1:9", is_loopback=True, is_tls=False)
MAX_SENTENCE = 900


def _without_key(text: str) -> str:
    return text.replace(KEY, "[key]")


def _check_sentence(text: str) -> None:
    if len(text) > MAX_SENTENCE or not text.isprintable() or KEY in text:
        raise AssertionError(f"no sentence for a person: {text!r}")


def _check_reply(reply: Reply) -> str:
    """ "accepted" where the answer is a profile, else "refused: no profile"."""
    reply.text.encode()
    if KEY in reply.text:
        raise AssertionError("the key is in the answer")
    for count in (reply.n_prompt_tokens, reply.n_new_tokens):
        if count is not None and not (type(count) is int and 0 <= count < 1 << 31):
            raise AssertionError(f"a count of {count!r}")
    line, is_whole = answer_line(reply.text)
    generation = judge("key", line, "length" if reply.finish == "length" and not is_whole else "stop")
    if len(generation.raw) > MAX_ANSWER_CHARS or len(generation.reason) > MAX_REASON_CHARS or "\n" in generation.raw:
        raise AssertionError(f"too much to store: {generation}")
    return "accepted" if generation.status == OK else "refused: no profile"


# -- a whole response -----------------------------------------------------------------


@functools.cache
def _client() -> ChatClient:
    """One for all inputs: its watch is a thread that stays for a moment after each request."""
    return ChatClient(ADDRESS, KEY, 1, RateLimit(None, sleep=lambda seconds: None), 5.0)


def run_answers(data: bytes) -> str:
    connections = []

    def connected(host: str, port: int, flight: object) -> socket.socket:
        ours, theirs = socket.socketpair()
        connections.append(theirs)
        flight.hold(ours)
        ours.settimeout(5.0)
        theirs.sendall(data)
        theirs.shutdown(socket.SHUT_WR)
        return ours

    client = _client()
    client.limit._held_until = float("-inf")  # another server's wish
    try:
        with (
            mock.patch("reclm_lite.profiles.sources.http_bounds.connected", connected),
            mock.patch.object(http_chat, "MAX_TRIES", 1),
        ):
            reply = client.ask({"model": "m"}, lambda: False)
    except (ModelError, TooLong, Unanswered) as error:
        _check_sentence(str(error))
        return f"refused: {type(error).__name__}"
    finally:
        client.close()
        for connection in connections:
            connection.close()
        if len(connections) != 1:
            raise AssertionError(f"{len(connections)} connections of one request")
    return _check_reply(reply)


def _body(text: object = GOOD, **more: object) -> bytes:
    return json.dumps({"choices": [{"message": {"content": text}, "finish_reason": "stop"}], **more}).encode()


def _response(body: bytes, status: str = "200 OK", headers: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode() + body


def _error(message: object, **more: object) -> bytes:
    return json.dumps({"error": {"message": message, **more}}).encode()


def seeds_answers() -> list[bytes]:
    half = _body()
    chunks = b"".join(b"%x;a=b\r\n%s\r\n" % (len(part), part) for part in (half[:30], half[30:]))
    return [
        _response(_body(usage={"prompt_tokens": 9, "completion_tokens": 3})),
        _response(_body(f"<think>\n</think>\n{GOOD}\n")),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\nX: trailer\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 3 + b"HTTP/1.0 200 OK\r\n\r\n" + half,
        _response(b"\x1f\x8b\x08", headers="Content-Encoding: gzip\r\n"),
        _response(b"", "307 Moved", f"Location: http://[{KEY}\r\nSet-Cookie: a=b\r\n"),
        _response(_error(f"wait\x1b[31m {KEY}"), "429 Slow", "Retry-After: 1e308\r\n"),
        _response(
            _error("pay", code="insufficient_quota"), "429 Slow", "Retry-After: Mon, 30 Nov 2026 10:00:00 GMT\r\n"
        ),
        _response(_error(f"no {KEY}"), "401 No"),
        _response(_error([[KEY]], type="context_length_exceeded"), "400 No"),
        _response(b"[" * 2000, "500 No"),
    ]


# -- the body alone ------------------------------------------------------------------


def run_json(data: bytes) -> str:
    code, message = read_error(data, _without_key)
    _check_sentence(message)
    if len(message) > 300 or len(code) > 201:
        raise AssertionError(f"an error of {len(code)} and {len(message)} characters")
    try:
        reply = read_reply(data, _without_key)
    except ValueError as error:
        _check_sentence(str(error))
        return f"refused: {error}"
    return _check_reply(reply)


def seeds_json() -> list[bytes]:
    return [
        _body(usage={"prompt_tokens": 9, "completion_tokens": 10**300, "x": 1e999}),
        _body([{"type": "text", "text": GOOD[:9]}, {"text": GOOD[9:] + "\ud800\x00"}, {"text": 1}, 1]),
        _body(f"thinking\n</think>```\n{GOOD}\n```", choices_=[[[[[]]]]]),
        b'{"choices": [{"message": {"content": null}, "finish_reason": {}}], "choices": [], "usage": []}',
        b'{"choices": [' + b"9" * 401 + b"]}",
        b'{"error": {"message": [[[[' + KEY.encode() + b'"]]]], "type": 1, "code": "insufficient_quota"}}',
        b'{"detail": [{"loc": ["body"], "msg": "\\u001b[2J"}]}',
        b"[" * 1000,
        b'{"a":' * 100 + b"1" + b"}" * 100,
        "\ufeff{}".encode("utf-16"),
        b"NaN",
    ]


_WORDS = (
    b'"choices"',
    b'"message"',
    b'"content"',
    b'"finish_reason"',
    b'"length"',
    b'"usage"',
    b'"error"',
    b'"detail"',
    b'"code"',
    b"null",
    b"1e999",
    b"\\ud800",
    b"\\u0000",
    b"NaN",
    b"[[[[",
    b"]]]]",
    b'{"":',
    b"},{",
    KEY.encode(),
    b"<think>",
    b"</think>",
    b"User identity: ",
)
_HTTP_WORDS = (
    b"\r\n",
    b"\n",
    b"\r",
    b"\r\n\r\n",
    b"HTTP/1.1 ",
    b"HTTP/1.1 100 Continue\r\n\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Content-Length: ",
    b"Content-Encoding: gzip\r\n",
    b"Location: ",
    b"Retry-After: ",
    b"Connection: close\r\n",
    b"Content-Type: multipart/mixed; boundary=a\r\n",
    b"-1",
    b"fffffffffffffffff",
    b"99999999999999999999",
    b"0\r\n\r\n",
    b": ",
    b" 204 ",
    b" 307 ",
    b" 429 ",
    b" 503 ",
)

TARGETS = (
    Target("endpoint_answers", "an HTTP response of an endpoint", seeds_answers, run_answers, (*_WORDS, *_HTTP_WORDS)),
    Target("endpoint_json", "the JSON body of an endpoint's answer", seeds_json, run_json, _WORDS, n_slice=2000),
)
