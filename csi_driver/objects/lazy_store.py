"""A store that is opened when it is first used."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

from csi_driver.model.chunk import ByteRange
from csi_driver.model.snapshot import ObjectInfo, ObjectPage
from csi_driver.objects.checksums import ChecksumProvider, StoredChecksum
from csi_driver.objects.origin_requests import OriginRequest, request_signer
from csi_driver.objects.retrying import without_retries
from csi_driver.objects.store import InFlightObject, ObjectStore, WholeObject, read_whole, whole_reader


class LazyStore:
    """For a daemon that adopts mounts while the store, or the node's identity, is unavailable: cached data must be
    readable nevertheless. Until the store can be opened each use raises what opening it raises; the next use retries.
    """

    def __init__(self, endpoint: str, bucket: str, open_store: Callable[[], ObjectStore]) -> None:
        self._endpoint, self._bucket, self._open_store = endpoint, bucket, open_store
        # Guards: _store, once it is open. While held: no network. It is released while a store is opened, so two
        # threads may both open one; the second one is closed.
        self._lock = threading.Lock()
        self._store: ObjectStore | None = None

    @property
    def is_open(self) -> bool:
        """Whether it was used, with success."""
        return self._store is not None

    @property
    def endpoint(self) -> str:
        return self._endpoint

    @property
    def bucket(self) -> str:
        return self._bucket

    def list(self, prefix: str) -> Iterator[ObjectPage]:
        return self._opened().list(prefix)

    def stat(self, key: str) -> ObjectInfo:
        return self._opened().stat(key)

    def read_range(self, key: str, byte_range: ByteRange, *, if_match: str | None) -> Iterator[memoryview]:
        return self._opened().read_range(key, byte_range, if_match=if_match)

    @property
    def unretried(self) -> ObjectStore:
        """See ``without_retries``. Opens the store."""
        return without_retries(self._opened())

    @property
    def reads_whole(self) -> bool:
        """False before the first use."""
        return self._store is not None and whole_reader(self._store) is not None

    def read_whole(self, key: str, size_bytes: int, *, if_match: str | None) -> WholeObject:
        return read_whole(self._opened(), key, size_bytes, if_match=if_match)

    def begin_whole(self, key: str, size_bytes: int, *, if_match: str | None) -> InFlightObject | None:
        reader = whole_reader(self._opened())
        return None if reader is None else reader.begin_whole(key, size_bytes, if_match=if_match)

    @property
    def md5_up_to_bytes(self) -> int:
        """0 before the first use."""
        store = self._store
        return store.md5_up_to_bytes if isinstance(store, ChecksumProvider) else 0

    def checksum(self, key: str, *, if_match: str | None) -> StoredChecksum:
        """No checksum if the store keeps none."""
        store = self._opened()
        if isinstance(store, ChecksumProvider):
            return store.checksum(key, if_match=if_match)
        return StoredChecksum(None, etag_may_be_md5=False)

    @property
    def signs_requests(self) -> bool:
        """False before the first use."""
        return self._store is not None and request_signer(self._store) is not None

    def origin_request(self, key: str, if_match: str, *, whole: bool, may_block: bool) -> OriginRequest | None:
        signer = request_signer(self._opened())
        return None if signer is None else signer.origin_request(key, if_match, whole=whole, may_block=may_block)

    def open(self) -> None:
        """As its first use does; nothing if it is open. Blocks, and raises, as opening the store does."""
        self._opened()

    def close(self) -> None:
        if self._store is not None:
            self._store.close()

    def _opened(self) -> ObjectStore:
        if self._store is not None:
            return self._store
        opened = self._open_store()
        with self._lock:
            kept = self._store = self._store or opened
        if kept is not opened:
            opened.close()
        return kept
