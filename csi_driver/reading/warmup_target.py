"""One object that a warmup fetches: in one piece or, if it is large, in several pieces by several threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

from csi_driver.event_loop.once import Once
from csi_driver.model.chunk import CHUNK_BYTES, chunk_count
from csi_driver.model.errors import CacheDiskFailed, HayloftError, Interrupted, StoreUnavailable
from csi_driver.reading.open_object import OpenObject
from csi_driver.reading.read_through_cache import ReadThroughCache
from csi_driver.reading.services import ObjectSource

Wait = Callable[[float], bool]
"""Waits so many seconds; True as soon as the warmup is to stop."""

_POLL_S = 0.05
"""How often a thread polls whether the chunks that a reader fetches are cached."""


class WarmupTarget:
    """An object from its first piece until the last one is done. Methods may be called from any thread.

    ``_open_lock`` is held while a large object is opened, which uses the disk: the other threads need it open too.
    ``_lock`` guards ``_pieces``, ``counted_bytes`` and ``failure``.
    """

    def __init__(
        self,
        number: int,
        source: ObjectSource,
        read_through_cache: ReadThroughCache,
        wanted: tuple[range, ...],
        *,
        small: bool,
        cached: bool,
    ) -> None:
        """One piece is counted for the caller until it has handed out all others."""
        self.number = number
        self.size_bytes = source.version.size_bytes
        self.chunks = range(chunk_count(self.size_bytes))
        self.wanted = (self.chunks,) if small or cached else wanted
        """The chunks that it is to have: neither opening nor asking for access is possible for a part."""
        self.small = small
        """Opening it fetches it."""
        self.cached = cached
        """It is complete in the cache; opening it asks the store whether the credential may read it."""
        self._source = source
        self.share = source.share
        self._read_through_cache = read_through_cache
        self._open_lock = threading.Lock()
        self._lock = threading.Lock()
        self._open: OpenObject | None = None
        self._pieces = 1
        self.counted_bytes = 0
        self.failure: HayloftError | None = None

    @property
    def wanted_bytes(self) -> int:
        return sum(chunks_bytes(chunks, self.size_bytes) for chunks in self.wanted)

    def pieces(self, most_chunks: int) -> Iterator[range]:
        """What one request each may fetch."""
        if self.small or self.cached:
            yield from self.wanted
            return
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

    def open(self, wait: Wait) -> None:
        """Opens it. Raises HayloftError; Interrupted if ``wait`` returned True."""
        self._opened(wait)

    def missing_bytes(self, chunks: range, wait: Wait) -> int:
        """How many bytes of the chunks would have to be fetched. Opens a large object. Raises HayloftError."""
        if self.small and self._open is None:
            return self.size_bytes
        return self._opened(wait).missing_bytes(chunks)

    def fetch(self, chunks: range, wait: Wait) -> int:
        """Fetches the missing chunks, and waits for those that a reader fetches; how many bytes were fetched here.
        Raises HayloftError; Interrupted if ``wait`` returned True."""
        fetched_bytes = self.size_bytes if self.small and self._open is None else 0
        opened = self._opened(wait)
        if opened.complete:
            return fetched_bytes
        if not opened.cacheable:
            raise self._read_through_cache.disk_error or CacheDiskFailed("the cache disk refuses the object")
        fetched_bytes, error = opened.fill(chunks)
        if error is not None:
            raise error
        while opened.missing_bytes(chunks) and opened.in_flight(chunks):
            if wait(_POLL_S):
                raise Interrupted("the warmup was stopped")
        if opened.missing_bytes(chunks):
            error = None if self._read_through_cache.accepts_writes() else self._read_through_cache.disk_error
            raise error or StoreUnavailable(f"{self._source.version.key}: a reader's fetch of it failed")
        return fetched_bytes

    def close(self) -> bool:
        """Ends the open. True if what is wanted of the object is in the cache; bytes of a reader's fetch may be in
        memory still."""
        opened, self._open = self._open, None
        if opened is None:
            return False
        if self.wanted_bytes < self.size_bytes:
            complete = not any(opened.missing_bytes(chunks) for chunks in self.wanted)
        else:
            complete = opened.complete and self._read_through_cache.present_bytes(self._source) == self.size_bytes
        opened.close()
        return complete

    def _opened(self, wait: Wait) -> OpenObject:
        if self.small:  # it is one piece, so one thread opens it, and fetches it without holding a lock
            if self._open is None:
                self._open = open_object(self._read_through_cache, self._source, wait)
            return self._open
        with self._open_lock:
            if self._open is None:
                self._open = open_object(self._read_through_cache, self._source, wait)
            return self._open


def chunks_bytes(chunks: range, size_bytes: int) -> int:
    """The bytes of chunks of an object of that size."""
    return min(chunks.stop * CHUNK_BYTES, size_bytes) - chunks.start * CHUNK_BYTES if chunks else 0


def open_object(read_through_cache: ReadThroughCache, source: ObjectSource, wait: Wait) -> OpenObject:
    """Opens an object, on this thread unless a reader already does. Raises HayloftError; Interrupted if ``wait``
    returned True, and then the open is closed as soon as it is answered."""
    results: list[OpenObject | HayloftError] = []
    done = threading.Event()
    # The answer and the interruption race on two threads. The answer wins: this thread returns it. The interruption
    # wins: the answer closes what it has opened.
    outcome = Once()

    def opened(result: OpenObject | HayloftError) -> None:
        if outcome.claim():
            results.append(result)
            done.set()
        elif isinstance(result, OpenObject):
            result.close()

    read_through_cache.open_on_this_thread(source, opened)
    while not done.is_set():
        if wait(_POLL_S):
            if outcome.claim():
                raise Interrupted("the warmup was stopped")
            done.wait()
    result = results[0]
    if isinstance(result, HayloftError):
        raise result
    return result
