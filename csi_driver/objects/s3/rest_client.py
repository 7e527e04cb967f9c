"""Client of S3's REST API that keeps every key exactly as it is: listings, stat, checksums, and reads of odd keys.

obstore is the fastest client for bytes, but it changes keys: it drops a slash at either end and refuses control
characters, empty parts and dots, and one such key makes a complete listing fail. A directory marker ``dir/`` is enough
for a wrong listing. Here botocore signs the requests and urllib3 sends them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING
from urllib.parse import quote

import urllib3
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials as BotoCredentials

from csi_driver.model.chunk import ByteRange
from csi_driver.model.errors import (
    AccessDenied,
    HayloftError,
    ObjectChanged,
    ObjectNotFound,
    StoreProtocolError,
    TransientStoreError,
)
from csi_driver.model.snapshot import ObjectInfo, ObjectPage
from csi_driver.objects.checksums import StoredChecksum, from_s3_headers
from csi_driver.objects.content_range import check_content_range
from csi_driver.objects.error_mapping import from_status, from_urllib3, retry_after_s
from csi_driver.objects.http.connection_pool import connection_pool
from csi_driver.objects.s3.addressing import S3Address
from csi_driver.objects.s3.identity import S3Identity
from csi_driver.objects.s3.listing import error_code, parse_listing
from csi_driver.objects.store_location import StoreLocation

if TYPE_CHECKING:
    from urllib3.response import BaseHTTPResponse

PIECE_BYTES = 512 << 10
SAFE_IN_KEY = "/-_.~"


class RestClient:
    """One bucket. ``identity`` None: requests are not signed. Safe for any number of threads."""

    def __init__(
        self,
        location: StoreLocation,
        address: S3Address,
        identity: S3Identity | None,
        *,
        timeout_s: float,
        requester_pays: bool = False,
        ca_bundle_pem: str | None = None,
        max_connections: int = 8,
    ) -> None:
        self._location, self._address, self._identity = location, address, identity
        self._headers = {"x-amz-request-payer": "requester"} if requester_pays else {}
        self._http = connection_pool(address.base_url, timeout_s, ca_bundle_pem, max_connections)

    @property
    def endpoint(self) -> str:
        return self._location.endpoint

    @property
    def bucket(self) -> str:
        return self._location.bucket

    def list(self, prefix: str) -> Iterator[ObjectPage]:
        return self.list_after(prefix, "")

    def list_after(self, prefix: str, after: str) -> Iterator[ObjectPage]:
        """Pages of keys that begin with ``prefix`` and sort after ``after``, sorted."""
        # encoding-type=url: XML cannot hold control characters, which are legal in keys.
        query = {"list-type": "2", "encoding-type": "url", "prefix": prefix}
        first = query | ({"start-after": after} if after else {})
        # The next page is in flight while the caller works on this one: a store takes 20 to 200 ms for each.
        with ThreadPoolExecutor(1, "listing") as executor:
            next_page = executor.submit(self._fetch, "GET", None, first)
            token: str | None = ""
            while token is not None:
                page, token = parse_listing(next_page.result(), self._location)
                if token is not None:
                    next_page = executor.submit(self._fetch, "GET", None, query | {"continuation-token": token})
                if len(page):
                    yield page

    def stat(self, key: str) -> ObjectInfo:
        try:
            response = self._send("HEAD", key, {}, {})
        except (ObjectNotFound, AccessDenied):
            # A response to HEAD has no body, so its status alone does not distinguish a missing bucket or wrong
            # credentials from a missing object. A listing has one, and raises the more precise error.
            self._fetch("GET", None, {"list-type": "2", "prefix": key, "max-keys": "1"})
            raise
        response.drain_conn()
        return self._info(key, response)

    def checksum(self, key: str, *, if_match: str | None) -> StoredChecksum:
        headers = {"x-amz-checksum-mode": "ENABLED"}
        if if_match is not None:
            headers["If-Match"] = f'"{if_match}"'
        response = self._send("HEAD", key, {}, headers)
        response.drain_conn()
        self._check_etag(key, if_match, response)
        return from_s3_headers(response.headers)

    def read_range(self, key: str, byte_range: ByteRange, *, if_match: str | None) -> Iterator[memoryview]:
        if not byte_range:
            return
        headers = {"Range": f"bytes={byte_range.start}-{byte_range.stop - 1}"}
        if if_match is not None:
            headers["If-Match"] = f'"{if_match}"'
        response = self._send("GET", key, {}, headers)
        try:
            # None for a status 200, which is the complete object.
            header = response.headers.get("Content-Range") if response.status == 206 else None
            check_content_range(header, byte_range, self._location.name(key))
            self._check_etag(key, if_match, response)
            yield from self._pieces(key, len(byte_range), response)
        finally:
            response.close()

    def close(self) -> None:
        self._http.clear()

    # -- responses ----------------------------------------------------------------------------------------------

    def _info(self, key: str, response: BaseHTTPResponse) -> ObjectInfo:
        try:
            modified = parsedate_to_datetime(response.headers["Last-Modified"])
            size = int(response.headers["Content-Length"])
        except (KeyError, ValueError) as error:
            raise StoreProtocolError(f"{self._location.name(key)}: size or time of change are missing") from error
        etag = response.headers.get("ETag", "").strip('"')
        return ObjectInfo(key, size, etag or None, int(modified.timestamp()) * 10**9)

    def _check_etag(self, key: str, if_match: str | None, response: BaseHTTPResponse) -> None:
        if if_match is not None and response.headers.get("ETag", "").strip('"') != if_match:
            raise ObjectChanged(f"{self._location.name(key)} is not the version that was listed; make a new snapshot")

    def _pieces(self, key: str, expected_bytes: int, response: BaseHTTPResponse) -> Iterator[memoryview]:
        missing = expected_bytes
        while missing:
            try:
                piece = response.read(min(PIECE_BYTES, missing), decode_content=False)
            except urllib3.exceptions.HTTPError as error:
                raise from_urllib3(error, self._location, key) from error
            if not piece:
                raise TransientStoreError(f"{self._location.name(key)}: {missing} bytes are missing at the end")
            missing -= len(piece)
            yield memoryview(piece)

    # -- requests -----------------------------------------------------------------------------------------------

    def _fetch(self, method: str, key: str | None, query: Mapping[str, str]) -> bytes:
        response = self._send(method, key, query, {})
        try:
            return response.read(decode_content=True)
        except urllib3.exceptions.HTTPError as error:
            raise from_urllib3(error, self._location, key) from error
        finally:
            response.release_conn()

    def _send(
        self, method: str, key: str | None, query: Mapping[str, str], headers: Mapping[str, str]
    ) -> BaseHTTPResponse:
        """The response, its body unread. Raises the error for a status other than 2xx."""
        url = self._address.base_url + ("/" + quote(key, safe=SAFE_IN_KEY, errors="surrogateescape") if key else "")
        if query:
            url += "?" + "&".join(f"{name}={quote(value, safe='-_.~')}" for name, value in sorted(query.items()))
        try:
            # Not through the pool manager, which would resolve dots in a key as if they were directories.
            response = self._http.connection_from_url(url).urlopen(
                method,
                self._target(url),
                headers=self._signed(method, url, headers),
                preload_content=False,
                redirect=False,
                retries=False,
                assert_same_host=False,
            )
        except urllib3.exceptions.HTTPError as error:
            raise from_urllib3(error, self._location, key) from error
        if response.status // 100 != 2:
            raise self._error(key, response)
        return response

    def _target(self, url: str) -> str:
        """What the request line names: the URL for a proxy of plain HTTP, the path for all others."""
        if isinstance(self._http, urllib3.ProxyManager) and url.startswith("http:"):
            return url
        return "/" + url.partition("://")[2].partition("/")[2]

    def _signed(self, method: str, url: str, headers: Mapping[str, str]) -> dict[str, str]:
        request = AWSRequest(method=method, url=url, headers={**self._headers, **headers})
        if self._identity is not None:
            keys = self._identity.keys()
            signer = BotoCredentials(keys.access_key_id, keys.secret_access_key, keys.session_token)
            S3SigV4Auth(signer, "s3", self._address.region).add_auth(request)
        return dict(request.headers.items())

    def _error(self, key: str | None, response: BaseHTTPResponse) -> HayloftError:
        try:
            body = response.read(64 << 10, decode_content=True)
        except urllib3.exceptions.HTTPError:
            body = b""
        finally:
            response.close()
        wait_s = retry_after_s(response.headers.get("Retry-After"))
        return from_status(self._location, key, response.status, error_code(body), wait_s)
