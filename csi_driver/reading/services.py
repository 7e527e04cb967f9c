"""What a reader of an object receives: the object and its store, and the services that all readers share."""

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
    """An object version, and its store as its volume may read it."""

    version: ObjectVersion
    store: ObjectStore
    dataset: int = 0
    """The dataset that reads it: the unit of eviction once no mount reads it any more."""

    @property
    def volume(self) -> int:
        """The unit of fair sharing: each mount has a store of its own."""
        return id(self.store)


class ReadServices(Protocol):
    """Shared by all readers of a daemon."""

    fetcher: Fetcher
    limits: Limits
    write_back: WriteBack

    def accepts_writes(self) -> bool:
        """False while the cache disk refuses writes."""

    def write_failed(self, error: CacheError) -> None:
        """The cache disk refused a write: it is logged, and counts against the health of the disk."""

    def read_failed(self) -> None:
        """The cache disk could not return bytes that it had stored: counts against its health."""

    def count_received(self, count_bytes: int) -> None:
        """Bytes were received from a store."""

    def count_request(self) -> None:
        """A request was sent to a store."""

    def raise_if_refused(self, source: ObjectSource) -> None:
        """Raises ChecksumMismatch for an object that was received damaged twice, a moment ago."""

    def verify_and_publish(self, source: ObjectSource, file: ObjectFile) -> None:
        """Every chunk is in the file: verifies it and makes it complete. Blocks. Raises CacheError."""

    def retain(self, reader: ObjectReader) -> None:
        """A fetch for the reader begins: the reader stays, with its file open, until ``release``."""

    def release(self, reader: ObjectReader) -> None:
        """The fetch has ended."""
