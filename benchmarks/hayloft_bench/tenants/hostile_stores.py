"""The attacker's stores: one S3 server on loopback whose buckets misbehave, each in its own way."""

from __future__ import annotations

import functools
import threading
import time
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from hayloft_bench.tenants.occurrences import Occurrences

PAGE_KEYS = 1000
DEEP_KEYS, DEEP_PARTS = 20, 480
"""A key of S3 has up to 1,024 bytes, so 480 parts of one letter fit."""
BOMB_BYTES = 1_200_000_000
"""After decompression: a megabyte before."""
SLOW_BYTE_S = 0.5
"""Between two bytes of a listing: no time-out between bytes sees it."""
HANGING_OBJECTS = 40
"""Half of them small, half of them large: requests of both kinds hang."""
OPEN_BYTES = 5 << 20
"""More than what is fetched when a file is opened: it stays open with nothing fetched."""

_ETAG = "00000000000000000000000000000000-2"
_HEAD = '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'


class HostileStores:
    """Serves until the process ends. ``released`` ends the requests that hang, for tests."""

    def __init__(self, manifest_keys: int) -> None:
        """``manifest_keys``: objects in the bucket ``large``."""
        self._manifest_keys = manifest_keys
        self.released = threading.Event()
        self.requests = Occurrences()
        self._server = _Server(("127.0.0.1", 0), functools.partial(_Handler, self))
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()

    def listing(self, bucket: str, token: str) -> bytes:
        """A page of ListObjectsV2; the token is the number of the first key. Raises KeyError."""
        start = int(token or "0")
        if bucket == "endless":
            return page([f"k/{number:012d}" for number in range(start, start + PAGE_KEYS)], 1, start + PAGE_KEYS)
        if bucket == "deep":
            return page([f"{'a/' * DEEP_PARTS}{number:02d}" for number in range(DEEP_KEYS)], 1)
        if bucket == "large":
            stop = min(start + PAGE_KEYS, self._manifest_keys)
            keys = [f"directory-{number // 1000:06d}/file-{number:09d}.bin" for number in range(start, stop)]
            return page(keys, 1, stop if stop < self._manifest_keys else None)
        if bucket == "open":
            return page([f"{number:04d}.bin" for number in range(1000)], OPEN_BYTES)
        return {"hanging": hanging_page, "slow": hanging_page}[bucket.partition("-")[0]]()


def page(keys: list[str], size_bytes: int | list[int], following: int | None = None) -> bytes:
    """The XML of one page; ``following`` is the token of the next one."""
    sizes_bytes = [size_bytes] * len(keys) if isinstance(size_bytes, int) else size_bytes
    entries = [
        f"<Contents><Key>{key}</Key><LastModified>2026-01-02T03:04:05.000Z</LastModified>"
        f"<ETag>&quot;{_ETAG}&quot;</ETag><Size>{size}</Size></Contents>"
        for key, size in zip(keys, sizes_bytes, strict=True)
    ]
    more = "false" if following is None else "true"
    token = "" if following is None else f"<NextContinuationToken>{following}</NextContinuationToken>"
    return f"{_HEAD}<IsTruncated>{more}</IsTruncated>{token}{''.join(entries)}</ListBucketResult>".encode()


@functools.cache
def hanging_page() -> bytes:
    half = HANGING_OBJECTS // 2
    return page([f"{number:03d}.bin" for number in range(HANGING_OBJECTS)], [64 << 10] * half + [OPEN_BYTES] * half)


@functools.cache
def bomb() -> bytes:
    """A listing in gzip, followed by blanks. All blocks of blanks are compressed alike, after a full flush."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, 31)
    blanks = b" " * (16 << 20)
    compressed = compressor.compress(page(["a"], 1)) + compressor.flush(zlib.Z_FULL_FLUSH)
    block = compressor.compress(blanks) + compressor.flush(zlib.Z_FULL_FLUSH)
    # Without the end of the stream: who reads that far has decompressed everything.
    return compressed + block * (BOMB_BYTES // len(blanks))


class _Server(ThreadingHTTPServer):
    request_queue_size = 512
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Prints nothing: the driver closes connections as it likes."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "hostile"

    def __init__(self, stores: HostileStores, *arguments: object) -> None:
        self._stores = stores
        super().__init__(*arguments)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        self._stores.requests.add()
        url = urlsplit(self.path)
        bucket, _, key = url.path.strip("/").partition("/")
        try:
            if key:
                self._object(bucket)
            else:
                self._listing(bucket, parse_qs(url.query))
        except OSError:  # the driver has closed the connection
            self.close_connection = True

    do_HEAD = do_GET

    def _listing(self, bucket: str, query: dict[str, list[str]]) -> None:
        if bucket == "bomb":
            self._answer(bomb(), ("Content-Encoding", "gzip"))
            return
        body = self._stores.listing(bucket, query.get("continuation-token", [""])[0])
        self._answer(_slowly(body) if bucket == "slow" else body)

    def _object(self, bucket: str) -> None:
        if bucket.startswith("hanging"):
            self._stores.released.wait()
            self.close_connection = True
            return
        wanted = self.headers.get("Range", f"bytes=0-{OPEN_BYTES - 1}").partition("=")[2]
        first, _, last = wanted.partition("-")
        start, stop = int(first), int(last or OPEN_BYTES - 1) + 1
        self._answer(b"\0" * (stop - start), ("Content-Range", f"bytes {start}-{stop - 1}/{OPEN_BYTES}"), status=206)

    def _answer(self, body: bytes | Iterator[bytes], *headers: tuple[str, str], status: int = 200) -> None:
        self.send_response(status)
        for name, value in (("Content-Type", "application/xml"), ("ETag", f'"{_ETAG}"'), *headers):
            self.send_header(name, value)
        if isinstance(body, bytes):
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)
            return
        self.close_connection = True
        self.end_headers()
        for piece in body:
            self.wfile.write(piece)

    def log_message(self, format: str, *args: object) -> None:
        """Requests are not logged."""


def _slowly(body: bytes) -> Iterator[bytes]:
    for byte in body:
        time.sleep(SLOW_BYTE_S)
        yield bytes((byte,))
