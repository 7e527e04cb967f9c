"""Whether a response holds the requested range."""

from __future__ import annotations

import re

from csi_driver.model.chunk import ByteRange
from csi_driver.model.errors import ObjectChanged, StoreProtocolError, TransientStoreError

_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19}|\*)\Z")


def check_range_answer(
    status: int, content_range: str | None, length_bytes: int | None, requested: ByteRange, name: str
) -> None:
    """Checks status, Content-Range and Content-Length (None: there is none) of the response to a request for a range.

    206 needs a Content-Range. Some stores answer a range with 200: that is taken where the headers say exactly what was
    requested, by a Content-Range and the length, or because the object begins and ends where the range does. Raises as
    ``check_content_range``. A response of 200 without any length may turn out to be longer.
    """
    asked = f"a request for bytes {requested.start}-{requested.stop - 1} with HTTP {status}"
    if status not in (200, 206):
        raise StoreProtocolError(f"{name}: the store answered {asked}")
    if content_range is not None:
        check_content_range(content_range, requested, name)
        if status == 200 and length_bytes != len(requested):
            raise StoreProtocolError(
                f"{name}: the store answered {asked}, a Content-Range and {_shown(length_bytes)}: which bytes of the "
                "object these are is not clear"
            )
    elif status == 206:
        raise StoreProtocolError(f"{name}: the store answered {asked} and without a Content-Range")
    elif requested.start or length_bytes not in (None, len(requested)):
        raise StoreProtocolError(
            f"{name}: the store answered {asked}, without a Content-Range and with {_shown(length_bytes)}: it ignores "
            "ranges"
        )


def check_content_range(header: str, requested: ByteRange, name: str) -> None:
    """Checks a Content-Range header. Raises ObjectChanged if the object ends within the range, TransientStoreError if
    the response is too short, StoreProtocolError if it is too long or another range."""
    found = _CONTENT_RANGE.match(header.strip())
    if not found or int(found[1]) != requested.start or int(found[2]) >= requested.stop:
        sent = f"bytes {found[1]}-{found[2]}" if found else "a Content-Range that cannot be read"
        raise StoreProtocolError(
            f"{name}: the store sent another range than the requested one: {sent} instead of bytes "
            f"{requested.start}-{requested.stop - 1}"
        )
    check_end(int(found[2]) + 1, None if found[3] == "*" else int(found[3]), requested, name)


def check_end(stop: int, size_bytes: int | None, requested: ByteRange, name: str) -> None:
    """Checks a range with the right start that ends before ``stop``. ``size_bytes`` is that of the object, if known."""
    if size_bytes is not None and size_bytes < requested.stop:
        raise ObjectChanged(f"{name} is shorter than when it was listed; make a new snapshot")
    if stop < requested.stop:
        raise TransientStoreError(f"{name}: the store sent too few bytes")


def content_length(header: str | None) -> int | None:
    """The number of a Content-Length header; None if there is none, or something else in it."""
    text = (header or "").strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None


def _shown(length_bytes: int | None) -> str:
    return "no Content-Length" if length_bytes is None else f"{length_bytes} bytes"
