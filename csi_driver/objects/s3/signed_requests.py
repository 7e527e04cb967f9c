"""S3 over plain signed requests: listing and stat of every key exactly as it is.

obstore is the fast way for bytes, but it tidies keys: it drops a slash at either end and refuses control characters,
empty parts and dots, and one such key makes its whole listing fail. A directory marker ``dir/`` is enough to be told
wrong. So listings, stat and odd keys go this way; botocore signs, urllib3 carries.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING
from urllib.parse import quote
from urllib.request import getproxies, proxy_bypass

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
from csi_driver.objects.credentials import S3Identity
from csi_driver.objects.endpoints import S3Address
from csi_driver.objects.error_mapping import Place, from_status, from_urllib3, retry_after_s
from csi_driver.objects.http.connections import CONNECT_TIMEOUT_S, tls_context
from csi_driver.objects.ranges import check_content_range
from csi_driver.objects.s3.list_pages import error_code, parse_listing

if TYPE_CHECKING:
    from urllib3.response import BaseHTTPResponse

PIECE_BYTES = 512 << 10
SAFE_IN_KEY = "/-_.~"


class SignedRequests:
    """One bucket. ``identity`` None asks without a signature. Safe for any number of threads."""

    def __init__(
        self,
        place: Place,
        address: S3Address,
        identity: S3Identity | None,
        *,
        timeout_s: float,
        requester_pays: bool = False,
        ca_bundle_pem: str | None = None,
        max_connections: int = 8,
    ) -> None:
        self._place, self._address, self._identity = place, address, identity
        self._headers = {"x-amz-request-payer": "requester"} if requester_pays else {}
        self._http = http_pool(address.base_url, timeout_s, ca_bundle_pem, max_connections)

    @property
    def endpoint(self) -> str:
        return self._place.endpoint

    @property
    def bucket(self) -> str:
        return self._place.bucket

    def list(self, prefix: str) -> Iterator[ObjectPage]:
        return self.list_after(prefix, "")

    def list_after(self, prefix: str, after: str) -> Iterator[ObjectPage]:
        """Pages of keys that begin with ``prefix`` and sort behind ``after``, sorted."""
        # encoding-type=url: XML cannot hold control characters, and they are legal in keys.
        query = {"list-type": "2", "encoding-type": "url", "prefix": prefix}
        first = query | ({"start-after": after} if after else {})
        # The next page is on its way while the caller works on this one: a store takes 20 to 200 ms for each.
        with ThreadPoolExecutor(1, "listing") as ahead:
            coming = ahead.submit(self._fetch, "GET", None, first)
            token: str | None = ""
            while token is not None:
                page, token = parse_listing(coming.result(), self._place)
                if token is not None:
                    coming = ahead.submit(self._fetch, "GET", None, query | {"continuation-token": token})
                if len(page):
                    yield page

    def stat(self, key: str) -> ObjectInfo:
        try:
            answer = self._send("HEAD", key, {}, {})
        except (ObjectNotFound, AccessDenied):
            # An answer to HEAD has no body that tells a missing bucket or a wrong key from a missing object.
            self._fetch("GET", None, {"list-type": "2", "prefix": key, "max-keys": "1"})
            raise
        answer.drain_conn()
        return self._info(key, answer)

    def checksum(self, key: str, *, if_match: str | None) -> StoredChecksum:
        """See KeepsChecksums."""
        headers = {"x-amz-checksum-mode": "ENABLED"}
        if if_match is not None:
            headers["If-Match"] = f'"{if_match}"'
        answer = self._send("HEAD", key, {}, headers)
        answer.drain_conn()
        self._check_etag(key, if_match, answer)
        return from_s3_headers(answer.headers)

    def read_range(self, key: str, byte_range: ByteRange, *, if_match: str | None) -> Iterator[memoryview]:
        if not byte_range:
            return
        headers = {"Range": f"bytes={byte_range.start}-{byte_range.stop - 1}"}
        if if_match is not None:
            headers["If-Match"] = f'"{if_match}"'
        answer = self._send("GET", key, {}, headers)
        try:
            # None for an answer 200, which is the whole object.
            header = answer.headers.get("Content-Range") if answer.status == 206 else None
            check_content_range(header, byte_range, self._place.name(key))
            self._check_etag(key, if_match, answer)
            yield from self._pieces(key, len(byte_range), answer)
        finally:
            answer.close()

    def close(self) -> None:
        self._http.clear()

    # -- answers ------------------------------------------------------------------------------------------------

    def _info(self, key: str, answer: BaseHTTPResponse) -> ObjectInfo:
        try:
            modified = parsedate_to_datetime(answer.headers["Last-Modified"])
            size = int(answer.headers["Content-Length"])
        except (KeyError, ValueError) as error:
            raise StoreProtocolError(f"{self._place.name(key)}: size or time of change are missing") from error
        etag = answer.headers.get("ETag", "").strip('"')
        return ObjectInfo(key, size, etag or None, int(modified.timestamp()) * 10**9)

    def _check_etag(self, key: str, if_match: str | None, answer: BaseHTTPResponse) -> None:
        if if_match is not None and answer.headers.get("ETag", "").strip('"') != if_match:
            raise ObjectChanged(f"{self._place.name(key)} is not the version that was listed; make a new snapshot")

    def _pieces(self, key: str, expected_bytes: int, answer: BaseHTTPResponse) -> Iterator[memoryview]:
        missing = expected_bytes
        while missing:
            try:
                piece = answer.read(min(PIECE_BYTES, missing), decode_content=False)
            except urllib3.exceptions.HTTPError as error:
                raise from_urllib3(error, self._place, key) from error
            if not piece:
                raise TransientStoreError(f"{self._place.name(key)}: {missing} bytes are missing at the end")
            missing -= len(piece)
            yield memoryview(piece)

    # -- requests -----------------------------------------------------------------------------------------------

    def _fetch(self, method: str, key: str | None, query: Mapping[str, str]) -> bytes:
        answer = self._send(method, key, query, {})
        try:
            return answer.read(decode_content=True)
        except urllib3.exceptions.HTTPError as error:
            raise from_urllib3(error, self._place, key) from error
        finally:
            answer.release_conn()

    def _send(
        self, method: str, key: str | None, query: Mapping[str, str], headers: Mapping[str, str]
    ) -> BaseHTTPResponse:
        """The answer, its body unread. Raises the error that a status other than 2xx means."""
        url = self._address.base_url + ("/" + quote(key, safe=SAFE_IN_KEY, errors="surrogateescape") if key else "")
        if query:
            url += "?" + "&".join(f"{name}={quote(value, safe='-_.~')}" for name, value in sorted(query.items()))
        try:
            # Past the pool manager, which would resolve dots in a key as if they were directories.
            answer = self._http.connection_from_url(url).urlopen(
                method,
                self._target(url),
                headers=self._signed(method, url, headers),
                preload_content=False,
                redirect=False,
                retries=False,
                assert_same_host=False,
            )
        except urllib3.exceptions.HTTPError as error:
            raise from_urllib3(error, self._place, key) from error
        if answer.status // 100 != 2:
            raise self._error(key, answer)
        return answer

    def _target(self, url: str) -> str:
        """What the request line names: a proxy of plain HTTP wants the whole URL, all others the path."""
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

    def _error(self, key: str | None, answer: BaseHTTPResponse) -> HayloftError:
        try:
            body = answer.read(64 << 10, decode_content=True)
        except urllib3.exceptions.HTTPError:
            body = b""
        finally:
            answer.close()
        wait_s = retry_after_s(answer.headers.get("Retry-After"))
        return from_status(self._place, key, answer.status, error_code(body), wait_s)


def http_pool(base_url: str, timeout_s: float, ca_bundle_pem: str | None, max_connections: int) -> urllib3.PoolManager:
    """Connections that trust the system's authorities and ``ca_bundle_pem``, by way of the proxy of the environment.

    ``timeout_s`` bounds each wait for bytes, not a whole transfer.
    """
    context = tls_context(ca_bundle_pem)
    timeout = urllib3.Timeout(connect=min(CONNECT_TIMEOUT_S, timeout_s), read=timeout_s)
    scheme, _, host = base_url.partition("://")
    proxy = getproxies().get(scheme)
    if proxy and not proxy_bypass(host.partition("/")[0]):
        return urllib3.ProxyManager(
            proxy, ssl_context=context, timeout=timeout, maxsize=max_connections, proxy_ssl_context=context
        )
    return urllib3.PoolManager(ssl_context=context, timeout=timeout, maxsize=max_connections)


def find_region(bucket: str, timeout_s: float, endpoint: str = "https://s3.amazonaws.com") -> str | None:
    """Region of a bucket of AWS, which says it to anybody, or None. Blocks at most about ``timeout_s``."""
    url = f"{endpoint}/{quote(bucket, safe='')}"
    try:
        answer = http_pool(url, timeout_s, None, 1).request("HEAD", url, redirect=False, retries=False)
    except urllib3.exceptions.HTTPError:
        return None
    return answer.headers.get("x-amz-bucket-region")
