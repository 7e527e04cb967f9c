"""Requests to one replica of the tier: the clients of stores, with other requests. Each names the bytes by a path that
holds nothing of the bucket, and brings along, in headers, where the replica gets the bytes if it has not got them."""

from __future__ import annotations

import logging
import ssl
import threading
import time
from typing import NamedTuple

from csi_driver import telemetry
from csi_driver.model.chunk import ByteRange
from csi_driver.model.errors import HayloftError, StoreProtocolError, TransientStoreError
from csi_driver.model.replica import Replica
from csi_driver.objects.http.connections import Connection, Dialer
from csi_driver.objects.http.in_flight_response import InFlightResponse, ResponseHead
from csi_driver.objects.http.range_client import RangeClient, RangeResponse
from csi_driver.objects.http.service_answers import ServiceAnswers
from csi_driver.objects.http.small_object_client import SmallObjectClient
from csi_driver.objects.http.socket_client import SocketClient
from csi_driver.objects.origin_requests import OriginRequest
from csi_driver.objects.store import WholeObject
from csi_driver.objects.store_location import StoreLocation
from csi_driver.objects.tier.replica_pace import ReplicaPace
from csi_driver.objects.tier.tier_counts import HITS, TierCounts

logger = logging.getLogger(__name__)

CONNECT_S = 2.0
"""For a connection within a cluster, and its TLS handshake: a retransmitted SYN takes one second."""
ORIGIN, CONDITION = "X-Hayloft-Origin", "X-Hayloft-If-Match"
CACHE_STATUS, ORIGIN_STATUS = "x-hayloft-cache", "x-hayloft-origin-status"
_OWN_FAILURES = (502, 504)
"""With these a replica says that it did not reach the bucket."""


class NotInTier(Exception):
    """The replica works, but has nothing that can be used: the bucket is asked, and its answer counts."""


class RelayedKey(str):
    """The path of a request to a replica, and the request that it may send to the bucket."""

    __slots__ = ("origin",)

    origin: OriginRequest

    def __new__(cls, path: str, origin: OriginRequest) -> RelayedKey:
        made = super().__new__(cls, path)
        made.origin = origin
        return made


def judge(head: ResponseHead | None) -> Exception:
    """What an unusable response is: NotInTier, or a TransientStoreError for a failure of the replica."""
    if head is None:
        return TransientStoreError("its answer is not HTTP/1.1")
    if head.status < 500:
        return NotInTier(f"HTTP {head.status}")
    if head.status not in _OWN_FAILURES and head.headers.get(ORIGIN_STATUS) == str(head.status):
        return NotInTier(f"the bucket has answered with HTTP {head.status}")
    return TransientStoreError(f"HTTP {head.status}")


class _ReplicaRequests(SocketClient):
    """What both clients have in common. No request is signed: TLS, or a signature of the path, shows who asks."""

    most_idle = 16
    """Connections of one replica; there may be dozens of them."""

    def __init__(
        self,
        replica: Replica,
        answers: ServiceAnswers,
        counts: TierCounts,
        pace: ReplicaPace,
        *,
        tls: ssl.SSLContext | None,
        server_name: str,
        timeout_s: float,
    ) -> None:
        host = f"[{replica.host}]" if ":" in replica.host else replica.host
        url = f"{'http' if tls is None else 'https'}://{host}:{replica.port}"
        super().__init__(StoreLocation(url, "tier"), url, answers, timeout_s=timeout_s, tls=tls)
        self._max_idle = min(self._max_idle, self.most_idle)
        self._counts, self._pace, self._replica = counts, pace, replica
        self._this_thread = threading.local()
        """Of the request that a thread waits for: ``began_s``, and ``status``, by which the replica says where it has
        taken the first byte from."""
        self._dialer = Dialer(replica.host, replica.port, tls, min(CONNECT_S, timeout_s), server_name=server_name)

    def _dial(self) -> Connection:
        """Raises TransientStoreError, which says what is wrong with the certificate or the name."""
        try:
            return self._dialer.dial()
        except ssl.SSLCertVerificationError as error:
            raise TransientStoreError(f"its certificate is not valid: {error.verify_message}") from None
        except ssl.SSLError as error:
            raise TransientStoreError(f"no TLS: {error.reason or 'no reason'}") from None
        except TimeoutError:
            raise TransientStoreError("no connection in time") from None
        except OSError as error:
            raise TransientStoreError(f"no connection: {error.strerror}") from None

    def _build_request(self, key: str, if_match: str | None, part: ByteRange | None = None) -> bytes | None:
        if not isinstance(key, RelayedKey):
            return None
        origin = key.origin
        headers = {ORIGIN: origin.url, CONDITION: origin.if_match, **origin.headers}
        if part is not None:
            headers["Range"] = f"bytes={part.start}-{part.stop - 1}"
        values = "".join(headers.values())
        if not values.isprintable() or not values.isascii():
            return None
        lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
        return f"GET {key} HTTP/1.1\r\nHost: {self._host}\r\n{lines}\r\n".encode()

    def answered(self, cache_status: str | None, wait_s: float) -> None:
        """Counts an answer. ``wait_s``: until its first byte."""
        self._counts.answered(cache_status)
        if cache_status not in HITS:
            self._pace.bucket(wait_s)
        elif self._pace.hit(self._replica.name, wait_s):
            facts = telemetry.fields(replica=self._replica.name, wait_s=round(wait_s, 3))
            logger.warning(
                "a replica of the cluster's cache is far slower than other ways; it is passed over for a while",
                extra=facts,
            )

    @property
    def in_cooldown(self) -> bool:
        """Pauses are of replicas (``replica_health.py``)."""
        return False


class ReplicaRangeClient(_ReplicaRequests, RangeClient):
    """Ranges of objects. ``request`` raises NotInTier, too."""

    def request(self, key: str, part: ByteRange, if_match: str | None) -> RangeResponse | None:
        began_s = time.monotonic()
        response = super().request(key, part, if_match)
        if response is not None:
            self.answered(self._this_thread.status, time.monotonic() - began_s)
        return response

    def _check(
        self, connection: Connection, head: ResponseHead, first: bytes, key: str, part: ByteRange, if_match: str | None
    ) -> bool:
        if head.status // 100 != 2:
            raise judge(head)
        usable = super()._check(connection, head, first, key, part, if_match)
        if usable:
            self._this_thread.status = head.headers.get(CACHE_STATUS)
        return usable


class ReplicaObjectClient(_ReplicaRequests, SmallObjectClient):
    """Complete objects. ``get`` raises NotInTier, too, and never returns None."""

    most_idle = 64

    def refused(self, key: str, status: int, wait_s: float | None) -> None:
        """The bucket is asked by itself, and says so again."""

    def fetch(self, key: RelayedKey, size_bytes: int, if_match: str) -> WholeObject:
        """Blocks. Raises NotInTier, HayloftError."""
        self._this_thread.began_s = time.monotonic()
        whole = self.get(key, size_bytes, if_match)
        if whole is None:
            raise NotInTier("the request cannot be sent")
        return whole

    def count(self, head: ResponseHead | None, wait_s: float) -> None:
        """Counts a complete answer, which took so long."""
        self.answered(None if head is None else head.headers.get(CACHE_STATUS), wait_s)

    def _wait_for(self, response: InFlightResponse, key: str) -> WholeObject | None:
        whole = super()._wait_for(response, key)
        if whole is None:
            raise judge(response.answered)
        self.count(response.answered, time.monotonic() - self._this_thread.began_s)
        return whole


class ReplicaClients(NamedTuple):
    """Of one replica, for objects of one kind of service."""

    ranges: ReplicaRangeClient
    objects: ReplicaObjectClient

    @classmethod
    def open(
        cls,
        replica: Replica,
        answers: ServiceAnswers,
        counts: TierCounts,
        pace: ReplicaPace,
        *,
        tls: ssl.SSLContext | None,
        server_name: str,
        timeout_s: float,
    ) -> ReplicaClients:
        """Sends nothing."""
        given = replica, answers, counts, pace
        return cls(
            ReplicaRangeClient(*given, tls=tls, server_name=server_name, timeout_s=timeout_s),
            ReplicaObjectClient(*given, tls=tls, server_name=server_name, timeout_s=timeout_s),
        )

    def close(self) -> None:
        """Closes what is idle."""
        self.ranges.close()
        self.objects.close()


def is_failure(error: Exception) -> bool:
    """Whether an error of a request shows that the replica does not work: not for an answer of the bucket."""
    return isinstance(error, TransientStoreError | StoreProtocolError | OSError) or not isinstance(
        error, NotInTier | HayloftError
    )
