"""What a reader of an object is given: the object and its store, and what all readers of a daemon share."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

from csi_driver.cache.object_file import ObjectFile
from csi_driver.model.errors import CacheError
from csi_driver.model.snapshot import ObjectVersion
from csi_driver.objects.store import ObjectStore
from csi_driver.reading.fetcher import Fetcher
from csi_driver.reading.readahead import Limits
from csi_driver.reading.write_back import WriteBack

if TYPE_CHECKING:
    from csi_driver.reading.object_reader import ObjectReader


class ObjectSource(NamedTuple):
    """An object version and the store that has it, as its volume may ask for it."""

    version: ObjectVersion
    store: ObjectStore
    dataset: int = 0
    """Which dataset reads it: what is evicted together when nobody reads it any more."""

    @property
    def volume(self) -> int:
        """Whose turn it is to fetch: each mount has a store of its own."""
        return id(self.store)


class ReadServices(Protocol):
    """What all readers of a daemon share."""

    fetcher: Fetcher
    limits: Limits
    writes: WriteBack

    def may_store(self) -> bool:
        """False while the cache disk refuses writes."""

    def refused(self, error: CacheError) -> None:
        """The cache disk refused a write."""

    def read_failed(self) -> None:
        """The cache disk could not give bytes back."""

    def received(self, count_bytes: int) -> None:
        """Bytes came from a store."""

    def requested(self) -> None:
        """A request went to a store."""

    def refuse_damaged(self, source: ObjectSource) -> None:
        """Raises ChecksumMismatch for an object that came damaged twice, a moment ago."""

    def finish(self, source: ObjectSource, file: ObjectFile) -> None:
        """Every chunk is in the file: checks it and makes it complete. Blocks. Raises CacheError."""

    def retain(self, reader: ObjectReader) -> None:
        """A fetch for the reader begins: it must stay, and keep its file open, until ``let_go``."""

    def let_go(self, reader: ObjectReader) -> None:
        """The fetch has ended."""
