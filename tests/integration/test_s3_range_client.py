"""Ranges of S3 by sockets of the driver's own: connections that are kept, odd responses, bodies that break off."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from csi_driver.model.chunk import ByteRange
from csi_driver.model.dataset import Credentials, DatasetUrl, StoreOptions
from csi_driver.model.errors import AccessDenied, ObjectNotFound, StoreProtocolError, TransientStoreError
from csi_driver.objects.http.range_client import PIECE_BYTES
from csi_driver.objects.http.socket_client import MAX_UNUSABLE
from csi_driver.objects.s3.addressing import S3Address
from csi_driver.objects.s3.identity import S3Identity
from csi_driver.objects.s3.rest_client import RestClient
from csi_driver.objects.s3.s3_factory import open_s3
from csi_driver.objects.s3.s3_store import S3Store
from csi_driver.objects.store_location import StoreLocation
from tests.support.hostile_s3 import CloseAfter, Hang, HostileS3, IgnoreRange, Slow, Status
from tests.support.one_answer import OneAnswer
from tests.support.tls import trusted_tls

CONTENT = bytes(range(256)) * (3 * PIECE_BYTES // 256) + b"the end"
KEYS = Credentials({"access_key_id": "AKIDEXAMPLE", "secret_access_key": "x"})


def open_store(endpoint: str, authority: str | None = None) -> S3Store:
    options = StoreOptions(endpoint=endpoint, ca_bundle_pem=authority, request_timeout_s=1)
    return open_s3(DatasetUrl.parse("s3://data"), options, KEYS)


@pytest.fixture(params=["http", "https"])
def server(request: pytest.FixtureRequest) -> Iterator[HostileS3]:
    with (
        trusted_tls() as (context, authority),
        HostileS3({"key": CONTENT}, tls=context if request.param == "https" else None) as server,
    ):
        server.trust = authority if request.param == "https" else None
        yield server


@pytest.fixture
def store(server: HostileS3) -> Iterator[S3Store]:
    store = open_store(server.endpoint, server.trust)
    yield store
    store.close()


def read(store: S3Store, start: int = 0, stop: int = len(CONTENT)) -> bytes:
    return b"".join(store.read_range("key", ByteRange(start, stop), if_match=None))


def test_the_bytes_come_in_read_only_pieces_over_one_connection(store: S3Store, server: HostileS3) -> None:
    for start, stop in ((0, len(CONTENT)), (1, 2), (PIECE_BYTES - 1, PIECE_BYTES + 1), (7, PIECE_BYTES + 7)):
        pieces = list(store.read_range("key", ByteRange(start, stop), if_match=server.etag("key")))
        assert b"".join(pieces) == CONTENT[start:stop]
        assert all(piece.readonly and piece.c_contiguous and len(piece) <= PIECE_BYTES for piece in pieces)
    assert server.connections == 1


def test_an_error_is_one_request_and_has_the_stores_code(store: S3Store, server: HostileS3) -> None:
    server.fail_next(Status(503, "SlowDown", retry_after_s=7))
    with pytest.raises(TransientStoreError, match="503 SlowDown") as caught:
        read(store)
    assert caught.value.retry_after_s == 7
    with pytest.raises(ObjectNotFound):
        list(store.read_range("missing", ByteRange(0, 1), if_match=None))
    server.fail_next(IgnoreRange())
    with pytest.raises(StoreProtocolError):
        read(store, 0, 100)
    assert len(server.requests) == 3


def test_what_was_received_before_a_break_is_not_lost(store: S3Store, server: HostileS3) -> None:
    server.fail_next(CloseAfter(PIECE_BYTES + 1000))
    got: list[memoryview] = []
    with pytest.raises(TransientStoreError):
        got.extend(store.read_range("key", ByteRange(0, len(CONTENT)), if_match=None))
    assert b"".join(got) == CONTENT[: PIECE_BYTES + 1000]


@pytest.mark.parametrize("body_bytes", [None, 0, 1000])
def test_a_store_that_falls_silent_times_out(store: S3Store, server: HostileS3, body_bytes: int | None) -> None:
    read(store)
    server.fail_next(Hang(30, body_bytes))
    with pytest.raises(TransientStoreError, match="no answer in time"):
        read(store)
    assert read(store) == CONTENT


def test_a_slow_body_does_not_time_out_while_bytes_come(store: S3Store, server: HostileS3) -> None:
    """The pauses are together longer than the time-out of 1 s, each is shorter."""
    server.fail_next(Slow(0.2, 128 << 10))
    assert read(store) == CONTENT


def test_a_read_that_ends_early_closes_its_connection(store: S3Store, server: HostileS3) -> None:
    pieces = iter(store.read_range("key", ByteRange(0, len(CONTENT)), if_match=None))
    next(pieces)
    pieces.close()  # type: ignore[attr-defined]
    assert read(store) == CONTENT
    assert server.connections == 2


def test_an_idle_connection_that_the_store_closed_is_replaced(store: S3Store, server: HostileS3) -> None:
    read(store)
    server.go_away()
    server.come_back()
    assert read(store) == CONTENT


CHUNKED = (
    b'HTTP/1.1 206 OK\r\nContent-Range: bytes 0-4/5\r\nTransfer-Encoding: chunked\r\nETag: "tag"\r\n\r\n'
    b"5\r\nhello\r\n0\r\n\r\n"
)
WITHOUT_LENGTH = b'HTTP/1.1 206 OK\r\nContent-Range: bytes 0-4/5\r\nETag: "tag"\r\nConnection: close\r\n\r\nhello'


@pytest.mark.parametrize("response", [CHUNKED, WITHOUT_LENGTH])
def test_a_response_of_an_odd_form_is_read_by_the_fallback_path(response: bytes) -> None:
    server = OneAnswer(response, ends=True)
    store = open_store(server.address)
    try:
        for _ in range(MAX_UNUSABLE):
            assert b"".join(store.read_range("key", ByteRange(0, 5), if_match="tag")) == b"hello"
        assert server.requests == 2 * MAX_UNUSABLE
        assert b"".join(store.read_range("key", ByteRange(0, 5), if_match="tag")) == b"hello"
        assert server.requests == 2 * MAX_UNUSABLE + 1, "now it is the only path for a while"
    finally:
        store.close()
        server.close()


def test_the_range_is_signed() -> None:
    with HostileS3({"key": CONTENT}) as server:
        store = open_store(server.endpoint)
        read(store, 3, 10)
        store.close()
        headers = server.seen("GET")[-1].headers
    assert headers["range"] == "bytes=3-9"
    signed = headers["authorization"].partition("SignedHeaders=")[2].partition(",")[0].split(";")
    assert signed == sorted(signed)
    assert "range" in signed


def test_a_body_of_unknown_length_that_is_longer_than_the_range_is_an_error() -> None:
    """Framed as chunks, which a header denies. The end comes only when the client has as many bytes as it wants."""
    head = (
        b'HTTP/1.1 206 Partial Content\r\nETag: "tag"\r\nContent-Range: bytes 0-4/5\r\nTransfer-Encoding: identity\r\n'
    )
    answer = OneAnswer(head + b"\r\n5\r\nab", b"cde\r\n0\r\n\r\n", ends=True)
    address = S3Address(f"{answer.address}/bucket", "us-east-1", False)
    client = RestClient(StoreLocation(answer.address, "bucket"), address, S3Identity(KEYS), timeout_s=5)
    with closing(answer), pytest.raises(StoreProtocolError, match="more bytes"):
        list(client.read_range("key", ByteRange(0, 5), if_match="tag"))


@pytest.mark.promise("S710")
def test_what_a_slow_store_has_sent_is_passed_on() -> None:
    """Before the piece is complete, and without a copy of it for each part."""
    body = CONTENT[:PIECE_BYTES]
    head = b"HTTP/1.1 206 X\r\nContent-Length: %d\r\nContent-Range: bytes 0-%d/*\r\n\r\n"
    server = OneAnswer(head % (len(body), len(body) - 1) + body[:20_000], body[20_000:])
    server.paced = True
    store = open_store(server.address)
    pieces = store.read_range("key", ByteRange(0, len(body)), if_match=None)
    first = bytes(next(pieces))
    assert first
    server.send_next()
    assert first + b"".join(pieces) == body
    assert server.requests == 1
    store.close()
    server.close()


@pytest.mark.promise("S710")
def test_the_body_of_an_error_is_not_waited_for_longer_than_a_time_out() -> None:
    """65,536 bytes, 2 ms each, for a time-out of a second."""
    server = OneAnswer(b"HTTP/1.1 403 X\r\nContent-Length: 65536\r\n\r\n", *[b"x"] * 65_536)
    store = open_store(server.address)
    began_s = time.monotonic()
    with pytest.raises(AccessDenied):
        list(store.read_range("key", ByteRange(0, 5), if_match=None))
    assert time.monotonic() - began_s < 60
    store.close()
    server.close()
