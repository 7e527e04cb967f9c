"""S3 as an object store: three clients, each for the requests that it is best at. Google and Azure have the same three
with other requests."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

from csi_driver.model.chunk import ByteRange
from csi_driver.model.errors import InvalidParameter, StoreProtocolError
from csi_driver.model.snapshot import ObjectInfo, ObjectPage
from csi_driver.objects.checksums import StoredChecksum, md5_worthwhile_bytes
from csi_driver.objects.http.range_client import RangeClient
from csi_driver.objects.http.small_object_client import SmallObjectClient
from csi_driver.objects.listing_pages import ListedPage, all_pages
from csi_driver.objects.origin_requests import OriginRequest
from csi_driver.objects.s3.rest_client import RestClient
from csi_driver.objects.store import InFlightObject, WholeObject
from csi_driver.objects.version_listing import ListedVersions

logger = logging.getLogger(__name__)

T = TypeVar("T")


class ThreeClientStore:
    """Ranges by ``RangeClient``, complete small objects by ``SmallObjectClient``, everything else (listings, stat,
    checksums, responses of an odd form, all requests through a proxy) by ``RestClient``."""

    def __init__(
        self, rest: RestClient, ranges: RangeClient | None = None, small: SmallObjectClient | None = None
    ) -> None:
        """``ranges`` and ``small`` None: ``rest`` reads all. ``small`` None: small objects are read as ranges."""
        self._rest, self._ranges, self._small = rest, ranges, small

    @property
    def endpoint(self) -> str:
        return self._rest.endpoint

    @property
    def bucket(self) -> str:
        return self._rest.bucket

    lists_pages = True
    lists_ranges = False

    def list(self, prefix: str) -> Iterator[ObjectPage]:
        return all_pages(lambda token: self.list_page(prefix, token), f"bucket {self.bucket!r} at {self.endpoint}")

    def list_page(self, prefix: str, token: str | None) -> ListedPage:
        return self._rest.list_page(prefix, token)

    def stat(self, key: str) -> ObjectInfo:
        return self._rest.stat(key)

    def read_range(self, key: str, byte_range: ByteRange, *, if_match: str | None) -> Iterator[memoryview]:
        if not byte_range:
            return
        response = None if self._ranges is None else self._ranges.request(key, byte_range, if_match)
        if response is not None:
            yield from response.pieces()
            return
        yield from self._rest.read_range(key, byte_range, if_match=if_match)
        if self._ranges is not None:
            self._ranges.record_fallback(worked=True)

    @property
    def reads_whole(self) -> bool:
        return self._small is not None

    def read_whole(self, key: str, size_bytes: int, *, if_match: str | None) -> WholeObject:
        """By a plain GET, or else as a range, which not every store answers: that way is taken alone only where it has
        worked."""
        small = self._small
        if small is None or not size_bytes:
            return self._read_as_range(key, size_bytes, if_match)
        was_in_cooldown = small.in_cooldown
        whole = small.get(key, size_bytes, if_match)
        if whole is not None:
            return whole
        try:
            whole = self._read_as_range(key, size_bytes, if_match)
        except StoreProtocolError:
            small.record_fallback(worked=False)
            whole = small.get(key, size_bytes, if_match) if was_in_cooldown else None
            if whole is None:
                raise
            return whole
        small.record_fallback(worked=True)
        return whole

    def _read_as_range(self, key: str, size_bytes: int, if_match: str | None) -> WholeObject:
        return WholeObject(list(self.read_range(key, ByteRange(0, size_bytes), if_match=if_match)))

    def begin_whole(self, key: str, size_bytes: int, *, if_match: str | None) -> InFlightObject | None:
        if self._small is None or not size_bytes:
            return None
        return self._small.begin(key, size_bytes, if_match)

    @property
    def signs_requests(self) -> bool:
        """Not where the way there is a proxy, which replicas may not know."""
        return self._ranges is not None and self._ranges.signs_requests

    def origin_request(self, key: str, if_match: str, *, whole: bool, may_block: bool) -> OriginRequest | None:
        """As ``SignsRequests``."""
        if self._ranges is None:
            return None
        return self._ranges.origin_request(key, if_match, whole=whole, may_block=may_block)

    def close(self) -> None:
        self._rest.close()
        for client in (self._ranges, self._small):
            if client is not None:
                client.close()


class S3Clients(NamedTuple):
    """Of a bucket in one region."""

    rest: RestClient
    ranges: RangeClient | None = None
    small: SmallObjectClient | None = None


class S3Store(ThreeClientStore):
    """With checksums; ETags may be MD5s. An answer that names another region of the bucket is followed once: the store
    goes on there. Nothing but the region is taken from such an answer."""

    def __init__(self, clients: S3Clients, in_region: Callable[[str], S3Clients | None] | None = None) -> None:
        """``in_region`` makes clients for another region, without a request; None: that one is not to be asked."""
        super().__init__(*clients)
        self.md5_up_to_bytes = md5_worthwhile_bytes(clients.rest.endpoint)
        self._lock = threading.Lock()
        """Guards ``_in_region`` and the replacement of the clients. Not held across network: making them sends
        nothing."""
        self._in_region = in_region

    def list_page(self, prefix: str, token: str | None) -> ListedPage:
        return self._following(lambda: self._rest.list_page(prefix, token))

    def stat(self, key: str) -> ObjectInfo:
        return self._following(lambda: self._rest.stat(key))

    lists_ranges = True
    """Where the store keeps the order of keys, which is checked."""

    lists_versions = True

    def list_versions_page(self, prefix: str, token: str | None) -> ListedVersions:
        return self._following(lambda: self._rest.list_versions_page(prefix, token))

    def checksum(self, key: str, *, if_match: str | None) -> StoredChecksum:
        return self._following(lambda: self._rest.checksum(key, if_match=if_match))

    def read_range(self, key: str, byte_range: ByteRange, *, if_match: str | None) -> Iterator[memoryview]:
        asked = self._rest
        pieces = super().read_range(key, byte_range, if_match=if_match)
        try:
            first = next(pieces, None)
        except InvalidParameter:
            if not self._follow(asked):
                raise
            pieces, first = super().read_range(key, byte_range, if_match=if_match), None
        if first is not None:
            yield first
        yield from pieces

    def _following(self, request: Callable[[], T]) -> T:
        asked = self._rest
        try:
            return request()
        except InvalidParameter:
            if not self._follow(asked):
                raise
            return request()

    def _follow(self, asked: RestClient) -> bool:
        """True if the request may be repeated: in the region that the answer to ``asked`` has named."""
        with self._lock:
            if self._rest is not asked:  # another thread has followed meanwhile
                return True
            in_region, self._in_region = self._in_region, None
            region = asked.named_region
            clients = None if in_region is None or region is None else in_region(region)
            if clients is None:
                self._in_region = in_region
                return False
            earlier = (asked, self._ranges, self._small)
            self._rest, self._ranges, self._small = clients
        logger.info("bucket %s is in region %s; it is read there", self.bucket, region)
        for client in earlier:  # of what is idle
            if client is not None:
                client.close()
        return True
