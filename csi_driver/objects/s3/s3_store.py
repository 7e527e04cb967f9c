"""S3 as an object store: three clients, each for the requests that it is best at."""

from __future__ import annotations

from collections.abc import Iterator

from csi_driver.model.chunk import ByteRange
from csi_driver.model.snapshot import ObjectInfo, ObjectPage
from csi_driver.objects.checksums import StoredChecksum, md5_worthwhile_bytes
from csi_driver.objects.obstore.obstore_store import ObstoreStore, is_tidy
from csi_driver.objects.s3.rest_client import RestClient
from csi_driver.objects.s3.small_object_client import SmallObjectClient
from csi_driver.objects.store import InFlightObject, WholeObject


class S3Store:
    """Ranges of tidy keys by obstore, complete small objects by ``SmallObjectClient``, everything else (listings,
    stat, checksums, keys that obstore cannot read) by ``RestClient``."""

    def __init__(self, ranges: ObstoreStore, rest: RestClient, small: SmallObjectClient | None = None) -> None:
        """``small`` None: small objects are read as ranges."""
        self._ranges, self._rest, self._small = ranges, rest, small
        self.md5_up_to_bytes = md5_worthwhile_bytes(rest.endpoint)

    @property
    def endpoint(self) -> str:
        return self._rest.endpoint

    @property
    def bucket(self) -> str:
        return self._rest.bucket

    def list(self, prefix: str) -> Iterator[ObjectPage]:
        return self._rest.list(prefix)

    def list_after(self, prefix: str, after: str) -> Iterator[ObjectPage]:
        return self._rest.list_after(prefix, after)

    def stat(self, key: str) -> ObjectInfo:
        return self._rest.stat(key)

    def checksum(self, key: str, *, if_match: str | None) -> StoredChecksum:
        return self._rest.checksum(key, if_match=if_match)

    def read_range(self, key: str, byte_range: ByteRange, *, if_match: str | None) -> Iterator[memoryview]:
        client = self._ranges if is_tidy(key) else self._rest
        return client.read_range(key, byte_range, if_match=if_match)

    @property
    def reads_whole(self) -> bool:
        return self._small is not None

    def read_whole(self, key: str, size_bytes: int, *, if_match: str | None) -> WholeObject:
        if self._small is not None and size_bytes and is_tidy(key):
            whole = self._small.get(key, size_bytes, if_match)
            if whole is not None:
                return whole
        return WholeObject(list(self.read_range(key, ByteRange(0, size_bytes), if_match=if_match)))

    def begin_whole(self, key: str, size_bytes: int, *, if_match: str | None) -> InFlightObject | None:
        if self._small is None or not size_bytes or not is_tidy(key):
            return None
        return self._small.begin(key, size_bytes, if_match)

    def close(self) -> None:
        self._rest.close()
        if self._small is not None:
            self._small.close()
