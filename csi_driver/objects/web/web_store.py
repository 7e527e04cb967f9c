"""A web server as an object store: what it lists (``web_listing.py``), HEAD, and GET of ranges and complete objects."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from typing import TYPE_CHECKING, NamedTuple

from csi_driver.model.chunk import ByteRange
from csi_driver.model.dataset import DatasetUrl
from csi_driver.model.errors import HayloftError, ObjectChanged, ObjectNotFound
from csi_driver.model.snapshot import ObjectInfo, ObjectPage
from csi_driver.objects.checksums import StoredChecksum
from csi_driver.objects.content_range import check_range_answer, content_length
from csi_driver.objects.store import InFlightObject, WholeObject
from csi_driver.objects.web.index_pages import size_of
from csi_driver.objects.web.web_body import WebBody
from csi_driver.objects.web.web_client import WebClient
from csi_driver.objects.web.web_heads import REFUSES_HEAD, WebHeadClient
from csi_driver.objects.web.web_listing import Description, WebListing, unknown_size
from csi_driver.objects.web.web_open_bodies import OpenBodies
from csi_driver.objects.web.web_socket_clients import WebRangeClient, WebSmallObjectClient
from csi_driver.objects.web.web_versions import (
    PinnedAnswers,
    checksum_of,
    condition,
    is_of,
    seconds_of,
    version_of,
)

if TYPE_CHECKING:
    from urllib3.response import BaseHTTPResponse

_TOTAL = re.compile(r"bytes (?:\d+-\d+|\*)/(\d+)\Z")


class FastClients(NamedTuple):
    """Of a server that is reached without a proxy."""

    ranges: WebRangeClient
    small: WebSmallObjectClient
    heads: WebHeadClient


class WebStore:
    """Bytes are requested by the fast clients, and by ``WebClient`` what those leave to it. Safe for any number of
    threads."""

    md5_up_to_bytes = 0
    """ETags of web servers are seldom MD5s."""

    def __init__(
        self,
        client: WebClient,
        *,
        deadline_s: float,
        page_bytes: int,
        max_connections: int,
        listed_by: tuple[DatasetUrl, str] | None = None,
        pins: PinnedAnswers | None = None,
        fast: FastClients | None = None,
    ) -> None:
        """``listed_by``: the dataset's URL and the key of the list of its files. None: the server lists it.
        ``deadline_s`` and ``page_bytes`` are for listings. ``pins``: those of the fast clients."""
        self._client, self._location = client, client.location
        self._deadline_s, self._page_bytes, self._max_connections = deadline_s, page_bytes, max_connections
        self._listed_by = listed_by
        self._open_bodies = OpenBodies()
        self._pins = pins or PinnedAnswers()
        self._fast = fast

    @property
    def endpoint(self) -> str:
        return self._location.endpoint

    @property
    def bucket(self) -> str:
        return self._location.bucket

    def list(self, prefix: str) -> Iterator[ObjectPage]:
        listing = WebListing(
            self._client,
            self._describe,
            self._describe_many,
            deadline_s=self._deadline_s,
            page_bytes=self._page_bytes,
            most_in_flight=self._max_connections,
        )
        pages = listing.of_directory(prefix) if self._listed_by is None else listing.of_list(*self._listed_by, prefix)
        try:
            yield from pages
        finally:
            if self._fast is not None:
                self._fast.heads.close_idle()

    def stat(self, key: str) -> ObjectInfo:
        described = self._describe(key)
        if described.is_directory:
            raise ObjectNotFound(f"{self._location.name(key)} is a directory")
        if described.size_bytes is None:
            raise unknown_size(self._location.name(key))
        seconds = seconds_of(described.headers.get("Last-Modified")) or 0
        return ObjectInfo(key, described.size_bytes, version_of(described.headers), seconds * 10**9)

    def checksum(self, key: str, *, if_match: str | None) -> StoredChecksum:
        """That of the list of files; sends no request."""
        return StoredChecksum(checksum_of(if_match), etag_may_be_md5=False)

    def read_range(self, key: str, byte_range: ByteRange, *, if_match: str | None) -> Iterator[memoryview]:
        if not byte_range:
            return
        body, fast = self._open_bodies.take((key, if_match), byte_range.start), self._fast
        if body is None and fast is not None:
            response = fast.ranges.request(key, byte_range, if_match)
            if response is not None:
                yield from response.pieces()
                return
        yield from self._read_slowly(body or self._begin(key, byte_range, if_match), key, byte_range, if_match)
        if fast is not None:
            fast.ranges.record_fallback(worked=True)

    def _read_slowly(
        self, body: WebBody, key: str, byte_range: ByteRange, if_match: str | None
    ) -> Iterator[memoryview]:
        is_usable = False
        try:
            yield from body.pieces(byte_range)
            is_usable = True
        finally:
            if is_usable and body.is_whole and not body.is_exhausted:
                self._open_bodies.put((key, if_match), body)
            else:
                body.close()

    @property
    def reads_whole(self) -> bool:
        """Also without the fast client where a list of files may have checksums, which small objects are compared
        with."""
        return self._fast is not None or self._listed_by is not None

    def read_whole(self, key: str, size_bytes: int, *, if_match: str | None) -> WholeObject:
        small = None if self._fast is None else self._fast.small
        whole = None if small is None or not size_bytes else small.get(key, size_bytes, if_match)
        if whole is not None:
            return whole
        parts = list(self.read_range(key, ByteRange(0, size_bytes), if_match=if_match))
        if small is not None:
            small.record_fallback(worked=True)
        return WholeObject(parts, checksum_of(if_match))

    def begin_whole(self, key: str, size_bytes: int, *, if_match: str | None) -> InFlightObject | None:
        if self._fast is None or not size_bytes:
            return None
        return self._fast.small.begin(key, size_bytes, if_match)

    def close(self) -> None:
        self._open_bodies.close()
        self._client.close()
        for client in self._fast or ():
            client.close()

    # -- descriptions -------------------------------------------------------------------------------------------------

    def _describe(self, key: str) -> Description:
        """By HEAD; by a GET of one byte from servers that refuse HEAD, and where its answer has no size, or none but
        0, which some servers say of every object."""
        by_head = self._described_by_head(key)
        if by_head is not None and (by_head.size_bytes or by_head.is_directory):
            return by_head
        try:
            return self._described_by_get(key)
        except HayloftError:
            if by_head is None:
                raise
            return by_head

    def _describe_many(
        self, keys: Sequence[str], executor: Executor, most_in_flight: int
    ) -> Sequence[Description | None]:
        """None: ``_describe`` has to find out."""
        if self._fast is None:
            return [None] * len(keys)
        return [_description(headers) for headers in self._fast.heads.ask(keys, executor, most_in_flight)]

    def _described_by_head(self, key: str) -> Description | None:
        """None: the server refuses HEAD."""
        response = self._client.send("HEAD", key, {})
        response.drain_conn()
        response.release_conn()
        if response.status in REFUSES_HEAD:
            return None
        if self._client.is_directory(key, response):
            return Description(None, response.headers, is_directory=True)
        if response.status // 100 != 2:
            raise self._client.error(key, response)
        return Description(size_of(response.headers.get("Content-Length")), response.headers)

    def _described_by_get(self, key: str) -> Description:
        response = self._client.send("GET", key, {"Range": "bytes=0-0"})
        response.close()
        total = _TOTAL.match(response.headers.get("Content-Range", "").strip())
        if total is not None and response.status in (206, 416):  # an empty object has no first byte
            return Description(size_of(total[1]), response.headers)
        if self._client.is_directory(key, response):
            return Description(None, response.headers, is_directory=True)
        if response.status // 100 != 2:
            raise self._client.error(key, response)
        length = response.headers.get("Content-Length") if response.status == 200 else None
        return Description(size_of(length), response.headers)

    # -- bytes --------------------------------------------------------------------------------------------------------

    def _begin(self, key: str, byte_range: ByteRange, if_match: str | None) -> WebBody:
        """A response that holds the range, of the version."""
        headers = {"Range": f"bytes={byte_range.start}-{byte_range.stop - 1}"}
        version = self._pins.pinned(key, if_match)
        response = self._client.send("GET", key, headers | condition(version))
        if response.status == 412:
            # Also the answer of a server whose ETags have become weak, on the way or since: it matches none of them.
            response.close()
            response = self._client.send("GET", key, headers)
        try:
            return self._checked(key, byte_range, version, response)
        except BaseException:
            response.close()
            raise

    def _checked(self, key: str, byte_range: ByteRange, version: str | None, response: BaseHTTPResponse) -> WebBody:
        """Raises ObjectChanged, StoreProtocolError, TransientStoreError, and what the status stands for."""
        name = self._location.name(key)
        if response.status not in (200, 206):
            raise self._client.error(key, response)
        if not is_of(version, response.headers):
            raise ObjectChanged(f"{name} is not the version that was listed; make a new snapshot")
        self._pins.note(key, version, response.headers)
        content_range = response.headers.get("Content-Range")
        if response.status == 206 or content_range is not None:
            length_bytes = content_length(response.headers.get("Content-Length"))
            check_range_answer(response.status, content_range, length_bytes, byte_range, name)
            return WebBody(self._location, key, response, byte_range.start, is_whole=False)
        return WebBody(self._location, key, response, 0, is_whole=True, timeout_s=self._client.timeout_s)


def _description(headers: Mapping[str, str] | None) -> Description | None:
    size_bytes = None if headers is None else size_of(headers.get("content-length"))
    return Description(size_bytes, headers) if headers is not None and size_bytes else None
