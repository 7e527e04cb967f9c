"""The clients of one bucket of Google Cloud Storage, by its JSON API: keys stand in paths with every slash escaped, so
no server or proxy takes ``//`` or ``..`` for something else.

The generation is an object's version: unlike ETags of this API it changes with the bytes alone. ``Accept-Encoding:
gzip`` gets the stored bytes of objects with ``Content-Encoding: gzip``, which the service decompresses for clients that
do not accept it, and then without ranges.
"""

from __future__ import annotations

import json
import re
import ssl
from collections.abc import Mapping
from urllib.parse import quote

from csi_driver.model.chunk import ByteRange
from csi_driver.model.dataset import StoreOptions
from csi_driver.model.errors import ObjectChanged, ObjectNotFound, StoreProtocolError
from csi_driver.model.snapshot import ObjectInfo
from csi_driver.objects.bearer_tokens import BearerTokens
from csi_driver.objects.checksums import StoredChecksum, from_google_hash
from csi_driver.objects.google.json_listing import GENERATION, LISTING_FIELDS, OBJECT_FIELDS, parse_object, parse_page
from csi_driver.objects.http.range_client import RangeClient
from csi_driver.objects.http.service_answers import ServiceAnswers
from csi_driver.objects.http.small_object_client import SmallObjectClient
from csi_driver.objects.http.socket_client import SocketClient
from csi_driver.objects.listing_pages import After, ListedPage
from csi_driver.objects.origin_requests import OriginRequest
from csi_driver.objects.s3.addressing import S3Address
from csi_driver.objects.s3.rest_client import METADATA_CONNECTIONS, RestClient
from csi_driver.objects.store_location import StoreLocation

SAFE_IN_KEY = "-_.~"
_REASON = re.compile(rb'"reason": ?"([A-Za-z0-9]{1,64})"')
_STORED = {"Accept-Encoding": "gzip"}


def _error_code(body: bytes) -> str | None:
    found = _REASON.search(body)
    return found[1].decode() if found else None


def _checksum(headers: Mapping[str, str]) -> StoredChecksum:
    return from_google_hash(headers.get("x-goog-hash"), etag_may_be_md5=False)


ANSWERS = ServiceAnswers(lambda headers: headers.get("x-goog-generation"), _checksum, _error_code)


class GoogleRestClient(RestClient):
    """Listings, stat and checksums, and all that the faster clients leave to it."""

    answers = ANSWERS
    safe_in_key = SAFE_IN_KEY

    def __init__(
        self, location: StoreLocation, options: StoreOptions, tokens: BearerTokens | None, payer: str | None = None
    ) -> None:
        """``payer``: the project that is billed for requests; None: that of the bucket."""
        super().__init__(
            location,
            object_address(location),
            None,
            timeout_s=options.request_timeout_s,
            ca_bundle_pem=options.ca_bundle_pem,
            max_connections=options.max_connections if location.proxy else METADATA_CONNECTIONS,
            page_bytes=options.page_bytes,
            address_rules=options.address_rules,
        )
        self._tokens = tokens
        self._billed = {} if payer is None else {"userProject": payer}

    def list_page(self, prefix: str, token: str | None) -> ListedPage:
        query = {"prefix": prefix, "fields": LISTING_FIELDS, "maxResults": "1000"}
        if token is not None:
            query["startOffset" if isinstance(token, After) else "pageToken"] = token
        return parse_page(self._fetch("GET", None, query), self._location)

    def stat(self, key: str) -> ObjectInfo:
        try:
            return parse_object(self._fetch("GET", key, {"fields": OBJECT_FIELDS}), key, self._location)
        except ObjectNotFound:
            # The answer does not tell a missing bucket from a missing object; that to a listing does.
            self._fetch("GET", None, {"prefix": key, "fields": LISTING_FIELDS, "maxResults": "1"})
            raise

    def checksum(self, key: str, *, if_match: str | None) -> StoredChecksum:
        query = {"fields": "generation,crc32c,md5Hash", **_condition(if_match)}
        try:
            found = json.loads(self._fetch("GET", key, query))
            hashes = f"crc32c={found.get('crc32c')},md5={found.get('md5Hash')}"
            version = found.get("generation")
        except (ValueError, RecursionError, AttributeError):
            raise StoreProtocolError(f"{self._location.name(key)}: the answer is no description of it") from None
        if if_match is not None and version != if_match:
            raise ObjectChanged(f"{self._location.name(key)} is not the version that was listed; make a new snapshot")
        return from_google_hash(hashes, etag_may_be_md5=False)

    def _version_request(self, if_match: str | None) -> tuple[dict[str, str], dict[str, str]]:
        return {"alt": "media", **_condition(if_match)}, dict(_STORED)

    def _url(self, key: str | None, query: Mapping[str, str]) -> str:
        return super()._url(key, {**query, **self._billed})

    def _signed(self, method: str, url: str, headers: Mapping[str, str]) -> dict[str, str]:
        own = {} if self._tokens is None else {"Authorization": f"Bearer {self._tokens.get()}"}
        return {**headers, **own}


class _GoogleRequests(SocketClient):
    """What the two fast clients have in common."""

    signs_requests = True

    def __init__(
        self,
        location: StoreLocation,
        options: StoreOptions,
        tokens: BearerTokens | None,
        tls: ssl.SSLContext | None,
        payer: str | None = None,
    ) -> None:
        super().__init__(
            location,
            object_address(location).base_url,
            ANSWERS,
            timeout_s=options.request_timeout_s,
            tls=tls,
            address_rules=options.address_rules,
        )
        self._tokens = tokens
        self._query = "?alt=media" if payer is None else f"?alt=media&userProject={quote(payer, safe='')}"

    @property
    def _can_sign(self) -> bool:
        return self._tokens is None or self._tokens.valid() is not None

    def _renew_keys(self) -> None:
        if self._tokens is not None:
            self._tokens.get()

    def _build_request(self, key: str, if_match: str | None, part: ByteRange | None = None) -> bytes | None:
        path = self._path + quote(key, safe=SAFE_IN_KEY, errors="surrogateescape") + self._query
        for name, value in _condition(if_match).items():
            path += f"&{name}={value}"
        lines = "" if part is None else f"Range: bytes={part.start}-{part.stop - 1}\r\n"
        if self._tokens is not None:
            lines += f"Authorization: Bearer {self._tokens.get()}\r\n"
        if not lines.replace("\r\n", "").isprintable() or not lines.isascii():
            return None
        return (
            f"GET {path} HTTP/1.1\r\nHost: {self._host}\r\n{lines}Accept-Encoding: gzip\r\nUser-Agent: hayloft\r\n\r\n"
        ).encode()

    def _origin_request(self, key: str, if_match: str, *, whole: bool) -> OriginRequest | None:
        url = self._base_url + self._path + quote(key, safe=SAFE_IN_KEY, errors="surrogateescape") + self._query
        condition = "".join(f"&{name}={value}" for name, value in _condition(if_match).items())
        headers = {"accept-encoding": "gzip"}
        if self._tokens is not None:
            headers["authorization"] = f"Bearer {self._tokens.get()}"
        return OriginRequest(url + condition, headers, "", self.answers)


class GoogleRangeClient(_GoogleRequests, RangeClient):
    """Ranges of the objects of one bucket."""


class GoogleSmallObjectClient(_GoogleRequests, SmallObjectClient):
    """Complete objects of one bucket."""


def object_address(location: StoreLocation) -> S3Address:
    """Of the objects of a bucket; the names of buckets need no escape (``endpoints.check_bucket``)."""
    return S3Address(f"{location.endpoint}/storage/v1/b/{location.bucket}/o", "", virtual_hosted=False)


def _condition(if_match: str | None) -> dict[str, str]:
    """The answer's generation decides all the same: not every server knows the condition."""
    return {"ifGenerationMatch": if_match} if if_match is not None and GENERATION.match(if_match) else {}
