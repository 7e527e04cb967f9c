"""The fast clients of one web server: ranges and complete small objects, over connections that are kept.

They take the answers that most servers give. What else there is (redirects, encoded or chunked answers, servers that
know no ranges or no HTTP/1.1) is left to ``WebClient``, which is asked again.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import Any

from csi_driver.model.chunk import ByteRange
from csi_driver.model.dataset import StoreOptions
from csi_driver.objects.checksums import Checksum, StoredChecksum
from csi_driver.objects.error_mapping import from_status, retry_after_s
from csi_driver.objects.http.connections import Connection
from csi_driver.objects.http.in_flight_response import InFlightResponse, ResponseHead
from csi_driver.objects.http.range_client import RangeClient
from csi_driver.objects.http.service_answers import ServiceAnswers
from csi_driver.objects.http.small_object_client import SmallObjectClient
from csi_driver.objects.http.socket_client import MAX_UNUSABLE, SocketClient
from csi_driver.objects.store import WholeObject
from csi_driver.objects.web.web_urls import WebLocation
from csi_driver.objects.web.web_versions import PinnedAnswers, checksum_of, condition, is_of, version_of

_ANSWERS = ServiceAnswers(version_of, lambda _: StoredChecksum(None, etag_may_be_md5=False), lambda _: None)
TOO_MANY = (429, 503)
MOST_UNTRIED = 4
"""Requests before the first usable answer."""
_CLEAR = (401, 403, 404, 410, *TOO_MANY)
_LEFT_TO_FALLBACK = (301, 302, 303, 307, 308, 412)


class WebRequests(SocketClient):
    """What the fast clients have in common."""

    def __init__(
        self,
        location: WebLocation,
        options: StoreOptions,
        headers: Mapping[str, str],
        pins: PinnedAnswers,
        tls: ssl.SSLContext | None,
    ) -> None:
        """``headers``: of every request. ``pins`` are those of the store."""
        super().__init__(
            location,
            location.endpoint,
            _ANSWERS,
            timeout_s=options.request_timeout_s,
            tls=tls,
            address_rules=options.address_rules,
        )
        self._web, self._pins = location, pins
        self._lines = "".join([f"{name}: {value}\r\n" for name, value in {"Host": self._host, **headers}.items()])
        self._can_be_sent = all(value.isprintable() and value.isascii() for value in (self._host, *headers.values()))

    def _build_request(self, key: str, if_match: str | None, part: ByteRange | None = None) -> bytes | None:
        lines = "" if part is None else f"Range: bytes={part.start}-{part.stop - 1}\r\n"
        for name, value in condition(self._pins.pinned(key, if_match)).items():
            if not value.isprintable() or not value.isascii():
                return None
            lines += f"{name}: {value}\r\n"
        return self._request("GET", key, lines)

    def _request(self, method: str, key: str, lines: str = "") -> bytes | None:
        """``lines``: of headers of this request. None: a header of every request holds characters that are not allowed
        in one."""
        if not self._can_be_sent:
            return None
        return f"{method} {self._web.target(key)} HTTP/1.1\r\n{self._lines}{lines}\r\n".encode()

    def is_of(self, key: str, headers: Mapping[str, str], if_match: str | None) -> bool:
        if not is_of(self._pins.pinned(key, if_match), headers):
            return False
        self._pins.note(key, if_match, headers)
        return True

    def checksum(self, headers: Mapping[str, str], if_match: str | None) -> Checksum | None:
        return checksum_of(if_match)


class WebRangeClient(WebRequests, RangeClient):
    """Ranges of the objects of one server."""

    def _check(
        self, connection: Connection, head: ResponseHead, first: bytes, key: str, part: ByteRange, if_match: str | None
    ) -> bool:
        is_other = part.start > 0 or head.headers.get("content-length") != str(len(part))
        ignores_ranges = head.status == 200 and "content-range" not in head.headers and is_other
        if ignores_ranges or head.status in _LEFT_TO_FALLBACK:
            return False
        return super()._check(connection, head, first, key, part, if_match)


class WebSmallObjectClient(WebRequests, SmallObjectClient):
    """Complete objects of one server. Until a first answer was usable, also after each cooldown, few requests are sent:
    a hundred others would have to be sent again."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._too_many = 0
        """Answers in a row with ``TOO_MANY``."""
        self._is_proven, self._untried = False, MOST_UNTRIED
        """Whether an answer was usable, and how many requests may be sent before. A lost update is one more: no
        lock."""

    def begin(self, key: str, size_bytes: int, if_match: str | None) -> InFlightResponse | None:
        if self._is_proven:
            return super().begin(key, size_bytes, if_match)
        response = super().begin(key, size_bytes, if_match) if self._untried > 0 else None
        if response is not None:
            self._untried -= 1
        return response

    def record(self, *, usable: bool) -> None:
        super().record(usable=usable)
        if usable:
            self._too_many = 0
            # Not in a cooldown: these answers are to requests of before.
            self._is_proven = self._is_proven or not self.in_cooldown

    def _begin_cooldown(self) -> None:
        super()._begin_cooldown()
        self._too_many, self._is_proven, self._untried = 0, False, MOST_UNTRIED

    def refused(self, key: str, status: int, wait_s: float | None) -> None:
        """A server that says a few times in a row that it has too much to do gets no more requests at a time than there
        are threads, for a while; one that takes no condition needs a request of another form."""
        super().refused(key, status, wait_s)
        if status in TOO_MANY:
            self._too_many += 1
            if self._too_many >= MAX_UNUSABLE:
                self._begin_cooldown()
        elif status in _LEFT_TO_FALLBACK:
            self.record(usable=False)

    def _wait_for(self, response: InFlightResponse, key: str) -> WholeObject | None:
        whole = super()._wait_for(response, key)
        head = response.answered
        if whole is None and head is not None and head.status in _CLEAR:
            # Another request would be answered alike.
            raise from_status(self._location, key, head.status, None, retry_after_s(head.headers.get("retry-after")))
        return whole
