"""Whether a store has sent the range it was asked for."""

from __future__ import annotations

import re

from csi_driver.model.chunk import ByteRange
from csi_driver.model.errors import ObjectChanged, StoreProtocolError, TransientStoreError

_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)\Z")


def check_content_range(header: str | None, wanted: ByteRange, name: str) -> None:
    """Raises ObjectChanged if the object ends within the range, TransientStoreError if less was sent than there is,
    StoreProtocolError if the answer is whole (no header), too long or of another place."""
    if header is None:
        raise StoreProtocolError(f"{name}: the store ignores ranges and sent the whole object")
    found = _CONTENT_RANGE.match(header.strip())
    if not found or int(found[1]) != wanted.start or int(found[2]) >= wanted.stop:
        raise StoreProtocolError(f"{name}: the store sent another range than the one asked for")
    check_end(int(found[2]) + 1, None if found[3] == "*" else int(found[3]), wanted, name)


def check_end(stop: int, size_bytes: int | None, wanted: ByteRange, name: str) -> None:
    """For a range that begins where it should and ends before ``stop``, of an object of ``size_bytes`` if known."""
    if size_bytes is not None and size_bytes < wanted.stop:
        raise ObjectChanged(f"{name} is shorter than when it was listed; make a new snapshot")
    if stop < wanted.stop:
        raise TransientStoreError(f"{name}: the store sent {wanted.stop - stop} bytes too few")
