"""A store whose answers are distorted at random: status, headers, lengths, bodies, timing, pagination.

The bytes of objects are honest wherever the headers say that they are those of the object: other bytes of the right
length under the right ETag are for checksums (docs/semantics.md, Integrity). A ``Dialect`` says how one kind of store
writes its answers; all that is distorted is the same for every kind.
"""

from __future__ import annotations

import contextlib
import hashlib
import socket
import struct
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, Self
from urllib.parse import parse_qs, unquote, urlsplit

from hypothesis import strategies as st

PAGE_KEYS = 3


@dataclass(frozen=True, slots=True)
class Asked:
    """A request. ``path`` is not unquoted; names of ``headers`` are in lower case."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes = b""


class Dialect(Protocol):
    """How one kind of store writes its answers."""

    def listing(self, asked: Asked) -> tuple[str, str] | None:
        """Prefix and continuation token, which may be empty, of a request for a page; None: it is for an object."""

    def page(self, rows: Sequence[tuple[str, bytes]], next_token: str | None) -> Answer:
        """A page of keys and contents."""

    def key(self, asked: Asked) -> str:
        """The object that is requested."""

    def object_headers(self, content: bytes) -> dict[str, str]:
        """ETag, Last-Modified and what else describes an object."""

    def description(self, asked: Asked, key: str, content: bytes) -> Answer | None:
        """What a service answers that describes objects apart from their bytes; None: the bytes are requested."""

    def error(self, status: int, code: str) -> Answer:
        """An error answer."""


@dataclass(frozen=True, slots=True)
class Distortion:
    """What happens to one answer. The defaults change nothing."""

    other: Answer | None = None
    """An answer that has nothing to do with the request."""
    error: tuple[int, str, tuple[str, str] | None] | None = None
    """Status and code of an error in the store's own form, and a further header."""
    page: str = ""
    """Of a listing: "same token", "no keys", "first page", "last key again"."""
    status: int | None = None
    version: str = "HTTP/1.1"
    headers: tuple[tuple[str, str | None], ...] = ()
    """Set, or with None left out."""
    twice: tuple[tuple[str, str], ...] = ()
    """Added, whether they are there or not."""
    framing: str = "length"
    """"length", "chunked", "close" (nothing but the end of the connection), "bad chunks"."""
    length_error: int = 0
    kept: float = 1.0
    """The part of the body that is sent. A client that always gets a hundredth asks a thousand times, each time with
    progress; a fifth takes 50 requests."""
    extra: bytes = b""
    """Sent behind the complete body."""
    before: bytes = b""
    """Sent before the head."""
    pause: tuple[str, float] = ("", 0.0)
    """Of so many seconds, before the "head" or in the middle of the "body"."""
    drip: str = ""
    """The "head" byte by byte and without an end, or the first ``DRIPPED`` of the "body", which has one."""
    end: str = "keep"
    """"keep", "close", "reset", "silence"."""


DRIPPED = 40
_SILENCE_S = 60.0

_STATUSES = st.sampled_from(
    [
        *(100, 101, 103, 200, 201, 203, 204, 205, 206, 207, 226, 300, 301, 302, 303, 304, 307, 308, 400, 401, 403, 404),
        *(405, 408, 409, 410, 412, 416, 418, 421, 423, 425, 429, 451, 470, 499, 500, 501, 502, 503, 504, 505, 507, 508),
        *(511, 520, 529, 561, 599, 600, 777, 999),
    ]
)
_CODES = st.sampled_from(
    [
        *("", "<Code>", "x" * 64, "x" * 65, "é", "%s{}"),
        *("SlowDown", "AccessDenied", "NoSuchKey", "NoSuchBucket", "InternalError", "NotImplemented", "ExpiredToken"),
        *("KMS.ThrottlingException", "KMS.DisabledException", "InvalidAccessKeyId", "InvalidObjectState"),
        *("AuthorizationHeaderMalformed", "PermanentRedirect", "RequestTimeout"),
    ]
)
_NUMBERS = ("", "0", "-1", "+1", "1", "5, 5", "1_0", "9" * 25, "9" * 5000, "0x10", "1e3", "\xb2", "NaN", "120", "0.5")
_DATES = ("Fri, 02 Jan 2026 03:04:05 GMT", "Fri, 02 Jan 99999999999 03:04:05 GMT", "yesterday", "2026-01-02", "0")
_ANYTHING = ("", " ", '"', "x" * 20_000, "\x01", "\x00", "a\tb", "\xb2", "0", "-1", "::")
_HEADERS: dict[str, tuple[str, ...]] = {
    "Content-Length": _NUMBERS,
    "Content-Range": (
        *("bytes 0-0/1", "bytes */5", "bytes 5-1/9", "bytes 0-", f"bytes {'9' * 5000}-1/1", "items 0-1/2"),
        *("bytes 0-59999/60000", "bytes 0-59999/*", "bytes 0-59999/1", "bytes 1-60000/60001", "bytes 0-\xb2/3"),
    ),
    "ETag": ('W/"x"', '""', '"x', "x", "*", '"a", "b"'),
    "Last-Modified": _DATES,
    "Transfer-Encoding": ("chunked", "chunked, chunked", "identity", "gzip", "gzip, chunked", "x"),
    "Content-Encoding": ("gzip", "deflate", "br", "identity", "aws-chunked", "gzip, gzip"),
    "Retry-After": (*_NUMBERS, *_DATES),
    "Location": ("http://127.0.0.1:9/x", "//h/x", "/x", "::", "http://[::1", "http://u:p@h:99999/", "http://h:x/"),
    "Connection": ("close", "keep-alive", "upgrade", "close, close", "Retry-After"),
    "x-amz-checksum-crc32c": ("AAAAAA==", "A", "AAAAAA==-3", "\xb2"),
    "x-amz-checksum-type": ("FULL_OBJECT", "COMPOSITE", "x"),
    "x-goog-hash": ("crc32c=", "crc32c=AAAAAA==", "md5", ",,=,"),
    "Content-Type": ("multipart/byteranges; boundary=x", "text/html; charset=nonsense"),
    "X-Odd": ("a: b", "\t"),
}
"""Values that are odd for the header, beside those that are odd for every one."""
_PAIRS = st.sampled_from(sorted(_HEADERS)).flatmap(
    lambda name: st.tuples(st.just(name), st.sampled_from([*_HEADERS[name], *_ANYTHING]))
)
_BODIES = st.sampled_from(
    [
        *(b"", b"x", b"<", b"<html>not found</html>", b"{}", b"[]", b"null", b'{"items": 1}'),
        *(b"\xff\xfe\x00", b"\x1f\x8b", b"<a>" * 50_000, b"<ListBucketResult>" * 2000),
        *(b"<ListBucketResult/>", b"<EnumerationResults/>"),
        b"<?xml version='1.0' encoding='nonsense'?><ListBucketResult/>",
        b"<?xml version='1.0' encoding='utf-16'?><ListBucketResult/>",
        b"<!DOCTYPE x [<!ENTITY a 'aaaa'><!ENTITY b '&a;&a;'>]><ListBucketResult>&b;</ListBucketResult>",
        *(
            b"<ListBucketResult><Contents><Key>%b</Key><Size>%b</Size><LastModified>%b</LastModified><ETag>%b</ETag>"
            b"</Contents><IsTruncated>false</IsTruncated></ListBucketResult>" % values
            for values in (
                (b"data/a", b"1", b"2026-01-02T03:04:05Z", b"e"),
                (b"data/a", b"9" * 5000, b"2026-01-02T03:04:05Z", b"e"),
                (b"data/a", b"-1", b"2026-01-02T03:04:05Z", b"e"),
                (b"data/a", b"1", b"99999999999-01-02T03:04:05Z", b"e"),
                (b"data/a", b"1", b"2500-01-02T03:04:05Z", b"e"),
                (b"data/a", b"1", b"0001-13-99T99:99:99Z", b"e"),
                (b"data/a", b"1", b"", b""),
                (b"elsewhere", b"1", b"2026-01-02T03:04:05Z", b"e"),
                (b"data/%FF%00", b"1", b"2026-01-02T03:04:05.123456789123Z", b"&quot;"),
            )
        ),
    ]
)
_OTHERS = st.builds(
    Answer,
    _STATUSES,
    st.lists(_PAIRS.filter(lambda pair: pair[0] not in ("ETag", "Content-Range")), max_size=3).map(dict),
    _BODIES | st.binary(max_size=200),
)
_PAUSES = st.tuples(st.sampled_from(["head", "body"]), st.sampled_from([0.01, 0.05, 3.0]))
_CHANGES: dict[str, st.SearchStrategy[object]] = {
    "other": _OTHERS,
    "error": st.tuples(_STATUSES.filter(lambda status: status >= 300), _CODES, st.none() | _PAIRS),
    "page": st.sampled_from(["same token", "no keys", "first page", "last key again"]),
    "status": _STATUSES,
    "version": st.sampled_from(["HTTP/1.0", "HTTP/1.1", "HTTP/2", "HTTP/3.0", "ICY", "http/1.1", "", "HTTP/1.1 "]),
    "headers": st.lists(_PAIRS | st.tuples(st.sampled_from(sorted(_HEADERS)), st.none()), min_size=1, max_size=2).map(
        tuple
    ),
    "twice": st.lists(_PAIRS, min_size=1, max_size=2).map(tuple),
    "framing": st.sampled_from(["chunked", "close", "bad chunks"]),
    "length_error": st.sampled_from([-1, 1, -1000, 1000, 1 << 40, -(1 << 40)]),
    "kept": st.sampled_from([0.0, 0.2, 0.5, 0.99]),
    "extra": st.sampled_from([b"x", b"\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b"0" * 5000]),
    "before": st.sampled_from([b"\r\n", b"\x15\x03\x01\x00\x02", b"HTTP/1.1 100 Continue\r\n\r\n" * 3, b"\x00" * 10]),
    "pause": _PAUSES,
    "drip": st.sampled_from(["head", "body"]),
    "end": st.sampled_from(["close", "reset", "silence"]),
}


def distortions() -> st.SearchStrategy[Distortion]:
    """Mostly with one change, which is what gets past the first check of a client; at the most with three."""

    def with_changes(names: list[str]) -> st.SearchStrategy[Distortion]:
        # Sorted: for equal arguments in another order hypothesis takes an earlier strategy, which draws in its order.
        return st.builds(Distortion, **{name: _CHANGES[name] for name in sorted(names)})

    return st.lists(st.sampled_from(sorted(_CHANGES)), unique=True, min_size=1, max_size=3).flatmap(with_changes)


@dataclass(slots=True)
class Script:
    """What happens to the next answers; ``standing`` to all after them."""

    following: list[Distortion] = field(default_factory=list)
    standing: Distortion | None = None

    @property
    def lists_otherwise(self) -> bool:
        """Whether a page of a listing may hold other keys than those of the objects, or none."""
        drawn = [*self.following, *filter(None, [self.standing])]
        return any(one.other is not None or one.page for one in drawn)

    def next(self) -> Distortion:
        if self.following:
            return self.following.pop(0)
        return self.standing or Distortion()


def scripts() -> st.SearchStrategy[Script]:
    return st.builds(Script, st.lists(distortions(), min_size=1, max_size=5), st.none() | distortions())


class RandomAnswers:
    """The server. ``script`` is replaced by tests; answers are counted in ``answers``."""

    def __init__(self, dialect: Dialect, objects: Mapping[str, bytes]) -> None:
        self.dialect, self.objects = dialect, dict(objects)
        self.script = Script()
        self.answers = 0
        self._lock = threading.Lock()  # guards script, answers and _connections
        self._connections: set[socket.socket] = set()
        self._leaving = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, name="random-answers", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._leaving.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.disconnect()

    def play(self, script: Script) -> None:
        """From the next answer on. Answers that are being sent are ended: the next client finds a server at rest."""
        with self._lock:
            self.script = script
        self.disconnect()

    def disconnect(self) -> None:
        with self._lock:
            connections, self._connections = self._connections, set()
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while not self._leaving.is_set():
                connection, _ = self._listener.accept()
                with self._lock:
                    self._connections.add(connection)
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError, ValueError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            received = b""
            while True:
                while b"\r\n\r\n" not in received:
                    more = connection.recv(1 << 16)
                    if not more:
                        return
                    received += more
                head, _, received = received.partition(b"\r\n\r\n")
                with self._lock:
                    distortion = self.script.next()
                    self.answers += 1
                if not self._answer(connection, _parsed(head), distortion):
                    return

    # -- answers ------------------------------------------------------------------------------------------------------

    def _answer(self, connection: socket.socket, asked: Asked, distortion: Distortion) -> bool:
        """Whether the connection is kept."""
        head, body = _as_bytes(self._right_answer(asked, distortion), distortion, asked.method)
        where, pause_s = distortion.pause
        if where == "head":
            _wait(connection, pause_s)
        for part, data in (("head", head), ("body", body)):
            if distortion.drip == part == "head":
                _drip(connection, data.removesuffix(b"\r\n") + b"X-More: x\r\n" * 10_000)
                return False
            if distortion.drip == part:
                _drip(connection, data[:DRIPPED])
                data = data[DRIPPED:]
            middle = len(data) // 2 if where == part == "body" else len(data)
            connection.sendall(data[:middle])
            if middle < len(data):
                _wait(connection, pause_s)
                connection.sendall(data[middle:])
        if distortion.end == "silence":
            _wait(connection, _SILENCE_S)
        elif distortion.end == "reset":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return distortion.end == "keep" and distortion.framing != "close"

    def _right_answer(self, asked: Asked, distortion: Distortion) -> Answer:
        if distortion.other is not None:
            return distortion.other
        if distortion.error is not None:
            status, code, more = distortion.error
            answer = self.dialect.error(status, code)
            return answer if more is None else replace(answer, headers={**answer.headers, more[0]: more[1]})
        found = self.dialect.listing(asked)
        if found is not None:
            return self._page(*found, distortion.page)
        key = self.dialect.key(asked)
        content = self.objects.get(key)
        if content is None:
            return self.dialect.error(404, "NoSuchKey")
        description = self.dialect.description(asked, key, content)
        if description is not None:
            return description
        headers = self.dialect.object_headers(content)
        if asked.headers.get("if-match", headers["ETag"]) != headers["ETag"]:
            return self.dialect.error(412, "PreconditionFailed")
        span = asked.headers.get("range") or asked.headers.get("x-ms-range")
        if span is None:
            return Answer(200, headers, content)
        first, _, last = span.removeprefix("bytes=").partition("-")
        start, stop = int(first), min(int(last) + 1, len(content))
        if start >= len(content):
            return self.dialect.error(416, "InvalidRange")
        return Answer(
            206, {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{len(content)}"}, content[start:stop]
        )

    def _page(self, prefix: str, token: str, fault: str) -> Answer:
        """Pages by last key: a token is the key in hexadecimal digits, and a number that makes it another one."""
        after = "" if fault == "first page" else bytes.fromhex(token.partition("-")[0]).decode()
        keys = sorted(key for key in self.objects if key.startswith(prefix) and key > after)
        shown = keys[:PAGE_KEYS]
        if fault == "last key again" and after:
            shown = [after]
        last = after if fault in ("same token", "no keys", "last key again") else (shown or [after])[-1]
        is_last = len(keys) <= PAGE_KEYS and not fault
        number = "" if fault == "same token" else f"-{self.answers}"
        rows = [] if fault == "no keys" else [(key, self.objects[key]) for key in shown]
        return self.dialect.page(rows, None if is_last else last.encode().hex() + number)


def _parsed(head: bytes) -> Asked:
    first, *lines = head.decode("latin-1").split("\r\n")
    method, target, _ = first.split(" ", 2)
    parts = urlsplit(target)
    query = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
    pairs = (line.partition(":") for line in lines)
    return Asked(method, parts.path, query, {name.lower(): value.strip() for name, _, value in pairs})


def _as_bytes(answer: Answer, distortion: Distortion, method: str) -> tuple[bytes, bytes]:
    if distortion.status is not None:
        answer = replace(answer, status=distortion.status)
    body = b"" if method == "HEAD" else answer.body
    sent = body + distortion.extra if distortion.kept == 1 else body[: int(len(body) * distortion.kept)]
    headers = dict(answer.headers)
    if distortion.framing == "length":
        headers.setdefault("Content-Length", str(len(answer.body) + distortion.length_error))
    elif distortion.framing != "close":
        headers["Transfer-Encoding"] = "chunked"
        sent = _chunks(sent, right=distortion.framing == "chunked")
    for name, value in distortion.headers:
        headers.pop(name, None)
        if value is not None:
            headers[name] = value
    lines = [f"{name}: {value}" for name, value in (*headers.items(), *distortion.twice)]
    head = "\r\n".join([f"{distortion.version} {answer.status} As Drawn", *lines, "", ""])
    return distortion.before + head.encode("latin-1"), sent


def _chunks(body: bytes, *, right: bool) -> bytes:
    pieces = [body[start : start + 7000] for start in range(0, len(body), 7000)]
    written = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    return written + (b"0\r\n\r\n" if right else b"zz\r\n")


def _wait(connection: socket.socket, seconds: float) -> None:
    """Until the client leaves, at the most so long."""
    connection.settimeout(seconds)
    with contextlib.suppress(TimeoutError):
        while connection.recv(1 << 16):
            pass
    connection.settimeout(None)


def _drip(connection: socket.socket, data: bytes) -> None:
    """Byte by byte, until the client leaves."""
    for position in range(len(data)):
        connection.sendall(data[position : position + 1])
        time.sleep(0.02)


# -- dialects ---------------------------------------------------------------------------------------------------------


class S3Dialect:
    """Path style, with keys that need no escapes."""

    def listing(self, asked: Asked) -> tuple[str, str] | None:
        if asked.path.strip("/").count("/"):
            return None
        return asked.query.get("prefix", ""), asked.query.get("continuation-token", "")

    def page(self, rows: Sequence[tuple[str, bytes]], next_token: str | None) -> Answer:
        contents = "".join(
            f"<Contents><Key>{key}</Key><LastModified>2026-01-02T03:04:05.000Z</LastModified>"
            f"<ETag>&quot;{etag(content)}&quot;</ETag><Size>{len(content)}</Size></Contents>"
            for key, content in rows
        )
        more = f"<NextContinuationToken>{next_token}</NextContinuationToken>" if next_token else ""
        text = (
            "<?xml version='1.0' encoding='UTF-8'?><ListBucketResult xmlns='http://s3.amazonaws.com/doc/2006-03-01/'>"
            f"<IsTruncated>{str(next_token is not None).lower()}</IsTruncated>{more}{contents}</ListBucketResult>"
        )
        return Answer(200, {"Content-Type": "application/xml"}, text.encode())

    def key(self, asked: Asked) -> str:
        return unquote(asked.path.strip("/").partition("/")[2])

    def object_headers(self, content: bytes) -> dict[str, str]:
        return {"ETag": f'"{etag(content)}"', "Last-Modified": "Fri, 02 Jan 2026 03:04:05 GMT"}

    def description(self, asked: Asked, key: str, content: bytes) -> Answer | None:
        return None

    def error(self, status: int, code: str) -> Answer:
        return Answer(status, {}, f"<Error><Code>{code}</Code><Message>kms:Decrypt</Message></Error>".encode())


def etag(content: bytes) -> str:
    """A number, so that it may be a generation."""
    return str(int(hashlib.md5(content, usedforsecurity=False).hexdigest()[:14], 16))
