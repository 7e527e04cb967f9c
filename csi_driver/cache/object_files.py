"""Where object files lie and what the index says of them: the names, and the one way to record, publish and drop.

What the parts of the chunk store share: finding and adding (``chunk_store.py``), making room (``room.py``), and what
follows a crash (``doubt.py``).
"""

from __future__ import annotations

import os

from csi_driver.cache.cache_directory import CacheDirectory
from csi_driver.cache.chunk_map import ChunkMap
from csi_driver.cache.disk import Disk
from csi_driver.cache.hard_links import LinkGuard
from csi_driver.cache.index import Index, IndexRow


class ObjectFiles:
    """The object files of one directory, by digest. Methods may be called from any thread."""

    def __init__(self, home: CacheDirectory, index: Index, disk: Disk, generation: int) -> None:
        """``generation`` is what bytes recorded from now on belong to, see ``CacheDirectory.begin``."""
        self.home = home
        self.index = index
        self.disk = disk
        self.generation = generation
        self._objects = os.fspath(home.objects)
        self._partial = os.fspath(home.partial)
        self.links = LinkGuard()
        self.clock = index.latest_use()
        """Bytes opened since the cache was made: the time that eviction goes by. Not locked: a lost step is no harm."""

    def complete_path(self, digest: str) -> str:
        """The name of the file once it is complete."""
        return f"{self._objects}/{digest[:2]}/{digest}"

    def partial_path(self, digest: str) -> str:
        """The name of the file while chunks are missing."""
        return f"{self._partial}/{digest[:2]}/{digest}"

    def publish(self, digest: str) -> None:
        """Gives a file its final name: the commit. Raises CacheDiskFull or CacheDiskFailed."""
        self.disk.rename("object.publish", self.partial_path(digest), self.complete_path(digest))

    def create(self, digest: str) -> int:
        """A new file for an object, empty and under the name of one that is not complete; another one of that name
        loses it. Raises CacheDiskFull or CacheDiskFailed."""
        with self.links.of(digest):
            return self.disk.create("object.create", self.partial_path(digest))

    def publish_file(self, digest: str, descriptor: int) -> bool:
        """``publish`` for a file that is open. False, and nothing is done, if its name is another one's by now, or
        nobody's: that one may be half written."""
        with self.links.of(digest):
            if not os.fstat(descriptor).st_nlink:
                return False
            self.publish(digest)
        return True

    def record(self, digest: str, size_bytes: int, chunks: ChunkMap, *, complete: bool, dataset: int) -> None:
        """Tells the index what is there. Does not block."""
        present = size_bytes if complete else chunks.present_bytes(size_bytes)
        now, encoded = self.clock, chunks.encode()
        self.index.record(IndexRow(digest, size_bytes, present, complete, encoded, self.generation, dataset, now, now))

    def drop(self, digest: str) -> None:
        """Removes a file and its row. Raises CacheDiskFailed if the disk refuses."""
        self.index.forget(digest)
        self.disk.unlink("object.drop", self.complete_path(digest))
        self.disk.unlink("object.drop", self.partial_path(digest))
