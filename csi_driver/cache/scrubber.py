"""Reads the object files again, slowly and in the background, and drops what is not what was written.

What a crash of the machine left in doubt comes first, until no doubt is left. Then all files, in the order of their
digests, once a week; where it is, is kept in the index, so that a restart goes on there.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator
from typing import Protocol

import crc32c

from csi_driver.cache.capacity import Capacity
from csi_driver.cache.chunk_map import ChunkMap
from csi_driver.cache.crash_recovery import CrashRecovery
from csi_driver.cache.disk_health import DiskHealth
from csi_driver.cache.hard_links import is_linked
from csi_driver.cache.index import IndexRow
from csi_driver.cache.object_files import ObjectFiles
from csi_driver.model.chunk import CHUNK_BYTES, chunk_range
from csi_driver.model.errors import CacheError, ManifestInvalid

logger = logging.getLogger(__name__)

PASS_S = 7 * 86_400.0
"""From the beginning of one pass to that of the next."""

_LOOK_AGAIN_S = 60.0
_BEGIN_AFTER_S = 30.0
"""A daemon that has just started has readers waiting for it."""

_CURSOR = "scrub_cursor"
_BEGUN = "scrub_begun"


class InUse(Protocol):
    """What the scrubber asks of the chunk store."""

    def is_open(self, digest: str) -> bool:
        """Whether the object file is in use."""

    def part_with(self, digest: str) -> None:
        """New opens shall not share the file that is open under this digest."""


class Scrubber:
    """One for a cache directory. ``begin`` starts its thread; ``scrub`` may be called without."""

    def __init__(
        self,
        shelf: ObjectFiles,
        room: Capacity,
        doubt: CrashRecovery,
        health: DiskHealth,
        in_use: InUse,
        rate_bytes: int,
    ) -> None:
        """``rate_bytes`` a second at the most; 0: never."""
        self._shelf, self._room, self._doubt, self._health = shelf, room, doubt, health
        self._in_use = in_use
        self._rate_bytes = rate_bytes
        self._closing = threading.Event()
        self._buffer = memoryview(bytearray(CHUNK_BYTES))
        self._thread = threading.Thread(target=self._run, name="scrub", daemon=True)
        self.scrubbed_bytes = 0

    def begin(self) -> None:
        """Starts the thread, unless scrubbing is switched off."""
        if self._rate_bytes:
            self._thread.start()

    def close(self) -> None:
        """Ends the thread."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join()

    # -- what is done when --

    def _run(self) -> None:
        wait_s = _BEGIN_AFTER_S
        while not self._closing.wait(wait_s):
            wait_s = _LOOK_AGAIN_S
            try:
                if self._health.in_use:
                    self.settle()
                    self._pass_if_due()
            except CacheError as error:
                self._health.failed(str(error))
            except Exception:
                logger.exception("the scrubber failed in a way nobody foresaw")
                return

    def settle(self) -> None:
        """Checks what a crash of the machine left in doubt, and ends the doubt when nothing of it is left."""
        while self._doubt.exists and not self._closing.is_set():
            self._shelf.index.flush()
            found = False
            for row in self._shelf.index.rows():
                if self._closing.is_set():
                    return
                if row.generation != self._shelf.generation:
                    found = True
                    self._doubt.settle(row.digest, row.size_bytes)
                    self._pause(row.present_bytes)
            if not found:
                if not self._doubt.end():
                    return  # strays are being looked for still
                logger.info("nothing is in doubt any more after the crash of the machine")

    def _pass_if_due(self) -> None:
        index = self._shelf.index
        cursor = index.fact(_CURSOR) or ""
        now = time.time()
        if not cursor:
            if 0 <= now - float(index.fact(_BEGUN) or 0) < PASS_S:
                return
            index.set_fact(_BEGUN, str(now))
        self.scrub(cursor)

    def scrub(self, cursor: str = "") -> None:
        """Reads all object files behind the cursor. Keeps its place after each of the 256 directories."""
        index = self._shelf.index
        for number in range(int(cursor or "0", 16), 256):
            folder = f"{number:02x}"
            if number:
                index.set_fact(_CURSOR, folder)
            for row in index.rows_of(folder):
                if self._closing.is_set() or not self._health.in_use:
                    return
                self._check(row)
        index.set_fact(_CURSOR, "")

    # -- one object file --

    def _check(self, row: IndexRow) -> None:
        if row.generation != self._shelf.generation or (not row.complete and self._in_use.is_open(row.digest)):
            return  # in doubt, or being written
        shelf = self._shelf
        path = shelf.complete_path(row.digest) if row.complete else shelf.partial_path(row.digest)
        try:
            chunks = ChunkMap.decode(row.chunk_map, row.size_bytes)
        except ManifestInvalid:
            # A damaged map of a complete file: its bytes cannot be checked, and are not believed.
            self._drop(row, "its chunk map cannot be read")
            return
        descriptor = shelf.disk.open("scrub.open", path)
        if descriptor is None:
            return  # evicted, or completed, since the row was read
        try:
            bad = list(self._bad_chunks(descriptor, chunks, row.size_bytes))
        finally:
            os.close(descriptor)
        if bad and not self._closing.is_set() and self._is_still(row):
            self._give_up(row, chunks, bad)

    def _bad_chunks(self, descriptor: int, chunks: ChunkMap, size_bytes: int) -> Iterator[int]:
        for chunk, there in enumerate(chunks.present):
            if not there:
                continue
            if self._closing.is_set():
                return
            byte_range = chunk_range(chunk, size_bytes)
            view = self._buffer[: len(byte_range)]
            if not self._reads(descriptor, view, byte_range.start) or crc32c.crc32c(view) != chunks.checksums[chunk]:
                yield chunk
            self.scrubbed_bytes += len(byte_range)
            self._pause(len(byte_range))

    def _reads(self, descriptor: int, view: memoryview, offset: int) -> bool:
        """False if the disk cannot give the bytes back. What was not in the page cache does not stay there."""
        disk = self._shelf.disk
        try:
            if disk.read_cached("scrub.read", descriptor, [view], offset) == len(view):
                return True
            count = disk.read("scrub.read", descriptor, [view], offset)
        except CacheError:
            return False
        os.posix_fadvise(descriptor, offset, len(view), os.POSIX_FADV_DONTNEED)
        return count == len(view)

    def _is_still(self, row: IndexRow) -> bool:
        now = self._shelf.index.find(row.digest)
        return now is not None and now.chunk_map == row.chunk_map and now.generation == row.generation

    # -- what is bad --

    def _give_up(self, row: IndexRow, chunks: ChunkMap, bad: list[int]) -> None:
        shelf = self._shelf
        self._health.bad_chunks += len(bad)
        self._health.failed("bytes of an object file are not what was written")
        self._room.let_go()
        for chunk in bad:
            chunks.remove(chunk)
        with shelf.links.of(row.digest):
            linked = row.complete and is_linked(shelf.complete_path(row.digest))
            used = self._in_use.is_open(row.digest)
            if linked or used or not any(chunks.present):
                self._drop_held(row, linked=linked, used=used)
                return
            if row.complete:
                shelf.disk.rename_if_exists(
                    "scrub.drop", shelf.complete_path(row.digest), shelf.partial_path(row.digest)
                )
            shelf.record(row.digest, row.size_bytes, chunks, complete=False, dataset=row.dataset)
        self._room.taken(chunks.present_bytes(row.size_bytes) - row.present_bytes)
        logger.warning("object file %s: %d damaged chunks were dropped and will be fetched again", row.digest, len(bad))

    def _drop_held(self, row: IndexRow, *, linked: bool, used: bool) -> None:
        """Who has the file open, or in a view, keeps the bytes that it has; everybody else fetches it again."""
        self._shelf.drop(row.digest)
        self._in_use.part_with(row.digest)
        self._room.taken(-row.present_bytes)
        if linked:
            self._health.damaged_views[row.dataset] = self._health.damaged_views.get(row.dataset, 0) + 1
        where = "in a materialised view" if linked else "open" if used else "nowhere else"
        logger.warning("object file %s is damaged and was dropped; it is %s", row.digest, where)

    def _drop(self, row: IndexRow, why: str) -> None:
        self._health.bad_chunks += 1
        self._health.failed(why)
        with self._shelf.links.of(row.digest):
            linked = row.complete and is_linked(self._shelf.complete_path(row.digest))
            self._drop_held(row, linked=linked, used=self._in_use.is_open(row.digest))

    def _pause(self, count_bytes: int) -> None:
        if self._rate_bytes:
            self._closing.wait(count_bytes / self._rate_bytes)
