"""Responses of stores, byte by byte: the expected one in any pieces, and every other one."""

from __future__ import annotations

import pytest

from csi_driver.model.errors import TransientStoreError
from csi_driver.objects.http.in_flight_response import HEAD_BYTES
from tests.support.one_answer import OK, answering


@pytest.mark.parametrize(
    "pieces",
    [
        [OK + b"\r\nhello"],
        [bytes([byte]) for byte in OK + b"\r\nhello"],
        [OK, b"\r", b"\n", b"h", b"ello"],
        [OK + b"vary: a\r\nVary: b\r\n\r\n", b"hello"],
        [OK + b'ETag: "tag"\r\ncontent-length:5\r\n\r\nhello'],
        [OK + b"connection: close\r\n\r\nhello"],
        [OK + b"x: " + b"y" * 40_000 + b"\r\n\r\nhello"],
        [OK + b"x: " + b"y" * 3_000, b"y" * 30_000, b"y\r\n", b"\r\nhel", b"lo"],
    ],
    ids=[
        *("at once", "byte by byte", "in pieces", "some headers twice", "the same twice", "closing"),
        *("a large head", "a large head in pieces"),
    ],
)
def test_a_plain_response_is_received_in_any_pieces(pieces: list[bytes]) -> None:
    with answering(*pieces, ends=b"close" in b"".join(pieces)) as (client, server):
        for _ in range(3):
            got = client.get("key", 5, "tag")
            assert got is not None
            assert b"".join(got.parts) == b"hello"
        assert server.requests == 3
        assert server.connections == (3 if server.ends else 1)


def test_connection_close_ends_the_reuse_of_a_connection() -> None:
    with answering(OK + b"Connection: Close\r\n\r\nhello", falls_silent=True) as (client, server):
        for number in range(3):
            got = client.get("key", 5, "tag")
            assert got is not None
            assert b"".join(got.parts) == b"hello"
            assert server.connections == number + 1


@pytest.mark.parametrize(
    "response",
    [
        OK.replace(b"200", b"206") + b"\r\nhello",
        OK.replace(b"200", b"\xb200") + b"\r\nhello",
        OK.replace(b"HTTP/1.1", b"HTTP/1.0") + b"\r\nhello",
        OK.replace(b"5", b"6") + b"\r\nhello!",
        OK.replace(b"5", b"4") + b"\r\nhell",
        OK.replace(b"Content-Length: 5\r\n", b"") + b"\r\nhello",
        OK.replace(b'"tag"', b'"other"') + b"\r\nhello",
        OK.replace(b'ETag: "tag"\r\n', b"") + b"\r\nhello",
        OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        OK + b"Content-Encoding: gzip\r\n\r\nhello",
        OK + b'ETag: "other"\r\n\r\nhello',
        OK + b"Content-Length: 6\r\n\r\nhello!",
        OK + b"no colon\r\n\r\nhello",
        OK + b"\r\nhello and more",
        OK + b"x: " + b"y" * (3 * HEAD_BYTES) + b"\r\n\r\nhello",
        b"no HTTP at all\r\n\r\n",
        OK.replace(b'"tag"', b'"other"') + b'ETag: "tag"\r\n\r\nhello',
        OK.replace(b"5", b"6") + b"Content-Length: 5\r\n\r\nhello",
    ],
    ids=range(18),
)
def test_any_other_response_takes_the_fallback_path(response: bytes) -> None:
    with answering(response) as (client, _server):
        assert client.get("key", 5, "tag") is None
        assert client.get("key", 5, "tag") is None


@pytest.mark.parametrize("sent", [b"", OK[:20], OK + b"\r\nhel"], ids=["nothing", "half a head", "half a body"])
def test_a_response_that_breaks_off_is_a_transient_error(sent: bytes) -> None:
    with answering(sent, ends=True) as (client, _server), pytest.raises(TransientStoreError, match="connection broke"):
        client.get("key", 5, "tag")


def test_bytes_after_a_response_are_never_taken_for_the_next_one() -> None:
    """The second response is in the connection before the second request: it was not requested, and is not used."""
    with answering(OK + b"\r\nhello", OK + b"\r\nwrong") as (client, server):
        server.paced = True  # both at once would be one response that is too long
        for _ in range(3):
            got = client.get("key", 5, "tag")
            assert got is not None
            assert b"".join(got.parts) == b"hello"
            server.send_next()
        assert server.connections == 3
