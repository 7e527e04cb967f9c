"""Whether a response holds the requested range."""

from __future__ import annotations

import re

from csi_driver.model.chunk import ByteRange
from csi_driver.model.errors import ObjectChanged, StoreProtocolError, TransientStoreError

_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)\Z")


def check_content_range(header: str | None, requested: ByteRange, name: str) -> None:
    """Checks a Content-Range header. Raises ObjectChanged if the object ends within the range, TransientStoreError if
    the response is too short, StoreProtocolError if it is the complete object (no header), too long or another range.
    """
    if header is None:
        raise StoreProtocolError(f"{name}: the store ignores ranges and sent the complete object")
    found = _CONTENT_RANGE.match(header.strip())
    if not found or int(found[1]) != requested.start or int(found[2]) >= requested.stop:
        raise StoreProtocolError(f"{name}: the store sent another range than the requested one")
    check_end(int(found[2]) + 1, None if found[3] == "*" else int(found[3]), requested, name)


def check_end(stop: int, size_bytes: int | None, requested: ByteRange, name: str) -> None:
    """Checks a range with the right start that ends before ``stop``. ``size_bytes`` is that of the object, if known."""
    if size_bytes is not None and size_bytes < requested.stop:
        raise ObjectChanged(f"{name} is shorter than when it was listed; make a new snapshot")
    if stop < requested.stop:
        raise TransientStoreError(f"{name}: the store sent {requested.stop - stop} bytes too few")
