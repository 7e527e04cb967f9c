"""A response in flight: status 200 and all bytes of an object, received without blocking."""

from __future__ import annotations

import select
from collections.abc import Mapping
from typing import NamedTuple, NoReturn, Protocol

from csi_driver.model.aligned_buffers import buffer_of
from csi_driver.objects.checksums import Checksum
from csi_driver.objects.error_mapping import retry_after_s
from csi_driver.objects.http.connections import CONNECT_TIMEOUT_S, WOULD_BLOCK, Connection
from csi_driver.objects.store import UnusableResponse, WholeObject

HEAD_BYTES = 64 << 10
"""More than a store's headers need."""
USUAL_HEAD_BYTES = 2 << 10
"""Stores send 300 to 900 bytes. A longer head takes a second buffer."""
_END = b"\r\n\r\n"


class ConnectionOwner(Protocol):
    """The client that sent the request and owns the connection."""

    @property
    def timeout_s(self) -> float:
        """How long to wait for the next byte."""

    def is_of(self, key: str, headers: Mapping[str, str], if_match: str | None) -> bool:
        """Whether an answer with these headers is of the requested version. Names of headers are in lower case."""

    def checksum(self, headers: Mapping[str, str], if_match: str | None) -> Checksum | None:
        """That of the complete object, of that version, as far as the answer says."""

    def record(self, *, usable: bool) -> None:
        """Counts a response that was usable, or one that was not."""

    def release(self, connection: Connection) -> None:
        """Takes back a connection whose response is complete and that may be used for another one."""

    def refused(self, key: str, status: int, wait_s: float | None) -> None:
        """The store has answered with a status other than 2xx. ``wait_s``: it has asked for a pause of so many seconds
        before it is asked for the object again."""

    def connect_failed(self) -> None:
        """A connection was aborted before it was established."""


class InFlightResponse:
    """Implements ``InFlightObject``. Used by one thread at a time."""

    def __init__(
        self,
        owner: ConnectionOwner,
        connection: Connection,
        size_bytes: int,
        if_match: str | None,
        request: bytes | None = None,
        *,
        key: str = "",
    ) -> None:
        """``request``: to be sent as soon as the connection is established. None: it was sent."""
        self._owner, self._connection = owner, connection
        self._size_bytes, self._if_match = size_bytes, if_match
        self._request, self._key = request, key
        self.events = select.POLLIN if request is None else select.POLLOUT
        self._received: memoryview | None = None
        """Head and body are received into one buffer, so that what comes with the head is not copied. None: nothing is
        received yet, or the head is complete."""
        self._count = 0
        """Bytes in it."""
        self._head: ResponseHead | None = None
        self.answered: ResponseHead | None = None
        """Also of a response that is unusable."""
        self._body = memoryview(b"")
        self._filled = 0

    @property
    def timeout_s(self) -> float:
        timeout_s = self._owner.timeout_s
        return timeout_s if self._request is None else min(CONNECT_TIMEOUT_S, timeout_s)

    @property
    def progress(self) -> int:
        return self._filled + (self._head is not None) + (self._request is None)

    @property
    def has_started(self) -> bool:
        """Whether a byte of the response was received."""
        return self._count > 0

    @property
    def is_sent(self) -> bool:
        """Whether the request was sent."""
        return self._request is None

    def fileno(self) -> int:
        return self._connection.fileno()

    def advance(self) -> WholeObject | None:
        """Once all bytes are received the connection goes back to its owner."""
        try:
            if self._request is not None:
                self._connection.establish()
                if self._connection.socket.send(self._request) != len(self._request):
                    raise ConnectionResetError  # the buffer did not take the request, which is smaller than any buffer
                self._request = None
            while (head := self._head) is None:
                self._receive_head()
            while self._filled < self._size_bytes:
                count = self._connection.socket.recv_into(self._body[self._filled :])
                if not count:
                    raise ConnectionResetError
                self._filled += count
        except WOULD_BLOCK as would_block:
            self.events = self._connection.events(would_block)
            return None
        self._owner.record(usable=True)
        if head.keeps_alive:
            self._owner.release(self._connection)
        else:
            self._connection.close()
        return WholeObject([self._body.toreadonly()], self._owner.checksum(head.headers, self._if_match))

    def abort(self) -> None:
        self._connection.close()
        if not self.is_sent:
            self._owner.connect_failed()

    def _receive_head(self) -> None:
        """Reads once. At the end of the headers it sets ``_head``, and ``_body`` with what was received of it."""
        received = self._buffer()
        count = self._connection.socket.recv_into(received[self._count :])
        if not count:
            raise ConnectionResetError
        self._count += count
        first, end = _find_end(received[: self._count])
        if end < 0:
            if self._count >= HEAD_BYTES:
                self._reject()
            return
        try:
            head = ResponseHead.parse(first[:end])
        except UnusableResponse:
            self._reject()
        self.answered = head
        if head.status // 100 != 2:
            self._owner.refused(self._key, head.status, retry_after_s(head.headers.get("retry-after")))
            raise UnusableResponse
        begin = end + len(_END)
        self._filled = self._count - begin
        if not head.is_complete(self._size_bytes) or self._filled > self._size_bytes:
            self._reject()
        if not self._owner.is_of(self._key, head.headers, self._if_match):
            self._reject()
        if begin <= USUAL_HEAD_BYTES:
            self._body = received[begin : begin + self._size_bytes]
        else:
            self._body = memoryview(bytearray(self._size_bytes))
            self._body[: self._filled] = received[begin : self._count]
        self._head, self._received = head, None

    def _buffer(self) -> memoryview:
        """What the next bytes are received into, with room for some."""
        received = self._received
        if received is None:
            received = self._received = buffer_of(USUAL_HEAD_BYTES + self._size_bytes)
        elif self._count == len(received):
            received = self._received = memoryview(bytearray(received) + bytearray(HEAD_BYTES))
        return received

    def _reject(self) -> NoReturn:
        self._owner.record(usable=False)
        raise UnusableResponse


def _find_end(received: memoryview) -> tuple[bytes, int]:
    """The bytes up to the end of the headers at least, and where those end; -1: not received yet."""
    first = bytes(received[:USUAL_HEAD_BYTES])  # of a large object the rest is left where it is
    end = first.find(_END)
    if end < 0 and len(received) > USUAL_HEAD_BYTES:
        first = bytes(received)
        end = first.find(_END)
    return first, end


_UNIQUE = frozenset({"content-length", "etag"})
"""Headers that must not occur twice with different values."""


class ResponseHead(NamedTuple):
    """Status line and headers of a response."""

    status: int
    headers: dict[str, str]
    """Names in lower case."""
    keeps_alive: bool

    @classmethod
    def parse(cls, data: bytes) -> ResponseHead:
        """Raises UnusableResponse for anything but HTTP/1.1."""
        first, *lines = data.decode("latin-1").split("\r\n")
        version, _, rest = first.partition(" ")
        status = rest[:3]
        if version != "HTTP/1.1" or not status.isdigit() or not status.isascii():
            raise UnusableResponse
        headers: dict[str, str] = {}
        for line in lines:
            name, colon, value = line.partition(":")
            name, value = name.lower(), value.strip()
            if not colon or (name in _UNIQUE and headers.get(name, value) != value):
                raise UnusableResponse
            headers[name] = value
        return cls(int(status), headers, headers.get("connection", "").lower() != "close")

    @property
    def is_chunked(self) -> bool:
        """Whether the body is not sent as it is, one byte after the other."""
        return "transfer-encoding" in self.headers

    def is_complete(self, size_bytes: int) -> bool:
        """Whether the body is an object of that size: its bytes one after the other, and nothing else. An encoded
        one (``content_coding.py``) is left to the fallback path."""
        if self.status != 200 or self.headers.get("content-length") != str(size_bytes):
            return False
        return not self.is_chunked and "content-encoding" not in self.headers
