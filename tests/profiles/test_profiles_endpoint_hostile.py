"""A hostile server: slow at every point of HTTP, endless, and with invalid answers."""

import contextlib
import gzip
import json
import shutil
import socket
import ssl
import subprocess
import threading
import time

import pytest
from profile_workspace import make_workspace

from reclm_lite.errors import InputError, ModelError
from reclm_lite.profiles import store
from reclm_lite.profiles.answers import MAX_ANSWER_CHARS, MAX_REASON_CHARS, Group, StopSignal, judge
from reclm_lite.profiles.generate import run_profiles
from reclm_lite.profiles.run_settings import RunSettings
from reclm_lite.profiles.sampling import Sampling
from reclm_lite.profiles.sources import SourceSettings, http_answer, http_bounds, http_chat
from reclm_lite.profiles.sources.endpoint import Endpoint, answer_line
from reclm_lite.profiles.sources.http_address import read_address
from reclm_lite.profiles.sources.http_answer import plain, read_error, read_json, read_reply
from reclm_lite.profiles.sources.http_chat import ChatClient, GivenUp, RateLimit, Unanswered

GOOD = "User identity: cook, gardener, parent; User interests: herbs, soups, tools"
KEY = "sk-not-for-anybody-else-0123456789"
LONG_SECONDS = 3600.0  # that the server would go on: a client that waited for it would hang the suite
MUCH_LESS_SECONDS = 20.0  # that the client may take on a busy machine; it is told to take 0.3
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


def body(text: object = GOOD, **more: object) -> bytes:
    return json.dumps({"choices": [{"message": {"content": text}, "finish_reason": "stop"}], **more}).encode()


def whole(content: bytes, status: str = "200 OK", headers: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(content)}\r\n{headers}\r\n".encode() + content


def request_of(connection: socket.socket) -> bytes:
    """A whole request (where some of it is unread, closing resets the connection), or what else came first."""
    data = connection.recv(1 << 16)
    while data.startswith(b"POST") and b"\r\n\r\n" not in data:
        data += connection.recv(1 << 16)
    head, _, rest = data.partition(b"\r\n\r\n")
    lengths = [int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
    while lengths and len(rest) < lengths[0] and (more := connection.recv(1 << 16)):
        data, rest = data + more, rest + more
    return data


class Server:
    """Bytes on a socket. Each connection gets `say(connection, number)` after its first request; number counts from 1.

    seen: what came first on each connection. n_sent: bytes sent by `send_on` and `drip`.
    """

    def __init__(self, say, reads: bool = True):
        self.say, self.reads, self.seen, self.n_sent = say, reads, [], 0
        self.over = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):  # the client has left
            if self.reads:
                self.seen.append(request_of(connection))
            self.say(connection, len(self.seen))

    def drip(self, connection: socket.socket, drop: bytes, n_each: int = 1) -> None:
        """A little of `drop`, repeated, every few milliseconds, for long."""
        end, at = time.monotonic() + LONG_SECONDS, 0
        while time.monotonic() < end and not self.over.wait(0.02):
            connection.sendall((drop * 2)[at : at + n_each])
            at = (at + n_each) % len(drop)
            self.n_sent += n_each

    def flood(self, connection: socket.socket, drop: bytes) -> None:
        """`drop` again and again, as fast as it is read, for long."""
        drops, end = drop * max(1, 65536 // len(drop)), time.monotonic() + LONG_SECONDS
        while time.monotonic() < end and not self.over.is_set():
            connection.sendall(drops)
            self.n_sent += len(drops)

    def close(self) -> None:
        self.over.set()
        self._listener.close()


@pytest.fixture
def serve():
    """serve(say) -> Server"""
    servers: list[Server] = []

    def start(say, **options) -> Server:
        servers.append(Server(lambda *about: say(servers[0] if len(servers) == 1 else server, *about), **options))
        server = servers[-1]
        return server

    yield start
    for server in servers:
        server.close()


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """One try, no key and no proxy from outside."""
    monkeypatch.setattr(http_chat, "MAX_TRIES", 1)
    for name in (
        "RECLM_API_KEY",
        "OPENAI_API_KEY",
        "HTTPS_PROXY",
        "https_proxy",
        "HTTP_PROXY",
        "http_proxy",
        "NO_PROXY",
        "no_proxy",
    ):
        monkeypatch.delenv(name, raising=False)


def client_of(url: str, seconds: float = 0.3, key: str = "") -> ChatClient:
    return ChatClient(read_address(url), key, 2, RateLimit(None), seconds)


def asked(url: str, seconds: float = 0.3, key: str = "", question: dict | None = None) -> object:
    """The reply, or the error."""
    client = client_of(url, seconds, key)
    try:
        return client.ask(question or {"model": "m"}, lambda: False)
    except (Unanswered, ModelError) as error:
        return error
    finally:
        client.close()


def says(data: bytes):
    """The same answer on every connection."""

    def say(server, connection, number):
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)

    return say


def endpoint_of(url: str, **settings) -> Endpoint:
    return Endpoint(SourceSettings(model="m", endpoint=url, **settings))


def endpoint_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("reclm-endpoint")]


def all_end(threads: list[threading.Thread]) -> bool:
    end = time.monotonic() + MUCH_LESS_SECONDS
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    return not any(thread.is_alive() for thread in threads)


# -- time ---------------------------------------------------------------------------

SLOW = {
    "nothing": (b"", b""),
    "status line": (b"", b"HTTP/1.1 200 OK" + b" " * 10_000),
    "header": (HEAD + b"X: ", b"a"),
    "headers": (HEAD, b"X: a\r\n"),
    "continue": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "headers of continue": (b"HTTP/1.1 100 Continue\r\n", b"X: a\r\n"),
    "body": (HEAD + b"Content-Length: 100000\r\n\r\n", b" "),
    "body to the end of the connection": (HEAD + b"\r\n", b" "),
    "chunks": (CHUNKED, b"1\r\n \r\n"),
    "size of a chunk": (CHUNKED, b"0"),
    "extension of a chunk": (CHUNKED + b"1;", b"a"),
    "trailer": (CHUNKED + b"1\r\n \r\n0\r\n", b"a"),
    "trailers": (CHUNKED + b"1\r\n \r\n0\r\n", b"X: a\r\n"),
}


@pytest.mark.parametrize("where", SLOW)
def test_a_request_ends_in_its_time_wherever_the_server_is_slow(serve, where):
    first, drop = SLOW[where]

    def say(server, connection, number):
        connection.sendall(first)
        if drop:
            server.drip(connection, drop, len(drop) if drop.endswith(b"\n") else 1)
        else:
            server.over.wait(LONG_SECONDS)

    found = asked(serve(say).url)
    assert isinstance(found, Unanswered) and str(found) == "no answer within 0.3 s"


def test_a_server_that_never_reads_does_not_hold_a_request(serve):
    server = serve(lambda server, connection, number: server.over.wait(LONG_SECONDS), reads=False)
    assert str(asked(server.url, question={"model": "m" * (32 << 20)})) == "no answer within 0.3 s"


def test_a_slow_handshake_ends_in_time(serve):
    record = b"\x16\x03\x03\x40\x00\x02\x00\x3f\xfc"  # the beginning of a long ServerHello

    def say(server, connection, number):
        connection.sendall(record)
        server.drip(connection, b"\x00")

    found = asked(serve(say).url.replace("http", "https"))
    assert isinstance(found, Unanswered) and str(found) == "no answer within 0.3 s"


@pytest.mark.parametrize(
    "tunnel", [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\n\r\n\x16\x03\x03\x40\x00\x02\x00\x3f\xfc"]
)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_slow_proxy_does_not_hold_a_request(serve, monkeypatch, tunnel, scheme):
    """Slow itself, in its answer, or in what it passes on; also where it wants TLS and is slow at that."""

    def say(server, connection, number):
        connection.sendall(tunnel)
        server.drip(connection, b"X")

    server = serve(say)
    monkeypatch.setenv("https_proxy", server.url.replace("http", scheme).removesuffix("/v1"))
    assert isinstance(asked("https://api.example.com/v1"), Unanswered)
    assert len(server.seen) == 1 and (scheme == "https" or server.seen[0].startswith(b"CONNECT api.example.com:443"))


def test_a_name_of_many_silent_addresses_is_given_up_in_time(monkeypatch):
    tried = []

    class Silent(socket.socket):
        def connect(self, address):
            tried.append(address)
            time.sleep(min(self.gettimeout(), 0.1))
            raise TimeoutError

    monkeypatch.setattr(http_bounds.socket, "socket", Silent)
    many = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"127.0.0.{n % 250}", 80)) for n in range(100_000)]
    monkeypatch.setattr(http_bounds.socket, "getaddrinfo", lambda *about, **more: many)
    assert isinstance(asked("http://localhost/v1"), Unanswered)
    assert 0 < len(tried) < 100


def test_stop_cuts_off_what_is_in_flight_and_no_thread_stays(serve):
    server = serve(lambda server, connection, number: server.drip(connection, b"HTTP/1.1 100 Continue\r\n\r\n"))
    source, stop_signal = endpoint_of(server.url, n_slots=3), StopSignal()
    groups = [Group(f"prompt {number}", (number,)) for number in range(9)]
    threading.Timer(0.3, stop_signal.stop.set).start()
    assert list(source.answers("user", groups, Sampling(), stop_signal)) == []
    assert all_end(endpoint_threads())
    assert len(server.seen) == 3


def test_an_interrupted_run_cuts_off_what_is_in_flight(serve):
    """As with Ctrl-C: the generator is left by an exception of the caller's thread."""
    server = serve(
        lambda server, connection, number: (
            connection.sendall(whole(body())) if number == 1 else server.over.wait(LONG_SECONDS)
        )
    )
    source = endpoint_of(server.url, n_slots=2)
    answers = source.answers(
        "user", [Group("one", (0,)), Group("two", (1,)), Group("three", (2,))], Sampling(), StopSignal()
    )
    assert next(answers)[1].status == "ok"
    with pytest.raises(KeyboardInterrupt):
        answers.throw(KeyboardInterrupt)
    assert all_end(endpoint_threads())


def test_closing_cuts_off_what_is_in_flight(serve):
    server = serve(lambda server, connection, number: server.over.wait(LONG_SECONDS))
    client, found = client_of(server.url, seconds=LONG_SECONDS), []

    def ask():
        try:
            client.ask({}, lambda: False)
        except GivenUp as error:
            found.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    while not server.seen:
        time.sleep(0.01)
    client.close()
    assert all_end([thread]) and found


def test_a_deadline_holds_against_a_slow_server(tmp_path, serve):
    server = serve(lambda server, connection, number: server.drip(connection, b"HTTP/1.1 100 Continue\r\n\r\n"))
    settings = RunSettings(deadline_seconds=1.0)
    with make_workspace(tmp_path / "ws", {user: [user] for user in range(6)}) as ws:
        summary = run_profiles(ws, "users", source=SourceSettings(model="m", endpoint=server.url), settings=settings)
    assert summary.ended_by == "deadline" and summary.n_ok == 0
    assert all_end(endpoint_threads())


def test_a_connection_is_used_again_and_bounded_again(serve):
    """The second request is cut off too, though its connection was made by the first."""

    def say(server, connection, number):
        connection.sendall(whole(body()))
        server.seen.append(request_of(connection))
        server.drip(connection, b"HTTP/1.1 100 Continue\r\n\r\n")

    server = serve(say)
    client = client_of(server.url)
    assert client.ask({}, lambda: False).text == GOOD
    with pytest.raises(Unanswered, match="no answer within"):
        client.ask({}, lambda: False)
    assert len(server.seen) == 2
    client.close()


# -- size ---------------------------------------------------------------------------

FLOODS = {
    "a status line without end": (b"", b"H"),
    "a header without end": (HEAD, b"X"),
    "headers without end": (HEAD, b"X: a\r\n"),
    "continue without end": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "headers of continue without end": (b"HTTP/1.1 100 Continue\r\n", b"X: a\r\n"),
    "a body without end": (HEAD + b"\r\n", b" "),
    "chunks without end": (CHUNKED, b"1\r\n \r\n"),
    "large chunks without end": (CHUNKED, b"1000\r\n" + b" " * 4096 + b"\r\n"),
    "a size without end": (CHUNKED, b"0"),
    "an extension without end": (CHUNKED + b"1;", b"a"),
    "a trailer without end": (CHUNKED + b"0\r\n", b"a"),
    "trailers without end": (CHUNKED + b"0\r\n", b"X: a\r\n"),
}


@pytest.mark.parametrize("what", FLOODS)
def test_what_has_no_end_is_cut_off_by_its_bytes(serve, what, monkeypatch):
    monkeypatch.setattr(http_chat, "MAX_ANSWER_BYTES", 100_000)
    monkeypatch.setattr(http_bounds, "MAX_WIRE_BYTES", 400_000)
    first, drop = FLOODS[what]

    def say(server, connection, number):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
        connection.sendall(first)
        server.flood(connection, drop)

    server = serve(say)
    found = asked(server.url, seconds=LONG_SECONDS)
    assert isinstance(found, Unanswered) and any(words in str(found) for words in ("without end", "more than", "broke"))
    assert server.n_sent < 32 << 20  # what was read, and what the system keeps for both sides


@pytest.mark.parametrize("coding", ["gzip", "GZIP", "deflate", "br", "zstd", "gzip, gzip", "identity, gzip", "x"])
def test_a_packed_answer_is_not_unpacked(serve, coding):
    bomb = gzip.compress(gzip.compress(bytes(50 << 20)))
    server = serve(says(whole(bomb, headers=f"Content-Encoding: {coding}\r\n")))
    found = asked(server.url)
    assert isinstance(found, Unanswered) and "packed" in str(found)
    assert b"accept-encoding: identity" in server.seen[0].lower()


def test_a_packed_refusal_and_a_plain_answer_that_says_so_are_read(serve):
    found = asked(serve(says(whole(gzip.compress(b"{}"), "401 No", "Content-Encoding: gzip\r\n"))).url)
    assert isinstance(found, ModelError) and "refused the key (401)" in str(found)
    assert asked(serve(says(whole(body(), headers="Content-Encoding: Identity\r\n"))).url).text == GOOD


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 500 + b"1" + b"}" * 500, "nested too deeply"),
        (b'{"choices":' + b"[" * 100 + b"]" * 100 + b"}", "nested too deeply"),
        (b"[" + b"[]," * (http_answer.MAX_CONTAINERS + 1) + b"0]", "too many parts"),
        (b'{"choices": [' + b"9" * 100_000 + b"]}", "no JSON"),
        (b'{"choices": [' + b"9" * 401 + b"]}", "no JSON"),
        (b"\xff\xfe\x00", "no JSON"),
        (b"", "no JSON"),
        (b"1e999", "no choices"),
        (b"NaN", "no choices"),
        (b'{"choices": {"0": {}}}', "no choices"),
        (b'{"choices": "abc"}', "no choices"),
        (b'{"choices": [[]]}', "no message"),
        (b'{"choices": [null]}', "no message"),
        (b'{"choices": [{"message": []}]}', "no message"),
        (b'{"choices": [{"message": {"content": {}}}]}', "no text"),
        (b'{"choices": [{"message": {"content": 1e999}}]}', "no text"),
        (b'{"choices": [1], "choices": []}', "no choices"),
    ],
)
def test_a_body_that_is_no_answer_is_told_in_few_words(content, told):
    with pytest.raises(ValueError, match=told) as raised:
        read_reply(content, str)
    assert len(str(raised.value)) < 60
    assert len(read_error(content, str)[1]) <= 300


def test_counts_that_are_none_are_left_out_and_texts_can_be_stored():
    for count in (-1, 1e999, "1", True, None, [], {}, 1 << 31, 10**300, float("nan")):
        content = body("a\x00b\ud800c", usage={"prompt_tokens": count, "completion_tokens": count})
        reply = read_reply(content, str)
        assert (reply.text, reply.n_prompt_tokens, reply.n_new_tokens) == ("a\x00b?c", None, None)
    for usage in ([], "x", 1, None):
        assert read_reply(body(usage=usage), str).n_new_tokens is None
    assert read_json(b'{"a": 1, "a": 2}') == {"a": 2}


def test_bounds_are_far_above_real_answers():
    nested = (
        b'{"choices": [{"message": {"content": [{"type": "text", "text": "x"}], "tool_calls": [{"function": '
        b'{"arguments": {}}}]}}]}'
    )
    assert read_reply(nested, str).text == "x"
    assert read_reply(body("[{,}] " * 20_000, created=1_700_000_000, logprob=-1.7976931348623157e308), str).text


# -- the text of an answer --------------------------------------------------------------


@pytest.mark.parametrize(
    "text", [" " * 400_000 + "x", "User identity:" + " " * 400_000 + ";", "a," * 200_000, "\x1b" * 300_000]
)
def test_a_long_line_is_no_profile_and_only_its_beginning_is_stored(tmp_path, serve, text):
    server = serve(lambda server, connection, number: connection.sendall(whole(body("x" + text))))
    with make_workspace(tmp_path / "ws", {0: [0]}) as ws:
        summary = run_profiles(
            ws, "users", source=SourceSettings(model="m", endpoint=server.url), settings=RunSettings(n_retries=0)
        )
        (raw, reason), *others = ws.db.execute("SELECT raw, reason FROM generations").fetchall()
        profile = store.get_profile(ws, "user", 0)
    assert not others and len(raw) == MAX_ANSWER_CHARS and f"at most {MAX_ANSWER_CHARS:,} characters, found " in reason
    assert summary.n_invalid == 1 and profile.text == "" and len(profile.reason) <= MAX_REASON_CHARS


def test_a_cut_off_answer_is_stored_by_its_beginning_too():
    assert judge("k", "x" * 10**6, "length", n_new_tokens=7).raw == "x" * MAX_ANSWER_CHARS
    assert judge("k", "x" * MAX_ANSWER_CHARS, "stop").reason.startswith("expected 'User identity")


@pytest.mark.parametrize("piece", ["<think>", "</think>", "<think></think>", "\n", "```\n", " \n", "`", "<"])
def test_the_line_of_an_answer_of_a_million_pieces_is_found(piece):
    many = piece * (1_000_000 // len(piece))
    line, is_whole = answer_line(f"{many}\n{GOOD}")
    is_right = line == (
        "" if piece == "<think>" else many if piece == "<" else GOOD
    )  # pytest would compare letter by letter
    assert is_right and is_whole == (piece == "<")


# -- output and messages --------------------------------------------------


def test_a_redirect_cannot_end_a_run_with_an_unexpected_error_nor_show_the_key(serve, monkeypatch):
    monkeypatch.setenv("RECLM_API_KEY", KEY)
    elsewhere = serve(says(whole(body())))
    for location, told in (
        ("http://[::1", "another place"),
        ("x" * 99, "another place"),
        (f"http://{KEY}.example/", "another place"),
        ("http://a\x1b\x07b.example/", "a b.example"),
        ("http://" + "a" * 5000, "a…"),
        (elsewhere.url, "127.0.0.1"),
    ):
        server = serve(says(whole(b"", "307 Moved", f"Location: {location}\r\nSet-Cookie: a=b\r\n")))
        source = endpoint_of(server.url)
        with pytest.raises(ModelError, match="not followed") as raised:
            list(source.answers("user", [Group("one", (0,))], Sampling(), StopSignal()))
        assert told in str(raised.value) and KEY not in str(raised.value) and len(str(raised.value)) < 300
    assert not elsewhere.seen


def test_no_cookie_is_sent_back(serve):
    def say(server, connection, number):
        for _ in range(2):
            connection.sendall(whole(body(), headers="Set-Cookie: a=b; Path=/\r\n"))
            server.seen.append(request_of(connection))

    server = serve(say)
    client = client_of(server.url)
    for _ in range(2):
        client.ask({}, lambda: False)
    client.close()
    assert len(server.seen) >= 2 and not any(b"cookie" in request.lower() for request in server.seen)


@pytest.mark.parametrize("where", ["message", "detail", "error", "type", "code"])
@pytest.mark.parametrize(
    "value",
    [
        f"{' ' * 5000}{KEY}",
        f"\x1b]0;{KEY}\x07",
        [KEY],
        {"msg": [KEY, {"x": KEY}]},
        "x" * 10**6,
        "\u202e\x9b31m",
        [[[0]]],
        1e999,
    ],
)
def test_what_a_server_says_is_cut_and_shows_no_key_and_no_control_characters(serve, where, value):
    document = {"error": value if where == "error" else {where: value, "message" if where != "message" else "x": "m"}}
    found = asked(serve(says(whole(json.dumps(document).encode(), "418 Teapot"))).url, key=KEY)
    assert (
        isinstance(found, ModelError) and KEY not in str(found) and str(found).isprintable() and len(str(found)) < 700
    )


def test_a_deep_error_ends_in_a_sentence(serve):
    deep = b'{"error": {"message": ' + b"[" * 600 + b"]" * 600 + b"}}"
    assert "refused the request (418)" in str(asked(serve(says(whole(deep, "418 Teapot"))).url))


def test_a_key_of_odd_characters_is_not_shown_by_their_names():
    client = client_of("http://127.0.0.1:1/v1", key="sk-'\\odd-key")
    content = json.dumps({"error": {"detail": [{"input": "sk-'\\odd-key"}]}}).encode()
    assert "odd-key" not in read_error(content, client._without_key)[1]


@pytest.mark.parametrize(
    "value",
    ["inf", "1e308", "9" * 400, "-1", "nan", "1_0", "x" * 5000, "Mon, 99 Foo 99999 99:99:99 +9999", ",", "0,", "٣"],
)
def test_retry_after_of_any_kind_is_understood_or_passed_over(value):
    seconds = http_chat._retry_after(value)
    assert seconds is None or 0 <= seconds <= http_chat.LONGEST_SECONDS


def test_a_server_that_asks_for_ever_is_told_in_a_short_sentence(serve):
    found = asked(serve(says(whole(b"", "429 Slow", "Retry-After: 1e308\r\n"))).url)
    assert isinstance(found, ModelError) and "asks to wait for" in str(found) and len(str(found)) < 250


@pytest.mark.parametrize(
    "headers", [b"no colon\r\n", b" folded\r\n", b"X: a\r\rY\r\n", b": a\r\n", b"X: a\r\n no\r\n\tcolon\r\n"]
)
def test_headers_of_no_form_are_refused_in_one_sentence_or_read(serve, headers, caplog):
    found = asked(serve(says(b"HTTP/1.1 200 OK\r\n" + headers + b"Content-Length: 2\r\n\r\n{}")).url)
    assert isinstance(found, Unanswered) and not caplog.text


@pytest.mark.parametrize("url", ["http://here.localhost/v1", "https://localhost/v1"])
def test_nothing_is_sent_to_a_local_name_that_leads_elsewhere(monkeypatch, url):
    monkeypatch.setattr(
        http_bounds.socket,
        "getaddrinfo",
        lambda *about, **more: [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 80))],
    )
    monkeypatch.setattr(http_bounds.Flight, "hold", lambda self, sock: pytest.fail("a connection was begun"))
    assert "leads to another machine" in str(asked(url, key=KEY))


def test_a_proxy_does_not_see_what_is_for_this_machine(serve, monkeypatch):
    proxy = serve(says(whole(body())))
    server = serve(says(whole(body())))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy"):
        monkeypatch.setenv(name, proxy.url)
    assert asked(server.url, key=KEY).text == GOOD
    assert not proxy.seen and len(server.seen) == 1


@pytest.mark.parametrize("url", ["http://a\x1b[31m.example/v1", "http://a/\x07", "http://a/\u202e"])
def test_an_address_with_characters_that_are_not_printed_is_refused(url):
    with pytest.raises(InputError, match="expected the base URL") as raised:
        read_address(url)
    assert str(raised.value).isprintable()


def test_plain_is_one_printable_line():
    assert plain("a\x1b[2J\r\nb\u202e\x00c" + " " * 10**6 + "d", 20) == "a [2J b c"
    assert len(plain("x" * 10**6, 50)) == 50


# -- TLS ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory) -> tuple[str, str]:
    """(certificate, key) of 127.0.0.1, made for this run."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl, which makes the certificate, is missing")
    folder = tmp_path_factory.mktemp("tls")
    names = str(folder / "cert.pem"), str(folder / "key.pem")
    subprocess.run(
        [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=here",
            "-addext",
            "subjectAltName=IP:127.0.0.1",
            "-keyout",
            names[1],
            "-out",
            names[0],
        ],
        check=True,
        capture_output=True,
    )
    return names


@pytest.mark.parametrize("kind", ["good", "slow body", "flood", "wrong name", "not trusted"])
def test_tls_is_verified_and_bounded_alike(serve, monkeypatch, certificate, kind):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)

    def say(server, connection, number):
        with context.wrap_socket(connection, server_side=True) as safe:
            request_of(safe)
            if kind == "slow body":
                safe.sendall(CHUNKED)
                server.drip(safe, b"1\r\n \r\n", 6)
            elif kind == "flood":
                safe.sendall(b"HTTP/1.1 200 OK\r\n")
                server.flood(safe, b"X: a\r\n")
            else:
                safe.sendall(whole(body()))

    server = serve(say, reads=False)
    if kind != "not trusted":
        monkeypatch.setenv("SSL_CERT_FILE", certificate[0])
    host = "localhost" if kind == "wrong name" else "127.0.0.1"
    found = asked(
        f"https://{host}:{server.port}/v1", seconds=0.5 if kind == "slow body" else MUCH_LESS_SECONDS - 5, key=KEY
    )
    if kind == "good":
        assert found.text == GOOD
    elif kind in ("wrong name", "not trusted"):
        assert isinstance(found, ModelError) and "certificate" in str(found)
    else:
        assert isinstance(found, Unanswered)
