"""What a reader of an object receives: the object and its store, and the services that all readers share."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

from csi_driver.cache.chunk_writer import ChunkWriter
from csi_driver.cache.object_file import ObjectFile
from csi_driver.model.chunk import CHUNK_BYTES, ByteRange
from csi_driver.model.errors import CacheError
from csi_driver.model.read_counts import NOT_COUNTED, ReadCounts
from csi_driver.model.snapshot import ObjectVersion
from csi_driver.objects.store import ObjectStore
from csi_driver.reading.access import Access
from csi_driver.reading.fair_shares import Share
from csi_driver.reading.fetcher import Fetcher
from csi_driver.reading.held_chunks import HeldBytes
from csi_driver.reading.readahead import Limits
from csi_driver.reading.write_back import WriteBack

if TYPE_CHECKING:
    from csi_driver.reading.object_reader import ObjectReader
    from csi_driver.reading.repeats import Repeats
    from csi_driver.reading.version_pins import VersionPins

_UNNAMED = Access()


class ObjectSource(NamedTuple):
    """An object version, and its store as its volume may read it."""

    version: ObjectVersion
    store: ObjectStore
    dataset: int = 0
    """The dataset that reads it: the unit of eviction once no mount reads it any more."""
    share: Share = Share()
    """What its fetches count for, so that no volume has all slots."""
    access: Access = _UNNAMED
    """Of the mount that reads it."""
    row: int = -1
    """Of the object in the manifest of the mount."""
    counts: ReadCounts = NOT_COUNTED
    """Of the volume that reads it."""
    limits: Limits | None = None
    """Of the mount's readahead in this object; None: those of the daemon."""

    @property
    def key(self) -> tuple[str, bytes]:
        """The object and the credential: what is in flight, or in memory, is for others of the same key only."""
        return self.version.digest(CHUNK_BYTES), self.access.credential.own


class ReadServices(Protocol):
    """Shared by all readers of a daemon."""

    fetcher: Fetcher
    write_back: WriteBack
    held_bytes: HeldBytes
    repeats: Repeats
    pins: VersionPins

    def chunk_writer(self, file: ObjectFile, part: ByteRange, *, for_warmup: bool) -> ChunkWriter:
        """``ChunkStore.chunk_writer``."""

    def accepts_writes(self) -> bool:
        """False while the cache disk refuses writes."""

    def write_failed(self, error: CacheError) -> None:
        """The cache disk refused a write: it is logged, and counts against the health of the disk."""

    def read_failed(self, error: CacheError) -> None:
        """The cache disk could not return bytes that it had stored: counts against its health."""

    def count_received(self, count_bytes: int) -> None:
        """Bytes were received from a store."""

    def count_not_cached(self, count_bytes: int) -> None:
        """Bytes that were received are not written to the cache."""

    def count_request(self) -> None:
        """A request was sent to a store."""

    def note_fetch(self, source: ObjectSource, file: ObjectFile) -> None:
        """The store has sent bytes of the object to the credential: it may read the others that are cached."""

    def raise_if_refused(self, source: ObjectSource) -> None:
        """Raises ChecksumMismatch for an object that was received damaged twice, a moment ago."""

    def verify_and_publish(self, source: ObjectSource, file: ObjectFile) -> None:
        """Every chunk is in the file: verifies it and makes it complete. Blocks. Raises CacheError."""

    def retain(self, reader: ObjectReader) -> None:
        """A fetch for the reader begins: the reader stays, with its file open, until ``release``."""

    def release(self, reader: ObjectReader) -> None:
        """The fetch has ended."""
