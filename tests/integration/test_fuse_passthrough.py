"""Passthrough: which opens the kernel reads by itself, and that one inode never has opens of both modes."""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from csi_driver.filesystem.open_table import PASSTHROUGH_BIT
from csi_driver.settings import FuseSettings
from tests.support.local_filesystem import LocalFilesystem
from tests.support.mounts import MountBench, ServedMount, wait_until

pytestmark = pytest.mark.fuse

_SIZE_BYTES = 3_000_001


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[MountBench]:
    bench = MountBench(tmp_path)
    yield bench
    bench.close()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    data = tmp_path / "data"
    data.mkdir()
    (data / "a.bin").write_bytes(os.urandom(_SIZE_BYTES))
    (data / "b.bin").write_bytes(os.urandom(_SIZE_BYTES))
    return data


@pytest.fixture
def filesystem(data: Path) -> LocalFilesystem:
    return LocalFilesystem(data)


@pytest.fixture
def mount(bench: MountBench, filesystem: LocalFilesystem) -> ServedMount:
    return bench.serve(filesystem)


def _modes(mount: ServedMount) -> list[bool]:
    return [bool(record.handle & PASSTHROUGH_BIT) for record in mount.open_table.records()]


def _cached_pages(path: Path) -> int:
    """Pages of this inode in the page cache."""
    done = subprocess.run(
        ["fincore", "--noheadings", "--output=PAGES", path], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


def test_a_complete_file_is_read_without_the_daemon(
    mount: ServedMount, filesystem: LocalFilesystem, data: Path
) -> None:
    assert mount.session.passthrough
    with (mount / "a.bin").open("rb") as file:
        assert _modes(mount) == [True]
        assert file.read() == (data / "a.bin").read_bytes()
    assert filesystem.reads == 0


def test_all_opens_of_a_file_share_one_backing_id(mount: ServedMount, data: Path) -> None:
    """Eight threads, 300 opens each, of one inode: with two ids at a time the kernel would answer EIO."""
    expected = hashlib.sha256((data / "a.bin").read_bytes()[:1000]).digest()
    failures: list[object] = []

    def read() -> None:
        for _ in range(300):
            try:
                with (mount / "a.bin").open("rb", buffering=0) as file:
                    if hashlib.sha256(file.read(1000)).digest() != expected:
                        failures.append("wrong bytes")
            except OSError as error:
                failures.append(error)

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    wait_until(lambda: not mount.session._files.handles)
    assert not mount.session._backing._nodes


def test_a_file_stays_served_until_its_last_served_open_is_closed(
    mount: ServedMount, filesystem: LocalFilesystem, data: Path
) -> None:
    filesystem.incomplete.add(filesystem.node_of("a.bin"))
    served = (mount / "a.bin").open("rb")
    filesystem.incomplete.clear()  # its last byte was received
    later = (mount / "a.bin").open("rb")
    assert _modes(mount) == [False, False]
    assert later.read() == served.read() == (data / "a.bin").read_bytes()
    served.close()
    later.close()
    wait_until(lambda: not mount.session._files.handles)
    with (mount / "a.bin").open("rb") as file:
        assert _modes(mount) == [True]
        assert file.read() == (data / "a.bin").read_bytes()


def test_a_file_stays_passed_through_until_its_last_open_is_closed(
    mount: ServedMount, filesystem: LocalFilesystem, data: Path
) -> None:
    first = (mount / "a.bin").open("rb")
    filesystem.incomplete.add(filesystem.node_of("a.bin"))
    with (mount / "a.bin").open("rb") as second:
        assert _modes(mount) == [True, True]
        assert second.read() == (data / "a.bin").read_bytes()
    first.close()


def test_opens_of_both_modes_never_overlap(mount: ServedMount, filesystem: LocalFilesystem, data: Path) -> None:
    node = filesystem.node_of("a.bin")
    expected = (data / "a.bin").read_bytes()[:5000]
    done = threading.Event()
    failures: list[object] = []

    def toggle() -> None:
        while not done.wait(0.001):
            filesystem.incomplete.symmetric_difference_update({node})

    def read() -> None:
        for _ in range(300):
            try:
                with (mount / "a.bin").open("rb", buffering=0) as file:
                    if file.read(5000) != expected:
                        failures.append("wrong bytes")
            except OSError as error:
                failures.append(error)

    toggler = threading.Thread(target=toggle)
    readers = [threading.Thread(target=read) for _ in range(4)]
    for thread in (toggler, *readers):
        thread.start()
    for thread in readers:
        thread.join()
    done.set()
    toggler.join()
    assert failures == []


def test_served_pages_are_dropped_after_the_last_close(
    mount: ServedMount, filesystem: LocalFilesystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would be in memory twice: for the mount's inode and for the object file."""
    dropped: list[int] = []
    send = mount.session._send_invalidation
    monkeypatch.setattr(mount.session, "_send_invalidation", lambda node: (send(node), dropped.append(node)))
    node = filesystem.node_of("a.bin")
    filesystem.incomplete.add(node)  # a passthrough open would show the pages of its backing file instead
    with (mount / "a.bin").open("rb") as served:
        served.read()
        assert _cached_pages(mount / "a.bin") > 0
    wait_until(lambda: dropped == [node])
    assert _cached_pages(mount / "a.bin") == 0


def test_an_invalidation_drops_the_pages_of_an_open_file(mount: ServedMount, filesystem: LocalFilesystem) -> None:
    node = filesystem.node_of("a.bin")
    filesystem.incomplete.add(node)
    with (mount / "a.bin").open("rb") as served:
        served.read()
        assert _cached_pages(mount / "a.bin") > 0
        mount.session._send_invalidation(node)
        wait_until(lambda: _cached_pages(mount / "a.bin") == 0)


def test_served_pages_stay_between_opens(bench: MountBench, filesystem: LocalFilesystem) -> None:
    mount = bench.serve(filesystem, FuseSettings(passthrough=False))
    (mount / "a.bin").read_bytes()
    before = filesystem.reads
    (mount / "a.bin").read_bytes()
    assert 0 < before == filesystem.reads


def test_served_reads_are_of_1_mib(
    bench: MountBench, filesystem: LocalFilesystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    read = filesystem.read
    monkeypatch.setattr(
        filesystem, "read", lambda handle, offset, size, data: (sizes.append(size), read(handle, offset, size, data))[1]
    )
    mount = bench.serve(filesystem, FuseSettings(passthrough=False))
    subprocess.run(["cat", mount / "a.bin"], stdout=subprocess.DEVNULL, check=True, timeout=30)
    assert max(sizes) == 1 << 20


def test_a_backing_file_may_be_unlinked_while_it_is_open(mount: ServedMount, data: Path) -> None:
    content = (data / "a.bin").read_bytes()
    with (mount / "a.bin").open("rb") as file:
        (data / "a.bin").unlink()
        assert file.read() == content


_ADMITTING = """
import sys
from pathlib import Path
from csi_driver.filesystem.inodes import OpenedFile
from csi_driver.fuse.passthrough import BackingTable
import os
table = BackingTable(int(sys.argv[1]), enabled=True)
print(table.admit(2, OpenedFile(1, os.open(sys.argv[2], os.O_RDONLY))), table.enabled)
"""


def test_without_the_capability_reads_are_served_and_it_is_logged_once(
    bench: MountBench, data: Path, mount: ServedMount
) -> None:
    done = subprocess.run(
        [
            *("setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"),
            *(sys.executable, "-c", _ADMITTING, str(mount.device_fd), str(data / "a.bin")),
        ],
        pass_fds=[mount.device_fd],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert done.stdout.split() == ["0", "False"]
    assert len(re.findall("lacks CAP_SYS_ADMIN", done.stderr)) == 1


def test_a_cache_on_overlayfs_is_served_and_it_is_logged_once(
    bench: MountBench, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from csi_driver.mounts import syscalls

    layers = [tmp_path / name for name in ("upper", "work", "merged")]
    for layer in layers:
        layer.mkdir()
    upper, work, merged = layers
    syscalls.mount("overlay", merged, "overlay", 0, f"lowerdir={data},upperdir={upper},workdir={work}")
    bench.actions.append(lambda: syscalls.umount2(merged, syscalls.MNT_DETACH))
    mount = bench.serve(LocalFilesystem(merged))
    for name in ("a.bin", "b.bin"):
        assert (mount / name).read_bytes() == (data / name).read_bytes()
    assert not mount.session.passthrough
    assert caplog.text.count("stacked file system") == 1


_DIRECT_READS = [(0, 4096), (4096, 1 << 20), (_SIZE_BYTES // 4096 * 4096, 4096), (0, 100), (100, 4096), (512, 511)]


def _direct_reads(path: Path) -> list[int | str]:
    """How many bytes each read with O_DIRECT returns, into an aligned buffer, or the name of its errno."""
    found: list[int | str] = []
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
    with mmap.mmap(-1, 1 << 20) as buffer:
        for offset, size_bytes in _DIRECT_READS:
            with memoryview(buffer) as view, view[:size_bytes] as part:
                try:
                    found.append(os.preadv(descriptor, [part], offset))
                except OSError as error:
                    found.append(errno.errorcode[error.errno or 0])
    os.close(descriptor)
    return found


@pytest.mark.promise("S259")
@pytest.mark.parametrize("kind", ["passthrough", "served", "without opens"])
def test_direct_reads_need_the_alignment_of_a_local_file(bench: MountBench, data: Path, kind: str) -> None:
    """The object file itself is what a materialised view shows."""
    expected = _direct_reads(data / "a.bin")
    assert expected[:2] == [4096, 1 << 20], "the file system of the test has O_DIRECT"
    filesystem = LocalFilesystem(data, complete=kind == "passthrough")
    filesystem.opens_are_needless = kind == "without opens"
    mount = bench.serve(filesystem)
    # In another process, which waits for this one.
    script = (
        f"import pathlib, sys; from {__name__} import _direct_reads; print(_direct_reads(pathlib.Path(sys.argv[1])))"
    )
    command = [sys.executable, "-c", script, str(mount / "a.bin")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == str(expected), done.stderr


@pytest.mark.promise("S260")
def test_an_image_in_a_complete_file_can_be_mounted_by_loop(bench: MountBench, tmp_path: Path) -> None:
    if not Path("/dev/loop-control").exists():
        pytest.skip("needs /dev/loop-control")
    content, images = tmp_path / "content", tmp_path / "images"
    for directory in (content, images, tmp_path / "inner"):
        directory.mkdir()
    (content / "inside.bin").write_bytes(os.urandom(300_000))
    subprocess.run(
        ["mke2fs", "-q", "-t", "ext4", "-d", content, images / "data.img", "4M"], check=True, capture_output=True
    )
    mount = bench.serve(LocalFilesystem(images))
    command = ["mount", "-t", "ext4", "-o", "ro,loop,noload", str(mount / "data.img"), str(tmp_path / "inner")]
    subprocess.run(command, check=True, timeout=60)
    try:
        assert (tmp_path / "inner" / "inside.bin").read_bytes() == (content / "inside.bin").read_bytes()
        mount.session.stop()
        done = subprocess.run(["cat", tmp_path / "inner" / "inside.bin"], capture_output=True, timeout=60)
        assert done.stdout == (content / "inside.bin").read_bytes(), "no daemon is needed"
    finally:
        subprocess.run(["umount", tmp_path / "inner"], check=True, timeout=60)
