"""An answer on its way: the plain one, status 200 and all bytes of an object, taken as it comes, without waiting."""

from __future__ import annotations

import select
from typing import NamedTuple, NoReturn, Protocol

from csi_driver.objects.checksums import from_s3_headers
from csi_driver.objects.http.connections import CONNECT_TIMEOUT_S, WOULD_WAIT, Connection
from csi_driver.objects.store import NotPlain, Whole

HEAD_BYTES = 64 << 10
"""More than a store's headers need, and what is read of the body with them saves a system call."""


class Owner(Protocol):
    """Who asked."""

    @property
    def timeout_s(self) -> float:
        """How long to wait for the next byte."""

    def note(self, *, usable: bool) -> None:
        """An answer was the plain one, or not."""

    def keep(self, link: Connection) -> None:
        """An answer has ended, and the link may have another one."""

    def unreached(self) -> None:
        """A link was given up before it was established."""


class InFlightResponse:
    """An object that was asked for and is on its way. Used by one thread at a time."""

    def __init__(
        self, owner: Owner, link: Connection, size_bytes: int, if_match: str | None, request: bytes | None = None
    ) -> None:
        """``request``: to be sent as soon as the link is established. None: it was sent."""
        self._owner, self._link = owner, link
        self._size_bytes, self._if_match = size_bytes, if_match
        self._request = request
        self.events = select.POLLIN if request is None else select.POLLOUT
        """What to wait for, for poll(2)."""
        self._head = b""
        self._answer: _Head | None = None
        self._body = memoryview(b"")
        self._filled = 0

    @property
    def timeout_s(self) -> float:
        """How long to wait for the next byte."""
        whole_s = self._owner.timeout_s
        return whole_s if self._request is None else min(CONNECT_TIMEOUT_S, whole_s)

    @property
    def has_begun(self) -> bool:
        """Whether a byte of the answer has come."""
        return bool(self._head) or self._answer is not None

    def fileno(self) -> int:
        """To wait for, until ``events`` come."""
        return self._link.fileno()

    def advance(self) -> Whole | None:
        """Takes what has come, without waiting; None: not all of it. Raises NotPlain, and OSError if the connection
        broke; it is to be given up then. With the last byte the link goes back to its owner."""
        try:
            if self._request is not None:
                self._ask(self._request)
            while (answer := self._answer) is None:
                self._take_head()
            while self._filled < self._size_bytes:
                count = self._link.socket.recv_into(self._body[self._filled :])
                if not count:
                    raise ConnectionResetError
                self._filled += count
        except WOULD_WAIT as would_wait:
            self.events = self._link.events(would_wait)
            return None
        self._owner.note(usable=True)
        if answer.keeps_alive:
            self._owner.keep(self._link)
        else:
            self._link.close()
        return Whole([self._body.toreadonly()], from_s3_headers(answer.headers).checksum)

    @property
    def is_asked(self) -> bool:
        """Whether the request was sent."""
        return self._request is None

    def give_up(self) -> None:
        """Ends the connection."""
        self._link.close()
        if not self.is_asked:
            self._owner.unreached()

    def _ask(self, request: bytes) -> None:
        """Raises one of ``WOULD_WAIT`` until the link is established, and OSError."""
        self._link.establish()
        if self._link.socket.send(request) != len(request):
            raise ConnectionResetError  # it takes no request that is smaller than any buffer
        self._request = None

    def _take_head(self) -> None:
        """Reads once. With the end of the headers ``_answer`` is there, and what came of the body in its place."""
        came = self._link.socket.recv(HEAD_BYTES)
        if not came:
            raise ConnectionResetError
        self._head += came
        end = self._head.find(b"\r\n\r\n")
        if end < 0:
            if len(self._head) >= HEAD_BYTES:
                self._refuse()
            return
        try:
            answer = _Head.parse(self._head[:end])
        except NotPlain:
            self._refuse()
        if not answer.is_of(self._size_bytes, self._if_match):
            self._refuse()
        first = memoryview(self._head)[end + 4 :]
        if len(first) > self._size_bytes:
            self._refuse()
        self._body = memoryview(bytearray(self._size_bytes))
        self._body[: len(first)] = first
        self._filled = len(first)
        self._answer, self._head = answer, b""

    def _refuse(self) -> NoReturn:
        self._owner.note(usable=False)
        raise NotPlain


_CHANGED_BODY = frozenset({"transfer-encoding", "content-encoding"})
"""With these the body is not the bytes of the object, one after the other."""


_ONCE = frozenset({"content-length", "etag"})
"""Two of these that differ: nobody knows what is meant."""


class _Head(NamedTuple):
    """Status line and headers of an answer."""

    status: int
    headers: dict[str, str]
    keeps_alive: bool

    @classmethod
    def parse(cls, data: bytes) -> _Head:
        """Raises NotPlain for what is no HTTP/1.1."""
        first, *lines = data.decode("latin-1").split("\r\n")
        version, _, rest = first.partition(" ")
        status = rest[:3]
        if version != "HTTP/1.1" or not status.isdigit() or not status.isascii():
            raise NotPlain
        headers: dict[str, str] = {}
        for line in lines:
            name, colon, value = line.partition(":")
            name, value = name.lower(), value.strip()
            if not colon or (name in _ONCE and headers.get(name, value) != value):
                raise NotPlain
            headers[name] = value
        return cls(int(status), headers, headers.get("connection", "").lower() != "close")

    def is_of(self, size_bytes: int, etag: str | None) -> bool:
        """Whether the bytes of that object follow, one after the other, and nothing else."""
        if self.status != 200 or self.headers.get("content-length") != str(size_bytes):
            return False
        if not _CHANGED_BODY.isdisjoint(self.headers):
            return False
        return etag is None or self.headers.get("etag", "").replace('"', "") == etag
