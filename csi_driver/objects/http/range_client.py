"""GET of ranges, over blocking sockets: the path of large objects.

The bytes are received into the buffers that the caller gets, by one system call for each where TCP alone carries them:
no copy, and the interpreter's lock is free meanwhile. No redirect is followed.
"""

from __future__ import annotations

import socket
import ssl
import struct
import time
from collections.abc import Iterator, Mapping

from csi_driver.model.aligned_buffers import AlignedBuffers
from csi_driver.model.chunk import ByteRange
from csi_driver.model.errors import HayloftError, ObjectChanged, StoreProtocolError, TransientStoreError
from csi_driver.objects.content_range import check_range_answer, content_length
from csi_driver.objects.error_mapping import from_socket, from_status, retry_after_s
from csi_driver.objects.http.connections import Connection
from csi_driver.objects.http.in_flight_response import HEAD_BYTES, ResponseHead
from csi_driver.objects.http.socket_client import SocketClient
from csi_driver.objects.store import UnusableResponse

PIECE_BYTES = 512 << 10
"""Size of a piece of a range; a reader that waits for its first bytes gets them after one piece."""
_pieces = AlignedBuffers(PIECE_BYTES, most_idle=32)
"""For 16 fetch threads, each of which fills one piece while its reader has the other."""
GATHERED_S = 0.25
"""A store that needs longer for a piece has what is received until then passed on."""
_FIRST_BYTES = 8 << 10
"""What is received with the head is copied once more, so it is little; a head of a store has about 500 bytes."""


class RangeClient(SocketClient):
    """Ranges of the objects of one store."""

    def request(self, key: str, part: ByteRange, if_match: str | None) -> RangeResponse | None:
        """Sends the request and receives the head of the response; checks its status, range and version. Blocks.
        None: the response is unusable; the fallback path requests the range again, and maps the errors.

        Raises AddressNotAllowed, ObjectChanged, StoreProtocolError, TransientStoreError and what ``from_status`` says.
        """
        if self.in_cooldown:
            return None
        self._renew_keys()
        request = self._build_request(key, if_match, part)
        if request is None:
            return None
        while True:
            idle = self._take_idle()
            connection = idle or self._dial()
            if connection is None:
                return None
            try:
                return self._exchange(connection, request, key, part, if_match)
            except TimeoutError as error:
                raise from_socket(error, self._location, key) from None
            except OSError as error:
                if idle is None:
                    raise from_socket(error, self._location, key) from None
                # The store closed it just before it was used; at last a new one is made.

    def _exchange(
        self, connection: Connection, request: bytes, key: str, part: ByteRange, if_match: str | None
    ) -> RangeResponse | None:
        """Closes the connection unless its response is returned. Raises OSError."""
        response = None
        try:
            block_for(connection.socket, self.timeout_s)
            connection.socket.sendall(request)
            head, first = receive_head(connection.socket, time.monotonic() + self.timeout_s)
            usable = self._check(connection, head, first, key, part, if_match)
            self.record(usable=usable)
            if usable:
                response = RangeResponse(self, connection, first, key, len(part), keeps_alive=head.keeps_alive)
        except UnusableResponse:
            self.record(usable=False)
        finally:
            if response is None:
                connection.close()
        return response

    def _check(
        self, connection: Connection, head: ResponseHead, first: bytes, key: str, part: ByteRange, if_match: str | None
    ) -> bool:
        """Whether the body is that part of that version; False: the fallback path may find out. Raises the error that
        the response stands for."""
        length_bytes = content_length(head.headers.get("content-length"))
        if head.is_chunked or length_bytes is None:
            return False
        if head.status // 100 != 2:
            if length_bytes > HEAD_BYTES:
                return False
            raise self._error(connection, head, first, key, length_bytes)
        if "content-encoding" in head.headers and length_bytes != len(part):
            return False  # encoded on the fly
        name = self._location.name(key)
        check_range_answer(head.status, head.headers.get("content-range"), length_bytes, part, name)
        if not self.is_of(key, head.headers, if_match):
            raise ObjectChanged(f"{name} is not the version that was listed; make a new snapshot")
        if length_bytes > len(part) or len(first) > len(part):
            raise StoreProtocolError(f"{name}: the store sent more bytes than requested")
        return length_bytes == len(part)

    def _error(
        self, connection: Connection, head: ResponseHead, body: bytes, key: str, length_bytes: int
    ) -> HayloftError:
        body = _rest(connection.socket, body, length_bytes, time.monotonic() + self.timeout_s)
        if self._is_elsewhere(head.status, head.headers, body):
            raise UnusableResponse  # the fallback path goes on there
        return from_status(
            self._location,
            key,
            head.status,
            self.answers.error_code(body),
            retry_after_s(head.headers.get("retry-after")),
            redirect_to=head.headers.get("location"),
            lacking=self.answers.lacking_permission(body),
        )

    def _is_elsewhere(self, status: int, headers: Mapping[str, str], body: bytes) -> bool:
        """Whether an error says that the object has to be requested in another place."""
        return False

    def broken(self, error: OSError, key: str) -> TransientStoreError:
        """The error for a body that broke off."""
        return from_socket(error, self._location, key)


class RangeResponse:
    """The body of a usable response."""

    def __init__(
        self, client: RangeClient, connection: Connection, first: bytes, key: str, size_bytes: int, *, keeps_alive: bool
    ) -> None:
        """``first``: what was received of the body with the head. Owns the connection."""
        self._client, self._connection, self._keeps_alive = client, connection, keeps_alive
        self._first, self._key, self._size_bytes = first, key, size_bytes

    def pieces(self) -> Iterator[memoryview]:
        """All bytes, in order. Blocks. A connection with a complete body is kept; closing the iterator early closes
        it. Raises TransientStoreError, after the bytes that were received before."""
        missing, first = self._size_bytes, self._first
        try:
            while missing:
                buffer = _pieces.take()[: min(PIECE_BYTES, missing)]
                buffer[: len(first)] = first
                begin, end, first = 0, len(first), b""
                while begin < len(buffer):
                    end, failure = _fill(self._connection.socket, buffer, begin, end, self._client.timeout_s)
                    missing -= end - begin
                    if not missing:
                        self._finish()
                    if end > begin:
                        yield buffer[begin:end].toreadonly()
                    if failure is not None:
                        raise self._client.broken(failure, self._key) from None
                    begin = end
        finally:
            if missing:
                self._connection.close()

    def _finish(self) -> None:
        if self._keeps_alive:
            self._connection.socket.setblocking(False)
            self._client.release(self._connection)
        else:
            self._connection.close()


def block_for(connection: socket.socket, timeout_s: float) -> None:
    """Has each call on the socket wait: sends, and all of TLS, for so long; receives by TCP for ``GATHERED_S`` and then
    again, as the functions below do. TCP: by the kernel, so that one call can wait for all bytes of a piece without a
    poll before each; TLS: by Python, which has to poll for each record."""
    if isinstance(connection, ssl.SSLSocket):
        connection.settimeout(timeout_s)
        return
    connection.setblocking(True)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _timeval(min(GATHERED_S, timeout_s)))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(timeout_s))


def _timeval(seconds: float) -> bytes:
    return struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))


def receive_head(connection: socket.socket, until_s: float) -> tuple[ResponseHead, bytes]:
    """And the first bytes of the body. ``until_s``, by time.monotonic(): a head that comes byte by byte is no progress.
    Raises UnusableResponse, OSError."""
    received = b""
    while (end := received.find(b"\r\n\r\n")) < 0:
        if len(received) >= HEAD_BYTES:
            raise UnusableResponse
        if received and time.monotonic() >= until_s:
            raise TimeoutError
        try:
            more = connection.recv(_FIRST_BYTES)
        except BlockingIOError:
            if time.monotonic() >= until_s:
                raise TimeoutError from None
            continue
        if not more:
            raise ConnectionResetError
        received += more
    return ResponseHead.parse(received[:end]), received[end + 4 :]


def _rest(connection: socket.socket, body: bytes, length_bytes: int, until_s: float) -> bytes:
    """The body of an error, or as much of it as comes until then: the status says enough."""
    try:
        while len(body) < length_bytes and time.monotonic() < until_s:
            try:
                more = connection.recv(length_bytes - len(body))
            except BlockingIOError:
                continue
            if not more:
                break
            body += more
    except OSError:
        pass
    return body


def _fill(
    connection: socket.socket, buffer: memoryview, begin: int, end: int, timeout_s: float
) -> tuple[int, OSError | None]:
    """Receives behind ``end``. The end of what is there then: that of the buffer, or of what has come within
    ``GATHERED_S``, at least a byte behind ``begin``. And the error if there is one."""
    flags = 0 if isinstance(connection, ssl.SSLSocket) else socket.MSG_WAITALL
    began_s = time.monotonic()
    try:
        while end < len(buffer):
            try:
                count = connection.recv_into(buffer[end:], 0, flags)
            except BlockingIOError:
                if time.monotonic() - began_s >= timeout_s:
                    return end, TimeoutError()
            else:
                if not count:
                    return end, ConnectionResetError()
                end += count
            if begin < end < len(buffer) and time.monotonic() - began_s >= GATHERED_S:
                break
    except OSError as error:
        return end, error
    return end, None
