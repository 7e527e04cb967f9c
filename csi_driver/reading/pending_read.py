"""A read that waits for chunks; no thread waits with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from csi_driver.model.chunk import CHUNK_BYTES, ByteRange, chunk_range, chunks_of
from csi_driver.model.errors import HayloftError
from csi_driver.model.read_counts import NOT_COUNTED, ReadCounts, Wait

Data = Callable[[list[memoryview] | HayloftError], None]
"""Receives the bytes in order, or the error; called once. The views are valid only during the call."""


class PendingRead:
    """A read of a range of which some chunks are missing.

    The reader of the object calls ``add_chunk`` under its lock, and ``answer`` and ``fail`` without one, perhaps on two
    threads at a time: the one that claims the read answers it.
    """

    # The claim is inline, and no `Once`: a read makes no object that it can do without.
    __slots__ = ("_chunks", "_counts", "_data", "_tokens", "byte_range", "missing", "wait")

    def __init__(self, byte_range: ByteRange, data: Data, counts: ReadCounts = NOT_COUNTED) -> None:
        self.byte_range = byte_range
        self._counts = counts
        self.wait: Wait | None = None
        """Set, under the lock of the reader, before another thread can answer; None: it did not have to wait."""
        self.missing: set[int] = set()
        self._data = data
        self._chunks: dict[int, list[memoryview]] = {}
        self._tokens = [None]

    def add_chunk(self, chunk: int, parts: Sequence[memoryview]) -> bool:
        """Adds what the read needs of a chunk. True if it was the last missing one. The caller serialises."""
        if self._tokens:
            self._chunks[chunk] = cut(parts, chunk * CHUNK_BYTES, self.byte_range)
        self.missing.discard(chunk)
        return not self.missing

    def bytes_of(self, chunk: int) -> int:
        """How many bytes of a chunk it reads."""
        start = chunk * CHUNK_BYTES
        return min(self.byte_range.stop, start + CHUNK_BYTES) - max(self.byte_range.start, start)

    def has_chunk(self, chunk: int) -> bool:
        """True if the bytes of the chunk are in memory, and need not be in the file."""
        return chunk in self._chunks

    def answer(self, read_cached: Callable[[ByteRange], memoryview], size_bytes: int) -> None:
        """Answers with the bytes; ``read_cached`` reads those that were in the file when the read became pending. If it
        raises, the read stays as it was."""
        if self.answered:
            return
        views: list[memoryview] = []
        for chunk in chunks_of(self.byte_range):
            received = self._chunks.get(chunk)
            if received is None:
                whole = chunk_range(chunk, size_bytes)
                start, stop = max(whole.start, self.byte_range.start), min(whole.stop, self.byte_range.stop)
                views.append(read_cached(ByteRange(start, stop)))
            else:
                views += received
        if self._claim():
            count_bytes = len(self.byte_range)
            if self.wait is None:
                self._counts.answered_at_once(count_bytes)
            else:
                self.wait.end(count_bytes)
            try:
                self._data(views)
            finally:
                self._release()

    def fail(self, error: HayloftError) -> None:
        """Answers with an error, unless the read is answered already."""
        if self._claim():
            if self.wait is not None:
                self.wait.end()
            try:
                self._data(error)
            finally:
                self._release()

    def _release(self) -> None:
        """Breaks the reference cycle between the read and its caller: the collector runs seldom, and the bytes must not
        stay in memory until then."""
        self._chunks.clear()
        del self._data

    @property
    def answered(self) -> bool:
        """True as soon as a thread answers the read."""
        return not self._tokens

    def _claim(self) -> bool:
        try:
            self._tokens.pop()  # atomic: list.pop is one step under the interpreter lock
        except IndexError:
            return False
        return True


def cut(parts: Sequence[memoryview], start: int, byte_range: ByteRange) -> list[memoryview]:
    """The part of neighbouring buffers, the first of which is at ``start``, that lies in the byte range."""
    found = []
    for part in parts:
        stop = start + len(part)
        if stop > byte_range.start and start < byte_range.stop:
            found.append(part[max(0, byte_range.start - start) : byte_range.stop - start])
        start = stop
    return found
