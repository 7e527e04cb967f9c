"""Connections to one server, over TCP or TLS, that can be made, written to and read from without waiting."""

from __future__ import annotations

import errno
import os
import select
import socket
import ssl
import time

CONNECT_TIMEOUT_S = 10.0
ADDRESS_KEPT_S = 60.0
"""A name is looked up again after so long: looking it up waits, and big stores have many addresses and change them."""

WOULD_WAIT = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
"""What a link raises where it would have to wait."""


class Connection:
    """One connection. Used by one thread at a time. ``socket`` is to be read from and written to once it is
    established, and raises one of ``WOULD_WAIT`` where it would wait."""

    __slots__ = ("_connecting", "_server_name", "_tls", "socket")

    def __init__(
        self, connection: socket.socket, tls: ssl.SSLContext | None, server_name: str, *, connecting: bool
    ) -> None:
        """Takes over a socket that does not block, ``connecting`` or connected."""
        self.socket = connection
        self._tls, self._server_name, self._connecting = tls, server_name, connecting

    def fileno(self) -> int:
        """To wait for. Stays the same."""
        return self.socket.fileno()

    def establish(self) -> None:
        """Goes on with what is left of connecting and of the handshake. Raises one of ``WOULD_WAIT``, ssl.SSLError,
        OSError."""
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

    @property
    def is_established(self) -> bool:
        """Whether ``establish`` has nothing left to do."""
        return not self._connecting and self._tls is None

    def events(self, would_wait: OSError) -> int:
        """What poll(2) is to wait for after one of ``WOULD_WAIT``."""
        writes = self._connecting or isinstance(would_wait, ssl.SSLWantWriteError)
        return select.POLLOUT if writes else select.POLLIN

    def is_quiet(self) -> bool:
        """Whether nothing has come over a connection on which nothing was asked: neither its end, nor bytes that would
        pass for an answer. What TLS says on its own account is no such byte."""
        try:
            if isinstance(self.socket, ssl.SSLSocket):
                self.socket.recv(1)
            else:
                self.socket.recv(1, socket.MSG_PEEK)
        except WOULD_WAIT:
            return True
        except OSError:
            return False
        return False

    def close(self) -> None:
        """Ends the connection, without a word to the other side."""
        self.socket.close()


class Dialer:
    """Makes links to one server. Methods may be called from any thread."""

    def __init__(self, host: str, port: int, tls: ssl.SSLContext | None, timeout_s: float) -> None:
        """``timeout_s`` bounds each wait of ``dial``."""
        self._host, self._port, self._tls, self._timeout_s = host, port, tls, timeout_s
        self._known: tuple[int, object, float] | None = None
        """Family and address that answered last, and until when they are used."""

    def dial(self) -> Connection:
        """A link that is established. Blocks. Raises OSError: socket.gaierror, ssl.SSLError and so on."""
        connection = socket.create_connection((self._host, self._port), min(CONNECT_TIMEOUT_S, self._timeout_s))
        try:
            self._known = connection.family, connection.getpeername(), time.monotonic() + ADDRESS_KEPT_S
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls is not None:
                connection = self._tls.wrap_socket(connection, server_hostname=self._host)
            connection.setblocking(False)
        except BaseException:
            connection.close()
            raise
        return Connection(connection, None, self._host, connecting=False)

    def forget(self) -> None:
        """The address that is known does not answer: it is to be looked up again."""
        self._known = None

    def begin(self) -> Connection | None:
        """A link that is to be established yet. None: the address would have to be looked up, or no connection can be
        made. Never waits."""
        known = self._known
        if known is None or time.monotonic() >= known[2]:
            return None
        try:
            connection = socket.socket(known[0], socket.SOCK_STREAM)
        except OSError:
            return None
        try:
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connecting = connection.connect_ex(known[1])  # type: ignore[arg-type]
        except OSError:
            connection.close()
            return None
        if connecting not in (0, errno.EINPROGRESS):
            connection.close()
            return None
        return Connection(connection, self._tls, self._host, connecting=True)


def tls_context(ca_bundle_pem: str | None) -> ssl.SSLContext:
    """Trusts the system's authorities, and those of the bundle."""
    context = ssl.create_default_context()
    if ca_bundle_pem is not None:
        context.load_verify_locations(cadata=ca_bundle_pem)
    return context
