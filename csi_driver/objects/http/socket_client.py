"""What the clients of one store share: GETs, written by themselves, over connections that are kept."""

from __future__ import annotations

import errno
import resource
import socket
import ssl
import time
import weakref
from collections import deque
from collections.abc import Mapping

from csi_driver.model.addresses import ANY_BUT_METADATA, AddressRules
from csi_driver.model.chunk import ByteRange
from csi_driver.model.entity_tags import satisfies
from csi_driver.objects.checksums import Checksum
from csi_driver.objects.error_mapping import from_socket, unreachable
from csi_driver.objects.http.connections import Connection, Dialer
from csi_driver.objects.http.service_answers import ServiceAnswers
from csi_driver.objects.origin_requests import OriginRequest
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


class SocketClient:
    """One store. Safe for any number of threads.

    There is no lock: ``deque.append`` and ``deque.pop`` are atomic, so an idle connection is used by one thread. A lost
    update of ``_unusable`` only delays a cooldown.

    The clients of each service say what its answers mean, and write the requests: ``_build_request``, and where they
    are authorised ``_can_sign`` and ``_renew_keys``.
    """

    def __init__(
        self,
        location: StoreLocation,
        base_url: str,
        answers: ServiceAnswers,
        *,
        timeout_s: float,
        tls: ssl.SSLContext | None = None,
        address_rules: AddressRules = ANY_BUT_METADATA,
    ) -> None:
        """For a store reached without a proxy. ``base_url``: what the URLs of all objects begin with. ``timeout_s``
        bounds each wait for bytes. ``tls`` is for https."""
        scheme, _, rest = base_url.partition("://")
        netloc, _, path = rest.partition("/")
        self._location, self.answers = location, answers
        self._base_url = f"{scheme}://{netloc}"
        default_port = "443" if scheme == "https" else "80"
        host, _, port = netloc.rpartition(":") if netloc.rsplit(":", 1)[-1].isdigit() else (netloc, "", default_port)
        tls = tls if scheme == "https" else None
        host = host.strip("[]")
        name = host.rstrip(".")  # a dot at the end is for the resolver alone
        self._host = netloc.replace(host, name, 1) if name else netloc
        self._dialer = Dialer(host, int(port), tls, timeout_s, address_rules, server_name=name)
        self._path = f"/{path}/" if path else "/"
        self.timeout_s = timeout_s
        self._idle: deque[Connection] = deque()
        weakref.finalize(self, _close_all, self._idle)  # as urllib3's pools do, for an owner that forgets to close
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._max_idle = min(MAX_IDLE_CONNECTIONS, descriptors // DESCRIPTORS_PART)
        self._unusable, self._cooldown_until = 0, 0.0

    def close(self) -> None:
        """Closes idle connections, and each that becomes idle from now on."""
        self._max_idle = 0
        _close_all(self._idle)

    def close_idle(self) -> None:
        """Closes idle connections, when none will be used for a while."""
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
            self._begin_cooldown()

    def _begin_cooldown(self) -> None:
        self._unusable, self._cooldown_until = 0, time.monotonic() + COOLDOWN_S

    # -- what services differ in --

    def is_of(self, key: str, headers: Mapping[str, str], if_match: str | None) -> bool:
        """Whether an answer with these headers is of the requested version. Names of headers are in lower case."""
        return if_match is None or satisfies(self.answers.version(headers), if_match)

    def checksum(self, headers: Mapping[str, str], if_match: str | None) -> Checksum | None:
        """That of the complete object, of that version, as far as the answer says."""
        return self.answers.checksum(headers).checksum

    @property
    def _can_sign(self) -> bool:
        """Whether a request can be authorised without waiting for an identity."""
        return True

    def _renew_keys(self) -> None:
        """Unless ``_can_sign``. Blocks on the identity, and raises its errors."""

    def _build_request(self, key: str, if_match: str | None, part: ByteRange | None = None) -> bytes | None:
        """A GET of an object, or of a part of it. None: the value of a header holds characters that are not allowed in
        one."""
        raise NotImplementedError

    # -- requests that another program sends --

    @property
    def signs_requests(self) -> bool:
        """As ``SignsRequests``."""
        return False

    def origin_request(self, key: str, if_match: str, *, whole: bool, may_block: bool) -> OriginRequest | None:
        """As ``SignsRequests``."""
        if may_block:
            self._renew_keys()
        elif not self._can_sign:
            return None
        return self._origin_request(key, if_match, whole=whole)

    def _origin_request(self, key: str, if_match: str, *, whole: bool) -> OriginRequest | None:
        """``origin_request``, with what authorises it at hand."""
        return None


def _close_all(connections: deque[Connection]) -> None:
    while connections:
        connections.pop().close()
