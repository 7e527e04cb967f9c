"""The scrubber: reads the object files again, slowly and in the background, and drops damaged chunks.

Files that are unverified since a crash of the machine come first. Then all files, in the order of their digests, once
a week; the position is stored in the index, so that the next daemon resumes there.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import crc32c

from csi_driver.cache.capacity import Capacity
from csi_driver.cache.chunk_map import ChunkMap
from csi_driver.cache.crash_recovery import CrashRecovery
from csi_driver.cache.disk_health import DiskHealth
from csi_driver.cache.files_in_use import FilesInUse
from csi_driver.cache.hard_links import is_linked
from csi_driver.cache.index import IndexRow
from csi_driver.cache.object_directory import ObjectDirectory
from csi_driver.cache.object_file import ObjectFile
from csi_driver.model.chunk import CHUNK_BYTES, chunk_range
from csi_driver.model.errors import CacheDiskFailed, CacheError, ManifestInvalid

logger = logging.getLogger(__name__)

PASS_S = 7 * 86_400.0
"""From the start of one pass to that of the next."""

_POLL_S = 60.0
_BEGIN_AFTER_S = 30.0
"""A daemon that has just started has readers waiting for it."""

_CURSOR = "scrub_cursor"
_BEGUN = "scrub_begun"


@dataclass(frozen=True, slots=True)
class Checked:
    """Of one object file: bytes that were read, and chunks that were damaged and are dropped."""

    checked_bytes: int = 0
    bad_chunks: int = 0


class Scrubber:
    """One for each cache directory. ``begin`` starts its thread; ``scrub`` may be called without."""

    def __init__(
        self,
        objects: ObjectDirectory,
        capacity: Capacity,
        crash_recovery: CrashRecovery,
        health: DiskHealth,
        in_use: FilesInUse,
        rate_bytes: int,
    ) -> None:
        """``rate_bytes`` a second at the most; 0: never."""
        self._objects, self._capacity, self._health = objects, capacity, health
        self._crash_recovery = crash_recovery
        self._in_use = in_use
        self._rate_bytes = rate_bytes
        self._closing = threading.Event()
        self._buffer = memoryview(bytearray(CHUNK_BYTES))
        self._thread = threading.Thread(target=self._run, name="scrub", daemon=True)
        self.scrubbed_bytes = 0

    def begin(self) -> None:
        """Starts the thread, unless scrubbing is off."""
        if self._rate_bytes:
            self._thread.start()

    def close(self) -> None:
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join()

    # -- the thread --

    def _run(self) -> None:
        wait_s = _BEGIN_AFTER_S
        while not self._closing.wait(wait_s):
            wait_s = _POLL_S
            try:
                if self._health.in_use:
                    self.verify_after_crash()
                    self._pass_if_due()
            except CacheError as error:
                self._health.note(error)
            except BaseException:
                logger.exception("unexpected error: object files are not scrubbed until the daemon restarts")
                return

    def verify_after_crash(self) -> None:
        """Verifies the files of before the last crash of the machine, and ends the crash recovery when all are."""
        while self._crash_recovery.has_unverified and not self._closing.is_set():
            self._objects.index.flush()
            found = False
            for row in self._objects.index.rows():
                if self._closing.is_set():
                    return
                if row.generation != self._objects.generation:
                    found = True
                    self._crash_recovery.verify(row.digest, row.size_bytes)
                    self._pause(row.present_bytes)
            if not found:
                if not self._crash_recovery.end():
                    return  # the reconciliation still runs; the next poll tries again
                logger.info("all object files are verified after the crash of the machine")

    def _pass_if_due(self) -> None:
        index = self._objects.index
        cursor = index.fact(_CURSOR) or ""
        now = time.time()
        if not cursor:
            if 0 <= now - float(index.fact(_BEGUN) or 0) < PASS_S:
                return
            index.set_fact(_BEGUN, str(now))
        self.scrub(cursor)

    def scrub(self, cursor: str = "") -> None:
        """Reads all object files from the cursor on. Stores its position after each of the 256 directories."""
        index = self._objects.index
        for number in range(int(cursor or "0", 16), 256):
            folder = f"{number:02x}"
            if number:
                index.set_fact(_CURSOR, folder)
            for row in index.rows_of(folder):
                if self._closing.is_set() or not self._health.in_use:
                    return
                self._check(row, self._buffer, self._pause)
        index.set_fact(_CURSOR, "")

    def verify_now(self, digest: str) -> Checked:
        """Reads one object file at once, on the calling thread, and drops its damaged chunks; nothing cached is
        success. Pages that are in memory are read from there. Raises CacheDiskFailed."""
        file = self._in_use.acquire(digest)
        if file is not None:
            try:
                if not file.complete:
                    return self._check_open(file)
            finally:
                file.release()
        dropped, row = 0, self._objects.index.find(digest)
        if row is not None and row.generation != self._objects.generation:
            before = self._crash_recovery.dropped_chunks
            self._crash_recovery.verify(digest, row.size_bytes)
            dropped, row = self._crash_recovery.dropped_chunks - before, self._objects.index.find(digest)
        if row is None:
            return Checked(0, dropped)
        checked = self._check(row, memoryview(bytearray(CHUNK_BYTES)), lambda _: None)
        return Checked(checked.checked_bytes, checked.bad_chunks + dropped)

    # -- one object file --

    def _check_open(self, file: ObjectFile) -> Checked:
        """A partial file that a reader has open. If it is damaged it is dropped, and its reader keeps it."""
        chunks = file.chunks
        if chunks is None:
            return Checked()
        checked_bytes, bad = 0, []
        buffer = memoryview(bytearray(CHUNK_BYTES))
        for chunk, is_present in enumerate(bytes(chunks.present)):
            if is_present:
                byte_range = chunk_range(chunk, file.size_bytes)
                view = buffer[: len(byte_range)]
                if (
                    not self._can_read(file.descriptor, view, byte_range.start)
                    or crc32c.crc32c(view) != chunks.checksums[chunk]
                ):
                    bad.append(chunk)
                checked_bytes += len(byte_range)
        if bad:
            self._health.bad_chunks += len(bad)
            self._health.failed("bytes of an object file are not what was written")
            with self._objects.link_guard.of(file.digest):
                self._objects.drop(file.digest)
                self._in_use.detach(file.digest)
            self._capacity.add_used(-file.present_bytes())
            logger.warning(
                "object file %s is damaged and was dropped (still used by: an open file); the next open fetches it "
                "again",
                file.digest,
            )
        return Checked(checked_bytes, len(bad))

    def _check(self, row: IndexRow, buffer: memoryview, pause: Callable[[int], None]) -> Checked:
        if row.generation != self._objects.generation or (not row.complete and row.digest in self._in_use.digests):
            return Checked()  # unverified, or being written
        objects = self._objects
        path = objects.complete_path(row.digest) if row.complete else objects.partial_path(row.digest)
        try:
            chunks = ChunkMap.decode(row.chunk_map, row.size_bytes)
        except ManifestInvalid:
            # A damaged map of a complete file: its bytes cannot be verified, and are not trusted.
            self._drop(row, "its chunk map cannot be read")
            return Checked(0, 1)
        descriptor = objects.disk.open("scrub.open", path)
        if descriptor is None:
            return Checked()  # evicted, or completed, since the row was read
        try:
            bad = list(self._bad_chunks(descriptor, chunks, row.size_bytes, buffer, pause))
        finally:
            os.close(descriptor)
        checked_bytes = chunks.present_bytes(row.size_bytes)
        if not bad or self._closing.is_set() or not self._is_unchanged(row):
            return Checked(checked_bytes)
        self._drop_chunks(row, chunks, bad)
        return Checked(checked_bytes, len(bad))

    def _bad_chunks(
        self, descriptor: int, chunks: ChunkMap, size_bytes: int, buffer: memoryview, pause: Callable[[int], None]
    ) -> Iterator[int]:
        for chunk, is_present in enumerate(chunks.present):
            if not is_present:
                continue
            if self._closing.is_set():
                return
            byte_range = chunk_range(chunk, size_bytes)
            view = buffer[: len(byte_range)]
            if not self._can_read(descriptor, view, byte_range.start) or crc32c.crc32c(view) != chunks.checksums[chunk]:
                yield chunk
            self.scrubbed_bytes += len(byte_range)
            pause(len(byte_range))

    def _can_read(self, descriptor: int, view: memoryview, offset: int) -> bool:
        """Fills the view; False if the disk cannot. Pages that were not in the page cache are dropped from it again, so
        that a scrub does not evict those of readers."""
        disk = self._objects.disk
        try:
            if disk.read_cached("scrub.read", descriptor, [view], offset) == len(view):
                return True
            count = disk.read("scrub.read", descriptor, [view], offset)
        except CacheDiskFailed:
            return False
        os.posix_fadvise(descriptor, offset, len(view), os.POSIX_FADV_DONTNEED)
        return count == len(view)

    def _is_unchanged(self, row: IndexRow) -> bool:
        now = self._objects.index.find(row.digest)
        return now is not None and now.chunk_map == row.chunk_map and now.generation == row.generation

    # -- damage --

    def _drop_chunks(self, row: IndexRow, chunks: ChunkMap, bad: list[int]) -> None:
        objects = self._objects
        self._health.bad_chunks += len(bad)
        self._health.failed("bytes of an object file are not what was written")
        # Before the lock of the directory, which readers need: this may close thousands of files.
        self._in_use.release_idle()
        for chunk in bad:
            chunks.remove(chunk)
        # Under the lock, no view links the file and no new file gets its name between the look and the change.
        with objects.link_guard.of(row.digest):
            linked = row.complete and is_linked(objects.complete_path(row.digest))
            used = row.digest in self._in_use.digests
            if linked or used or not any(chunks.present):
                self._drop_held(row, linked=linked, used=used)
                return
            if row.complete:
                objects.disk.rename_if_exists(
                    "scrub.drop", objects.complete_path(row.digest), objects.partial_path(row.digest)
                )
            objects.record(row.digest, row.size_bytes, chunks, complete=False, dataset=row.dataset)
        self._capacity.add_used(chunks.present_bytes(row.size_bytes) - row.present_bytes)
        logger.warning("object file %s: %d damaged chunks were dropped and will be fetched again", row.digest, len(bad))

    def _drop_held(self, row: IndexRow, *, linked: bool, used: bool) -> None:
        """Readers and views that have the file keep its bytes; later opens fetch the object again. Under the lock of
        the directory."""
        self._objects.drop(row.digest)
        self._in_use.detach(row.digest)
        self._capacity.add_used(-row.present_bytes)
        if linked:
            self._health.damaged_views[row.dataset] = self._health.damaged_views.get(row.dataset, 0) + 1
        holder = "a materialised view" if linked else "an open file" if used else "none"
        logger.warning(
            "object file %s is damaged and was dropped (still used by: %s); the next open fetches it again",
            row.digest,
            holder,
        )

    def _drop(self, row: IndexRow, why: str) -> None:
        self._health.bad_chunks += 1
        self._health.failed(why)
        with self._objects.link_guard.of(row.digest):
            linked = row.complete and is_linked(self._objects.complete_path(row.digest))
            self._drop_held(row, linked=linked, used=row.digest in self._in_use.digests)

    def _pause(self, count_bytes: int) -> None:
        if self._rate_bytes:
            self._closing.wait(count_bytes / self._rate_bytes)
