"""A real mount, as programs see it."""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from csi_driver.fuse import mounting as device
from csi_driver.fuse import protocol as p
from csi_driver.model.errors import MountPointBusy, MountPointMissing, StoreUnavailable
from csi_driver.mounts import syscalls
from csi_driver.settings import FuseSettings
from tests.support.local_filesystem import LocalFilesystem
from tests.support.mounts import MountBench, ServedMount, wait_until

pytestmark = pytest.mark.fuse


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[MountBench]:
    bench = MountBench(tmp_path)
    yield bench
    bench.close()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    data = tmp_path / "data"
    (data / "sub" / "deep").mkdir(parents=True)
    (data / "a.bin").write_bytes(os.urandom(5_000_003))
    (data / "empty").write_bytes(b"")
    (data / "sub" / "b.txt").write_text("hello")
    (data / "sub" / "deep" / "naïve name\n.txt").write_text("x")
    return data


@pytest.fixture(params=[True, False], ids=["passthrough", "served"])
def mount(bench: MountBench, data: Path, request: pytest.FixtureRequest) -> ServedMount:
    return bench.serve(LocalFilesystem(data, complete=request.param), FuseSettings(passthrough=request.param))


def _run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _digests(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def test_the_complete_tree_has_the_same_names_and_bytes(mount: ServedMount, data: Path) -> None:
    assert _digests(mount.mount_point) == _digests(data)
    assert _run("diff", "-r", data, mount.mount_point) == ""


def test_a_mount_is_read_only_nosuid_nodev_and_names_the_dataset(mount: ServedMount) -> None:
    entry = device.find(mount.mount_point)
    assert entry is not None
    assert {"ro", "nosuid", "nodev"} <= entry.options
    assert entry.fs_type == "fuse.hayloft"
    assert entry.source == "memory://test"
    assert {"default_permissions", "allow_other"} <= entry.super_options


def test_readahead_is_raised_from_outside_the_mount(mount: ServedMount) -> None:
    entry = device.find(mount.mount_point)
    assert entry is not None
    assert Path("/sys/class/bdi", entry.device, "read_ahead_kb").read_text().strip() == "4096"


_WRITES: dict[str, Callable[[Path], object]] = {
    "open to write": lambda path: os.open(path / "a.bin", os.O_WRONLY),
    "open to read and write": lambda path: os.open(path / "a.bin", os.O_RDWR),
    "open and truncate": lambda path: os.open(path / "a.bin", os.O_RDONLY | os.O_TRUNC),
    "create": lambda path: os.open(path / "new", os.O_WRONLY | os.O_CREAT),
    "temporary file": lambda path: os.open(path, os.O_TMPFILE | os.O_RDWR),
    "truncate": lambda path: os.truncate(path / "a.bin", 0),
    "mkdir": lambda path: os.mkdir(path / "new"),
    "rmdir": lambda path: os.rmdir(path / "sub"),
    "unlink": lambda path: os.unlink(path / "a.bin"),
    "rename": lambda path: os.rename(path / "a.bin", path / "new"),
    "link": lambda path: os.link(path / "a.bin", path / "new"),
    "symlink": lambda path: os.symlink("a.bin", path / "new"),
    "mknod": lambda path: os.mknod(path / "new"),
    "chmod": lambda path: os.chmod(path / "a.bin", 0o600),
    "chown": lambda path: os.chown(path / "a.bin", 1, 1),
    "utime": lambda path: os.utime(path / "a.bin"),
    "setxattr": lambda path: os.setxattr(path / "a.bin", "user.x", b"1"),
    "removexattr": lambda path: os.removexattr(path / "a.bin", "user.hayloft.etag"),
}


@pytest.mark.parametrize("name", _WRITES)
def test_every_write_is_erofs(mount: ServedMount, name: str) -> None:
    with pytest.raises(OSError, match="Read-only") as raised:
        _WRITES[name](mount.mount_point)
    assert raised.value.errno == errno.EROFS


def test_writing_stays_erofs_when_the_mount_is_made_writable(bench: MountBench, data: Path) -> None:
    """The kernel then sends the requests to the daemon, which answers the same."""
    mount = bench.serve(LocalFilesystem(data))
    syscalls.mount("none", mount.mount_point, None, syscalls.MS_REMOUNT)
    for name, write in _WRITES.items():
        with pytest.raises(OSError, match=r"Read-only|not supported") as raised:
            write(mount.mount_point)
        allowed = (errno.EROFS, errno.EOPNOTSUPP) if name == "temporary file" else (errno.EROFS,)
        assert raised.value.errno in allowed, name


def test_missing_names_are_enoent_and_long_ones_enametoolong(mount: ServedMount) -> None:
    for _ in range(2):  # the second time from the kernel's own memory
        with pytest.raises(FileNotFoundError):
            os.stat(mount / "nothing")
    with pytest.raises(OSError, match="too long"):
        os.stat(mount / ("x" * 256))
    with pytest.raises(NotADirectoryError):
        os.stat(mount / "a.bin" / "x")


def test_stat_walks_and_listings_agree(mount: ServedMount, data: Path) -> None:
    for path in data.rglob("*"):
        theirs, ours = path.stat(), (mount.mount_point / path.relative_to(data)).stat()
        if path.is_file():
            assert (ours.st_size, ours.st_mtime_ns, ours.st_blksize) == (theirs.st_size, theirs.st_mtime_ns, 4096)
    assert _run("find", mount.mount_point, "-type", "f").count("mount-0") == 4
    assert "b.txt" in _run("ls", "-laR", mount.mount_point)
    assert os.path.samefile(mount / "sub" / "..", mount.mount_point)


def test_a_wide_directory_is_listed_completely(bench: MountBench, tmp_path: Path) -> None:
    wide = tmp_path / "wide"
    wide.mkdir()
    names = {f"{number:05}-{'x' * (number % 200)}" for number in range(3000)}
    for name in names:
        (wide / name).touch()
    mount = bench.serve(LocalFilesystem(wide))
    for _ in range(2):
        assert set(os.listdir(mount.mount_point)) == names
    assert len(_run("ls", "-l", mount.mount_point).splitlines()) == 3001
    assert _run("find", mount.mount_point, "-name", "0*").count("\n") == 3000


def test_directories_are_read_once_and_then_by_the_kernel_alone(bench: MountBench, data: Path) -> None:
    filesystem = LocalFilesystem(data)
    mount = bench.serve(filesystem)
    os.listdir(mount / "sub")
    filesystem.entries = lambda node, cookie: pytest.fail("requested again")  # type: ignore[method-assign]
    assert sorted(os.listdir(mount / "sub")) == ["b.txt", "deep"]


def test_df_shows_the_dataset(mount: ServedMount) -> None:
    status = os.statvfs(mount.mount_point)
    assert status.f_blocks * status.f_frsize == -(-5_000_009 // 4096) * 4096
    assert (status.f_bavail, status.f_files, status.f_namemax) == (0, 4, 255)


def test_extended_attributes_are_shown(mount: ServedMount) -> None:
    assert os.getxattr(mount / "a.bin", "user.hayloft.etag") == b"abc"
    with pytest.raises(OSError, match="No data"):
        os.getxattr(mount / "a.bin", "user.other")


@pytest.mark.promise("S256")
def test_extended_attributes_are_not_listed_and_copies_do_not_carry_them_along(
    mount: ServedMount, tmp_path: Path
) -> None:
    with pytest.raises(OSError, match=os.strerror(errno.EOPNOTSUPP)):
        os.listxattr(mount / "a.bin")
    subprocess.run(["cp", "-a", mount / "a.bin", tmp_path / "copy"], check=True, timeout=60)
    subprocess.run(["cp", "--preserve=xattr", mount / "a.bin", tmp_path / "copy"], timeout=60)
    shutil.copy2(mount / "a.bin", tmp_path / "second")
    assert os.listxattr(tmp_path / "copy") == os.listxattr(tmp_path / "second") == []
    assert mount.requests[p.LISTXATTR] == 1


@pytest.mark.promise("S255")
def test_listings_with_attributes_cost_no_request_for_each_file(bench: MountBench, tmp_path: Path) -> None:
    data = tmp_path / "many"
    data.mkdir()
    for number in range(200):
        (data / f"{number:03}.jpg").write_bytes(b"x")
    mount = bench.serve(LocalFilesystem(data))
    subprocess.run(["ls", "-l", mount.mount_point], check=True, stdout=subprocess.DEVNULL, timeout=60)
    mount.requests.clear()
    for _ in range(3):
        _run("ls", "-l", mount.mount_point)
        _run("stat", *sorted(mount.mount_point.iterdir()))
    per_command = mount.requests[p.GETXATTR] / 3
    assert per_command <= 3, "an access control list and a label of the first file"
    assert sum(mount.requests[opcode] for opcode in (p.STATX, p.LISTXATTR)) <= 1
    assert mount.requests.total() - mount.requests[p.GETXATTR] < 20


def test_seek_finds_data_and_no_holes(mount: ServedMount) -> None:
    with (mount / "a.bin").open("rb") as file:
        assert file.seek(1000, os.SEEK_DATA) == 1000
        assert file.seek(1000, os.SEEK_HOLE) == 5_000_003
        assert file.seek(0, os.SEEK_END) == 5_000_003
        with pytest.raises(OSError, match="No such device or address"):
            file.seek(5_000_003, os.SEEK_DATA)


_MAPPING_READER = """
import hashlib, mmap, sys
with open(sys.argv[1], "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
    mapped.madvise(mmap.MADV_RANDOM)
    for at in range(len(mapped) - 1, 0, -70_001):
        mapped[at]
    print(hashlib.sha256(mapped).hexdigest())
"""


def test_a_file_is_mapped(mount: ServedMount, data: Path) -> None:
    """In a process of its own: a page fault does not release the interpreter lock, which the answering thread needs."""
    expected = hashlib.sha256((data / "a.bin").read_bytes()).hexdigest()
    assert _run(sys.executable, "-c", _MAPPING_READER, mount / "a.bin").strip() == expected


def test_a_file_is_read_past_the_page_cache(mount: ServedMount, data: Path) -> None:
    content = (data / "a.bin").read_bytes()
    descriptor = os.open(mount / "a.bin", os.O_RDONLY | os.O_DIRECT)
    with mmap.mmap(-1, 1 << 20) as buffer:  # O_DIRECT needs complete pages
        count = os.preadv(descriptor, [buffer], 1 << 20)
        assert count == 1 << 20
        assert buffer[:count] == content[1 << 20 : 2 << 20]
    os.close(descriptor)


def test_locks_work_as_on_a_local_disk(mount: ServedMount) -> None:
    assert _run("flock", "--shared", "--nonblock", mount / "a.bin", "true") == ""


def test_other_users_read_what_the_modes_allow(mount: ServedMount) -> None:
    """From within the mount: other users cannot enter the directories above it, which are the test's. The shell enters
    it: before exec, ``subprocess`` of Python 3.11.2 keeps the interpreter lock, which the answering thread needs."""
    command = 'cd "$1" && exec setpriv --reuid=65534 --regid=65534 --clear-groups cat b.txt'
    assert _run("sh", "-c", command, "sh", mount / "sub") == "hello"


def test_an_error_of_the_store_is_an_error_of_read(bench: MountBench, data: Path) -> None:
    filesystem = LocalFilesystem(data, complete=False)
    node = filesystem.node_of("sub/b.txt")
    filesystem.read_errors[node] = StoreUnavailable("down")
    mount = bench.serve(filesystem)
    with pytest.raises(TimeoutError):
        (mount / "sub" / "b.txt").read_bytes()
    filesystem.read_errors.clear()
    assert (mount / "sub" / "b.txt").read_bytes() == b"hello"


def test_many_threads_read_many_files_at_once(mount: ServedMount, data: Path) -> None:
    expected = _digests(data)
    wrong: list[str] = []

    def read() -> None:
        for _ in range(20):
            if _digests(mount.mount_point) != expected:
                wrong.append("differs")

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_after_everything_is_closed_nothing_is_open(mount: ServedMount) -> None:
    for path in mount.mount_point.rglob("*"):
        if path.is_file():
            path.read_bytes()
    wait_until(lambda: not mount.session._files.handles)  # close(2) does not wait for RELEASE
    assert not list(mount.open_table.records())


def test_a_mount_point_that_is_missing_or_in_use_is_named(bench: MountBench, data: Path, mount: ServedMount) -> None:
    with pytest.raises(MountPointMissing, match="nowhere"):
        device.mount(bench.directory / "nowhere", "memory://test")
    with pytest.raises(MountPointMissing, match="is not a directory"):
        device.mount(data / "a.bin", "memory://test")
    with pytest.raises(MountPointBusy, match="unmount it or choose another path"):
        device.mount(mount.mount_point, "memory://test")


def test_unmounting_a_mount_in_use_is_refused_and_unmounting_twice_is_success(mount: ServedMount) -> None:
    with (mount / "a.bin").open("rb"), pytest.raises(MountPointBusy, match="still open"):
        device.unmount(mount.mount_point)
    device.unmount(mount.mount_point)
    device.unmount(mount.mount_point)
    assert mount.session.wait(5)
    assert device.find(mount.mount_point) is None


def test_an_aborted_connection_ends_the_session_and_fails_its_readers(bench: MountBench, data: Path) -> None:
    filesystem = LocalFilesystem(data, complete=False)
    filesystem.pending_nodes.add(filesystem.node_of("a.bin"))
    mount = bench.serve(filesystem)
    failures: list[int | None] = []

    def read() -> None:
        try:
            (mount / "a.bin").read_bytes()
        except OSError as error:
            failures.append(error.errno)

    reader = threading.Thread(target=read)
    reader.start()
    wait_until(lambda: bool(filesystem.pending_count))
    entry = device.find(mount.mount_point)
    assert entry is not None
    device.abort(entry)
    reader.join(10)
    assert failures
    assert mount.session.wait(5)


def test_an_unknown_opcode_is_enosys(mount: ServedMount) -> None:
    """poll(2) and fsync(2) send requests that are not served, and the kernel falls back; an ioctl fails."""
    import fcntl
    import select

    with (mount / "sub" / "b.txt").open("rb") as file:
        poll = select.poll()
        poll.register(file, select.POLLIN)
        assert poll.poll(0)
        os.fsync(file.fileno())
        with pytest.raises(OSError, match="Inappropriate ioctl"):
            fcntl.ioctl(file, 0x5401)


@pytest.mark.fusermount
def test_without_root_fusermount_mounts_and_reads_are_served(bench: MountBench, data: Path) -> None:
    """fusermount3 passes the descriptor. It runs as root here, so only the path of the code differs."""
    mount_point = bench.mount_point()
    descriptor = device._mount_with_fusermount(mount_point, "memory://with,comma")
    try:
        entry = device.find(mount_point)
        assert entry is not None
        assert entry.source == "memory://with,comma"
        assert {"ro", "nosuid", "nodev"} <= entry.options
        assert "default_permissions" in entry.super_options
    finally:
        os.close(descriptor)
