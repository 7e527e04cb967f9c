"""One object that a warmup fetches, in one piece or, if it is large, in several by several threads."""

from __future__ import annotations

import threading
from collections.abc import Callable

from csi_driver.model.chunk import chunk_count
from csi_driver.model.errors import CacheDiskFailed, HayloftError, Interrupted, StoreUnavailable
from csi_driver.reading.open_object import OpenObject
from csi_driver.reading.read_through_cache import ReadThroughCache
from csi_driver.reading.services import ObjectSource

Wait = Callable[[float], bool]
"""Waits so many seconds; True as soon as the warmup is to stop."""

_LOOK_AGAIN_S = 0.05
"""How often it is looked whether what a reader fetches has come."""


class WarmupTarget:
    """An object from its first piece until the last one is done. Methods may be called from any thread.

    ``_opening`` is held while a large object is opened, which asks the disk: the other threads need it open too.
    ``_lock`` guards the counts and ``failure``.
    """

    def __init__(self, number: int, source: ObjectSource, library: ReadThroughCache, *, small: bool) -> None:
        """Held once, by who hands out the pieces."""
        self.number = number
        self.size_bytes = source.version.size_bytes
        self.whole = range(chunk_count(self.size_bytes))
        self.small = small
        """Opening it fetches it."""
        self._source = source
        self._library = library
        self._opening = threading.Lock()
        self._lock = threading.Lock()
        self._open: OpenObject | None = None
        self._held = 1
        self.counted_bytes = 0
        self.failure: HayloftError | None = None

    def hold(self) -> None:
        """One more piece is handed out."""
        with self._lock:
            self._held += 1

    def leave(self) -> bool:
        """A piece is done, or all are handed out. True for the last one, who closes it."""
        with self._lock:
            self._held -= 1
            return not self._held

    def fail(self, error: HayloftError) -> None:
        """A piece could not be fetched; no more of the object are handed out."""
        with self._lock:
            self.failure = self.failure or error

    def counted(self, count_bytes: int) -> None:
        """So many bytes were told as progress."""
        with self._lock:
            self.counted_bytes += count_bytes

    def missing_bytes(self, chunks: range, wait: Wait) -> int:
        """What of the chunks would have to be fetched. Opens a large object. Raises HayloftError."""
        if self.small and self._open is None:
            return self.size_bytes
        return self._opened(wait).missing_bytes(chunks)

    def fetch(self, chunks: range, wait: Wait) -> int:
        """Fetches what is missing of the chunks, and waits for those that a reader fetches; how many bytes were
        fetched here. Raises HayloftError; Interrupted if ``wait`` says so."""
        fetched_bytes = self.size_bytes if self.small and self._open is None else 0
        opened = self._opened(wait)
        if opened.complete:
            return fetched_bytes
        if not opened.stored:
            raise self._library.trouble or CacheDiskFailed("the cache disk refuses the object")
        fetched_bytes, error = opened.fill(chunks)
        if error is not None:
            raise error
        while opened.missing_bytes(chunks) and opened.in_flight(chunks):
            if wait(_LOOK_AGAIN_S):
                raise Interrupted("the warmup was stopped")
        if opened.missing_bytes(chunks):
            error = None if self._library.may_store() else self._library.trouble
            raise error or StoreUnavailable(f"{self._source.version.key}: a reader's fetch of it failed")
        return fetched_bytes

    def close(self) -> bool:
        """Ends the open; whether the object is in the cache. A reader's fetch of it may be in memory still."""
        opened, self._open = self._open, None
        if opened is None:
            return False
        complete = opened.complete and self._library.present_bytes(self._source) == self.size_bytes
        opened.close()
        return complete

    def _opened(self, wait: Wait) -> OpenObject:
        if self.small:  # fetched by one thread alone, which holds no lock meanwhile
            if self._open is None:
                self._open = opened_here(self._library, self._source, wait)
            return self._open
        with self._opening:
            if self._open is None:
                self._open = opened_here(self._library, self._source, wait)
            return self._open


def opened_here(library: ReadThroughCache, source: ObjectSource, wait: Wait) -> OpenObject:
    """Opens an object, on this thread unless a reader is about to. Raises HayloftError; Interrupted if ``wait`` said
    so, and then an answer that still comes is closed."""
    results: list[OpenObject | HayloftError] = []
    done = threading.Event()
    claims = [None]

    def opened(result: OpenObject | HayloftError) -> None:
        try:
            claims.pop()
        except IndexError:
            if isinstance(result, OpenObject):
                result.close()
            return
        results.append(result)
        done.set()

    library.open_here(source, opened)
    while not done.is_set():
        if wait(_LOOK_AGAIN_S):
            try:
                claims.pop()
            except IndexError:
                done.wait()
            else:
                raise Interrupted("the warmup was stopped")
    result = results[0]
    if isinstance(result, HayloftError):
        raise result
    return result
