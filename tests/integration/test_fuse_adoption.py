"""Adoption: a daemon dies or is replaced, and the readers of its mount see a pause."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from csi_driver.filesystem.open_table import OpenTable
from csi_driver.fuse import mounting as device
from csi_driver.mounts.keeper_protocol import KeeperClient, KeeperServer
from tests.support.local_filesystem import LocalFilesystem
from tests.support.mounts import MountBench, ServedMount, wait_until

pytestmark = pytest.mark.fuse

_SIZE_BYTES = 9_000_001
_PIECE_BYTES = 1 << 16


@pytest.fixture
def data(tmp_path: Path) -> Path:
    data = tmp_path / "data"
    data.mkdir()
    for name in ("cold.bin", "warm.bin", "other.bin"):
        (data / name).write_bytes(os.urandom(_SIZE_BYTES))
    return data


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[MountBench]:
    bench = MountBench(tmp_path)
    yield bench
    bench.close()


@dataclass
class Daemons:
    """Starts daemons in processes of their own, one after the other, over one mount."""

    data: Path
    bench: MountBench
    keeper_socket: Path
    mount_point: Path
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def table_path(self) -> Path:
        return self.keeper_socket.with_name("opens")

    def start(self, *hanging: str) -> None:
        """Returns when it serves. Reads of the hanging files are never answered."""
        arguments = (self.data, self.mount_point, self.table_path, self.keeper_socket, *hanging)
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.serve_directory", *map(str, arguments)],
            stdout=subprocess.PIPE,
            text=True,
        )
        self.processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"

    def kill(self) -> None:
        """By SIGKILL: nothing is cleaned up."""
        self.processes[-1].send_signal(signal.SIGKILL)
        self.processes[-1].wait(10)

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait(10)
            if process.stdout is not None:
                process.stdout.close()


@pytest.fixture
def daemons(data: Path, tmp_path: Path) -> Iterator[Daemons]:
    bench = MountBench(tmp_path)
    server = KeeperServer(tmp_path / "keeper.sock")
    thread = threading.Thread(target=server.serve)
    thread.start()
    daemons = Daemons(data, bench, tmp_path / "keeper.sock", bench.mount_point())
    yield daemons
    daemons.close()
    bench.close()
    server.stop()
    thread.join()
    server.close()


def _start_reader(path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(["sha256sum", path], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _digest_of(reader: subprocess.Popen[str]) -> str:
    output, errors = reader.communicate(timeout=30)
    assert reader.returncode == 0, errors
    return output.split()[0]


def _waits(reader: subprocess.Popen[str], path: Path) -> bool:
    """The reader has the file open and sleeps in the kernel."""
    state = Path(f"/proc/{reader.pid}/stat").read_text().rpartition(")")[2].split()[0]
    try:
        opened = any(os.readlink(link) == str(path) for link in Path(f"/proc/{reader.pid}/fd").iterdir())
    except FileNotFoundError:  # the program that is to read was just started, and closed a descriptor meanwhile
        return False
    return opened and state in "SD"


def test_a_reader_in_mid_read_sees_a_pause_and_the_right_bytes(daemons: Daemons) -> None:
    daemons.start("cold.bin")
    path = daemons.mount_point / "cold.bin"
    reader = _start_reader(path)
    wait_until(lambda: _waits(reader, path))
    daemons.kill()
    assert reader.poll() is None
    daemons.start()
    assert _digest_of(reader) == hashlib.sha256((daemons.data / "cold.bin").read_bytes()).hexdigest()


def test_a_mount_survives_one_daemon_after_another(daemons: Daemons) -> None:
    path = daemons.mount_point / "cold.bin"
    daemons.start("cold.bin")
    reader = _start_reader(path)
    wait_until(lambda: _waits(reader, path))
    for _ in range(3):
        daemons.kill()
        daemons.start("cold.bin")
    daemons.kill()
    daemons.start()
    assert _digest_of(reader) == hashlib.sha256((daemons.data / "cold.bin").read_bytes()).hexdigest()


def test_passthrough_reads_continue_while_no_daemon_runs(daemons: Daemons) -> None:
    content = (daemons.data / "warm.bin").read_bytes()
    daemons.start()
    with (daemons.mount_point / "warm.bin").open("rb", buffering=0) as file:
        assert file.read(_PIECE_BYTES) == content[:_PIECE_BYTES]
        daemons.kill()
        pieces = []
        while piece := file.read(_PIECE_BYTES):
            pieces.append(piece)
        assert b"".join(pieces) == content[_PIECE_BYTES:]
        daemons.start()
        file.seek(0)
        assert file.read() == content
        # The next open uses the backing id of the open that is left: a second id would be refused with EIO.
        with (daemons.mount_point / "warm.bin").open("rb") as second:
            assert second.read() == content
    assert (daemons.mount_point / "warm.bin").read_bytes() == content


def test_a_file_that_was_served_stays_served_for_the_next_daemon(daemons: Daemons) -> None:
    """The kernel refuses a passthrough open while it has a served one: the new daemon has to know the served one."""
    content = (daemons.data / "cold.bin").read_bytes()
    daemons.start("cold.bin")
    path = daemons.mount_point / "cold.bin"
    descriptor = os.open(path, os.O_RDONLY)
    daemons.kill()
    daemons.start()
    assert path.read_bytes() == content
    assert os.pread(descriptor, 100, 5_000_000) == content[5_000_000:5_000_100]
    os.close(descriptor)


def test_opening_and_closing_while_no_daemon_runs_waits_for_the_next_one(daemons: Daemons) -> None:
    daemons.start()
    held = os.open(daemons.mount_point / "warm.bin", os.O_RDONLY)
    daemons.kill()
    os.close(held)
    reader = _start_reader(daemons.mount_point / "other.bin")
    daemons.start()
    assert _digest_of(reader) == hashlib.sha256((daemons.data / "other.bin").read_bytes()).hexdigest()

    def nothing_is_open() -> bool:
        table = OpenTable.load(daemons.table_path, "snapshot")
        try:
            return not list(table.records())
        finally:
            table.close()

    wait_until(nothing_is_open)


def test_a_storm_of_readers_survives_kills_at_any_moment(daemons: Daemons) -> None:
    """Opens, reads and closes are in flight whenever the daemon dies; none may fail."""
    daemons.start()
    program = (
        "import hashlib, pathlib, sys\n"
        "digest = hashlib.sha256()\n"
        "for turn in range(3000):\n"
        "    for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):\n"
        "        with path.open('rb', buffering=0) as file:\n"
        "            file.seek(turn * 1000)\n"
        "            digest.update(file.read(1000))\n"
        "print(digest.hexdigest())\n"
    )
    command = [sys.executable, "-c", program]
    readers = [
        subprocess.Popen(
            [*command, str(daemons.mount_point)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    for pause_s in (0.05, 0.11, 0.17):
        time.sleep(pause_s)
        assert None in [reader.poll() for reader in readers]
        daemons.kill()
        daemons.start()
    expected = subprocess.run([*command, str(daemons.data)], capture_output=True, text=True, check=True).stdout
    for reader in readers:
        output, errors = reader.communicate(timeout=60)
        assert errors == ""
        assert output == expected


def test_the_next_daemon_ends_if_the_mount_was_unmounted_while_none_ran(daemons: Daemons) -> None:
    daemons.start()
    daemons.kill()
    device.unmount(daemons.mount_point)
    daemons.start()
    assert daemons.processes[-1].wait(10) == 0


def test_without_a_keeper_reads_of_a_killed_daemons_mount_fail_with_enotconn(daemons: Daemons) -> None:
    daemons.start()
    KeeperClient(daemons.keeper_socket).drop("mount")
    daemons.kill()
    with pytest.raises(OSError, match="not connected"):
        os.stat(daemons.mount_point / "other.bin")


def test_a_session_that_stops_leaves_its_readers_to_the_next(bench: MountBench, data: Path) -> None:
    """An orderly stop, within one process here."""
    filesystem = LocalFilesystem(data)
    node = filesystem.node_of("cold.bin")
    filesystem.incomplete.add(node)
    filesystem.pending_nodes.add(node)
    mount = bench.serve(filesystem)
    reader = _start_reader(mount / "cold.bin")
    wait_until(lambda: filesystem.pending_count > 0)
    mount.session.stop()
    assert not mount.session.serving
    filesystem.answer_pending()  # too late: the old session answers nothing any more
    assert reader.poll() is None
    adopted = bench.adopt(mount, LocalFilesystem(data))
    assert _digest_of(reader) == hashlib.sha256((data / "cold.bin").read_bytes()).hexdigest()
    assert adopted.session.passthrough
    wait_until(lambda: not adopted.session._files.handles)


def test_a_thread_that_could_not_be_woken_has_its_request_resent(bench: MountBench, data: Path) -> None:
    """Nothing was looked up yet, so there is no file to wake the threads with."""
    mount: ServedMount = bench.serve(LocalFilesystem(data))
    old = mount.session
    old.stop()
    assert old.serving
    bench.adopt(mount, LocalFilesystem(data))
    assert (mount / "warm.bin").read_bytes() == (data / "warm.bin").read_bytes()
    for _ in range(20):
        os.statvfs(mount.mount_point)
    wait_until(lambda: not old.serving)


def test_backing_ids_that_the_dead_daemon_did_not_close_are_closed(bench: MountBench, data: Path) -> None:
    mount = bench.serve(LocalFilesystem(data))
    descriptor = os.open(data / "warm.bin", os.O_RDONLY)
    lost = mount.session._backing._register(descriptor)
    os.close(descriptor)
    mount.open_table.clear(mount.open_table.claim(99, 99, 99, lost))  # died between the slot and the ioctl
    os.listdir(mount.mount_point)
    mount.session.stop()
    adopted = bench.adopt(mount, LocalFilesystem(data))
    with pytest.raises(OSError, match="No such file"):
        _close_backing(adopted.device_fd, lost)


def _close_backing(device_fd: int, backing_id: int) -> None:
    import fcntl
    import struct

    from csi_driver.fuse.passthrough import BACKING_CLOSE

    fcntl.ioctl(device_fd, BACKING_CLOSE, struct.pack("<i", backing_id))
