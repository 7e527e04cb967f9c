"""Client of S3's REST API for listings, stat and checksums, and for all that the faster clients leave to it: responses
of an odd form, and requests through a proxy. It keeps every key exactly as it is. urllib3 sends the requests.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING
from urllib.parse import quote

import urllib3

from csi_driver.model.addresses import ANY_BUT_METADATA, AddressRules
from csi_driver.model.chunk import ByteRange
from csi_driver.model.entity_tags import if_match_header, plain_etag, satisfies
from csi_driver.model.errors import (
    AccessDenied,
    HayloftError,
    ObjectChanged,
    ObjectNotFound,
    StoreProtocolError,
    TransientStoreError,
    VersionsNotPinned,
)
from csi_driver.model.snapshot import TIME_UNKNOWN_NS, ObjectInfo, version_id_of
from csi_driver.objects.checksums import StoredChecksum, from_s3_headers
from csi_driver.objects.content_range import check_range_answer, content_length
from csi_driver.objects.error_mapping import from_status, from_urllib3, retry_after_s
from csi_driver.objects.http.bounded_body import read_body, read_start
from csi_driver.objects.http.connection_pool import connection_pool
from csi_driver.objects.http.content_coding import is_recoded, stored_bytes
from csi_driver.objects.listing_pages import After, ListedPage
from csi_driver.objects.s3.addressing import S3Address
from csi_driver.objects.s3.identity import S3Identity
from csi_driver.objects.s3.listing import S3_ANSWERS, named_region, parse_listing
from csi_driver.objects.s3.object_versions import page_query, parse_version_page
from csi_driver.objects.s3.signing import EMPTY_SHA256, RequestSigner
from csi_driver.objects.store_location import StoreLocation
from csi_driver.objects.version_listing import ListedVersions

if TYPE_CHECKING:
    from urllib3.response import BaseHTTPResponse

PIECE_BYTES = 512 << 10
SAFE_IN_KEY = "/-_.~"
METADATA_CONNECTIONS = 8
"""Kept idle where other clients read the objects."""
_ERROR_BYTES = 64 << 10
"""How much of the body of an error is read: its code is at the beginning."""


class RestClient:
    """One bucket. ``identity`` None: requests are not signed. Safe for any number of threads.

    The clients of other services differ in the class attributes, and in ``list_page``, ``stat``, ``checksum``,
    ``_version_request``, ``_url`` and ``_signed``.
    """

    answers = S3_ANSWERS
    safe_in_key = SAFE_IN_KEY
    """Characters of a key that its URL holds unescaped, beside letters and digits."""

    def __init__(
        self,
        location: StoreLocation,
        address: S3Address,
        identity: S3Identity | None,
        *,
        timeout_s: float,
        requester_pays: bool = False,
        ca_bundle_pem: str | None = None,
        max_connections: int = METADATA_CONNECTIONS,
        page_bytes: int = 32 << 20,
        address_rules: AddressRules = ANY_BUT_METADATA,
    ) -> None:
        """``page_bytes``: the longest body of a response to a request for metadata."""
        self._location, self._address, self._identity = location, address, identity
        self._request_signer = RequestSigner(address.region)
        self._page_bytes = page_bytes
        self.named_region: str | None = None
        """The region that an error of the store has said the bucket is in."""
        self._headers = {"x-amz-request-payer": "requester"} if requester_pays else {}
        self._http = connection_pool(address.base_url, timeout_s, ca_bundle_pem, max_connections, address_rules)

    @property
    def endpoint(self) -> str:
        return self._location.endpoint

    @property
    def bucket(self) -> str:
        return self._location.bucket

    def list_page(self, prefix: str, token: str | None) -> ListedPage:
        # encoding-type=url: XML cannot hold control characters, which are legal in keys.
        query = {"list-type": "2", "encoding-type": "url", "prefix": prefix}
        if token is not None:
            query["start-after" if isinstance(token, After) else "continuation-token"] = token
        return parse_listing(self._fetch("GET", None, query), self._location)

    def list_versions_page(self, prefix: str, token: str | None) -> ListedVersions:
        try:
            body = self._fetch("GET", None, page_query(prefix, token))
        except AccessDenied as error:
            raise AccessDenied(f"{error}; the versions of objects are listed with s3:ListBucketVersions") from error
        except StoreProtocolError as error:
            if token is not None:
                raise
            raise VersionsNotPinned(f"the store lists no versions of objects: {error}") from error
        return parse_version_page(body, self._location)

    def stat(self, key: str) -> ObjectInfo:
        try:
            response = self._send("HEAD", key, {}, {})
        except (ObjectNotFound, AccessDenied, StoreProtocolError):
            # A response to HEAD has no body, so its status alone does not distinguish a missing bucket, wrong
            # credentials or another region from a missing object. A listing has one, and raises the more precise error.
            self._fetch("GET", None, {"list-type": "2", "prefix": key, "max-keys": "1"})
            raise
        response.drain_conn()
        found = self._info(key, response)
        return found if found.etag is not None else replace(found, etag=self._etag_of_bytes(key, found.size_bytes))

    def _etag_of_bytes(self, key: str, size_bytes: int) -> str | None:
        """Some servers send an ETag with the bytes, and none with the answer to HEAD."""
        if not size_bytes:
            return None
        response = self._send("GET", key, {}, {"Range": "bytes=0-0"})
        response.close()  # a server that ignores ranges sends more than the first byte
        return plain_etag(response.headers.get("ETag"))

    def checksum(self, key: str, *, if_match: str | None) -> StoredChecksum:
        headers = {"x-amz-checksum-mode": "ENABLED"}
        headers |= _condition(if_match)
        response = self._send("HEAD", key, {}, headers)
        response.drain_conn()
        self._check_etag(key, if_match, response)
        return from_s3_headers(response.headers)

    def read_range(self, key: str, byte_range: ByteRange, *, if_match: str | None) -> Iterator[memoryview]:
        if not byte_range:
            return
        query, headers = self._version_request(if_match)
        headers["Range"] = f"bytes={byte_range.start}-{byte_range.stop - 1}"
        response = self._send("GET", key, query, headers)
        try:
            name, content_range = self._location.name(key), response.headers.get("Content-Range")
            recoded = is_recoded(response, len(byte_range))
            if response.status != 200 or not recoded:  # the length of a recoded answer says nothing
                length_bytes = content_length(response.headers.get("Content-Length"))
                check_range_answer(response.status, content_range, length_bytes, byte_range, name)
            self._check_etag(key, if_match, response)
            if recoded:
                yield from stored_bytes(response, byte_range, name)
                return
            # Where no header says where the body ends, a longer one may be framed in a way that the headers deny, and
            # its first bytes are then not the object's.
            framing = response.headers.get("Transfer-Encoding", "")
            is_delimited = "Content-Length" in response.headers or framing.lower() == "chunked"
            must_end = not is_delimited or (response.status == 200 and content_range is None)
            yield from self._pieces(key, len(byte_range), response, must_end=must_end)
        except urllib3.exceptions.HTTPError as error:
            raise from_urllib3(error, self._location, key) from error
        finally:
            response.close()

    def close(self) -> None:
        self._http.clear()

    def _version_request(self, if_match: str | None) -> tuple[dict[str, str], dict[str, str]]:
        """Query and headers of a GET of an object's bytes, in that version."""
        return {}, _condition(if_match)

    # -- responses ----------------------------------------------------------------------------------------------

    def _info(self, key: str, response: BaseHTTPResponse) -> ObjectInfo:
        size_bytes = content_length(response.headers.get("Content-Length"))
        if size_bytes is None:
            raise StoreProtocolError(f"{self._location.name(key)}: the answer to HEAD has no Content-Length")
        etag = plain_etag(response.headers.get("ETag"))
        return ObjectInfo(key, size_bytes, etag, _header_time_ns(response.headers.get("Last-Modified", "")))

    def _check_etag(self, key: str, if_match: str | None, response: BaseHTTPResponse) -> None:
        if if_match is not None and not satisfies(self.answers.version(response.headers), if_match):
            raise ObjectChanged(f"{self._location.name(key)} is not the version that was listed; make a new snapshot")

    def _pieces(
        self, key: str, expected_bytes: int, response: BaseHTTPResponse, *, must_end: bool
    ) -> Iterator[memoryview]:
        """``must_end``: a longer body is another object, or more of it than was requested."""
        missing = expected_bytes
        while missing:
            try:
                piece = response.read(min(PIECE_BYTES, missing), decode_content=False)
                missing -= len(piece)
                more = response.read(1, decode_content=False) if must_end and not missing else b""
            except urllib3.exceptions.HTTPError as error:
                raise from_urllib3(error, self._location, key) from error
            if not piece:
                raise TransientStoreError(f"{self._location.name(key)}: bytes are missing at the end")
            if more:
                raise StoreProtocolError(f"{self._location.name(key)}: the store sent more bytes than requested")
            yield memoryview(piece)

    # -- requests -----------------------------------------------------------------------------------------------

    def _fetch(self, method: str, key: str | None, query: Mapping[str, str]) -> bytes:
        response = self._send(method, key, query, {})
        try:
            body = read_body(response, self._page_bytes, self._location.name(key))
        except urllib3.exceptions.HTTPError as error:
            response.close()
            raise from_urllib3(error, self._location, key) from error
        except HayloftError:
            response.close()  # the rest of the body is not wanted
            raise
        response.release_conn()
        return body

    def _send(
        self, method: str, key: str | None, query: Mapping[str, str], headers: Mapping[str, str]
    ) -> BaseHTTPResponse:
        """The response, its body unread. Raises the error for a status other than 2xx."""
        url = self._url(key, query)
        try:
            # Not through the pool manager, which would resolve dots in a key as if they were directories.
            response = self._http.connection_from_url(self._address.base_url).urlopen(
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

    def _url(self, key: str | None, query: Mapping[str, str]) -> str:
        url = self._address.base_url
        if key:
            url += "/" + quote(key, safe=self.safe_in_key, errors="surrogateescape")
        elif "/" not in url.partition("://")[2]:
            url += "/"  # of a bucket in virtual-hosted style, which is the host
        version_id = version_id_of(key)
        if version_id is not None:
            query = {**query, "versionId": version_id}
        if query:
            escaped = {name: quote(value, safe="-_.~", errors="surrogateescape") for name, value in query.items()}
            url += "?" + "&".join(f"{name}={escaped[name]}" for name in sorted(escaped))
        return url

    def _target(self, url: str) -> str:
        """What the request line names: the URL for a proxy of plain HTTP, the path for all others."""
        if isinstance(self._http, urllib3.ProxyManager) and url.startswith("http:"):
            return url
        return "/" + url.partition("://")[2].partition("/")[2]

    def _signed(self, method: str, url: str, headers: Mapping[str, str]) -> dict[str, str]:
        """The headers to send. Of the values, runs of spaces are signed as one space."""
        if self._identity is None:
            return {**self._headers, **headers}
        keys, now = self._identity.keys(), time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        plain, _, query = url.partition("://")[2].partition("?")
        netloc, _, path = plain.partition("/")
        sent = {name.lower(): value for name, value in {**self._headers, **headers}.items()}
        sent |= {"host": netloc, "x-amz-content-sha256": EMPTY_SHA256, "x-amz-date": now}
        if keys.session_token:
            sent["x-amz-security-token"] = keys.session_token
        signed = {name: " ".join(sent[name].split()) for name in sorted(sent)}
        sent["authorization"] = self._request_signer.authorization(
            keys, f"/{path}", now, signed, method=method, query=query
        )
        return sent

    def _error(self, key: str | None, response: BaseHTTPResponse) -> HayloftError:
        try:
            body = read_start(response, _ERROR_BYTES)
        except (urllib3.exceptions.HTTPError, HayloftError):
            body = b""
        finally:
            response.close()
        region = named_region(response.headers, body)
        self.named_region = region or self.named_region
        return from_status(
            self._location,
            key,
            response.status,
            self.answers.error_code(body),
            retry_after_s(response.headers.get("Retry-After")),
            redirect_to=response.headers.get("Location"),
            lacking=self.answers.lacking_permission(body),
            region=region,
        )


def _condition(if_match: str | None) -> dict[str, str]:
    value = if_match_header(if_match)
    return {} if value is None else {"If-Match": value}


def _header_time_ns(text: str) -> int:
    try:
        return int(parsedate_to_datetime(text).timestamp()) * 10**9
    except (ValueError, OverflowError):
        return TIME_UNKNOWN_NS
