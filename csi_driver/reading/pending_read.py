"""A read that waits for chunks: no thread waits with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from csi_driver.model.chunk import CHUNK_BYTES, ByteRange, chunk_range, chunks_of
from csi_driver.model.errors import HayloftError

Data = Callable[[list[memoryview] | HayloftError], None]
"""Gets the bytes in order, or the error; called once. The views are valid only during the call."""


class PendingRead:
    """A read of a range of which some chunks are missing.

    Its owner calls ``add`` and ``fail`` under no lock but one at a time for a chunk; ``claim`` decides who answers.
    """

    __slots__ = ("_claims", "_data", "_held", "byte_range", "missing")

    def __init__(self, byte_range: ByteRange, data: Data) -> None:
        self.byte_range = byte_range
        self.missing: set[int] = set()
        self._data = data
        self._held: dict[int, list[memoryview]] = {}
        self._claims = [None]

    def hold(self, chunk: int, parts: Sequence[memoryview]) -> bool:
        """Keeps what the read needs of a chunk. True if it was the last missing one. The caller serialises."""
        if self._claims:
            self._held[chunk] = cut(parts, chunk * CHUNK_BYTES, self.byte_range)
        self.missing.discard(chunk)
        return not self.missing

    def holds(self, chunk: int) -> bool:
        """True if the bytes of the chunk are here, and need not be in the file."""
        return chunk in self._held

    def answer(self, present: Callable[[ByteRange], memoryview], size_bytes: int) -> None:
        """Gives the reader its bytes; ``present`` reads what was in the file when the read was parked. What that raises
        leaves the read as it was."""
        if self.answered:
            return
        views: list[memoryview] = []
        for chunk in chunks_of(self.byte_range):
            held = self._held.get(chunk)
            if held is None:
                whole = chunk_range(chunk, size_bytes)
                start, stop = max(whole.start, self.byte_range.start), min(whole.stop, self.byte_range.stop)
                views.append(present(ByteRange(start, stop)))
            else:
                views += held
        if self._claim():
            self._data(views)
        self._let_go()

    def fail(self, error: HayloftError) -> None:
        """Gives the reader an error instead, unless it has its answer."""
        if self._claim():
            self._data(error)
            self._let_go()

    def _let_go(self) -> None:
        """Who asked may hold the read, and the read who asked: the collector of such circles comes seldom, and the
        bytes must not wait for it."""
        self._held.clear()
        del self._data

    @property
    def answered(self) -> bool:
        """True if the reader has its answer."""
        return not self._claims

    def _claim(self) -> bool:
        try:
            self._claims.pop()
        except IndexError:
            return False
        return True


def cut(parts: Sequence[memoryview], start: int, wanted: ByteRange) -> list[memoryview]:
    """The part of neighbouring buffers, the first of which is at ``start``, that lies in the wanted range."""
    found = []
    for part in parts:
        stop = start + len(part)
        if stop > wanted.start and start < wanted.stop:
            found.append(part[max(0, wanted.start - start) : wanted.stop - start])
        start = stop
    return found
