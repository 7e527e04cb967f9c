"""Chunks that stay in memory for a reader that comes to them in a moment.

A file of weights that is fetched completely is read once, right behind its fetches. Its bytes need no page of the page
cache in between: they are written past it, and the reader gets them from the memory into which they were received.
"""

from __future__ import annotations

import threading
from typing import NamedTuple


class HeldBytes:
    """How much all readers of a daemon hold. Methods may be called from any thread.

    ``_lock`` guards ``count_bytes``.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._lock = threading.Lock()
        self.count_bytes = 0

    def reserve(self, count_bytes: int) -> bool:
        """Counts so many, until ``release``; False if there is no capacity for them."""
        with self._lock:
            fits = self.count_bytes + count_bytes <= self._most_bytes
            if fits:
                self.count_bytes += count_bytes
        return fits

    def release(self, count_bytes: int) -> None:
        """Ends what ``reserve`` began."""
        with self._lock:
            self.count_bytes -= count_bytes


class _Held(NamedTuple):
    parts: list[memoryview]
    count_bytes: int
    unread_bytes: int
    """A chunk is dropped when as many were read: nearly all readers read each byte once. Others find it in the file."""


class HeldChunks:
    """Of one object. The caller serialises the calls; the test for emptiness needs no lock."""

    def __init__(self, budget: HeldBytes) -> None:
        self._budget = budget
        self._chunks: dict[int, _Held] = {}

    def __bool__(self) -> bool:
        return bool(self._chunks)

    def __contains__(self, chunk: int) -> bool:
        return chunk in self._chunks

    def hold(self, chunk: int, parts: list[memoryview], unread_bytes: int) -> bool:
        """Until so many of its bytes were read. False if there is no capacity for it."""
        count_bytes = sum(map(len, parts))
        if chunk in self._chunks or not self._budget.reserve(count_bytes):
            return False
        self._chunks[chunk] = _Held(parts, count_bytes, unread_bytes)
        return True

    def take(self, chunk: int, read_bytes: int) -> list[memoryview] | None:
        """The bytes of a chunk, of which so many are read now; None: it is not held."""
        held = self._chunks.get(chunk)
        if held is None:
            return None
        if read_bytes < held.unread_bytes:
            self._chunks[chunk] = held._replace(unread_bytes=held.unread_bytes - read_bytes)
        else:
            del self._chunks[chunk]
            self._budget.release(held.count_bytes)
        return held.parts

    def drop(self) -> None:
        """No reader is left."""
        self._budget.release(sum(held.count_bytes for held in self._chunks.values()))
        self._chunks.clear()
