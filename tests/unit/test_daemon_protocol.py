"""A DataPlane over a socket behaves like the data plane itself, errors included."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from csi_driver.daemon.daemon_client import DaemonClient
from csi_driver.daemon.daemon_service import daemon_server
from csi_driver.model.errors import (
    DaemonUnavailable,
    HayloftError,
    InternalFailure,
    MissingParameter,
    OperationPending,
    VolumeNotFound,
)
from csi_driver.rpc import deadlines
from csi_driver.rpc.socket_server import SocketServer
from csi_driver.rpc.statuses import leaves
from csi_driver.volumes.data_plane import MountRequest
from tests.support.data_planes import REPORT, InMemoryDataPlane, report_of

REQUEST = MountRequest("vol-1", "/staging/1", {"url": "s3://b/p", "uid": "7"}, {"access_key": "secret"})


@pytest.fixture
def home() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="hayloft-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def plane() -> InMemoryDataPlane:
    return InMemoryDataPlane()


@pytest.fixture
def server(home: Path, plane: InMemoryDataPlane) -> Iterator[SocketServer]:
    made = daemon_server(home / "cache.sock", plane)
    made.start()
    yield made
    made.stop(0.0)


@pytest.fixture
def client(home: Path) -> Iterator[DaemonClient]:
    made = DaemonClient(home / "cache.sock")
    yield made
    made.close()


@pytest.mark.usefixtures("server")
def test_every_call_and_its_response_is_transferred_completely(client: DaemonClient, plane: InMemoryDataPlane) -> None:
    assert client.mount(REQUEST) == report_of(REQUEST)
    assert plane.requests == [REQUEST]
    assert plane.requests[0].secrets == {"access_key": "secret"}
    assert client.volume("vol-1") == report_of(REQUEST)
    assert client.report() == REPORT
    client.unmount("vol-1", "/staging/1")
    assert plane.requests == []


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("leaf", sorted(leaves(), key=str))
def test_every_error_is_raised_at_the_client_with_its_own_class(
    client: DaemonClient, plane: InMemoryDataPlane, leaf: type[HayloftError]
) -> None:
    plane.failure = leaf.__new__(leaf)
    Exception.__init__(plane.failure, "what the daemon said; and the remedy: ü")
    with pytest.raises(leaf) as caught:
        client.mount(REQUEST)
    assert type(caught.value) is leaf
    assert str(caught.value) == "what the daemon said; and the remedy: ü"


@pytest.mark.usefixtures("server")
def test_an_unexpected_error_of_the_daemon_is_raised_as_an_internal_failure(
    client: DaemonClient, plane: InMemoryDataPlane
) -> None:
    plane.failure = ZeroDivisionError("detail")
    with pytest.raises(InternalFailure, match="ZeroDivisionError"):
        client.report()


@pytest.mark.usefixtures("server")
def test_an_unknown_volume_is_not_found_and_an_empty_name_is_missing(client: DaemonClient) -> None:
    with pytest.raises(VolumeNotFound):
        client.volume("other")
    with pytest.raises(MissingParameter, match="mount_point"):
        client.unmount("vol-1", "")


@pytest.mark.promise("S111")
def test_the_socket_of_the_daemon_is_private(home: Path, server: SocketServer) -> None:
    assert stat.S_IMODE((home / "cache.sock").stat().st_mode) == 0o600


def test_without_a_daemon_a_call_is_unavailable_at_once(client: DaemonClient) -> None:
    with pytest.raises(DaemonUnavailable, match=r"cache\.sock: no cache daemon answers"):
        client.report()


def test_the_client_reconnects_to_a_restarted_daemon(
    home: Path, client: DaemonClient, plane: InMemoryDataPlane
) -> None:
    first = daemon_server(home / "cache.sock", plane)
    first.start()
    assert client.report() == REPORT
    first.stop(0.0)
    with pytest.raises(DaemonUnavailable):
        client.report()
    second = daemon_server(home / "cache.sock", plane)
    second.start()
    try:
        assert _eventually(client) == REPORT
    finally:
        second.stop(0.0)


@pytest.mark.usefixtures("server")
def test_a_daemon_that_takes_long_for_a_connection_is_not_gone(home: Path) -> None:
    """On a busy node: the first bytes of the daemon come late."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(os.fspath(home / "slow.sock"))
    listener.listen()

    def relay(source: socket.socket, target: socket.socket, pause_s: float) -> None:
        with suppress(OSError):
            while piece := source.recv(65536):
                time.sleep(pause_s)
                pause_s = 0.0
                target.sendall(piece)

    def accept() -> None:
        with suppress(OSError):
            while True:
                ours, _ = listener.accept()
                daemon = socket.socket(socket.AF_UNIX)
                daemon.connect(os.fspath(home / "cache.sock"))
                opened.extend((ours, daemon))
                threading.Thread(target=relay, args=(ours, daemon, 0.0), daemon=True).start()
                threading.Thread(target=relay, args=(daemon, ours, 1.0), daemon=True).start()

    opened: list[socket.socket] = [listener]
    threading.Thread(target=accept, daemon=True).start()
    client = DaemonClient(home / "slow.sock")
    try:
        assert client.report() == REPORT
    finally:
        client.close()
        for one in opened:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits for it
            one.close()


def _eventually(client: DaemonClient) -> object:
    for _ in range(100):
        try:
            return client.report()
        except DaemonUnavailable:
            threading.Event().wait(0.1)
    return None


@pytest.mark.usefixtures("server")
def test_a_call_times_out_when_the_callers_deadline_has_passed(client: DaemonClient, plane: InMemoryDataPlane) -> None:
    resume = threading.Event()
    plane.before = lambda: resume.wait(20)
    try:
        with deadlines.within(0.2), pytest.raises(DaemonUnavailable, match="did not answer within"):
            client.mount(REQUEST)
    finally:
        resume.set()


@pytest.mark.usefixtures("server")
def test_a_mount_that_continues_after_its_caller_timed_out_keeps_the_volume_claimed(
    client: DaemonClient, plane: InMemoryDataPlane
) -> None:
    in_flight, resume = threading.Event(), threading.Event()

    def wait() -> None:
        in_flight.set()
        resume.wait(20)

    plane.before = wait
    try:
        with deadlines.within(0.5), pytest.raises(DaemonUnavailable):
            client.mount(REQUEST)
        assert in_flight.wait(20)
        plane.before = lambda: None
        with pytest.raises(OperationPending):
            client.mount(REQUEST)
        assert client.report() == REPORT
    finally:
        resume.set()
