"""Kernels before 6.9, which can neither resend requests nor pass reads through: emulated by a session that does not
negotiate these features."""

from __future__ import annotations

import hashlib
import logging
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from csi_driver.settings import FuseSettings
from tests.support.local_filesystem import LocalFilesystem
from tests.support.mounts import MountBench, ServedMount, wait_until

pytestmark = [pytest.mark.fuse, pytest.mark.faults]

OLD = FuseSettings(passthrough=False, resend=False)
CONTENT = bytes(range(256)) * 10_000
READ_WITH_HANDLER = """
import os, signal, sys
def handle(*_):
    print("handled", flush=True)
signal.signal(signal.SIGALRM, handle)
descriptor = os.open(sys.argv[1], os.O_RDONLY)
print(len(os.pread(descriptor, 1000, 0)), flush=True)
"""


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[MountBench]:
    bench = MountBench(tmp_path)
    yield bench
    bench.close()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    data = tmp_path / "data"
    data.mkdir()
    for name in ("waiting.bin", "other.bin"):
        (data / name).write_bytes(CONTENT)
    return data


def start_reader(path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", READ_WITH_HANDLER, str(path)], stdout=subprocess.PIPE, text=True)


@pytest.fixture
def lost(bench: MountBench, data: Path) -> Iterator[tuple[ServedMount, subprocess.Popen[str]]]:
    """A mount that was adopted while a reader waited for an answer of the previous daemon."""
    filesystem = LocalFilesystem(data, complete=False)
    filesystem.pending_nodes.add(filesystem.node_of("waiting.bin"))
    mount = bench.serve(filesystem, OLD)
    reader = start_reader(mount / "waiting.bin")
    wait_until(lambda: filesystem.pending_count > 0)
    mount.session.stop()
    adopted = bench.adopt(mount, LocalFilesystem(data, complete=False), OLD)
    yield adopted, reader
    with reader:
        reader.kill()


def test_a_file_is_served_by_the_daemon_if_the_kernel_has_no_passthrough(bench: MountBench, data: Path) -> None:
    mount = bench.serve(LocalFilesystem(data), OLD)
    assert (mount / "other.bin").read_bytes() == CONTENT
    assert not mount.session.passthrough


def test_requests_after_the_adoption_are_served(
    lost: tuple[ServedMount, subprocess.Popen[str]],
) -> None:
    mount, reader = lost
    assert hashlib.sha256((mount / "other.bin").read_bytes()).digest() == hashlib.sha256(CONTENT).digest()
    assert (mount / "waiting.bin").stat().st_size == len(CONTENT)
    assert reader.poll() is None, "a request that the previous daemon had read stays unanswered"


def test_the_daemon_logs_that_requests_were_lost(
    bench: MountBench, data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mount = bench.serve(LocalFilesystem(data), OLD)
    assert (mount / "other.bin").read_bytes() == CONTENT
    mount.session.stop()
    with caplog.at_level(logging.WARNING):
        bench.adopt(mount, LocalFilesystem(data), OLD)
    assert "the kernel cannot repeat its requests" in caplog.text


def test_a_reader_whose_request_was_lost_can_be_killed(lost: tuple[ServedMount, subprocess.Popen[str]]) -> None:
    _, reader = lost
    reader.send_signal(signal.SIGKILL)
    assert reader.wait(20) == -signal.SIGKILL


def test_a_process_whose_open_was_lost_can_be_killed(bench: MountBench, data: Path) -> None:
    """The kernel keeps a process waiting, even after SIGKILL, until the request that a daemon has read is answered."""
    filesystem = LocalFilesystem(data, complete=False)
    filesystem.pending_opens.add(filesystem.node_of("waiting.bin"))
    mount = bench.serve(filesystem, OLD)
    with start_reader(mount / "waiting.bin") as reader:
        wait_until(lambda: bool(filesystem.waiting_opens))
        bench.actions.append(reader.kill)
        mount.session.stop()
        bench.adopt(mount, LocalFilesystem(data, complete=False), OLD)
        reader.send_signal(signal.SIGKILL)
        assert reader.wait(20) == -signal.SIGKILL


def test_a_signal_does_not_end_a_read_that_began_after_the_adoption(
    lost: tuple[ServedMount, subprocess.Popen[str]], bench: MountBench, data: Path
) -> None:
    mount, _ = lost
    filesystem = mount.session._filesystem
    assert isinstance(filesystem, LocalFilesystem)
    filesystem.pending_nodes.add(filesystem.node_of("other.bin"))
    reader = start_reader(mount / "other.bin")
    wait_until(lambda: filesystem.pending_count > 0)
    reader.send_signal(signal.SIGALRM)
    filesystem.pending_nodes.clear()
    filesystem.answer_pending()
    assert reader.communicate(timeout=20)[0].splitlines() == ["handled", "1000"]
