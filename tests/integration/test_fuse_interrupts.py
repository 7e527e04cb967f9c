"""Signals for readers of pending reads: a killed reader ends, any other keeps waiting, as on a local disk."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from csi_driver.settings import FuseSettings
from tests.support.local_filesystem import LocalFilesystem
from tests.support.mounts import MountBench, ServedMount, wait_until

pytestmark = pytest.mark.fuse

# Without readahead each page is a request of its own that the reader itself waits for; an EINTR here would be SIGBUS.
_MAPPING_READER = """
import mmap, signal, sys
caught = []
signal.signal(signal.SIGUSR1, lambda number, frame: caught.append(number))
with open(sys.argv[1], "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
    mapped.madvise(mmap.MADV_RANDOM)
    data = mapped[1 << 20 : (1 << 20) + 4096]
print(len(data), len(caught), flush=True)
"""

_DIRECT_READER = """
import mmap, os, signal, sys
caught = []
signal.signal(signal.SIGUSR1, lambda number, frame: caught.append(number))
descriptor = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT)
count = os.preadv(descriptor, [mmap.mmap(-1, 4096)], 1 << 20)
print(count, len(caught), flush=True)
"""

_BUFFERED_READER = """
import os, signal, sys
caught = []
signal.signal(signal.SIGUSR1, lambda number, frame: caught.append(number))
data = os.pread(os.open(sys.argv[1], os.O_RDONLY), 4096, 1 << 20)
print(len(data), len(caught), flush=True)
"""


@pytest.fixture
def filesystem(tmp_path: Path) -> LocalFilesystem:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.bin").write_bytes(os.urandom(3_000_000))
    filesystem = LocalFilesystem(tmp_path / "data", complete=False)
    filesystem.pending_nodes.add(filesystem.node_of("a.bin"))
    return filesystem


@pytest.fixture
def mount(tmp_path: Path, filesystem: LocalFilesystem) -> Iterator[ServedMount]:
    bench = MountBench(tmp_path)
    yield bench.serve(filesystem, FuseSettings(passthrough=False))
    bench.close()


@pytest.fixture(params=[_MAPPING_READER, _DIRECT_READER, _BUFFERED_READER], ids=["mapping", "direct", "buffered"])
def reader(
    mount: ServedMount, filesystem: LocalFilesystem, request: pytest.FixtureRequest
) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", request.param, mount / "a.bin"], stdout=subprocess.PIPE, text=True
    )
    wait_until(lambda: filesystem.pending_count > 0)
    yield process
    process.kill()
    filesystem.answer_pending()
    process.wait(10)
    if process.stdout is not None:
        process.stdout.close()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_reader_that_is_killed_does_not_hang(reader: subprocess.Popen[str], number: signal.Signals) -> None:
    reader.send_signal(number)
    assert reader.wait(10) == -number


def test_a_signal_with_a_handler_does_not_end_a_read(
    filesystem: LocalFilesystem, reader: subprocess.Popen[str]
) -> None:
    reader.send_signal(signal.SIGUSR1)
    with pytest.raises(subprocess.TimeoutExpired):
        reader.wait(0.5)
    filesystem.answer_pending()
    assert reader.wait(10) == 0
    assert reader.stdout is not None
    assert reader.stdout.read() == "4096 1\n"
    assert filesystem.cancelled == 0


def test_a_reader_that_receives_a_signal_and_is_killed_later_does_not_hang(reader: subprocess.Popen[str]) -> None:
    """The kernel sends an INTERRUPT for the first signal only."""
    reader.send_signal(signal.SIGUSR1)
    with pytest.raises(subprocess.TimeoutExpired):
        reader.wait(0.3)
    reader.kill()
    assert reader.wait(10) == -signal.SIGKILL


def test_a_process_that_is_killed_while_it_opens_does_not_hang(filesystem: LocalFilesystem, mount: ServedMount) -> None:
    node = filesystem.node_of("a.bin")
    filesystem.pending_opens.add(node)
    process = subprocess.Popen(["cat", mount / "a.bin"], stdout=subprocess.DEVNULL)
    wait_until(lambda: bool(filesystem.waiting_opens))
    process.kill()
    assert process.wait(10) == -signal.SIGKILL
    ((_, opened),) = filesystem.waiting_opens
    opened(filesystem.open_now(node))
    assert filesystem.open_count == 0
    assert not list(mount.open_table.records())
