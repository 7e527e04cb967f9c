"""Crash recovery: which object files may be trusted after a daemon was killed or the machine crashed."""

from __future__ import annotations

import logging
import os
import threading

from csi_driver.cache.cache_directory import StartState
from csi_driver.cache.capacity import Capacity
from csi_driver.cache.chunk_map import ChunkMap
from csi_driver.cache.chunk_verification import bad_chunks
from csi_driver.cache.files_in_use import FilesInUse
from csi_driver.cache.index import IndexRow
from csi_driver.cache.index_reconciliation import reconcile
from csi_driver.cache.object_directory import ObjectDirectory
from csi_driver.model.errors import CacheError, ManifestInvalid

logger = logging.getLogger(__name__)


class CrashRecovery:
    """Decides whether an object file may be used as it is, and verifies it if not. Methods may be called from any
    thread.

    ``_verifying``, by digest, is held while a file is verified, for as long as reading it takes: verification renames
    the file away from its final name, so two threads at one file would take it from each other.
    """

    def __init__(
        self, objects: ObjectDirectory, capacity: Capacity, start_state: StartState, in_use: FilesInUse
    ) -> None:
        self._objects = objects
        self._capacity = capacity
        self._start_state = start_state
        self._in_use = in_use
        oldest = objects.index.oldest_generation()
        self.has_unverified = not start_state.strays_are_trusted or (oldest or objects.generation) < objects.generation
        """Whether a crash of the machine may have damaged object files that were not verified since. While it is
        False, an OPEN needs no look at the index."""
        self.dropped_chunks = 0
        """Chunks that a crash of the machine had damaged."""
        self._reconciled = not start_state.unclean
        self._verifying = [threading.Lock() for _ in range(64)]
        self._closing = False
        self._recovery = threading.Thread(target=self._reconcile, name="recovery", daemon=True)

    def begin(self) -> None:
        """Starts the reconciliation of index and object files in the background if the last daemon was killed."""
        if self._start_state.unclean:
            self._recovery.start()

    def close(self) -> None:
        self._closing = True
        if self._recovery.is_alive():
            self._recovery.join()

    def allows(self, digest: str) -> bool:
        """True if the file may be used as it is. Reads the index only while there are unverified files."""
        return not self.has_unverified or self.is_trusted(digest)

    def is_trusted(self, digest: str) -> bool:
        """True if the file's bytes are known to be good since the last crash of the machine. Reads the index."""
        row = self._objects.index.find(digest)
        return row is not None and row.generation == self._objects.generation

    def verify(self, digest: str, size_bytes: int) -> None:
        """Checks the file against its CRCs unless it is trusted: blocks on the disk for as long as reading it takes.
        Chunks that fail are dropped; a file without a row, which has no CRCs, is dropped as a whole."""
        with self._verifying[int(digest[:2], 16) % len(self._verifying)]:
            # Read under the lock: a thread that waited finds the row that the other one has recorded.
            row = self._objects.index.find(digest)
            if row is None or row.size_bytes != size_bytes:
                self._capacity.drop(digest)
            elif row.generation != self._objects.generation:
                self._verify(digest, row)

    def end(self) -> bool:
        """All files are verified: from now on no OPEN reads the index. False while the reconciliation may still find
        files without a row."""
        # A complete file without a row is in no scan of the rows: only the reconciliation finds it.
        if self._reconciled:
            self.has_unverified = False
        return self._reconciled

    def _verify(self, digest: str, row: IndexRow) -> None:
        """Verifies a file of an older generation; the chunks that pass are of this generation then."""
        objects = self._objects
        if row.complete:
            # Under its final name a file must be complete, and this one may turn out not to be.
            objects.disk.rename_if_exists("object.check", objects.complete_path(digest), objects.partial_path(digest))
        descriptor = objects.disk.open("object.open", objects.partial_path(digest))
        if descriptor is None:
            self._capacity.drop(digest)
            return
        try:
            chunks = ChunkMap.decode(row.chunk_map, row.size_bytes)
            os.ftruncate(descriptor, row.size_bytes)
            for chunk in bad_chunks(objects.disk, descriptor, chunks, row.size_bytes):
                chunks.remove(chunk)
                self.dropped_chunks += 1
        except ManifestInvalid:
            self._capacity.drop(digest)
            return
        finally:
            os.close(descriptor)
        if chunks.complete:
            objects.publish(digest)
        objects.record(digest, row.size_bytes, chunks, complete=chunks.complete, dataset=row.dataset)
        self._capacity.add_used(chunks.present_bytes(row.size_bytes) - row.present_bytes)

    def _reconcile(self) -> None:
        objects = self._objects
        try:
            objects.index.flush()
            found = reconcile(
                objects.cache_directory,
                objects.index,
                objects.disk,
                objects.generation,
                files_are_trusted=self._start_state.strays_are_trusted,
                in_use=self._in_use.digests,
                stopping=lambda: self._closing,
            )
        except CacheError as error:
            logger.warning("the index was not reconciled with the object files, the next daemon does it: %s", error)
            self._capacity.refuse(error)
            return
        self._capacity.add_used(found.adopted_bytes - found.dropped_row_bytes)
        # Only after a complete walk: otherwise the next daemon has to walk again.
        if not self._closing:
            objects.cache_directory.strays_are_gone(objects.index)
            self._reconciled = True
        if found.dropped_files or found.adopted_bytes:
            logger.info(
                "after an unclean stop: %d bytes without a row in the index were adopted, %d files dropped",
                found.adopted_bytes,
                found.dropped_files,
            )
