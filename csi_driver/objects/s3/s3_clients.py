"""The clients of one bucket of S3: how their requests are signed."""

from __future__ import annotations

import math
import ssl
import time
from collections.abc import Mapping
from urllib.parse import quote

from csi_driver.model.addresses import ANY_BUT_METADATA, AddressRules
from csi_driver.model.chunk import ByteRange
from csi_driver.model.entity_tags import if_match_header
from csi_driver.model.snapshot import version_id_of
from csi_driver.objects.http.range_client import RangeClient
from csi_driver.objects.http.small_object_client import SmallObjectClient
from csi_driver.objects.http.socket_client import UNSIGNED, SocketClient
from csi_driver.objects.origin_requests import OriginRequest
from csi_driver.objects.s3.addressing import S3Address
from csi_driver.objects.s3.identity import S3Identity, S3Keys
from csi_driver.objects.s3.listing import S3_ANSWERS, named_region
from csi_driver.objects.s3.rest_client import SAFE_IN_KEY
from csi_driver.objects.s3.signing import EMPTY_SHA256, RequestSigner
from csi_driver.objects.store_location import StoreLocation

KEYS_CACHED_S = 300.0
"""Rotating keys are requested from the identity again after this, or when it renews them."""
_PERHAPS_ELSEWHERE = frozenset({301, 307, 400})
"""Statuses with which a store says that a bucket is in another region."""


class _S3Requests(SocketClient):
    """What the two fast clients have in common. ``_cached_keys`` is replaced as one value: no lock."""

    signs_requests = True

    def __init__(
        self,
        location: StoreLocation,
        address: S3Address,
        identity: S3Identity | None,
        *,
        timeout_s: float,
        requester_pays: bool = False,
        tls: ssl.SSLContext | None = None,
        address_rules: AddressRules = ANY_BUT_METADATA,
    ) -> None:
        """For a bucket reached without a proxy. ``timeout_s`` bounds each wait for bytes. ``tls`` is for https."""
        super().__init__(
            location, address.base_url, S3_ANSWERS, timeout_s=timeout_s, tls=tls, address_rules=address_rules
        )
        self._identity = identity
        self._signer = RequestSigner(address.region)
        self._payer = "requester" if requester_pays else ""
        self._cached_keys: tuple[S3Keys, float] | None = None
        """And when they have to be requested again, by the monotonic clock."""
        self._written_second = 0, ""
        """The second that was written last, and its text. Replaced as one value."""

    def _valid_keys(self) -> S3Keys | None:
        """Those that are cached: getting others from the identity may block."""
        cached = self._cached_keys
        return cached[0] if cached is not None and time.monotonic() < cached[1] else None

    @property
    def _can_sign(self) -> bool:
        """Whether a request can be signed without waiting for the identity."""
        return self._identity is None or self._valid_keys() is not None

    def _renew_keys(self) -> None:
        """Unless those that are cached are valid. Blocks on the identity. Raises as ``S3Identity.keys``."""
        if self._identity is not None and self._valid_keys() is None:
            keys = self._identity.keys()
            self._cached_keys = keys, min(time.monotonic() + KEYS_CACHED_S, keys.renew_s) if keys.rotates else math.inf

    def _build_request(self, key: str, if_match: str | None, part: ByteRange | None = None) -> bytes | None:
        """A GET of an object, or of a part of it. None: the value of a header holds characters that are not allowed in
        one."""
        path, query = self._target(key)
        headers = {"host": self._host}
        condition = if_match_header(if_match)
        if condition is not None:
            headers["if-match"] = condition
        if part is None:
            headers["x-amz-checksum-mode"] = "ENABLED"
        else:
            headers["range"] = f"bytes={part.start}-{part.stop - 1}"
        self._authorise(path, query, headers)
        values = "".join(headers.values())
        if not values.isprintable() or not values.isascii():
            return None
        lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
        target = f"{path}?{query}" if query else path
        return f"GET {target} HTTP/1.1\r\n{lines}{UNSIGNED}\r\n".encode()

    def _authorise(self, path: str, query: str, headers: dict[str, str]) -> None:
        """Adds what authorises a request with these headers, which are sorted by name, as the signature needs them."""
        headers["x-amz-content-sha256"] = EMPTY_SHA256
        headers["x-amz-date"] = now = self._timestamp()
        if self._payer:
            headers["x-amz-request-payer"] = self._payer
        if self._identity is not None:
            keys = self._valid_keys() or self._identity.keys()
            if keys.session_token:
                headers["x-amz-security-token"] = keys.session_token
            headers["authorization"] = self._signer.authorization(keys, path, now, headers, query=query)

    def _timestamp(self) -> str:
        """Of ``x-amz-date``, written once a second."""
        second = int(time.time())
        known = self._written_second
        if known[0] != second:
            known = self._written_second = second, time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(second))
        return known[1]

    def _origin_request(self, key: str, if_match: str, *, whole: bool) -> OriginRequest | None:
        path, query = self._target(key)
        headers = {"host": self._host} | ({"x-amz-checksum-mode": "ENABLED"} if whole else {})
        self._authorise(path, query, headers)
        del headers["host"]  # the URL names it
        url = self._base_url + (f"{path}?{query}" if query else path)
        return OriginRequest(url, headers, if_match_header(if_match) or "", self.answers)

    def _target(self, key: str) -> tuple[str, str]:
        """Path and query of an object, percent-encoded."""
        version_id = version_id_of(key)
        query = "" if version_id is None else f"versionId={quote(version_id, safe='-_.~')}"
        return self._path + quote(key, safe=SAFE_IN_KEY, errors="surrogateescape"), query


class S3RangeClient(_S3Requests, RangeClient):
    """Ranges of the objects of one bucket."""

    def _is_elsewhere(self, status: int, headers: Mapping[str, str], body: bytes) -> bool:
        return status in _PERHAPS_ELSEWHERE and named_region(headers, body) is not None


class S3SmallObjectClient(_S3Requests, SmallObjectClient):
    """Complete objects of one bucket."""
