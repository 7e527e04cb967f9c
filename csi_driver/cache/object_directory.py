"""The object files on the disk and their rows in the index: names, and the one way to create, record, publish and drop.

Shared by the parts of the cache: the chunk store, capacity, crash recovery and the scrubber. ``object_file.py`` is one
of these files while it is open.
"""

from __future__ import annotations

import os

from csi_driver.cache.cache_directory import CacheDirectory
from csi_driver.cache.chunk_map import ChunkMap
from csi_driver.cache.disk import Disk
from csi_driver.cache.hard_links import LinkGuard
from csi_driver.cache.index import Index, IndexRow


class ObjectDirectory:
    """The object files of one cache directory, by digest. Methods may be called from any thread."""

    def __init__(self, cache_directory: CacheDirectory, index: Index, disk: Disk, generation: int) -> None:
        """``generation`` is recorded with bytes that are written from now on, see ``CacheDirectory.begin``."""
        self.cache_directory = cache_directory
        self.index = index
        self.disk = disk
        self.generation = generation
        self._complete = os.fspath(cache_directory.objects)
        self._partial = os.fspath(cache_directory.partial)
        self.link_guard = LinkGuard()
        self.clock = index.latest_use()
        """Bytes opened since the cache was made: the clock of eviction. Not locked: a lost step does no harm."""

    def complete_path(self, digest: str) -> str:
        """The name of the file once it is complete."""
        return f"{self._complete}/{digest[:2]}/{digest}"

    def partial_path(self, digest: str) -> str:
        """The name of the file while chunks are missing."""
        return f"{self._partial}/{digest[:2]}/{digest}"

    def publish(self, digest: str) -> None:
        """Gives a file its final name: the commit. Raises CacheDiskFull or CacheDiskFailed."""
        self.disk.rename("object.publish", self.partial_path(digest), self.complete_path(digest))

    def create(self, digest: str) -> int:
        """A descriptor of a new, empty, partial file. A file that had its name is unlinked. Raises CacheDiskFull or
        CacheDiskFailed."""
        path = self.partial_path(digest)
        # A name that is free is taken from no file, so the lock is not needed for it.
        descriptor = self.disk.create_new("object.create", path)
        if descriptor is None:
            with self.link_guard.of(digest):
                descriptor = self.disk.create("object.create", path)
        return descriptor

    def publish_file(self, digest: str, descriptor: int) -> bool:
        """``publish`` for a file that is open. False, and nothing is published, if it has lost its name: ``create`` may
        have given that to another file, which may be half written. Or if the object is complete already, since another
        credential has fetched it at the same time."""
        # Under the lock that ``create`` and ``drop`` have: the look at the names and the rename are one step.
        with self.link_guard.of(digest):
            if not os.fstat(descriptor).st_nlink:
                return False
            if os.access(self.complete_path(digest), os.F_OK):
                self.disk.unlink("object.drop", self.partial_path(digest))
                return False
            self.publish(digest)
        return True

    def record(self, digest: str, size_bytes: int, chunks: ChunkMap, *, complete: bool, dataset: int) -> None:
        """Writes the row of a file to the index, with the next batch. Does not block."""
        present = size_bytes if complete else chunks.present_bytes(size_bytes)
        now, encoded = self.clock, chunks.encode()
        self.index.record(IndexRow(digest, size_bytes, present, complete, encoded, self.generation, dataset, now, now))

    def drop(self, digest: str) -> None:
        """Removes a file and its row. Raises CacheDiskFailed if the disk refuses."""
        # The row first: no thread then finds a row whose file is gone already.
        self.index.forget(digest)
        self.disk.unlink("object.drop", self.complete_path(digest))
        self.disk.unlink("object.drop", self.partial_path(digest))
