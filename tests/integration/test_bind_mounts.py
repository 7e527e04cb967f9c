"""Bind mounts in the real mount table, as root."""

from __future__ import annotations

import errno
import faulthandler
import os
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

import pytest

from csi_driver.model.errors import (
    MountError,
    MountFailed,
    MountPointBusy,
    MountPointMissing,
    NotMounted,
    VolumeConflict,
)
from csi_driver.mounts import bind_mounts, syscalls
from csi_driver.mounts.mount_table import MountTable


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A directory; everything mounted below it is unmounted after the test, also when that failed."""
    if os.geteuid() != 0:
        fail = pytest.fail if os.environ.get("HAYLOFT_REQUIRE_ALL") == "1" else pytest.skip
        fail("needs root to mount")
    yield tmp_path
    for entry in reversed(MountTable.read().below(tmp_path)):
        syscalls.umount2(entry.mount_point, syscalls.MNT_DETACH)
    assert MountTable.read().below(tmp_path) == ()


@pytest.fixture
def source(place: Path) -> Path:
    directory = place / "a source"
    directory.mkdir()
    (directory / "file").write_text("content")
    return directory


@pytest.fixture
def target(place: Path) -> Path:
    directory = place / "target"
    directory.mkdir()
    return directory


@pytest.fixture(params=["new mount API", "two steps"])
def each_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both implementations: the second is the fallback path for kernels before 5.12."""
    if request.param == "two steps":

        def missing(*_: object) -> int:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

        monkeypatch.setattr(syscalls, "mount_setattr", missing)


def mount_tmpfs(path: Path, name: str = "tmpfs") -> None:
    syscalls.mount(name, path, "tmpfs", syscalls.MS_NOEXEC, "size=64k")


def stacked_at(path: Path) -> int:
    return sum(entry.mount_point == str(path) for entry in MountTable.read().entries)


@pytest.mark.promise("S98")
@pytest.mark.usefixtures("each_way")
def test_a_bound_directory_shows_its_files_and_cannot_be_written(source: Path, target: Path) -> None:
    bind_mounts.bind_read_only(source, target)
    assert (target / "file").read_text() == "content"
    with pytest.raises(OSError, match="Read-only file system"):
        (target / "new").write_text("x")
    entry = MountTable.read().at(target)
    assert entry is not None
    assert entry.options >= {"ro", "nosuid", "nodev"}
    (source / "new").write_text("the source itself stays writable")


@pytest.mark.usefixtures("each_way")
def test_binding_again_changes_nothing(source: Path, target: Path) -> None:
    bind_mounts.bind_read_only(source, target)
    first = MountTable.read().at(target)
    bind_mounts.bind_read_only(source, target)
    assert MountTable.read().at(target) == first
    assert stacked_at(target) == 1


@pytest.mark.promise("S98")
@pytest.mark.usefixtures("each_way")
def test_mount_options_of_the_source_are_preserved(source: Path, target: Path) -> None:
    mount_tmpfs(source)
    bind_mounts.bind_read_only(source, target)
    entry = MountTable.read().at(target)
    assert entry is not None
    assert "noexec" in entry.options


def test_the_fallback_path_makes_the_same_mount(source: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    for name in ("new", "old"):
        (place / name).mkdir()
        bind_mounts.bind_read_only(source, place / name)
        entry = MountTable.read().at(place / name)
        assert entry is not None
        seen.append((entry.options, entry.root, entry.device))

        def missing(*_: object) -> int:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

        monkeypatch.setattr(syscalls, "open_tree", missing)
    assert seen[0] == seen[1]


def test_a_mount_that_was_left_writable_is_made_read_only(source: Path, target: Path) -> None:
    syscalls.mount(source, target, None, syscalls.MS_BIND)
    bind_mounts.bind_read_only(source, target)
    with pytest.raises(OSError, match="Read-only file system"):
        (target / "new").write_text("x")
    assert stacked_at(target) == 1


def test_a_failed_second_step_leaves_nothing_mounted(
    source: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = syscalls.mount

    def refuse_remount(*arguments: object) -> None:
        if isinstance(arguments[3], int) and arguments[3] & syscalls.MS_REMOUNT:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        real(*arguments)  # type: ignore[arg-type]

    def missing(*_: object) -> int:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(syscalls, "open_tree", missing)
    monkeypatch.setattr(syscalls, "mount", refuse_remount)
    with pytest.raises(MountFailed, match="CAP_SYS_ADMIN"):
        bind_mounts.bind_read_only(source, target)
    assert MountTable.read().at(target) is None


def test_another_volume_at_the_target_is_a_conflict(source: Path, place: Path, target: Path) -> None:
    other = place / "other"
    other.mkdir()
    bind_mounts.bind_read_only(other, target)
    with pytest.raises(VolumeConflict, match="another volume"):
        bind_mounts.bind_read_only(source, target)


def test_a_foreign_file_system_at_the_target_is_busy(source: Path, target: Path) -> None:
    mount_tmpfs(target, "foreign")
    with pytest.raises(MountPointBusy, match=r"foreign.*tmpfs"):
        bind_mounts.bind_read_only(source, target)
    assert stacked_at(target) == 1


def test_a_target_that_is_missing_or_a_file_or_a_link_is_refused_by_name(source: Path, place: Path) -> None:
    (place / "file").touch()
    (place / "link").symlink_to(source)
    for name in ("missing", "file", "link"):
        with pytest.raises(MountPointMissing, match=name):
            bind_mounts.bind_read_only(source, place / name)
    assert MountTable.read().below(place) == ()


def test_a_missing_source_is_named(place: Path, target: Path) -> None:
    with pytest.raises(NotMounted, match="nowhere"):
        bind_mounts.bind_read_only(place / "nowhere", target)
    assert MountTable.read().at(target) is None


def test_no_link_in_a_path_is_followed(source: Path, place: Path, target: Path) -> None:
    (place / "link").symlink_to(place, target_is_directory=True)
    with pytest.raises(MountPointMissing, match="a link is not followed"):
        bind_mounts.bind_read_only(source, place / "link" / "target")
    with pytest.raises(MountError):
        bind_mounts.bind_read_only(place / "link" / source.name, target)
    bind_mounts.bind_read_only(source, target)
    bind_mounts.unmount(place / "link" / "target")
    assert stacked_at(target) == 1


def test_names_with_spaces_newlines_backslashes_and_raw_bytes_work(source: Path, place: Path) -> None:
    target = place / os.fsdecode(b"a b\\040\n#\t\xff")
    bind_mounts.ensure_directory(target)
    bind_mounts.bind_read_only(source, target)
    assert (target / "file").read_text() == "content"
    bind_mounts.unmount(target)
    bind_mounts.remove_mount_point(target)
    assert not target.exists()


def test_a_repeated_unmount_succeeds(source: Path, target: Path) -> None:
    bind_mounts.bind_read_only(source, target)
    bind_mounts.unmount(target)
    bind_mounts.unmount(target)
    assert MountTable.read().at(target) is None
    assert (source / "file").exists()


def test_the_unmount_of_a_missing_path_succeeds(place: Path) -> None:
    bind_mounts.unmount(place / "never" / "made")


def test_all_mounts_of_a_stack_are_unmounted(source: Path, target: Path) -> None:
    for _ in range(3):
        syscalls.mount(source, target, None, syscalls.MS_BIND)
    mount_tmpfs(target)
    bind_mounts.unmount(target)
    assert stacked_at(target) == 0


def test_a_mount_with_an_open_file_is_busy_unless_it_is_detached(source: Path, target: Path) -> None:
    bind_mounts.bind_read_only(source, target)
    with (target / "file").open() as opened:
        with pytest.raises(MountPointBusy, match=r"target.*files open"):
            bind_mounts.unmount(target)
        assert MountTable.read().at(target) is not None
        bind_mounts.unmount(target, lazy=True)
        assert MountTable.read().at(target) is None
        assert opened.read() == "content"


def test_a_link_that_replaces_a_mount_point_is_not_followed(source: Path, place: Path, target: Path) -> None:
    bind_mounts.bind_read_only(source, target)
    (place / "link").symlink_to(target)
    bind_mounts.unmount(place / "link")
    assert MountTable.read().at(target) is not None


def test_a_mount_point_is_created_with_its_parents(place: Path) -> None:
    path = place / "pods" / "x" / "mount"
    bind_mounts.ensure_directory(path)
    bind_mounts.ensure_directory(path)
    assert path.is_dir()
    assert path.stat().st_mode & 0o777 == 0o750
    (place / "file").touch()
    for wrong in (place / "file", place / "file" / "below"):
        with pytest.raises(MountPointMissing, match="file"):
            bind_mounts.ensure_directory(wrong)


def test_an_empty_mount_point_is_removed_and_stays_removed(target: Path) -> None:
    bind_mounts.remove_mount_point(target)
    bind_mounts.remove_mount_point(target)
    assert not target.exists()


def test_a_mount_point_with_files_is_never_emptied(target: Path) -> None:
    (target / "precious").write_text("x")
    with pytest.raises(MountPointBusy, match="contains files"):
        bind_mounts.remove_mount_point(target)
    assert (target / "precious").read_text() == "x"


def test_a_mount_point_that_is_mounted_or_a_file_is_not_removed(source: Path, target: Path, place: Path) -> None:
    bind_mounts.bind_read_only(source, target)
    with pytest.raises(MountPointBusy, match="still mounted"):
        bind_mounts.remove_mount_point(target)
    (place / "file").touch()
    with pytest.raises(MountPointBusy, match="not a directory"):
        bind_mounts.remove_mount_point(place / "file")
    assert (place / "file").exists()


@pytest.fixture
def fuse_device(place: Path) -> Iterator[FileIO]:
    """The device of a FUSE mount at ``place/fuse`` that no daemon serves: every access hangs until the device is
    closed, and then fails."""
    (place / "fuse").mkdir()
    with FileIO("/dev/fuse", "r+") as device:
        options = f"fd={device.fileno()},rootmode=40000,user_id=0,group_id=0,allow_other"
        syscalls.mount("hayloft", place / "fuse", "fuse.hayloft", 0, options)
        yield device


@pytest.fixture
def no_hanging() -> Iterator[None]:
    """A call that accesses a stopped file system hangs in the kernel, where no exception reaches it: after a time-out
    the run ends with a traceback."""
    faulthandler.dump_traceback_later(60, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.mark.fuse
@pytest.mark.usefixtures("no_hanging", "each_way")
def test_a_stopped_daemon_cannot_block_publishing_or_unpublishing(
    fuse_device: FileIO, place: Path, target: Path
) -> None:
    bind_mounts.ensure_directory(place / "fuse")
    bind_mounts.bind_read_only(place / "fuse", target)
    bind_mounts.bind_read_only(place / "fuse", target)
    bind_mounts.unmount(target)
    bind_mounts.unmount(place / "fuse")
    assert MountTable.read().below(place) == ()


@pytest.mark.fuse
@pytest.mark.usefixtures("no_hanging")
def test_a_dead_mount_and_its_binds_are_unmounted(fuse_device: FileIO, place: Path, target: Path) -> None:
    bind_mounts.bind_read_only(place / "fuse", target)
    fuse_device.close()
    with pytest.raises(OSError, match="not connected"):
        os.stat(target)
    bind_mounts.ensure_directory(target)
    bind_mounts.bind_read_only(place / "fuse", target)
    bind_mounts.unmount(target)
    bind_mounts.remove_mount_point(target)
    bind_mounts.unmount(place / "fuse")
    assert MountTable.read().below(place) == ()
