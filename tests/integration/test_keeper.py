"""The keeper with every kind of client: KeeperClient, clients that hang, and clients that send invalid packets."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from csi_driver.model.errors import DaemonUnavailable, InvalidParameter
from csi_driver.mounts.keeper_protocol import KeeperClient, KeeperServer
from tests.support.mounts import wait_until

_MANY = 300


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keeper.sock"


@pytest.fixture
def keeper(path: Path) -> Iterator[KeeperServer]:
    server = KeeperServer(path, idle_s=0.3)
    thread = threading.Thread(target=server.serve)
    thread.start()
    yield server
    server.stop()
    thread.join()
    server.close()


@pytest.fixture
def client(path: Path, keeper: KeeperServer) -> KeeperClient:
    return KeeperClient(path)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        with suppress(OSError):
            os.close(end)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def _raw(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect(str(path))
    connection.settimeout(5)
    return connection


def _descriptor_count() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_descriptor_survives_the_client_that_put_it(client: KeeperClient, pipe: tuple[int, int]) -> None:
    client.put("volume-1", [pipe[1]])
    os.close(pipe[1])
    (copy,) = client.get("volume-1")
    assert not os.get_inheritable(copy)
    os.write(copy, b"through the copy")
    os.close(copy)
    assert os.read(pipe[0], 100) == b"through the copy"


def test_two_descriptors_are_returned_in_their_order(client: KeeperClient, pipe: tuple[int, int]) -> None:
    memory = os.memfd_create("state")
    os.write(memory, b"secret")
    client.put("m-1", [pipe[0], memory])
    os.close(memory)
    device, state = client.get("m-1")
    assert os.fstat(device).st_ino == os.fstat(pipe[0]).st_ino
    assert os.pread(state, 100, 0) == b"secret"
    os.close(device)
    os.close(state)


def test_a_name_that_is_not_held_has_no_descriptors(client: KeeperClient) -> None:
    assert client.get("nothing") == []


def test_dropped_descriptors_are_closed(client: KeeperClient, pipe: tuple[int, int]) -> None:
    client.put("m-1", [pipe[1]])
    os.close(pipe[1])
    client.drop("m-1")
    assert client.get("m-1") == []
    assert os.read(pipe[0], 1) == b""  # the last writing end is gone
    client.drop("m-1")


def test_a_second_put_replaces_and_closes_the_first(client: KeeperClient, pipe: tuple[int, int]) -> None:
    client.put("m-1", [pipe[1]])
    os.close(pipe[1])
    client.put("m-1", [0])
    assert os.read(pipe[0], 1) == b""
    assert client.names() == ["m-1"]


def test_all_names_are_listed_in_several_replies(client: KeeperClient, pipe: tuple[int, int]) -> None:
    names = sorted(f"m-{number}-{'x' * 180}" for number in range(_MANY))
    for name in names:
        client.put(name, [pipe[0]])
    assert client.names() == names


@pytest.mark.parametrize("name", ["", " ", "two words", "ä", "x" * 201, "line\nbreak", "!"])
def test_an_invalid_name_is_refused_before_it_is_sent(client: KeeperClient, name: str) -> None:
    with pytest.raises(ValueError, match="not a name"):
        client.get(name)


def test_the_socket_is_for_its_owner_alone(path: Path, keeper: KeeperServer) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.fuse
def test_another_user_is_disconnected_even_with_access_to_the_socket(path: Path, client: KeeperClient) -> None:
    path.parent.chmod(0o755)
    path.chmod(0o666)
    program = (
        "import os, socket\n"
        "connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n"
        "os.setresuid(65534, 65534, 65534)\n"
        "connection.connect('keeper.sock')\n"
        "try:\n"
        "    connection.send(b'LIST !')\n"
        "    print(connection.recv(100))\n"
        "except ConnectionError:\n"
        "    print('disconnected')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=path.parent, capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout in ("b''\n", "disconnected\n")


@pytest.mark.parametrize(
    "packet",
    [
        b"x",
        b"GET",
        b"GET ",
        b"PUT name",
        b"GET a b",
        b"STEAL name",
        b"\xff\xfe\x00" * 50,
        b"LIST " + b"x" * 201,
        b"y" * 60_000,
    ],
)
def test_a_client_that_sends_an_invalid_packet_is_disconnected(path: Path, client: KeeperClient, packet: bytes) -> None:
    with _raw(path) as connection:
        connection.send(packet)
        assert connection.recv(100) == b""
    assert client.names() == []


def test_unexpected_descriptors_are_closed(path: Path, client: KeeperClient, pipe: tuple[int, int]) -> None:
    for packet, count in ((b"GET name", 1), (b"garbage", 2), (b"PUT name", 5)):
        with _raw(path) as connection:
            socket.send_fds(connection, [packet], [pipe[1]] * count)
            assert connection.recv(100) == b""
    os.close(pipe[1])
    assert client.names() == []
    assert os.read(pipe[0], 1) == b""


def test_idle_clients_are_disconnected(path: Path, client: KeeperClient) -> None:
    before = _descriptor_count()
    idle = [_raw(path) for _ in range(20)]
    assert client.names() == []
    for connection in idle:
        assert connection.recv(1) == b""
        connection.close()
    wait_until(lambda: _descriptor_count() <= before)


def test_idle_clients_beyond_the_limit_do_not_block_a_new_one(path: Path, client: KeeperClient) -> None:
    idle = [_raw(path) for _ in range(150)]
    assert client.names() == []
    for connection in idle:
        connection.close()


def test_a_client_that_does_not_read_its_replies_does_not_block_others(
    path: Path, client: KeeperClient, pipe: tuple[int, int]
) -> None:
    client.put("m-1", [pipe[0]])
    with _raw(path) as connection:
        connection.setblocking(False)
        with suppress(OSError):
            for _ in range(5000):
                connection.send(b"GET m-1")
        assert client.names() == ["m-1"]


def test_a_missing_keeper_is_named_with_the_remedy(path: Path) -> None:
    with pytest.raises(DaemonUnavailable, match=r"keeper at .*keeper\.sock .*Start `hayloft keeper`"):
        KeeperClient(path).names()


def test_a_call_to_a_keeper_that_hangs_times_out(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as mute:
        mute.bind(str(path))
        mute.listen(1)
        with pytest.raises(DaemonUnavailable, match="timed out"):
            KeeperClient(path, timeout_s=0.2).names()


def test_a_client_reaches_a_restarted_keeper(path: Path, client: KeeperClient, keeper: KeeperServer) -> None:
    assert client.names() == []
    keeper.stop()
    wait_until(lambda: _refuses(client))
    replacement = KeeperServer(path.with_name("other.sock"))
    path.unlink(missing_ok=True)
    path.with_name("other.sock").rename(path)
    thread = threading.Thread(target=replacement.serve)
    thread.start()
    try:
        assert client.names() == []
    finally:
        replacement.stop()
        thread.join()
        replacement.close()


def _refuses(client: KeeperClient) -> bool:
    try:
        KeeperClient(client._socket_path, timeout_s=0.1).names()
    except DaemonUnavailable:
        return True
    return False


def test_the_stale_socket_of_a_dead_keeper_is_replaced(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as dead:
        dead.bind(str(path))
    KeeperServer(path).close()
    assert not path.exists()


def test_a_path_where_another_keeper_listens_is_refused(path: Path, keeper: KeeperServer, client: KeeperClient) -> None:
    with pytest.raises(InvalidParameter, match="stop the other one first"):
        KeeperServer(path)
    assert client.names() == []


@pytest.mark.promise("S250")
def test_a_keeper_that_ends_leaves_the_socket_of_its_successor(path: Path) -> None:
    ending = KeeperServer(path)
    path.unlink()
    successor = KeeperServer(path)
    serving = threading.Thread(target=successor.serve)
    serving.start()
    try:
        ending.close()
        assert KeeperClient(path).names() == []
    finally:
        successor.stop()
        serving.join()
        successor.close()
    assert list(path.parent.iterdir()) == []


def test_paths_that_cannot_be_sockets_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InvalidParameter, match="an old socket"):
        KeeperServer(tmp_path / "file")
    with pytest.raises(InvalidParameter, match="a directory that exists"):
        KeeperServer(tmp_path / "nowhere" / "keeper.sock")
    with pytest.raises(InvalidParameter, match="at most 107 bytes"):
        KeeperServer(tmp_path / ("x" * 100) / "keeper.sock")
    assert (tmp_path / "file").exists()


_RUN = """
import sys
from pathlib import Path
from types import SimpleNamespace
from csi_driver.wiring.keeper_process import run
run(SimpleNamespace(socket=Path(sys.argv[1])))
"""


def test_the_process_ends_at_sigterm_and_removes_its_socket(path: Path, pipe: tuple[int, int]) -> None:
    process = subprocess.Popen([sys.executable, "-c", _RUN, str(path)])
    try:
        wait_until(path.is_socket)
        KeeperClient(path).put("m-1", [pipe[1]])
        started = time.process_time()
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        assert time.process_time() - started < 5
    finally:
        process.kill()
        process.wait()
    assert not path.exists()


@pytest.mark.promise("S223")
def test_descriptors_are_held_as_long_as_a_daemon_asks_and_closed_when_none_does(
    path: Path, pipe: tuple[int, int], caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    server = KeeperServer(path, daemon_timeout_s=900, clock=clock)
    thread = threading.Thread(target=server.serve)
    thread.start()
    try:
        client = KeeperClient(path)
        client.put("mount", [pipe[1]])
        os.close(os.dup2(os.open(os.devnull, os.O_RDONLY), pipe[1]))  # the keeper has the only writing end
        for _ in range(3):
            clock.now += 899
            assert client.names() == ["mount"]
        clock.now += 901
        with _raw(path):  # wakes the server, and asks for nothing
            assert os.read(pipe[0], 1) == b"", "the pipe has no writing end any more"
        assert client.names() == []
        assert "no cache daemon has asked for 1 mounts for 900 s" in caplog.text
        client.put("mount", [pipe[0]])  # by a daemon that had not asked, but lives
        assert client.names() == ["mount"]
    finally:
        server.stop()
        thread.join()
        server.close()


@pytest.mark.promise("S223")
def test_without_a_limit_descriptors_are_held_for_ever(path: Path, pipe: tuple[int, int]) -> None:
    clock = Clock()
    server = KeeperServer(path, clock=clock)
    thread = threading.Thread(target=server.serve)
    thread.start()
    try:
        KeeperClient(path).put("mount", [pipe[1]])
        clock.now += 1e9
        _raw(path).close()
        assert KeeperClient(path).names() == ["mount"]
    finally:
        server.stop()
        thread.join()
        server.close()
