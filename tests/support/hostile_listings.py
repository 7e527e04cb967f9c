"""An S3 server that a tenant might run: its listings are slow, endless, enormous or wrong; the bucket says which."""

from __future__ import annotations

import gzip
import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

GOOD, SILENT, HEADERS, DRIP, ENDLESS = "good", "silent", "headers", "drip", "endless"
EMPTY, REPEATING, SAME_KEYS, BOMB, LONG, DEEP = "empty", "repeating", "same-keys", "bomb", "long", "deep"

BOMB_BYTES = 512 << 20
_DRIP_S = 0.5


def _page(keys: Iterator[str] | list[str], token: str = "", padding: str = "") -> bytes:
    entries = "".join(
        f"<Contents><Key>{key}</Key><LastModified>2026-01-02T03:04:05.000Z</LastModified><ETag>&quot;{number}&quot;</ETag>"
        f"<Size>1</Size></Contents>"
        for number, key in enumerate(keys)
    )
    more = f"<IsTruncated>true</IsTruncated><NextContinuationToken>{token}</NextContinuationToken>" if token else ""
    return f"<ListBucketResult>{padding}{more}{entries}</ListBucketResult>".encode()


class HostileListings(ThreadingHTTPServer):
    """``http://127.0.0.1:port``; ``close`` ends all responses."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.closing = threading.Event()
        self.tokens = itertools.count(1)
        self.bomb = gzip.compress(_page(["data/a"], padding=" " * BOMB_BYTES), 1)
        self.requests: list[str] = []
        """Buckets, in the order of the requests."""

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def attributes(self, bucket: str, **more: str) -> dict[str, str]:
        return {"url": f"s3://{bucket}/data", "endpoint": self.endpoint, "anonymous": "true", "region": "x", **more}

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is what these tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: HostileListings

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.send_error(404)

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        bucket = parts.path.split("/")[1]
        self.server.requests.append(bucket)
        if bucket == SILENT:
            self.server.closing.wait(600)
        elif bucket in (HEADERS, DRIP):
            self._drip(wait_s=_DRIP_S if bucket == DRIP else 600)
        elif bucket == BOMB:
            self._send(self.server.bomb, ("Content-Encoding", "gzip"))
        elif bucket == LONG:
            self._send_long()
        else:
            self._send(self._listing(bucket, "continuation-token" in parse_qs(parts.query)))

    def _listing(self, bucket: str, continued: bool) -> bytes:
        number = next(self.server.tokens)
        if bucket == ENDLESS:
            return _page([f"data/{number:09}-{one}" for one in range(100)], f"token-{number}")
        if bucket == EMPTY:
            return _page([], f"token-{number}")
        if bucket == REPEATING:
            return _page([f"data/{number:09}"], "token" if continued else "first")
        if bucket == SAME_KEYS:
            return _page(["data/a", "data/b"], f"token-{number}")
        if bucket == DEEP:
            return _page(["data/" + "a/" * 500 + "c"])
        return _page([f"data/{name}" for name in "abc"])

    def _send(self, body: bytes, *headers: tuple[str, str]) -> None:
        self.send_response(200)
        for name, value in (*headers, ("Content-Length", str(len(body)))):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _send_long(self) -> None:
        self._headers(1 << 40)
        self.wfile.write(b"<ListBucketResult>")
        while not self.server.closing.is_set():
            self.wfile.write(b" " * (1 << 20))

    def _drip(self, wait_s: float) -> None:
        self._headers(1 << 20)
        self.wfile.write(b"<ListBucketResult>")
        while not self.server.closing.wait(wait_s):
            self.wfile.write(b" ")

    def _headers(self, length: int) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(length))
        self.end_headers()


@contextmanager
def hostile_listings() -> Iterator[HostileListings]:
    server = HostileListings()
    thread = threading.Thread(target=server.serve_forever, name="hostile", daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        server.shutdown()
        thread.join()
        server.server_close()
