"""Mounts without OPEN and RELEASE: the kernel opens files by itself and keeps their pages."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from csi_driver.event_loop.event_loop import EventLoop
from csi_driver.fuse import protocol as p
from csi_driver.model.errors import ObjectChanged
from csi_driver.settings import FuseSettings
from tests.support.local_filesystem import LocalFilesystem
from tests.support.mounts import MountBench, ServedMount, wait_until

pytestmark = pytest.mark.fuse


@pytest.fixture(params=["loop", "threads"])
def bench(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[MountBench]:
    event_loop = EventLoop()
    event_loop.start()
    bench = MountBench(tmp_path, event_loop if request.param == "loop" else None)
    yield bench
    bench.close()
    event_loop.close()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    data = tmp_path / "data"
    data.mkdir()
    for name, size_bytes in (("a.jpg", 110_001), ("b.jpg", 4096), ("long.bin", 9_000_001), ("empty", 0)):
        (data / name).write_bytes(os.urandom(size_bytes))
    return data


@pytest.fixture
def filesystem(data: Path) -> LocalFilesystem:
    filesystem = LocalFilesystem(data)
    filesystem.opens_are_needless = True
    return filesystem


@pytest.fixture
def mount(bench: MountBench, filesystem: LocalFilesystem) -> ServedMount:
    return bench.serve(filesystem)


def _read_as_an_image(path: Path) -> bytes:
    """The calls of ``PIL.Image.open`` and of its decoder."""
    with path.open("rb") as file:
        parts = [file.read(16)]
        file.seek(16)
        while part := file.read(65536):
            parts.append(part)
    return b"".join(parts)


def test_every_file_has_its_bytes(mount: ServedMount, data: Path) -> None:
    for path in sorted(data.iterdir()):
        assert (mount / path.name).read_bytes() == path.read_bytes()


@pytest.mark.promise("S21")
def test_a_file_in_the_page_cache_is_opened_and_read_without_a_request(
    mount: ServedMount, filesystem: LocalFilesystem, data: Path
) -> None:
    expected = (data / "a.jpg").read_bytes()
    assert (mount / "a.jpg").read_bytes() == expected
    assert filesystem.node_reads >= 1
    mount.requests.clear()
    for _ in range(100):
        with (mount / "a.jpg").open("rb", buffering=0) as file:
            assert file.read() == expected
    assert not mount.requests, "of any kind"
    assert list(mount.open_table.records()) == []


@pytest.mark.promise("S257")
@pytest.mark.parametrize("read", [Path.read_bytes, _read_as_an_image], ids=["Path.read_bytes", "PIL.Image.open"])
def test_a_buffered_open_in_python_costs_one_ioctl_and_nothing_else(
    mount: ServedMount, read: Callable[[Path], bytes], data: Path
) -> None:
    """``io.open`` asks whether the file is a terminal; Python 3.14 does not any more."""
    names = ["a.jpg", "b.jpg"] * 100
    expected = {name: (data / name).read_bytes() for name in names}
    for name in set(names):
        read(mount / name)
    mount.requests.clear()
    for name in names:
        assert read(mount / name) == expected[name]
    assert mount.requests == ({p.IOCTL: len(names)} if sys.version_info < (3, 14) else {})


@pytest.mark.promise("S258")
def test_a_reader_without_enough_memory_has_its_files_opened_by_the_daemon(
    bench: MountBench, filesystem: LocalFilesystem, data: Path
) -> None:
    """For the life of the mount, also with the next daemon: the kernel has opens that it will release."""
    filesystem.has_memory = False
    mount = bench.serve(filesystem)
    with (mount / "b.jpg").open("rb", buffering=0) as file:
        assert filesystem.openers == [os.getpid()]
        mount.session.stop()
        successor = LocalFilesystem(data)
        successor.opens_are_needless = True
        adopted = bench.adopt(mount, successor)
        assert (mount / "a.jpg").read_bytes() == (data / "a.jpg").read_bytes()
        assert file.read() == (data / "b.jpg").read_bytes()
    assert successor.openers == []
    assert successor.node_reads == filesystem.node_reads == 0
    assert adopted.requests[p.OPEN] == 1
    wait_until(lambda: adopted.requests[p.RELEASE] == 2)
    wait_until(lambda: list(adopted.open_table.records()) == [])


@pytest.mark.promise("S21")
def test_files_are_opened_where_opens_matter(bench: MountBench, data: Path) -> None:
    filesystem = LocalFilesystem(data)
    mount = bench.serve(filesystem)
    (mount / "a.jpg").read_bytes()
    assert filesystem.node_reads == 0


def test_no_open_support_can_be_switched_off(bench: MountBench, filesystem: LocalFilesystem) -> None:
    mount = bench.serve(filesystem, FuseSettings(openless=False))
    (mount / "a.jpg").read_bytes()
    assert filesystem.node_reads == 0


MAPPED = """
import mmap, sys
with open(sys.argv[1], "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
    sys.stdout.buffer.write(mapped[5_000_000:5_100_000])
"""


def test_memory_maps_and_direct_reads_have_the_same_bytes(mount: ServedMount, data: Path) -> None:
    """The map in another process: a page fault does not release the interpreter, which the daemon needs here."""
    expected = (data / "long.bin").read_bytes()
    mapped = subprocess.run(
        [sys.executable, "-c", MAPPED, mount / "long.bin"], capture_output=True, check=True, timeout=60
    )
    assert mapped.stdout == expected[5_000_000:5_100_000]
    descriptor = os.open(mount / "long.bin", os.O_RDONLY | os.O_DIRECT)
    with mmap.mmap(-1, 1 << 20) as buffer:
        assert os.preadv(descriptor, [buffer], 4096) == 1 << 20
        assert buffer[:] == expected[4096 : 4096 + (1 << 20)]
    os.close(descriptor)


def test_nothing_can_be_written(mount: ServedMount) -> None:
    (mount / "a.jpg").read_bytes()
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC):
        with pytest.raises(OSError, match="Read-only file system"):
            os.open(mount / "a.jpg", flags)


def test_a_failed_read_is_an_error_and_the_next_one_retries(
    mount: ServedMount, filesystem: LocalFilesystem, data: Path
) -> None:
    node = filesystem.node_of("b.jpg")
    filesystem.read_errors[node] = ObjectChanged("b.jpg")
    # The kernel retries a page that could not be read ahead once, and then reports the error of that.
    with pytest.raises(OSError, match=r"Stale file handle|Input/output error"):
        (mount / "b.jpg").read_bytes()
    del filesystem.read_errors[node]
    assert (mount / "b.jpg").read_bytes() == (data / "b.jpg").read_bytes()


def test_a_reader_of_a_pending_read_can_be_killed(mount: ServedMount, filesystem: LocalFilesystem) -> None:
    filesystem.pending_nodes.add(filesystem.node_of("a.jpg"))
    reader = subprocess.Popen([sys.executable, "-c", "import sys; open(sys.argv[1], 'rb').read()", mount / "a.jpg"])
    wait_until(lambda: filesystem.node_reads > 0)
    reader.send_signal(signal.SIGKILL)
    assert reader.wait(20) == -signal.SIGKILL
    filesystem.answer_pending()  # readahead of the kernel is not interrupted; it ends when it is answered
    wait_until(lambda: not mount.session._files.pending)


def test_the_next_daemon_serves_the_mount_and_answers_a_pending_read(
    bench: MountBench, mount: ServedMount, filesystem: LocalFilesystem, data: Path
) -> None:
    (mount / "b.jpg").read_bytes()
    filesystem.pending_nodes.add(filesystem.node_of("a.jpg"))
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append((mount / "a.jpg").read_bytes()))
    reader.start()
    wait_until(lambda: filesystem.node_reads >= 2)
    mount.session.stop()
    # No daemon serves now; files in the page cache are read nevertheless. By a process that can be killed.
    alone = subprocess.run(["cat", mount / "b.jpg"], capture_output=True, check=True, timeout=20)
    assert alone.stdout == (data / "b.jpg").read_bytes()
    successor = LocalFilesystem(data)
    successor.opens_are_needless = True
    bench.adopt(mount, successor)
    reader.join(20)
    assert got == [(data / "a.jpg").read_bytes()]
    assert successor.node_reads >= 1


def test_a_daemon_without_no_open_support_still_serves_files_that_an_earlier_one_opened_with_it(
    bench: MountBench, mount: ServedMount, data: Path
) -> None:
    """The kernel has stopped to send OPENs for good."""
    (mount / "b.jpg").read_bytes()
    mount.session.stop()
    bench.adopt(mount, LocalFilesystem(data), FuseSettings(openless=False))
    assert (mount / "long.bin").read_bytes() == (data / "long.bin").read_bytes()
