"""Connections to one server, over TCP or TLS, that are established, written to and read from without blocking."""

from __future__ import annotations

import errno
import os
import select
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager

from csi_driver.model.addresses import ANY_BUT_METADATA, AddressRules
from csi_driver.objects.http.dialling import dial

CONNECT_TIMEOUT_S = 10.0
ADDRESS_CACHED_S = 60.0
"""A name is resolved again after so long: resolving blocks, and big stores have many addresses and change them."""

WOULD_BLOCK = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
"""What a connection raises where it would block."""


class HandshakeFailed(ssl.SSLError):
    """No TLS, for another reason than a certificate. ``why`` is of constants of this driver and OpenSSL; ``passes``:
    the connection broke or timed out, which a retry may change."""

    def __init__(self, why: str, *, passes: bool) -> None:
        super().__init__(why)
        self.why, self.passes = why, passes

    @classmethod
    def of(cls, error: OSError) -> HandshakeFailed:
        """For an error of a handshake."""
        if isinstance(error, TimeoutError):
            return cls("no TLS handshake in time", passes=True)
        if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
            return cls("the connection ended in the TLS handshake", passes=True)
        reason = getattr(error, "reason", None) or "no reason"
        refused = "ALERT" in reason or "PROTOCOL" in reason or "CIPHER" in reason
        what = "it refuses the TLS handshake" if refused else "what answers there does not speak TLS"
        return cls(f"{what} ({reason})", passes=False)


@contextmanager
def handshake() -> Iterator[None]:
    """Around a TLS handshake: raises HandshakeFailed for all but certificates and errors of the socket."""
    try:
        yield
    except ssl.SSLCertVerificationError:
        raise
    except (ssl.SSLError, TimeoutError) as error:
        raise HandshakeFailed.of(error) from error


class Connection:
    """One connection, used by one thread at a time. ``socket`` may be read from and written to once it is
    established; it raises one of ``WOULD_BLOCK`` where it would block."""

    __slots__ = ("_connecting", "_server_name", "_tls", "idle_since", "socket")

    def __init__(
        self, connection: socket.socket, tls: ssl.SSLContext | None, server_name: str, *, connecting: bool
    ) -> None:
        """Owns the socket, which is non-blocking and ``connecting`` or connected."""
        self.socket = connection
        self.idle_since = 0.0
        """When its last response was complete, by the monotonic clock; set by the client that keeps it."""
        self._tls, self._server_name, self._connecting = tls, server_name, connecting

    def fileno(self) -> int:
        """The descriptor to poll, the same before and after the TLS handshake."""
        return self.socket.fileno()

    def establish(self) -> None:
        """Continues connecting and the TLS handshake; does nothing once both are done. Raises one of ``WOULD_BLOCK``,
        ssl.SSLError, OSError."""
        if self._connecting:
            failed = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if failed:
                raise OSError(failed, os.strerror(failed))
            try:
                self.socket.getpeername()
            except OSError as error:
                if error.errno != errno.ENOTCONN:
                    raise
                raise BlockingIOError(errno.EINPROGRESS, os.strerror(errno.EINPROGRESS)) from None
            self._connecting = False
        if self._tls is not None:
            if not isinstance(self.socket, ssl.SSLSocket):
                self.socket = self._tls.wrap_socket(
                    self.socket, server_hostname=self._server_name, do_handshake_on_connect=False
                )
            self.socket.do_handshake()
            self._tls = None

    def events(self, would_block: OSError) -> int:
        """What poll(2) has to wait for after one of ``WOULD_BLOCK``."""
        writes = self._connecting or isinstance(would_block, ssl.SSLWantWriteError)
        return select.POLLOUT if writes else select.POLLIN

    def is_quiet(self) -> bool:
        """Whether an idle connection has received nothing: neither its end, nor bytes that would be taken for the next
        response. TLS records without data, such as session tickets, do not count."""
        try:
            if isinstance(self.socket, ssl.SSLSocket):
                self.socket.recv(1)  # TLS has no MSG_PEEK; after a byte the connection is not used any more
            else:
                self.socket.recv(1, socket.MSG_PEEK)
        except WOULD_BLOCK:
            return True
        except OSError:
            return False
        return False

    def close(self) -> None:
        """Without a TLS shutdown."""
        self.socket.close()


class Dialer:
    """Makes connections to one server. Safe for any number of threads."""

    def __init__(
        self,
        host: str,
        port: int,
        tls: ssl.SSLContext | None,
        timeout_s: float,
        address_rules: AddressRules = ANY_BUT_METADATA,
        server_name: str = "",
    ) -> None:
        """``timeout_s`` bounds each wait of ``dial``. ``server_name``: that of the certificate; empty: the host."""
        self._host, self._port, self._tls, self._timeout_s = host, port, tls, timeout_s
        self._server_name = server_name or host
        self._address_rules = address_rules
        # Replaced as one value: no thread sees the address of one family with another family.
        self._cached_address: tuple[int, object, float] | None = None
        """Family and address that answered last, and when they expire. The rules allow it: ``dial`` connected to it."""

    def dial(self) -> Connection:
        """An established connection. Blocks. Raises AddressNotAllowed, OSError (socket.gaierror, ssl.SSLError ...)."""
        timeout_s = min(CONNECT_TIMEOUT_S, self._timeout_s)
        connection = dial(self._address_rules, self._host, self._port, timeout_s)
        try:
            expires = time.monotonic() + ADDRESS_CACHED_S
            self._cached_address = connection.family, connection.getpeername(), expires
            if self._tls is not None:
                connection.settimeout(timeout_s)
                connection = self._tls.wrap_socket(connection, server_hostname=self._server_name)
            connection.setblocking(False)
        except BaseException:
            connection.close()
            raise
        return Connection(connection, None, self._server_name, connecting=False)

    def forget(self) -> None:
        """Drops the cached address, which does not answer: the next ``dial`` resolves the name again."""
        self._cached_address = None

    def begin(self) -> Connection | None:
        """A connection that is yet to be established. Never blocks. None: the name would have to be resolved, or no
        connection can be made."""
        cached = self._cached_address
        if cached is None or time.monotonic() >= cached[2]:
            return None
        try:
            connection = socket.socket(cached[0], socket.SOCK_STREAM)
        except OSError:
            return None
        try:
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connecting = connection.connect_ex(cached[1])  # type: ignore[arg-type]
        except OSError:
            connection.close()
            return None
        if connecting not in (0, errno.EINPROGRESS):
            connection.close()
            return None
        return Connection(connection, self._tls, self._server_name, connecting=True)


def tls_context(ca_bundle_pem: str | None) -> ssl.SSLContext:
    """Trusts the system's authorities, and those of the bundle."""
    context = ssl.create_default_context()
    if ca_bundle_pem is not None:
        context.load_verify_locations(cadata=ca_bundle_pem)
    return context
