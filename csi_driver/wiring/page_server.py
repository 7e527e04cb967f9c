"""A small HTTP server on one thread, for metrics, health and the web page. Every client that reaches the node may try
to occupy it.

It answers GET and HEAD of a few paths and closes each connection after its response. Time, memory and descriptors are
bounded whatever clients do: a connection has ``REQUEST_S`` for its request, there are ``CONNECTIONS`` of them, and
``ACCEPTS_PER_S`` bounds the work of a flood. A new connection replaces the oldest one of the address that has most of
them, so that a client which opens thousands displaces its own, and not that of Prometheus.
"""

from __future__ import annotations

import errno
import logging
import selectors
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from http import HTTPStatus
from typing import NamedTuple

from csi_driver.model.errors import InvalidParameter

logger = logging.getLogger(__name__)

REQUEST_S = 5.0
"""From the acceptance of a connection to the end of its request, and from there to the end of its response. A scrape
takes milliseconds; Prometheus itself aborts one after 10 s by default."""

CONNECTIONS = 64
ACCEPTS_PER_S = 1000
"""Takes 4 to 6 % of a core, and of the interpreter that serves reads. With 64 connections none is displaced before it
is 64 ms old."""

LONGEST_REQUEST_BYTES = 8192
"""Request line and headers. Those of Prometheus take about 300 bytes."""

_BURST = 16
_BACKLOG = 4096
"""Four seconds of accepted connections: a scrape waits for its turn, instead of a second attempt of its kernel."""
_READ_BYTES = 4096
_DRAIN_S = 1.0
_METHODS = (b"GET", b"HEAD")
_END = b"\r\n\r\n"


class PageRequest(NamedTuple):
    """What is asked for. All of it may be hostile."""

    path: str
    query: str
    """What follows the ``?``, still encoded."""
    headers: Mapping[str, str]
    """By name in small letters. One that was sent more than once has its values joined by commas."""

    @classmethod
    def parse(cls, target: bytes, lines: bytes) -> PageRequest:
        """Of the target in the first line, and the lines of headers."""
        headers: dict[str, str] = {}
        for line in lines.decode("latin-1").split("\r\n"):
            name, _, value = line.partition(":")
            name, value = name.strip().lower(), value.strip()
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        path, _, query = target.decode("latin-1").partition("?")
        return cls(path, query, headers)


class HttpPage(NamedTuple):
    """What is answered."""

    body: bytes
    status: HTTPStatus = HTTPStatus.OK
    content_type: str = "text/plain; charset=utf-8"
    headers: tuple[tuple[str, str], ...] = ()
    """Further ones, in ASCII."""


Page = Callable[[PageRequest], HttpPage]


def listen(
    address: str, port: int, *, port_flag: str = "--metrics-port", address_flag: str = "--metrics-address"
) -> socket.socket:
    """A socket that listens; ``::`` listens on IPv4 too, and on IPv4 alone where the kernel has no IPv6. Raises
    InvalidParameter, which names the flag."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    if address == "::" and not _has_ipv6():
        address, family = "0.0.0.0", socket.AF_INET  # noqa: S104  # the same: all addresses
    try:
        (*_, sockaddr), *_ = socket.getaddrinfo(address, port, family, socket.SOCK_STREAM)
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            listener.bind(sockaddr)
            listener.listen(_BACKLOG)
        except BaseException:
            listener.close()
            raise
    except OSError as error:
        raise _not_bindable(address, port, error, port_flag, address_flag) from error
    listener.setblocking(False)
    return listener


def _has_ipv6() -> bool:
    """False where the kernel has none, as with ``ipv6.disable=1``: then none of its addresses can be bound."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind(("::", 0))
    except OSError:
        return False
    return True


def _not_bindable(address: str, port: int, error: OSError, port_flag: str, address_flag: str) -> InvalidParameter:
    if error.errno == errno.EADDRINUSE:
        return InvalidParameter(port_flag, port, f"a port that no other process uses at {address}")
    if error.errno == errno.EACCES:
        return InvalidParameter(port_flag, port, "a port above 1023, unless the process is root")
    allowed = f"an address of this machine; the system says: {error.strerror}"
    return InvalidParameter(address_flag, address, allowed)


class _Connection:
    """From its acceptance until it is closed: a request, a response, and the wait for the client's end."""

    def __init__(self, client: socket.socket, address: str) -> None:
        self.client = client
        self.address = address
        self.deadline_s = time.monotonic() + REQUEST_S
        self.received = bytearray()
        self.response: memoryview | None = None
        """What is still to be sent; None while the request is incomplete."""


class PageServer:
    """Serves from ``start`` until ``close``. Both, and nothing else, are called from other threads."""

    def __init__(self, listener: socket.socket, pages: Mapping[str, Page], name: str) -> None:
        """Owns the listener. ``pages``, by path, are called on the server's thread, once for each request."""
        self._listener = listener
        self._pages = dict(pages)
        self._connections: list[_Connection] = []
        """The oldest first."""
        self._selector = selectors.DefaultSelector()
        self._waker, self._woken = socket.socketpair()
        self._selector.register(listener, selectors.EVENT_READ)
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Closes the port and all connections; waits for the thread."""
        self._waker.send(b"x")
        self._thread.join()
        for connection in list(self._connections):
            self._disconnect(connection)
        self._selector.close()
        for end in (self._listener, self._waker, self._woken):
            end.close()

    def _serve(self) -> None:
        while True:
            for key, _ in self._selector.select(self._next_deadline_s()):
                if key.fileobj is self._woken:
                    return
                if key.fileobj is self._listener:
                    self._accept()
                elif key.data in self._connections:  # not closed by an earlier event of this round
                    self._advance(key.data)
            now = time.monotonic()
            for connection in [each for each in self._connections if each.deadline_s <= now]:
                self._time_out(connection)

    def _next_deadline_s(self) -> float | None:
        deadlines = [connection.deadline_s for connection in self._connections]
        return max(0.0, min(deadlines) - time.monotonic()) if deadlines else None

    def _accept(self) -> None:
        for _ in range(_BURST):
            try:
                client, peer = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:  # the client has disconnected, or there is no descriptor
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    break
                continue
            client.setblocking(False)
            if len(self._connections) >= CONNECTIONS:
                self._disconnect(self._most_replaceable())
            connection = _Connection(client, str(peer[0]))
            self._connections.append(connection)
            self._selector.register(client, selectors.EVENT_READ, connection)
        time.sleep(_BURST / ACCEPTS_PER_S)  # more are waiting, or descriptors are used up: the thread must not spin

    def _most_replaceable(self) -> _Connection:
        (address, _), *_ = Counter(connection.address for connection in self._connections).most_common(1)
        return next(connection for connection in self._connections if connection.address == address)

    def _advance(self, connection: _Connection) -> None:
        try:
            if connection.response:
                self._send(connection)
            else:
                self._receive(connection)
        except BlockingIOError:
            pass
        except OSError:
            self._disconnect(connection)

    def _receive(self, connection: _Connection) -> None:
        data = connection.client.recv(_READ_BYTES)
        if not data:
            self._disconnect(connection)
        elif connection.response is None:  # otherwise the rest of a request that is answered already
            connection.received += data
            if _END in connection.received or len(connection.received) > LONGEST_REQUEST_BYTES:
                connection.response = memoryview(self._answer(bytes(connection.received)))
                connection.deadline_s = time.monotonic() + REQUEST_S
                self._send(connection)

    def _send(self, connection: _Connection) -> None:
        """Sends what the kernel takes. Then waits a moment for the client to close its end: a close with unread bytes
        would discard the response."""
        if connection.response is None:
            return
        with suppress(BlockingIOError):
            connection.response = connection.response[connection.client.send(connection.response) :]
        if connection.response:
            self._selector.modify(connection.client, selectors.EVENT_WRITE, connection)
            return
        connection.client.shutdown(socket.SHUT_WR)
        connection.deadline_s = time.monotonic() + _DRAIN_S
        self._selector.modify(connection.client, selectors.EVENT_READ, connection)

    def _time_out(self, connection: _Connection) -> None:
        if connection.received and connection.response is None:
            with suppress(OSError):
                connection.client.send(_response(HTTPStatus.REQUEST_TIMEOUT))
        self._disconnect(connection)

    def _disconnect(self, connection: _Connection) -> None:
        self._connections.remove(connection)
        self._selector.unregister(connection.client)
        connection.client.close()

    def _answer(self, request: bytes) -> bytes:
        head, end, _ = request.partition(_END)
        if not end or len(head) > LONGEST_REQUEST_BYTES:
            return _response(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        first, _, lines = head.partition(b"\r\n")
        method, _, rest = first.partition(b" ")
        target, _, version = rest.partition(b" ")
        if not version.startswith(b"HTTP/1."):
            return _response(HTTPStatus.BAD_REQUEST)
        asked = PageRequest.parse(target, lines)
        make = self._pages.get(asked.path)
        if make is None:
            return _response(HTTPStatus.NOT_FOUND, head_only=method == b"HEAD")
        if method not in _METHODS:
            return _response(HTTPStatus.METHOD_NOT_ALLOWED, more=f"Allow: {b', '.join(_METHODS).decode()}\r\n")
        try:
            page = make(asked)
        except BaseException:
            logger.exception("unexpected error while a page is made; the request is answered with an error")
            return _response(HTTPStatus.INTERNAL_SERVER_ERROR)
        more = "".join(f"{name}: {value}\r\n" for name, value in page.headers)
        return _response(page.status, page.body, page.content_type, more=more, head_only=method == b"HEAD")


def _response(
    status: HTTPStatus,
    body: bytes | None = None,
    content_type: str = "text/plain; charset=utf-8",
    *,
    more: str = "",
    head_only: bool = False,
) -> bytes:
    body = f"{status.phrase}\n".encode() if body is None else body
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\n"
        f"Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\n{more}Connection: close\r\n\r\n"
    )
    return head.encode("ascii") + (b"" if head_only else body)
