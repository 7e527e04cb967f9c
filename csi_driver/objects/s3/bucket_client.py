"""What the clients of one bucket of S3 share: signed GETs, written by themselves, over connections that are kept."""

from __future__ import annotations

import errno
import math
import resource
import socket
import ssl
import time
import weakref
from collections import deque
from urllib.parse import quote

from csi_driver.model.addresses import ANY_BUT_METADATA, AddressRules
from csi_driver.model.chunk import ByteRange
from csi_driver.model.entity_tags import if_match_header
from csi_driver.model.snapshot import version_id_of
from csi_driver.objects.error_mapping import from_socket, unreachable
from csi_driver.objects.http.connections import Connection, Dialer
from csi_driver.objects.origin_requests import OriginRequest
from csi_driver.objects.s3.addressing import S3Address
from csi_driver.objects.s3.identity import S3Identity, S3Keys
from csi_driver.objects.s3.listing import S3_ANSWERS
from csi_driver.objects.s3.rest_client import SAFE_IN_KEY
from csi_driver.objects.s3.signing import EMPTY_SHA256, RequestSigner
from csi_driver.objects.store_location import StoreLocation

MAX_IDLE_CONNECTIONS = 128
DESCRIPTORS_PART = 64
"""But no more than one of so many descriptors of the process: each volume has two clients."""
IDLE_S = 90.0
"""An idle connection is used for so long, as by most HTTP clients: a firewall may have forgotten it without a word."""
MAX_UNUSABLE, COOLDOWN_S = 3, 60.0
"""After so many unusable responses in a row the client takes no request for a while, if the fallback path works: each
costs a second request."""
UNSIGNED = "accept-encoding: identity\r\nuser-agent: hayloft\r\n"
"""Headers that a signature does not cover, since proxies change them. The bytes are wanted as they are stored."""
KEYS_CACHED_S = 300.0
"""Rotating keys are requested from the identity again after this, or when it renews them."""


class BucketClient:
    """One bucket. Safe for any number of threads.

    There is no lock: ``deque.append`` and ``deque.pop`` are atomic, so an idle connection is used by one thread, and
    ``_cached_keys`` is replaced as one value. A lost update of ``_unusable`` only delays a cooldown.

    The clients of other services differ in ``answers``, ``_can_sign``, ``_renew_keys`` and ``_build_request``.
    """

    answers = S3_ANSWERS

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
        scheme, _, rest = address.base_url.partition("://")
        netloc, _, path = rest.partition("/")
        self._location, self._identity = location, identity
        self._signer = RequestSigner(address.region)
        self._base_url, self._host = f"{scheme}://{netloc}", netloc
        default_port = "443" if scheme == "https" else "80"
        host, _, port = netloc.rpartition(":") if netloc.rsplit(":", 1)[-1].isdigit() else (netloc, "", default_port)
        tls = tls if scheme == "https" else None
        self._dialer = Dialer(host.strip("[]"), int(port), tls, timeout_s, address_rules)
        self._path = f"/{path}/" if path else "/"
        self.timeout_s = timeout_s
        self._payer = "requester" if requester_pays else ""
        self._idle: deque[Connection] = deque()
        weakref.finalize(self, _close_all, self._idle)  # as urllib3's pools do, for an owner that forgets to close
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._max_idle = min(MAX_IDLE_CONNECTIONS, descriptors // DESCRIPTORS_PART)
        self._cached_keys: tuple[S3Keys, float] | None = None
        """And when they have to be requested again, by the monotonic clock."""
        self._unusable, self._cooldown_until = 0, 0.0
        self._written_second = 0, ""
        """The second that was written last, and its text. Replaced as one value."""

    def close(self) -> None:
        """Closes idle connections, and each that becomes idle from now on."""
        self._max_idle = 0
        _close_all(self._idle)

    def release(self, connection: Connection) -> None:
        """Takes back a connection whose response is complete and that may be used for another one."""
        connection.idle_since = time.monotonic()
        self._close_oldest_idle(connection.idle_since)
        if len(self._idle) < self._max_idle:
            self._idle.append(connection)
        else:
            connection.close()

    def _take_idle(self) -> Connection | None:
        """A connection that received nothing since its last response, which is not long ago."""
        while self._idle:
            try:
                connection = self._idle.pop()
            except IndexError:  # another thread took the last one since the check
                return None
            if time.monotonic() - connection.idle_since < IDLE_S and connection.is_quiet():
                return connection
            connection.close()
        return None

    def _close_oldest_idle(self, now: float) -> None:
        """Closes one that has been idle for too long; the most recent ones are used first."""
        try:
            oldest = self._idle[0]
            if now - oldest.idle_since >= IDLE_S:
                self._idle.remove(oldest)
                oldest.close()
        except (IndexError, ValueError):
            pass  # another thread took it

    def _dial(self) -> Connection | None:
        """None: TLS fails, and the fallback path maps its error. Raises AddressNotAllowed, TransientStoreError."""
        try:
            return self._dialer.dial()
        except ssl.SSLError:
            self.record(usable=False)
            return None
        except (socket.gaierror, ConnectionRefusedError) as error:
            raise from_socket(error, self._location, None) from None
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise from_socket(error, self._location, None) from None
            raise unreachable(self._location, "no connection") from None

    @property
    def in_cooldown(self) -> bool:
        return self._cooldown_until > 0 and time.monotonic() < self._cooldown_until

    def record(self, *, usable: bool) -> None:
        """Counts a response that was usable, or one that was not. An error of the store is neither."""
        self._unusable = 0 if usable else self._unusable + 1

    def record_fallback(self, *, worked: bool) -> None:
        """After a request that this client did not answer: the cooldown begins only once the fallback path has worked
        on this store, and ends when that fails."""
        if not worked:
            self._unusable, self._cooldown_until = 0, 0.0
        elif self._unusable >= MAX_UNUSABLE:
            self._unusable, self._cooldown_until = 0, time.monotonic() + COOLDOWN_S

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

    # -- requests that another program sends --

    @property
    def signs_requests(self) -> bool:
        """As ``SignsRequests``."""
        return True

    def origin_request(self, key: str, if_match: str, *, whole: bool, may_block: bool) -> OriginRequest | None:
        """As ``SignsRequests``."""
        if may_block:
            self._renew_keys()
        elif not self._can_sign:
            return None
        return self._origin_request(key, if_match, whole=whole)

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


def _close_all(connections: deque[Connection]) -> None:
    while connections:
        connections.pop().close()
