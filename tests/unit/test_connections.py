"""Connections that are established without blocking."""

from __future__ import annotations

import errno
import select
import socket
import ssl
from collections.abc import Iterator

import pytest

from csi_driver.objects.http import connection_pool as connection_pools
from csi_driver.objects.http import connections
from csi_driver.objects.http.connections import WOULD_BLOCK, Connection, Dialer
from tests.support.hostile_s3 import closed_port


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def dialer(listener: socket.socket, tls: ssl.SSLContext | None = None) -> Dialer:
    return Dialer("127.0.0.1", listener.getsockname()[1], tls, 2.0)


def established(connection: Connection) -> Connection:
    while True:
        try:
            connection.establish()
            return connection
        except WOULD_BLOCK as would_block:
            poll = select.poll()
            poll.register(connection.fileno(), connection.events(would_block))
            assert poll.poll(2000)


def test_begin_needs_a_cached_address(listener: socket.socket) -> None:
    one = dialer(listener)
    assert one.begin() is None
    one.dial().close()
    begun = one.begin()
    assert begun is not None
    established(begun).socket.send(b"hello")
    begun.close()


def test_a_cached_address_expires(listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "ADDRESS_CACHED_S", 0.0)
    one = dialer(listener)
    one.dial().close()
    assert one.begin() is None


def test_a_refused_connection_fails_in_dial_or_in_establish() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = dialer(listener)
        one.dial().close()
    begun = one.begin()
    if begun is not None:  # on loopback the refusal may be immediate
        with pytest.raises(ConnectionRefusedError):
            established(begun)
        begun.close()
    with pytest.raises(ConnectionRefusedError):
        one.dial()
    with pytest.raises(ConnectionRefusedError):
        Dialer("127.0.0.1", closed_port(), None, 1.0).dial()


def test_a_pending_connection_is_polled_for_writing(listener: socket.socket) -> None:
    """A listener with a full queue leaves connections pending."""
    listener.listen(0)
    one = dialer(listener)
    waiting = [one.dial()]
    begun = []
    for _ in range(3):
        connection = one.begin()
        assert connection is not None
        begun.append(connection)
    last = begun[-1]
    with pytest.raises(BlockingIOError) as caught:
        last.establish()
    assert caught.value.errno == errno.EINPROGRESS
    assert last.events(caught.value) == select.POLLOUT
    for connection in (*waiting, *begun):
        connection.close()


def test_a_connection_is_quiet_until_it_receives_bytes_or_its_end() -> None:
    mine, theirs = socket.socketpair()
    mine.setblocking(False)
    connection = Connection(mine, None, "store", connecting=False)
    assert connection.is_quiet()
    theirs.send(b"x")
    assert not connection.is_quiet()
    assert mine.recv(10) == b"x", "is_quiet consumes nothing"
    theirs.close()
    assert not connection.is_quiet()
    connection.close()


def test_tls_to_a_server_without_tls_is_an_error(listener: socket.socket) -> None:
    plain = dialer(listener)
    plain.dial().close()
    tls = dialer(listener, ssl.create_default_context())
    tls._cached_address = plain._cached_address
    begun = tls.begin()
    assert begun is not None
    for _ in range(2):  # the first is the connection without TLS
        theirs, _ = listener.accept()
        theirs.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        theirs.close()
    with pytest.raises((ssl.SSLError, ConnectionResetError)):
        established(begun)
    begun.close()


@pytest.mark.parametrize(
    ("url", "proxy", "bundle", "reads"),
    [
        ("http://store:1", "", None, False),
        ("http://store:1", "http://proxy:1", None, False),
        ("http://store:1", "https://proxy:1", None, True),
        ("http://store:1", "HTTPS://proxy:1", None, True),
        ("http://store:1", "", "no bundle", True),
        ("https://store:1", "", None, True),
    ],
)
def test_the_systems_authorities_are_read_where_tls_is_spoken_alone(
    monkeypatch: pytest.MonkeyPatch, url: str, proxy: str, bundle: str | None, reads: bool
) -> None:
    """Reading them takes longer than the rest of a small listing. A bundle is looked at in any case."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    if proxy:
        monkeypatch.setenv("http_proxy", proxy)
    bundles: list[str | None] = []
    monkeypatch.setattr(connection_pools, "tls_context", bundles.append)
    connection_pools.connection_pool(url, 1.0, bundle, 1)
    assert bundles == ([bundle] if reads else [])
