"""One sparse local file per object version: chunk N of the object lies at offset N times the chunk size."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from typing import Protocol

from csi_driver.cache.chunk_map import ChunkMap
from csi_driver.cache.disk import Disk
from csi_driver.model.chunk import CHUNK_BYTES, ByteRange, chunk_range


class ObjectFileOwner(Protocol):
    """What an object file tells the store that made it."""

    def room_for(self, file: ObjectFile, count_bytes: int) -> bool:
        """Makes sure that so many bytes may be written; False if they are not to be kept. Raises CacheDiskFull."""

    def grew(self, file: ObjectFile, count_bytes: int) -> None:
        """Bytes were added."""

    def completed(self, file: ObjectFile) -> None:
        """The last missing chunk was added: gives the file its final name."""

    def released(self, file: ObjectFile) -> None:
        """Nobody uses the file any more."""


class ObjectFile:
    """An object file in use. Shared by all who read the same object version; closed when the last one releases it.

    ``_lock`` guards ``_users`` and changes of ``chunks``. ``complete`` and ``chunks.present`` may be read without it.
    """

    __slots__ = (
        *("_disk", "_lock", "_owner", "_users"),
        *("chunks", "complete", "dataset", "descriptor", "digest", "held", "passing", "size_bytes"),
    )

    def __init__(
        self, owner: ObjectFileOwner, disk: Disk, digest: str, size_bytes: int, descriptor: int, chunks: ChunkMap | None
    ) -> None:
        """Takes over the descriptor. No chunk map: the file is complete."""
        self._owner = owner
        self._disk = disk
        self.digest = digest
        self.size_bytes = size_bytes
        self.descriptor = descriptor
        self.chunks = chunks
        self.complete = chunks is None
        self.dataset = 0
        """Who read it last, for eviction."""
        self.passing = False
        """Whether the last chunk was not kept because the object is large beside the cache."""
        self.held = False
        """Whether the last chunk does not make the file complete: somebody checks it first, and calls ``publish``."""
        self._lock = threading.Lock()
        self._users = 1

    def has(self, chunk_numbers: range) -> bool:
        """True if all these chunks are present."""
        if self.complete:
            return True
        chunks = self.chunks
        return chunks is None or all(chunks.present[chunk_numbers.start : chunk_numbers.stop])

    def is_present(self, chunk: int) -> bool:
        """True if this chunk is present."""
        chunks = self.chunks
        return self.complete or chunks is None or bool(chunks.present[chunk])

    def present_bytes(self) -> int:
        """Bytes of the object that are in the file."""
        with self._lock:
            if self.complete or self.chunks is None:
                return self.size_bytes
            return self.chunks.present_bytes(self.size_bytes)

    @property
    def missing_count(self) -> int:
        """How many chunks are not in the file."""
        chunks = self.chunks
        return 0 if self.complete or chunks is None else chunks.missing_count

    def write_chunk(self, chunk: int, parts: Sequence[memoryview], checksum: int) -> None:
        """Stores one whole chunk; publishes the file with the last one. Blocks on the disk. Does nothing if the cache
        has no room for it: ``passing`` tells so.

        Raises CacheDiskFull or CacheDiskFailed; the chunk then counts as missing.
        """
        length = len(chunk_range(chunk, self.size_bytes))
        self.passing = not self._owner.room_for(self, length)
        if self.passing:
            return
        self._disk.write("chunk.write", self.descriptor, parts, chunk * CHUNK_BYTES)
        with self._lock:
            chunks = self.chunks
            if self.complete or chunks is None or chunks.present[chunk]:
                return
            chunks.add(chunk, checksum)
            last = chunks.complete
        self._owner.grew(self, length)
        if last and not self.held:
            self.publish()

    @property
    def whole(self) -> bool:
        """True if every chunk is there and the file waits for ``publish``."""
        chunks = self.chunks
        return not self.complete and chunks is not None and chunks.complete

    def publish(self) -> None:
        """Makes a file complete whose chunks are all there. Raises CacheDiskFull or CacheDiskFailed."""
        self._owner.completed(self)
        self.complete = True

    def drop_chunks(self) -> None:
        """Forgets all chunks of a file that is not complete: they are not the object's bytes."""
        with self._lock:
            chunks = self.chunks
            if self.complete or chunks is None:
                return
            gone = chunks.present_bytes(self.size_bytes)
            for chunk in range(len(chunks.present)):
                chunks.remove(chunk)
        self._owner.grew(self, -gone)

    def read(self, byte_range: ByteRange, buffer: memoryview) -> int:
        """Copies a range that is present; the number of bytes. Blocks on the disk at the worst."""
        return self._disk.read("chunk.read", self.descriptor, [buffer[: len(byte_range)]], byte_range.start)

    def read_cached(self, byte_range: ByteRange, buffer: memoryview) -> bool:
        """Like ``read``, but only if all of it is in the page cache; else False. Does not wait for the disk."""
        view = buffer[: len(byte_range)]
        return self._disk.read_cached("chunk.read", self.descriptor, [view], byte_range.start) == len(byte_range)

    def acquire(self) -> bool:
        """Counts one more user; False if the file is closed already."""
        with self._lock:
            if self._users == 0:
                return False
            self._users += 1
            return True

    def release(self) -> None:
        """Counts one user less; the last one closes the file."""
        with self._lock:
            self._users -= 1
            if self._users:
                return
        self._owner.released(self)
        os.close(self.descriptor)
