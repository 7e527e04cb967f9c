"""Requests of mounts on the event loop: several mounts at a time, and in turns with threads of their own."""

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

from csi_driver.event_loop.event_loop import EventLoop, LoopWork
from csi_driver.filesystem.inodes import Data
from csi_driver.fuse import mounting as device
from csi_driver.settings import FuseSettings
from tests.support.local_filesystem import LocalFilesystem
from tests.support.mounts import MountBench, ServedMount, wait_until

pytestmark = pytest.mark.fuse

NAMES = [f"{number:02}.jpg" for number in range(40)]


class HangingFilesystem(LocalFilesystem):
    """Reads of some nodes hang on the calling thread, as in an open(2) on a disk that does not answer."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.opens_are_needless = True
        self.hangs_at: set[int] = set()
        self.hanging = threading.Event()
        self.resume = threading.Event()

    def read_node(self, node: int, offset: int, size_bytes: int, data: Data) -> object:
        if node in self.hangs_at:
            self.hanging.set()
            self.resume.wait(60)
        return super().read_node(node, offset, size_bytes, data)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    data = tmp_path / "data"
    data.mkdir()
    for name in NAMES:
        (data / name).write_bytes(os.urandom(110_000))
    return data


@pytest.fixture
def event_loop() -> Iterator[EventLoop]:
    event_loop = EventLoop()
    event_loop.start()
    yield event_loop
    event_loop.close()


@pytest.fixture
def bench(tmp_path: Path, event_loop: EventLoop) -> Iterator[MountBench]:
    bench = MountBench(tmp_path, event_loop)
    yield bench
    bench.close()


def cat(*paths: Path) -> bytes:
    """In a process of its own, which can be killed, and which leaves this interpreter to the mount."""
    return subprocess.run(["cat", *paths], capture_output=True, check=True, timeout=30).stdout


def a_reader_that_hangs(
    bench: MountBench, data: Path
) -> tuple[HangingFilesystem, ServedMount, subprocess.Popen[bytes]]:
    """Reads the first file of a mount of its own, until ``resume``."""
    filesystem = HangingFilesystem(data)
    filesystem.hangs_at.add(filesystem.node_of(NAMES[0]))
    mount = bench.serve(filesystem)
    bench.actions.append(filesystem.resume.set)
    reader = subprocess.Popen(["cat", mount / NAMES[0]], stdout=subprocess.PIPE)
    assert filesystem.hanging.wait(20)
    return filesystem, mount, reader


def test_several_mounts_share_the_event_loop_and_each_file_has_its_bytes(bench: MountBench, data: Path) -> None:
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


def test_a_mount_that_has_ended_is_noticed_and_polled_no_more(
    bench: MountBench, event_loop: EventLoop, data: Path
) -> None:
    first, second = (bench.serve(HangingFilesystem(data)) for _ in range(2))
    cat(first / NAMES[0])
    device.unmount(first.mount_point)
    assert first.session.wait(10)
    wait_until(lambda: not first.session.serving)
    assert event_loop._watched.poll(0) == [], "the thread would spin"
    assert cat(second / NAMES[0]) == (data / NAMES[0]).read_bytes()


@pytest.mark.promise("S53")
def test_a_request_that_hangs_delays_neither_its_mount_nor_others(bench: MountBench, data: Path) -> None:
    other = bench.serve(HangingFilesystem(data))
    filesystem, mount, reader = a_reader_that_hangs(bench, data)
    assert cat(other / NAMES[1]) == (data / NAMES[1]).read_bytes()
    assert cat(mount / NAMES[1]) == (data / NAMES[1]).read_bytes()
    filesystem.resume.set()
    assert reader.communicate(timeout=20)[0] == (data / NAMES[0]).read_bytes()
    assert cat(mount / NAMES[2]) == (data / NAMES[2]).read_bytes()


def test_a_request_that_hangs_during_a_stop_is_answered_by_the_next_session(bench: MountBench, data: Path) -> None:
    """The thread that hangs is abandoned. The next session gets the request again and answers it; the late answer of
    the first is ignored."""
    filesystem, mount, reader = a_reader_that_hangs(bench, data)
    old = mount.session
    old.stop()
    assert old.serving
    bench.adopt(mount, HangingFilesystem(data))
    assert reader.communicate(timeout=20)[0] == (data / NAMES[0]).read_bytes()
    filesystem.resume.set()
    wait_until(lambda: not old.serving)
    assert cat(mount / NAMES[1]) == (data / NAMES[1]).read_bytes()


def test_a_thread_that_hung_takes_no_request_after_the_stop(bench: MountBench, data: Path) -> None:
    filesystem, mount, first = a_reader_that_hangs(bench, data)
    old = mount.session
    old.stop()
    second = subprocess.Popen(["cat", mount / NAMES[1]], stdout=subprocess.PIPE)
    time.sleep(0.1)
    filesystem.resume.set()
    wait_until(lambda: not old.serving)
    assert filesystem.node_reads == 1
    bench.adopt(mount, HangingFilesystem(data))
    assert first.communicate(timeout=20)[0] == (data / NAMES[0]).read_bytes()
    assert second.communicate(timeout=20)[0] == (data / NAMES[1]).read_bytes()


def test_a_second_stop_leaves_the_descriptor_to_the_session_that_has_it_now(bench: MountBench, data: Path) -> None:
    mount = bench.serve(HangingFilesystem(data))
    old = mount.session
    old.stop()
    bench.adopt(mount, HangingFilesystem(data))
    old.stop()
    assert cat(mount / NAMES[0]) == (data / NAMES[0]).read_bytes()


@pytest.mark.parametrize("first", ["loop", "threads"])
def test_sessions_on_threads_and_on_the_event_loop_follow_each_other(
    bench: MountBench, event_loop: EventLoop, data: Path, first: str
) -> None:
    """Whether read(2) waits is a property of the open device, which the next daemon gets as it is."""
    kinds = [event_loop, None] if first == "loop" else [None, event_loop]
    bench.loop = kinds[0]
    mount = bench.serve(HangingFilesystem(data))
    for number, name in enumerate(NAMES[:8]):
        assert os.get_blocking(mount.device_fd) is (bench.loop is None)
        assert cat(mount / name) == (data / name).read_bytes()
        mount.session.stop()
        assert not mount.session.serving
        bench.loop = kinds[(number + 1) % 2]
        bench.adopt(mount, HangingFilesystem(data))


@pytest.mark.parametrize("resend", [True, False], ids=["resends", "answers"])
def test_a_thread_left_in_a_read_ends_when_the_device_becomes_non_blocking(
    bench: MountBench, event_loop: EventLoop, data: Path, resend: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """No file was looked up yet with which to wake it; the next session makes reads of the device non-blocking."""
    bench.loop = None
    mount: ServedMount = bench.serve(HangingFilesystem(data), FuseSettings(resend=resend))
    old = mount.session
    old.stop()
    assert old.serving
    bench.loop = event_loop
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


class BusyWork(LoopWork):
    """Work of the event loop that is in flight while the test says so."""

    def __init__(self) -> None:
        self.requests = 0

    @property
    def busy(self) -> int:
        return self.requests


def ask_for_terminals(path: Path, times: int) -> None:
    """In another process: one ioctl each, without a read."""
    script = "import os, sys; fd = os.open(sys.argv[1], os.O_RDONLY); [os.isatty(fd) for _ in range(int(sys.argv[2]))]"
    subprocess.run([sys.executable, "-c", script, path, str(times)], check=True, timeout=60)


def has_thread(mount: ServedMount) -> bool:
    return os.get_blocking(mount.device_fd)


def test_requests_that_memory_answers_get_a_thread_and_a_read_goes_back_to_the_event_loop(
    bench: MountBench, data: Path
) -> None:
    mount = bench.serve(HangingFilesystem(data))
    for name in NAMES[:4]:
        assert cat(mount / name) == (data / name).read_bytes()
        assert not has_thread(mount)
        ask_for_terminals(mount / name, 300)
        assert has_thread(mount)
    mount.session.stop()
    assert not mount.session.serving
    bench.adopt(mount, HangingFilesystem(data))
    assert cat(mount / NAMES[4]) == (data / NAMES[4]).read_bytes()
    ask_for_terminals(mount / NAMES[4], 300)
    assert has_thread(mount)
    device.unmount(mount.mount_point)
    assert mount.session.wait(30)
    wait_until(lambda: not mount.session.serving)


def task_cores(name: str) -> set[int] | None:
    """Where the threads of this process that have this name may run; None: there is none."""
    for thread in threading.enumerate():
        if thread.name == name and thread.native_id is not None:
            return os.sched_getaffinity(thread.native_id)
    return None


def test_the_thread_of_a_mount_runs_where_its_one_reader_does_and_the_event_loop_on_all_cores(
    bench: MountBench, data: Path
) -> None:
    everywhere = os.sched_getaffinity(0)
    mount = bench.serve(HangingFilesystem(data))
    cat(mount / NAMES[0])
    core = max(everywhere)
    script = "import os, sys; os.sched_setaffinity(0, {int(sys.argv[2])}); fd = os.open(sys.argv[1], os.O_RDONLY)\n"
    script += "while True: os.isatty(fd)"
    reader = subprocess.Popen([sys.executable, "-c", script, mount / NAMES[0], str(core)])
    try:
        wait_until(lambda: task_cores("fuse-0") == {core})
    finally:
        reader.kill()
        reader.wait()
    cat(mount / NAMES[1])  # the event loop reads, and starts a thread while this one hangs
    assert not has_thread(mount)
    assert task_cores("loop") == everywhere
    mount.session.stop()


def test_a_mount_has_no_thread_while_objects_are_fetched(bench: MountBench, data: Path) -> None:
    """The thread would contend with the one that fetches."""
    work = BusyWork()
    event_loop = EventLoop()
    event_loop.attach(work)
    event_loop.start()
    bench.actions.append(event_loop.close)
    bench.loop = event_loop
    mount = bench.serve(HangingFilesystem(data))
    cat(mount / NAMES[0])
    work.requests = 1
    ask_for_terminals(mount / NAMES[0], 300)
    assert not has_thread(mount)
    work.requests = 0
    ask_for_terminals(mount / NAMES[0], 300)
    assert has_thread(mount)
    work.requests = 1
    ask_for_terminals(mount / NAMES[0], 1)
    assert not has_thread(mount)
    mount.session.stop()  # before the event loop


@pytest.mark.promise("S53")
def test_a_read_that_hangs_after_a_quiet_time_delays_neither_its_mount_nor_others(
    bench: MountBench, data: Path
) -> None:
    filesystem = HangingFilesystem(data)
    filesystem.hangs_at.add(filesystem.node_of(NAMES[0]))
    other, mount = bench.serve(HangingFilesystem(data)), bench.serve(filesystem)
    bench.actions.append(filesystem.resume.set)
    cat(mount / NAMES[1])
    ask_for_terminals(mount / NAMES[1], 300)
    assert has_thread(mount)
    reader = subprocess.Popen(["cat", mount / NAMES[0]], stdout=subprocess.PIPE)
    assert filesystem.hanging.wait(30)
    assert cat(mount / NAMES[2]) == (data / NAMES[2]).read_bytes()
    assert cat(other / NAMES[1]) == (data / NAMES[1]).read_bytes()
    ask_for_terminals(mount / NAMES[1], 300)
    assert not has_thread(mount), "the thread that hangs would read on beside it"
    filesystem.resume.set()
    assert reader.communicate(timeout=30)[0] == (data / NAMES[0]).read_bytes()
    wait_until(lambda: len(mount.session._request_loop._inside) < 1)  # type: ignore[attr-defined]
    ask_for_terminals(mount / NAMES[1], 300)
    assert has_thread(mount)
