"""The pages of a long listing in a file with a name, so that a process that lists the dataset again goes on where the
one before it was killed.

One frame for each page: its length, its CRC32C, the length of its text, and that text compressed, JSON. The file is
only added to. A frame that is incomplete, or damaged, and all after it, are as if they had not been written: these
pages are listed again. The file is locked while a listing uses it, and never used by two.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import crc32c
import pyarrow as pa

from csi_driver.model.errors import (
    AccessDenied,
    CredentialsRejected,
    EndpointUnreachable,
    HayloftError,
    Interrupted,
    StoreUnavailable,
)
from csi_driver.model.snapshot import ObjectPage
from csi_driver.objects.listing_pages import LoggedPage

PAGES_IN_MEMORY = 16
"""A listing of fewer pages takes a second, and leaves no file."""

RESUMED_WITHIN_S = 3600.0
"""Since the last page. Later the file is removed: a listing that nothing continues is not wanted any more."""

SHARE_OF_FREE = 0.125
"""Of the free bytes of the disk, that one file may have: beside it the rows of the same listing take a quarter, and at
the end half."""

_LOCK_WAIT_S = 5.0
"""For the end of a process that was killed."""

_FRAME = struct.Struct(">III")
_HEADER = {"format": 1}
_LONGEST_TEXT = 256 << 20

_KEPT_AFTER = (StoreUnavailable, EndpointUnreachable, Interrupted, AccessDenied, CredentialsRejected)
"""Errors that say nothing against the pages before them."""


class ListingJournal:
    """A ``ListingLog`` of one listing. Used by one thread; ``closed_after`` or ``close`` when done."""

    def __init__(self, path: Path, most_bytes: int | None = None, pages_in_memory: int = PAGES_IN_MEMORY) -> None:
        """Opens the file of an earlier listing, if there is one; one that is too old is removed. ``most_bytes``: of the
        file, beside ``SHARE_OF_FREE``. Never fails: without a usable file nothing is kept."""
        self._path, self._most_bytes, self._pages_in_memory = path, most_bytes, pages_in_memory
        self._waiting: list[bytes] = []
        self._descriptor: int | None = None
        self._size_bytes = 0
        self._usable = True
        self.in_ranges = True
        """How the dataset is listed; False: page after page, since the store does not keep the order of keys."""
        self.has_earlier = False
        try:
            self._open()
        except OSError:
            self._give_up()

    def _open(self) -> None:
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return
        if time.time() - os.fstat(descriptor).st_mtime > RESUMED_WITHIN_S:
            os.close(descriptor)
            self._path.unlink(missing_ok=True)
            return
        if not _locked(descriptor):
            os.close(descriptor)
            self._usable = False  # another listing of the same volume is using it
            return
        self._descriptor = descriptor
        first = next(self._frames(), None)
        if first is None or first.get("format") != _HEADER["format"]:
            self.restart(in_ranges=True)
            return
        self.in_ranges, self.has_earlier = bool(first["in_ranges"]), True

    def earlier(self) -> Iterator[LoggedPage]:
        """As of ``ListingLog``. What follows the last sound frame is cut off."""
        if self._descriptor is None or not self.has_earlier:
            return
        frames = self._frames()
        next(frames, None)
        yield from map(_page_from, frames)
        with contextlib.suppress(OSError):
            os.ftruncate(self._descriptor, self._size_bytes)

    def _frames(self) -> Iterator[dict[str, Any]]:
        """The sound ones; ``_size_bytes`` is where the last one that was read ends."""
        self._size_bytes = 0
        while self._descriptor is not None:
            head = os.pread(self._descriptor, _FRAME.size, self._size_bytes)
            if len(head) < _FRAME.size:
                return
            length, checksum, text_bytes = _FRAME.unpack(head)
            if length > _LONGEST_TEXT:
                return
            packed = os.pread(self._descriptor, length, self._size_bytes + _FRAME.size)
            if len(packed) < length or _checksum(packed, text_bytes) != checksum:
                return
            text = pa.decompress(packed, decompressed_size=text_bytes, codec="lz4_raw", asbytes=True)
            self._size_bytes += _FRAME.size + length
            yield json.loads(text)

    def add(self, logged: LoggedPage) -> None:
        """As of ``ListingLog``."""
        if not self._usable:
            return
        try:
            self._append(_frame(_text_of(logged)))
        except OSError:  # the disk is full or fails: the listing goes on without
            self._give_up()

    def _append(self, frame: bytes) -> None:
        if self._descriptor is None:
            self._waiting.append(frame)
            if len(self._waiting) < self._pages_in_memory:
                return
            self._create()
            frame = b"".join([_frame({**_HEADER, "in_ranges": self.in_ranges}), *self._waiting])
            self._waiting = []
        if self._descriptor is None or not self._has_room(len(frame)):
            self._give_up()
            return
        if os.pwrite(self._descriptor, frame, self._size_bytes) < len(frame):
            raise OSError("a part of a frame was written")
        self._size_bytes += len(frame)

    def _create(self) -> None:
        self._path.parent.mkdir(mode=0o700, exist_ok=True)
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        if not _locked(self._descriptor, wait_s=0.0):
            os.close(self._descriptor)
            self._descriptor = None
            return
        os.ftruncate(self._descriptor, 0)
        self._size_bytes = 0

    def _has_room(self, count_bytes: int) -> bool:
        found = os.statvfs(self._path.parent)
        free_bytes = found.f_bavail * found.f_frsize + self._size_bytes
        most_bytes = free_bytes * SHARE_OF_FREE
        if self._most_bytes is not None:
            most_bytes = min(most_bytes, self._most_bytes)
        return self._size_bytes + count_bytes <= most_bytes

    def restart(self, *, in_ranges: bool) -> None:
        """Forgets all pages: the dataset is listed anew, in this way."""
        self.in_ranges, self.has_earlier, self._waiting = in_ranges, False, []
        self._remove()

    def closed_after(self, error: HayloftError) -> None:
        """Ends the use of the file after a listing that failed: it stays for the next one, unless the error was one of
        the listing itself, which would meet it again."""
        if not isinstance(error, _KEPT_AFTER):
            self._remove()
        self.close()

    def finished(self) -> None:
        """The manifest is written."""
        self._remove()

    def _give_up(self) -> None:
        self._usable, self._waiting = False, []
        self._remove()

    def _remove(self) -> None:
        """The name before the lock: no other listing opens what is removed."""
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """The file stays."""
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                os.close(self._descriptor)
            self._descriptor = None


def _locked(descriptor: int, wait_s: float = _LOCK_WAIT_S) -> bool:
    ends_s = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= ends_s:
                return False
            time.sleep(0.1)
        else:
            return True


def _text_of(logged: LoggedPage) -> dict[str, Any]:
    page = logged.page
    return {
        "range": [logged.begin, logged.next_token, logged.next_begin],
        "keys": list(page.keys),
        "sizes": list(page.sizes_bytes),
        "etags": list(page.etags),
        "times": list(page.mtimes_ns),
        "unreadable": list(page.unreadable),
        "archived": list(page.archived),
    }


def _page_from(text: dict[str, Any]) -> LoggedPage:
    page = ObjectPage(text["keys"], text["sizes"], text["etags"], text["times"], text["unreadable"], text["archived"])
    begin, next_token, next_begin = text["range"]
    return LoggedPage(page, begin, next_token, next_begin)


def _frame(fields: dict[str, Any]) -> bytes:
    text = json.dumps(fields, separators=(",", ":")).encode("ascii")
    packed = pa.compress(text, codec="lz4_raw", asbytes=True)
    return b"".join((_FRAME.pack(len(packed), _checksum(packed, len(text)), len(text)), packed))


def _checksum(packed: bytes, text_bytes: int) -> int:
    return int(crc32c.crc32c(packed, crc32c.crc32c(_FRAME.pack(len(packed), 0, text_bytes))))
