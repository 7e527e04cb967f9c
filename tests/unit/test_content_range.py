"""Which answers to a request for a range are taken, by status, Content-Range and length."""

from __future__ import annotations

import pytest

from csi_driver.model.chunk import ByteRange
from csi_driver.model.errors import HayloftError, ObjectChanged, StoreProtocolError, TransientStoreError
from csi_driver.objects.content_range import check_range_answer, content_length

MIDDLE = ByteRange(100, 200)
START = ByteRange(0, 100)


@pytest.mark.promise("S206")
@pytest.mark.parametrize(
    ("status", "header", "length_bytes", "requested"),
    [
        (206, "bytes 100-199/1000", 100, MIDDLE),
        (206, "bytes 100-199/*", None, MIDDLE),
        (206, "bytes 100-199/1000", 50, MIDDLE),  # it breaks off, and is resumed
        (200, "bytes 100-199/1000", 100, MIDDLE),
        (200, "bytes 0-99/100", 100, START),
        (200, None, 100, START),  # the complete object
        (200, None, None, START),  # which may turn out to be longer
    ],
)
def test_an_answer_that_says_what_was_requested_is_taken(
    status: int, header: str | None, length_bytes: int | None, requested: ByteRange
) -> None:
    check_range_answer(status, header, length_bytes, requested, "object")


@pytest.mark.promise("S206")
@pytest.mark.parametrize(
    ("status", "header", "length_bytes", "requested", "error", "truth"),
    [
        (
            200,
            None,
            1000,
            MIDDLE,
            StoreProtocolError,
            "without a Content-Range and with 1000 bytes",
        ),
        (200, None, 1000, START, StoreProtocolError, "it ignores ranges"),
        (200, None, None, MIDDLE, StoreProtocolError, "without a Content-Range and with no Content-Length"),
        (200, "bytes 100-199/1000", 1000, MIDDLE, StoreProtocolError, "a Content-Range and 1000 bytes: which bytes"),
        (200, "bytes 100-199/1000", None, MIDDLE, StoreProtocolError, "no Content-Length: which bytes"),
        (200, "bytes 0-99/1000", 100, MIDDLE, StoreProtocolError, "bytes 0-99 instead of bytes 100-199"),
        (206, None, 100, MIDDLE, StoreProtocolError, "HTTP 206 and without a Content-Range"),
        (206, "bytes 100-299/1000", 200, MIDDLE, StoreProtocolError, "bytes 100-299 instead of bytes 100-199"),
        (206, "bytes */1000", 0, MIDDLE, StoreProtocolError, "a Content-Range that cannot be read"),
        (206, f"bytes {'9' * 5000}-1/1", 1, MIDDLE, StoreProtocolError, "a Content-Range that cannot be read"),
        (206, "bytes 100-149/150", 50, MIDDLE, ObjectChanged, "is shorter"),
        (206, "bytes 100-149/1000", 50, MIDDLE, TransientStoreError, "too few bytes"),
        (203, "bytes 100-199/1000", 100, MIDDLE, StoreProtocolError, "with HTTP 203"),
        (204, None, 0, START, StoreProtocolError, "with HTTP 204"),
    ],
)
def test_any_other_answer_is_refused_with_what_the_store_did(
    status: int,
    header: str | None,
    length_bytes: int | None,
    requested: ByteRange,
    error: type[HayloftError],
    truth: str,
) -> None:
    with pytest.raises(error) as caught:
        check_range_answer(status, header, length_bytes, requested, "object")
    assert truth in str(caught.value)


def test_a_length_is_a_number_of_digits() -> None:
    assert content_length(" 17 ") == 17
    for odd in (None, "", "-1", "+1", "1_0", "5, 5", "\xb2", "9" * 5000, "0x10"):
        assert content_length(odd) is None
