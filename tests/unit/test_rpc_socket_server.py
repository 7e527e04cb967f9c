"""The server's socket: endpoint, permissions, stale sockets and foreign files at its path."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from csi_driver.model.errors import InvalidParameter
from csi_driver.rpc.socket_server import SocketServer, socket_path


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
