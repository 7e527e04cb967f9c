"""The data plane over a socket is the data plane itself, errors included."""

from __future__ import annotations

import shutil
import stat
import tempfile
import threading
from collections.abc import Iterator
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
from tests.support.data_planes import REPORT, RememberingDataPlane, report_of

WISH = MountRequest("vol-1", "/staging/1", {"url": "s3://b/p", "uid": "7"}, {"access_key": "secret"})


@pytest.fixture
def home() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="hayloft-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def plane() -> RememberingDataPlane:
    return RememberingDataPlane()


@pytest.fixture
def server(home: Path, plane: RememberingDataPlane) -> Iterator[SocketServer]:
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
def test_every_call_arrives_whole_and_its_answer_too(client: DaemonClient, plane: RememberingDataPlane) -> None:
    assert client.mount(WISH) == report_of(WISH)
    assert plane.wishes == [WISH]
    assert plane.wishes[0].secrets == {"access_key": "secret"}
    assert client.volume("vol-1") == report_of(WISH)
    assert client.report() == REPORT
    client.unmount("vol-1", "/staging/1")
    assert plane.wishes == []


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("leaf", sorted(leaves(), key=lambda cls: cls.__name__))
def test_every_error_comes_back_as_itself(
    client: DaemonClient, plane: RememberingDataPlane, leaf: type[HayloftError]
) -> None:
    plane.failure = leaf.__new__(leaf)
    Exception.__init__(plane.failure, "what the daemon said; and the remedy: ü")
    with pytest.raises(leaf) as caught:
        client.mount(WISH)
    assert type(caught.value) is leaf
    assert str(caught.value) == "what the daemon said; and the remedy: ü"


@pytest.mark.usefixtures("server")
def test_a_defect_of_the_daemon_comes_back_as_an_internal_failure(
    client: DaemonClient, plane: RememberingDataPlane
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


def test_the_socket_of_the_daemon_is_private(home: Path, server: SocketServer) -> None:
    assert stat.S_IMODE((home / "cache.sock").stat().st_mode) == 0o600


def test_no_daemon_is_unavailable_at_once(client: DaemonClient) -> None:
    with pytest.raises(DaemonUnavailable, match=r"cache\.sock: no cache daemon answers"):
        client.report()


def test_a_daemon_that_comes_back_is_found_again(home: Path, client: DaemonClient, plane: RememberingDataPlane) -> None:
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


def _eventually(client: DaemonClient) -> object:
    for _ in range(100):
        try:
            return client.report()
        except DaemonUnavailable:
            threading.Event().wait(0.1)
    return None


@pytest.mark.usefixtures("server")
def test_a_call_gives_up_when_the_callers_deadline_has_passed(
    client: DaemonClient, plane: RememberingDataPlane
) -> None:
    go_on = threading.Event()
    plane.before = lambda: go_on.wait(20)
    try:
        with deadlines.within(0.2), pytest.raises(DaemonUnavailable, match="did not answer within"):
            client.mount(WISH)
    finally:
        go_on.set()


@pytest.mark.usefixtures("server")
def test_a_mount_that_goes_on_after_its_caller_gave_up_makes_the_next_one_wait(
    client: DaemonClient, plane: RememberingDataPlane
) -> None:
    arrived, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        arrived.set()
        go_on.wait(20)

    plane.before = wait
    try:
        with deadlines.within(0.5), pytest.raises(DaemonUnavailable):
            client.mount(WISH)
        assert arrived.wait(20)
        plane.before = lambda: None
        with pytest.raises(OperationPending):
            client.mount(WISH)
        assert client.report() == REPORT
    finally:
        go_on.set()
