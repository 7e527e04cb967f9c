"""The memory that small objects are received into: head and body in one buffer, which is used again."""

from __future__ import annotations

import gc

import pytest

from csi_driver.model.aligned_buffers import buffer_of
from csi_driver.objects.http.in_flight_response import USUAL_HEAD_BYTES
from tests.support.one_answer import OK, answering

SIZE_BYTES = 100_000


def response(byte: bytes, head_bytes: int = 0) -> bytes:
    """With a body of one byte repeated, and a head of that length."""
    head = OK.replace(b"Length: 5", b"Length: %d" % SIZE_BYTES)
    padding = head_bytes - len(head) - len(b"x: \r\n\r\n")
    return head + (b"x: " + b"y" * padding + b"\r\n" if head_bytes else b"") + b"\r\n" + byte * SIZE_BYTES


@pytest.mark.parametrize("more_bytes", [-2, -1, 0, 1, 2, 5000])
@pytest.mark.parametrize("first_bytes", [None, 100, USUAL_HEAD_BYTES - 1, USUAL_HEAD_BYTES, USUAL_HEAD_BYTES + 1])
def test_a_head_of_any_length_leaves_the_body_as_it_is(more_bytes: int, first_bytes: int | None) -> None:
    sent = response(b"b", USUAL_HEAD_BYTES + more_bytes)
    assert sent.index(b"\r\n\r\n") + 4 == USUAL_HEAD_BYTES + more_bytes
    pieces = [sent] if first_bytes is None else [sent[:first_bytes], sent[first_bytes:]]
    with answering(*pieces) as (client, _server):
        got = client.get("key", SIZE_BYTES, "tag")
        assert got is not None
        assert b"".join(got.parts) == b"b" * SIZE_BYTES


@pytest.mark.promise("S695")
def test_an_object_in_use_keeps_its_bytes_while_others_are_received() -> None:
    """And the next one, which gets the memory of one that is not, has all of its own."""
    with answering(response(b"a")) as (client, server):
        kept = client.get("key", SIZE_BYTES, "tag")
        for byte in (b"b", b"c", b"d"):
            server.pieces = (response(byte),)
            other = client.get("key", SIZE_BYTES, "tag")
            assert other is not None
            assert b"".join(other.parts) == byte * SIZE_BYTES
        assert kept is not None
        assert b"".join(kept.parts) == b"a" * SIZE_BYTES


@pytest.mark.promise("S695")
def test_bytes_of_an_earlier_object_are_never_part_of_one_that_breaks_off() -> None:
    with answering(response(b"a")) as (client, server):
        assert client.get("key", SIZE_BYTES, "tag") is not None
        server.pieces, server.ends = (response(b"b")[:-50_000],), True
        with pytest.raises(Exception, match="connection broke"):
            client.get("key", SIZE_BYTES, "tag")


@pytest.mark.parametrize("count_bytes", [1, 64 << 10, (64 << 10) + 1, 128 << 10, (128 << 10) + 1, 1056 << 10, 5 << 20])
def test_a_buffer_has_the_length_that_is_asked_for(count_bytes: int) -> None:
    buffer = buffer_of(count_bytes)
    assert len(buffer) == count_bytes
    assert not buffer.readonly


def test_the_memory_of_a_buffer_is_used_again_once_no_view_is_left() -> None:
    buffer = buffer_of(SIZE_BYTES)
    buffer[:4] = b"mark"
    del buffer
    gc.collect()
    again = buffer_of(SIZE_BYTES)
    assert again[:4] == b"mark"
    other = buffer_of(SIZE_BYTES)
    other[:4] = b"else"
    assert again[:4] == b"mark"
