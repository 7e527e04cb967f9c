"""One open of an object, and whoever waits for one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from csi_driver.cache.object_file import ObjectFile
from csi_driver.model.chunk import ByteRange
from csi_driver.model.errors import HayloftError, InternalFailure
from csi_driver.reading.cached_read import answer_present
from csi_driver.reading.object_reader import ObjectReader
from csi_driver.reading.pending_read import Data, PendingRead, cut
from csi_driver.reading.readahead import History
from csi_driver.reading.services import ObjectSource

if TYPE_CHECKING:
    from csi_driver.reading.read_through_cache import ReadThroughCache

logger = logging.getLogger(__name__)


class OpenObject:
    """One open of an object. Reads may come from several threads; the history is then approximate, which suffices."""

    __slots__ = ("_history", "_library", "_parts", "_reader", "_source", "file", "held_bytes")

    def __init__(
        self,
        library: ReadThroughCache,
        source: ObjectSource,
        file: ObjectFile | None,
        reader: ObjectReader | None,
        parts: Sequence[memoryview] = (),
    ) -> None:
        """With a file that is complete, or with a reader, or with all bytes in memory, or (an empty object) with none
        of these."""
        self._parts = parts
        self._library = library
        self._source = source
        self._reader = reader
        self._history = History()
        self.file = file
        self.held_bytes = 0
        """What the write queue counts for the bytes in memory, until the end of the open."""

    @property
    def backing_descriptor(self) -> int | None:
        """A descriptor of the object file if it was complete when the object was opened."""
        return None if self.file is None else self.file.descriptor

    @property
    def complete(self) -> bool:
        """True if no byte is missing now."""
        reader = self._reader
        return reader is None or (reader.file is not None and reader.file.complete)

    @property
    def in_memory(self) -> bool:
        """True if it holds the bytes of the object themselves: to be closed soon."""
        return bool(self._parts)

    @property
    def reusable_file(self) -> ObjectFile | None:
        """The complete object file, if closing this open means to release that and nothing else."""
        return self.file if self._reader is None else None

    def read(self, offset: int, size_bytes: int, data: Data) -> PendingRead | None:
        """Answers through ``data``; what is returned can be given to ``cancel``."""
        stop = min(offset + size_bytes, self._source.version.size_bytes)
        if offset >= stop:
            data([])
            return None
        wanted = ByteRange(offset, stop)
        if self._parts:
            data(cut(self._parts, 0, wanted))
            return None
        if self._reader is None and self.file is not None:
            fetcher = self._library.fetcher
            answer_present(
                fetcher, self.file, wanted, data, lambda: self._read_past_disk(wanted, data), self._source.volume
            )
            return None
        return self._read_through(wanted, data)

    # -- for a warmup --

    @property
    def stored(self) -> bool:
        """False if the cache disk refuses the object: what is fetched would be lost."""
        return self._reader is None or self._reader.file is not None

    def fill(self, chunks: range) -> tuple[int, HayloftError | None]:
        """See ObjectReader.fill."""
        return (0, None) if self._reader is None else self._reader.fill(chunks)

    def missing_bytes(self, chunks: range) -> int:
        """See ObjectReader.missing_bytes."""
        return 0 if self._reader is None else self._reader.missing_bytes(chunks)

    def in_flight(self, chunks: range) -> bool:
        """See ObjectReader.in_flight."""
        return self._reader is not None and self._reader.in_flight(chunks)

    def _read_past_disk(self, wanted: ByteRange, data: Data) -> None:
        if self._reader is None:
            logger.warning("%s: the cache disk cannot be read; reading from the store", self._source.version.key)
            self._library.read_failed()
            self._reader = self._library.reader_past_disk(self._source)
        self._read_through(wanted, data)

    def _read_through(self, wanted: ByteRange, data: Data) -> PendingRead | None:
        if self._reader is None:
            raise InternalFailure("an empty object has bytes")
        self._history, parked = self._reader.read(self._history, wanted, data, self._source.volume)
        return parked

    def close(self) -> None:
        """Ends the open."""
        self._library.writes.let_go(self.held_bytes) if self.held_bytes else None
        if self.file is not None:
            self.file.release()
        if self._reader is not None:
            self._library.leave(self._reader)


Opened = Callable[[OpenObject | HayloftError], None]


class PendingOpen(NamedTuple):
    """Somebody who waits for an object. ``to_read``: its bytes will do, and nobody needs its file."""

    source: ObjectSource
    opened: Opened
    to_read: bool = False
