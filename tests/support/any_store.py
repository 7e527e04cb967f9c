"""A server on loopback that is a store of every kind at the same time: S3, Google Cloud Storage, Azure, WebDAV.

It checks no signature: all requests may list, and objects are given or denied to all. Every request is recorded.
"""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

BUCKET, KEY = "bucket", "file.bin"
ETAG = "0123456789abcdef0123456789abcdef-1"
GENERATION = "1767322845678000"
_MODIFIED = "2026-01-02T03:04:05.000Z"
_HTTP_MODIFIED = "Fri, 02 Jan 2026 03:04:05 GMT"

_S3 = (
    '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
    f"<Name>{BUCKET}</Name><Prefix></Prefix><KeyCount>1</KeyCount><MaxKeys>1000</MaxKeys>"
    "<IsTruncated>false</IsTruncated>"
    f"<Contents><Key>{KEY}</Key><LastModified>{_MODIFIED}</LastModified><ETag>&quot;{ETAG}&quot;</ETag>"
    "<Size>{size}</Size><StorageClass>STANDARD</StorageClass></Contents></ListBucketResult>"
)
_GOOGLE = (
    f'{{{{"items": [{{{{"name": "{KEY}", "size": "{{size}}", "generation": "{GENERATION}", '
    f'"updated": "{_MODIFIED}"}}}}]}}}}'
)
_AZURE = (
    '<?xml version="1.0" encoding="utf-8"?><EnumerationResults><Blobs><Blob>'
    f"<Name>{KEY}</Name><Properties><Last-Modified>{_HTTP_MODIFIED}</Last-Modified><Etag>{ETAG}</Etag>"
    "<Content-Length>{size}</Content-Length><Content-Type>application/octet-stream</Content-Type>"
    "<BlobType>BlockBlob</BlobType></Properties></Blob></Blobs><NextMarker /></EnumerationResults>"
)
_DAV = (
    '<?xml version="1.0" encoding="utf-8"?><D:multistatus xmlns:D="DAV:"><D:response>'
    f"<D:href>/{BUCKET}/{KEY}</D:href><D:propstat><D:prop><D:getlastmodified>{_HTTP_MODIFIED}</D:getlastmodified>"
    "<D:getcontentlength>{size}</D:getcontentlength><D:resourcetype/>"
    f'<D:getetag>"{ETAG}"</D:getetag></D:prop><D:status>HTTP/1.1 200 OK</D:status></D:propstat></D:response>'
    "</D:multistatus>"
)


class AnyStore:
    """``with any_store(content) as store``."""

    def __init__(self, content: bytes, address: str, tls: ssl.SSLContext | None) -> None:
        self.content = content
        self.tls = tls
        """May be replaced; holds for the connections that follow."""
        self.denies = False
        """No object is given, as to credentials without permission."""
        self.redirect = ""
        """A URL: the answer to every request, if set."""
        self.requests: list[tuple[str, dict[str, str]]] = []
        """Request line and headers, with their names in lower case."""
        self.connections = 0
        self._server = _Server((address, 0), _Handler)
        self._server.store = self
        self.address, self.port = address, int(self._server.server_address[1])
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def url(self, host: str = "") -> str:
        scheme = "http" if self.tls is None else "https"
        return f"{scheme}://{host or self.address}:{self.port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def any_store(
    content: bytes = b"", address: str = "127.0.0.1", tls: ssl.SSLContext | None = None
) -> Iterator[AnyStore]:
    store = AnyStore(content, address, tls)
    try:
        yield store
    finally:
        store.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    store: AnyStore

    def get_request(self) -> tuple[Any, Any]:
        connection, address = super().get_request()
        self.store.connections += 1
        return connection, address

    def finish_request(self, request: Any, client_address: Any) -> None:
        if self.store.tls is None:
            super().finish_request(request, client_address)
            return
        # OSError: a client that does not trust the certificate.
        with suppress(OSError), self.store.tls.wrap_socket(request, server_side=True) as wrapped:
            super().finish_request(wrapped, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Connections that break off are not reported."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        store, size = self.server.store, len(self.server.store.content)
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        store.requests.append((self.requestline, {name.lower(): value for name, value in self.headers.items()}))
        url = urlsplit(self.path)
        if store.redirect:
            self._answer(307, b"", Location=f"{store.redirect}{self.path}")
        elif self.command == "PROPFIND":
            self._answer(207, _DAV.format(size=size).encode())
        elif unquote(url.path).endswith(KEY):
            self._object(store)
        elif parse_qs(url.query).get("comp") == ["list"]:
            self._answer(200, _AZURE.format(size=size).encode())
        elif url.path.startswith("/storage/v1/"):
            self._answer(200, _GOOGLE.format(size=size).encode())
        else:
            self._answer(200, _S3.format(size=size).encode())

    do_HEAD = do_PROPFIND = do_POST = do_PUT = do_GET

    def _object(self, store: AnyStore) -> None:
        content = store.content
        described = {"ETag": f'"{ETAG}"', "Last-Modified": _HTTP_MODIFIED, "x-goog-generation": GENERATION}
        wanted = self.headers.get("Range") or self.headers.get("x-ms-range")
        if store.denies:
            self._answer(403, b"<Error><Code>AccessDenied</Code></Error>")
        elif ETAG in (self.headers.get("If-None-Match") or ""):
            self._answer(304, b"", **described)
        elif wanted:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, stop = int(first), min(int(last or len(content) - 1) + 1, len(content))
            described["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
            self._answer(206, content[start:stop], **described)
        else:
            self._answer(200, content, **described)

    def _answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body)), "Connection": "close"}.items():
            self.send_header(name, value)
        self.end_headers()
        self.close_connection = True
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Requests are recorded, not logged."""
