"""What bounds a request, whatever the server does: its time, the bytes of its answer, and where its connection may
lead.

The time-outs of `urllib3`, `ssl` and `http.client` are of one read each, so a byte every few seconds, endless `100
Continue`, a slow handshake or a slow proxy outlasts them. Here a thread of its own watches every request in flight and
shuts its connection down when its time is over or nobody waits for it any more: whatever was reading or writing then
ends at once. The bytes are counted below the HTTP parser, so a line, a list of headers or a chunk without end is cut
off too. Only the system's look-up of a name is out of reach; the resolver has a time-out of its own. Left out: what is
asked and what becomes of it (`http_chat`).
"""

import contextlib
import http.client
import io
import ipaddress
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import ConnectTimeoutError, NameResolutionError, NewConnectionError

CONNECT_SECONDS = 10.0  # to one address of a name
# Of status lines, headers, `100 Continue` and a proxy's answer together. Servers and browsers refuse heads of over 8 to
# 32 KiB.
MAX_HEAD_BYTES = 128 << 10
MAX_WIRE_BYTES = 4 << 20  # of a body with its chunk headers and trailers: twice the longest body that is taken
WATCH_SECONDS = 0.05  # between two looks at what is in flight
LATE, GIVEN_UP = "late", "given up"

_here = threading.local()  # flight: the request that this thread is sending


class BadAnswer(Exception):
    """A connection that is not made, or an answer that is not read on; the text says why."""


class Flight:
    """One request: its end, and copies of the descriptors of its connections, through which they are shut down.

    A copy stays valid whatever TLS or HTTP do with the socket itself. cut_by: LATE or GIVEN_UP once it was cut off,
    else empty.
    """

    def __init__(self, seconds: float, gives_up: Callable[[], bool], loopback_only: bool):
        self.end = time.monotonic() + seconds
        self.gives_up, self.loopback_only = gives_up, loopback_only
        self.cut_by = ""
        self._copies: list[socket.socket] = []
        self._lock = threading.Lock()

    def hold(self, sock: Any) -> None:
        """A connection that this request uses. sock: anything with a `fileno()`."""
        copy = socket.socket(fileno=os.dup(sock.fileno()))
        with self._lock:
            self._copies.append(copy)
        if self.cut_by:
            self.cut(self.cut_by)

    def cut(self, why: str) -> None:
        """End what its connections are doing. May be called again: a connection may just have been opened."""
        with self._lock:
            self.cut_by = self.cut_by or why
            for copy in self._copies:
                with contextlib.suppress(OSError):  # not connected (yet)
                    copy.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with self._lock:
            for copy in self._copies:
                copy.close()
            self._copies.clear()


class Watch:
    """The requests in flight, looked at by a thread that lives as long as there are any."""

    def __init__(self) -> None:
        self._flights: set[Flight] = set()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    @contextlib.contextmanager
    def flight(self, seconds: float, gives_up: Callable[[], bool], loopback_only: bool = False) -> Iterator[Flight]:
        """All requests that this thread sends meanwhile end within `seconds`, or soon after `gives_up()`.

        loopback_only: connect to addresses of this machine only, whatever a name resolves to.
        """
        flight = Flight(seconds, gives_up, loopback_only)
        with self._lock:
            if self._thread is None:
                thread = threading.Thread(target=self._look, name="reclm-endpoint-watch", daemon=True)
                thread.start()
                self._thread = thread
            self._flights.add(flight)
        _here.flight = flight
        try:
            yield flight
        finally:
            _here.flight = None
            with self._lock:
                self._flights.discard(flight)
            flight.close()

    def cut_all(self) -> None:
        with self._lock:
            flights = list(self._flights)
        for flight in flights:
            flight.cut(GIVEN_UP)

    def _look(self) -> None:
        while True:
            with self._lock:
                flights = list(self._flights)
                if not flights:
                    self._thread = None
                    return
            for flight in flights:
                if flight.cut_by or time.monotonic() >= flight.end or flight.gives_up():
                    flight.cut(LATE if time.monotonic() >= flight.end else GIVEN_UP)
            time.sleep(WATCH_SECONDS)


def open_pool(n_connections: int, proxy: tuple[str, dict | None] | None) -> urllib3.PoolManager:
    """Connections to one server, straight or through a proxy (see `http_address.proxy_for`), bounded by
    `Watch.flight`."""
    options: dict[str, Any] = {"num_pools": 1, "maxsize": n_connections, "retries": False}
    if proxy is None:
        pool = urllib3.PoolManager(**options)
    else:
        pool = urllib3.ProxyManager(proxy[0], proxy_headers=proxy[1], **options)
    pool.pool_classes_by_scheme = {"http": _PlainPool, "https": _TlsPool}
    return pool


# -- connections -------------------------------------------------------------------


class _Counted(io.RawIOBase):
    """What comes from a connection, up to so many bytes; beyond them BadAnswer is raised."""

    def __init__(self, raw: io.RawIOBase):
        self._raw, self._n_left, self._what = raw, MAX_HEAD_BYTES, "headers"

    def allow(self, n_bytes: int, what: str) -> None:
        self._n_left, self._what = n_bytes, what

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        n = self._raw.readinto(buffer)
        self._n_left -= n or 0
        if self._n_left < 0:
            raise BadAnswer(f"{self._what} without end")
        return n

    def close(self) -> None:
        if not self.closed:
            self._raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    def __init__(self, sock: Any, *args: Any, **options: Any):
        super().__init__(sock, *args, **options)
        self._counted = _Counted(self.fp.detach())
        self.fp = io.BufferedReader(self._counted)

    def begin(self) -> None:
        super().begin()
        # urllib3 would log a traceback with what it could not read.
        if self.msg.defects or self.msg.get_payload():
            raise BadAnswer("headers that are not of HTTP's form")
        self._counted.allow(MAX_WIRE_BYTES, "a body")


# A mixin for both kinds: mypy takes it for one of them.
if TYPE_CHECKING:
    _Mixin = HTTPConnection
else:
    _Mixin = object


class _Bounded(_Mixin):
    """Of both kinds of connection: they are held by the flight of their thread, and count what they read."""

    response_class: Any = _Response
    _held_by: Flight | None = None

    def _new_conn(self) -> socket.socket:
        flight = self._held_by = _here.flight
        try:
            sock = connected(self._dns_host, self.port, flight)
        except (socket.gaierror, UnicodeError) as error:  # UnicodeError: a label of more than 63 characters
            raise NameResolutionError(self.host, self, error) from error  # type: ignore[arg-type]  # it is only shown
        except TimeoutError as error:
            raise ConnectTimeoutError(self, "no connection in time") from error
        except OSError as error:
            raise NewConnectionError(self, str(error)) from error
        sys.audit("http.client.connect", self, self.host, self.port)
        return sock

    def request(self, *args: Any, **options: Any) -> None:
        if self.sock is not None and self._held_by is not _here.flight:  # used before, for another request
            self._held_by = _here.flight
            self._held_by.hold(self.sock)
        super().request(*args, **options)


class _PlainConnection(_Bounded, HTTPConnection):
    pass


class _TlsConnection(_Bounded, HTTPSConnection):
    pass


class _PlainPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _PlainConnection


class _TlsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


def connected(host: str, port: int, flight: Flight) -> socket.socket:
    """A TCP connection, held by the flight from before it is made. Raises OSError, of the last address where there are
    several."""
    refused: Exception = OSError("the name has no address")
    for family, kind, protocol, _, address in socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM):
        left = flight.end - time.monotonic()
        if flight.cut_by or left <= 0:
            raise TimeoutError
        if flight.loopback_only and not ipaddress.ip_address(address[0]).is_loopback:
            refused = BadAnswer(f"the name {host} leads to another machine, though it is one of this machine's")
            continue
        sock = None
        try:
            sock = socket.socket(family, kind, protocol)  # a machine may not know the family
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.settimeout(min(CONNECT_SECONDS, left))
            flight.hold(sock)
            sock.connect(address)
            return sock
        except OSError as error:
            refused = error
            if sock is not None:
                sock.close()
    raise refused
