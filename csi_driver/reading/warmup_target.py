"""One object that a warmup fetches: in one piece or, if it is large, in several pieces by several threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from csi_driver.model.chunk import CHUNK_BYTES, chunk_count
from csi_driver.model.errors import CacheDiskFailed, HayloftError, StoreUnavailable
from csi_driver.reading.open_object import OpenObject
from csi_driver.reading.read_through_cache import ReadThroughCache
from csi_driver.reading.services import ObjectSource


class WarmupTarget:
    """An object from its first piece until the last one is done. Methods may be called from any thread.

    ``_lock`` guards ``_pieces``, ``counted_bytes`` and ``failure``.
    """

    def __init__(
        self,
        number: int,
        source: ObjectSource,
        read_through_cache: ReadThroughCache,
        wanted: tuple[range, ...] | None = None,
    ) -> None:
        """One piece is counted for the caller until it has handed out all others."""
        self.number = number
        self.source = source
        self.size_bytes = source.version.size_bytes
        self.chunks = range(chunk_count(self.size_bytes))
        self.wanted = (self.chunks,) if wanted is None else wanted
        """The chunks that it is to have."""
        self.opened: OpenObject | None = None
        """Set before a piece is handed out or, of an object that is one piece, before that is done."""
        self._read_through_cache = read_through_cache
        self._lock = threading.Lock()
        self._pieces = 1
        self.counted_bytes = 0
        self.failure: HayloftError | None = None

    @property
    def wanted_bytes(self) -> int:
        return sum(chunks_bytes(chunks, self.size_bytes) for chunks in self.wanted)

    def pieces(self, most_chunks: int) -> Iterator[range]:
        """What one request each may fetch."""
        for chunks in self.wanted:
            for first in range(chunks.start, chunks.stop, most_chunks):
                yield range(first, min(first + most_chunks, chunks.stop))

    def add_piece(self) -> None:
        """One more piece is handed out."""
        with self._lock:
            self._pieces += 1

    def piece_done(self) -> bool:
        """A piece is done, or all are handed out. True for the last one: then the caller closes the target."""
        with self._lock:
            self._pieces -= 1
            return not self._pieces

    def fail(self, error: HayloftError) -> None:
        """A piece could not be fetched; no more pieces of the object are handed out. The first error stays."""
        with self._lock:
            self.failure = self.failure or error

    def count(self, count_bytes: int) -> None:
        """So many bytes were reported as progress."""
        with self._lock:
            self.counted_bytes += count_bytes

    def missing_bytes(self, chunks: range) -> int:
        """How many bytes of the chunks are not cached."""
        return 0 if self.opened is None else self.opened.missing_bytes(chunks)

    def fetch(self, chunks: range) -> int:
        """Fetches the missing chunks, and waits for those that a reader fetches; how many bytes were fetched here.
        Raises HayloftError."""
        opened = self.opened
        if opened is None or opened.complete:
            return 0
        if not opened.cacheable:
            raise self._read_through_cache.disk_error or CacheDiskFailed("the cache disk refuses the object")
        fetched_bytes, error = opened.fill(chunks)
        if error is not None:
            raise error
        if opened.missing_bytes(chunks):
            error = None if self._read_through_cache.accepts_writes() else self._read_through_cache.disk_error
            raise error or StoreUnavailable(f"{self.source.version.key}: a reader's fetch of it failed")
        return fetched_bytes

    def close(self) -> bool:
        """Ends the open. True if what is wanted of the object is in the cache; bytes of a reader's fetch may be in
        memory still."""
        opened, self.opened = self.opened, None
        if opened is None:
            return False
        if self.wanted_bytes < self.size_bytes:
            complete = not any(opened.missing_bytes(chunks) for chunks in self.wanted)
        elif opened.reusable_file is not None:
            complete = True  # it was complete when it was opened
        else:
            complete = opened.complete and self._read_through_cache.present_bytes(self.source) == self.size_bytes
        opened.close()
        return complete


def chunks_bytes(chunks: range, size_bytes: int) -> int:
    """The bytes of chunks of an object of that size."""
    return min(chunks.stop * CHUNK_BYTES, size_bytes) - chunks.start * CHUNK_BYTES if chunks else 0
