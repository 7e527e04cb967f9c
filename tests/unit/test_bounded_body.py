"""Bodies of responses: what they decompress to is bounded before it exists."""

from __future__ import annotations

import gzip
import io
import tracemalloc
import zlib

import pytest
from urllib3.response import HTTPResponse

from csi_driver.model.errors import BudgetExceeded, StoreProtocolError, TransientStoreError
from csi_driver.objects.http import bounded_body
from csi_driver.objects.http.bounded_body import read_body, read_start

MIB = 1 << 20


def response(body: bytes, encoding: str | None = None) -> HTTPResponse:
    headers = {} if encoding is None else {"Content-Encoding": encoding}
    return HTTPResponse(io.BytesIO(body), headers=headers, preload_content=False)


@pytest.mark.parametrize("body", [b"", b"x", b"text " * 100_000])
def test_a_body_is_read_whatever_its_encoding(body: bytes) -> None:
    for sent, encoding in (
        (body, None),
        (body, "identity"),
        (gzip.compress(body), "GZIP"),
        (zlib.compress(body), "deflate"),
    ):
        assert read_body(response(sent, encoding), len(body), "bucket") == body


@pytest.mark.promise("S153")
@pytest.mark.parametrize("encoding", [None, "gzip"])
def test_a_longer_body_is_refused(encoding: str | None) -> None:
    body = b"x" * (MIB + 1)
    with pytest.raises(BudgetExceeded, match=str(MIB)):
        read_body(response(gzip.compress(body) if encoding else body, encoding), MIB, "bucket")


@pytest.mark.promise("S153")
def test_a_bomb_is_refused_before_it_takes_memory() -> None:
    """597 KiB became 1.2 GB; here 100 MB would appear. The error of a request is read in the same way."""
    bomb = gzip.compress(b" " * (100 * MIB), 1)
    tracemalloc.start()
    try:
        with pytest.raises(BudgetExceeded):
            read_body(response(bomb, "gzip"), MIB, "bucket")
        assert len(read_start(response(bomb, "gzip"), 64 << 10)) == 64 << 10
        assert tracemalloc.get_traced_memory()[1] < 8 * MIB
    finally:
        tracemalloc.stop()


def test_other_encodings_and_damaged_ones_are_errors_of_the_store() -> None:
    for encoding in ("br", "zstd", "gzip, gzip"):
        with pytest.raises(StoreProtocolError, match="was not requested"):
            read_body(response(b"x", encoding), MIB, "bucket")
    with pytest.raises(StoreProtocolError, match="cannot be decompressed"):
        read_body(response(b"no gzip", "gzip"), MIB, "bucket")


def test_a_body_that_takes_too_long_is_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded_body, "LONGEST_S", -1.0)
    with pytest.raises(TransientStoreError, match="completely"):
        read_body(response(b"x"), MIB, "bucket")
