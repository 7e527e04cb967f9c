"""What is believed of the object files after a daemon that was killed or a machine that crashed."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable

from csi_driver.cache.cache_directory import Beginning
from csi_driver.cache.capacity import Capacity
from csi_driver.cache.chunk_map import ChunkMap
from csi_driver.cache.index import IndexRow
from csi_driver.cache.object_files import ObjectFiles
from csi_driver.cache.reconciliation import reconcile
from csi_driver.cache.verification import bad_chunks
from csi_driver.model.errors import CacheError, ManifestInvalid

logger = logging.getLogger(__name__)


class CrashRecovery:
    """Decides whether an object file may be used as it is, and checks it where not. Methods may be called from any
    thread.

    ``_settling``, by digest, are held while a file is checked: two that check the same one would take it from each
    other.
    """

    def __init__(self, shelf: ObjectFiles, room: Capacity, beginning: Beginning, in_use: Callable[[str], bool]) -> None:
        """``in_use`` tells of a digest whether its file is in use."""
        self._shelf = shelf
        self._room = room
        self._beginning = beginning
        self._in_use = in_use
        oldest = shelf.index.oldest_generation()
        self.exists = not beginning.strays_are_trusted or (oldest or shelf.generation) < shelf.generation
        """Whether there may be object files that a crash of the machine has damaged. Without doubt an OPEN does not
        ask the index."""
        self.dropped_chunks = 0
        """Chunks that a crash of the machine had spoiled."""
        self._reconciled = not beginning.unclean
        self._settling = [threading.Lock() for _ in range(64)]
        self._closing = False
        self._recovery = threading.Thread(target=self._reconcile, name="recovery", daemon=True)

    def begin(self) -> None:
        """Brings index and object files to agree, in the background, if the last daemon did not end in order."""
        if self._beginning.unclean:
            self._recovery.start()

    def close(self) -> None:
        """Ends what runs in the background."""
        self._closing = True
        if self._recovery.is_alive():
            self._recovery.join()

    def allows(self, digest: str) -> bool:
        """True if the file may be used as it is. Asks the index only where there is doubt at all."""
        return not self.exists or self.is_trusted(digest)

    def is_trusted(self, digest: str) -> bool:
        """True if the file's bytes are known to be good since the last crash of the machine. Reads the index."""
        row = self._shelf.index.find(digest)
        return row is not None and row.generation == self._shelf.generation

    def settle(self, digest: str, size_bytes: int) -> None:
        """Checks the file against its CRCs unless it is trusted: blocks on the disk as long as reading it takes. Chunks
        that fail are dropped; a file that the index does not know goes altogether."""
        with self._settling[int(digest[:2], 16) % len(self._settling)]:
            row = self._shelf.index.find(digest)
            if row is None or row.size_bytes != size_bytes:
                self._shelf.drop(digest)
            elif row.generation != self._shelf.generation:
                self._check(digest, row)

    def end(self) -> bool:
        """Nothing is in doubt any more: from now on no OPEN asks the index. False while files without a row may still
        be found."""
        if self._reconciled:
            self.exists = False
        return self._reconciled

    def _check(self, digest: str, row: IndexRow) -> None:
        """Checks an object file of before the crash; what is left of it is of this generation."""
        shelf = self._shelf
        if row.complete:
            shelf.disk.rename_if_exists("object.check", shelf.complete_path(digest), shelf.partial_path(digest))
        descriptor = shelf.disk.open("object.open", shelf.partial_path(digest))
        if descriptor is None:
            shelf.drop(digest)
            return
        try:
            chunks = ChunkMap.decode(row.chunk_map, row.size_bytes)
            os.ftruncate(descriptor, row.size_bytes)
            for chunk in bad_chunks(shelf.disk, descriptor, chunks, row.size_bytes):
                chunks.remove(chunk)
                self.dropped_chunks += 1
        except ManifestInvalid:
            shelf.drop(digest)
            return
        finally:
            os.close(descriptor)
        if chunks.complete:
            shelf.publish(digest)
        shelf.record(digest, row.size_bytes, chunks, complete=chunks.complete, dataset=row.dataset)
        self._room.taken(chunks.present_bytes(row.size_bytes) - row.present_bytes)

    def _reconcile(self) -> None:
        shelf = self._shelf
        try:
            shelf.index.flush()
            found = reconcile(
                shelf.home,
                shelf.index,
                shelf.disk,
                shelf.generation,
                files_are_trusted=self._beginning.strays_are_trusted,
                in_use=self._in_use,
                stopping=lambda: self._closing,
            )
        except CacheError as error:
            self._room.refuse(error)
            return
        self._room.taken(found.adopted_bytes - found.dropped_row_bytes)
        if not self._closing:
            shelf.home.strays_are_gone(shelf.index)
            self._reconciled = True
        if found.dropped_files or found.adopted_bytes:
            logger.info("%d bytes were found again, %d files dropped", found.adopted_bytes, found.dropped_files)
