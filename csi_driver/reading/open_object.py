"""One open of an object, and the open that is still pending."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from csi_driver.cache.object_file import ObjectFile
from csi_driver.model.chunk import ByteRange
from csi_driver.model.errors import CacheError, HayloftError, InternalFailure
from csi_driver.reading.access import Access
from csi_driver.reading.cached_read import answer_cached
from csi_driver.reading.object_reader import ObjectReader
from csi_driver.reading.pending_read import Data, PendingRead, cut
from csi_driver.reading.readahead import History
from csi_driver.reading.services import ObjectSource

if TYPE_CHECKING:
    from csi_driver.reading.read_through_cache import ReadThroughCache

logger = logging.getLogger(__name__)


class OpenObject:
    """One open of an object. Reads may come from several threads; the history is then approximate, which suffices."""

    __slots__ = ("_history", "_parts", "_read_through_cache", "_reader", "_source", "file", "reserved_bytes")

    def __init__(
        self,
        read_through_cache: ReadThroughCache,
        source: ObjectSource,
        file: ObjectFile | None,
        reader: ObjectReader | None,
        parts: Sequence[memoryview] = (),
    ) -> None:
        """With a complete file, or a reader, or all bytes in memory, or, for an empty object, with none of these."""
        self._parts = parts
        self._read_through_cache = read_through_cache
        self._source = source
        self._reader = reader
        self._history = History()
        self.file = file
        self.reserved_bytes = 0
        """Reserved with the write-back for the bytes in memory, until ``close``."""

    @property
    def access(self) -> Access:
        """The credential by which it was opened, and by which missing bytes are fetched."""
        return self._source.access

    @property
    def backing_descriptor(self) -> int | None:
        """A descriptor of the object file if it was complete when the object was opened."""
        return None if self.file is None else self.file.descriptor

    @property
    def complete(self) -> bool:
        """True if no byte is missing now."""
        reader = self._reader
        return reader is None or reader.complete

    @property
    def in_memory(self) -> bool:
        """True if it has the bytes of the object in memory: to be closed soon."""
        return bool(self._parts)

    @property
    def reusable_file(self) -> ObjectFile | None:
        """The complete object file, if closing this open means to release that and nothing else."""
        return self.file if self._reader is None else None

    def read(self, offset: int, size_bytes: int, data: Data) -> PendingRead | None:
        """Answers through ``data``. A pending read is returned, and may be cancelled."""
        stop = min(offset + size_bytes, self._source.version.size_bytes)
        if offset >= stop:
            data([])
            return None
        byte_range = ByteRange(offset, stop)
        if self._parts:
            self._source.counts.answered_at_once(len(byte_range))
            data(cut(self._parts, 0, byte_range))
            return None
        if self._reader is None and self.file is not None:
            answer_cached(
                self._read_through_cache.fetcher,
                self.file,
                byte_range,
                data,
                lambda error: self._read_without_disk(byte_range, data, error),
                self._source.share,
                self._source.counts,
            )
            return None
        return self._read_by_reader(byte_range, data)

    # -- for a warmup --

    @property
    def cached_descriptor(self) -> int | None:
        """A descriptor of the object file, of which bytes may be missing; None: it is not cached."""
        file = self.file if self._reader is None else self._reader.file
        return None if file is None else file.descriptor

    @property
    def cacheable(self) -> bool:
        """False if the cache disk refuses the object: what is fetched would be lost."""
        return self._reader is None or self._reader.file is not None

    def fill(self, chunks: range) -> tuple[int, HayloftError | None]:
        """As ``ObjectReader.fill``; without a reader nothing is missing. Blocks on the store."""
        return (0, None) if self._reader is None else self._reader.fill(chunks)

    def missing_bytes(self, chunks: range) -> int:
        """Bytes of these chunks that are not cached."""
        return 0 if self._reader is None else self._reader.missing_bytes(chunks)

    def _read_without_disk(self, byte_range: ByteRange, data: Data, error: CacheError) -> None:
        if self._reader is None:
            logger.warning("%s: the cache disk cannot be read; reading from the store", self._source.version.key)
            self._read_through_cache.read_failed(error)
            self._reader = self._read_through_cache.reader_without_disk(self._source, self.file)
        self._read_by_reader(byte_range, data)

    def _read_by_reader(self, byte_range: ByteRange, data: Data) -> PendingRead | None:
        if self._reader is None:
            raise InternalFailure("an empty object has bytes")
        source = self._source
        limits = self._read_through_cache.limits_for(source)
        self._history, pending = self._reader.read(self._history, byte_range, data, source.share, limits, source.counts)
        return pending

    def close(self) -> None:
        """Ends the open. Not to be called twice."""
        if self.reserved_bytes:
            self._read_through_cache.write_back.release(self.reserved_bytes)
        if self.file is not None:
            self.file.release()
        if self._reader is not None:
            self._read_through_cache.leave(self._reader)


Opened = Callable[[OpenObject | HayloftError], None]


class PendingOpen(NamedTuple):
    """An open that waits for its object. ``to_read``: the bytes suffice, and no file is needed. ``since``: the arrivals
    of the object table when the object was looked up last, and was not in the cache; None: it was not looked up."""

    source: ObjectSource
    opened: Opened
    to_read: bool = False
    for_warmup: bool = False
    since: int | None = None

    @property
    def urgent(self) -> bool:
        """As ``object_table.Waiter``."""
        return not self.for_warmup

    @property
    def bytes_with_a_file(self) -> int:
        """As ``object_table.Waiter``."""
        return 0 if self.to_read else self.source.version.size_bytes
