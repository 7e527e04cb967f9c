"""A small S3 server that misbehaves on demand: objects in memory, a script of faults, a log of requests.

    with HostileS3({"a": b"..."}) as server:
        server.fail_next(Status(503, "SlowDown"), ResetAfter(1000))

Each request that a fault applies to consumes one fault; without one it is answered as S3 would. It checks no
signature. Usable by every test that reads from a store; nothing here depends on Hayloft.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import os
import random
import re
import socket
import ssl
import struct
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime
from functools import lru_cache, partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, quote, quote_plus, unquote, urlsplit
from xml.sax.saxutils import escape, unescape

Method = str


@dataclass(frozen=True, slots=True)
class Fault:
    """A wrong response. By default that to a GET of an object."""

    kinds: tuple[str, ...] = field(default=("GET",), kw_only=True)
    """Of "GET", "HEAD" (objects), "LIST", "PUT", "DELETE"."""

    ranges: bool | None = field(default=None, kw_only=True)
    """Applies to requests with a Range alone, or (False) to those without one."""

    def applies_to(self, request: Request) -> bool:
        return request.kind in self.kinds and self.ranges in (None, "range" in request.headers)


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
class Compress(Fault):
    """The complete object, compressed on the fly although that was not requested: 200, no length, no range."""

    lossy: bool = False
    """The header alone: the body is no gzip."""


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
    """This many bytes, then the object is replaced and the connection reset: a change during a read. A shorter answer
    is sent as it is, and nothing is replaced."""

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
class EmptyBody(Fault):
    """The right status and headers, but no byte: a Content-Length of 0."""


@dataclass(frozen=True, slots=True)
class EndlessHead(Fault):
    """Header after header, each in time, until the client leaves."""

    pause_s: float = 0.05


@dataclass(frozen=True, slots=True)
class Chunked(Fault):
    """The right response without a Content-Length, in chunks."""


@dataclass(frozen=True, slots=True)
class OkForRange(Fault):
    """The right bytes of a range and their Content-Range, with status 200; ``extra_bytes`` behind them."""

    extra_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Redirect(Fault):
    """To another server."""

    location: str
    status: int = 307
    code: str = "TemporaryRedirect"


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


_MODIFIED_S = 1_767_323_045


@lru_cache(maxsize=16)  # of large contents, which are those of many tests and requests: 50 ms each time
def _etag(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


class HostileS3:
    """The server; path style, one bucket (any other gives NoSuchBucket)."""

    handler: type[BaseHTTPRequestHandler]
    """How it speaks; other services derive theirs (``hostile_clouds.py``)."""
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
        self.lists_by_directory = False
        """As SeaweedFS: with start-after, keys below the directory of that name are left out."""
        self.conditional_puts = "honoured"
        """Or "refused" (501), "ignored", "if-match-ignored"."""
        self.odd_entries = ""
        """XML that is added to each page of a listing."""
        self.storage_classes: dict[str, str] = {}
        """Of objects that are not STANDARD, by key."""
        self.etag_forms: dict[str, str] = {}
        """"weak" or "none", by kind of request ("LIST", "HEAD", "GET"); strong for the others."""
        self.matches_weak = True
        """Whether If-Match with the strong form of an ETag that is sent as a weak one finds the object: the origin
        behind a proxy compares with its own."""
        self.modified_s: dict[str, int] = {}
        """Modification times by key, if not the usual one."""
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
        return self.version(key, content)

    def version(self, key: str, content: bytes) -> str:
        """The ETag of that content."""
        return self.odd_etags.get(key) or _etag(content)

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
        return self.version(key, self._objects[key])

    def sent_etag(self, kind: str, etag: str) -> str | None:
        """As the header or the element of an answer to this kind of request."""
        form = self.etag_forms.get(kind, "strong")
        return None if form == "none" else f'W/"{etag}"' if form == "weak" else f'"{etag}"'

    def modified(self, key: str) -> datetime:
        return datetime.fromtimestamp(self.modified_s.get(key, _MODIFIED_S), UTC)

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

    def __enter__(self) -> Self:
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
                if fault.applies_to(request):
                    return self._faults.pop(index)
            standing = self._standing
        return standing if standing is not None and standing.applies_to(request) else None

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
    class Handler(server.handler):  # type: ignore[misc, name-defined]
        hostile = server

    return Handler


class S3Handler(BaseHTTPRequestHandler):
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

    def do_POST(self) -> None:
        """DeleteObjects, by which obstore deletes one object too."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        keys = re.findall("<Key>([^<]*)</Key>", body)
        for key in keys:
            self.hostile.delete(unescape(key))
        deleted = "".join(f"<Deleted><Key>{key}</Key></Deleted>" for key in keys)
        self._answer(200, f"<DeleteResult>{deleted}</DeleteResult>".encode(), {"Content-Type": "application/xml"})

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
        elif isinstance(fault, EndlessHead):
            self._endless_head(fault)
        elif isinstance(fault, Redirect):
            self._error(Status(fault.status, fault.code), {"Location": fault.location})
        elif not self._names_bucket():
            self._error(Status(404, "NoSuchBucket"))
        elif request.kind == "LIST":
            self._list(request, fault)
        elif request.kind == "PUT":
            self._put(request, body, fault)
        elif request.kind == "DELETE":
            self.hostile.delete(request.key)
            self._answer(204, b"")
        else:
            self._object(request, fault)

    def _names_bucket(self) -> bool:
        return self.path.lstrip("/").startswith(self.hostile.bucket)

    def _endless_head(self, fault: EndlessHead) -> None:
        self.close_connection = True
        self.wfile.write(b"HTTP/1.1 200 OK\r\n")
        for number in range(1000):
            self.wfile.write(b"X-%d: x\r\n" % number)
            self.wfile.flush()
            self.hostile.hang(fault.pause_s)

    def _put(self, request: Request, body: bytes, fault: Fault | None) -> None:
        if_match, if_none = request.headers.get("if-match"), request.headers.get("if-none-match") == "*"
        how = self.hostile.conditional_puts
        if how == "refused" and (if_match or if_none):
            return self._error(Status(501, "NotImplemented"))
        if_match, if_none = None if how.endswith("ignored") else if_match, if_none and how != "ignored"
        etag = self.hostile.put_if(request.key, body, if_match, if_none)
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

    def _error(self, fault: Status, more_headers: Mapping[str, str] | None = None) -> None:
        xml = (
            '<?xml version="1.0" encoding="UTF-8"?>'
            f"<Error><Code>{fault.code}</Code><Message>{escape(fault.message)}</Message>"
            "<RequestId>0</RequestId></Error>"
        )
        headers = {"Content-Type": "application/xml", **(more_headers or {})}
        if fault.retry_after_s is not None:
            headers["Retry-After"] = str(fault.retry_after_s)
        self._answer(fault.status, xml.encode() if fault.xml else b"", headers)

    def _list(self, request: Request, fault: Fault | None) -> None:
        prefix = request.query.get("prefix", "")
        after = unquote(request.query.get("continuation-token", request.query.get("start-after", "")))
        rows, more = self.hostile.page(prefix, after)
        last = rows[-1][0] if rows else ""
        if "start-after" in request.query and self.hostile.lists_by_directory:
            rows = [row for row in rows if not row[0].startswith(f"{after}/")]
        encoded = request.query.get("encoding-type") == "url"
        encode = partial(quote_plus, safe="/") if encoded else escape
        contents = "".join(
            f"<Contents><Key>{encode(key)}</Key>"
            f"<LastModified>{self.hostile.modified(key):%Y-%m-%dT%H:%M:%S.000Z}</LastModified>"
            f"{self._etag_element(etag)}<Size>{size}</Size>"
            f"<StorageClass>{self.hostile.storage_classes.get(key, 'STANDARD')}</StorageClass></Contents>"
            for key, size, etag in rows
        )
        contents += self.hostile.odd_entries
        token = f"<NextContinuationToken>{quote(last, safe='')}</NextContinuationToken>" if more else ""
        encoding = "<EncodingType>url</EncodingType>" if encoded else ""
        xml = (
            '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult '
            'xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<Name>{self.hostile.bucket}</Name><Prefix>{encode(prefix)}</Prefix><KeyCount>{len(rows)}</KeyCount>"
            f"<MaxKeys>1000</MaxKeys>{encoding}<IsTruncated>{str(more).lower()}</IsTruncated>{token}{contents}"
            "</ListBucketResult>"
        )
        self._body(200, xml.encode(), {"Content-Type": "application/xml"}, fault)

    def _etag_element(self, etag: str) -> str:
        sent = self.hostile.sent_etag("LIST", etag)
        return "" if sent is None else "<ETag>" + escape(sent, {'"': "&quot;"}) + "</ETag>"

    def _object(self, request: Request, fault: Fault | None) -> None:
        content = self.hostile.content(request.key)
        if content is None:
            return self._error(Status(404, "NoSuchKey"))
        if request.kind == "GET" and self.hostile.storage_classes.get(request.key) in ("GLACIER", "DEEP_ARCHIVE"):
            return self._error(Status(403, "InvalidObjectState", "The operation is not valid for the storage class"))
        etag = f'"{self.hostile.version(request.key, content)}"'
        wanted = request.headers.get("if-match")
        sent = self.hostile.sent_etag(request.kind, etag.strip('"'))
        matching = etag if self.hostile.matches_weak else sent
        if wanted not in (None, "*", matching) and not isinstance(fault, IgnoreIfMatch):
            return self._error(Status(412, "PreconditionFailed"))
        base = {"Last-Modified": format_datetime(self.hostile.modified(request.key), usegmt=True)}
        base |= {"Accept-Ranges": "bytes"} | ({} if sent is None else {"ETag": sent})
        base |= self.hostile.object_headers.get(request.key, {}) | self._further_headers(request.key, content)
        if isinstance(fault, Compress):
            return self._compressed(content, base, fault)
        span = _range(request.headers.get("range"), len(content))
        if span is None or isinstance(fault, IgnoreRange):
            return self._body(200, content, base, fault)
        if span[0] >= len(content):
            return self._error(Status(416, "InvalidRange"))
        start, stop, declared = _spoiled(span, fault)
        base["Content-Range"] = f"bytes {declared[0]}-{declared[1] - 1}/{len(content)}"
        self._body(200 if isinstance(fault, OkForRange) else 206, content[start:stop], base, fault)

    def _compressed(self, content: bytes, headers: dict[str, str], fault: Compress) -> None:
        body = b"no gzip" if fault.lossy else gzip.compress(content)
        self.send_response(200)
        for name, value in {**headers, "Content-Encoding": "gzip", "Transfer-Encoding": "chunked"}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))

    def _further_headers(self, key: str, content: bytes) -> dict[str, str]:
        """What other services send with an object."""
        return {}

    def _body(self, status: int, body: bytes, headers: dict[str, str], fault: Fault | None) -> None:
        body = _spoiled_body(body, fault)
        if isinstance(fault, Slow | WrongLength):
            return self._drip(status, body, headers, fault)
        if isinstance(fault, Chunked):
            return self._chunked(status, body, headers)
        cut = getattr(fault, "body_bytes", None)
        if cut is None or (isinstance(fault, ReplaceAfter) and len(body) <= cut):
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

    def _chunked(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in (headers | {"Transfer-Encoding": "chunked"}).items():
            self.send_header(name, value)
        self.end_headers()
        for start in range(0, len(body), 10_000):
            piece = body[start : start + 10_000]
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        self.wfile.write(b"0\r\n\r\n")

    def _reset(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()


HostileS3.handler = S3Handler


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
    if isinstance(fault, OkForRange):
        return start, stop + fault.extra_bytes, span
    if isinstance(fault, TooMany):
        longer = stop + fault.extra_bytes
        return start, longer, (start, longer) if fault.honest else span
    if isinstance(fault, WrongRange):
        moved = (start + fault.shift_bytes, stop + fault.shift_bytes)
        return *moved, moved if fault.honest else span
    return start, stop, span


def _spoiled_body(body: bytes, fault: Fault | None) -> bytes:
    if isinstance(fault, EmptyBody):
        return b""
    if not isinstance(fault, FlipBits):
        return body
    at = fault.offset % len(body)
    return body[:at] + bytes([body[at] ^ 0x10]) + body[at + 1 :]


def closed_port() -> int:
    """A loopback port where nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
