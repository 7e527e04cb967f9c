"""The ETag that all bytes of an object file have, as an extended attribute of the file.

Only where the listing named no version (``reading/version_pins.py``). It is written before the first chunk, so that a
later daemon adds no chunk of another version to those that an earlier one has cached.
"""

from __future__ import annotations

from csi_driver.cache.disk import Disk
from csi_driver.model.errors import CacheError

NAME = "trusted.hayloft.etag"
_MARK = b"="
"""Before the ETag, which may be empty: the store sends none."""


def read_version(disk: Disk, file: int | str) -> str | None:
    """The ETag; None: there is no such attribute. By descriptor or path."""
    try:
        packed = disk.get_attribute("object.version", file, NAME)
    except CacheError:
        return None
    return packed[1:].decode("utf-8", "surrogateescape") if packed.startswith(_MARK) else None


def write_version(disk: Disk, descriptor: int, etag: str) -> None:
    """A file system without room, or without such attributes, records nothing: a later daemon does not use the
    chunks."""
    try:
        disk.set_attribute("object.pin", descriptor, NAME, _MARK + etag.encode("utf-8", "surrogateescape"))
    except CacheError:
        return
