"""Random answers of a web server to every request: whatever it sends, an operation ends, with the bytes of the range or
an error of the tree. ``HAYLOFT_FAULT_COUNT`` times 100 answers: 300 in the suite, ``make faults COUNT=100`` makes
10,000."""

from __future__ import annotations

import gzip
import random
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import pytest

from csi_driver.model import errors
from csi_driver.model.chunk import ByteRange
from csi_driver.model.dataset import Credentials, DatasetUrl, StoreOptions
from csi_driver.model.errors import HayloftError
from csi_driver.objects.store import ObjectStore, read_whole
from csi_driver.objects.store_factory import open_store
from tests.faults.test_kills import COUNT

pytestmark = [pytest.mark.faults, pytest.mark.timeout(60 + 20 * COUNT)]

CONTENT = bytes(range(256)) * 40
MODIFIED = "Tue, 14 Nov 2023 22:13:20 GMT"
STATUSES = (
    *(200, 200, 200, 206, 206, 207, 207, 204, 301, 302, 304, 400, 401, 403, 404, 405, 412, 416, 429),
    *(500, 501, 503, 507, 520, 999, 100, 0),
)
HEADERS = {
    "Content-Length": ("10240", "0", "10", "-1", "x", "9" * 20, "5, 5"),
    "Content-Range": ("bytes 0-99/10240", "bytes 5-9/10240", "bytes */0", "bytes 0-0/10240", "x", "bytes 0-99/*"),
    "ETag": ('"e"', 'W/"e"', "", '"e"e"', '"x"'),
    "Last-Modified": (MODIFIED, "Thu, 01 Jan 2500 00:00:00 GMT", "x", "Tue, 32 Nov 2023 22:13:20 GMT"),
    "Content-Encoding": ("gzip", "identity", "br", "deflate"),
    "Transfer-Encoding": ("chunked", "gzip"),
    "Location": ("/d/", "http://[::1", "//x:y/", "http://elsewhere.example/", "x/"),
    "Retry-After": ("0", "x", "-5"),
    "Content-Type": ("text/html", "application/json", "application/xml", "x"),
    "Connection": ("close", "keep-alive"),
    "X-Long": ("y" * 70_000,),
}
BODIES = (
    b"",
    b"<a href='x'>x</a><a href='y/'>",
    b'[{"name":"x","size":10240,"mtime":"Tue, 14 Nov 2023 22:13:20 GMT"}]',
    b'<m:multistatus xmlns:m="DAV:"><m:response><m:href>/d/x</m:href><m:propstat><m:prop><m:getcontentlength>10240'
    b'</m:getcontentlength><m:getetag>"e"</m:getetag></m:prop></m:propstat></m:response></m:multistatus>',
    b"<ListBucketResult><IsTruncated>true</IsTruncated><NextContinuationToken>t</NextContinuationToken>"
    b"<Contents><Key>x</Key><Size>5</Size><ETag>e</ETag><LastModified>2026-01-02T03:04:05Z</LastModified></Contents>"
    b"</ListBucketResult>",
    CONTENT,
    CONTENT[:100],
    gzip.compress(CONTENT),
    b"path,size\nx,10240\n",
    b"5\r\nhello\r\n0\r\n\r\n",
    b"zz\r\n",
)


def answer(draw: random.Random, method: bytes) -> bytes:
    if draw.random() < 0.03:
        return draw.randbytes(draw.randrange(200))
    body = draw.choice(BODIES)
    headers = {name: draw.choice(values) for name, values in HEADERS.items() if draw.random() < 0.25}
    if draw.random() < 0.6:
        headers.pop("Transfer-Encoding", None)
        headers["Content-Length"] = str(len(body))
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    whole = f"HTTP/1.{draw.choice('011')} {draw.choice(STATUSES)} X\r\n{head}\r\n".encode()
    if method != b"HEAD" or draw.random() < 0.05:
        whole += body
    return whole[: draw.randrange(len(whole) + 1)] if draw.random() < 0.1 else whole


@dataclass
class RandomServer:
    draw: random.Random
    answers: int = 0
    listener: socket.socket = field(default_factory=lambda: socket.create_server(("127.0.0.1", 0), backlog=64))

    def run(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as requests, suppress(OSError):
            connection.settimeout(3)
            while line := requests.readline():
                length_bytes = 0
                while header := requests.readline().strip().lower():
                    if header.startswith(b"content-length:"):
                        length_bytes = int(header.partition(b":")[2])
                requests.read(length_bytes)
                self.answers += 1
                connection.sendall(answer(self.draw, line.split()[0]))
                if self.draw.random() < 0.3:
                    return


@contextmanager
def random_server(seed: int) -> Iterator[RandomServer]:
    server = RandomServer(random.Random(seed))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.listener.shutdown(socket.SHUT_RDWR)
        server.listener.close()
        thread.join()


def read(store: ObjectStore, start: int, stop: int, if_match: str | None) -> None:
    pieces = store.read_range("d/x", ByteRange(start, stop), if_match=if_match)
    assert sum(map(len, pieces)) == stop - start


def whole(store: ObjectStore, if_match: str) -> None:
    assert sum(map(len, read_whole(store, "d/x", 10_240, if_match=if_match).parts)) == 10_240


OPERATIONS: tuple[Callable[[ObjectStore], object], ...] = (
    lambda store: list(store.list("d/")),
    lambda store: store.stat("d/x"),
    lambda store: read(store, 0, 100, "e"),
    lambda store: read(store, 5, 10, None),
    lambda store: read(store, 5000, 10_240, "W/last-modified 1700000000"),
    lambda store: whole(store, "e"),
    lambda store: whole(store, "sha256 " + "0" * 64),
)


@pytest.mark.promise("S199")
@pytest.mark.parametrize("seed", range(COUNT))
def test_whatever_a_web_server_answers_an_operation_ends_with_its_bytes_or_an_error(seed: int) -> None:
    known = {kind for kind in vars(errors).values() if isinstance(kind, type)}
    with random_server(seed) as server:
        url = DatasetUrl.parse(f"http://127.0.0.1:{server.listener.getsockname()[1]}/d")
        while server.answers < 100:
            options = StoreOptions(deadline_s=0.2, request_timeout_s=0.2, manifest=server.draw.choice([None, "LIST"]))
            store = open_store(url, options, Credentials())
            for operation in server.draw.sample(OPERATIONS, len(OPERATIONS)):
                try:
                    operation(store)
                except HayloftError as error:
                    kind = type(error)
                    assert kind in known
            store.close()
