"""A small S3 server that misbehaves on demand: objects in memory, a script of faults, a log of requests.

    with HostileS3({"a": b"..."}) as server:
        server.fail_next(Status(503, "SlowDown"), ResetAfter(1000))

Each request that a fault applies to consumes one fault; without one it is answered as S3 would. It checks no
signature. Usable by every test that reads from a store; nothing here depends on Hayloft.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import socket
import ssl
import struct
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, quote, quote_plus, unquote, urlsplit
from xml.sax.saxutils import escape

Method = str


@dataclass(frozen=True, slots=True)
class Fault:
    """A wrong response. By default that to a GET of an object."""

    kinds: tuple[str, ...] = field(default=("GET",), kw_only=True)
    """Of "GET", "HEAD" (objects), "LIST", "PUT", "DELETE"."""


@dataclass(frozen=True, slots=True)
class Status(Fault):
    """An error response."""

    status: int
    code: str = "InternalError"
    message: str = "as the script asks"
    retry_after_s: int | None = None
    xml: bool = True
    """False: an empty body, as sent by proxies."""


@dataclass(frozen=True, slots=True)
class ResetAfter(Fault):
    """The right header and this many bytes of body, then a TCP reset."""

    body_bytes: int


@dataclass(frozen=True, slots=True)
class LoseAnswer(Fault):
    """Carries out the request and resets the connection without a response."""

    body_bytes: int = 0


@dataclass(frozen=True, slots=True)
class CloseAfter(Fault):
    """The right header and this many bytes of body, then a regular close."""

    body_bytes: int


@dataclass(frozen=True, slots=True)
class ShortRange(Fault):
    """A well-formed 206 for fewer bytes than requested."""

    missing_bytes: int


@dataclass(frozen=True, slots=True)
class TooMany(Fault):
    """Bytes beyond the requested range, in a 206 with a Content-Range that includes them (``honest``) or not."""

    extra_bytes: int
    honest: bool = True


@dataclass(frozen=True, slots=True)
class WrongRange(Fault):
    """Another range of the same length; ``honest``: with its Content-Range."""

    shift_bytes: int
    honest: bool = True


@dataclass(frozen=True, slots=True)
class IgnoreRange(Fault):
    """200 with the complete object."""


@dataclass(frozen=True, slots=True)
class IgnoreIfMatch(Fault):
    """Serves the object without checking the condition."""


@dataclass(frozen=True, slots=True)
class Hang(Fault):
    """No byte for so long (after ``body_bytes`` of the body, if given), then the connection is closed."""

    seconds: float
    body_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class ReplaceAfter(Fault):
    """This many bytes, then the object is replaced and the connection reset: a change during a read."""

    body_bytes: int
    content: bytes


@dataclass(frozen=True, slots=True)
class FlipBits(Fault):
    """One bit of the body is flipped, which the checksums of TCP do not detect here."""

    offset: int = 0


@dataclass(frozen=True, slots=True)
class Slow(Fault):
    """The right response, in pieces of this size with a pause before each."""

    pause_s: float
    piece_bytes: int = 64 << 10


@dataclass(frozen=True, slots=True)
class WrongLength(Fault):
    """The complete body with a Content-Length that is too large by this (or, below zero, too small), then a close."""

    difference_bytes: int


@dataclass(frozen=True, slots=True)
class Garbage(Fault):
    """Bytes that are neither HTTP nor TLS, then a close."""

    count_bytes: int = 2000


@dataclass(frozen=True, slots=True)
class Request:
    """One received request."""

    method: str
    kind: str
    key: str
    query: dict[str, str]
    headers: dict[str, str]
    """Names in lower case."""


def _etag(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


class HostileS3:
    """The server; path style, one bucket (any other gives NoSuchBucket)."""

    access_key_id = "AKIDEXAMPLE"
    secret_access_key = "any, for nothing is checked"

    def __init__(
        self,
        objects: Mapping[str, bytes] | None = None,
        *,
        bucket: str = "data",
        page_keys: int = 1000,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.bucket = bucket
        self.page_keys = page_keys
        self.requests: list[Request] = []
        self.object_headers: dict[str, dict[str, str]] = {}
        """Further headers of responses, such as a checksum, by key."""
        self.odd_etags: dict[str, str] = {}
        """ETags that are not the MD5 of the content, by key."""
        self._lock = threading.Lock()  # guards everything below and requests
        self._objects: dict[str, bytes] = dict(objects or {})
        self._faults: list[Fault] = []
        self._standing: Fault | None = None
        self._connections: set[socket.socket] = set()
        self.trust: str | None = None
        """PEM text of the authority of its certificate, set by tests that use TLS."""
        self.connections = 0
        """Accepted since the start."""
        self._released = threading.Event()
        self._tls = tls
        self._scheme = "https" if tls else "http"
        self._listen(0)

    # -- the script ---------------------------------------------------------------------------------------------

    def put(self, key: str, content: bytes) -> str:
        """Returns the ETag without quotes."""
        with self._lock:
            self._objects[key] = content
        return _etag(content)

    def put_if(self, key: str, content: bytes, if_match: str | None, if_none: bool) -> str | None:
        """A conditional put: the ETag, or None if the condition does not hold."""
        with self._lock:
            known = self._objects.get(key)
            if (if_none and known is not None) or (if_match and (known is None or if_match != f'"{_etag(known)}"')):
                return None
            self._objects[key] = content
        return _etag(content)

    def delete(self, key: str) -> None:
        with self._lock:
            self._objects.pop(key, None)

    def etag(self, key: str) -> str:
        return self.odd_etags.get(key) or _etag(self._objects[key])

    def fail_next(self, *faults: Fault) -> None:
        """Appends faults to the script."""
        with self._lock:
            self._faults.extend(faults)

    def fail_all(self, fault: Fault | None) -> None:
        """Every request of the fault's kinds gets it, until this is called with None."""
        with self._lock:
            self._standing = fault

    @property
    def faults_left(self) -> int:
        """Faults that no request has consumed yet."""
        with self._lock:
            return len(self._faults)

    def seen(self, kind: str) -> list[Request]:
        """Requests of one kind so far."""
        with self._lock:
            return [request for request in self.requests if request.kind == kind]

    # -- life ---------------------------------------------------------------------------------------------------

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def endpoint(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self.port}"

    def __enter__(self) -> HostileS3:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._released.set()
        self._end()

    def go_away(self) -> None:
        """Breaks every connection, and refuses new ones until ``come_back``."""
        self._end()
        with self._lock:
            broken, self._connections = self._connections, set()
        for connection in broken:
            with contextlib.suppress(OSError):
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                connection.shutdown(socket.SHUT_RDWR)

    def come_back(self) -> None:
        """At the same port."""
        self._listen(self.port)
        self._thread.start()

    def _listen(self, port: int) -> None:
        self._server = _Server(("127.0.0.1", port), _handler_for(self))
        self._server.daemon_threads = True
        if self._tls:
            self._server.socket = self._tls.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def _end(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    # -- for the handler ----------------------------------------------------------------------------------------

    def log(self, request: Request) -> Fault | None:
        """Records the request and takes the first fault of its kind."""
        with self._lock:
            self.requests.append(request)
            for index, fault in enumerate(self._faults):
                if request.kind in fault.kinds:
                    return self._faults.pop(index)
            standing = self._standing
        return standing if standing is not None and request.kind in standing.kinds else None

    def connected(self, connection: socket.socket) -> None:
        with self._lock:
            self._connections.add(connection)
            self.connections += 1

    def disconnected(self, connection: socket.socket) -> None:
        with self._lock:
            self._connections.discard(connection)

    def content(self, key: str) -> bytes | None:
        with self._lock:
            return self._objects.get(key)

    def page(self, prefix: str, after: str) -> tuple[list[tuple[str, int, str]], bool]:
        """Keys after ``after``, sorted by their UTF-8 bytes, and whether there are more."""
        with self._lock:
            keys = sorted(
                (key for key in self._objects if key.startswith(prefix) and key > after), key=lambda key: key.encode()
            )
            rows = [(key, len(self._objects[key]), self.etag(key)) for key in keys[: self.page_keys]]
        return rows, len(keys) > self.page_keys

    def hang(self, seconds: float) -> None:
        """Sleeps, at most until the server ends."""
        self._released.wait(seconds)


class _Server(ThreadingHTTPServer):
    request_queue_size = 128
    """Long enough for a client with many connections: a full queue would look like a slow store."""

    def server_close(self) -> None:
        """Without waiting for the threads of connections that are kept alive."""
        self.socket.close()


def _handler_for(server: HostileS3) -> type[BaseHTTPRequestHandler]:
    class Handler(_Handler):
        hostile = server

    return Handler


class _Handler(BaseHTTPRequestHandler):
    hostile: HostileS3
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are recorded in a list instead."""

    def handle(self) -> None:
        self.hostile.connected(self.connection)
        with contextlib.suppress(OSError):  # resets, also by clients that abort
            super().handle()
        self.hostile.disconnected(self.connection)

    def finish(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            super().finish()

    def do_GET(self) -> None:
        self._serve()

    def do_HEAD(self) -> None:
        self._serve()

    def do_PUT(self) -> None:
        self._serve()

    def do_DELETE(self) -> None:
        self._serve()

    def _serve(self) -> None:
        request = self._parse()
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.hostile.log(request)
        if isinstance(fault, Hang) and fault.body_bytes is None:
            self.hostile.hang(fault.seconds)
            self.close_connection = True
            return
        if isinstance(fault, Garbage):
            self.close_connection = True
            os.write(self.connection.fileno(), random.Random(1).randbytes(fault.count_bytes))
        elif isinstance(fault, Status):
            self._error(fault)
        elif not self.path.lstrip("/").startswith(self.hostile.bucket):
            self._error(Status(404, "NoSuchBucket"))
        elif request.kind == "LIST":
            self._list(request)
        elif request.kind == "PUT":
            self._put(request, body, fault)
        elif request.kind == "DELETE":
            self.hostile.delete(request.key)
            self._answer(204, b"")
        else:
            self._object(request, fault)

    def _put(self, request: Request, body: bytes, fault: Fault | None) -> None:
        etag = self.hostile.put_if(
            request.key, body, request.headers.get("if-match"), request.headers.get("if-none-match") == "*"
        )
        if etag is None:
            self._error(Status(412, "PreconditionFailed"))
        else:
            self._body(200, b"", {"ETag": f'"{etag}"'}, fault)

    def _parse(self) -> Request:
        parts = urlsplit(self.path)
        _, _, key = parts.path.lstrip("/").partition("/")
        query = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        kind = self.command if key else ("LIST" if self.command == "GET" else f"{self.command} BUCKET")
        headers = {name.lower(): value for name, value in self.headers.items()}
        return Request(self.command, kind, unquote(key), query, headers)

    def _answer(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _error(self, fault: Status) -> None:
        xml = (
            '<?xml version="1.0" encoding="UTF-8"?>'
            f"<Error><Code>{fault.code}</Code><Message>{escape(fault.message)}</Message>"
            "<RequestId>0</RequestId></Error>"
        )
        headers = {"Content-Type": "application/xml"}
        if fault.retry_after_s is not None:
            headers["Retry-After"] = str(fault.retry_after_s)
        self._answer(fault.status, xml.encode() if fault.xml else b"", headers)

    def _list(self, request: Request) -> None:
        prefix = request.query.get("prefix", "")
        after = unquote(request.query.get("continuation-token", request.query.get("start-after", "")))
        rows, more = self.hostile.page(prefix, after)
        encoded = request.query.get("encoding-type") == "url"
        encode = partial(quote_plus, safe="/") if encoded else escape
        contents = "".join(
            f"<Contents><Key>{encode(key)}</Key><LastModified>2026-01-02T03:04:05.000Z</LastModified>"
            f"<ETag>&quot;{etag}&quot;</ETag><Size>{size}</Size><StorageClass>STANDARD</StorageClass></Contents>"
            for key, size, etag in rows
        )
        token = f"<NextContinuationToken>{quote(rows[-1][0], safe='')}</NextContinuationToken>" if more else ""
        encoding = "<EncodingType>url</EncodingType>" if encoded else ""
        xml = (
            '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult '
            'xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<Name>{self.hostile.bucket}</Name><Prefix>{encode(prefix)}</Prefix><KeyCount>{len(rows)}</KeyCount>"
            f"<MaxKeys>1000</MaxKeys>{encoding}<IsTruncated>{str(more).lower()}</IsTruncated>{token}{contents}"
            "</ListBucketResult>"
        )
        self._answer(200, xml.encode(), {"Content-Type": "application/xml"})

    def _object(self, request: Request, fault: Fault | None) -> None:
        content = self.hostile.content(request.key)
        if content is None:
            return self._error(Status(404, "NoSuchKey"))
        etag = f'"{self.hostile.odd_etags.get(request.key) or _etag(content)}"'
        wanted = request.headers.get("if-match")
        if wanted not in (None, "*", etag) and not isinstance(fault, IgnoreIfMatch):
            return self._error(Status(412, "PreconditionFailed"))
        base = {"ETag": etag, "Last-Modified": "Fri, 02 Jan 2026 03:04:05 GMT", "Accept-Ranges": "bytes"}
        base |= self.hostile.object_headers.get(request.key, {})
        span = _range(request.headers.get("range"), len(content))
        if span is None or isinstance(fault, IgnoreRange):
            return self._body(200, content, base, fault)
        if span[0] >= len(content):
            return self._error(Status(416, "InvalidRange"))
        start, stop, declared = _spoiled(span, fault)
        base["Content-Range"] = f"bytes {declared[0]}-{declared[1] - 1}/{len(content)}"
        self._body(206, content[start:stop], base, fault)

    def _body(self, status: int, body: bytes, headers: dict[str, str], fault: Fault | None) -> None:
        if isinstance(fault, FlipBits):
            at = fault.offset % len(body)
            body = body[:at] + bytes([body[at] ^ 0x10]) + body[at + 1 :]
        if isinstance(fault, Slow | WrongLength):
            return self._drip(status, body, headers, fault)
        cut = getattr(fault, "body_bytes", None)
        if cut is None:
            return self._answer(status, body, headers)
        if isinstance(fault, LoseAnswer):
            return self._reset()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:cut])
        self.wfile.flush()
        self.close_connection = True
        if isinstance(fault, Hang):
            self.hostile.hang(fault.seconds)
        elif isinstance(fault, ReplaceAfter):
            self.hostile.put(self._parse().key, fault.content)
        if isinstance(fault, ResetAfter | ReplaceAfter):
            # Time for the client to read the bytes: a reset discards those that it has not read yet.
            time.sleep(0.05)
            self._reset()

    def _drip(self, status: int, body: bytes, headers: dict[str, str], fault: Slow | WrongLength) -> None:
        more = fault.difference_bytes if isinstance(fault, WrongLength) else 0
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body) + more)}).items():
            self.send_header(name, value)
        self.end_headers()
        if isinstance(fault, WrongLength):
            self.wfile.write(body)
            self.close_connection = True
            return
        for start in range(0, len(body), fault.piece_bytes):
            self.wfile.flush()
            self.hostile.hang(fault.pause_s)
            self.wfile.write(body[start : start + fault.piece_bytes])

    def _reset(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()


def _range(header: str | None, size_bytes: int) -> tuple[int, int] | None:
    """(start, stop) of a Range header; None if there is none."""
    if header is None:
        return None
    first, _, last = header.removeprefix("bytes=").partition("-")
    if not first:
        return max(0, size_bytes - int(last)), size_bytes
    return int(first), min(int(last) + 1, size_bytes) if last else size_bytes


def _spoiled(span: tuple[int, int], fault: Fault | None) -> tuple[int, int, tuple[int, int]]:
    """Start and stop of the sent bytes, and the range for Content-Range."""
    start, stop = span
    if isinstance(fault, ShortRange):
        stop -= fault.missing_bytes
        return start, stop, (start, stop)
    if isinstance(fault, TooMany):
        longer = stop + fault.extra_bytes
        return start, longer, (start, longer) if fault.honest else span
    if isinstance(fault, WrongRange):
        moved = (start + fault.shift_bytes, stop + fault.shift_bytes)
        return *moved, moved if fault.honest else span
    return start, stop, span


def closed_port() -> int:
    """A loopback port where nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
