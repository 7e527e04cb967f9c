"""Connections that are made without waiting."""

from __future__ import annotations

import errno
import select
import socket
import ssl
from collections.abc import Iterator

import pytest

from csi_driver.objects.http import connections as links
from csi_driver.objects.http.connections import WOULD_BLOCK, Connection, Dialer
from tests.support.hostile_s3 import closed_port


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def dialer(listener: socket.socket, tls: ssl.SSLContext | None = None) -> Dialer:
    return Dialer("127.0.0.1", listener.getsockname()[1], tls, 2.0)


def established(link: Connection) -> Connection:
    while True:
        try:
            link.establish()
            return link
        except WOULD_BLOCK as would_block:
            poll = select.poll()
            poll.register(link.fileno(), link.events(would_block))
            assert poll.poll(2000)


def test_nothing_is_begun_before_the_address_is_known(listener: socket.socket) -> None:
    one = dialer(listener)
    assert one.begin() is None
    one.dial().close()
    begun = one.begin()
    assert begun is not None
    established(begun).socket.send(b"hello")
    begun.close()


def test_an_address_is_looked_up_again_after_a_while(listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "ADDRESS_CACHED_S", 0.0)
    one = dialer(listener)
    one.dial().close()
    assert one.begin() is None


def test_where_nobody_listens_dialling_says_so_and_a_beginning_fails_later() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = dialer(listener)
        one.dial().close()
    begun = one.begin()
    if begun is not None:  # on loopback the refusal may come at once
        with pytest.raises(ConnectionRefusedError):
            established(begun)
        begun.close()
    with pytest.raises(ConnectionRefusedError):
        one.dial()
    with pytest.raises(ConnectionRefusedError):
        Dialer("127.0.0.1", closed_port(), None, 1.0).dial()


def test_who_does_not_answer_yet_is_waited_for_to_be_written_to(listener: socket.socket) -> None:
    """A listener whose queue is full lets connections wait."""
    listener.listen(0)
    one = dialer(listener)
    waiting = [one.dial()]
    begun = []
    for _ in range(3):
        link = one.begin()
        assert link is not None
        begun.append(link)
    last = begun[-1]
    with pytest.raises(BlockingIOError) as caught:
        last.establish()
    assert caught.value.errno == errno.EINPROGRESS
    assert last.events(caught.value) == select.POLLOUT
    for link in (*waiting, *begun):
        link.close()


def test_a_link_is_quiet_while_nothing_comes_and_is_not_ended() -> None:
    mine, theirs = socket.socketpair()
    mine.setblocking(False)
    link = Connection(mine, None, "store", connecting=False)
    assert link.is_quiet()
    theirs.send(b"x")
    assert not link.is_quiet()
    assert mine.recv(10) == b"x", "it is only looked at"
    theirs.close()
    assert not link.is_quiet()
    link.close()


def test_tls_that_the_other_side_does_not_speak_is_an_error(listener: socket.socket) -> None:
    plain = dialer(listener)
    plain.dial().close()
    tls = dialer(listener, ssl.create_default_context())
    tls._cached_address = plain._cached_address
    begun = tls.begin()
    assert begun is not None
    for _ in range(2):  # the first is that of the plain one
        theirs, _ = listener.accept()
        theirs.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        theirs.close()
    with pytest.raises((ssl.SSLError, ConnectionResetError)):
        established(begun)
    begun.close()
