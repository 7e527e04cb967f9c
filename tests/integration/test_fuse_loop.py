"""Mounts whose requests are read by the thread of small objects: several, and in turns with threads of their own."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from csi_driver.event_loop.event_loop import EventLoop
from csi_driver.filesystem.nodes import Data
from csi_driver.fuse import mounting as device
from csi_driver.reading.small_object_fetcher import SmallObjectFetcher
from csi_driver.settings import FuseSettings
from tests.support.local_filesystem import LocalFilesystem
from tests.support.mounts import MountBench, ServedMount, wait_until

pytestmark = pytest.mark.fuse

NAMES = [f"{number:02}.jpg" for number in range(40)]


class HangingFilesystem(LocalFilesystem):
    """Reads of some nodes hang on the thread that asks, as in an open(2) on a disk that does not answer."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.opens_are_needless = True
        self.hangs_at: set[int] = set()
        self.hanging = threading.Event()
        self.go_on = threading.Event()

    def read_node(self, node: int, offset: int, size_bytes: int, data: Data) -> object:
        if node in self.hangs_at:
            self.hanging.set()
            self.go_on.wait(60)
        return super().read_node(node, offset, size_bytes, data)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    data = tmp_path / "data"
    data.mkdir()
    for name in NAMES:
        (data / name).write_bytes(os.urandom(110_000))
    return data


@pytest.fixture
def loop() -> Iterator[EventLoop]:
    fetches = SmallObjectFetcher(8)
    yield fetches.loop
    fetches.close()


@pytest.fixture
def bench(tmp_path: Path, loop: EventLoop) -> Iterator[MountBench]:
    bench = MountBench(tmp_path, loop)
    yield bench
    bench.close()


def cat(*paths: Path) -> bytes:
    """By a process that can be killed, and that does not hold the interpreter, which the daemon needs."""
    return subprocess.run(["cat", *paths], capture_output=True, check=True, timeout=30).stdout


def a_reader_that_hangs(
    bench: MountBench, data: Path
) -> tuple[HangingFilesystem, ServedMount, subprocess.Popen[bytes]]:
    """Of the first file, of a mount of its own, until ``go_on``."""
    filesystem = HangingFilesystem(data)
    filesystem.hangs_at.add(filesystem.node_of(NAMES[0]))
    mount = bench.serve(filesystem)
    bench.actions.append(filesystem.go_on.set)
    reader = subprocess.Popen(["cat", mount / NAMES[0]], stdout=subprocess.PIPE)
    assert filesystem.hanging.wait(20)
    return filesystem, mount, reader


def test_several_mounts_share_the_thread_and_each_file_has_its_bytes(bench: MountBench, data: Path) -> None:
    mounts = [bench.serve(HangingFilesystem(data)) for _ in range(3)]
    script = "import sys,hashlib; print(*[hashlib.sha256(open(p,'rb').read()).hexdigest() for p in sys.argv[1:]])"
    readers = [
        subprocess.Popen(
            [sys.executable, "-c", script, *(mount / name for name in NAMES[::step])], stdout=subprocess.PIPE, text=True
        )
        for mount in mounts
        for step in (1, -1)
    ]
    expected = [hashlib.sha256((data / name).read_bytes()).hexdigest() for name in NAMES]
    for number, reader in enumerate(readers):
        assert reader.communicate(timeout=60)[0].split() == expected[:: 1 - 2 * (number % 2)]


def test_the_end_of_a_mount_is_seen_and_costs_nothing_afterwards(
    bench: MountBench, loop: EventLoop, data: Path
) -> None:
    first, second = (bench.serve(HangingFilesystem(data)) for _ in range(2))
    cat(first / NAMES[0])
    device.unmount(first.mount_point)
    assert first.session.wait(10)
    wait_until(lambda: not first.session.serving)
    assert loop._watched.poll(0) == [], "the thread would go round and round"
    assert cat(second / NAMES[0]) == (data / NAMES[0]).read_bytes()


def test_a_request_that_hangs_holds_up_neither_its_mount_nor_others(bench: MountBench, data: Path) -> None:
    other = bench.serve(HangingFilesystem(data))
    filesystem, mount, reader = a_reader_that_hangs(bench, data)
    assert cat(other / NAMES[1]) == (data / NAMES[1]).read_bytes()
    assert cat(mount / NAMES[1]) == (data / NAMES[1]).read_bytes()
    filesystem.go_on.set()
    assert reader.communicate(timeout=20)[0] == (data / NAMES[0]).read_bytes()
    assert cat(mount / NAMES[2]) == (data / NAMES[2]).read_bytes()


def test_a_stop_while_a_request_hangs_leaves_it_to_the_next(bench: MountBench, data: Path) -> None:
    """The one that hangs is left behind. The next daemon gets the request again and answers it; what the first says
    in the end is too late."""
    filesystem, mount, reader = a_reader_that_hangs(bench, data)
    old = mount.session
    old.stop()
    assert old.serving
    bench.adopt(mount, HangingFilesystem(data))
    assert reader.communicate(timeout=20)[0] == (data / NAMES[0]).read_bytes()
    filesystem.go_on.set()
    wait_until(lambda: not old.serving)
    assert cat(mount / NAMES[1]) == (data / NAMES[1]).read_bytes()


def test_one_that_hung_takes_no_request_after_the_stop(bench: MountBench, data: Path) -> None:
    filesystem, mount, first = a_reader_that_hangs(bench, data)
    old = mount.session
    old.stop()
    second = subprocess.Popen(["cat", mount / NAMES[1]], stdout=subprocess.PIPE)
    time.sleep(0.1)
    filesystem.go_on.set()
    wait_until(lambda: not old.serving)
    assert filesystem.node_reads == 1
    bench.adopt(mount, HangingFilesystem(data))
    assert first.communicate(timeout=20)[0] == (data / NAMES[0]).read_bytes()
    assert second.communicate(timeout=20)[0] == (data / NAMES[1]).read_bytes()


def test_a_second_stop_does_no_harm_to_whoever_has_the_descriptor_now(bench: MountBench, data: Path) -> None:
    mount = bench.serve(HangingFilesystem(data))
    old = mount.session
    old.stop()
    bench.adopt(mount, HangingFilesystem(data))
    old.stop()
    assert cat(mount / NAMES[0]) == (data / NAMES[0]).read_bytes()


@pytest.mark.parametrize("first", ["loop", "threads"])
def test_daemons_of_both_kinds_follow_each_other(bench: MountBench, loop: EventLoop, data: Path, first: str) -> None:
    """Whether read(2) waits is a property of the open device, which the next daemon gets as it is."""
    kinds = [loop, None] if first == "loop" else [None, loop]
    bench.loop = kinds[0]
    mount = bench.serve(HangingFilesystem(data))
    for number, name in enumerate(NAMES[:8]):
        assert os.get_blocking(mount.device_fd) is (bench.loop is None)
        assert cat(mount / name) == (data / name).read_bytes()
        mount.session.stop()
        assert not mount.session.serving
        bench.loop = kinds[(number + 1) % 2]
        bench.adopt(mount, HangingFilesystem(data))


@pytest.mark.parametrize("resend", [True, False], ids=["hands back", "answers"])
def test_a_thread_that_was_left_behind_ends_when_the_device_no_longer_waits(
    bench: MountBench, loop: EventLoop, data: Path, resend: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing was looked up yet, so there is no file to wake it with; then the next daemon reads without waiting."""
    bench.loop = None
    mount: ServedMount = bench.serve(HangingFilesystem(data), FuseSettings(resend=resend))
    old = mount.session
    old.stop()
    assert old.serving
    bench.loop = loop
    bench.adopt(mount, HangingFilesystem(data))
    for name in NAMES[:20]:
        assert cat(mount / name) == (data / name).read_bytes()
    wait_until(lambda: not old.serving)
    assert not old.closed.is_set(), "the mount is there"
    assert "cannot be read" not in caplog.text


@pytest.mark.parametrize(
    ("settings", "needless"),
    [(FuseSettings(threads=2), True), (FuseSettings(openless=False), True), (FuseSettings(), False)],
    ids=["two threads", "opens wanted", "large files"],
)
def test_other_mounts_have_threads_of_their_own(
    bench: MountBench, data: Path, settings: FuseSettings, needless: bool
) -> None:
    filesystem = HangingFilesystem(data)
    filesystem.opens_are_needless = needless
    mount = bench.serve(filesystem, settings)
    assert os.get_blocking(mount.device_fd)
    assert cat(mount / NAMES[0]) == (data / NAMES[0]).read_bytes()
