"""The server's socket: endpoint, permissions, stale sockets and foreign files at its path."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from google.protobuf.wrappers_pb2 import BoolValue

from csi_driver.model.errors import InvalidParameter, SocketTaken
from csi_driver.rpc.pb import csi_pb2
from csi_driver.rpc.socket_server import SocketServer, socket_path
from tests.support.mounts import wait_until


@pytest.fixture
def home() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="hayloft-"))
    yield path
    shutil.rmtree(path)


@pytest.mark.parametrize("endpoint", ["unix:///csi/csi.sock", "unix:/csi/csi.sock", "/csi/csi.sock"])
def test_an_endpoint_is_accepted_in_every_common_notation(endpoint: str) -> None:
    assert socket_path(endpoint) == Path("/csi/csi.sock")


@pytest.mark.parametrize(
    "endpoint", ["", "csi.sock", "unix://csi.sock", "tcp://0.0.0.0:50051", "unix:///", "http:///a", "/" + "a" * 107]
)
def test_an_invalid_endpoint_is_refused(endpoint: str) -> None:
    with pytest.raises(InvalidParameter, match="endpoint"):
        socket_path(endpoint)


@pytest.mark.promise("S111")
def test_the_socket_is_for_its_owner_alone_and_is_removed_with_the_server(home: Path) -> None:
    before = os.umask(0o000)
    try:
        server = SocketServer(home / "s", ())
        server.start()
        assert stat.S_IMODE((home / "s").stat().st_mode) == 0o600
        assert os.umask(0o000) == 0o000, "the umask is as before"
        server.stop(0.0)
        assert list(home.iterdir()) == []
    finally:
        os.umask(before)


def test_the_stale_socket_of_a_dead_process_is_replaced(home: Path) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(home / "s"))
    server = SocketServer(home / "s", ())
    server.start()
    server.stop(0.0)


def test_a_socket_on_which_a_process_listens_is_not_replaced(home: Path) -> None:
    first, second = SocketServer(home / "s", ()), SocketServer(home / "s", ())
    first.start()
    with pytest.raises(InvalidParameter, match="served by another process"):
        second.start()
    with socket.socket(socket.AF_UNIX) as probe:
        probe.connect(str(home / "s"))
    first.stop(0.0)


def test_a_file_at_the_path_of_the_socket_is_not_deleted(home: Path) -> None:
    (home / "s").write_text("mine")
    with pytest.raises(InvalidParameter, match="not a socket"):
        SocketServer(home / "s", ()).start()
    assert (home / "s").read_text() == "mine"


def test_a_missing_directory_is_named(home: Path) -> None:
    with pytest.raises(InvalidParameter, match="does not exist"):
        SocketServer(home / "nowhere" / "s", ()).start()


# -- two processes with one path ---------------------------------------------------------------------------------------


ANSWERED = csi_pb2.ProbeResponse(ready=BoolValue(value=True))


class SlowCall:
    """A server with one call, which waits until it is released."""

    def __init__(self, path: Path) -> None:
        self.released, self.entered = threading.Event(), threading.Event()
        handler = grpc.unary_unary_rpc_method_handler(
            self._answer, csi_pb2.ProbeRequest.FromString, csi_pb2.ProbeResponse.SerializeToString
        )
        generic = grpc.method_handlers_generic_handler("test", {"Call": handler})
        self.server = SocketServer(path, (lambda server: server.add_generic_rpc_handlers((generic,)),))
        self.server.start()

    def _answer(self, _request: csi_pb2.ProbeRequest, _context: grpc.ServicerContext) -> csi_pb2.ProbeResponse:
        self.entered.set()
        self.released.wait(60)
        return ANSWERED


def call(path: Path) -> Future[csi_pb2.ProbeResponse]:
    channel = grpc.insecure_channel(f"unix:{path}", options=(("grpc.use_local_subchannel_pool", 1),))
    pool = ThreadPoolExecutor(1)
    method = channel.unary_unary("/test/Call", csi_pb2.ProbeRequest.SerializeToString, csi_pb2.ProbeResponse.FromString)
    found = pool.submit(lambda: method(csi_pb2.ProbeRequest(), timeout=60, wait_for_ready=True))
    pool.shutdown(wait=False)
    return found


@pytest.mark.promise("S250")
def test_a_server_that_stops_with_a_call_in_flight_leaves_the_socket_of_its_successor(home: Path) -> None:
    old = SlowCall(home / "s")
    answer = call(home / "s")
    assert old.entered.wait(60)
    stopping = threading.Thread(target=old.server.stop, args=(60.0,))
    stopping.start()
    wait_until(lambda: not (home / "s").exists())
    new = SlowCall(home / "s")
    new.released.set()
    old.released.set()
    assert answer.result(60) == ANSWERED
    stopping.join()
    assert (home / "s").is_socket()
    assert call(home / "s").result(60) == ANSWERED
    new.server.stop(0.0)
    assert list(home.iterdir()) == []


@pytest.mark.promise("S250")
def test_a_socket_that_another_process_removed_is_there_again(home: Path) -> None:
    server = SlowCall(home / "s")
    server.released.set()
    (home / "s").unlink()
    with pytest.raises(SocketTaken, match="not the socket of this process"):
        server.server.require_own_socket()
    assert call(home / "s").result(60) == ANSWERED
    server.server.require_own_socket()
    server.server.stop(0.0)


@pytest.mark.promise("S251")
def test_a_probe_fails_when_the_path_is_that_of_another_process(home: Path) -> None:
    server = SlowCall(home / "s")
    (home / "s").unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(home / "s"))
        other.listen()
        with pytest.raises(SocketTaken):
            server.server.require_own_socket()
        server.server.stop(0.0)
        assert [path.name for path in home.iterdir()] == ["s"], "that of the other process stays"


def test_a_killed_process_leaves_no_name_of_its_socket_to_its_successor(home: Path) -> None:
    for name in ("s", ".s.01234567"):
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(str(home / name))
    first, other = SlowCall(home / "s"), SlowCall(home / "other")
    names = {path.name.split(".")[1] if path.name.startswith(".") else path.name for path in home.iterdir()}
    assert (names, len(list(home.iterdir()))) == ({"s", "other"}, 4)
    for server in (first, other):
        server.server.stop(0.0)
    assert list(home.iterdir()) == []
