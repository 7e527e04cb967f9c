"""The clients of one container of Azure Blob Storage."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from urllib.parse import parse_qsl, quote, urlsplit

from csi_driver.model.chunk import ByteRange
from csi_driver.model.dataset import StoreOptions
from csi_driver.model.entity_tags import if_match_header
from csi_driver.model.errors import AccessDenied, ObjectNotFound
from csi_driver.model.snapshot import ObjectInfo
from csi_driver.objects.azure.azure_signers import AzureSigner
from csi_driver.objects.azure.blob_listing import parse_blobs
from csi_driver.objects.checksums import StoredChecksum
from csi_driver.objects.http.range_client import RangeClient
from csi_driver.objects.http.service_answers import ServiceAnswers, etag_of
from csi_driver.objects.http.small_object_client import SmallObjectClient
from csi_driver.objects.http.socket_client import UNSIGNED, SocketClient
from csi_driver.objects.listing_pages import ListedPage
from csi_driver.objects.origin_requests import OriginRequest
from csi_driver.objects.s3.addressing import S3Address
from csi_driver.objects.s3.listing import error_code
from csi_driver.objects.s3.rest_client import METADATA_CONNECTIONS, RestClient
from csi_driver.objects.store_location import StoreLocation

SAFE_IN_KEY = "/-_.~"
_LISTING = {"restype": "container", "comp": "list", "include": "metadata", "maxresults": "2000"}
"""With 8 KiB of metadata for each blob, the most that Azure keeps, a page stays below the 32 MiB that are read."""

ANSWERS = ServiceAnswers(etag_of, lambda _: StoredChecksum(None, etag_may_be_md5=False), error_code)


class AzureRestClient(RestClient):
    """Listings and stat, and all that the faster clients leave to it."""

    answers = ANSWERS
    safe_in_key = SAFE_IN_KEY

    def __init__(self, location: StoreLocation, options: StoreOptions, signer: AzureSigner) -> None:
        super().__init__(
            location,
            container_address(location),
            None,
            timeout_s=options.request_timeout_s,
            ca_bundle_pem=options.ca_bundle_pem,
            max_connections=options.max_connections if location.proxy else METADATA_CONNECTIONS,
            page_bytes=options.page_bytes,
            address_rules=options.address_rules,
        )
        self._signer = signer

    def list_page(self, prefix: str, token: str | None) -> ListedPage:
        query = _LISTING | ({"prefix": prefix} if prefix else {}) | ({"marker": token} if token else {})
        return parse_blobs(self._fetch("GET", None, query), self._location)

    def stat(self, key: str) -> ObjectInfo:
        try:
            response = self._send("HEAD", key, {}, {})
        except (ObjectNotFound, AccessDenied):
            # The status alone does not tell a missing container from a missing object; the answer to a listing does.
            self._fetch("GET", None, _LISTING | {"prefix": key, "maxresults": "1"})
            raise
        response.drain_conn()
        return self._info(key, response)

    def _url(self, key: str | None, query: Mapping[str, str]) -> str:
        return super()._url(key, {**query, **self._signer.query})

    def _signed(self, method: str, url: str, headers: Mapping[str, str]) -> dict[str, str]:
        parts = urlsplit(url)
        query = dict(parse_qsl(parts.query, keep_blank_values=True, errors="surrogateescape"))
        lower = {name.lower(): value for name, value in headers.items()}
        return self._signer.headers(parts.path, query, lower, method)


class _AzureRequests(SocketClient):
    """What the two fast clients have in common."""

    def __init__(
        self, location: StoreLocation, options: StoreOptions, signer: AzureSigner, tls: ssl.SSLContext | None
    ) -> None:
        super().__init__(
            location,
            container_address(location).base_url,
            ANSWERS,
            timeout_s=options.request_timeout_s,
            tls=tls,
            address_rules=options.address_rules,
        )
        self._azure = signer
        query = "&".join(f"{name}={quote(value, safe='-_.~')}" for name, value in sorted(signer.query.items()))
        self._query = f"?{query}" if query else ""

    @property
    def _can_sign(self) -> bool:
        return self._azure.is_ready

    def _renew_keys(self) -> None:
        if not self._azure.is_ready:
            self._azure.headers(self._path, {}, {}, "GET")

    def _build_request(self, key: str, if_match: str | None, part: ByteRange | None = None) -> bytes | None:
        path = self._path + quote(key, safe=SAFE_IN_KEY, errors="surrogateescape")
        headers = {}
        condition = if_match_header(if_match)
        if condition is not None:
            headers["if-match"] = condition
        if part is not None:
            headers["range"] = f"bytes={part.start}-{part.stop - 1}"
        headers = self._azure.headers(path, self._azure.query, headers, "GET")
        values = "".join(headers.values())
        if not values.isprintable() or not values.isascii():
            return None
        lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
        return f"GET {path}{self._query} HTTP/1.1\r\nhost: {self._host}\r\n{lines}{UNSIGNED}\r\n".encode()

    @property
    def signs_requests(self) -> bool:
        """With a token, and without any credential. A shared key signs the range, which a cache has to change; a shared
        access signature would be in URLs, which others log."""
        return self._azure.any_range and not self._query

    def _origin_request(self, key: str, if_match: str, *, whole: bool) -> OriginRequest | None:
        path = self._path + quote(key, safe=SAFE_IN_KEY, errors="surrogateescape")
        headers = {"accept-encoding": "identity", **self._azure.headers(path, {}, {}, "GET")}
        return OriginRequest(self._base_url + path, headers, if_match_header(if_match) or "", self.answers)


class AzureRangeClient(_AzureRequests, RangeClient):
    """Ranges of the objects of one container."""


class AzureSmallObjectClient(_AzureRequests, SmallObjectClient):
    """Complete objects of one container."""


def container_address(location: StoreLocation) -> S3Address:
    """Of the objects of a container; its name needs no escape (``endpoints.check_bucket``)."""
    return S3Address(f"{location.endpoint}/{location.bucket}", "", virtual_hosted=False)
